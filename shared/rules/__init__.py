"""Which outbound a flow takes: the compiled form of shared/config/route.py. Pure; used by the workers and by `engine explain`.

flow        what rules can see of a flow
matcher     Compiler, Rules: the first rule that holds; the trace of all that were tried
conditions  groups, rule-sets, invert, logical rules; fields: what stands alone
names, addresses, regex    what conditions look names and addresses up in
"""
