"""Rule-sets: files of rules that others make.

srs     the binary form
files   where each kind of rule-set is read from
"""
