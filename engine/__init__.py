"""The master process: tun, routes, dispatch of packets to the workers, supervision, command line.

It starts workers as `python -m workers` and imports nothing of them; both import `shared`.
"""
