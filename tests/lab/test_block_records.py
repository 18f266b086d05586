"""The recorded ablations are read as they were judged, with intervals that a statistician would give."""

from __future__ import annotations

import math
import statistics

import pytest

from scalelab.core.errors import LabError
from scalelab.lab.records import study_folder
from scalelab.lab.transformers.ablation_records import (
    STUDY,
    T_95,
    chosen_rate,
    cost_of,
    interval,
    judged,
    rates_tried,
)

ARMS = sorted(path.stem for path in study_folder(STUDY).glob("*.jsonl"))


def test_quantiles_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, quantile in enumerate(T_95, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_an_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [2.61, 2.70, 2.64, 2.75]
    low, high = stats.t.interval(0.95, 3, loc=statistics.fmean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.half_width == pytest.approx((high - low) / 2, abs=1e-4)
    assert not found.is_null
    assert interval([-0.1, 0.1, 0.02]).is_null


def test_a_diverged_run_makes_the_cost_infinite_and_no_null() -> None:
    found = interval([0.1, math.inf])
    assert found.mean == math.inf
    assert found.high == math.inf


def test_one_seed_is_no_evidence() -> None:
    with pytest.raises(LabError, match="needs from 2"):
        interval([1.0])
    with pytest.raises(LabError, match="no arm 'no-attention'"):
        judged("no-attention")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_judged_at_a_rate_of_its_own_by_three_seeds(arm: str) -> None:
    tried, bits = rates_tried(arm), judged(arm)
    assert len(tried) >= 3
    assert len(bits) >= 3
    ends = (min(tried), max(tried))
    best = min(tried, key=lambda rate: tried[rate])
    neighbour = min(tried, key=lambda rate: (rate == best, abs(math.log(rate / best))))
    # The best rate is bracketed, or the step to it was hardly worth taking.
    assert best not in ends or tried[neighbour] - tried[best] < 0.005
    assert tried[chosen_rate(arm)] <= tried[best] + 0.15


def test_costs_are_paired_by_seed() -> None:
    ours, base = judged("rmsnorm"), judged("baseline")
    assert cost_of("rmsnorm").mean == pytest.approx(statistics.fmean(ours[s] - base[s] for s in base))
