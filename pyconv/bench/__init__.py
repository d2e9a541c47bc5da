"""Benchmarks of whole networks beside other frameworks, each in a process of its own.

`networks` says what is computed, `contestants` how each framework does it, `worker` is the process
that a contestant runs in, `processes` its other end, `rounds` takes turns and compares, `memory`
measures memory, `training` is the command.
"""
