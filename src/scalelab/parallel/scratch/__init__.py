"""Each method of parallel training, written out from messages between two ranks: to learn from.

Read `group.py` first: what a rank can do. `threads.py` and `torch_group.py` are the two ways to have ranks:
as threads of one process, and as processes with torch's gloo or NCCL between them. `scalelab.parallel.engine`
does the same work by torch's own parts: to use.
"""
