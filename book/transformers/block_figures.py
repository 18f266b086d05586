"""Tables and figures of the chapter `block`, computed from configs and from the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.core.units import bits_per_byte
from scalelab.cost import params
from scalelab.lab import plots
from scalelab.lab.records import study_json, study_runs
from scalelab.lab.transformers.ablation_records import (
    STUDY,
    by_rate,
    chosen_rate,
    cost_of,
    interval,
    judged,
    rates_tried,
)

LAB = DecoderConfig(
    n_layers=3, d_model=96, n_heads=3, vocab_size=1024, seq_len=128, positions="rope", feed_forward="gelu"
)
TRAINING = "transformers/training"
N_DEEP = 24  # layers of the untrained models that are measured
STD = 0.02
LARGE = 10  # times STD, of the start "all 0.2"
NAMES = {
    "no-residual": "no residual",
    "no-residual-fan-in": "no residual (start: 1/√inputs)",
    "post-norm": "post-norm",
    "post-norm-cold": "post-norm without warm-up",
    "cold": "no warm-up",
    "no-norm": "no norms",
    "rmsnorm": "RMSNorm for LayerNorm",
    "flat-start": "start: all 0.02",
    "fan-in-start": "start: 1/√inputs",
    "large-start": "start: all 0.2",
    "no-scale": "scores not divided by √K",
    "no-positions": "no positions",
    "learned-positions": "learned table for rotary",
    "relu": "ReLU for GELU",
    "swiglu": "SwiGLU for GELU",
}


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from configs or from the study, ready to print."""
    layers = 2 * N_DEEP
    return {
        **study_numbers(),
        **depth_numbers(),
        **gpt2_numbers(),
        **loud_numbers(),
        "product_small": f"{0.9**layers:.4f}",
        "product_large": f"{1.1**layers:.0f}",
        "n_sublayers": str(layers),
        "gpt2_params": f"{params('gpt2').total:,}",
    }


def study_numbers() -> dict[str, str]:
    """What the recorded ablations give."""
    found = {}
    for arm in ("baseline", "deep", *NAMES):
        bits = interval(list(judged(arm).values()))
        found[f"bpb_{arm}"] = f"{bits.mean:.2f}"
        found[f"rate_{arm}"] = f"{chosen_rate(arm):g}"
    for arm in NAMES:
        found[f"cost_{arm}"] = show_cost(arm)
        found[f"mean_{arm}"] = f"{cost_of(arm).mean:+.2f}".replace("-", "−")
    found["cost_deep-post-norm"] = show_cost("deep-post-norm", "deep")
    found["rate_deep-post-norm"] = f"{chosen_rate('deep-post-norm'):g}"
    run = study_runs(STUDY, "baseline")[0]
    costs = {name: cost_of(arm) for arm, name in NAMES.items()}
    ranked = sorted(costs, key=lambda name: -costs[name].mean)
    tables = {name: study_runs(TRAINING, name) for name in ("minute", "minute-table")}
    next_run = tables["minute"][0]
    means = {name: statistics.fmean(each.bits_per_byte for each in runs) for name, runs in tables.items()}
    double = 2 * chosen_rate("post-norm")
    return {
        **found,
        "nulls": in_words([name for name in ranked if costs[name].is_null]),
        "worse": in_words([name for name in ranked if costs[name].low > 0]),
        "better": in_words([name for name in ranked if costs[name].high < 0]),
        "half_width": f"{statistics.median(cost.half_width for cost in costs.values()):.2f}",
        "table_gap": f"{means['minute-table'] - means['minute']:.2f}",
        "size_ratio": f"{next_run.n_params / run.n_params:.1f}",
        "token_ratio": f"{next_run.n_tokens / run.n_tokens:.0f}",
        "double_rate": f"{double:g}",
        "pre_at_double": ", ".join(f"{bits:.2f}" for bits in by_rate("baseline")[double].values()),
        "post_at_double": f"{rates_tried('post-norm')[double]:.2f}",
        "pre_first": f"{rates_tried('baseline')[double]:.2f}",
        "n_seeds": str(len(judged("baseline"))),
        "study_params": f"{run.n_params:,}",
        "study_tokens": f"{run.n_tokens:,}",
        "unigram": f"{unigram_bits():.2f}",
    }


def in_words(names: Sequence[str]) -> str:
    """As in "a, b and c"; "nothing" where there are none."""
    if not names:
        return "nothing"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def unigram_bits() -> float:
    """Bits per byte of a model that knows how often each token occurs and no more, on the study's text."""
    found = study_json(STUDY, "unigram")
    return bits_per_byte(found["loss_nats"], found["n_tokens"], found["n_bytes"])


def show_cost(arm: str, against: str = "baseline") -> str:
    """As in "+0.12 [0.05, 0.19]"."""
    cost = cost_of(arm, against)
    return f"{cost.mean:+.2f} [{cost.low:+.2f}, {cost.high:+.2f}]".replace("-", "−")


def depth_rows(arm: str, key: str, when: str = "untrained") -> list[float]:
    """A measure through the depth: geometric mean over seeds, at each place."""
    rows = [row[key] for row in study_json(STUDY, "depth") if row["arm"] == arm and row["when"] == when]  # type: ignore[index]
    return [
        float(math.exp(statistics.fmean(math.log(abs(v)) for v in place)))
        for place in zip(*rows, strict=True)
    ]


def depth_numbers() -> dict[str, str]:
    """What was measured through the depth of untrained models."""
    flat, scaled = (depth_rows(arm, "stream") for arm in ("pre-norm, flat", "pre-norm"))
    gradient = {arm: depth_rows(arm, "gradient") for arm in ("no norm, fan-in", "pre-norm", "no residual")}
    alike = depth_rows("no residual, fan-in", "alike")
    return {
        "flat_growth": f"{flat[-1] / flat[0]:.1f}",
        "scaled_growth": f"{scaled[-1] / scaled[0]:.2f}",
        "scaled_predicted": f"{math.sqrt(1 + mean_square_ratio()):.2f}",
        "flat_predicted": f"{math.sqrt(1 + 2 * N_DEEP * mean_square_ratio()):.1f}",
        "write_ratio": f"{math.sqrt(mean_square_ratio()):.2f}",
        "explosion": power_of_ten(gradient["no norm, fan-in"][1] / gradient["no norm, fan-in"][-1]),
        "late_voice": f"{depth_rows('pre-norm, flat', 'added')[-1] / flat[-1]:.0%}",
        "vanished": f"{gradient['no residual'][-1] / gradient['no residual'][1]:,.0f}",
        "alike_at": str(next(place for place, value in enumerate(alike) if value > 0.95)),
        "alike_scaled": f"{depth_rows('pre-norm', 'alike')[-1]:.2f}",
        "alike_loud": f"{depth_rows('pre-norm, fan-in', 'alike')[-1]:.2f}",
    }


def power_of_ten(value: float) -> str:
    """As in 3 · 10¹²."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit} · 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def mean_square_ratio() -> float:
    """Mean square of what a sub-layer of the flat start writes, over that of the stream's start."""
    added = depth_rows("pre-norm, flat", "added")
    start = depth_rows("pre-norm, flat", "stream")[0]
    return statistics.fmean(value**2 for value in added) / start**2


def gelu(z: np.ndarray) -> np.ndarray:
    """z Φ(z)."""
    return z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def bent_size(size: float) -> float:
    """Root mean square of what GELU makes of normal numbers of this size."""
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    return math.sqrt(float(np.sum(gelu(size * grid) ** 2 * density)))


def loud_numbers() -> dict[str, str]:
    """The study's first feed-forward write over the token's own vector, from variances alone."""
    config = study_runs(STUDY, "baseline")[0].config
    wide = LARGE * STD * math.sqrt(config["d_model"])
    return {
        "loud_fan_in": f"{bent_size(1.0) / STD:.0f}",  # the table's numbers stay at 0.02
        "loud_large": f"{bent_size(wide) * math.sqrt(config['d_ff']):.0f}",  # W_down and the table are alike
    }


def gpt2_numbers() -> dict[str, str]:
    """The first write of GPT-2's feed-forward part, from variances alone."""
    config = preset("gpt2")
    assert isinstance(config, DecoderConfig)
    wide = STD * math.sqrt(config.d_model)  # after W_up: the norm hands in numbers of size 1
    bent = bent_size(wide)
    write = STD * math.sqrt(config.ff_width) * bent
    start = STD * math.sqrt(2)  # token table and position table
    return {
        "gpt2_wide": f"{wide:.2f}",
        "gpt2_bent": f"{bent:.2f}",
        "gpt2_write": f"{write:.2f}",
        "gpt2_start": f"{start:.3f}",
        "gpt2_write_ratio": f"{write / start:.0f}",
        "gpt2_scaled_write": f"{write / math.sqrt(2 * config.n_layers):.2f}",
        "gpt2_root": f"{math.sqrt(2 * config.n_layers):.1f}",
    }


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_parts() -> HTML:
    """Where GPT-2's and Llama's parameters are, with the product that gives each line."""
    gpt2, llama = params("gpt2"), params("llama-3.1-8b")
    formulas = {
        "token table": ("V·D", "V·D"),
        "position table": ("T·D", ""),
        "queries, keys, values": ("L·(3D² + 3D)", "L·(D² + 2·D·1,024)"),
        "attention output": ("L·(D² + D)", "L·D²"),
        "feed-forward": ("L·(8D² + 5D)", "L·3·D·14,336"),
        "norms": ("(2L + 1)·2D", "(2L + 1)·D"),
        "head": ("the token table", "V·D"),
    }
    rows = []
    for part, (of_gpt2, of_llama) in formulas.items():
        counts = [f"{model.parts[part]:,}" if part in model.parts else "0" for model in (gpt2, llama)]
        rows.append([part, of_gpt2, counts[0], of_llama, counts[1]])
    rows.append(["all", "", f"{gpt2.total:,}", "", f"{llama.total:,}"])
    return table(["", "GPT-2", "parameters", "Llama 3 8B", "parameters"], rows)


def table_parameters() -> HTML:
    """The envelope's rule against the exact count."""
    rows = []
    models = {"the next chapter's model": LAB, "GPT-2": preset("gpt2"), "GPT-2 XL": preset("gpt2-xl"),
              "Llama 3 8B": preset("llama-3.1-8b")}  # fmt: skip
    for name, config in models.items():
        assert isinstance(config, DecoderConfig)
        blocks = 12 * config.n_layers * config.d_model**2
        tables = config.vocab_size * config.d_model
        if config.positions == "learned":
            tables += config.seq_len * config.d_model
        exact = params(config).total
        rows.append([
            name, f"{config.n_layers}", f"{config.d_model:,}", f"{config.vocab_size:,}", f"{blocks:,}",
            f"{tables:,}", f"{exact:,}", f"{(blocks + tables) / exact - 1:+.1%}".replace("-", "−"),
        ])  # fmt: skip
    return table(["", "L", "D", "V", "12·L·D²", "tables", "exact count", "the rule is off by"], rows)


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "block", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)


def panels(n_panels: int, *, width: float, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Empty panels side by side in the course's style."""
    with matplotlib.rc_context(dict(plots.STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes: list[Axes] = []
        for place in range(n_panels):
            first = axes[0] if share_y and axes else None
            axes.append(figure.add_subplot(1, n_panels, place + 1, sharey=first))
    return figure, axes


# --- the stream, drawn ------------------------------------------------------------------------------------


def figure_stream() -> None:
    """The stream as a river that is read by copies and only ever added to."""
    with matplotlib.rc_context(dict(plots.STYLE)):
        figure = Figure(figsize=(8.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlim(-0.1, 17.2)
    axes.set_ylim(-1.5, 5.4)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.add_patch(
        FancyArrowPatch((1.5, 0), (15.3, 0), arrowstyle="simple,head_length=14,head_width=34,tail_width=22",
                        color="#BFDDF0", zorder=1)
    )  # fmt: skip
    for x, text in ((6.05, "the stream"), (9.35, "D numbers a token")):
        axes.text(x, -0.02, text, ha="center", va="center", fontsize=8.5, color="#004A75", zorder=3)
    _box(axes, 0.75, 0, "token\ntable", plots.COLOURS[4], width=1.5)
    _box(axes, 16.1, 0, "norm,\nhead", plots.COLOURS[4], width=1.7)
    axes.text(16.1, -1.2, "reads what\nis there", ha="center", va="center", fontsize=8, color=plots.GREY)
    axes.text(0.8, -1.2, "writes first", ha="center", va="center", fontsize=8, color=plots.GREY)
    for left, name, colour, note in (
        (2.4, "attention", plots.COLOURS[1], "looks at other tokens"),
        (5.7, "feed-\nforward", plots.COLOURS[2], "each token by itself"),
        (9.0, "attention", plots.COLOURS[1], ""),
        (12.3, "feed-\nforward", plots.COLOURS[2], ""),
    ):
        _sublayer(axes, left, name, colour, note)
    for left, label in ((2.4, "block 1"), (9.0, "block 2")):
        axes.plot([left, left + 5.6], [-0.75, -0.75], color=plots.GREY, linewidth=1.2)
        axes.text(left + 2.8, -0.85, label, ha="center", va="top", fontsize=9, color=plots.GREY)
    axes.set_title("Everyone reads a normed copy; everyone adds", loc="left")
    show(figure, "The residual stream as a band with two blocks that read normed copies and add to it.")


def _sublayer(axes: Axes, left: float, name: str, colour: str, note: str) -> None:
    right = left + 2.0
    axes.add_patch(
        FancyArrowPatch((left, 0.35), (left, 2.9), arrowstyle="-|>", mutation_scale=11, color=plots.GREY)
    )
    axes.add_patch(Circle((left, 1.55), 0.52, facecolor="white", edgecolor=plots.GREY, zorder=3))
    axes.text(left, 1.55, "norm", ha="center", va="center", fontsize=7.5, zorder=4)
    _box(axes, (left + right) / 2, 3.75, name, colour, width=2.6, height=1.6)
    axes.add_patch(
        FancyArrowPatch((right, 2.9), (right, 0.5), arrowstyle="-|>", mutation_scale=11, color=colour)
    )
    axes.add_patch(Circle((right, 0.02), 0.4, facecolor="white", edgecolor=colour, linewidth=1.6, zorder=4))
    axes.text(
        right, 0.0, "+", ha="center", va="center", fontsize=13, color=colour, zorder=5, fontweight="bold"
    )
    if note:
        axes.text((left + right) / 2, 4.85, note, ha="center", va="bottom", fontsize=8, color=plots.GREY)


def _box(
    axes: Axes, x: float, y: float, text: str, colour: str, *, width: float, height: float = 1.5
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.2",
            facecolor="white", edgecolor=colour, linewidth=2, zorder=3,
        )
    )  # fmt: skip
    axes.text(x, y, text, ha="center", va="center", fontsize=9, zorder=4)


# --- measured through the depth ---------------------------------------------------------------------------


def figure_sizes() -> None:
    """Size of the stream and of each write: flat and scaled starts of pre-norm, and post-norm."""
    figure, axes = panels(3, width=8.6, height=3.3, share_y=True)
    arms = {"pre-norm, flat": "pre-norm, all at 0.02", "pre-norm": "pre-norm, writers / √(2L)",
            "post-norm": "post-norm, all at 0.02"}  # fmt: skip
    for panel, (arm, title) in zip(axes, arms.items(), strict=True):
        stream, added = depth_rows(arm, "stream"), depth_rows(arm, "added")
        places = np.arange(len(stream))
        panel.plot(places, stream, color=plots.COLOURS[0])
        panel.plot(places[1::2], added[::2], "o", markersize=3, color=plots.COLOURS[1])
        panel.plot(places[2::2], added[1::2], "s", markersize=3, color=plots.COLOURS[2])
        panel.set_title(title, fontsize=9.5)
        panel.set_yscale("log")
        panel.set_xlabel("sub-layer")
    axes[0].set_ylabel("size (RMS)")
    stream = depth_rows("pre-norm, flat", "stream")
    axes[0].text(24, stream[24] * 1.35, "the stream", color=plots.COLOURS[0], fontsize=9, ha="right")
    axes[1].text(47, 0.0034, "feed-forward writes", color=plots.COLOURS[2], fontsize=9, ha="right")
    axes[1].text(47, 0.00057, "attention writes", color=plots.COLOURS[1], fontsize=9, ha="right")
    show(figure, "Sizes of the stream and of what each sub-layer writes, over 48 sub-layers, three starts.")


def figure_gradients() -> None:
    """The gradient through the depth, and how alike the tokens become."""
    figure, axes = panels(2, width=8.6, height=3.5)
    arms = {
        "no norm, fan-in": "no norms",
        "no residual": "no residual, 0.02",
        "post-norm, fan-in": "post-norm",
        "no residual, fan-in": "no residual",
        "pre-norm": "pre-norm, scaled",
    }
    for panel, key in zip(axes, ("gradient", "alike"), strict=True):
        for index, (arm, name) in enumerate(arms.items()):
            values = depth_rows(arm, key)
            if key == "gradient":
                values = [value / values[-1] for value in values][1:]
            places = range(len(values)) if key == "alike" else range(1, len(values) + 1)
            panel.plot(places, values, color=plots.COLOURS[index], label=name)
        panel.set_xlabel("sub-layer")
    axes[0].set_yscale("log")
    axes[0].set_title("gradient there / gradient at the end", fontsize=9.5)
    axes[1].set_title("cosine between two tokens of a text", fontsize=9.5)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    show(figure, "Gradients through 48 sub-layers for five kinds of decoder, and how alike tokens become.")


def figure_bends() -> None:
    """ReLU, GELU and silu, and their slopes."""
    z = np.linspace(-4, 4, 401)
    sigmoid = 1 / (1 + np.exp(-z))
    lines = {"ReLU": np.maximum(z, 0), "GELU": gelu(z), "silu": z * sigmoid}
    figure, axes = panels(2, width=8.0, height=3.0)
    for index, (name, values) in enumerate(lines.items()):
        axes[0].plot(z, values, color=plots.COLOURS[index], label=name)
        axes[1].plot(z, np.gradient(values, z), color=plots.COLOURS[index])
    axes[0].set_title("the bend", fontsize=9.5)
    axes[1].set_title("its slope", fontsize=9.5)
    for panel in axes:
        panel.set_xlabel("z")
    axes[0].legend(frameon=False, fontsize=9)
    show(figure, "ReLU, GELU and silu, and their slopes.")


# --- the ablations ----------------------------------------------------------------------------------------


def figure_costs() -> None:
    """What each change costs, with its interval over seeds."""
    costs = sorted(((cost_of(arm), name) for arm, name in NAMES.items()), key=lambda pair: -pair[0].mean)
    figure, axes = panels(1, width=7.6, height=5.2)
    panel = axes[0]
    for row, (cost, _) in enumerate(costs):
        colour = plots.GREY if cost.is_null else plots.COLOURS[1] if cost.mean > 0 else plots.COLOURS[2]
        panel.plot([cost.low, cost.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        panel.plot([cost.mean], [row], "o", color=colour)
    panel.axvline(0, color=plots.GREY, linewidth=1.2)
    panel.set_yticks(range(len(costs)), [name for _, name in costs])
    panel.invert_yaxis()
    panel.set_xlabel("bits per byte worse than the unchanged model (left of the line: better)")
    panel.set_title("What each change costs; grey: no difference found")
    show(figure, "Cost of each change in bits per byte with intervals.")


def figure_rates() -> None:
    """Loss over learning rate, where norms stand."""
    figure, axes = panels(2, width=8.4, height=3.4, share_y=True)
    groups: Sequence[tuple[str, dict[str, str]]] = (
        ("4 layers", {"baseline": "pre-norm", "post-norm": "post-norm", "no-norm": "no norms"}),
        ("12 layers", {"deep": "pre-norm", "deep-post-norm": "post-norm"}),
    )
    for panel, (title, arms) in zip(axes, groups, strict=True):
        rates: set[float] = set()
        for index, (arm, name) in enumerate(arms.items()):
            bits = {rate: value for rate, value in rates_tried(arm).items() if math.isfinite(value)}
            rates |= set(bits)
            panel.plot(list(bits), list(bits.values()), "o-", color=plots.COLOURS[index], label=name)
            for rate, seeds in by_rate(arm).items():
                values = [value for value in seeds.values() if math.isfinite(value)]
                panel.plot([rate] * len(values), values, "o", color=plots.COLOURS[index], alpha=0.45)
        panel.axhline(unigram_bits(), color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)))
        panel.set_xscale("log")
        panel.set_xticks(sorted(rates), [f"{1000 * rate:g}" for rate in sorted(rates)])
        panel.minorticks_off()
        panel.set_title(title, fontsize=9.5)
        panel.set_xlabel("peak learning rate, thousandths")
        panel.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("held-out bits per byte")
    axes[0].text(
        axes[0].get_xlim()[0], unigram_bits() + 0.01, " token frequencies alone", fontsize=8, color=plots.GREY
    )
    show(figure, "Loss over learning rate for pre-norm, post-norm and no norms.")
