"""What each way of sharing a model sends in one training step, rank by rank, to the byte.

With Ψ parameters and many ranks each sends, in data parallelism, 2Ψ numbers (all-reduce of the gradients);
as much in ZeRO-1 and -2 (reduce-scatter of gradients, all-gather of weights); 3Ψ in ZeRO-3 and FSDP, which
gather the weights for forward and again for backward. Tensor parallelism sends activations, 8 B T D numbers a
layer; sequence parallelism cuts each of its all-reduces into a reduce-scatter and an all-gather and sends as
many. A pipeline sends B T D numbers each way between neighbours; with v pieces a rank, v times as often (its
first and last rank, which then send both ways, 2v - 1 times).

All collectives are rings unless said otherwise (`collectives`), and nothing is hidden behind computation.
Source: Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, section 7; Narayanan et al. 2021, arXiv:2104.04473,
sections 2.2.2 and 3.2; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
Taught in book/parallelism/data-parallel.md, sharding.md, tensor-parallel.md and pipeline.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce as fold

from scalelab.core.checks import check_bool, check_count, check_positive_int
from scalelab.core.config import DecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.collectives import Collective, all_gather, all_reduce, nothing, reduce_scatter
from scalelab.cost.communication import Link
from scalelab.cost.operations import check_context
from scalelab.cost.parameters import n_norms
from scalelab.cost.sharding import STAGES, check_heads, decoder_of

FULL = 4  # bytes of fp32: the loss is computed in it


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What one group sends in a training step.

    Attributes:
        parts: collectives by what they are for, each with the bytes that every rank sends.
    """

    parts: Mapping[str, Collective]

    @property
    def total(self) -> Collective:
        """All parts, one after the other."""
        return fold(lambda a, b: a + b, self.parts.values())

    @property
    def sent_bytes(self) -> tuple[int, ...]:
        """What each rank sends."""
        return self.total.sent_bytes

    def seconds(self, link: Link) -> float:
        """Of all parts, one after the other, with no computation meanwhile."""
        return self.total.seconds(link)


def data_parallel_traffic(
    n_params: int | Sequence[int], dp: int, *, algorithm: str = "ring", bytes_per_element: int = FULL
) -> Traffic:
    """Data parallelism: one all-reduce of the gradients, or one for each bucket.

    Args:
        n_params: gradients: a number for all in one, a sequence for buckets, each reduced by itself.
        dp: replicas.
        algorithm: as `all_reduce`.
        bytes_per_element: of a gradient.

    Raises:
        ConfigError: as `all_reduce`.
    """
    parts = [
        all_reduce(n, dp, algorithm=algorithm, bytes_per_element=bytes_per_element) for n in _units(n_params)
    ]
    return Traffic(parts={"gradients": _sum(parts, dp)})


def zero_traffic(
    n_params: int | Sequence[int],
    dp: int,
    *,
    stage: int,
    weight_bytes: int = FULL,
    gradient_bytes: int = FULL,
    micro_batches: int = 1,
    resharded: bool = True,
) -> Traffic:
    """ZeRO's stages: gradients to their owners, weights from their owners.

    Stage 0 is data parallelism. Stage 1 reduces gradients once a step; from stage 2 on a rank has no room for
    the others' gradients, so each micro-batch sends its own. Stages 1 and 2 gather weights once a step, stage
    3 for each micro-batch before forward and again before backward.

    Args:
        n_params: of the model: a number for one vector, a sequence for units (layers), each sent by itself.
        dp: replicas. stage: 0 to 3.
        weight_bytes, gradient_bytes: of one weight and one gradient, as they are sent.
        micro_batches: that a step accumulates.
        resharded: whether stage 3 drops gathered weights after forward; without, backward finds them there.

    Raises:
        ConfigError: a count that is no whole number, or an unknown stage.
    """
    check_positive_int("micro_batches", micro_batches)
    check_bool("resharded", resharded)
    if isinstance(stage, bool) or stage not in STAGES:
        raise ConfigError(f"stage must be 0, 1, 2 or 3, got {stage!r}")
    units = _units(n_params)
    if stage == 0:
        return data_parallel_traffic(units, dp, bytes_per_element=gradient_bytes)
    scattered = _sum([reduce_scatter(n, dp, bytes_per_element=gradient_bytes) for n in units], dp)
    gathered = _sum([all_gather(n, dp, bytes_per_element=weight_bytes) for n in units], dp)
    times = 1 if stage == 1 else micro_batches
    if stage < 3:
        return Traffic(parts={"gradients": scattered.times(times), "weights, after the step": gathered})
    parts = {"weights, forward": gathered.times(times)}
    if resharded:
        parts["weights, backward"] = gathered.times(times)
    return Traffic(parts={**parts, "gradients": scattered.times(times)})


def tensor_parallel_traffic(
    config: ModelConfig | str,
    tp: int,
    *,
    batch_size: int,
    seq_len: int,
    sequence_parallel: bool = False,
    bytes_per_element: int = FULL,
    keeps_shards: bool = False,
) -> Traffic:
    """Tensor parallelism of a decoder, one micro-batch forward and back.

    Each attention and each feed-forward is summed over ranks at its end (forward) and the gradient of its
    input at its beginning (backward): all-reduces of B T D numbers. The token table, cut by rows of the
    vocabulary, is summed forward, the head's input gradient backward. The loss needs of each token the
    largest logit, the sum of exponentials and the target's logit: three all-reduces of B T numbers in fp32.

    With sequence_parallel every sum is a reduce-scatter over tokens, whose pieces are gathered before the
    next matrix; and as norms then see 1/t of the tokens, gradients of norms, of biases behind a sum and of
    the position table are summed once a step.

    Args:
        config: of a decoder, or the name of a preset; branches that run in parallel are summed one by one.
        tp: t, ranks.
        batch_size, seq_len: B and T, of one micro-batch.
        sequence_parallel: whether norms and the residual stream are cut by tokens.
        bytes_per_element: of an activation and its gradient.
        keeps_shards: with sequence_parallel, whether ranks keep their tokens only and gather them again for
            the weights' gradients, one all-gather more for each of the matrices that were gathered for.

    Raises:
        ConfigError: another kind of model, heads that tp does not divide, a sequence beyond the context, a
            size that is no whole number of at least 1, or keeps_shards without sequence_parallel.
    """
    c = decoder_of(config, "tensor parallelism")
    check_positive_int("tp", tp)
    check_heads(c, tp)
    check_positive_int("batch_size", batch_size)
    check_positive_int("seq_len", seq_len)
    check_context(c, "seq_len", seq_len)
    check_bool("sequence_parallel", sequence_parallel)
    check_bool("keeps_shards", keeps_shards)
    check_positive_int("bytes_per_element", bytes_per_element)
    if keeps_shards and not sequence_parallel:
        raise ConfigError("keeps_shards=True needs sequence_parallel=True: else every rank has all tokens")
    n_tokens, row = batch_size * seq_len, c.d_model * bytes_per_element
    loss = all_reduce(n_tokens, tp, bytes_per_element=FULL).times(3)
    if not sequence_parallel:
        summed = all_reduce(n_tokens * c.d_model, tp, bytes_per_element=bytes_per_element)
        both = {
            f"{block}, {way}": summed.times(c.n_layers)
            for block in ("attention", "feed-forward")
            for way in ("forward", "backward")
        }
        return Traffic(parts={"token table, forward": summed, **both, "head, backward": summed, "loss": loss})
    scatter = reduce_scatter(seq_len, tp, bytes_per_element=batch_size * row)
    gather = all_gather(seq_len, tp, bytes_per_element=batch_size * row)
    pair, again = scatter + gather, gather.times(int(keeps_shards))
    parts = {"token table, forward": scatter, "token table, backward": gather}
    for block in ("attention", "feed-forward"):
        parts[f"{block}, forward"] = pair.times(c.n_layers)
        parts[f"{block}, backward"] = (pair + again).times(c.n_layers)
    parts |= {"head, forward": gather, "head, backward": scatter + again, "loss": loss}
    shared = all_reduce(_whole_params(c), tp, bytes_per_element=bytes_per_element)
    return Traffic(parts={**parts, "norms, biases, positions": shared})


def pipeline_traffic(
    config: ModelConfig | str,
    pp: int,
    *,
    n_micro_batches: int,
    micro_batch_size: int,
    seq_len: int,
    v: int = 1,
    bytes_per_element: int = FULL,
) -> Traffic:
    """A pipeline's step: activations to the next stage and gradients back, for each micro-batch.

    Rank r has pieces r, r + p, … of p v, so piece p-1 sends to piece p on rank 0, and the last to none. A
    tied table stands on the first and on the last stage, whose two gradients are summed (a ring of the two).

    `steps` and `critical_bytes` are those of the busiest rank: what waits for what is the schedule's matter.

    Args:
        config: of a decoder, or the name of a preset.
        pp: p, stages. v: pieces of layers on each rank.
        n_micro_batches: m. micro_batch_size, seq_len: B and T of each.
        bytes_per_element: of an activation and its gradient, and of the tied table's gradient.

    Raises:
        ConfigError: another kind of model, fewer layers than pieces, a sequence beyond the context, or a size
            that is no whole number of at least 1.
    """
    c = decoder_of(config, "pipelines")
    sizes = {"pp": pp, "v": v, "n_micro_batches": n_micro_batches, "micro_batch_size": micro_batch_size}
    for name, value in {**sizes, "seq_len": seq_len, "bytes_per_element": bytes_per_element}.items():
        check_positive_int(name, value)
    check_context(c, "seq_len", seq_len)
    if pp * v > c.n_layers:
        raise ConfigError(f"{c.n_layers} layers cannot be cut into pp={pp} times v={v} pieces")
    message = micro_batch_size * seq_len * c.d_model * bytes_per_element
    onward, back = [v] * pp, [v] * pp
    onward[-1] -= 1  # the last piece has no next one,
    back[0] -= 1  # and the first none before it
    parts = {
        "activations": _messages(onward if pp > 1 else [0], n_micro_batches, message),
        "gradients": _messages(back if pp > 1 else [0], n_micro_batches, message),
    }
    if c.tie_embeddings and pp > 1:
        two = all_reduce(c.vocab_size * c.d_model, 2, bytes_per_element=bytes_per_element)
        between = (0,) * (pp - 2)
        parts["tied table"] = Collective(
            steps=two.steps,
            critical_bytes=two.critical_bytes,
            sent_bytes=(two.sent_bytes[0], *between, two.sent_bytes[1]),
            messages=(two.messages[0], *between, two.messages[1]),
        )
    return Traffic(parts=parts)


def _messages(times: Sequence[int], n_micro_batches: int, message_bytes: int) -> Collective:
    """Ranks that send one message so many times for each micro-batch."""
    counts = tuple(n_micro_batches * count for count in times)
    return Collective(
        steps=max(counts),
        critical_bytes=max(counts) * message_bytes,
        sent_bytes=tuple(count * message_bytes for count in counts),
        messages=counts,
    )


def _whole_params(c: DecoderConfig) -> int:
    """Parameters that every rank of a tensor-parallel group holds whole."""
    norm = c.d_model * (2 if c.norm == "layernorm" and c.norm_bias else 1)
    biases = c.n_layers * c.d_model * (c.attention_bias + c.feed_forward_bias)
    positions = c.seq_len * c.d_model if c.positions == "learned" else 0
    return n_norms(c) * norm + biases + positions


def _units(n_params: int | Sequence[int]) -> list[int]:
    units = [n_params] if isinstance(n_params, int) else list(n_params)
    for count in units:
        check_count("n_params", count)
    return units


def _sum(collectives: Sequence[Collective], ranks: int) -> Collective:
    return fold(lambda a, b: a + b, collectives, nothing(ranks))
