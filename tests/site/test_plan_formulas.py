"""The formulas of the page's calculator are scalelab.plan's: equal on 200 random cases, in a browser."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from browser import visit
from local_site import served
from plan_page import SCRIPTS, STATIC, lay_out

from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.laws import ChinchillaLaw
from scalelab.plan import Assumptions, bill, plan_budget, plan_gpu_hours, plan_loss, plan_money, plan_serving

N_CASES, SEED = 200, 5
RTOL = 1e-9
LAW = ("E", "A", "B", "alpha", "beta")
RATES = ("mfu", "price_per_gpu_hour", "pue", "grid_kg_per_kwh")
MODEL = ("n_params", "n_tokens", "flops", "loss", "tokens_per_param")
BILL = ("gpu_hours", "money", "energy_kwh", "co2_kg", "days")
PLANS = ("budget", "gpu_hours", "money", "loss")
DIRECTIONS = (*PLANS, "model", "size_at_budget", "size_at_loss", "serving")

pytestmark = pytest.mark.browser


def random_cases(n_cases: int, seed: int) -> list[dict[str, Any]]:
    """Laws, assumptions and amounts, each over the whole range that a reader might ask about."""
    draw = random.Random(seed)

    def spread(low: float, high: float) -> float:
        return low * (high / low) ** draw.random()

    cases = []
    for place in range(n_cases):
        law = [*PUBLISHED.values()][place % 4] if place % 4 < len(PUBLISHED) else ChinchillaLaw(
            E=draw.choice([0.0, draw.uniform(0.5, 2.5)]), A=spread(10, 5e3), B=spread(10, 1e4),
            alpha=draw.uniform(0.2, 0.6), beta=draw.uniform(0.2, 0.6),
        )  # fmt: skip
        assumed = Assumptions(
            hardware=draw.choice(["h100-sxm", "a100-sxm4-80gb", "t4", "b200", "h200"]), precision="fp16",
            mfu=draw.uniform(0.05, 1), price_per_gpu_hour=spread(0.1, 20),
            power_watts=draw.choice([None, spread(50, 2000)]), pue=draw.uniform(1, 2),
            grid_kg_per_kwh=draw.uniform(0, 1),
        )  # fmt: skip
        flops, other = spread(1e17, 1e27), law.optimal(spread(1e17, 1e27))
        cases.append({
            "law": law, "assumed": assumed, "n_gpus": draw.choice([None, 1, draw.randrange(2, 100_000)]),
            "flops": flops, "gpu_hours": spread(0.1, 1e8), "money": spread(1, 1e9),
            "loss": other.loss, "larger": other.n_params * 1.5,
            "fixed": law.optimal(flops).n_params * spread(0.3, 3),
            "n_params": spread(1e6, 1e13), "n_tokens": spread(1e8, 1e14),
            "served_tokens": draw.choice([0.0, spread(1e9, 1e15)]),
        })  # fmt: skip
    return cases


def as_json(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as the scripts take it."""
    law, assumed = case["law"], case["assumed"]
    return {
        **case,
        "law": {name: getattr(law, name) for name in LAW},
        "assumed": {
            "peak_flops_per_s": assumed.peak_flops_per_s,
            "power_watts": assumed.watts,
            **{name: getattr(assumed, name) for name in RATES},
        },
    }


IN_THE_BROWSER = """(cases) => cases.map((given) => {
  const P = scalelabPlan;
  const law = P.makeLaw(given.law), assumed = P.assume(given.assumed), { n_gpus } = given;
  return {
    budget: P.planBudget(law, given.flops, assumed, n_gpus),
    gpu_hours: P.planGpuHours(law, given.gpu_hours, assumed, n_gpus),
    money: P.planMoney(law, given.money, assumed, n_gpus),
    loss: P.planLoss(law, given.loss, assumed, n_gpus),
    model: P.planModel(law, given.n_params, given.n_tokens, assumed, n_gpus),
    size_at_budget: { n_tokens: P.tokensOfBudget(given.flops, given.fixed) },
    size_at_loss: { n_tokens: P.tokensFor(law, given.larger, given.loss) },
    serving: P.planServing(law, given.loss, given.served_tokens),
  };
})"""


def in_python(case: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """What the package says, direction by direction."""
    law, assumed, n_gpus = case["law"], case["assumed"], case["n_gpus"]

    def row(plan: Any, paid: Any) -> dict[str, float | None]:
        return {name: getattr(plan, name) for name in MODEL} | {name: getattr(paid, name) for name in BILL}

    plans = {
        "budget": plan_budget(law, case["flops"], assumed, n_gpus=n_gpus),
        "gpu_hours": plan_gpu_hours(law, case["gpu_hours"], assumed, n_gpus=n_gpus),
        "money": plan_money(law, case["money"], assumed, n_gpus=n_gpus),
        "loss": plan_loss(law, case["loss"], assumed, n_gpus=n_gpus),
    }
    n_params, n_tokens = case["n_params"], case["n_tokens"]
    flops, loss = 6 * n_params * n_tokens, float(law.loss(n_params, n_tokens))
    paid = bill(flops, assumed, n_gpus=n_gpus)
    life = plan_serving(law, case["loss"], prompt_tokens=case["served_tokens"]).best
    return {
        **{name: row(plan, plan.bill) for name, plan in plans.items()},
        "model": {
            "n_params": n_params, "n_tokens": n_tokens, "flops": flops, "loss": loss,
            "tokens_per_param": n_tokens / n_params, "over_least": flops / law.flops_for(loss),
            **{name: getattr(paid, name) for name in BILL},
        },
        "size_at_budget": {"n_tokens": case["flops"] / (6 * case["fixed"])},
        "size_at_loss": {"n_tokens": law.tokens_for(case["larger"], case["loss"])},
        "serving": {"n_params": life.n_params, "n_tokens": life.n_tokens, "loss": life.loss},
    }  # fmt: skip


CASES = random_cases(N_CASES, SEED)


def differences(computed: list[Any], cases: list[dict[str, Any]], direction: str) -> list[str]:
    """Where the browser's numbers and the package's are apart."""
    found = []
    for place, (case, mine) in enumerate(zip(cases, computed, strict=True)):
        for name, wanted in in_python(case)[direction].items():
            if mine[direction][name] != (wanted if wanted is None else pytest.approx(wanted, rel=RTOL)):
                found.append(f"case {place}, {name}: {mine[direction][name]!r}, scalelab.plan {wanted!r}")
    return found


@pytest.fixture(scope="module")
def tab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("formulas")
    lay_out(folder)
    with served(folder) as address, visit(browser, address, "index.html") as opened:
        yield opened.tab


@pytest.fixture(scope="module")
def computed(tab: Any) -> list[Any]:
    return list(tab.evaluate(IN_THE_BROWSER, [as_json(case) for case in CASES]))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_hundred_random_cases_equal_the_package(computed: list[Any], direction: str) -> None:
    assert len(computed) == N_CASES
    found = differences(computed, CASES, direction)
    assert not found, "\n".join(found[:10])


def test_the_cases_are_many_kinds() -> None:
    """So equality above means something: floors of 0, free use of n_gpus, and models far off the optimum."""
    assert len({case["law"] for case in CASES}) > N_CASES / 5
    assert any(case["law"].E == 0 for case in CASES)
    assert any(case["n_gpus"] is None for case in CASES)
    assert any(case["served_tokens"] > 1e14 for case in CASES)
    assert any(in_python(case)["model"]["over_least"] > 100 for case in CASES)


# What is made wrong in a copy of the formulas → the directions that must notice.
BROKEN = {
    "no exponent a": ("logG + law.a * product", "logG + 0.5 * product", PLANS),
    "hours of a minute": ("mfu * 3600", "mfu * 60", (*PLANS, "model")),
    "watts as kilowatts": ("power_watts * pue / 1000", "power_watts * pue", ("budget", "model")),
    "no building": ("power_watts * pue / 1000", "power_watts / 1000", ("budget", "model")),
    "terms swapped": ("gap - Math.log(law.a)", "gap - Math.log(law.b)", ("loss", "model")),
    "days of a week": ("gpu_hours / n_gpus / 24", "gpu_hours / n_gpus / 168", ("budget", "model")),
    "serving as dear": ("INFERENCE_FLOPS = 2", "INFERENCE_FLOPS = 6", ("serving",)),
    "no way back": ("TRAINING_FLOPS = 6", "TRAINING_FLOPS = 2", ("budget", "size_at_budget", "serving")),
    "no floor": ("law.E + law.A * above0", "law.A * above0", ("size_at_loss",)),
    "a billionth off": ('atLeast(0, "E", E);', "alpha *= 1 + 3e-9;", ("budget", "loss", "size_at_loss")),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_formulas_made_wrong_are_noticed(tab: Any, fault: str) -> None:
    right, wrong, noticed = BROKEN[fault]
    source = (STATIC / SCRIPTS[0]).read_text(encoding="utf-8")
    assert right in source
    cases = CASES[:20]
    broken = f"(cases) => {{ {source.replace(right, wrong)}\n return ({IN_THE_BROWSER})(cases); }}"
    found = tab.evaluate(broken, [as_json(case) for case in cases])
    for direction in noticed:
        assert differences(found, cases, direction), direction
