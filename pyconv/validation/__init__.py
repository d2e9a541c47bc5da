"""What `pyconv validate` does: every operation on every path of a machine, against float64.

Also what the kernels' tests share: the reference, its bounds and the table of shapes. Nothing here
is imported by `import pyconv`.
"""
