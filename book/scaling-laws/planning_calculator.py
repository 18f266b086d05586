"""The form of the chapter's calculator: every law and every default in it is read from the package.

The form computes nothing by itself: book/_static/plan-formulas.js holds the formulas of scalelab.plan, and
plan-calculator.js reads the fields and shows what comes of them. No number stands in those files that stands
in the package, too: they get all of them from here, in the form's attribute `data-package`.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from IPython.display import HTML

from scalelab.cost import accelerator_names, require_accelerator
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.plan import Assumptions, plan_loss

LAWS = {
    "Besiroglu, printed": "Chinchilla, re-analysed 2024 (Besiroglu)",
    "Hoffmann's source": "Chinchilla 2022, its source's digits (Hoffmann)",
    "Hoffmann, printed": "Chinchilla 2022, as printed (Hoffmann)",
}
PARAMETERS = {"E": "floor, nats per token", "A": "of N", "B": "of D", "alpha": "of N", "beta": "of D"}
WITHOUT_SCRIPT = (
    "The calculator needs JavaScript, on the course's site. In Python <code>scalelab.plan</code> does the "
    "same: <code>plan_budget</code>, <code>plan_gpu_hours</code>, <code>plan_money</code> and "
    "<code>plan_loss</code> give the plan of a budget or a loss, <code>bill</code> what a model takes, "
    "<code>plan_serving</code> the cheapest model over its life."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One line to type into.

    Attributes:
        name: as the package calls it. label, unit, note: what the reader is told; note may be empty.
        value: what stands there at first.
    """

    name: str
    label: str
    unit: str
    value: str = ""
    note: str = ""


def package() -> dict[str, Any]:
    """What the scripts take from the package: laws, hardware, and the defaults of a bill, by its names."""
    assumed = Assumptions()
    defaults = ("hardware", "precision", "mfu", "price_per_gpu_hour", "pue", "grid_kg_per_kwh")
    hardware = [require_accelerator(name) for name in accelerator_names()]
    return {
        "laws": [
            {"name": text, **{name: getattr(PUBLISHED[key], name) for name in PARAMETERS}}
            for key, text in LAWS.items()
        ],
        "hardware": [
            {"name": one.name, "peak_flops": dict(one.peak_flops), "tdp_watts": one.tdp_watts}
            for one in hardware
        ],
        "defaults": {name: getattr(assumed, name) for name in defaults},
        "currency": assumed.currency,
    }


def form(loss: float, n_gpus: int) -> HTML:
    """The calculator, open at the plan for this loss (nats per token) on so many GPUs, by the first law."""
    assumed, known = Assumptions(), package()
    plan = plan_loss(PUBLISHED[next(iter(LAWS))], loss)
    law = _select("law", "Law", [*((str(n), one["name"]) for n, one in enumerate(known["laws"])),
                                 ("own", "my own: E, A, B, α, β")], "0")  # fmt: skip
    ask = _select("ask", "I give", [
        ("flops", "training FLOPs"), ("gpu_hours", "GPU-hours"), ("money", f"money, {assumed.currency}"),
        ("loss", "the loss to reach"), ("model", "a model and its data: N and D"),
    ], "loss")  # fmt: skip
    given = [
        Field(name="flops", label="Training compute", unit="FLOPs", value=_number(plan.flops, 4)),
        Field(name="gpu_hours", label="GPU time", unit="GPU-hours", value=_number(plan.bill.gpu_hours, 4)),
        Field(name="money", label="Money", unit=assumed.currency, value=_number(plan.bill.money, 4)),
        Field(name="loss", label="Loss to reach", unit="nats per token", value=_number(loss)),
        Field(name="n_params", label="N", unit="parameters", value=_number(plan.n_params, 4)),
        Field(name="n_tokens", label="D", unit="training tokens", value=_number(plan.n_tokens, 4)),
        Field(name="n_gpus", label="GPUs at once", unit="optional", value=str(n_gpus)),
        Field(name="fixed_n_params", label="Hold N at", unit="optional"),
        Field(name="served_tokens", label="Tokens served", unit="optional"),
    ]
    first = known["laws"][0]
    own = [
        Field(name=name, label=_greek(name), unit=unit, value=_number(first[name]))
        for name, unit in PARAMETERS.items()
    ]
    return HTML(f"""
<div class="plan-calculator">
<noscript><p>{WITHOUT_SCRIPT}</p></noscript>
<p class="plan-on-paper">{WITHOUT_SCRIPT}</p>
<form hidden novalidate autocomplete="off" aria-label="Plan a training run"
 data-package="{html.escape(json.dumps(known))}">
<div class="plan-fields plan-choices">{law}{ask}</div>
<fieldset class="plan-own" hidden><legend>The law's parameters</legend>
<div class="plan-fields">{"".join(map(_input, own))}</div>
<label for="plan-pasted">Pasted fit
<span>what <code>scalelab fit runs.csv --json</code> prints, optional</span></label>
<textarea id="plan-pasted" name="pasted" rows="3" spellcheck="false" aria-describedby="plan-pasted-error">
</textarea><p class="plan-error" id="plan-pasted-error" hidden></p></fieldset>
<div class="plan-fields">{"".join(map(_input, given))}</div>
<details><summary>Assumptions: hardware, utilisation, price, energy</summary>
<div class="plan-fields">{_assumptions(assumed, known)}</div></details>
<p class="plan-summary" role="status"></p>
<div class="plan-results" tabindex="0" role="region" aria-label="The plan in full" hidden>
<table class="numbers"></table></div>
<details class="plan-python" hidden><summary>The same in Python</summary>
<div class="highlight"><pre tabindex="0"></pre></div></details>
<p><button type="reset">Back to the first plan</button></p>
</form></div>""")


def _assumptions(assumed: Assumptions, known: dict[str, Any]) -> str:
    """Fields of the bill's assumptions, each with its default's source."""
    units = {
        "mfu": ("MFU", "share of the peak"),
        "price_per_gpu_hour": ("Price", f"{assumed.currency} per GPU-hour"),
        "power_watts": ("Power", "W per GPU"),
        "pue": ("PUE", "kWh of the building per kWh of computers"),
        "grid_kg_per_kwh": ("Grid", "kg CO₂e per kWh"),
    }
    listed = {row.name: row for row in assumed.listed()}
    peak = Field(
        name="peak_flops_per_s",
        label="Peak",
        unit="FLOP/s, dense",
        value=_number(assumed.peak_flops_per_s),
        note="Of the accelerator and format chosen. Type another for hardware that the list lacks.",
    )
    fields = [peak]
    for name, (label, unit) in units.items():
        value = _number(float(listed[name].value))
        note = f"{value}: {listed[name].source}"
        fields.append(Field(name=name, label=label, unit=unit, value=value, note=note))
    hardware = [(one["name"], one["name"]) for one in known["hardware"]]
    formats = dict.fromkeys(name for one in known["hardware"] for name in one["peak_flops"])
    chosen = _select("hardware", "Accelerator", [*hardware, ("other", "another")], assumed.hardware)
    chosen += _select("precision", "Number format", [(name, name) for name in formats], assumed.precision)
    return chosen + "".join(map(_input, fields))


def _number(value: float, digits: int = 12) -> str:
    """As a reader would type it: 1.178e23."""
    return f"{value:.{digits}g}".replace("e+", "e")


def _greek(name: str) -> str:
    return {"alpha": "α", "beta": "β"}.get(name, name)


def _select(name: str, label: str, options: list[tuple[str, str]], chosen: str) -> str:
    listed = "".join(
        f'<option value="{value}"{" selected" * (value == chosen)}>{html.escape(text)}</option>'
        for value, text in options
    )
    return (
        f'<div class="plan-field"><label for="plan-{name}">{label}</label>'
        f'<select id="plan-{name}" name="{name}">{listed}</select></div>'
    )


def _input(field: Field) -> str:
    name = f"plan-{field.name.replace('_', '-')}"
    note = f'<p class="plan-note" id="{name}-note">{html.escape(field.note)}</p>' if field.note else ""
    described = f"{name}-note {name}-error" if field.note else f"{name}-error"
    return (
        f'<div class="plan-field"><label for="{name}">{field.label} <span>{field.unit}</span></label>'
        f'<input id="{name}" name="{field.name}" value="{field.value}" type="text" spellcheck="false" '
        f'autocapitalize="off" aria-describedby="{described}">'
        f'<p class="plan-error" id="{name}-error" hidden></p>{note}</div>'
    )
