"""Tables and figures of the chapter `compute-optimal`, computed from formulas, fits and recorded studies.

The chapter's cells call these; no torch is needed. Everything about the course's own sweep is fitted when the
page is built, so it follows the record as that grows.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.figure import Figure

from scalelab.lab import plots
from scalelab.lab.records import study_json
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.lab.scaling_laws.frontier import (
    BUDGETS,
    DECAYED,
    LARGEST_OF_ALL,
    Frontier,
    SweepRuns,
    arm_curves,
    chain,
    difference,
    losses_at,
    sweep_runs,
)
from scalelab.lab.scaling_laws.frontier_plots import (
    Estimate,
    budget_text,
    draw_chain,
    draw_estimates,
    draw_landscape,
    draw_valleys,
)
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs
from scalelab.laws import (
    ChinchillaBootstrap,
    ChinchillaFit,
    ChinchillaLaw,
    EnvelopeFit,
    Interval,
    IsoflopFit,
    envelope,
    fit_chinchilla,
    fit_isoflop,
)
from scalelab.laws.kaplan import KAPLAN_2020, KAPLAN_2020_FRONTIER, compute_exponent

STUDY = "scaling-laws/compute-optimal"
GOPHER_FLOPS = 5.76e23  # Chinchilla's budget too
N_DRAWS = 1000
PLANNED = [budget for budget in BUDGETS if budget <= LARGEST_OF_ALL]
# name: parameters, tokens. Brown 2020, Rae 2021, Hoffmann 2022, Dubey 2024.
KNOWN = {
    "GPT-3": (175e9, 300e9),
    "Gopher": (280e9, 300e9),
    "Chinchilla": (70e9, 1.4e12),
    "Llama-3-8B": (8.03e9, 15e12),
}
KAPLAN_WARMUP_STEPS, KAPLAN_BATCH_TOKENS = 3000, 512 * 1024  # Kaplan 2020, section 2.2
GPT2_VOCABULARY = 50_257
DEEPSEEK_V3 = (671e9, 37e9, 14.8e12)  # parameters, active ones, tokens: DeepSeek-AI 2024


def record() -> dict[str, Any]:
    """The Chinchilla points fitted again."""
    return study_json(STUDY, "chinchilla")


def stops() -> dict[str, Any]:
    """Where L-BFGS-B stops."""
    return study_json(STUDY, "stops")


def refitted() -> ChinchillaLaw:
    """The minimum on the 240 runs."""
    found = record()["minimum"]
    return ChinchillaLaw(**{name: found[name] for name in ("E", "A", "B", "alpha", "beta")})


@functools.cache
def runs() -> SweepRuns:
    """The course's own sweep."""
    return sweep_runs()


@functools.cache
def valleys() -> IsoflopFit:
    """Approach 2 on it."""
    own = runs()
    return fit_isoflop(own.n_params, own.n_tokens, own.loss, budgets=own.budgets())


@functools.cache
def law() -> ChinchillaFit:
    """Approach 3 on it."""
    own = runs()
    return fit_chinchilla(own.n_params, own.n_tokens, own.loss)


@functools.cache
def law_draws() -> ChinchillaBootstrap:
    """Refits to whole sizes drawn with replacement."""
    return law().bootstrap(N_DRAWS, seed=0, groups=runs().n_params)


@functools.cache
def curves() -> EnvelopeFit:
    """Approach 1 on the ends of its runs."""
    found = [curve for curve in arm_curves("isoflop") if len(curve.tokens) > 1]
    points = [list(zip(curve.tokens.tolist(), curve.loss.tolist(), strict=True)) for curve in found]
    return envelope(
        points, [curve.n_params for curve in found], schedule_tokens=[curve.tokens[0] for curve in found]
    )


@functools.cache
def steps() -> tuple[Frontier, ...]:
    """Kaplan's arm and its undoing."""
    return tuple(chain(n_draws=N_DRAWS))


@functools.cache
def estimates() -> tuple[Estimate, ...]:
    """The exponent a by the three approaches."""
    return (
        ("1: envelope of curves", curves().a, curves().bootstrap(60, seed=0).intervals()["a"]),
        ("2: bottoms of valleys", valleys().a, valleys().bootstrap(N_DRAWS, seed=0).intervals()["a"]),
        ("3: the law itself", law().a, law_draws().interval("a")),
    )


def numbers() -> dict[str, str]:
    """Every number of the prose that comes from a formula, a fit or the study, ready to print."""
    return {**law_numbers(), **sweep_numbers(), **refit_numbers(), **kaplan_numbers(), **expert_numbers()}


def law_numbers() -> dict[str, str]:
    """What published laws ask for at Chinchilla's budget, and what a miss costs."""
    best = refitted().optimal(GOPHER_FLOPS)
    found = {
        "best_n": f"{best.n_params / 1e9:.0f} billion",
        "best_d": f"{best.n_tokens / 1e12:.2f} trillion",
        "best_loss": f"{best.loss:.3f}",
        "size_term": f"{refitted().A * best.n_params ** -refitted().alpha:.3f}",
        "data_term": f"{refitted().B * best.n_tokens ** -refitted().beta:.3f}",
        "G": f"{refitted().G:.2f}",
        "twice": f"{miss(2.0):.1%}",
        "half": f"{miss(0.5):.1%}",
        "four": f"{miss(4.0):.0%}",
        "gopher_waste": f"{wasted(*KNOWN['Gopher']):.1f}",
        "gpt3_waste": f"{wasted(*KNOWN['GPT-3']):.1f}",
        "chinchilla_waste": f"{wasted(*KNOWN['Chinchilla']) - 1:.1%}",
        "llama_waste": f"{wasted(*KNOWN['Llama-3-8B']):.1f}",
        "llama_ratio": f"{KNOWN['Llama-3-8B'][1] / KNOWN['Llama-3-8B'][0]:,.0f}",
    }
    for name, short in (("Hoffmann, printed", "printed"), ("Hoffmann's source", "source")):
        there = PUBLISHED[name].optimal(GOPHER_FLOPS)
        found[f"ratio_{short}"] = f"{there.tokens_per_param:.0f}"
    printed = PUBLISHED["Hoffmann, printed"].optimal(GOPHER_FLOPS)
    found["n_printed"] = f"{printed.n_params / 1e9:.0f} billion"
    found["ratio_best"] = f"{best.tokens_per_param:.0f}"
    for flops, short in ((1e19, "small"), (1e26, "large")):
        found[f"ratio_{short}_budget"] = f"{refitted().optimal(flops).tokens_per_param:.0f}"
    return found


def miss(factor: float, flops: float = GOPHER_FLOPS) -> float:
    """Share of more compute that the best allocation would need less of, were N off by a factor."""
    best = refitted().optimal(flops)
    loss = float(refitted().loss(best.n_params * factor, best.n_tokens / factor))
    return flops / refitted().flops_for(loss) - 1


def wasted(n_params: float, n_tokens: float) -> float:
    """FLOPs of a run over the least that reach its loss by the refitted law."""
    loss = float(refitted().loss(n_params, n_tokens))
    return 6 * n_params * n_tokens / refitted().flops_for(loss)


def sweep_numbers() -> dict[str, str]:
    """The three approaches on the course's own runs."""
    own = runs()
    found = {
        "n_runs": f"{len(own.loss)}",
        "n_budgets": f"{len(own.budgets())}",
        "n_bracketed": f"{sum(vertex.bracketed for vertex in valleys().vertices)}",
        "smallest": f"{own.n_params.min():,.0f}",
        "largest": f"{own.n_params.max():,.0f}",
        "decades": f"{math.log10(own.flops.max() / own.flops.min()):.1f}",
        "noise": f"{valleys().noise:.3f}",
        "tenfold": f"{10 ** valleys().a:.1f}",
        "parted": f"{parted():.1f}",
    }
    for place, (_, value, interval) in enumerate(estimates(), start=1):
        found |= {
            f"a{place}": f"{value:.2f}",
            f"a{place}_interval": ends(interval),
        }
    ratios = [v.n_tokens / v.n_params for v in valleys().vertices if v.bracketed]
    return found | {"own_ratio_low": f"{min(ratios):.0f}", "own_ratio_high": f"{max(ratios):.0f}"}


def parted() -> float:
    """How many times wider the best size's interval is when parameters are drawn apart."""
    draws = law_draws().draws
    draws = draws[(draws > 0).all(axis=1)]
    rng = np.random.default_rng(0)
    apart = np.column_stack([rng.permutation(column) for column in draws.T])
    widths = []
    for table in (apart, draws):
        _, A, B, alpha, beta = table.T
        log_n = np.log(alpha * A / (beta * B)) + beta * math.log(10 * runs().flops.max() / 6)
        low, high = np.quantile(log_n / (alpha + beta), [0.05, 0.95])
        widths.append(high - low)
    return float(widths[0] / widths[1])


def refit_numbers() -> dict[str, str]:
    """The re-analysis."""
    found, ended = record(), stops()
    lowest, published = found["minimum"]["objective"], found["published"]
    intervals = found["bootstrap"]["intervals"]
    printed, source = (published[name]["objective"] for name in ("Hoffmann, printed", "Hoffmann's source"))
    off = {name: found["residuals"][name] for name in ("minimum", "Hoffmann, printed")}
    spread = off["minimum"][3] - off["minimum"][1]
    return {
        "re_E": f"{found['minimum']['E']:.3f}",
        "re_A": f"{found['minimum']['A']:.0f}",
        "re_B": f"{found['minimum']['B']:.0f}",
        "re_alpha": f"{found['minimum']['alpha']:.4f}",
        "re_beta": f"{found['minimum']['beta']:.4f}",
        "re_a": f"{found['minimum']['a']:.3f}",
        "re_objective": f"{lowest:.12f}",
        "elsewhere": f"{found['best_elsewhere']:.12f}",
        "re_a_interval": "[{:.2f}, {:.2f}]".format(*intervals["a"]),
        "re_ratio_interval": "{:.0f} to {:.0f}".format(*found["bootstrap"]["tokens_per_param"]),
        "source_above": f"{source / lowest - 1:.0%}",
        "printed_times": f"{printed / lowest:.1f}",
        "rounding": f"{printed / source:.1f}",
        "printed_off": f"{off['Hoffmann, printed'][2]:.1%}",
        "spread": f"{spread / 2:.1%}",
        "per_run": budget_text(lowest / found["n_runs"]),
        "mean_starts": f"{ended['mean']['n_starts']:,}",
        "mean_best_above": f"{ended['mean']['best']['objective'] / lowest - 1:.0%}",
        "mean_best_a": f"{ended['mean']['best']['a']:.2f}",
        "mean_moved": f"{ended['mean']['from_published']['moved']:.4f}",
        "sum_starts": f"{ended['sum']['n_starts']:,}",
        "sum_arrived": f"{ended['sum']['n_within_a_thousandth']}",
    }


def kaplan_numbers() -> dict[str, str]:
    """Kaplan's law, his settings, and the course's arm of it."""
    warmup = KAPLAN_WARMUP_STEPS * KAPLAN_BATCH_TOKENS
    found = {
        "kaplan_tenfold": f"{10**0.73:.1f}",
        "kaplan_formula": f"{compute_exponent(alpha_N=0.076, alpha_B=0.21, alpha_S=0.76) / 0.076:.2f}",
        "kaplan_minimum": f"{KAPLAN_2020.a:.3f}",
        "kaplan_gopher": f"{KAPLAN_2020_FRONTIER.optimal(GOPHER_FLOPS).n_params / 1e12:.1f} trillion",
        "kaplan_ratio": f"{KAPLAN_2020_FRONTIER.optimal(GOPHER_FLOPS).tokens_per_param:.2f}",
        "warmup_tokens": f"{warmup / 1e9:.2f} billion",
        "warmup_params": f"{warmup / 20 / 1e6:.0f} million",
        "small_share": f"{1 - seen(2, 128):.0%}",
        "gpt2_share": f"{1 - seen(12, 768):.0%}",
        "gpt3_share": f"{1 - seen(96, 12_288):.1%}",
        "sigma": f"{counted_growth():.2f}",
        "counted_half": f"{counted_exponent(0.5):.2f}",
    }
    return found | chain_numbers()


def seen(n_layers: int, d_model: int) -> float:
    """Share of the FLOPs of a GPT that Kaplan's count sees."""
    body = 12 * n_layers * d_model**2
    return body / (body + GPT2_VOCABULARY * d_model)


def counted_growth() -> float:
    """sigma: how the size that Kaplan counts grows with size, over the sweep's models."""
    own = runs()
    return float(np.polyfit(np.log(own.n_params), np.log(own.n_params_non_embedding), 1)[0])


def chain_numbers() -> dict[str, str]:
    """The arm run and counted as Kaplan did, and what each cause moves."""
    kaplan, counted, short, decayed, tuned = steps()
    together, joint = difference(tuned, kaplan)
    found = {
        "arm_kaplan": f"{kaplan.a:.2f}",
        "arm_kaplan_interval": ends(kaplan.interval()),
        "arm_tuned": f"{tuned.a:.2f}",
        "arm_tuned_interval": ends(tuned.interval()),
        "arm_together": signed(together),
        "arm_together_interval": ends(joint),
        "arm_together_verdict": "more than chance allows for" if joint.low > 0 else "chance might do that",
        "arm_kaplan_place": kaplans_place(kaplan.interval()),
        "four_together": "{} ({})".format(*(f(v) for f, v in zip((signed, ends), at_four(), strict=True))),
        "arm_noise_low": f"{min(step.noise for step in steps()):.2f}",
        "arm_noise_high": f"{max(step.noise for step in steps()):.2f}",
        "arm_largest": budget_text(LARGEST_OF_ALL),
        "counted_here": f"{counted_exponent(counted.a):.2f}",
        "decay_worth": f"{short.loss_at(1e12) - decayed.loss_at(1e12):.2f}",
        "undecayed": "{:.2f}".format(
            min(losses_of("stable", 1e12).values()) - min(losses_of("isoflop", 1e12).values())
        ),
        "decay_before": f"{short.size_at(1e12):,.0f}",
        "decay_after": f"{decayed.size_at(1e12):,.0f}",
    }
    moves = {"head": (kaplan, counted), "warmup": (counted, short), "decay": (short, decayed),
             "rate": (decayed, tuned)}  # fmt: skip
    for name, (before, after) in moves.items():
        change, interval = difference(before, after)
        found |= {
            f"{name}_moves": signed(change),
            f"{name}_interval": ends(interval),
            f"{name}_verdict": verdict(interval),
        }
    return found | {"told_apart": told_apart(moves)} | decay_numbers() | rate_numbers()


def kaplans_place(interval: Interval) -> str:
    """Where Kaplan's measured exponent lies to the interval of the arm that ran as he did."""
    if interval.contains(0.73):
        return "his 0.73 lies inside"
    return "his 0.73 lies above" if interval.high < 0.73 else "his 0.73 lies below"


def told_apart(moves: Mapping[str, tuple[Frontier, Frontier]]) -> str:
    """Which causes have an interval without zero, as a sentence."""
    names = {"head": "the count", "warmup": "the warm-up", "decay": "the decay", "rate": "the tuning"}
    clear = []
    for name, pair in moves.items():
        interval = difference(*pair)[1]
        if interval.low > 0 or interval.high < 0:
            clear.append(names[name])
    if not clear:
        return "None of them can be told from nothing by itself."
    if len(clear) == len(moves):
        return "Each of them can be told from nothing by itself."
    listed = clear[0] if len(clear) == 1 else ", ".join(clear[:-1]) + " and " + clear[-1]
    return f"So by itself only {listed} can be told from nothing; the rest is known as a part of the whole."


def at_four() -> tuple[float, Interval]:
    """The whole move where the curves, too, are read at the planned budgets alone."""
    kaplan, *_, tuned = chain(n_draws=N_DRAWS, budgets=PLANNED)
    return difference(tuned, kaplan)


def counted_exponent(a: float) -> float:
    """What counting as Kaplan did makes of an exponent, by arithmetic alone."""
    sigma = counted_growth()
    return sigma * a / (1 + (sigma - 1) * a)


def losses_of(arm: str, flops: float) -> dict[int, float]:
    """By size: its loss in an arm at a budget, where it has one."""
    found = arm_curves(arm)
    losses = losses_at(found, flops, "all", ends=arm in DECAYED)
    return {curve.n_params: float(v) for curve, v in zip(found, losses, strict=True) if np.isfinite(v)}


def decay_numbers() -> dict[str, str]:
    """What decay is worth to a small and a large size at equal FLOPs and one rate."""
    constant, decayed = (losses_of(arm, LARGEST_OF_ALL) for arm in ("one-rate", "one-rate-decay"))
    both = sorted(set(constant) & set(decayed))
    found = {}
    for name, size in (("small", both[0]), ("large", both[-1])):
        found |= {
            f"decay_{name}_n": f"{size:,}",
            f"decay_{name}": f"{constant[size] - decayed[size]:.2f}",
        }
    more = constant[both[0]] - decayed[both[0]] > constant[both[-1]] - decayed[both[-1]]
    return found | {"decay_tilts": "more to small models" if more else "more to large models"}


def rate_numbers() -> dict[str, str]:
    """A size's own rate against the common one, without decay and with it, at the largest budget of all."""
    arms = ("one-rate", "stable", "one-rate-decay", "isoflop")
    losses = {arm: losses_of(arm, LARGEST_OF_ALL) for arm in arms}
    sizes = sorted(set.intersection(*(set(found) for found in losses.values())))
    size = sizes[1]  # the second: its rate is far from the common one, and its neighbours are there
    rates = {run.learning_rate for run in packages_runs("stable") if run.n_params == size}
    without, having = (losses[one][size] - losses[own][size] for one, own in (arms[:2], arms[2:]))
    return {
        "late_n": f"{size:,}",
        "late_rate": f"{1e3 * next(iter(rates)):.1f}",
        "late_without": f"{abs(without):.2f} nats {'better' if without > 0 else 'worse'}",
        "late_with": f"{abs(having):.2f} nats {'better' if having > 0 else 'worse'}",
    }


def verdict(interval: Interval) -> str:
    """What an interval of a change says, in words."""
    if interval.low > 0:
        return "it raises the exponent"
    if interval.high < 0:
        return "it lowers the exponent"
    return "this sweep cannot tell it from nothing"


def expert_numbers() -> dict[str, str]:
    """DeepSeek-V3 as a worked number: what is stored, and what a token costs."""
    total, active, tokens = DEEPSEEK_V3
    return {
        "v3_flops": budget_text(6 * active * tokens),
        "v3_dense_times": f"{total / active:.0f}",
        "v3_ratio_active": f"{tokens / active:.0f}",
        "v3_ratio_total": f"{tokens / total:.0f}",
    }


def ends(interval: Interval) -> str:
    """An interval in two digits."""
    return f"[{interval.low:.2f}, {interval.high:.2f}]".replace("-", "−")


def signed(value: float) -> str:
    """A change in two digits, with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_known() -> HTML:
    """Known models against the refitted law."""
    rows = []
    for name, (n, d) in KNOWN.items():
        flops = 6 * n * d
        best = refitted().optimal(flops)
        above = float(refitted().loss(n, d)) - best.loss
        each = f"{d / n:,.0f}" if d / n > 100 else f"{d / n:.1f}"
        rows.append(
            [name, f"{n / 1e9:,.0f}", f"{d / 1e12:.1f}", each, budget_text(flops),
             f"{best.n_params / 1e9:,.0f}", f"{best.tokens_per_param:.0f}", f"{above:.3f}",
             f"{wasted(n, d):.2f}"]
        )  # fmt: skip
    head = ["model", "N, billions", "D, trillions", "D/N", "C, FLOPs", "best N", "best D/N",
            "loss above best", "C over least C"]  # fmt: skip
    return table(head, rows)


def table_chain() -> HTML:
    """Each step of the chain: its exponent and what it changed."""
    rows = []
    for before, step in zip([None, *steps()], steps(), strict=False):
        change = ["–", "–"]
        if before is not None:
            moved, interval = difference(before, step)
            change = [signed(moved), ends(interval)]
        rows.append([step.step.name, f"{step.a:.2f}", ends(step.interval()), *change, f"{len(step.flops)}"])
    return table(["step", "a", "90 %", "moved by", "90 %, joint", "budgets"], rows)


def figure_advice() -> None:
    """Tokens per parameter over budget by three laws, with the interval of one."""
    figure, axes = plots.new(
        "Three laws from the same runs, and their advice", "budget, FLOPs", "tokens per parameter",
        log_x=True, log_y=True,
    )  # fmt: skip
    flops = np.logspace(19, 26, 60)
    draws = np.array(record()["bootstrap"]["draws"])
    band = [np.quantile([ratio(row, c) for row in draws], [0.05, 0.95]) for c in flops]
    low, high = np.array(band).T
    axes.fill_between(flops, low, high, color=plots.COLOURS[2], alpha=0.2, linewidth=0)
    laws = {
        "printed": PUBLISHED["Hoffmann, printed"],
        "in its source": PUBLISHED["Hoffmann's source"],
        "fitted again": refitted(),
    }
    for index, (name, one) in enumerate(laws.items()):
        values = [one.optimal(c).tokens_per_param for c in flops]
        axes.plot(flops, values, color=plots.COLOURS[index])
        axes.annotate(name, (flops[-1], values[-1]), xytext=(6, 0), textcoords="offset points", va="center",
                      fontsize=9, color=plots.COLOURS[index], fontweight="bold")  # fmt: skip
    axes.axhline(20, color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.set_yticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    axes.minorticks_off()
    plots.mark(axes, GOPHER_FLOPS, 20, "Chinchilla")
    show(figure, "Tokens per parameter over budget by the printed, the unrounded and the refitted law.")


def ratio(row: np.ndarray, flops: float) -> float:
    """D/N at the optimum of one draw."""
    _, A, B, alpha, beta = row
    log_n = (math.log(alpha * A / (beta * B)) + beta * math.log(flops / 6)) / (alpha + beta)
    return flops / 6 / math.exp(2 * log_n)


def figure_two_terms() -> None:
    """What size and data each leave, on one budget."""
    one = refitted()
    n = np.logspace(9.3, 12.3, 200)
    d = GOPHER_FLOPS / 6 / n
    size, data = one.A * n**-one.alpha, one.B * d**-one.beta
    figure, axes = plots.new(
        "One budget: what size leaves falls, what data leave rises", "parameters, N (tokens are C/6N)",
        "nats a token above E", log_x=True,
    )  # fmt: skip
    terms = (
        ("A/Nᵅ: too small", size, 50, (-6, -14), "right"),
        ("B/Dᵝ: too few tokens", data, 150, (6, -14), "left"),
        ("both", size + data, 30, (8, 4), "left"),
    )
    for index, (name, y, at, offset, side) in enumerate(terms):
        axes.plot(n, y, color=plots.COLOURS[index])
        axes.annotate(name, (n[at], y[at]), xytext=offset, textcoords="offset points", ha=side, fontsize=9,
                      color=plots.COLOURS[index], fontweight="bold")  # fmt: skip
    placed = (("Chinchilla", (0, 9), "center"), ("Gopher", (-6, 14), "right"))
    for name, offset, side in placed:
        at = KNOWN[name][0]
        y = float(one.loss(at, GOPHER_FLOPS / 6 / at)) - one.E
        axes.plot([at], [y], "o", color=plots.INK, markersize=9, markerfacecolor="none")
        axes.annotate(name if name == "Chinchilla" else "Gopher's size", (at, y), xytext=offset,
                      textcoords="offset points", ha=side, fontsize=9)  # fmt: skip
    axes.set_ylim(0, None)
    show(figure, "Two terms of the law over size at a fixed budget, and their sum with its bottom.")


def figure_miss() -> None:
    """More compute that a wrong size costs."""
    factors = np.logspace(-1, 1, 81)
    extra = [100 * miss(float(f)) for f in factors]
    figure, axes = plots.new(
        f"Flat at the bottom: twice the size wastes {miss(2.0):.0%}", "N over the best N, at 5.76·10²³ FLOPs",
        "compute wasted, %", log_x=True,
    )  # fmt: skip
    axes.plot(factors, extra, color=plots.COLOURS[0])
    for factor, name, side in ((0.5, "half", 1), (2.0, "twice", -1), (4.0, "four times", -1)):
        y = 100 * miss(factor)
        axes.plot([factor], [y], "o", color=plots.COLOURS[1])
        axes.annotate(f"{name}: {y:.0f}%", (factor, y), xytext=(5 * side, 9), textcoords="offset points",
                      ha="left" if side > 0 else "right", fontsize=9)  # fmt: skip
    axes.set_xticks([0.1, 0.25, 0.5, 1, 2, 4, 10], ["1/10", "1/4", "1/2", "1", "2", "4", "10"])
    axes.minorticks_off()
    axes.set_ylim(0, 150)
    show(figure, "Compute wasted over how far the size is from the best one.")


def figure_valleys() -> None:
    """The course's own IsoFLOP valleys."""
    figure, _ = draw_valleys(
        runs(), valleys(), title=f"Ten times the budget, {10 ** valleys().a:.1f} times the best size"
    )
    show(figure, "Loss over size, a valley for each budget, with bracketed bottoms marked.")


def figure_estimates() -> None:
    """The exponent by three approaches."""
    figure, _ = draw_estimates(
        estimates(), title="Three approaches, one sweep", xlabel="a in N ∝ Cᵃ, with 90 % intervals",
        marks={"Kaplan 0.73": 0.73, "Chinchilla 0.50": 0.50},
    )  # fmt: skip
    show(figure, "Exponent a by three approaches with intervals.")


def figure_landscape() -> None:
    """The objective over both exponents, E, A and B refitted, with published and stopped fits."""
    figure, _ = draw_landscape(record(), stops(), title="No start on the mean reaches the bottom")
    show(figure, "Contours of the objective over alpha and beta.")


def figure_chain() -> None:
    """Tokens per parameter at the best size in five ways of training and counting."""
    figure, _ = draw_chain(steps(), title="The same sizes, trained and counted in five ways")
    show(figure, "Tokens per parameter at the best size over budget for each step of the chain.")


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "compute-optimal", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
