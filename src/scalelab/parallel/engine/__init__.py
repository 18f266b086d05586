"""torch's own engine as strategies of `scalelab.train`: which processes there are, and who holds what.

Read `layout.py` for the axes, `processes.py` for how processes find each other, `replicated.py` (DDP) and
`sharded.py` (FSDP) for the two strategies, `ending.py` for how errors are told.
"""
