"""From parameters and tokens to hours, money, energy and carbon: a chain of products, each with its unit.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (6ND); Patterson et al. 2021, arXiv:2104.10350
(energy and carbon). Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("gpu_hours", "money", "kwh", "kg")


def training_bill(
    n_params: float,
    n_tokens: float,
    peak: float,
    mfu: float,
    price: float,
    watts: float,
    pue: float,
    grid: float,
) -> tuple[float, float, float, float]:
    """(GPU-hours, money, kWh, kg CO2e) of a training run.

    Args:
        peak: FLOP/s. mfu: share of it. price: of a GPU-hour. watts: of one GPU. pue: building over computers.
        grid: kg CO2e a kWh.
    """
    gpu_hours = 6 * n_params * n_tokens / (peak * mfu) / 3600
    kwh = gpu_hours * watts / 1000 * pue
    return gpu_hours, gpu_hours * price, kwh, kwh * grid


def _build(
    *, per_token: float = 6.0, rate: str = "peak times mfu", seconds: float = 3600.0, building: int = 1,
    kilo: float = 1000.0, carbon: str = "energy from the grid", money: str = "hours", unit: float = 1.0,
) -> Answer:  # fmt: skip
    """The bill with the given faults; without any, the right one."""

    def answer(
        n_params: float, n_tokens: float, peak: float, mfu: float, price: float, watts: float, pue: float,
        grid: float,
    ) -> tuple[float, float, float, float]:  # fmt: skip
        speed = {
            "peak times mfu": peak * mfu, "peak": peak, "peak over mfu": peak / mfu,
            "per cent": peak * mfu / 100,
        }[rate]  # fmt: skip
        gpu_hours = per_token * n_params * n_tokens / speed / seconds
        computers = gpu_hours * watts / kilo
        kwh = computers * pue**building
        emits = {"energy from the grid": kwh, "computers": computers, "hours": gpu_hours, "twice": kwh * pue}
        priced = gpu_hours if money == "hours" else kwh
        return gpu_hours, priced * price, kwh, emits[carbon] * grid * unit

    return answer


MISTAKES = (
    Mistake(
        name="ND without the 6",
        faults={"per_token": 1.0},
        message="N D counts parameters times tokens. Each pair costs about six FLOPs in training: two on "
        "the way forward, four on the way back.",
    ),
    Mistake(
        name="the forward pass alone",
        faults={"per_token": 2.0},
        message="2 N D is the forward pass. Training goes back as well, for twice as much: 6 N D.",
    ),
    Mistake(
        name="hours at the peak",
        faults={"rate": "peak"},
        message="The GPUs are taken to reach their peak. They reach the share mfu of it.",
    ),
    Mistake(
        name="multiplied by the utilisation",
        faults={"rate": "peak over mfu"},
        message="A lower utilisation made the run shorter. The speed is peak times mfu, and the time is "
        "FLOPs over the speed.",
    ),
    Mistake(
        name="seconds taken for hours",
        faults={"seconds": 1.0},
        message="FLOPs over FLOP/s are seconds. 3,600 of them are an hour.",
    ),
    Mistake(
        name="the building forgotten",
        faults={"building": 0},
        message="PUE is left out: cooling and losses take their part of what the grid delivers.",
    ),
    Mistake(
        name="the building counted twice",
        faults={"building": 2},
        message="PUE is multiplied in twice. Once, from the computers' energy to the grid's.",
    ),
    Mistake(
        name="watts taken for kilowatts",
        faults={"kilo": 1.0},
        message="Watts times hours are watt-hours. A kWh is a thousand of them.",
    ),
    Mistake(
        name="carbon of the computers alone",
        faults={"carbon": "computers"},
        message="The energy is right, and the carbon is computed from the computers' share of it. The grid "
        "burns for the building too.",
    ),
    Mistake(
        name="minutes taken for hours",
        faults={"seconds": 60.0},
        message="Divided by 60 these are minutes. An hour has 3,600 seconds.",
    ),
    Mistake(
        name="days taken for hours",
        faults={"seconds": 86_400.0},
        message="Divided by 86,400 these are days of one GPU. An hour has 3,600 seconds.",
    ),
    Mistake(
        name="the utilisation taken for per cent",
        faults={"rate": "per cent"},
        message="mfu is a share already: 0.4 is 40 %. It is not divided by 100.",
    ),
    Mistake(
        name="divided by the building",
        faults={"building": -1},
        message="The energy is divided by PUE. The building takes more than the computers: times PUE.",
    ),
    Mistake(
        name="a price for energy",
        faults={"money": "kWh"},
        message="The price is multiplied with the energy. It is for an hour of one GPU, current included.",
    ),
    Mistake(
        name="carbon of hours",
        faults={"carbon": "hours"},
        message="The grid's carbon is multiplied with hours. It is kg for each kWh.",
    ),
    Mistake(
        name="the building counted again in the carbon",
        faults={"carbon": "twice"},
        message="The energy holds PUE already; the carbon takes it a second time.",
    ),
    Mistake(
        name="tonnes for kilograms",
        faults={"unit": 1e-3},
        message="The last figure is in tonnes. Asked are kg, and grid is in kg for each kWh.",
    ),
    Mistake(
        name="grams for kilograms",
        faults={"unit": 1e3},
        message="The last figure is in grams. Asked are kg, and grid is in kg for each kWh already.",
    ),
)

HINTS = (
    "Four steps: FLOPs, then seconds and hours, then energy, then carbon. Write the unit beside each.",
    "Hours are 6 N D / (peak · mfu) / 3600. Energy in kWh is hours · watts / 1000 · pue.",
    "h = 6 * n_params * n_tokens / (peak * mfu) / 3600; e = h * watts / 1000 * pue; return h, h * price, "
    "e, e * grid.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for peak, watts in ((312e12, 400.0), (989e12, 700.0)):
        n, d = float(rng.uniform(1e9, 9e10)), float(rng.uniform(1e11, 9e12))
        mfu, price = float(rng.uniform(0.25, 0.55)), float(rng.uniform(1.3, 3.8))
        pue, grid = float(rng.uniform(1.08, 1.6)), float(rng.uniform(0.05, 0.7))
        about = f"N = {n:.2g}, D = {d:.2g} at {mfu:.0%} of {peak / 1e12:.0f} TFLOP/s"
        cases.append(case_of(about, n, d, peak, mfu, price, watts, pue, grid))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="training_bill",
    reference=training_bill,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
