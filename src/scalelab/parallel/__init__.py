"""Floor 3: one training run in many processes.

`engine/` puts torch's own DDP, FSDP, DTensor and pipelining behind the strategy of `scalelab.train`. Nothing
is imported here: the layout of processes can be read without torch.
"""
