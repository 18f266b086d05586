"""Latency and bandwidth: what a message costs, and what measured times say of both."""

from __future__ import annotations

import math
import random

import pytest

from scalelab.core.errors import ConfigError, FitError
from scalelab.cost import Link, all_reduce, fit_link

PLANTED = Link(latency_s=40e-6, bytes_per_s=2e9)
SIZES = [2**k for k in range(6, 25, 2)]


def _times(noise: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [PLANTED.seconds(size) * (1 + draw.gauss(0, noise)) for size in SIZES]


def test_a_message_costs_its_latency_and_its_bytes() -> None:
    assert PLANTED.seconds(0) == 40e-6
    assert PLANTED.seconds(1e6, messages=3) == pytest.approx(3 * 40e-6 + 5e-4)
    assert PLANTED.seconds(PLANTED.half_bandwidth_bytes) == pytest.approx(2 * PLANTED.latency_s)


@pytest.mark.parametrize("weights", ["relative", "equal"])
def test_exact_times_give_the_planted_link_back(weights: str) -> None:
    found = fit_link(SIZES, _times(0), weights=weights)
    assert found.link.latency_s == pytest.approx(PLANTED.latency_s, rel=1e-9)
    assert found.link.bytes_per_s == pytest.approx(PLANTED.bytes_per_s, rel=1e-9)
    assert found.s_per_byte == pytest.approx(1 / PLANTED.bytes_per_s, rel=1e-9)
    assert found.scatter == pytest.approx(0, abs=1e-9)
    assert not found.latency_at_bound


def test_steps_of_collectives_are_told_from_their_bytes() -> None:
    done = [all_reduce(n, 4) for n in (10, 1_000, 1_000_000)]
    found = fit_link(
        [c.critical_bytes for c in done], [c.seconds(PLANTED) for c in done], messages=[c.steps for c in done]
    )
    assert found.link.latency_s == pytest.approx(PLANTED.latency_s, rel=1e-9)


def test_standard_errors_are_as_large_as_the_fits_stray() -> None:
    fits = [fit_link(SIZES, _times(0.05, seed)) for seed in range(400)]
    for value, error, truth in (
        ([f.link.latency_s for f in fits], [f.latency_se_s for f in fits], PLANTED.latency_s),
        ([f.s_per_byte for f in fits], [f.s_per_byte_se for f in fits], 1 / PLANTED.bytes_per_s),
    ):
        strayed = math.sqrt(math.fsum((v - truth) ** 2 for v in value) / len(value))
        assert math.fsum(error) / len(error) == pytest.approx(strayed, rel=0.12)
    assert math.fsum(f.scatter for f in fits) / len(fits) == pytest.approx(0.05, rel=0.1)


def test_relative_weights_find_the_latency_that_equal_ones_lose_in_long_messages() -> None:
    def error(weights: str) -> float:
        found = [fit_link(SIZES, _times(0.05, seed), weights=weights).link.latency_s for seed in range(40)]
        return max(abs(latency / PLANTED.latency_s - 1) for latency in found)

    assert error("relative") < 0.15 < error("equal")


def test_the_error_on_other_sizes_is_reported() -> None:
    found = fit_link(SIZES[:6], _times(0)[:6])
    assert found.errors(SIZES[6:], _times(0)[6:]) == pytest.approx([0] * 4, abs=1e-9)
    slower = [2 * time for time in _times(0)[6:]]
    assert found.errors(SIZES[6:], slower) == pytest.approx([-0.5] * 4, abs=1e-9)


def test_two_measurements_give_a_link_without_errors() -> None:
    found = fit_link([1_000, 1_000_000], [PLANTED.seconds(1_000), PLANTED.seconds(1_000_000)])
    assert found.link.bytes_per_s == pytest.approx(2e9)
    assert math.isnan(found.latency_se_s)
    assert math.isnan(found.scatter)


def test_a_negative_latency_is_taken_as_none_and_said() -> None:
    found = fit_link([1_000, 2_000, 4_000], [0.9, 2.0, 4.4])
    assert found.latency_at_bound
    assert found.link.latency_s == 0
    assert found.link.bytes_per_s == pytest.approx(1_000, rel=0.1)


@pytest.mark.parametrize(
    ("n_bytes", "seconds", "messages", "message"),
    [
        ([1], [1.0], None, "at least 2 measurements, got 1"),
        ([1, 2], [1.0], None, "2 n_bytes, 1 seconds and 2 messages"),
        ([5, 5], [1.0, 2.0], None, "all messages have 5 bytes"),
        ([8, 16], [1.0, 2.0], [2, 4], "all messages have 4 bytes"),
        (
            [1, 2],
            [0.0, 1.0],
            None,
            r"measurement 0 \(from 0\) has seconds=0.0: it must be finite and above 0",
        ),
        ([1, -2], [1.0, 1.0], None, "measurement 1 .* n_bytes=-2.* at least 0"),
        ([1, math.nan], [1.0, 1.0], None, "n_bytes=nan"),
        ([1, "2"], [1.0, 1.0], None, "n_bytes='2'"),
        ([1, 2], [1.0, 1.0], [1, 1.5], "measurement 1 .* messages=1.5: it must be a whole number"),
        ([1, 0], [1.0, 1.0], [1, 0], "measurement 1 .* neither bytes nor messages"),
        ([1, 1_000], [2.0, 1.0], None, "do not grow with the bytes"),
    ],
)
def test_measurements_that_tell_nothing_are_refused_with_the_reason(
    n_bytes: list[float], seconds: list[float], messages: list[int] | None, message: str
) -> None:
    with pytest.raises(FitError, match=message):
        fit_link(n_bytes, seconds, messages=messages)


def test_links_and_weights_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="latency_s must be a finite number of at least 0, got -1"):
        Link(latency_s=-1, bytes_per_s=1)
    with pytest.raises(ConfigError, match="bytes_per_s must be a finite number above 0, got 0"):
        Link(latency_s=0, bytes_per_s=0)
    with pytest.raises(ConfigError, match="n_bytes must be"):
        PLANTED.seconds(-1)
    with pytest.raises(ConfigError, match="weights must be one of relative, equal"):
        fit_link([1, 2], [1, 2], weights="none")
