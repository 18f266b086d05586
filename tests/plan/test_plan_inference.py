"""The served optimum against a numerical minimum and the examples that Sardana et al. print."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from scalelab.core.errors import BudgetError, ConfigError
from scalelab.laws.chinchilla import ChinchillaLaw
from scalelab.plan import Assumptions, FlopPrices, ServingPlan, money_prices, plan_serving, serving_cost

# Appendix A, footnote 2: exponents of three digits, after De Vries, in place of the printed 0.34 and 0.28.
SARDANA = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
REFIT = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def quality_of(law: ChinchillaLaw, n_params: float) -> float:
    """Loss of a compute-optimal model of that size."""
    return law.optimal(6 * (n_params / law.G) ** (1 / law.a)).loss


@pytest.mark.parametrize(
    ("size", "tokens", "best", "data", "saving"),
    [
        (7e9, 1e11, 6.0, 1.18, None),  # section 2: a 6B model on 1.18 times the data
        (30e9, 1e13, 13.6, 2.84, 0.28),  # section 2: 13.6B on 2.84 times the data, 28 % fewer FLOPs
        (13e9, 2e12, 7.0, None, 0.17),  # figure 1: 7B, 17 % fewer
        (70e9, 1e13, 41.6, None, 0.12),  # appendix B, table 2: 41.6B on 7.92T tokens, 12 %
    ],
)
def test_sardanas_examples_in_flops_are_reproduced_to_the_printed_digits(
    size: float, tokens: float, best: float, data: float | None, saving: float | None
) -> None:
    plan = plan_serving(SARDANA, quality_of(SARDANA, size), output_tokens=tokens)
    assert plan.training_only.n_params == pytest.approx(size)
    assert round(plan.best.n_params / 1e9, 1) == best
    assert data is None or round(plan.data_ratio, 2) == data
    assert saving is None or round(plan.saving, 2) == saving


def test_figure_1s_saving_in_flops_and_table_2s_tokens_are_the_printed_ones() -> None:
    first = plan_serving(SARDANA, quality_of(SARDANA, 13e9), output_tokens=2e12)
    assert float(f"{first.training_only.cost - first.best.cost:.1e}") == 1.7e22
    second = plan_serving(SARDANA, quality_of(SARDANA, 70e9), output_tokens=1e13)
    assert round(second.best.n_tokens / 1e12, 2) == 7.92
    # Table 2 prints 4.26T for Chinchilla's own tokens; these constants give 4.255.
    assert second.training_only.n_tokens == pytest.approx(4.26e12, rel=2e-3)


def real_world(size: float, requests: float, serving_price: float) -> ServingPlan:
    """Section 6 and figure 6: 70 tokens in and 215 out a request; A100s, INT8 for serving at twice bf16's
    peak."""
    training = Assumptions(hardware="a100", mfu=0.5, price_per_gpu_hour=1.5)
    # The hardware table has no integer peak: half the price at the bf16 peak is the same price of an
    # operation.
    serving = Assumptions(hardware="a100-sxm4-40gb", price_per_gpu_hour=serving_price / 2)
    return plan_serving(
        SARDANA,
        quality_of(SARDANA, size),
        prompt_tokens=70 * requests,
        output_tokens=215 * requests,
        prices=money_prices(training, serving, prompt_mfu=0.5, output_mfu=0.01),
    )


def test_sardanas_examples_in_money_hold_at_a_price_ten_per_cent_below_the_one_reported() -> None:
    """The settings as we found them reported ($1.50 and $1.10 an hour) give 19 %, 40 % and 55 %; at $1.00 all
    agree.

    Which of the figures the authors' own calculation used is not known to us.
    """
    small, medium, large = (
        real_world(*case, 1.0) for case in ((30e9, 1.5e9), (70e9, 7.02e9), (70e9, 35.1e9))
    )
    assert (round(small.best.n_params / 1e9), round(small.saving, 2)) == (16, 0.17)
    assert small.best.n_tokens == pytest.approx(3.35e12, rel=0.01)
    assert round(medium.training_only.cost / medium.best.cost - 1, 2) == 0.36
    assert large.best.n_params == pytest.approx(21.5e9, rel=0.005)
    assert round(large.saving, 2) == 0.54
    assert large.best.n_tokens == pytest.approx(27e12, rel=0.03)
    reported = real_world(30e9, 1.5e9, 1.1)
    assert (round(reported.best.n_params / 1e9), round(reported.saving, 2)) == (16, 0.19)


@pytest.mark.parametrize("law", [SARDANA, REFIT])
@pytest.mark.parametrize("loss", [1.9, 2.2, 3.0])
@pytest.mark.parametrize("served", [1e6, 1e11, 1e13, 1e17])
def test_the_root_is_the_numerical_minimum_of_the_cost(
    law: ChinchillaLaw, loss: float, served: float
) -> None:
    plan = plan_serving(law, loss, prompt_tokens=0.3 * served, output_tokens=0.7 * served)

    def log_cost(x: float) -> float:
        return float(np.log(serving_cost(law, loss, math.exp(x), output_tokens=served)))

    smallest = math.log(law.A / (loss - law.E)) / law.alpha
    found = minimize_scalar(
        log_cost,
        bounds=(smallest + 1e-9, math.log(plan.training_only.n_params) + 3),
        method="bounded",
        options={"xatol": 1e-12},
    )
    assert math.log(plan.best.n_params) == pytest.approx(found.x, abs=2e-6)
    assert math.log(plan.best.cost) == pytest.approx(found.fun, abs=1e-12)
    assert float(law.loss(plan.best.n_params, plan.best.n_tokens)) == pytest.approx(loss, rel=1e-9)


def test_without_serving_it_is_chinchillas_closed_form() -> None:
    plan = plan_serving(REFIT, 2.2)
    wanted = REFIT.optimal(REFIT.flops_for(2.2))
    assert plan.best == plan.training_only
    assert plan.best.n_params == pytest.approx(wanted.n_params)
    assert plan.best.cost == pytest.approx(wanted.flops)
    assert plan.saving == 0.0


def test_the_more_a_model_is_served_the_smaller_and_the_longer_trained_it_is() -> None:
    plans = [plan_serving(REFIT, 2.2, output_tokens=served) for served in (0, 1e10, 1e12, 1e14, 1e16)]
    sizes = [plan.best.n_params for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    savings = [plan.saving for plan in plans]
    assert savings == sorted(savings)
    assert all(plan.size_ratio <= 1 <= plan.data_ratio for plan in plans)
    # No size reaches the loss below N_min = (A / (loss - E))^(1/alpha).
    assert sizes[-1] > (REFIT.A / (2.2 - REFIT.E)) ** (1 / REFIT.alpha)


def test_equal_prices_in_any_currency_give_the_same_model() -> None:
    flops = plan_serving(REFIT, 2.2, prompt_tokens=1e12, output_tokens=1e12)
    money = plan_serving(
        REFIT,
        2.2,
        prompt_tokens=1e12,
        output_tokens=1e12,
        prices=FlopPrices(training=3e-18, prompt=3e-18, output=3e-18, unit="EUR"),
    )
    assert money.best.n_params == pytest.approx(flops.best.n_params)
    assert money.best.cost == pytest.approx(3e-18 * flops.best.cost)
    assert (money.best.unit, flops.best.unit) == ("EUR", "FLOPs")


def test_a_cost_is_training_and_serving_and_infinite_for_a_model_that_is_too_small() -> None:
    costs = serving_cost(REFIT, 2.2, np.array([1e6, 7e9]), output_tokens=1e12)
    tokens = REFIT.tokens_for(7e9, 2.2)
    assert costs[0] == math.inf
    assert costs[1] == pytest.approx(6 * 7e9 * tokens + 2 * 7e9 * 1e12)


@pytest.mark.parametrize("loss", [1.8, 1.8172, 0, -1, math.nan, "2.2", None])
def test_a_loss_that_no_model_reaches_is_refused(loss: Any) -> None:
    with pytest.raises(BudgetError, match=r"no model reaches|loss must be"):
        plan_serving(REFIT, loss, output_tokens=1e12)


@pytest.mark.parametrize("tokens", [-1, math.nan, math.inf, "1e12", None, 1e80])
def test_an_impossible_demand_is_refused(tokens: Any) -> None:
    with pytest.raises(BudgetError, match="output_tokens"):
        plan_serving(REFIT, 2.2, output_tokens=tokens)


def test_impossible_prices_and_laws_are_refused() -> None:
    for price in (0, -1, math.nan, "1"):
        with pytest.raises(ConfigError, match="training"):
            FlopPrices(training=price)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="law must have"):
        plan_serving("chinchilla", 2.2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="use one"):
        money_prices(Assumptions(), Assumptions(currency="EUR"), prompt_mfu=0.5, output_mfu=0.01)
    with pytest.raises(ConfigError, match="mfu"):
        money_prices(Assumptions(), Assumptions(), prompt_mfu=0.5, output_mfu=1.5)
    with pytest.raises(ConfigError, match="n_params"):
        serving_cost(REFIT, 2.2, [-1.0])


def test_a_loss_barely_above_the_floor_is_out_of_reach_and_said_so() -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        plan_serving(
            ChinchillaLaw(E=1.0, A=400, B=400, alpha=0.01, beta=0.01), 1.0 + 1e-12, output_tokens=1e12
        )
