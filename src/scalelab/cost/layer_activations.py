"""sbh (34 + 5as/h): the bytes that a GPT layer keeps for the backward pass in 16-bit training, and its cuts.

Tensor parallelism cuts 24 of the 34 and all of the attention's 5as/h; sequence parallelism also the other 10,
what norms and dropout keep. Leaving the attention's products to be made again (selective recomputation)
removes 5as/h, and making the whole layer again leaves 2, its input.

The layer is GPT-2's with dropout, plain (not fused) attention, and F = 4 D; a norm's statistics, two numbers
a token, are left out. `memory` counts what this package's own models keep, to the byte.
Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4, equations 1 to 6 and table 2.
Taught in book/parallelism/sharding.md and book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from scalelab.core.checks import check_bool, check_choice, check_positive_int
from scalelab.core.errors import ConfigError
from scalelab.cost.collectives import split_sizes
from scalelab.cost.pipeline import in_flight

RECOMPUTE = ("none", "selective", "full")
MASK = 1  # bytes of one entry of a dropout mask
LOGIT = 4  # bytes of a logit: the loss is computed in fp32


def layer_activation_parts(
    *,
    seq_len: int,
    batch_size: int,
    d_model: int,
    n_heads: int,
    tp: int = 1,
    sequence_parallel: bool = False,
    recompute: str = "none",
    dropout: bool = True,
    bytes_per_number: int = 2,
    d_ff: int | None = None,
) -> Mapping[str, int]:
    """Bytes that one layer keeps on one rank for one micro-batch, by what keeps them.

    Args:
        seq_len, batch_size, d_model, n_heads: s, b, h, a.
        tp: t, ranks that share the layer.
        sequence_parallel: whether norms and dropout work on 1/t of the tokens.
        recompute: "none"; "selective" makes scores, softmax and its dropout again; "full" the whole layer.
        dropout: whether the layer has any: without, no masks are kept, and the softmax's output only once.
        bytes_per_number: 2 in 16-bit training, 4 in fp32.
        d_ff: F; 4 h when None, as in the paper.

    Raises:
        ConfigError: a size that is no whole number of at least 1, ranks that divide neither width nor heads,
            d_ff or (with sequence_parallel) tokens, or an unknown recompute.

    Differs: with "full" and sequence_parallel a rank keeps its own tokens of the input, 2sbh/t; table 2 lists
    2sbh, the input whole.
    """
    _check(seq_len, batch_size, d_model, n_heads, tp, sequence_parallel, recompute)
    check_bool("dropout", dropout)
    check_positive_int("bytes_per_number", bytes_per_number)
    wide = 4 * d_model if d_ff is None else d_ff
    check_positive_int("d_ff", wide)
    _check_divides("d_ff", wide, tp)
    tokens, size = seq_len * batch_size, bytes_per_number
    own_tokens = tokens // tp if sequence_parallel else tokens  # outside attention and feed-forward
    stream, mask = own_tokens * d_model * size, own_tokens * d_model * MASK * dropout
    if recompute == "full":
        return {"layer input": stream}
    own_heads = tokens * d_model // tp * size
    scores = batch_size * n_heads // tp * seq_len * seq_len
    parts = {
        "norm inputs": 2 * stream,
        "attention input": stream,
        "queries and keys": 2 * own_heads,
        "values": own_heads,
        "softmax output": scores * size,
        "softmax dropout mask": scores * MASK * dropout,
        "softmax dropout output": scores * size * dropout,
        "attention projection input": own_heads,
        "attention dropout mask": mask,
        "feed-forward input": stream,
        "activation function input": tokens * (wide // tp) * size,
        "activation function output": tokens * (wide // tp) * size,
        "feed-forward dropout mask": mask,
    }
    again = ("softmax",) if recompute == "selective" else ()
    return {name: count for name, count in parts.items() if count and not name.startswith(again)}


def layer_activation_bytes(
    *,
    seq_len: int,
    batch_size: int,
    d_model: int,
    n_heads: int,
    tp: int = 1,
    sequence_parallel: bool = False,
    recompute: str = "none",
    dropout: bool = True,
    bytes_per_number: int = 2,
    d_ff: int | None = None,
) -> int:
    """The sum of `layer_activation_parts`: sbh (34 + 5as/h), sbh (10 + 24/t + 5as/(ht)), …

    Args:
        seq_len, batch_size, d_model, n_heads, tp, sequence_parallel, recompute, dropout, bytes_per_number,
            d_ff: as there.

    Raises:
        ConfigError: as there.
    """
    parts = layer_activation_parts(
        seq_len=seq_len,
        batch_size=batch_size,
        d_model=d_model,
        n_heads=n_heads,
        tp=tp,
        sequence_parallel=sequence_parallel,
        recompute=recompute,
        dropout=dropout,
        bytes_per_number=bytes_per_number,
        d_ff=d_ff,
    )
    return sum(parts.values())


def stage_activation_bytes(
    layer_bytes: int,
    *,
    n_layers: int,
    pp: int,
    n_micro_batches: int,
    rank: int = 0,
    schedule: str = "1f1b",
    v: int = 1,
) -> int:
    """The most bytes of layers' activations that one stage of a pipeline holds at a time.

    Under 1F1B the first stage holds p micro-batches of L/p layers: as much as all L layers of one, however
    many stages there are. Interleaved it holds 1 + (p-1)/(pv) times as much.

    Args:
        layer_bytes: of one layer for one micro-batch (`layer_activation_bytes`).
        n_layers: L, cut over stages as `split_sizes` cuts.
        pp, n_micro_batches, rank, schedule, v: as `in_flight`.

    Raises:
        ConfigError: as `in_flight`; fewer layers than pieces; interleaved pieces of unequal size.

    Source: Korthikanti et al. 2022, section 4.2.3 and equation 5.
    """
    check_positive_int("layer_bytes", layer_bytes)
    check_positive_int("n_layers", n_layers)
    passes = in_flight(pp, n_micro_batches, rank, schedule=schedule, v=v)
    if n_layers < pp * v or (v > 1 and n_layers % (pp * v)):
        raise ConfigError(f"{n_layers} layers cannot be cut into pp={pp} times v={v} equal pieces")
    return passes * split_sizes(n_layers, pp * v)[rank] * layer_bytes


def end_activation_bytes(
    *, seq_len: int, batch_size: int, d_model: int, vocab_size: int, tp: int = 1, pp: int = 1
) -> int:
    """What the first stage keeps beside its layers: sbhp/t + (4sbh/t) (1 + v/h) where it is the last too.

    The embedding's dropout mask, of p micro-batches; without a pipeline also the inputs of final norm and
    head, and the logits in fp32. Tokens are cut over tp (sequence parallelism).

    Args:
        seq_len, batch_size, d_model, vocab_size: s, b, h, v. tp: t. pp: p.

    Raises:
        ConfigError: a size that is no whole number of at least 1, or tp that does not divide the tokens.

    Source: Korthikanti et al. 2022, section 4.3.
    """
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size), ("d_model", d_model)):
        check_positive_int(name, value)
    for name, value in (("vocab_size", vocab_size), ("tp", tp), ("pp", pp)):
        check_positive_int(name, value)
    tokens = seq_len * batch_size
    _check_divides("seq_len", seq_len, tp)
    last = tokens // tp * (2 * 2 * d_model + LOGIT * vocab_size) if pp == 1 else 0
    return tokens // tp * d_model * MASK * pp + last


def _check(
    seq_len: int,
    batch_size: int,
    d_model: int,
    n_heads: int,
    tp: int,
    sequence_parallel: bool,
    recompute: str,
) -> None:
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size), ("d_model", d_model)):
        check_positive_int(name, value)
    check_positive_int("n_heads", n_heads)
    check_positive_int("tp", tp)
    check_bool("sequence_parallel", sequence_parallel)
    check_choice("recompute", recompute, RECOMPUTE)
    _check_divides("d_model", d_model, tp)
    _check_divides("n_heads", n_heads, tp)
    if sequence_parallel:
        _check_divides("seq_len", seq_len, tp)


def _check_divides(name: str, value: int, tp: int) -> None:
    if value % tp:
        raise ConfigError(f"tp={tp} does not divide {name}={value}: ranks are to hold equal shares")
