"""Published models by their usual names: shapes that can be counted and built without downloading anything.

Each has the parameter count of the `transformers` class named in the function that makes it.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from scalelab.core.config import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    RopeScaling,
    VisionConfig,
)
from scalelab.core.errors import ConfigError


def preset(name: str) -> ModelConfig:
    """The shape of a published model, by the name people use for it.

    Args:
        name: as `preset_names` lists them, for example "gpt2" or "llama-3.1-8b"; case does not matter.

    Raises:
        ConfigError: no such preset; the message names the nearest ones.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a preset's name must be a text such as 'gpt2', got {name!r}")
    found = _PRESETS.get(name.strip().lower())
    if found is None:
        raise ConfigError(_unknown(name))
    return found


def preset_names() -> tuple[str, ...]:
    """All names that `preset` knows, family by family, small models first."""
    return tuple(_PRESETS)


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name.strip().lower(), _PRESETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_PRESETS)}"
    return f"unknown model {name!r}; {hint}"


def _gpt2(n_layers: int, d_model: int, n_heads: int, *, seq_len: int = 1024) -> DecoderConfig:
    """`GPT2LMHeadModel` (tied). Source: Radford et al. 2019, table 2, and the released files."""
    return DecoderConfig(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, vocab_size=50_257, seq_len=seq_len
    )


def _llama(
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_ff: int,
    *,
    n_kv_heads: int,
    vocab_size: int = 32_000,
    seq_len: int = 4_096,
    norm_eps: float = 1e-5,
    rope_theta: float = 10_000.0,
    rope_scaling: RopeScaling | None = None,
    rope_skip_every: int | None = None,
    tie_embeddings: bool = False,
) -> DecoderConfig:
    """`LlamaForCausalLM`. Source: Touvron et al. 2023 (arXiv:2307.09288) and the released files."""
    return DecoderConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        seq_len=seq_len,
        norm="rmsnorm",
        norm_eps=norm_eps,
        positions="rope",
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rope_skip_every=rope_skip_every,
        feed_forward="swiglu",
        attention_bias=False,
        feed_forward_bias=False,
        tie_embeddings=tie_embeddings,
    )


def _llama_3_1(n_layers: int, d_model: int, n_heads: int, d_ff: int) -> DecoderConfig:
    """`LlamaForCausalLM`. Source: Llama 3 (arXiv:2407.21783), table 3, and the released files."""
    return _llama(
        n_layers,
        d_model,
        n_heads,
        d_ff,
        n_kv_heads=8,
        vocab_size=128_256,
        seq_len=131_072,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=8_192
        ),
    )


def _pythia(n_layers: int, d_model: int, n_heads: int, *, vocab_size: int = 50_304) -> DecoderConfig:
    """`GPTNeoXForCausalLM`. Source: Biderman et al. 2023 (arXiv:2304.01373), table 1.

    The tokenizer has 50,277 entries; the table is padded to a multiple of 128 times the tensor-parallel
    degree of the training run, so the two largest have wider tables.
    """
    return DecoderConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        vocab_size=vocab_size,
        seq_len=2_048,
        positions="rope",
        rope_fraction=0.25,
        feed_forward="gelu",
        tie_embeddings=False,
        parallel_residual=True,
    )


def _bert(n_layers: int, d_model: int, n_heads: int, vocab_size: int) -> EncoderConfig:
    """`BertModel` with pooler. Source: Devlin et al. 2018 (arXiv:1810.04805), section 3."""
    return EncoderConfig(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, vocab_size=vocab_size
    )


def _vit(n_layers: int, d_model: int, n_heads: int, patch_size: int) -> VisionConfig:
    """`ViTForImageClassification`, 1,000 classes. Source: Dosovitskiy et al. 2020, arXiv:2010.11929."""
    return VisionConfig(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, patch_size=patch_size
    )


_PRESETS: Mapping[str, ModelConfig] = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1_024, 16),
    "gpt2-large": _gpt2(36, 1_280, 20),
    "gpt2-xl": _gpt2(48, 1_600, 25),
    # Brown et al. 2020 (arXiv:2005.14165), table 2.1; its sparse attention layers have the same parameters.
    "gpt3-175b": _gpt2(96, 12_288, 96, seq_len=2_048),
    "llama-2-7b": _llama(32, 4_096, 32, 11_008, n_kv_heads=32),
    "llama-2-13b": _llama(40, 5_120, 40, 13_824, n_kv_heads=40),
    "llama-2-70b": _llama(80, 8_192, 64, 28_672, n_kv_heads=8),
    "llama-3.1-8b": _llama_3_1(32, 4_096, 32, 14_336),
    "llama-3.1-70b": _llama_3_1(80, 8_192, 64, 28_672),
    "llama-3.1-405b": _llama_3_1(126, 16_384, 128, 53_248),
    "pythia-14m": _pythia(6, 128, 4),
    "pythia-31m": _pythia(6, 256, 8),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1_024, 16),
    "pythia-1b": _pythia(16, 2_048, 8),
    "pythia-1.4b": _pythia(24, 2_048, 16),
    "pythia-2.8b": _pythia(32, 2_560, 32),
    "pythia-6.9b": _pythia(32, 4_096, 32, vocab_size=50_432),
    "pythia-12b": _pythia(36, 5_120, 40, vocab_size=50_688),
    # `SmolLM3ForCausalLM` (tied); every fourth layer has no positions. Source: its released files.
    "smollm3-3b": _llama(
        36,
        2_048,
        16,
        11_008,
        n_kv_heads=4,
        vocab_size=128_256,
        seq_len=65_536,
        norm_eps=1e-6,
        rope_theta=5_000_000.0,
        rope_skip_every=4,
        tie_embeddings=True,
    ),
    "bert-base-uncased": _bert(12, 768, 12, 30_522),
    "bert-base-cased": _bert(12, 768, 12, 28_996),
    "bert-large-uncased": _bert(24, 1_024, 16, 30_522),
    "bert-large-cased": _bert(24, 1_024, 16, 28_996),
    # `T5ForConditionalGeneration` (tied). Source: Raffel et al. 2019 (arXiv:1910.10683), section 3.7.
    "t5-small": EncoderDecoderConfig(
        n_layers=6, d_model=512, n_heads=8, d_head=64, d_ff=2_048, vocab_size=32_128
    ),
    "vit-b-16": _vit(12, 768, 12, 16),
    "vit-b-32": _vit(12, 768, 12, 32),
    "vit-l-16": _vit(24, 1_024, 16, 16),
    "vit-l-32": _vit(24, 1_024, 16, 32),
    "vit-h-14": _vit(32, 1_280, 16, 14),
}
