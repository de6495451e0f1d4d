"""Which outbound a flow takes: the compiled form of shared/config/route.py. Pure; used by the workers and by `engine explain`.

flow      what rules can see of a flow
"""
