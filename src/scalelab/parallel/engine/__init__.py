"""torch's own engine as strategies of `scalelab.train`: which processes there are, and who holds what.

Read `layout.py` for the axes, `processes.py` for how processes find each other, `replicated.py` (DDP),
`sharded.py` (FSDP) and `composed.py` (layers dealt out, with `tensor_parallel.py` and `pipeline.py`) for the
strategies, `ending.py` for how errors are told.
"""
