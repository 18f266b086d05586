"""A message costs a latency and then its bytes: alpha + beta n, and two numbers describe a link.

The model is Hockney's. alpha is what an empty message takes; beta the seconds of one byte more, 1 over the
bandwidth. It knows nothing of other traffic on the same wire, so alpha and beta are fitted where they are
used: from the times of some sizes, and judged on others.
Source: Hockney 1994, doi:10.1016/S0167-8191(06)80021-9; Thakur, Rabenseifner & Gropp 2005,
doi:10.1177/1094342005051521, section 3 (the same two terms for collectives).
Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.core.checks import check_choice, check_count, check_positive, is_number
from scalelab.core.errors import ConfigError, FitError


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What a message costs between two ranks.

    Attributes:
        latency_s: alpha, seconds of an empty message.
        bytes_per_s: 1/beta, of a long message.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (is_number(self.latency_s) and self.latency_s >= 0):
            raise ConfigError(f"latency_s must be a finite number of at least 0, got {self.latency_s!r}")
        check_positive("bytes_per_s", self.bytes_per_s)

    def seconds(self, n_bytes: float, *, messages: int = 1) -> float:
        """Seconds of so many bytes in so many messages, one after the other.

        Raises:
            ConfigError: bytes that are no finite number of at least 0, messages that are no count.
        """
        if not (is_number(n_bytes) and n_bytes >= 0):
            raise ConfigError(f"n_bytes must be a finite number of at least 0, got {n_bytes!r}")
        check_count("messages", messages)
        return messages * self.latency_s + n_bytes / self.bytes_per_s

    @property
    def half_bandwidth_bytes(self) -> float:
        """Bytes of the message that takes twice its latency: it reaches half the link's bandwidth."""
        return self.latency_s * self.bytes_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkFit:
    """A link fitted to measured times.

    Attributes:
        link: the fitted latency and bandwidth.
        latency_se_s: standard error of the latency, seconds; nan for two measurements, which leave none.
        s_per_byte, s_per_byte_se: beta, and its standard error.
        scatter: root mean square of what is left over, over the measurements' own size when they are weighted
            by it, in seconds otherwise; nan for two measurements.
        latency_at_bound: whether the best line had a negative latency, so 0 was taken and beta fitted alone.
    """

    link: Link
    latency_se_s: float
    s_per_byte: float
    s_per_byte_se: float
    scatter: float
    latency_at_bound: bool

    def errors(
        self, n_bytes: Sequence[float], seconds: Sequence[float], *, messages: Sequence[int] | None = None
    ) -> tuple[float, ...]:
        """Predicted over measured, less 1, of each: the test on sizes that the fit has not seen.

        Raises:
            FitError: columns that `fit_link` would refuse.
        """
        sizes, times, counts = _columns(n_bytes, seconds, messages)
        return tuple(
            self.link.seconds(size, messages=count) / time - 1
            for size, time, count in zip(sizes, times, counts, strict=True)
        )


def fit_link(
    n_bytes: Sequence[float],
    seconds: Sequence[float],
    *,
    messages: Sequence[int] | None = None,
    weights: str = "relative",
) -> LinkFit:
    """The alpha and beta of seconds = alpha * messages + beta * bytes that come nearest the measurements.

    Args:
        n_bytes: bytes of each measurement that crossed the link one after the other; of a collective its
            `critical_bytes`.
        seconds: what each took.
        messages: messages one after the other in each; of a collective its `steps`. 1 when None.
        weights: "relative" weighs an error by the time it is an error of, so that short messages, which alone
            tell the latency, count as much as long ones; "equal" weighs seconds.

    Raises:
        FitError: fewer than two measurements, columns of unequal length, a value that is not finite and above
            0 (bytes and messages may be 0, but not both), sizes from which the two cannot be told apart, or
            times that do not grow with the bytes.
        ConfigError: unknown weights.
    """
    check_choice("weights", weights, ("relative", "equal"))
    sizes, times, counts = _columns(n_bytes, seconds, messages)
    _check_spread(sizes, counts)
    w = [1 / time**2 if weights == "relative" else 1.0 for time in times]
    aa, ab, bb = _sum(w, counts, counts), _sum(w, counts, sizes), _sum(w, sizes, sizes)
    at, bt = _sum(w, counts, times), _sum(w, sizes, times)
    determinant = aa * bb - ab * ab
    alpha, beta = (at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant
    at_bound = alpha < 0
    if at_bound:
        alpha, beta = 0.0, bt / bb
    if beta <= 0:
        raise FitError(
            f"the times do not grow with the bytes (the best line has {beta:.3g} seconds a byte): "
            "measure larger messages, or more often"
        )
    left = [t - alpha * c - beta * s for t, c, s in zip(times, counts, sizes, strict=True)]
    free = len(sizes) - (1 if at_bound else 2)
    variance = _sum(w, left, left) / free if free else math.nan
    return LinkFit(
        link=Link(latency_s=alpha, bytes_per_s=1 / beta),
        latency_se_s=math.sqrt(variance * bb / determinant),
        s_per_byte=beta,
        s_per_byte_se=math.sqrt(variance / bb if at_bound else variance * aa / determinant),
        scatter=math.sqrt(variance),
        latency_at_bound=at_bound,
    )


def _check_spread(sizes: Sequence[float], counts: Sequence[int]) -> None:
    """Raise FitError unless the two can be told apart: messages of two sizes at least."""
    if len(sizes) < 2:
        raise FitError(f"a latency and a bandwidth need at least 2 measurements, got {len(sizes)}")
    per_message = [size / count if count else math.inf for size, count in zip(sizes, counts, strict=True)]
    if max(per_message) <= min(per_message) * (1 + 1e-9):
        raise FitError(
            f"all messages have {per_message[0]:g} bytes, so latency and bandwidth cannot be told apart: "
            "measure another size"
        )


def _sum(w: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y * z for x, y, z in zip(w, a, b, strict=True))


def _columns(
    n_bytes: Sequence[float], seconds: Sequence[float], messages: Sequence[int] | None
) -> tuple[list[float], list[float], list[int]]:
    """The three columns, checked."""
    sizes, times = list(n_bytes), list(seconds)
    counts = [1] * len(sizes) if messages is None else list(messages)
    if not len(sizes) == len(times) == len(counts):
        raise FitError(
            f"every measurement needs its bytes, seconds and messages, but there are {len(sizes)} n_bytes, "
            f"{len(times)} seconds and {len(counts)} messages"
        )
    for row, (size, time, count) in enumerate(zip(sizes, times, counts, strict=True)):
        for name, value, least in (("n_bytes", size, 0), ("seconds", time, None), ("messages", count, 0)):
            number = _as_number(value)
            too_small = number <= 0 if least is None else number < least
            if too_small or not math.isfinite(number):
                raise FitError(
                    f"measurement {row} (from 0) has {name}={value!r}: it must be finite and "
                    f"{'above 0' if least is None else 'at least 0'}"
                )
        if count != int(count):
            raise FitError(f"measurement {row} (from 0) has messages={count!r}: it must be a whole number")
        if size == count == 0:
            raise FitError(f"measurement {row} (from 0) has neither bytes nor messages, so nothing was timed")
    return [float(size) for size in sizes], [float(time) for time in times], [int(count) for count in counts]


def _as_number(value: object) -> float:
    """The value as a float, numpy's numbers too; nan for what is no number."""
    try:
        return math.nan if isinstance(value, bool | str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
