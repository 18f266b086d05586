"""Decoders to train, run, and exchange with `transformers`."""

from scalelab.models.decoder import Block, Decoder
from scalelab.models.generation import generate
from scalelab.models.loss import loss_nats
from scalelab.models.weights import from_transformers, to_transformers

__all__ = ["Block", "Decoder", "from_transformers", "generate", "loss_nats", "to_transformers"]
