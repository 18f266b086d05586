"""Decoders, encoders and encoder–decoders: to train, run, look into, and exchange with `transformers`."""

from scalelab.models.beam import Beams, beam_search
from scalelab.models.block import Block
from scalelab.models.decoder import Decoder
from scalelab.models.encoder import Encoder
from scalelab.models.encoder_decoder import EncoderDecoder
from scalelab.models.generation import generate
from scalelab.models.inspection import attention_maps, residual_stream
from scalelab.models.loss import loss_nats
from scalelab.models.sampling import Sampler
from scalelab.models.speculative import Speculation, speculative_generate
from scalelab.models.weights import from_transformers, to_transformers

__all__ = [
    "Beams",
    "Block",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "Sampler",
    "Speculation",
    "attention_maps",
    "beam_search",
    "from_transformers",
    "generate",
    "loss_nats",
    "residual_stream",
    "speculative_generate",
    "to_transformers",
]
