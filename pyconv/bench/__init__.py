"""Benchmarks of kernels and whole networks beside other frameworks, each in a process of its own.

`networks` and `operations` say what is computed, `contestants` and `operations` how each framework
does it, `worker` is the process that a contestant runs in, `processes` its other end, `turns` and
`rounds` take turns and compare. `ceilings` measures what the machine can do, `memory` memory,
`kernels` and `training` make the tables, `report` is their JSON and its comparison with an earlier
one, `plots` draws it, `command` is `pyconv bench`.
"""
