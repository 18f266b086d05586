"""Tables and figures of the chapter `planning`, computed from the record, published laws and the package's
plans.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from IPython.display import HTML

from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab import plots
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.lab.scaling_laws.extrapolation import (
    SAME_BUDGET,
    WAYS,
    Budgets,
    best_way,
    budgets_of,
    rms_error,
    try_ways,
)
from scalelab.lab.scaling_laws.published import MODELS, place
from scalelab.lab.scaling_laws.recorded_bets import recorded_bet, recorded_small
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs
from scalelab.laws import fit_chinchilla, fit_power_line
from scalelab.laws.data_constrained import MUENNIGHOFF_2023
from scalelab.plan import Assumptions, bill, plan_loss, plan_serving, serving_cost

CUT, BUDGET = 1e13, 1e14
LAW = PUBLISHED["Besiroglu, printed"]
HOFFMANN = PUBLISHED["Hoffmann's source"]
TARGET_LOSS = 2.1  # nats per token by that law: the worked plan
META_HOURS = 30.84e6  # H100-hours of Llama 3.1 405B by its model card
SERVED = (1e11, 1e12, 1e13)
EPOCHS = (2, 4, 8, 16, 40)


@lru_cache(maxsize=1)
def record() -> Budgets:
    """The sweep's runs up to the cut: what the committed prediction was shown."""
    runs = [
        r
        for r in packages_runs("isoflop")
        if FLOPS_PER_PARAM_TOKEN * r.n_params * r.n_tokens <= SAME_BUDGET * CUT
    ]
    return budgets_of(runs)


@lru_cache(maxsize=1)
def tries() -> tuple[Any, ...]:
    """Every way on every later budget."""
    return tuple(try_ways(record()))


@lru_cache(maxsize=1)
def bottoms() -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and losses of the valleys' bottoms."""
    found = [v for v in record().valleys().vertices if v.bracketed]
    return np.array([v.flops for v in found]), np.array([v.loss for v in found])


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a fit or the record, ready to print."""
    return {
        **way_numbers(),
        **bet_numbers(),
        **small_numbers(),
        **bill_numbers(),
        **serving_numbers(),
        **repeat_numbers(),
        **model_numbers(),
    }


def way_numbers() -> dict[str, str]:
    """Errors of six ways."""
    short = {
        "power": "power law, valleys", "best": "power law, best runs", "floor": "power + floor, valleys",
        "log": "logarithm, valleys", "chin": "Chinchilla's L(N, D)", "same": "same size, power in D",
    }  # fmt: skip
    flops, loss = bottoms()
    slope, level = np.polyfit(np.log(flops), loss, 1)
    line = fit_power_line(flops, loss)
    found = {
        f"rms_{key}_{name}": f"{100 * rms_error(tries(), way, low=low, high=high)[0]:.1f} %"
        for key, way in short.items()
        for name, low, high in (("3", 1, 4), ("10", 4, 12), ("all", 1, 12))
    }
    inside = {"power": line(flops), "log": level + slope * np.log(flops)}
    found |= {
        f"inside_{key}": f"{100 * float(np.sqrt(np.mean(np.log(values / loss) ** 2))):.1f} %"
        for key, values in inside.items()
    }
    found["exponent"] = f"{-line.exponent:.3f}"
    found["n_runs"] = str(len(record().loss))
    found["noise"] = f"{record().valleys().noise:.3f}"
    found["n_tries"] = str(rms_error(tries(), short["power"])[1])
    found["far_power"] = f"{float(line(BUDGET)):.2f}"
    found["far_log"] = f"{level + slope * math.log(BUDGET):.2f}"
    found["zero_log"] = scientific(math.exp(-level / slope))
    gap = float(line(BUDGET)) - (level + slope * math.log(BUDGET))
    found["gap_share"] = f"{100 * gap / (loss[-1] - float(line(BUDGET))):.0f} %"
    return found


def bet_numbers() -> dict[str, str]:
    """The committed prediction, what came of it, and the same rule with less."""
    foretold, outcome = recorded_bet()
    run, (low, high) = foretold["run"], foretold["interval"]
    boot = foretold["interval_by_bootstrap"]
    found = {
        "bet_loss": f"{foretold['loss_nats']:.3f}",
        "bet_low": f"{low:.3f}",
        "bet_high": f"{high:.3f}",
        "bet_width": f"{high - low:.2f}",
        "bet_boot": f"{boot[0]:.3f} to {boot[1]:.3f}",
        "bet_way": foretold["way"],
        "bet_params": f"{run['n_params']:,}",
        "bet_tokens": f"{run['n_tokens'] / 1e6:.1f} million",
        "bet_times": f"{run['flops_6nd'] / CUT:.1f}",
        "bet_date": foretold["date"],
        "bet_best": f"{run['best_size_by_valleys'] / 1e6:.2f} million",
    }
    if outcome is None:
        found["bet_outcome"] = "The run itself is not in the record yet."
    else:
        where = "inside" if outcome["inside"] else "outside"
        found["bet_outcome"] = (
            f"Measured: {outcome['loss_nats']:.3f} nats. The bet was off by "
            f"{outcome['error_nats']:+.3f} nats "
            f"({100 * outcome['error_log']:+.1f} %), and the run lies {where} its interval."
        )
    return found | less_numbers()


def less_numbers() -> dict[str, str]:
    """The rule, shown only budgets up to a tenth and up to a third of the largest."""
    found = {}
    for key, cut in (("tenth", 1e12), ("third", 3.2e12)):
        shown = record().up_to(cut)
        rows = np.flatnonzero(record().budget > CUT / SAME_BUDGET)
        size = float(shown.valleys().n_law(CUT))
        row = rows[np.argmin(np.abs(np.log(record().n_params[rows] / size)))]
        before = try_ways(shown)
        way = best_way(before)
        value = WAYS[way](shown)(record().n_params[row], record().n_tokens[row])
        spread, count = rms_error(before, way)
        found |= {
            f"{key}_way": way,
            f"{key}_foretold": f"{value:.2f}",
            f"{key}_measured": f"{record().loss[row]:.2f}",
            f"{key}_rms": f"{100 * spread:.1f} %",
            f"{key}_count": str(count),
            f"{key}_size": f"{size / 1e3:.0f} thousand",
        }
    found["full_size"] = f"{record().valleys().vertices[-1].n_params / 1e3:.0f} thousand"
    return found


def small_numbers() -> dict[str, str]:
    """The bet on `markov` over seeds: Chinchilla's law, and a straight line through the frontier."""
    chinchilla, power, measured = [], [], []
    for runs, large in recorded_small().values():
        n, d, loss = (
            np.array([getattr(r, k) for r in runs], dtype=float)
            for k in ("n_params", "n_tokens", "loss_nats")
        )
        law = fit_chinchilla(n, d, loss)
        c = FLOPS_PER_PARAM_TOKEN * n * d
        on = [i for i in range(len(c)) if loss[i] <= loss[c <= c[i]].min()]
        line = fit_power_line(c[on], loss[on])
        at = FLOPS_PER_PARAM_TOKEN * large.n_params * large.n_tokens
        chinchilla.append(math.log(float(law.loss(large.n_params, large.n_tokens)) / large.loss_nats))
        power.append(math.log(float(line(at)) / large.loss_nats))
        measured.append(large.loss_nats)
    return {
        "small_seeds": str(len(measured)),
        "small_chin": ", ".join(f"{100 * e:+.1f}" for e in chinchilla) + " %",
        "small_power": f"{100 * float(np.mean(power)):.0f} %".replace("-", "−"),
        "small_loss": f"{float(np.mean(measured)):.2f}",
    }


def bill_numbers() -> dict[str, str]:
    """The worked plan; Llama 3 405B; what an error of the loss costs."""
    plan = plan_loss(LAW, TARGET_LOSS, n_gpus=1024)
    found, assumed = plan.bill, Assumptions()
    big = FLOPS_PER_PARAM_TOKEN * 405e9 * 15.6e12
    theirs = bill(big, assumed)
    b = -fit_power_line(*bottoms()).exponent
    cheaper = plan_loss(LAW, TARGET_LOSS * 1.01)
    return {
        "plan_loss": f"{TARGET_LOSS:g}",
        "plan_flops": scientific(plan.flops),
        "plan_params": f"{plan.n_params / 1e9:.1f} billion",
        "plan_tokens": f"{plan.n_tokens / 1e9:.0f} billion",
        "plan_hours": f"{found.gpu_hours:,.0f}",
        "plan_days": f"{24 * found.days:.0f} hours",
        "plan_money": f"{found.money:,.0f}",
        "plan_mwh": f"{found.energy_kwh / 1000:.0f}",
        "plan_tonnes": f"{found.co2_kg / 1000:.0f}",
        "plan_slack": f"{100 * (1 - cheaper.flops / plan.flops):.0f} %",
        "big_flops": scientific(big),
        "big_hours": f"{theirs.gpu_hours / 1e6:.1f} million",
        "big_used": f"{big / (META_HOURS * 3600 * assumed.peak_flops_per_s):.0%}".replace("%", " %"),
        "wrong_3": f"{(1 - 0.03) ** (-1 / b):.2f}",
        "peak": f"{assumed.peak_flops_per_s / 1e12:.0f}",
    }


def serving_numbers() -> dict[str, str]:
    """The cheapest model over its life, at the loss that 1e23 FLOPs reach."""
    target = LAW.optimal(1e23).loss
    found = {"serve_loss": f"{target:.3f}", "serve_best": f"{LAW.optimal(1e23).n_params / 1e9:.0f} billion"}
    for served in SERVED:
        plan = plan_serving(LAW, target, prompt_tokens=served)
        key = f"{round(math.log10(served))}"
        found |= {
            f"serve_{key}_params": f"{plan.best.n_params / 1e9:.0f} billion",
            f"serve_{key}_ratio": f"{plan.best.tokens_per_param:.0f}",
            f"serve_{key}_saving": f"{100 * plan.saving:.0f} %",
            f"serve_{key}_size": f"{plan.size_ratio:.2f}",
        }
    return found


def repeat_numbers() -> dict[str, str]:
    """Repeated tokens by Muennighoff's law."""
    worth = {e: float(MUENNIGHOFF_2023.worth_of_epochs(e)) for e in EPOCHS}
    return {
        "r_star": f"{MUENNIGHOFF_2023.R_D:.1f}",
        **{f"worth_{e}": f"{100 * w:.0f} %" for e, w in worth.items()},
        "worth_limit": f"{1 + MUENNIGHOFF_2023.R_D:.1f}",
        "half_epochs": f"{MUENNIGHOFF_2023.epochs_worth(0.5):.0f}",
        "effective_40": f"{40 * worth[40]:.0f}",
    }


def model_numbers() -> dict[str, str]:
    """Published models beside two laws."""
    found = {}
    for model in MODELS:
        key = model.name.lower().replace(" ", "_").replace("-", "_")
        ours, theirs = place(model, LAW), place(model, HOFFMANN)
        found |= {
            f"{key}_ratio": f"{model.n_tokens / model.n_params:,.0f}",
            f"{key}_compute": f"{ours.compute:.1f}",
            f"{key}_compute_h": f"{theirs.compute:.1f}",
            f"{key}_size": f"{ours.size:.2f}",
            f"{key}_even": f"{ours.break_even / 1e12:.0f} trillion" if ours.break_even > 5e11 else "few",
            f"{key}_even_h": f"{theirs.break_even / 1e12:.0f} trillion"
            if theirs.break_even > 5e11
            else "few",
        }
    for name, law in (("b", LAW), ("h", HOFFMANN)):
        found[f"ratio_small_{name}"] = f"{law.optimal(1e20).tokens_per_param:.0f}"
        found[f"ratio_large_{name}"] = f"{law.optimal(1e26).tokens_per_param:.0f}"
    return found


def scientific(value: float) -> str:
    """1.2 · 10²³."""
    power = math.floor(math.log10(value))
    raised = str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{value / 10**power:.1f} · 10{raised}"


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_models() -> HTML:
    """Eight published models by the re-analysed law."""
    rows = []
    for model in MODELS:
        ours, theirs = place(model, LAW), place(model, HOFFMANN)
        rows.append(
            [
                f"{model.name} ({model.year})",
                f"{model.n_params / 1e9:g}",
                f"{model.n_tokens / 1e12:g}",
                f"{model.n_tokens / model.n_params:,.0f}",
                f"{ours.above:.3f}",
                f"{ours.compute:.2f}",
                f"{theirs.compute:.2f}",
                f"{ours.size:.2f}",
            ]
        )
    head = [
        "model", "N, billions", "D, trillions", "D/N", "nats above best", "compute over least", "by "
        "Hoffmann's",
        "size over optimum",
    ]  # fmt: skip
    return table(head, rows)


def figure_ways() -> None:
    """Errors of each way, three and ten times beyond what it was shown."""
    figure, axes = plots.new("A form that fits may still foretell badly", "error, %, signed", "", height=4.2)
    for place_, way in enumerate(reversed(list(WAYS))):
        mine = [one for one in tries() if one.way == way]
        for one in mine:
            far = one.factor > 4
            axes.plot(
                [100 * one.error], [place_], "s" if far else "o", markersize=8,
                color=plots.COLOURS[1 if far else 0], fillstyle="full" if far else "none",
            )  # fmt: skip
    axes.axvline(0, color=plots.GREY, linewidth=1)
    axes.set_yticks(range(len(WAYS)), list(reversed(list(WAYS))))
    axes.set_ylim(-0.6, len(WAYS) - 0.1)
    axes.annotate(
        "○ about 3 times beyond   ■ 10 times", (0.02, 0.97), xycoords="axes fraction", fontsize=9, va="top"
    )
    plots.show(figure, alt="Signed errors of six ways to foretell a larger run.")


def figure_bet() -> None:
    """The bottoms, two forms through them, and the committed interval."""
    flops, loss = bottoms()
    at = np.geomspace(8e10, 2.2e14, 60)
    line = fit_power_line(flops, loss)
    slope, level = np.polyfit(np.log(flops), loss, 1)
    figure, axes = plots.curve(
        {"power": (at, line(at)), "logarithm": (at, level + slope * np.log(at))},
        title="Five budgets shown, one bet ten times beyond", xlabel="training FLOPs, 6ND",
        ylabel="held-out loss, nats a token", log_x=True,
    )  # fmt: skip
    axes.plot(flops, loss, "o", color=plots.INK)
    foretold, outcome = recorded_bet()
    low, high = foretold["interval"]
    axes.plot([BUDGET] * 2, [low, high], color=plots.COLOURS[2], linewidth=5, alpha=0.6)
    axes.annotate("committed, 90 %", (BUDGET, high), xytext=(0, 16), textcoords="offset points", ha="center",
                  fontsize=9, color=plots.COLOURS[2], fontweight="bold")  # fmt: skip
    if outcome is not None:
        plots.mark(axes, BUDGET, float(outcome["loss_nats"]), "measured")
    plots.show(figure, alt="Loss over compute with the committed bet.")


def figure_serving() -> None:
    """Cost over a life, relative to the compute-optimal model's, over size."""
    target = LAW.optimal(1e23)
    sizes = target.n_params * np.geomspace(0.22, 2, 120)
    curves = {}
    for served in (0.0, *SERVED):
        cost = serving_cost(LAW, target.loss, sizes, prompt_tokens=served)
        own = float(serving_cost(LAW, target.loss, [target.n_params], prompt_tokens=served)[0])
        name = "none" if not served else f"{served / 1e12:g} trillion"
        curves[name] = (sizes / 1e9, cost / own)
    figure, axes = plots.curve(
        curves, title="The more a model is served, the smaller it should be", xlabel="parameters, billions",
        ylabel="cost of its life over the optimum's", log_x=True,
    )  # fmt: skip
    axes.set_ylim(0.4, 2)
    axes.set_xticks([7, 10, 20, 30, 50], ["7", "10", "20", "30", "50"])
    axes.minorticks_off()
    plots.show(figure, alt="Cost of a model's life over its size, for four amounts of serving.")


def figure_repeats() -> None:
    """Effective data over epochs."""
    epochs, few = np.geomspace(1, 100, 80), np.geomspace(1, 22, 60)
    worth = epochs * MUENNIGHOFF_2023.worth_of_epochs(epochs)
    figure, axes = plots.curve(
        {"if fresh": (few, few), "repeated": (epochs, worth)},
        title="Four epochs are nearly free, forty are not",
        xlabel="epochs",
        ylabel="worth, in passes of fresh text",
        log_x=True,
    )
    plots.reference(axes, 1 + MUENNIGHOFF_2023.R_D, "no number of repeats is worth more", at="left")
    axes.set_ylim(0, 24)
    axes.set_xticks([1, 2, 4, 10, 20, 40, 100], ["1", "2", "4", "10", "20", "40", "100"])
    axes.minorticks_off()
    plots.show(figure, alt="Worth of repeated text over epochs.")


def figure_models() -> None:
    """Tokens a parameter over compute: eight models, two laws."""
    at = np.geomspace(1e23, 6e25, 80)
    curves = {
        name: (at, [law.optimal(c).tokens_per_param for c in at])
        for name, law in (("re-analysed", LAW), ("Hoffmann's", HOFFMANN))
    }
    figure, axes = plots.curve(
        curves, title="Nobody stays on the optimum's line", xlabel="training FLOPs, 6ND",
        ylabel="tokens a parameter", log_x=True, log_y=True,
    )  # fmt: skip
    for model in MODELS:
        axes.plot([model.flops], [model.n_tokens / model.n_params], "o", color=plots.INK)
        right = model.name not in ("GPT-3", "LLaMA-65B", "Llama 3 405B")
        down = model.name == "Chinchilla"
        axes.annotate(
            model.name,
            (model.flops, model.n_tokens / model.n_params),
            xytext=(6 if right else -6, -13 if down else 3),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=9,
        )
    axes.set_xlim(8e22, 2e26)
    plots.show(figure, alt="Tokens a parameter of eight published models over compute.")
