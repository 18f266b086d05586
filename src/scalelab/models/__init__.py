"""Decoders, encoders and encoder–decoders: to train, run, look into, and exchange with `transformers`."""

from scalelab.models.block import Block
from scalelab.models.decoder import Decoder
from scalelab.models.encoder import Encoder
from scalelab.models.encoder_decoder import EncoderDecoder
from scalelab.models.generation import generate
from scalelab.models.inspection import attention_maps, residual_stream
from scalelab.models.loss import loss_nats
from scalelab.models.weights import from_transformers, to_transformers

__all__ = [
    "Block",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "attention_maps",
    "from_transformers",
    "generate",
    "loss_nats",
    "residual_stream",
    "to_transformers",
]
