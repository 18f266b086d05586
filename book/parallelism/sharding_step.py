"""A step of ZeRO-3, event by event: when weights are gathered, and what of it sticks out.

The link carries one message at a time, in FSDP's order: the next unit's weights are asked for when the
present unit begins, and gradients leave when theirs ends. So weights of two units at most are there. Times
are the cost model's, products alone (attention's scores left out). Taught in the chapter `sharding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_parallel_common import NETWORK, NVLINK, RATE, config

from scalelab.cost import Link, all_gather, all_reduce, params, reduce_scatter

# Rings through whole servers of eight: each of eight rings leaves a server by another of its ports, so that a
# rank has eight ports' bandwidth; seven of eight messages go to a neighbour in the server.
SERVERS = Link(latency_s=(7 * NVLINK.latency_s + NETWORK.latency_s) / 8, bytes_per_s=8 * NETWORK.bytes_per_s)
MODEL = "llama-3.1-8b"
HALF = 2  # bytes of a weight and of a gradient, as they are sent


@dataclass(frozen=True, slots=True)
class Part:
    """What is gathered together: how many parameters, and how many of them each token multiplies."""

    n_params: int
    n_matmul: int

    def forward_s(self, tokens: int) -> float:
        """Seconds of the forward pass: 2 operations a weight and token. Backward takes twice as many."""
        return 2 * self.n_matmul * tokens / RATE

    def gather_s(self, ranks: int, link: Link) -> float:
        """Seconds of an all-gather of the weights, or of a reduce-scatter of the gradients."""
        return all_gather(self.n_params, ranks, bytes_per_element=HALF).seconds(link)


@dataclass(frozen=True, slots=True)
class Step:
    """How long one step computes, and how long it takes."""

    compute_s: float
    total_s: float

    @property
    def efficiency(self) -> float:
        """The share of the step that computes."""
        return self.compute_s / self.total_s

    @property
    def exposed_s(self) -> float:
        """What communication adds."""
        return self.total_s - self.compute_s


@lru_cache(maxsize=2)
def parts_of(name: str = MODEL) -> tuple[Part, ...]:
    """The token table, the layers, the head: what torchtitan wraps one by one."""
    c, found = config(name), params(config(name))
    table = c.vocab_size * c.d_model
    layer = (found.total - 2 * table) // c.n_layers
    return (Part(table, 0), *[Part(layer, layer)] * c.n_layers, Part(table, table))


def zero_3(tokens: int, ranks: int, link: Link, units: Sequence[Part] | None = None) -> Step:
    """One micro-batch of so many tokens on each rank, weights gathered before forward and before backward.

    The last unit stays from forward to backward, between which nothing happens.
    """
    units = parts_of() if units is None else units
    free, ends = 0.0, [0.0, 0.0]  # of the link; of the units' computation, two behind
    for unit in units:
        here = max(free, ends[-2]) + unit.gather_s(ranks, link)
        free = here
        ends.append(max(here, ends[-1]) + unit.forward_s(tokens))
    here = begin = ends[-1]
    for index in range(len(units) - 1, -1, -1):
        begin = max(here, ends[-1])
        if index:  # the next one's weights are asked for
            here = max(free, begin) + units[index - 1].gather_s(ranks, link)
            free = here
        ends.append(begin + 2 * units[index].forward_s(tokens))
        free = max(free, ends[-1]) + units[index].gather_s(ranks, link)
    return Step(compute_s(tokens, units), max(free, ends[-1]))


def replicas(tokens: int, ranks: int, link: Link, units: Sequence[Part] | None = None) -> Step:
    """Data parallelism: each unit's gradients are summed while backward goes on."""
    units = parts_of() if units is None else units
    now = sum(unit.forward_s(tokens) for unit in units)
    free = now
    for unit in reversed(units):
        now += 2 * unit.forward_s(tokens)
        free = max(free, now) + all_reduce(unit.n_params, ranks, bytes_per_element=HALF).seconds(link)
    return Step(compute_s(tokens, units), max(now, free))


def compute_s(tokens: int, units: Sequence[Part]) -> float:
    """Forward and backward of all units."""
    return 3 * sum(unit.forward_s(tokens) for unit in units)


def layer_s(link: Link, ranks: int) -> tuple[float, float]:
    """One layer's all-gather and reduce-scatter, seconds."""
    layer = parts_of()[1]
    scattered = reduce_scatter(layer.n_params, ranks, bytes_per_element=HALF)
    return layer.gather_s(ranks, link), scattered.seconds(link)


def tokens_to_hide(link: Link, *, bytes_sent: int = HALF, operations: int = 2) -> float:
    """Tokens a rank needs so that products of so many operations a weight last as long as sending it."""
    return bytes_sent * RATE / (operations * link.bytes_per_s)
