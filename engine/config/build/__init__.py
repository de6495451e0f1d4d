"""Options -> EngineConfig: every reference is looked up, every default filled in, every rule gets its place of origin.

machine    what the machine offers (interfaces, files), as an argument
outbounds  proxies and groups; unknown members, circles
conditions rules' conditions, shared by routes, DNS and rule-sets
rule_sets  inline, source JSON, .srs
route, dns, tun    the sections
reach      rules that no flow can come to
"""
