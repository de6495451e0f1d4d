"""Micro-benchmarks: one part of the engine alone, in one process, no network. Each is run by `python -m loadtests.micro.NAME`."""
