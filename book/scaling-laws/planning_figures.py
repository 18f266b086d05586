"""Tables and figures of the chapter `planning`: from the record, published laws and the package's plans.

Sentences that depend on how a bet came out are chosen here, by the numbers. No torch is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from IPython.display import HTML

from scalelab.core.records import RunRecord
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab import plots
from scalelab.lab.records import study_runs
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.lab.scaling_laws.extrapolation import (
    SAME_SIZE,
    WAYS,
    Budgets,
    Played,
    budgets_of,
    play,
    rms_error,
    try_ways,
)
from scalelab.lab.scaling_laws.published import MODELS, PublishedModel, place
from scalelab.lab.scaling_laws.recorded_bets import (
    BET,
    CUT,
    NEXT,
    all_budgets,
    play_next,
    recorded_bet,
    recorded_small,
    shown_runs,
)
from scalelab.lab.scaling_laws.recorded_sweeps import PACKAGES
from scalelab.laws import fit_chinchilla, fit_floor_line, fit_power_line
from scalelab.laws.data_constrained import MUENNIGHOFF_2023
from scalelab.plan import Assumptions, bill, plan_loss, plan_serving, serving_cost

LAW = PUBLISHED["Besiroglu, printed"]
HOFFMANN = PUBLISHED["Hoffmann's source"]
TARGET_LOSS = 2.1  # nats per token by that law: the worked plan
LLAMA = next(model for model in MODELS if model.name == "Llama 3 405B")
SERVED = (1e11, 1e12, 1e13)
EPOCHS = (2, 4, 8, 16, 40)
COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@lru_cache(maxsize=1)
def record() -> Budgets:
    """The sweep's runs up to the cut: what the committed prediction was shown."""
    return budgets_of(shown_runs())


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
    """What the chapter's prose takes from a formula, a fit or the record, but for `small_numbers`."""
    return {
        **way_numbers(),
        **bet_numbers(),
        **less_numbers(),
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
    found["far_power"] = f"{float(line(BET)):.2f}"
    found["far_log"] = f"{level + slope * math.log(BET):.2f}"
    found["zero_log"] = scientific(math.exp(-level / slope))
    gap = float(line(BET)) - (level + slope * math.log(BET))
    found["gap_share"] = f"{100 * gap / (loss[-1] - float(line(BET))):.0f} %"
    tuned = [run for grid in ("rates", "rates-large") for run in study_runs(PACKAGES, grid)]
    found["rates_to"] = scientific(max(six_nd(run) for run in tuned))
    return found


def bet_numbers() -> dict[str, str]:
    """The committed prediction, what came of it, and the sweep's next budget by the same fit."""
    foretold, outcome = recorded_bet()
    run, (low, high) = foretold["run"], foretold["interval"]
    boot = foretold["interval_by_bootstrap"]
    return {
        "bet_loss": f"{foretold['loss_nats']:.3f}",
        "bet_low": f"{low:.3f}",
        "bet_high": f"{high:.3f}",
        "bet_boot": f"{boot[0]:.3f} to {boot[1]:.3f}",
        "bet_way": foretold["way"],
        "bet_params": f"{run['n_params']:,}",
        "bet_tokens": f"{run['n_tokens'] / 1e6:.1f} million",
        "bet_times": f"{run['flops_6nd'] / CUT:.1f}",
        "bet_outcome": bet_sentences(foretold, outcome),
        "bet_verdict": bet_verdict(foretold, outcome),
        "next_outcome": next_sentences(play_next(n_draws=50)),
    }


def bet_sentences(foretold: dict[str, Any], outcome: dict[str, Any] | None) -> str:
    """What came of the bet, and of the ways that it was not made by."""
    run = foretold["run"]
    bets = {way: WAYS[way](record())(run["n_params"], run["n_tokens"]) for way in WAYS if way != SAME_SIZE}
    if outcome is None:
        others = ", ".join(f"“{way}” {bet:.2f}" for way, bet in bets.items() if way != foretold["way"])
        return f"The run itself is not in the record yet. From the same runs the other ways make: {others}."
    loss = outcome["loss_nats"]
    errors = {way: math.log(bet / loss) for way, bet in bets.items()}
    closest = min(errors, key=lambda way: abs(errors[way]))
    others = ", ".join(f"“{way}” by {signed(errors[way])}" for way in bets if way != foretold["way"])
    best = "None came closer." if closest == foretold["way"] else f"“{closest}” came closest."
    return (
        f"Measured: {loss:.3f} nats. {off_by(foretold['loss_nats'], loss)} "
        f"{where(loss, foretold['interval'], 'the interval')} "
        f"From the same runs the other ways would have erred: {others}. {best}"
    )


def bet_verdict(foretold: dict[str, Any], outcome: dict[str, Any] | None) -> str:
    """What one score is worth: chosen by whether the run lies inside."""
    if outcome is None:
        return "Until it is, judge the rule by how it would have done before."
    narrow = (
        foretold["interval_by_bootstrap"][0] <= outcome["loss_nats"] <= foretold["interval_by_bootstrap"][1]
    )
    usual = foretold["rms_errors"][foretold["way"]]["rms"]
    text = (
        f"That is {abs(outcome['error_log']) / usual:.1f} times the usual error of the backtest. The "
        "bootstrap's interval, which knows nothing of the form, would have "
        f"{'held it too' if narrow else 'missed it'}. "
    )
    if outcome["inside"]:
        return text + "One hit proves little: nine in ten should hit."
    return text + "One in ten should miss; a second miss would be a verdict."


def next_sentences(played: Played | None) -> str:
    """The sweep's next budget, which the fit was not shown either."""
    if played is None:
        return f"(The sweep goes on to a budget of {scientific(NEXT)}; it is not in the record yet.)"
    bottoms_ = [v for v in all_budgets().valleys().vertices if v.bracketed]
    bottom = [v for v in bottoms_ if abs(math.log(v.flops / played.budget)) < 0.05]
    text = (
        f"The sweep has since gone one step further, to {scientific(played.budget)} FLOPs. There the fit "
        f"calls for {played.wanted / 1e3:.0f} thousand parameters; the nearest run has "
        f"{played.n_params / 1e3:.0f} thousand. Foretold by the same rule: {played.foretold.loss:.3f} nats, "
        f"{played.foretold.low:.3f} to {played.foretold.high:.3f}. Measured: {played.measured:.3f}. "
        f"{off_by(played.foretold.loss, played.measured)} "
        f"{where(played.measured, (played.foretold.low, played.foretold.high), 'its interval')}"
    )
    if bottom:
        line = fit_power_line(*bottoms())
        n_runs = int(np.sum(np.abs(np.log(all_budgets().budget / played.budget)) < 0.05))
        text += (
            f" The valley's bottom, which smooths {COUNTS[n_runs]} runs, lies at {bottom[0].loss:.3f} nats "
            f"and {bottom[0].n_params / 1e3:.0f} thousand parameters; the curve says "
            f"{float(line(played.budget)):.3f}."
        )
    return text


def off_by(foretold: float, measured: float) -> str:
    """How far, and on which side."""
    error = math.log(foretold / measured)
    side = (
        "too high: the run did better than foretold"
        if error > 0
        else "too low: the run did worse than foretold"
    )
    return f"The bet was {abs(foretold - measured):.3f} nats, {100 * abs(error):.1f} %, {side}."


def where(value: float, interval: Any, name: str) -> str:
    """Inside or outside, and by how much it misses."""
    low, high = interval
    if low <= value <= high:
        return f"The run lies inside {name}."
    return f"The run lies outside {name}, by {max(low - value, value - high):.3f} nats."


def less_numbers() -> dict[str, str]:
    """The rule, shown only budgets up to a tenth and up to a third of the largest shown."""
    found = {}
    for key, cut in (("tenth", 1e12), ("third", 3.2e12)):
        one = play(record(), cut, CUT, n_draws=50)
        found |= {
            f"{key}_way": one.foretold.way,
            f"{key}_foretold": f"{one.foretold.loss:.2f}",
            f"{key}_measured": f"{one.measured:.2f}",
            f"{key}_where": "inside" if one.inside else "outside",
            f"{key}_rms": f"{100 * one.foretold.rms:.1f} %",
            f"{key}_count": COUNTS[one.foretold.n_errors],
            f"{key}_size": f"{one.wanted / 1e3:.0f} thousand",
        }
    found["full_size"] = f"{record().valleys().vertices[-1].n_params / 1e3:.0f} thousand"
    return found


def small_numbers() -> dict[str, str]:
    """The bet on `markov` over seeds: two laws' errors, and which way each backtest takes."""
    chinchilla, power, chosen = [], [], []
    for runs, large in recorded_small().values():
        n, d, loss = small_columns(runs)
        law = fit_chinchilla(n, d, loss)
        on = frontier(n * d, loss)
        line = fit_power_line(FLOPS_PER_PARAM_TOKEN * (n * d)[on], loss[on])
        chinchilla.append(math.log(float(law.loss(large.n_params, large.n_tokens)) / large.loss_nats))
        power.append(math.log(float(line(six_nd(large))) / large.loss_nats))
        chosen.append(small_choice(n, d, loss))
    counted = {name: chosen.count(name) for name in dict.fromkeys(sorted(chosen))}
    shown = max(six_nd(run) for run in runs)
    return {
        "small_seeds": COUNTS[len(power)],
        "small_chin": ", ".join(signed(e) for e in chinchilla),
        "small_power": signed(float(np.mean(power))),
        "small_choices": " and ".join(f"{name} for {COUNTS[count]}" for name, count in counted.items()),
        "small_shown": scientific(shown),
        "small_times": f"{six_nd(large) / shown:.1f}",
    }


def small_columns(runs: list[RunRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, tokens and losses, [R] each."""
    table_ = np.array([(run.n_params, run.n_tokens, run.loss_nats) for run in runs], dtype=float)
    return table_[:, 0], table_[:, 1], table_[:, 2]


def frontier(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Rows, cheapest first, that no cheaper run beats."""
    return np.array([i for i in np.argsort(cost) if loss[i] <= loss[cost <= cost[i]].min()])


def small_choice(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> str:
    """The way whose backtest on these runs errs least, as the lab does it."""
    c = FLOPS_PER_PARAM_TOKEN * n * d
    on = frontier(c, loss)
    errors: dict[str, list[float]] = {}
    for cut in np.sort(c)[8:-1:2]:
        ahead = [i for i in on if cut < c[i] <= 12 * cut]
        fitted = np.array([i for i in on if c[i] <= cut])
        rows = c <= cut
        law = fit_chinchilla(n[rows], d[rows], loss[rows])
        slope, level = np.polyfit(np.log(c[fitted]), loss[fitted], 1)
        lines = {
            "a power law": fit_power_line(c[fitted], loss[fitted]),
            "a power law with a floor": fit_floor_line(c[fitted], loss[fitted]),
            "the logarithm": lambda x, slope=slope, level=level: level + slope * np.log(x),
        }
        for name, line in lines.items():
            errors.setdefault(name, []).extend(np.log(np.atleast_1d(line(c[ahead])) / loss[ahead]))
        errors.setdefault("Chinchilla's law", []).extend(np.log(law.loss(n[ahead], d[ahead]) / loss[ahead]))
    return min(errors, key=lambda name: float(np.mean(np.square(errors[name]))))


def bill_numbers() -> dict[str, str]:
    """The worked plan; Llama 3 405B; what an error of the loss costs."""
    plan = plan_loss(LAW, TARGET_LOSS, n_gpus=1024)
    found, assumed = plan.bill, Assumptions()
    theirs = bill(LLAMA.flops, assumed)
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
        "plan_price": f"{assumed.price_per_gpu_hour:g}",
        "plan_watts": f"{assumed.watts:.0f}",
        "plan_pue": f"{assumed.pue:g}",
        "plan_grid": f"{assumed.grid_kg_per_kwh:g}",
        "mfu": f"{100 * assumed.mfu:.0f} %",
        "big_flops": scientific(LLAMA.flops),
        "big_hours": f"{theirs.gpu_hours / 1e6:.1f} million",
        "big_card": f"{(LLAMA.device_hours or 0) / 1e6:.2f} million",
        "big_used": f"{100 * (LLAMA.used or 0):.0f} %",
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
    """Published models beside two laws, and beside their own figures."""
    found = {}
    for model in MODELS:
        key = model.name.lower().replace(" ", "_").replace("-", "_")
        ours, theirs = place(model, LAW), place(model, HOFFMANN)
        found |= {
            f"{key}_ratio": f"{model.tokens_per_param:,.0f}",
            f"{key}_compute": f"{ours.compute:.1f}",
            f"{key}_compute_h": f"{theirs.compute:.1f}",
            f"{key}_size": f"{ours.size:.2f}",
            f"{key}_even": trillions(ours.break_even),
            f"{key}_even_h": trillions(theirs.break_even),
        }
        if model.stated_over_6nd is not None:
            found[f"{key}_over"] = f"{model.stated_over_6nd:.2f}"
        if model.used is not None:
            found[f"{key}_used"] = f"{100 * model.used:.0f} %"
    large = [place(model, LAW).size for model in MODELS if model.name in ("GPT-3", "Gopher", "PaLM")]
    found["large_sizes"] = f"{min(large):.1f} to {max(large):.1f}"
    found["pythia_70m_ratio"] = f"{299_892_736_000 / 70.4e6:,.0f}"
    found["used_median"] = f"{100 * float(np.median([m.used for m in MODELS if m.used is not None])):.0f} %"
    gopher = next(model for model in MODELS if model.name == "Gopher")
    # scores and mixing, both ways: 3 times 4 T d for each layer and token, T = 2,048
    attention = 12 * gopher.more["n_layers"] * 2048 * gopher.more["d_model"] * gopher.n_tokens
    found["gopher_attention"] = f"{100 * attention / gopher.flops:.0f} %"
    for name, law in (("b", LAW), ("h", HOFFMANN)):
        found[f"ratio_small_{name}"] = f"{law.optimal(1e20).tokens_per_param:.0f}"
        found[f"ratio_large_{name}"] = f"{law.optimal(1e26).tokens_per_param:.0f}"
    return found


def trillions(tokens: float) -> str:
    """Tokens in words; "no number of" for nan."""
    if math.isnan(tokens):
        return "no number of"
    return f"{tokens / 1e12:.0f} trillion" if tokens > 9.5e11 else f"{tokens / 1e9:.0f} billion"


def six_nd(run: RunRecord) -> float:
    """6 N D of a run, N all parameters."""
    return FLOPS_PER_PARAM_TOKEN * run.n_params * run.n_tokens


def signed(error: float) -> str:
    """A log error in per cent: −1.2 %."""
    return f"{100 * error:+.1f} %".replace("-", "−")


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
    """Published models by the re-analysed law, and by Hoffmann's own parameters."""
    body = []
    for model in MODELS:
        ours, theirs = place(model, LAW), place(model, HOFFMANN)
        size = f"{model.n_params / 1e9:g}"
        body.append(
            [
                f"{model.name} ({model.year})",
                f"{model.active_params / 1e9:g} of {size}" if model.active_params else size,
                f"{model.n_tokens / 1e12:.3g}",
                f"{model.tokens_per_param:,.0f}",
                f"{ours.above:.3f}",
                f"{ours.compute:.2f}",
                f"{theirs.compute:.2f}",
                f"{ours.size:.2f}",
            ]
        )
    head = ["model", "N, billions", "D, trillions", "D/N", "nats above best", "compute over least",
            "by Hoffmann's", "size over optimum"]  # fmt: skip
    return table(head, body)


def table_printed() -> HTML:
    """FLOPs and hours as printed, over what N and D make of them."""
    body = []
    for model in MODELS:
        if model.stated_flops is None and model.device_hours is None:
            continue
        body.append(
            [
                model.name,
                "–" if model.stated_flops is None else scientific(model.stated_flops),
                "–" if model.stated_over_6nd is None else f"{model.stated_over_6nd:.2f}",
                "–" if model.device_hours is None else f"{model.device_hours / 1e6:.2f}",
                device(model),
                "–" if model.used is None else f"{100 * model.used:.0f} %",
                "–" if model.stated_mfu is None else f"{100 * model.stated_mfu:.0f} %",
            ]
        )
    head = ["model", "FLOPs, printed", "over 6ND", "hours, millions", "of", "6ND over peak", "MFU, printed"]
    return table(head, body)


def device(model: PublishedModel) -> str:
    """What the hours are of, in a word."""
    known = {"Gopher": "TPU v3", "DeepSeek-V3": "H800"}
    if model.hardware is None:
        return known.get(model.name, "–")
    return model.hardware.split("-")[0].upper() if "tpu" not in model.hardware else "TPU v4"


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
    """The bottoms, two forms through them, the committed interval, and what came."""
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
    axes.plot([BET] * 2, [low, high], color=plots.COLOURS[2], linewidth=5, alpha=0.6)
    axes.annotate("committed, 90 %", (BET, high), xytext=(0, 36), textcoords="offset points", ha="center",
                  fontsize=9, color=plots.COLOURS[2], fontweight="bold")  # fmt: skip
    played = play_next(n_draws=50)
    if played is not None:
        ring(axes, played.budget, played.measured, "next budget", (-8, 9))
    if outcome is not None:
        ring(axes, BET, float(outcome["loss_nats"]), "measured", (8, 1))
    plots.show(figure, alt="Loss over compute with the committed bet.")


def ring(axes: Any, x: float, y: float, name: str, at: tuple[float, float]) -> None:
    """A ring round a point, its name so many points right of it and above."""
    axes.plot([x], [y], "o", markersize=9, markerfacecolor="none", markeredgecolor=plots.INK)
    axes.annotate(name, (x, y), xytext=at, textcoords="offset points", fontsize=9)


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
    axes.set_xlim(0.9, 100)
    axes.set_ylim(0, 24)
    axes.set_xticks([1, 2, 4, 10, 20, 40, 100], ["1", "2", "4", "10", "20", "40", "100"])
    axes.minorticks_off()
    plots.show(figure, alt="Worth of repeated text over epochs.")


# Where a model's name stands beside its point: (points right, points up), and the side that it is read from.
_NAMES = {
    "GPT-3": (-7, -3, "right"), "Gopher": (7, -3, "left"), "Chinchilla": (7, -12, "left"),
    "PaLM": (7, -3, "left"), "LLaMA-65B": (-6, 6, "right"), "Pythia-12B": (7, 2, "left"),
    "Llama 2 70B": (7, 3, "left"), "Llama 3 8B": (7, -2, "left"), "Llama 3 70B": (7, -10, "left"),
    "Llama 3 405B": (7, -11, "left"), "Qwen2.5-72B": (7, 3, "left"), "DeepSeek-V3": (-5, 7, "right"),
    "OLMo 2 13B": (-7, -3, "right"), "SmolLM2": (-7, -3, "right"),
}  # fmt: skip


def figure_models() -> None:
    """Tokens a parameter over compute: published models, two laws' optima."""
    at = np.geomspace(1e22, 8e25, 80)
    curves = {
        name: (at, [law.optimal(c).tokens_per_param for c in at])
        for name, law in (("re-analysed", LAW), ("Hoffmann's", HOFFMANN))
    }
    figure, axes = plots.curve(
        curves, title="From one token a parameter to six thousand", xlabel="training FLOPs, 6ND",
        ylabel="tokens a parameter", log_x=True, log_y=True,
    )  # fmt: skip
    figure.set_size_inches(7.0, 4.6)
    for model in MODELS:
        x, y = model.flops, model.tokens_per_param
        moe = model.active_params is not None
        axes.plot([x], [y], "o", color=plots.INK, markerfacecolor="white" if moe else plots.INK)
        right, up, side = _NAMES[model.name]
        axes.annotate(model.name, (x, y), xytext=(right, up), textcoords="offset points", ha=side, fontsize=9)
    axes.set_xlim(6e21, 4e26)
    axes.set_ylim(0.7, 1.4e4)
    plots.show(figure, alt="Tokens a parameter of published models over compute.")
