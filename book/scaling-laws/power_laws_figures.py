"""Tables and figures of the chapter `power-laws`, computed from published laws and the recorded sweeps.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import functools
import io
import math

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.figure import Figure

from scalelab.cost import require_accelerator
from scalelab.lab import plots
from scalelab.lab.scaling_laws.recorded_sweeps import (
    best_of_budgets,
    columns,
    known_budgets,
    over_tokens,
    packages_runs,
    recorded,
    recorded_exact_loss,
    seed_noise,
    shape_scatter,
)
from scalelab.laws import ChinchillaLaw, FormComparison, PowerFit, compare_forms, fit_power_law
from scalelab.laws.intervals import Interval
from scalelab.laws.power_draws import PowerDraws

Floats = np.ndarray
HOFFMANN = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv:2203.15556, eq. 10
KAPLAN_N_C, KAPLAN_ALPHA_N = 8.8e13, 0.076  # arXiv:2001.08361, table 5: L(N), non-embedding parameters
LLAMA_N, LLAMA_D = 8.03e9, 15e12
GPT2_N = 1.5e9
GPT2_NON_EMBEDDING = 12 * 48 * 1600**2  # 48 layers of width 1,600: 12 d² each, without biases and norms
H100_FLOPS_PER_S = require_accelerator("h100").peak_flops["bf16"]
FORMS = ("power", "power_floor", "log")
NAMES = {"power": "power", "power_floor": "power + floor", "log": "logarithm"}


@functools.cache
def sizes() -> tuple[Floats, Floats]:
    """Parameters and losses of the sweep in N, all seeds."""
    n, _, loss = columns(recorded("sizes"))
    return n, loss


@functools.cache
def small() -> tuple[Floats, Floats]:
    """Those of the sizes that a fit may see."""
    n, loss = sizes()
    return n[n < n.max()], loss[n < n.max()]


@functools.cache
def law(form: str) -> PowerFit:
    """A form fitted to the small sizes, all seeds; seeds of a size count as one group."""
    n, loss = small()
    return fit_power_law(n, loss, form=form, groups=n)  # type: ignore[arg-type]


@functools.cache
def weighted_law(smooth: bool = False) -> PowerFit:
    """The law with a floor, each size weighed by how well its seeds agree; or by a power law of that."""
    n, loss = small()
    spread = np.array([np.std(loss[n == size], ddof=1) for size in n])
    if smooth:
        spread = np.exp(np.polyval(np.polyfit(np.log(n), np.log(spread), 1), np.log(n)))
    return fit_power_law(n, loss, form="power_floor", groups=n, weights=1 / spread**2)


@functools.cache
def law_without_smallest() -> PowerFit:
    """The law with a floor, the smallest size left out."""
    n, loss = small()
    kept = n > n.min()
    return fit_power_law(n[kept], loss[kept], form="power_floor", groups=n[kept])


@functools.cache
def draws(grouped: bool = True) -> PowerDraws:
    """Refits of the law with a floor."""
    n, _ = small()
    return law("power_floor").bootstrap(600, 0, groups=n if grouped else np.arange(len(n)))


@functools.cache
def compared() -> FormComparison:
    """The forms on the small sizes, the two largest of them held out."""
    n, loss = small()
    return compare_forms(n, loss, forms=FORMS, hold_out=2, groups=n)  # type: ignore[arg-type]


@functools.cache
def token_sweeps() -> dict[int, tuple[Floats, Floats]]:
    """Tokens and losses of the sweeps in D, by size."""
    n, d, loss = columns(recorded("tokens"))
    return {int(size): (d[n == size], loss[n == size]) for size in np.unique(n)}


@functools.cache
def token_law(size: int) -> PowerFit:
    """The law with a floor of one sweep in D."""
    d, loss = token_sweeps()[size]
    return fit_power_law(d, loss, form="power_floor", groups=d)


@functools.cache
def text_by_size() -> dict[int, tuple[Floats, Floats]]:
    """Tokens and losses on text of each size that has three budgets or more."""
    return over_tokens(packages_runs("isoflop"), at_least=3)


@functools.cache
def frontier() -> tuple[Floats, Floats]:
    """6ND and best loss of each budget on text whose minimum lies inside."""
    return best_of_budgets(packages_runs("isoflop"))


def large() -> tuple[float, float]:
    """Parameters and mean loss of the model that no fit saw."""
    n, loss = sizes()
    return float(n.max()), float(loss[n == n.max()].mean())


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a law or a record, ready to print."""
    found = {
        **bet_numbers(),
        **noise_numbers(),
        **judge_numbers(),
        **floor_numbers(),
        **text_numbers(),
        **published_numbers(),
    }
    return {name: value.replace("%", "\u00a0%") for name, value in found.items()}


def bet_numbers() -> dict[str, str]:
    """The straight line, the law with a floor, and the model ten times larger."""
    n, loss = small()
    n_large, found = large()
    line, bent = law("power"), law("power_floor")
    foretold = float(line.loss(n_large))
    floored = float(bent.loss(n_large))
    prediction = draws().prediction_interval(n_large)
    confidence = draws().confidence_interval(n_large)
    as_runs = draws(grouped=False).confidence_interval(n_large)
    weighed = weighted_law()
    of_line = line.bootstrap(600, 0, groups=n).prediction_interval(n_large)
    dropped = law_without_smallest()
    of_dropped = dropped.bootstrap(600, 0)
    one_each = [float(np.mean(loss[n == size])) for size in np.unique(n)]
    return {
        "small_count": in_words(len(np.unique(n))),
        "small_low": f"{n.min():,.0f}",
        "small_high": f"{n.max():,.0f}",
        "large_times": f"{n_large / n.max():.1f}",
        "large_loss": f"{found:.3f}",
        "line_prediction": interval_of(of_line),
        "line_r2": f"{line.r2:.3f}",
        "line_b": f"{line.b:.3f}",
        "line_foretold": f"{foretold:.2f}",
        "line_error": f"{found - foretold:.2f}",
        "span_small": f"{max(one_each) - min(one_each):.2f}",
        "truth": f"{recorded_exact_loss():.3f}",
        "below_truth": f"{recorded_exact_loss() - foretold:.2f}",
        "floor_foretold": f"{floored:.3f}",
        "floor_error": f"{abs(found - floored):.3f}",
        "times_better": f"{(found - foretold) / abs(found - floored):.0f}",
        "law_b": f"{bent.b:.2f}",
        "law_c": f"{bent.c:.3f}",
        "law_c_interval": interval_of(draws().interval("c")),
        "weighted_foretold": f"{float(weighed.loss(n_large)):.3f}",
        "weighted_c": f"{weighed.c:.3f}",
        "weighted_smooth": f"{float(weighted_law(smooth=True).loss(n_large)):.3f}",
        "law_b_interval": interval_of(draws().interval("b")),
        "dropped_b": f"{dropped.b:.2f}",
        "dropped_foretold": f"{float(dropped.loss(n_large)):.3f}",
        "dropped_prediction": interval_of(of_dropped.prediction_interval(n_large)),
        "log_r2": f"{law('log').r2:.3f}",
        "log_foretold": f"{float(law('log').loss(n_large)):.2f}",
        "prediction": interval_of(prediction),
        "confidence": interval_of(confidence),
        "width_sizes": f"{confidence.width:.2f}",
        "width_runs": f"{as_runs.width:.2f}",
        "log_zero": f"{law('log').scale_for(0.0) / 1e6:.0f} million",
    }


def noise_numbers() -> dict[str, str]:
    """Standard deviations between seeds, smallest and largest size."""
    n, loss = sizes()
    by_size = {size: float(np.std(loss[n == size], ddof=1)) for size in np.unique(n)}
    runs = sorted(recorded("sizes"), key=lambda run: run.n_params)
    counts = {int(np.sum(n == size)) for size in np.unique(n)}
    return {
        "noise_smallest": f"{by_size[n.min()]:.3f}",
        "noise_largest": f"{by_size[n.max()]:.3f}",
        "noise_smallest_share": f"{by_size[n.min()] / loss[n == n.min()].mean():.1%}",
        "noise_largest_share": f"{by_size[n.max()] / loss[n == n.max()].mean():.2%}",
        "count_smallest": f"{runs[0].n_params / runs[0].n_params_non_embedding:.1f}",
        "count_largest": f"{runs[-1].n_params / runs[-1].n_params_non_embedding:.1f}",
        "noise_seeds": in_words(min(counts)),
    }


def judge_numbers() -> dict[str, str]:
    """The forms on held-out sizes."""
    found = compared()
    return {
        "held_reach": f"{found.reach:.1f}",
        **{f"held_{form}": f"{found.row(form).held_out_rmse:.3f}" for form in FORMS},  # type: ignore[arg-type]
    }


def floor_numbers() -> dict[str, str]:
    """Floors of the two sweeps in D, and of the sweep in N."""
    few, many = sorted(token_sweeps())
    result = {"floor_n_small": f"{few:,}", "floor_n_large": f"{many:,}"}
    for name, size in (("small", few), ("large", many)):
        fit = token_law(size)
        interval = fit.profile_floor().interval
        result |= {
            f"floor_{name}": f"{fit.c:.3f}",
            f"floor_{name}_interval": f"[{interval.low:.3f}, {interval.high:.3f}]",
        }
    lowest = min(float(loss.min()) for _, loss in token_sweeps().values())
    d, loss = token_sweeps()[many]
    by_trunk = [fit_power_law(d[k], loss[k], form="power_floor").c for k in trunks(many)]
    of_sizes = law("power_floor")
    above = float(of_sizes.loss(few)) - of_sizes.c
    return {
        **result,
        "floor_large_width": f"{interval.width / recorded_exact_loss():.1%}",
        "floor_above": f"{above:.3f}",
        "floor_expected": f"{recorded_exact_loss() + above:.3f}",
        "lowest_seen": f"{lowest:.3f}",
        "d_max": f"{d.max():,.0f}",
        "floor_trunks": ", ".join(f"{floor:.3f}" for floor in sorted(by_trunk)),
    }


def trunks(size: int) -> list[np.ndarray]:
    """Which runs of a sweep in D branch off the same trunk: a mask for each seed."""
    seeds = np.array([run.seed for run in recorded("tokens") if run.n_params == size])
    return [seeds == seed for seed in np.unique(seeds)]


def text_numbers() -> dict[str, str]:
    """Real text: the frontier, two forms on its small end, and what they foretell at its large end."""
    flops, loss = frontier()
    known = known_budgets(flops)
    power, log = (fit_power_law(flops[known], loss[known], form=form) for form in ("power", "log"))
    of_all = fit_power_law(flops, loss, form="log")
    zero = of_all.scale_for(0.0)
    foretold = [float(fit.loss(flops[-1])) for fit in (power, log)]
    return {
        "text_budgets": in_words(len(flops)),
        "text_known": in_words(int(known.sum())),
        "text_times": f"{flops.max() / flops[known].max():.0f}",
        "text_found": f"{loss[-1]:.3f}",
        "text_power": f"{foretold[0]:.3f}",
        "text_log": f"{foretold[1]:.3f}",
        "text_power_error": f"{foretold[0] - loss[-1]:+.3f}".replace("-", "−"),
        "text_log_error": f"{foretold[1] - loss[-1]:+.3f}".replace("-", "−"),
        "text_power_r2": share(power.r2),
        "text_log_r2": share(log.r2),
        "text_exponent": f"{fit_power_law(flops, loss, form='power').b:.3f}",
        "text_zero": power_of_ten(zero),
        "text_zero_s": f"{zero / H100_FLOPS_PER_S:,.0f}",
        "text_all_log_r2": share(of_all.r2),
        "text_bends": bends_in_words(),
        "text_floor": floor_in_words(),
        "text_noise": noise_in_words(abs(foretold[0] - foretold[1])),
        "text_bets": bets_in_words(),
    }


def bends_in_words() -> str:
    """In how many sizes the exponent falls as text is added."""
    steps = [-np.diff(np.log(loss)) / np.diff(np.log(d)) for d, loss in text_by_size().values()]
    falls = sum(step[-1] < step[0] for step in steps)
    of_all = "all" if falls == len(steps) else f"{in_words(falls)} of"
    return f"In {of_all} {in_words(len(steps))} sizes with three budgets or more"


def floor_in_words() -> str:
    """Whether a floor shows in the frontier."""
    flops, loss = frontier()
    fit = fit_power_law(flops, loss, form="power_floor")
    interval = fit.profile_floor().interval
    if interval.low <= 0:
        return f"no floor can be made out: any from 0 to {interval.high:.2f} fits as well"
    return f"a floor of {fit.c:.2f} can just be made out, 90 % interval {interval_of(interval)}"


def noise_in_words(apart: float) -> str:
    """How far the forms' bets lie apart, beside how far single runs scatter."""
    shapes, seeds = shape_scatter(packages_runs("isoflop")), seed_noise()
    said = f"Single shapes lie {shapes:.3f} nats off a smooth curve through their budget"
    if seeds is not None:
        said += f", seeds of one shape differ by {seeds.nats:.3f} (standard deviations)"
    times = apart / max(shapes, seeds.nats if seeds else 0.0)
    said += f"; the two forms' bets are {apart:.3f} apart, {times:.1f} times the larger of these"
    said = said if seeds else said.replace("the larger of these", "that")
    return said + (", so the choice of the form outweighs the noise." if times > 1.5 else ".")


def bets_in_words() -> str:
    """Every bet from three budgets or more on one beyond: how often the higher R² took the better form."""
    flops, loss = frontier()
    n_bets = n_right = n_power = 0
    for n_fitted in range(3, len(flops)):
        fits = [fit_power_law(flops[:n_fitted], loss[:n_fitted], form=form) for form in ("power", "log")]
        for target in range(n_fitted, len(flops)):
            power, log = (abs(float(fit.loss(flops[target])) - loss[target]) for fit in fits)
            n_bets += 1
            n_power += power < log
            n_right += (power < log) == (fits[0].r2 > fits[1].r2)
    return (
        f"Of the {in_words(n_bets)} bets that can be made here, from three budgets or more on a larger one, "
        f"the power won {in_words(n_power)}, and the form with the higher R² won {in_words(n_right)}."
    )


def in_words(number: int) -> str:
    """A small count as a word."""
    words = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if 0 <= number < len(words) else str(number)


def interval_of(interval: Interval) -> str:
    """Both ends, two digits."""
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def share(r2: float) -> str:
    """An R² to as many digits as part it from 1."""
    digits = max(3, 1 - math.floor(math.log10(1 - r2))) if r2 < 1 else 3
    return f"{r2:.{digits}f}"


def published_numbers() -> dict[str, str]:
    """Hoffmann's law at Llama-3-8B and GPT-2, and Kaplan's exponent."""
    of_size = HOFFMANN.A / LLAMA_N**HOFFMANN.alpha
    of_text = HOFFMANN.B / LLAMA_D**HOFFMANN.beta
    total = HOFFMANN.E + of_size + of_text
    slope = HOFFMANN.alpha * of_size / total
    ten = float(HOFFMANN.loss(10 * LLAMA_N, LLAMA_D))
    gpt2_size = HOFFMANN.A / GPT2_N**HOFFMANN.alpha
    return {
        "llama_size": f"{of_size:.3f}",
        "llama_text": f"{of_text:.3f}",
        "llama_total": f"{total:.3f}",
        "llama_floor_d": f"{HOFFMANN.E + of_size:.3f}",
        "llama_floor_n": f"{HOFFMANN.E + of_text:.3f}",
        "llama_slope": f"{slope:.3f}",
        "llama_slope_times": f"{HOFFMANN.alpha / slope:.0f}",
        "llama_ten": f"{ten:.3f}",
        "llama_ten_tangent": f"{total * 10**-slope:.3f}",
        "gpt2_size": f"{gpt2_size:.3f}",
        "gpt2_floor_d": f"{HOFFMANN.E + gpt2_size:.3f}",
        "hoffmann_halving": f"{2 ** (1 / HOFFMANN.alpha):.1f}",
        "kaplan_doubling": f"{1 - 2**-KAPLAN_ALPHA_N:.1%}",
        "kaplan_halving": f"{2 ** (1 / KAPLAN_ALPHA_N):,.0f}",
        "kaplan_gpt2": f"{(KAPLAN_N_C / GPT2_NON_EMBEDDING) ** KAPLAN_ALPHA_N:.2f}",
        "hoffmann_doubling": f"{1 - 2**-HOFFMANN.alpha:.0%}",
    }


def power_of_ten(value: float) -> str:
    """A large number as people write it: 1.2 × 10¹⁶."""
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{digits} × 10{raised}"


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_noise() -> HTML:
    """Each size with its mean loss and the spread of its seeds."""
    n, loss = sizes()
    rows = [
        [f"{size:,.0f}", f"{loss[n == size].mean():.3f}", f"{np.std(loss[n == size], ddof=1):.4f}",
         f"{loss[n == size].mean() - recorded_exact_loss():.3f}"]
        for size in np.unique(n)
    ]  # fmt: skip
    return table(["parameters", "mean loss, nats", "sd of seeds", "above the language"], rows)


def table_forms() -> HTML:
    """The forms judged in three ways."""
    n_large, found = large()
    rows = []
    for form in FORMS:
        fit = law(form)
        at = float(fit.loss(n_large))
        held = compared().row(form).held_out_rmse  # type: ignore[arg-type]
        rows.append([NAMES[form], f"{fit.r2:.3f}", f"{fit.rmse:.3f}", f"{held:.3f}", f"{at:.3f}",
                     f"{at - found:+.3f}"])  # fmt: skip
    head = ["form", "R²", "RMSE", "two largest held out", f"at {n_large:,.0f}", "off by"]
    return table(head, rows)


def figure_bet() -> None:
    """Five sizes, two laws, and the model ten times larger."""
    n, loss = small()
    n_large, found = large()
    x = np.geomspace(n.min(), 2 * n_large, 80)
    figure, axes = plots.curve(
        {NAMES[form]: (x, law(form).loss(x)) for form in ("power", "power_floor")},
        title="Both laws fit five sizes; ten times further out they part",
        xlabel="parameters", ylabel="held-out loss, nats a token", log_x=True, log_y=True,
        references={"the language itself": recorded_exact_loss()}, references_at="left",
    )  # fmt: skip
    axes.plot(n, loss, ".", color=plots.INK, markersize=5)
    plots.mark(axes, n_large, found, "what it reached")
    _plain_log_y(axes, (2.5, 3.0, 3.5))
    show(figure, "Loss over parameters with two laws and a model ten times larger than those fitted.")


def figure_residuals() -> None:
    """What each form leaves over, size by size, beside the error of a size's mean."""
    n, loss = small()
    at = np.unique(n)
    lines = {}
    for form in FORMS:
        left = loss - law(form).loss(n)
        lines[NAMES[form]] = (at, np.array([left[n == size].mean() for size in at]))
    figure, axes = plots.curve(
        lines, title="A straight line leaves a bend behind: residuals show it",
        xlabel="parameters", ylabel="loss minus law, nats (mean of seeds)", log_x=True,
    )  # fmt: skip
    of_mean = np.array([np.std(loss[n == size], ddof=1) / np.sqrt(np.sum(n == size)) for size in at])
    axes.fill_between(at, -of_mean, of_mean, color=plots.GREY, alpha=0.2, linewidth=0)
    axes.annotate("error of a mean of seeds", (at[0], -of_mean[0]), xytext=(2, 10), va="bottom",
                  textcoords="offset points", color=plots.GREY, fontsize=9)  # fmt: skip
    axes.axhline(0, color=plots.GREY, linewidth=1)
    axes.set_xticks(at, [f"{size:,.0f}" for size in at])
    axes.minorticks_off()
    show(figure, "Residuals of three forms over parameters; two are U-shaped, one is flat.")


def figure_intervals() -> None:
    """Confidence and prediction, and seeds taken for sizes, at the large model."""
    n_large, _ = large()
    n, loss = sizes()
    rows = {
        "law, single runs drawn": draws(grouped=False).confidence_interval(n_large),
        "law, sizes drawn": draws().confidence_interval(n_large),
        "one new run": draws().prediction_interval(n_large),
    }
    figure, axes = plots.new(
        "How sure is the bet? It depends on what was drawn again",
        f"loss at {n_large:,.0f} parameters, nats", "", height=2.6,
    )  # fmt: skip
    for place, interval in enumerate(rows.values()):
        axes.plot([interval.low, interval.high], [place, place], color=plots.COLOURS[place], linewidth=5)
    came = loss[n == n.max()]  # drawn one above the other, since two of them nearly agree
    axes.plot(
        came, 3 + 0.11 * np.arange(len(came)) - 0.165, "o", color=plots.INK, markersize=4
    )  # some are equal
    axes.set_yticks(range(4), [*rows, f"what came: {in_words(len(came))} seeds"])
    axes.set_ylim(-0.6, 3.6)
    axes.grid(visible=False, axis="y")
    show(figure, "Three intervals for the large model's loss, and the losses that came.")


def figure_floors() -> None:
    """Two sweeps in D, their laws and their floors."""
    figure, axes = plots.new(
        "A small model's floor is its own; a large one's meets the entropy",
        "training tokens", "held-out loss, nats a token", log_x=True,
    )  # fmt: skip
    for index, (size, (d, loss)) in enumerate(token_sweeps().items()):
        fit, colour = token_law(size), plots.COLOURS[index]
        x = np.geomspace(d.min(), 40 * d.max(), 80)
        axes.plot(x, fit.loss(x), color=colour)
        axes.plot(d, loss, ".", color=colour, markersize=6)
        interval = fit.profile_floor().interval
        axes.axhspan(max(interval.low, 2.7), interval.high, color=colour, alpha=0.15, linewidth=0)
        axes.annotate(f"{size:,} parameters", (x[-1], float(fit.loss(x[-1]))), xytext=(4, 8),
                      textcoords="offset points", ha="right", color=colour, fontsize=9)  # fmt: skip
    plots.reference(axes, recorded_exact_loss(), "the language itself", at="left")
    show(figure, "Loss over tokens of a small and a large model, with floors and their intervals.")


def figure_text() -> None:
    """Real text: each size bends, their best hardly does; and what two forms make of its small end."""
    flops, loss = frontier()
    known = known_budgets(flops)
    fits = {form: fit_power_law(flops[known], loss[known], form=form) for form in ("power", "log")}
    x = np.geomspace(flops.min(), 1.6 * flops.max(), 60)
    figure, axes = plots.curve(
        {NAMES[form]: (x, fit.loss(x)) for form, fit in fits.items()},
        title="On text each size bends; the best of all hardly does, and two forms part",
        xlabel="training compute 6ND, FLOPs", ylabel="held-out loss, nats a token", log_x=True, log_y=True,
    )  # fmt: skip
    for size, (d, of_size) in text_by_size().items():
        axes.plot(6.0 * size * d, of_size, "o-", color=plots.GREY, linewidth=0.9, markersize=3, alpha=0.7)
    axes.plot(flops[known], loss[known], "s", color=plots.INK, markersize=7)
    axes.plot(flops[~known], loss[~known], "s", color=plots.INK, markersize=7, markerfacecolor="white")
    axes.text(0.03, 0.06, "squares: the best of each budget; filled: fitted\ngrey: one size each",
              transform=axes.transAxes, fontsize=9)  # fmt: skip
    _plain_log_y(axes, (1.75, 2.0, 2.5, 3.0, 3.5, 4.0))
    show(figure, "Loss over compute on text: a grey curve for each size, the best of each budget, two forms.")


def _plain_log_y(axes: object, ticks: tuple[float, ...]) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])  # type: ignore[attr-defined]
    axes.minorticks_off()  # type: ignore[attr-defined]


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "power-laws", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
