"""Adding ranks pays until the time to talk meets the time to compute.

A step of a fixed batch takes F / (p P) seconds of computation on p ranks that reach P FLOP/s each, and what
communication cannot be hidden behind it. The first falls as 1/p; a ring all-reduce of n bytes takes 2 n β
however many ranks there are, and 2 (p-1) α more. So efficiency falls with p, and there is a last p at which
it is still what one asks for: the faster the ranks, the sooner.

P is peak times the utilisation of one rank alone, taken to be the same at every p, which flatters large p:
smaller shares of work run less well.
Source: the α–β model of `communication`; overlap as in Li et al. 2020, arXiv:2006.15704, section 3.2.
Taught in book/parallelism/data-parallel.md and tensor-parallel.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.core.checks import check_positive, check_positive_int, is_number
from scalelab.core.config import ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.collectives import all_reduce
from scalelab.cost.communication import Link
from scalelab.cost.operations import BACKWARD_PER_FORWARD, flops
from scalelab.cost.sharding import decoder_of
from scalelab.cost.traffic import tensor_parallel_traffic

BACKWARD_SHARE = BACKWARD_PER_FORWARD / (1 + BACKWARD_PER_FORWARD)  # of a step's computation


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one training step on one rank.

    Attributes:
        compute_s: of its share of the products.
        communication_s: of all that is sent, as if nothing were hidden.
        exposed_s: of communication that computation does not hide.
    """

    compute_s: float
    communication_s: float
    exposed_s: float

    @property
    def total_s(self) -> float:
        """Computation and what is exposed."""
        return self.compute_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """The share of the step that computes: the speed-up over one rank, divided by the ranks."""
        return self.compute_s / self.total_s


def data_parallel_step(
    step_flops: float,
    n_params: int,
    dp: int,
    *,
    flops_per_s: float,
    link: Link,
    overlap: float = 0.0,
    bytes_per_element: int = 4,
    algorithm: str = "ring",
) -> StepTime:
    """The time of a data-parallel step whose whole batch is shared by dp ranks.

    Args:
        step_flops: of the whole batch, forward and backward (`flops(…, training=True).total`).
        n_params: gradients that are reduced.
        dp: replicas.
        flops_per_s: what one rank reaches: peak times utilisation.
        link: between neighbours.
        overlap: the share of the all-reduce that buckets allow to run during backward, from 0 to 1; no more
            is hidden than backward is long, two thirds of the computation.
        bytes_per_element: of a gradient. algorithm: as `all_reduce`.

    Raises:
        ConfigError: a number that is not above 0, an overlap outside [0, 1], or as `all_reduce`.
    """
    check_positive("step_flops", step_flops)
    check_positive("flops_per_s", flops_per_s)
    if not (is_number(overlap) and 0 <= overlap <= 1):
        raise ConfigError(f"overlap must lie in [0, 1], got {overlap!r}")
    reduced = all_reduce(n_params, dp, algorithm=algorithm, bytes_per_element=bytes_per_element)
    compute, talk = step_flops / dp / flops_per_s, reduced.seconds(link)
    hidden = min(overlap * talk, BACKWARD_SHARE * compute)
    return StepTime(compute_s=compute, communication_s=talk, exposed_s=talk - hidden)


def largest_dp(
    step_flops: float,
    n_params: int,
    *,
    efficiency: float,
    flops_per_s: float,
    link: Link,
    overlap: float = 0.0,
    bytes_per_element: int = 4,
    algorithm: str = "ring",
    most: int = 65_536,
) -> int:
    """The most replicas that keep at least this efficiency on a batch of this size.

    Args:
        efficiency: wanted, above 0 and at most 1; one rank has 1.
        most: where the search ends.
        step_flops, n_params, flops_per_s, link, overlap, bytes_per_element, algorithm: as
            `data_parallel_step`.

    Raises:
        ConfigError: an efficiency outside (0, 1], or as `data_parallel_step`.
    """
    if not (is_number(efficiency) and 0 < efficiency <= 1):
        raise ConfigError(f"efficiency must lie in (0, 1], got {efficiency!r}")
    check_positive_int("most", most)

    def keeps(dp: int) -> bool:
        step = data_parallel_step(
            step_flops,
            n_params,
            dp,
            flops_per_s=flops_per_s,
            link=link,
            overlap=overlap,
            bytes_per_element=bytes_per_element,
            algorithm=algorithm,
        )
        return step.efficiency >= efficiency

    # Efficiency falls with dp (but for a last element that pieces share unequally), so halve the range.
    low, high = 1, 1
    while high < most and keeps(min(2 * high, most)):
        low = high = min(2 * high, most)
    high = min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return high if high > low and keeps(high) else low


def tensor_parallel_step(
    config: ModelConfig | str,
    tp: int,
    *,
    batch_size: int,
    seq_len: int,
    flops_per_s: float,
    link: Link,
    sequence_parallel: bool = False,
    bytes_per_element: int = 2,
) -> StepTime:
    """The time of one micro-batch of a tensor-parallel decoder, forward and back: nothing is hidden.

    Every sum stands between two products that wait for it. Norms and the residual stream are left out; the
    products are shared equally.

    Args:
        config: of a decoder, or the name of a preset.
        tp: t, ranks. batch_size, seq_len: B and T.
        flops_per_s: what one rank reaches: peak times utilisation.
        link: between neighbours.
        sequence_parallel, bytes_per_element: as `tensor_parallel_traffic`.

    Raises:
        ConfigError: a flops_per_s that is not above 0, or as `tensor_parallel_traffic`.
    """
    check_positive("flops_per_s", flops_per_s)
    c = decoder_of(config, "tensor parallelism")
    sent = tensor_parallel_traffic(
        c,
        tp,
        batch_size=batch_size,
        seq_len=seq_len,
        sequence_parallel=sequence_parallel,
        bytes_per_element=bytes_per_element,
    )
    products = flops(c, batch_size=batch_size, seq_len=seq_len, training=True).total
    talk = sent.seconds(link)
    return StepTime(compute_s=products / tp / flops_per_s, communication_s=talk, exposed_s=talk)
