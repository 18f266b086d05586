"""Tables and figures of the chapter `inference`, computed from formulas, configs and the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import dataclasses
import io
import math
import statistics
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from IPython.display import HTML, display
from matplotlib.figure import Figure

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import Pass, decode_pass, kv_cache_bytes, params, prefill_pass, require_accelerator
from scalelab.lab import plots
from scalelab.lab.records import study_json
from scalelab.lab.transformers.roofline import Roofline, draw_roofline

STUDY = "transformers/inference"
CONTEXT = 1024  # of the worked examples
BATCHES = (1, 4, 16, 64, 256)
H100_BYTES = 81_559 * 2**20  # what the driver of one with 80 GB shows
DOLLARS_AN_HOUR = 2.5  # assumed, not measured: the reader's own price goes here
LOGITS = {"the": 3.0, "a": 2.0, "my": 1.0, "no": 0.0, "blue": -1.0, "of": -2.0}  # the worked example
P, Q = (0.5, 0.3, 0.2), (0.2, 0.7, 0.1)  # target and draft of the worked example
N_PLACES, MEAN_LENGTH = 16, 128
WAYS = ("people", "everything", "top-p 0.9", "greedy", "beam search, 4", "beam search, 16")


def llama() -> DecoderConfig:
    """The model of the worked numbers."""
    found = preset("llama-3.1-8b")
    assert isinstance(found, DecoderConfig)
    return found


def h100() -> Roofline:
    """Two limits of an H100 as its maker states them, bf16 without sparsity."""
    found = require_accelerator("h100")
    return Roofline(
        peak_flops_per_s=found.peak_flops["bf16"], bandwidth_bytes_per_s=found.bandwidth_bytes_per_s
    )


def step(n_texts: int, context: int = CONTEXT) -> Pass:
    """One step of Llama, writing a token for each text."""
    return decode_pass(llama(), batch_size=n_texts, context_len=context)


def least_seconds(work: Pass) -> float:
    """What a pass takes on an H100 at least."""
    return work.seconds(h100().peak_flops_per_s, h100().bandwidth_bytes_per_s)


def dollars_a_million(n_tokens: int, seconds: float) -> float:
    """Price of a million tokens of a pass that yields `n_tokens`."""
    return DOLLARS_AN_HOUR * seconds / 3600 * 1e6 / n_tokens


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config or the study, ready to print."""
    return {
        **bill_numbers(),
        **machine_numbers(),
        **text_numbers(),
        **draft_numbers(),
        **try_numbers(),
        **queue_numbers(),
    }


def bill_numbers() -> dict[str, str]:
    """Llama-3.1-8B on an H100: cache, prefill, steps, prices."""
    config, roof = llama(), h100()
    own_keys = dataclasses.replace(config, n_kv_heads=config.n_heads)
    token = kv_cache_bytes(config, batch_size=1, seq_len=1)
    prefill = prefill_pass(config, batch_size=1, seq_len=CONTEXT)
    one, many = step(1), step(64)
    room = H100_BYTES - 2 * params(config).total
    prefill_price = dollars_a_million(CONTEXT, least_seconds(prefill))
    return {
        "kv_token": f"{token / 1024:.0f} KiB",
        "kv_token_own": f"{kv_cache_bytes(own_keys, batch_size=1, seq_len=1) / 1024:.0f} KiB",
        "kv_1k": f"{token * CONTEXT / 1e6:.0f} MB",
        "kv_full": f"{token * config.seq_len / 1e9:.1f} GB",
        "kv_room_texts": f"{room // (token * 8192):.0f}",
        "weights_gb": f"{2 * params(config).total / 1e9:.1f} GB",
        "weights_moved": f"{one.weights_bytes / 1e9:.1f} GB",
        "ridge": f"{roof.ridge:.0f}",
        "peak": f"{roof.peak_flops_per_s / 1e12:.0f} TFLOP/s",
        "bandwidth": f"{roof.bandwidth_bytes_per_s / 1e12:.2f} TB/s",
        "prefill_flops": f"{prefill.flops.total / 1e12:.1f} TFLOPs",
        "prefill_ms": f"{1e3 * least_seconds(prefill):.1f} ms",
        "prefill_intensity": f"{prefill.intensity:,.0f}",
        "step_ms": f"{1e3 * least_seconds(one):.1f} ms",
        "step_intensity": f"{one.intensity:.2f}",
        "step_gflops": f"{one.flops.total / 1e9:.1f} GFLOPs",
        "step_rate": f"{1 / least_seconds(one):.0f}",
        "ideal_rate": f"{roof.peak_flops_per_s / one.flops.total / 1e3:.0f} thousand",
        "cache_tokens": f"{sum(range(32, 160)) / 159:.0f}",
        "step_busy": f"{one.flops.total / roof.peak_flops_per_s / least_seconds(one):.1%}",
        "step64_ms": f"{1e3 * least_seconds(many):.1f} ms",
        "step64_rate": f"{64 / least_seconds(many):,.0f}",
        "limit_intensity": f"{cache_intensity():.1f}",
        "price_hour": f"{DOLLARS_AN_HOUR:.2f}",
        "price_one": f"{dollars_a_million(1, least_seconds(one)):.2f}",
        "price_64": f"{dollars_a_million(64, least_seconds(many)):.2f}",
        "price_prompt": f"{prefill_price:.3f}",
        "price_ratio": f"{dollars_a_million(64, least_seconds(many)) / prefill_price:.0f}",
    }


def cache_intensity() -> float:
    """FLOPs a byte of a step whose batch is so large that the weights no longer count."""
    large = step(1_000_000)
    return large.intensity


def machine_numbers() -> dict[str, str]:
    """The recorded roofline of two cores, and what was measured below it."""
    found = study_json(STUDY, "timings")
    passes = {row["name"]: row for row in found["passes"]}
    one, prefill = passes["decode, batch 1"], passes["prefill, 128"]
    sixteen = passes["decode, batch 16"]
    cache, peers = found["cache"], found["peers"]
    return {
        "cpu_params": f"{found['n_params'] / 1e6:.0f} million",
        "cpu_mb": f"{found['n_bytes'] / 1e6:.0f} MB",
        "cpu_peak": f"{found['peak_flops_per_s'] / 1e9:.0f} GFLOP/s",
        "cpu_bandwidth": f"{found['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s",
        "cpu_ridge": f"{found['peak_flops_per_s'] / found['bandwidth_bytes_per_s']:.0f}",
        "cpu_prefill_times": f"{prefill['seconds'] / one['seconds']:.0f}",
        "cpu_sixteen": f"{16 * one['seconds'] / sixteen['seconds']:.1f}",
        "cache_one": f"{cache[0]['ratio']:.1f}",
        "cache_eight": f"{cache[1]['ratio']:.1f}",
        "peer_one": f"{peers[0]['ratio']:.2f}",
        "peer_one_interval": "{:.2f}–{:.2f}".format(*peers[0]["interval"]),
        "cost_ratio": f"{found['drafting']['draft, 1'] / found['drafting']['target, 1']:.2f}",
        "five_ratio": f"{found['drafting']['target, 5'] / found['drafting']['target, 1']:.1f}",
    }


def text_numbers() -> dict[str, str]:
    """What five ways of writing give, means over seeds; and how many tokens are open."""
    rows = study_json(STUDY, "texts")["runs"]
    found = {
        "text_seeds": str(len(rows)),
        "text_count": str(rows[0]["n_texts"]),
        "nucleus_median": f"{mean_of(rows, 'median'):.0f}",
        "nucleus_mean": f"{mean_of(rows, 'mean'):.0f}",
        "nucleus_few": f"{mean_of(rows, 'at_most_2'):.0%}",
        "nucleus_many": f"{mean_of(rows, 'at_least_100'):.0%}",
    }
    for way in WAYS:
        short = way.replace(",", "").replace("-", "_").replace(" ", "_").replace(".", "")
        found[f"nats_{short}"] = f"{-written(way, 'nats_a_token'):.2f}"
        found[f"repeated_{short}"] = f"{written(way, 'repeated'):.0%}"
    return found


def mean_of(rows: list[dict[str, Any]], key: str) -> float:
    """A number of the nucleus, over seeds."""
    return statistics.mean(row["nucleus"][key] for row in rows)


def written(way: str, key: str) -> float:
    """A number of one way of writing, over seeds."""
    return statistics.mean(row["ways"][way][key] for row in study_json(STUDY, "texts")["runs"])


def draft_numbers() -> dict[str, str]:
    """Drafts: shares kept and tokens a pass, against the formulas."""
    rows = [row for row in study_json(STUDY, "drafts")["runs"] if row["n_draft"] == 4]
    fewest = min(row["n_tokens"] for row in rows)
    rows = [row for row in rows if row["n_tokens"] == fewest]
    alpha = statistics.mean(row["acceptance"] for row in rows)
    timing = study_json(STUDY, "timings")["drafting"]
    c = timing["draft, 1"] / timing["target, 1"]
    best = max((gain(alpha, n, c), n) for n in range(1, 9))
    keeps = sum(min(p, q) for p, q in zip(P, Q, strict=True))
    return {
        "draft_seeds": str(len(rows)),
        "draft_alpha": f"{alpha:.2f}",
        "draft_overlap": f"{statistics.mean(row['overlap'] for row in rows):.2f}",
        "draft_passes": f"{statistics.mean(row['tokens_per_pass'] for row in rows):.2f}",
        "draft_formula": f"{statistics.mean(row['formula'] for row in rows):.2f}",
        "draft_gain": f"{best[0]:.2f}",
        "draft_best": str(best[1]),
        "example_kept": f"{keeps:.1f}",
        "large_gain": f"{gain(0.8, 5, 0.05):.1f}",
        "large_tokens": f"{tokens_a_pass(0.8, 5):.2f}",
    }


def tokens_a_pass(alpha: float, n_draft: int) -> float:
    """(1 - α^(γ+1)) / (1 - α)."""
    return sum(alpha**k for k in range(n_draft + 1))


def gain(alpha: float, n_draft: int, c: float) -> float:
    """How many times as fast: tokens a pass over what pass and drafts cost."""
    return tokens_a_pass(alpha, n_draft) / (n_draft * c + 1)


def try_numbers() -> dict[str, str]:
    """Valid Python in k tries, means over seeds; and majority votes."""
    rows = study_json(STUDY, "tries")["runs"]
    tries = rows[0]["tries"]
    at_least = np.mean([row["at_least_one"] for row in rows], axis=0)
    alike = np.mean([row["if_alike"] for row in rows], axis=0)
    at = tries.index(8)
    return {
        "tries_heads": str(len(rows[0]["heads"])),
        "tries_samples": str(rows[0]["n_samples"]),
        "tries_one": f"{at_least[0]:.0%}",
        "tries_eight": f"{at_least[at]:.0%}",
        "tries_eight_alike": f"{alike[at]:.1%}",
        "vote_60_1": f"{majority(0.6, 1):.0%}",
        "vote_60_25": f"{majority(0.6, 25):.0%}",
        "vote_40_25": f"{majority(0.4, 25):.0%}",
    }


def majority(p: float, n: int) -> float:
    """How likely more than half of n independent answers are right."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n // 2 + 1, n + 1))


def queue_numbers() -> dict[str, str]:
    """Places in use when a batch waits for its longest text."""
    longest = sum(1 / k for k in range(1, N_PLACES + 1))
    return {"queue_longest": f"{longest:.2f}", "queue_used": f"{1 / longest:.0%}"}


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_top_p() -> HTML:
    """Six tokens at two temperatures, with the mass before each."""
    rows = []
    hot, cool = (tempered(t) for t in (1.0, 0.5))
    for place, name in enumerate(LOGITS):
        before = sum(hot[:place])
        kept = "kept" if before < 0.9 else "–"
        cool_kept = "kept" if sum(cool[:place]) < 0.9 else "–"
        rows.append(
            [name, f"{LOGITS[name]:g}", f"{hot[place]:.3f}", f"{before:.3f}", kept, f"{cool[place]:.3f}",
             cool_kept]
        )  # fmt: skip
    return table(["token", "logit", "p, τ = 1", "mass before", "top-p 0.9", "p, τ = 0.5", "top-p 0.9"], rows)


def tempered(temperature: float) -> list[float]:
    """Probabilities of the worked example."""
    weights = [math.exp(logit / temperature) for logit in LOGITS.values()]
    return [weight / sum(weights) for weight in weights]


def table_steps() -> HTML:
    """A step of Llama over batches: bytes, intensity, time, price."""
    rows = []
    for n in BATCHES:
        work = step(n)
        seconds = least_seconds(work)
        rows.append(
            [str(n), f"{work.cache_bytes / 1e9:.1f}", f"{work.intensity:.1f}", f"{1e3 * seconds:.1f}",
             f"{n / seconds:,.0f}", f"{dollars_a_million(n, seconds):.2f}"]
        )  # fmt: skip
    head = ["texts", "cache, GB", "FLOPs a byte", "a step, ms", "tokens/s", "$ a million tokens"]
    return table(head, rows)


def table_draft() -> HTML:
    """One draft judged, with three tokens: every way to each token."""
    rest = [max(0.0, p - q) for p, q in zip(P, Q, strict=True)]
    refused = sum(rest)
    rows = []
    for name, p, q, left in zip("ABC", P, Q, rest, strict=True):
        kept, new = min(p, q), left  # refused mass times residual / refused mass
        assert math.isclose(kept + new, p)
        rows.append(
            [name, f"{p:.1f}", f"{q:.1f}", f"{min(1, p / q):.3f}", f"{kept:.1f}", f"{left / refused:.2f}",
             f"{new:.1f}", f"{kept + new:.1f}"]
        )  # fmt: skip
    head = ["token", "p", "q", "kept if drafted", "as a draft", "residual", "as a replacement", "together"]
    return table(head, rows)


def figure_roofline() -> None:
    """Two cores, measured: the roof, and a model's passes below it."""
    found = study_json(STUDY, "timings")
    roof = Roofline(
        peak_flops_per_s=found["peak_flops_per_s"], bandwidth_bytes_per_s=found["bandwidth_bytes_per_s"]
    )
    shown = ("prefill, 128", "decode, batch 1", "decode, batch 4", "decode, batch 16", "decode, batch 64")
    points = {
        row["name"]: (row["intensity"], row["flops"] / row["seconds"])
        for row in found["passes"]
        if row["name"] in shown
    }
    figure, _ = draw_roofline(
        roof, points, title="Decoding climbs the slope with its batch; prefill is past it", where="two cores"
    )
    show(figure, "Measured roofline of two cores with five passes of a model below it.")


def figure_ways() -> None:
    """How likely each way's text is by the model's own account, and how much it repeats."""
    figure, axes = plots.new(
        "The likeliest text is not like what people write",
        "surprise by the model's own account, nats a token", "4-grams seen before in the same text",
    )  # fmt: skip
    for index, way in enumerate(WAYS):
        x, y = -written(way, "nats_a_token"), written(way, "repeated")
        axes.plot([x], [y], "o", color=plots.COLOURS[index], markersize=8)
        # Where the neighbours leave room.
        offset = {
            "everything": (-8, 8),
            "top-p 0.9": (-8, 6),
            "beam search, 4": (8, 2),
            "greedy": (4, -14),
        }.get(way, (8, 6))
        axes.annotate(
            way, (x, y), xytext=offset, textcoords="offset points", fontsize=9,
            ha="right" if offset[0] < 0 else "left", color=plots.COLOURS[index], fontweight="bold",
        )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1.25 * -min(written(way, "nats_a_token") for way in WAYS))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Repetition over surprise for five ways of writing and for people.")


def figure_slots() -> None:
    """Four places over time: a batch that waits, and one that does not."""
    draw = np.random.default_rng(3)
    lengths = [int(length) + 2 for length in draw.exponential(14, 16)]
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 3.4), layout="constrained")
        panels = [figure.add_subplot(2, 1, place) for place in (1, 2)]
    ends = []
    for axes, waits in zip(panels, (True, False), strict=True):
        free = [0] * 4
        for number, length in enumerate(lengths):
            if waits and number % 4 == 0:
                free = [max(free)] * 4
            place = number % 4 if waits else free.index(min(free))
            axes.barh(place, length, left=free[place], height=0.8, color=plots.COLOURS[number % 6],
                      edgecolor="white")  # fmt: skip
            free[place] += length
        ends.append(max(free))
        axes.axvline(max(free), color=plots.INK, linewidth=1.5)
        axes.set_title("Waiting for the longest" if waits else "A free place takes the next request",
                       fontsize=9)  # fmt: skip
        axes.set_yticks(range(4), [f"place {n}" for n in range(4)])
    for axes in panels:
        axes.set_xlim(0, 1.03 * max(ends))
    panels[1].set_xlabel("steps of decoding")
    show(figure, "The same sixteen requests in four places, by two rules; the second ends far earlier.")


def figure_drafts() -> None:
    """Tokens a pass over the share of drafts kept: formula and measurement."""
    rows = study_json(STUDY, "drafts")["runs"]
    figure, axes = plots.new(
        "What a pass yields grows with what is kept", "share of drafts kept, α", "tokens a pass"
    )
    grid = np.linspace(0, 0.9, 91)
    for index, n in enumerate((1, 2, 4, 8)):
        curve = [tokens_a_pass(float(a), n) for a in grid]
        axes.plot(grid, curve, color=plots.COLOURS[index])
        axes.annotate(f"γ = {n}", (grid[-1], curve[-1]), xytext=(5, 0), textcoords="offset points",
                      va="center", fontsize=9, color=plots.COLOURS[index], fontweight="bold")  # fmt: skip
        mine = [(row["acceptance"], row["tokens_per_pass"]) for row in rows if row["n_draft"] == n]
        axes.plot(*zip(*mine, strict=True), "o", color=plots.COLOURS[index], alpha=0.7)
    axes.set_xlim(0, 1)
    show(figure, "Tokens a pass over the share of drafts kept, formula as lines, measurements as dots.")


def figure_tries() -> None:
    """At least one valid continuation in k tries, over seeds."""
    rows = study_json(STUDY, "tries")["runs"]
    tries = rows[0]["tries"]
    figure, axes = plots.curve(
        {
            "measured": (tries, np.mean([row["at_least_one"] for row in rows], axis=0)),
            "if all were alike": (tries, np.mean([row["if_alike"] for row in rows], axis=0)),
        },
        title="More tries help, and the hard ones stay hard", xlabel="tries, k",
        ylabel="at least one is valid Python", log_x=True,
    )  # fmt: skip
    for row in rows:
        axes.plot(tries, row["at_least_one"], ".", color=plots.COLOURS[0], alpha=0.5)
    axes.set_xticks(tries, [str(k) for k in tries])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Share of heads with at least one valid continuation over the number of tries.")


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "inference", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
