"""Bytes of weights, gradients and optimiser state that one rank holds, for every way of cutting them.

Replicas hold everything; ZeRO's stages cut the optimiser state, then gradients too, then weights too, by the
number of replicas. In mixed precision with Adam that is 2 + 2 + 12 bytes a parameter (16-bit weights and
gradients; fp32 weights and two moments), in fp32 4 + 4 + 8. Tensor parallelism cuts matrices and tables, and
pipelines cut layers; what neither cuts, norms and some biases, every rank of the group holds whole.

Temporary copies are left out: stage 3 gathers one layer's weights at a time, and buckets hold what is sent.
Source: Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, sections 3.1 and 5; Shoeybi et al. 2019 (Megatron),
arXiv:1909.08053, section 3 (which matrices are cut how). Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalelab.core.checks import check_choice, check_count, check_positive_int
from scalelab.core.config import DecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.collectives import split_sizes
from scalelab.cost.footprint import STATE_PER_PARAMETER
from scalelab.cost.parameters import HEAD, as_config, n_inward

FULL, HALF = 4, 2  # bytes of fp32 and of a 16-bit format
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of training state that one rank holds between steps, and gradients at the end of backward.

    Attributes:
        weights_bytes: what multiplies.
        gradients_bytes: one for each of the weights that the rank updates or has to send.
        optimizer_bytes: the optimiser's numbers, and in mixed precision its fp32 weights.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The three together."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldParams:
    """Parameters on one rank of a tensor- and pipeline-parallel group.

    Attributes:
        total: all of them.
        parts: by part of the model; they add up to `total`.
    """

    total: int
    parts: Mapping[str, int]


def bytes_per_parameter(precision: str, optimizer: str = "adamw") -> tuple[int, int, int]:
    """Bytes of weight, gradient and optimiser state for each parameter: (2, 2, 12) for mixed AdamW.

    Args:
        precision: "fp32", or "mixed" for 16-bit weights and gradients with fp32 weights in the optimiser.
        optimizer: "adamw" keeps two fp32 numbers, "momentum" one, "sgd" none.

    Raises:
        ConfigError: an unknown precision or optimiser.
    """
    check_choice("precision", precision, ("fp32", "mixed"))
    check_choice("optimizer", optimizer, tuple(STATE_PER_PARAMETER))
    state = FULL * STATE_PER_PARAMETER[optimizer]
    return (FULL, FULL, state) if precision == "fp32" else (HALF, HALF, FULL + state)


def zero_memory(
    n_params: int | Sequence[int],
    *,
    stage: int,
    dp: int,
    precision: str = "fp32",
    optimizer: str = "adamw",
    rank: int = 0,
    owned: int | None = None,
) -> States:
    """What one of dp replicas holds under a stage of ZeRO; FSDP holds what stage 3 does.

    Args:
        n_params: of the model: a number is one vector that is cut as `split_sizes` cuts it; a sequence of
            numbers is tensors (or layers) each of which is cut so by itself.
        stage: 0 cuts nothing, 1 the optimiser state, 2 gradients too, 3 weights too.
        dp: replicas.
        precision, optimizer: as `bytes_per_parameter`.
        rank: which replica; rank 0 has the most.
        owned: parameters that this rank keeps, when they are cut in another way (`chunk_sizes`).

    Raises:
        ConfigError: a count that is no whole number, an unknown stage, precision or optimiser, a rank that is
            none, or more owned parameters than there are.
    """
    weight, gradient, state = bytes_per_parameter(precision, optimizer)
    if isinstance(stage, bool) or stage not in STAGES:
        raise ConfigError(f"stage must be 0, 1, 2 or 3, got {stage!r}")
    tensors = [n_params] if isinstance(n_params, int) else list(n_params)
    for count in tensors:
        check_count("n_params", count)
    check_rank("rank", rank, dp)
    whole = sum(tensors)
    if owned is None:
        owned = sum(piece(count, dp, rank) for count in tensors)
    check_count("owned", owned)
    if owned > whole:
        raise ConfigError(f"owned={owned} parameters are more than the model's {whole}")
    return States(
        weights_bytes=weight * (owned if stage >= 3 else whole),
        gradients_bytes=gradient * (owned if stage >= 2 else whole),
        optimizer_bytes=state * (owned if stage >= 1 else whole),
    )


def chunk_sizes(n: int, parts: int) -> tuple[int, ...]:
    """Pieces of ⌈n / parts⌉ until n is used up: the last are smaller, or empty.

    Raises:
        ConfigError: n is no whole number of at least 0, or parts none of at least 1.

    Source: torch.chunk, by which FSDP2 cuts each tensor's rows.
    """
    check_count("n", n)
    check_positive_int("parts", parts)
    size = -(-n // parts)
    return tuple(max(0, min(size, n - index * size)) for index in range(parts))


def held_params(
    config: ModelConfig | str, *, tp: int = 1, pp: int = 1, tp_rank: int = 0, pp_rank: int = 0, v: int = 1
) -> HeldParams:
    """The parameters that one rank of a tp x pp group holds of a decoder.

    Cut over tp: what makes queries, keys, values (by heads) and the way into the feed-forward, with their
    biases; what comes out of attention and feed-forward, whose biases stay whole; token table and head by
    rows of the vocabulary. Norms and the position table stay whole. Layers are cut into pp·v pieces as
    `split_sizes` cuts, of which rank r has piece r, r + pp, …; the first has the tables, the last the final
    norm and the head. A tied table stands on the first and on the last stage.

    Args:
        config: of a decoder, or the name of a preset.
        tp, pp: sizes of the group. tp_rank, pp_rank: which of it.
        v: pieces of layers on each stage (interleaved pipelines).

    Raises:
        ConfigError: another kind of model, heads that tp does not divide, fewer layers than pieces, or a rank
            that is none.
    """
    c = decoder_of(config, "tensor and pipeline parallelism")
    check_rank("tp_rank", tp_rank, tp)
    check_rank("pp_rank", pp_rank, pp)
    check_positive_int("v", v)
    check_heads(c, tp)
    if pp * v > c.n_layers:
        raise ConfigError(f"{c.n_layers} layers cannot be cut into pp={pp} times v={v} pieces")
    layers = sum(split_sizes(c.n_layers, pp * v)[pp_rank::pp])
    d, is_first, is_last = c.d_model, pp_rank == 0, pp_rank == pp - 1
    heads, kv = c.n_heads // tp * c.head_width, c.kv_heads // tp * c.head_width
    wide, rows = piece(c.ff_width, tp, tp_rank), piece(c.vocab_size, tp, tp_rank)
    norm = d * (2 if c.norm == "layernorm" and c.norm_bias else 1)
    inward = n_inward(c) * wide * (d + c.feed_forward_bias)
    parts = {
        "token table": rows * d if is_first else 0,
        "position table": c.seq_len * d if is_first and c.positions == "learned" else 0,
        "queries, keys, values": layers * (heads + 2 * kv) * (d + c.attention_bias),
        "attention output": layers * (heads * d + d * c.attention_bias),
        "feed-forward": layers * (inward + wide * d + d * c.feed_forward_bias),
        "norms": (2 * layers + (is_last and c.norm_position == "pre")) * norm,
        HEAD: rows * d if is_last and (pp > 1 or not c.tie_embeddings) else 0,
    }
    parts = {name: count for name, count in parts.items() if count}
    return HeldParams(total=sum(parts.values()), parts=parts)


def rank_memory(
    config: ModelConfig | str,
    *,
    dp: int = 1,
    tp: int = 1,
    pp: int = 1,
    stage: int = 0,
    precision: str = "mixed",
    optimizer: str = "adamw",
    dp_rank: int = 0,
    tp_rank: int = 0,
    pp_rank: int = 0,
    v: int = 1,
) -> States:
    """What one rank of dp x tp x pp holds: `held_params` of its place, under a stage of ZeRO over dp.

    Args:
        config: of a decoder, or the name of a preset.
        dp, tp, pp: sizes of the mesh. dp_rank, tp_rank, pp_rank: which of it.
        stage, precision, optimizer: as `zero_memory`.
        v: pieces of layers on each stage.

    Raises:
        ConfigError: as `held_params` and `zero_memory`.
    """
    held = held_params(config, tp=tp, pp=pp, tp_rank=tp_rank, pp_rank=pp_rank, v=v)
    return zero_memory(held.total, stage=stage, dp=dp, precision=precision, optimizer=optimizer, rank=dp_rank)


def piece(n: int, parts: int, index: int) -> int:
    """One of `split_sizes(n, parts)`."""
    return n // parts + (index < n % parts)


def check_rank(name: str, rank: int, size: int) -> None:
    """Raise ConfigError unless there is such a rank among so many."""
    check_positive_int(f"the group of {name}", size)
    check_count(name, rank)
    if rank >= size:
        raise ConfigError(f"{name}={rank} is no rank: there are ranks 0 to {size - 1}")


def check_heads(c: DecoderConfig, tp: int) -> None:
    """Raise ConfigError unless each of tp ranks can have whole heads."""
    if c.n_heads % tp or c.kv_heads % tp:
        raise ConfigError(
            f"tp={tp} does not divide n_heads={c.n_heads} and n_kv_heads={c.kv_heads}: each rank needs whole "
            "heads, and the keys and values that they read"
        )


def decoder_of(config: ModelConfig | str, what: str) -> DecoderConfig:
    """The config, if it is a decoder's.

    Raises:
        ConfigError: it is of another kind; `what` says what can be counted for decoders only.
    """
    c = as_config(config)
    if not isinstance(c, DecoderConfig):
        raise ConfigError(f"{what} can be counted for decoders only, got {type(c).__name__}")
    return c
