"""Tables and figures of the chapter `capability`, computed from its record and from formulas.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from IPython.display import HTML

from scalelab.lab import plots
from scalelab.lab.scaling_laws import recorded_capability as record
from scalelab.lab.scaling_laws.recorded_capability import DESIGN, table
from scalelab.laws import FloorLine, fit_floor_line

Floats = npt.NDArray[np.float64]
LENGTH = 7  # tokens of a sorted answer
ASKED = 32  # symbols asked in a document of the text
TASKS = ("facts", "recall", "sorting")
CHANCE = {"facts": 1 / 26, "recall": 1 / 4, "sorting": 1 / 7}
SURE = 0.95


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from the record or a formula, ready to print."""
    return {
        **metric_numbers(), **length_numbers(), **task_numbers(), **repeat_numbers(), **leak_numbers(),
        **times_numbers(),
    }  # fmt: skip


@lru_cache(maxsize=8)
def sorting(name: str) -> Floats:
    """A quantity of the models that sort, [sizes, seeds]."""
    return table(record.recorded("sizes"), "sorting", name)


def metric_numbers() -> dict[str, str]:
    """Sorting over sizes: what each metric says."""
    n, token, exact, nats = (
        sorting(name).mean(axis=1) for name in ("n_params", "token_accuracy", "exact", "nats")
    )
    off = np.abs(sorting("exact") - sorting("token_accuracy") ** LENGTH)
    found = {
        "seeds_sorting": word(sorting("nats").shape[1]),
        "independent": f"{100 * float(off.max()):.1f}",
        "questions_tokens": f"{1024 * LENGTH:,}",
    }
    for i in range(len(n)):
        found |= {
            f"n_{i}": f"{n[i]:,.0f}",
            f"token_{i}": percent(token[i]),
            f"exact_{i}": percent(exact[i]),
            f"nats_{i}": f"{nats[i]:.2f}",
        }
    found["questions_0"] = f"{questions(token[0] ** LENGTH):,}"
    found["questions_1"] = f"{questions(token[1] ** LENGTH):,}"
    line = np.polyfit(np.log(n[:3]), token[:3], 1)
    found["flatter"] = percent(float(np.polyval(line, math.log(n[-1]))))
    found["flatter_r2"] = f"{float(np.corrcoef(np.log(n[:3]), token[:3])[0, 1] ** 2):.2f}"
    found["flatter_measured"] = percent(token[-1])
    found["flatter_exact"] = percent(
        float(np.polyval(np.polyfit(np.log(n[:3]), exact[:3], 1), math.log(n[-1])))
    )
    return found


def length_numbers() -> dict[str, str]:
    """What a longer answer asks of a token; errors of scores."""
    found = {f"half_{length}": f"{0.5 ** (1 / length):.3f}" for length in (1, 5, 10, 100)}
    found |= {f"whole_{p}": percent((p / 100) ** 5) for p in (50, 80, 90)}
    for n, p in ((164, 0.5), (1000, 0.5), (10000, 0.5)):
        found[f"error_{n}"] = f"{196 * math.sqrt(p * (1 - p) / n):.1f}"
    return found


@lru_cache(maxsize=16)
def at_compute(task: str, name: str) -> Floats:
    """A score of a task at equal FLOPs, [sizes, seeds]."""
    return table(record.recorded("compute"), task, name)


def task_numbers() -> dict[str, str]:
    """Three tasks at equal FLOPs: the best size of each, and of their mean."""
    loss = {task: at_compute(task, "nats").mean(axis=1) for task in TASKS}
    loss["mean"] = np.mean([loss[task] for task in TASKS], axis=0)
    found = {"seeds": word(at_compute("facts", "nats").shape[1])}
    for task, values in loss.items():
        best = int(values.argmin())
        found |= {f"best_{task}": str(DESIGN.widths[best]), f"loss_{task}": f"{values[best]:.2f}"}
    for task in TASKS:
        right = at_compute(task, "token_accuracy").mean(axis=1)
        found |= {
            f"first_{task}": percent(right[0]), f"last_{task}": percent(right[-1]),
            f"top_{task}": percent(right.max()),
        }  # fmt: skip
    for task in TASKS:
        right = at_compute(task, "token_accuracy").mean(axis=1)
        found |= {f"right_{task}_{w}": percent(r) for w, r in zip(DESIGN.widths, right, strict=True)}
    inner = loss["recall"][1:-1]
    found |= {"recall_low": f"{inner.min():.2f}", "recall_high": f"{inner.max():.2f}"}
    right = np.array([row["scores"]["recall"]["token_accuracy"] for row in record.recorded("seeds")])
    found |= {
        "lucky": word(int((right > 0.9).sum())), "lucky_of": str(len(right)),
        "lucky_low": percent(right[right > 0.9].min()), "unlucky_high": percent(right[right < 0.9].max()),
    }  # fmt: skip
    found["tokens_ratio"] = f"{_tokens()[0] / _tokens()[-1]:.0f}"
    return found


def _tokens() -> Floats:
    return table(record.recorded("compute"), None, "n_tokens").mean(axis=1)


@lru_cache(maxsize=1)
def repeats() -> dict[tuple[int, int], Floats]:
    """By width and documents: (gap, best, end) of each seed, losses above the language's own, [seeds, 3]."""
    found: dict[tuple[int, int], list[list[float]]] = {}
    for row in record.recorded("repeats"):
        marks = np.array(row["curve"])
        train, held_out = marks[:, 1] - row["exact"]["train"], marks[:, 2] - row["exact"]["held_out"]
        found.setdefault((row["width"], row["documents"]), []).append(
            [float(held_out[-1] - train[-1]), float(held_out.min()), float(held_out[-1])]
        )
    return {key: np.array(rows) for key, rows in found.items()}


def repeat_numbers() -> dict[str, str]:
    """Over-fitting over unique text and size."""
    small, large = DESIGN.repeat_widths[0], DESIGN.repeat_widths[-1]
    names = {"short": DESIGN.lengths[0], "long": DESIGN.lengths[-1]}
    found = {}
    for key, documents in names.items():
        for size, width in (("small", small), ("large", large)):
            gap, best, end = repeats()[width, documents].mean(axis=0)
            found |= {
                f"gap_{size}_{key}": f"{gap:.2f}",
                f"best_{size}_{key}": f"{best:.2f}",
                f"end_{size}_{key}": f"{end:.2f}",
            }
    by_width = {row["width"]: row["n_params"] for row in record.recorded("repeats")}
    found |= {"n_small": f"{by_width[small]:,}", "n_large": f"{by_width[large]:,}"}
    read = DESIGN.repeat_steps * 16
    found |= {
        "passes_short": f"{read / names['short']:.0f}",
        "symbols_short": f"{names['short'] * ASKED:,}",
        "symbols_long": f"{min(names['long'], read) * ASKED:,}",
        "symbols_read": f"{read * ASKED:,}",
    }
    return found


@lru_cache(maxsize=1)
def leaks() -> tuple[Floats, dict[str, Floats], dict[str, FloorLine], float]:
    """Parameters [sizes], losses [sizes, seeds] and laws on both sets, and the language's own loss.

    What leaked is moved by the difference of the two sets' own losses, so that both stand over one floor.
    """
    rows = record.recorded("leaks")
    exact = rows[0]["exact"]
    size = table(rows, None, "n_params").mean(axis=1)
    losses = {
        name: table(rows, None, f"losses/{name}") - exact[name] + exact["clean"]
        for name in ("clean", "leaked")
    }
    laws = {name: fit_floor_line(size, values.mean(axis=1)) for name, values in losses.items()}
    return size, losses, laws, float(exact["clean"])


def leak_numbers() -> dict[str, str]:
    """What a leak does to losses and to the law through them."""
    size, losses, laws, truth = leaks()
    gain = (losses["clean"] - losses["leaked"]).mean(axis=1)
    at = 10 * size[-1]
    return {
        "truth": f"{truth:.3f}",
        "gain_small": f"{gain[0]:.2f}",
        "gain_large": f"{gain[-1]:.2f}",
        "leaked_large": f"{losses['leaked'].mean(axis=1)[-1]:.2f}",
        "clean_large": f"{losses['clean'].mean(axis=1)[-1]:.2f}",
        "below_large": f"{truth - losses['leaked'].mean(axis=1)[-1]:.2f}",
        "exponent_clean": f"{laws['clean'].exponent:.2f}",
        "exponent_leaked": f"{laws['leaked'].exponent:.2f}",
        "floor_clean": f"{laws['clean'].floor:.2f}",
        "floor_leaked": f"{laws['leaked'].floor:.2f}",
        "ten_clean": f"{float(laws['clean'](at)):.2f}",
        "ten_leaked": f"{float(laws['leaked'](at)):.2f}",
        "leak_n_small": f"{size[0]:,.0f}",
        "leak_n_large": f"{size[-1]:,.0f}",
        "leak_times": str(DESIGN.times),
        "leak_share": percent(DESIGN.times * 128 / (DESIGN.leak_steps * 16)),
        "leak_symbols": f"{128 * ASKED:,}",
        "leak_train": f"{DESIGN.leak_steps * 16 * ASKED:,}",
    }


def times_numbers() -> dict[str, str]:
    """What a leak gains, by how often it stands there, and when it was respelled."""
    found = {
        f"times_{times}": f"{values.mean():.2f}" for (times, every), values in gains().items() if not every
    }
    told = gains()[DESIGN.times, DESIGN.respelled_every]
    whole = gains()[DESIGN.times, 0]
    return found | {
        "share_48": percent(48 * 128 / (DESIGN.leak_steps * 16)),
        "respelled": f"{told.mean():.2f}",
        "respelled_share": percent(float(told.mean() / whole.mean())),
        "respelled_every": word(DESIGN.respelled_every),
    }


@lru_cache(maxsize=1)
def gains() -> dict[tuple[int, int], Floats]:
    """By (times, respelled every): clean less leaked excess of the middle size, [seeds], nats."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in record.recorded("leaks") + record.recorded("times"):
        if row["width"] == DESIGN.times_width:
            excess = {name: row["losses"][name] - row["exact"][name] for name in ("clean", "leaked")}
            found.setdefault((row["times"], row["every"]), []).append(excess["clean"] - excess["leaked"])
    return {key: np.array(values) for key, values in sorted(found.items())}


def questions(exact: float) -> int:
    """Questions needed to see at least one right answer, 95 times in a hundred."""
    return math.ceil(math.log(1 - SURE) / math.log(1 - exact))


def percent(share: float) -> str:
    """13 %, and 0.4 % where it is little."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def word(count: int) -> str:
    """A small number in words."""
    return ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[count]


def html_table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_metrics() -> HTML:
    """Four metrics of the same answers, over sizes."""
    names = ("n_params", "nats", "brier", "token_accuracy", "exact")
    n, nats, brier, token, exact = (sorting(name).mean(axis=1) for name in names)
    spread = sorting("exact").std(axis=1, ddof=1)
    rows = [
        [f"{n[i]:,.0f}", f"{nats[i]:.3f}", f"{brier[i]:.3f}", percent(token[i]),
         f"{percent(exact[i])} ± {100 * spread[i]:.1f}", f"{questions(token[i] ** LENGTH):,}"]
        for i in range(len(n))
    ]  # fmt: skip
    return html_table(
        ["parameters", "nats a token", "Brier", "tokens right", "answers right", "questions to see one"], rows
    )


def table_tasks() -> HTML:
    """Three tasks over sizes at equal FLOPs."""
    n = table(record.recorded("compute"), None, "n_params").mean(axis=1)
    rows = []
    for i, width in enumerate(DESIGN.widths):
        cells = []
        for task in TASKS:
            loss, right = at_compute(task, "nats")[i], at_compute(task, "token_accuracy")[i]
            cells.append(f"{loss.mean():.2f} ± {loss.std(ddof=1):.2f} ({percent(right.mean())})")
        rows.append([f"{width}", f"{n[i]:,.0f}", f"{_tokens()[i] / 1e6:.2f}", *cells])
    return html_table(["width", "parameters", "places, millions", *TASKS], rows)


def figure_metrics() -> None:
    """Tokens and whole answers, and the loss beside them."""
    n, token, exact = (sorting(name).mean(axis=1) for name in ("n_params", "token_accuracy", "exact"))
    figure, axes = plots.curve(
        {"tokens right": (n, token), "answers right": (n, exact)},
        title="The same answers: one metric rises, one jumps", xlabel="parameters", ylabel="share",
        log_x=True,
    )  # fmt: skip
    axes.plot(n, token**LENGTH, "--", color=plots.GREY, linewidth=1)
    plots.show(figure, alt="Shares of right tokens and of right answers over parameters.")


def figure_power() -> None:
    """Exact match over token accuracy for four lengths."""
    p = np.linspace(0.2, 1, 80)
    figure, axes = plots.new(
        "The longer the answer, the later and steeper the jump", "share of tokens right",
        "share of answers right",
    )  # fmt: skip
    heights = {1: 0.6, 5: 0.66, 20: 0.3, 100: -0.04}
    for colour, (length, height) in zip(plots.COLOURS, heights.items(), strict=False):
        axes.plot(p, p**length, color=colour)
        at = max(height, 0.02) ** (1 / length)
        axes.annotate(
            f"{length} token{'s' if length > 1 else ''}", (at, height), xytext=(-6, 0), va="center",
            textcoords="offset points", ha="right", color=colour, fontsize=9,
        )  # fmt: skip
    axes.set_ylim(-0.09, 1.03)
    measured = sorting("token_accuracy").mean(axis=1), sorting("exact").mean(axis=1)
    axes.plot(*measured, "o", color=plots.INK)
    axes.annotate("measured, 7 tokens", (measured[0][-3], measured[1][-3]), xytext=(-8, 6), ha="right",
                  textcoords="offset points", fontsize=9)  # fmt: skip
    plots.show(figure, alt="Share of right answers over the share of right tokens for four lengths.")


def figure_tasks() -> None:
    """Loss of each task over size at equal FLOPs."""
    n = table(record.recorded("compute"), None, "n_params").mean(axis=1)
    lines = {task: (n, at_compute(task, "nats").mean(axis=1)) for task in TASKS}
    figure, axes = plots.curve(
        lines, title="One budget, three tasks: each has its own range of sizes", xlabel="parameters",
        ylabel="nats an answer token", log_x=True, log_y=True,
    )  # fmt: skip
    axes.axhline(math.log(4), color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        "one of four",
        (n[3], math.log(4)),
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        color=plots.GREY,
        fontsize=9,
    )
    plots.show(figure, alt="Loss of three tasks over parameters at equal FLOPs.")


def figure_seeds() -> None:
    """Recall's loss during training, one size, many seeds."""
    figure, axes = plots.new(
        "A jump that no metric made: most seeds wait, some learn at once",
        "places read",
        "nats an answer token of recall",
    )
    for row in record.recorded("seeds"):
        marks = np.array(row["curve"])
        learned = row["scores"]["recall"]["token_accuracy"] > 0.9
        axes.plot(
            marks[:, 0],
            marks[:, 4],
            color=plots.COLOURS[1 if learned else 0],
            linewidth=2 if learned else 0.8,
        )
    plots.reference(axes, math.log(4), "one of four", at="left")
    axes.set_ylim(0, None)
    plots.show(figure, alt="Loss of recall during training for many seeds of one size.")


def figure_repeats() -> None:
    """Held-out loss above the language over unique text, at the end and at the best mark."""
    symbols = np.array([min(u, DESIGN.repeat_steps * 16) * ASKED for u in DESIGN.lengths], dtype=float)
    lines = {
        f"width {width}": (symbols, np.array([repeats()[width, u].mean(axis=0)[2] for u in DESIGN.lengths]))
        for width in DESIGN.repeat_widths
    }
    figure, axes = plots.curve(
        lines, title="Read on and on, a short text punishes size; a long one rewards it",
        xlabel="unique symbols", ylabel="held-out loss above the language's, nats", log_x=True, log_y=True,
    )  # fmt: skip
    for colour, width in zip(plots.COLOURS, DESIGN.repeat_widths, strict=False):
        best = [repeats()[width, u].mean(axis=0)[1] for u in DESIGN.lengths]
        axes.plot(symbols, best, "--", color=colour, linewidth=1)
    axes.annotate("— at the end   - - stopped in time", (0.98, 0.95), xycoords="axes fraction", ha="right",
                  fontsize=9)  # fmt: skip
    plots.show(figure, alt="Held-out loss over unique symbols for three sizes.")


def figure_leaks() -> None:
    """Laws on clean and on leaked documents."""
    size, losses, laws, truth = leaks()
    at = np.geomspace(size[0], 10 * size[-1], 60)
    figure, axes = plots.curve(
        {name: (at, law(at)) for name, law in laws.items()}, title="A leak bends the law, not only its level",
        xlabel="parameters", ylabel="held-out loss, nats a symbol", log_x=True,
        references={"the language itself": truth}, references_at="left",
    )  # fmt: skip
    for values in losses.values():
        axes.plot(size, values.mean(axis=1), "o", color=plots.INK, markersize=4)
    plots.show(figure, alt="Loss over parameters on clean and on leaked documents, with laws.")


def figure_times() -> None:
    """What a leak gains over how often it stands in the training text."""
    plain = {times: values.mean() for (times, every), values in gains().items() if not every}
    figure, axes = plots.curve(
        {"word for word": (list(plain), list(plain.values()))},
        title="More copies, more remembered; a respelled copy counts as well", xlabel="copies",
        ylabel="gain on what leaked, nats", log_x=True,
    )  # fmt: skip
    told = float(gains()[DESIGN.times, DESIGN.respelled_every].mean())
    axes.plot([DESIGN.times], [told], "o", markersize=9, fillstyle="none", color=plots.INK)
    axes.annotate(
        f"one symbol in {DESIGN.respelled_every} respelled", (DESIGN.times, told), xytext=(0, -16),
        textcoords="offset points", ha="center", fontsize=9,
    )  # fmt: skip
    axes.set_ylim(-0.2, None)
    axes.set_xticks(list(plain), [str(times) for times in plain])
    axes.minorticks_off()
    plots.show(figure, alt="Gain on leaked documents over the number of copies.")
