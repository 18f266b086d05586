"""Tables and figures of the chapter `architectures`, computed from configs and from the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import flops, params
from scalelab.data.objectives import span_lengths
from scalelab.lab import plots
from scalelab.lab.transformers.ablation_records import Interval
from scalelab.lab.transformers.architecture_records import (
    KINDS,
    best_fill,
    difference,
    language,
    mean_of,
    rows,
    values,
)

PROMPT, ANSWER = ("def", "add", "(", "a", ",", "b", ")", ":"), ("return", "a", "+", "b")
COLOUR = dict(zip(KINDS, plots.COLOURS, strict=False))
NAMES = {"decoder": "decoder", "encoder": "encoder", "encoder-decoder": "encoder–decoder"}


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from configs or from the study, ready to print."""
    parts = (language_numbers, writing_numbers, sentence_numbers, position_numbers, config_numbers)
    return {name: value for part in parts for name, value in part().items()}


def language_numbers() -> dict[str, str]:
    """What the three architectures made of the same text."""
    first = {kind: rows("language", kind=kind)[0] for kind in KINDS}
    base = rows("baselines")[0]
    found = {
        "n_seeds": str(len(language("decoder", "fill_accuracy"))),
        "budget": in_powers(first["decoder"]["budget_flops"]),
        "unigram_nats": f"{base['unigram_nats']:.2f}",
        "commonest": f"{base['commonest']:.0%}",
        "n_questions": f"{base['n_questions']:,}",
        "n_long": str(base["n_long_questions"]),
        "n_names": f"{base['n_names'] // 2:,}",
        "chance": f"{1 / 8:.0%}",
    }
    for kind in KINDS:
        key = kind.replace("-", "_")
        for field in ("fill_accuracy", "next_accuracy", "probe", "probe_later", "probe_words"):
            found[f"{field}_{key}"] = f"{statistics.mean(language(kind, field)):.0%}"
        for field in ("fill_nats", "next_nats", "loss_nats"):
            found[f"{field}_{key}"] = f"{statistics.mean(language(kind, field)):.2f}"
        found[f"best_fill_{key}"] = f"{statistics.mean(language(kind, best_fill(kind))):.0%}"
        found[f"params_{key}"] = f"{first[kind]['n_params']:,}"
        found[f"tokens_{key}"] = f"{first[kind]['n_tokens'] / 1e6:.2f} million"
        found[f"targets_{key}"] = f"{first[kind]['n_targets'] / 1e6:.2f} million"
        found[f"rate_{key}"] = f"{first[kind]['learning_rate']:g}"
        found[f"early_{key}"] = f"{statistics.mean(early_losses(kind)):.2f}"
        found[f"untrained_{key}"] = f"{base['probe_untrained'][kind]:.0%}"
    ratio = first["decoder"]["n_targets"] / first["encoder"]["n_targets"]
    return {**found, "target_ratio": f"{ratio:.1f}", **gaps()}


def early_losses(kind: str, share: float = 0.05) -> list[float]:
    """Held-out loss after this share of the FLOPs, by seed; between two evaluations by a logarithmic axis."""
    found = []
    for row in rows("language", kind=kind):
        tokens, losses = np.array(row["curve"]).T
        found.append(float(np.interp(np.log(share * row["n_tokens"]), np.log(tokens), losses)))
    return found


def gaps() -> dict[str, str]:
    """Differences between architectures, paired by seed."""
    return {
        "gap_fill": show_points(
            difference(language("encoder", "fill_accuracy"), language("decoder", "fill_accuracy"))
        ),
        "gap_next": show(difference(language("encoder", "next_nats"), language("decoder", "next_nats"))),
        "gap_probe": show_points(difference(language("encoder", "probe"), language("decoder", "probe"))),
        "gap_whole": show_points(
            difference(language("decoder", "fill_whole_text"), language("decoder", "fill_few"))
        ),
        "gap_ways": show_points(
            difference(language("encoder", "fill_few"), language("decoder", "fill_whole_text"))
        ),
        "gap_later": show_points(
            difference(language("decoder", "probe_later"), language("decoder", "probe"))
        ),
    }


def writing_numbers() -> dict[str, str]:
    """The sequence-to-sequence task."""
    task = rows("tasks", task="respelling")[0]
    found = {
        "copy": f"{task['copy']:.0%}",
        "substitution": f"{task['substitution']:.0%}",
        "n_written": f"{task['n_written']:,}",
    }
    for kind in ("encoder-decoder", "decoder"):
        key = kind.replace("-", "_")
        exact = values("respelling", "exact", kind=kind)
        first = rows("respelling", kind=kind)[0]
        found[f"exact_{key}"] = f"{statistics.mean(exact):.1%}"
        found[f"exact_all_{key}"] = ", ".join(f"{value:.1%}" for value in exact)
        found[f"steps_{key}"] = f"{first['n_steps']:,}"
        found[f"writer_params_{key}"] = f"{first['n_params']:,}"
    found["gap_writing"] = show_points(
        difference(*(values("respelling", "exact", kind=kind) for kind in ("encoder-decoder", "decoder")))
    )
    found["writing_flops"] = in_powers(rows("respelling", kind="encoder-decoder")[0]["flops"])
    return found


def sentence_numbers() -> dict[str, str]:
    """What next-sentence prediction changed."""
    arms = {with_next: rows("sentences", with_next=with_next) for with_next in (False, True)}
    found = {}
    for field in ("pair_mlm_nats", "probe"):
        without, added = (values("sentences", field, with_next=arm) for arm in (False, True))
        gap = difference(added, without)
        found[f"nsp_{field}"] = show_points(gap) if field == "probe" else show(gap, 3)
        found[f"nsp_{field}_without"] = f"{statistics.mean(without):.2f}"
        found[f"nsp_{field}_with"] = f"{statistics.mean(added):.2f}"
    accuracy = statistics.mean(values("sentences", "next_accuracy", with_next=True))
    found["nsp_steps"] = f"{arms[True][0]['n_steps']:,}"
    return {
        **found,
        "nsp_accuracy": f"{accuracy:.0%}",
        "nsp_budget": in_powers(arms[True][0]["budget_flops"]),
        "nsp_seeds": str(len(arms[True])),
    }


def position_numbers() -> dict[str, str]:
    """What an encoder's way of knowing places does to its start; the seed that chose rates judges nothing."""
    losses = {}
    for positions in ("learned", "rope"):
        judged = [row for row in rows("positions", positions=positions) if row["seed"]]
        losses[positions] = [row["loss_nats"] for row in sorted(judged, key=lambda row: row["seed"])]
    return {
        "positions_budget": in_powers(rows("positions")[0]["budget_flops"]),
        "positions_learned": f"{statistics.mean(losses['learned']):.2f}",
        "positions_rope": f"{statistics.mean(losses['rope']):.2f}",
        "positions_gap": show(difference(losses["learned"], losses["rope"])),
    }


def config_numbers() -> dict[str, str]:
    """Costs and lengths that follow from sizes."""
    lengths = span_lengths(568)
    chat = preset("llama-3.1-8b")
    assert isinstance(chat, DecoderConfig)
    return {
        "t5_window": str(lengths.window),
        "t5_inputs": str(lengths.inputs),
        "t5_targets": str(lengths.targets),
        "t5_spans": str(lengths.spans),
        "bert_params": f"{params('bert-base-uncased').total / 1e6:.0f} million",
        "t5_params": f"{params('t5-small').total / 1e6:.0f} million",
        "gpt2_params": f"{params('gpt2').total / 1e6:.0f} million",
        **{
            f"base_times_{name}": f"{base_flops(name) / rows('language')[0]['budget_flops']:.0f}"
            for name in ("decoder", "encoder")
        },
        **half_work(),
    }


def base_flops(name: str) -> float:
    """Training FLOPs of one of the course's base models, as its card says."""
    config = resources.files("scalelab.lab") / "base_models" / name / "config.json"
    return float(json.loads(config.read_text(encoding="utf-8"))["scalelab"]["card"]["flops"])


def half_work() -> dict[str, str]:
    """An encoder–decoder of twice the blocks against a decoder, on a text of 512 + 512 tokens."""
    shape: dict[str, Any] = {"d_model": 768, "n_heads": 12, "d_ff": 3072, "vocab_size": 50_257}
    one = DecoderConfig(n_layers=12, seq_len=1024, **shape)
    two = EncoderDecoderConfig(n_layers=12, d_head=64, **shape)
    a = flops(one, batch_size=1, seq_len=1024, training=True, n_targets=512).total
    b = flops(two, batch_size=1, seq_len=512, target_len=512, training=True).total
    return {
        "two_params": f"{params(two).total / params(one).total:.1f}",
        "two_flops": f"{b / a:.2f}",
    }


def show(gap: Interval, digits: int = 2) -> str:
    """As in "+0.12 [0.05, 0.19]"."""
    text = f"{gap.mean:+.{digits}f} [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]"
    return text.replace("-", "−")


def show_points(gap: Interval) -> str:
    """A difference of shares, in percentage points."""
    text = f"{100 * gap.mean:+.0f} points [{100 * gap.low:+.0f}, {100 * gap.high:+.0f}]"
    return text.replace("-", "−")


def in_powers(value: float) -> str:
    """As in 3 · 10¹²."""
    digit, exponent = f"{value:.1e}".split("e")
    digit = digit.removesuffix(".0")
    times = "" if digit == "1" else f"{digit} · "
    return f"{times}10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def table_winners() -> HTML:
    """Who wins at what: means over seeds; the best of a column in bold where its lead is beyond the noise."""
    columns = [
        ("hidden token right", lambda kind: language(kind, best_fill(kind)), False, "{:.1%}"),
        ("next token, nats", lambda kind: language(kind, "next_nats"), True, "{:.2f}"),
        ("role of a name", lambda kind: language(kind, "probe"), False, "{:.1%}"),
        ("respelling", lambda kind: respelled(kind), False, "{:.1%}"),
    ]
    body = []
    for kind in KINDS:
        cells = [NAMES[kind]]
        for _, read, low, form in columns:
            mine = read(kind)
            if not mine:
                cells.append("cannot write")
                continue
            text = form.format(statistics.mean(mine))
            cells.append(f"<strong>{text}</strong>" if leads(kind, read, low=low) else text)
        body.append(cells)
    return table(["", *(column[0] for column in columns)], body)


def respelled(kind: str) -> list[float]:
    """Exact match by seed; nothing for who cannot write."""
    return [] if kind == "encoder" else values("respelling", "exact", kind=kind)


def leads(kind: str, read: Any, *, low: bool) -> bool:
    """Whether a kind is better than each other one by more than the interval of the paired difference."""
    sign = -1 if low else 1
    mine = [sign * value for value in read(kind)]
    others = [[sign * value for value in read(other)] for other in KINDS if other != kind and read(other)]
    return all(difference(mine, theirs).low > 0 for theirs in others)


def table_budget() -> HTML:
    """What the same FLOPs bought each of them."""
    body = []
    for kind in KINDS:
        row = rows("language", kind=kind)[0]
        body.append(
            [
                NAMES[kind],
                f"{row['n_params']:,}",
                f"{row['n_tokens'] / 1e6:.2f} M",
                f"{row['n_targets'] / 1e6:.2f} M",
                f"{row['n_targets'] / row['n_tokens']:.0%}",
                f"{row['learning_rate']:g}",
            ]
        )
    header = ["", "parameters", "places read", "tokens that teach", "share", "best rate"]
    return table(header, body)


def table_fill() -> HTML:
    """Every way to fill the gap."""
    body = [
        ["decoder, from the left", share("decoder", "fill_accuracy"), nats("decoder", "fill_nats")],
        ["decoder, whole text, 16 candidates", share("decoder", "fill_whole_text"), "–"],
        ["encoder", share("encoder", "fill_accuracy"), nats("encoder", "fill_nats")],
        ["encoder–decoder, first token of the span", share("encoder-decoder", "fill_accuracy"),
         nats("encoder-decoder", "fill_nats")],
        ["encoder–decoder, told that it is one token", share("encoder-decoder", "fill_one_token"), "–"],
    ]  # fmt: skip
    return table(["", "right", "nats"], body)


def table_probe() -> HTML:
    """The probe at the name, one token later, and what needs no context or no training."""
    untrained = rows("baselines")[0]["probe_untrained"]
    body = [
        [
            NAMES[kind],
            f"{untrained[kind]:.0%}",
            share(kind, "probe_words"),
            share(kind, "probe"),
            share(kind, "probe_later"),
        ]
        for kind in KINDS
    ]
    return table(["", "untrained", "token alone", "at the name", "one token later"], body)


def share(kind: str, field: str) -> str:
    """As in 61 % ± 2."""
    found = mean_of(language(kind, field))
    return f"{found.mean:.1%} ± {100 * found.half_width:.1f}"


def nats(kind: str, field: str) -> str:
    """As in 2.61 ± 0.03."""
    found = mean_of(language(kind, field))
    return f"{found.mean:.2f} ± {found.half_width:.2f}"


def table(header: list[str], body: Sequence[Sequence[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    lines = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in body
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>')


# --- figures ----------------------------------------------------------------------------------------------


def figure_masks() -> None:
    """The three shapes on one text: a prompt and its answer, who looks at whom."""
    words = (*PROMPT, *ANSWER)
    n, n_prompt = len(words), len(PROMPT)
    causal = np.tril(np.ones((n, n)))
    prefix = causal.copy()
    prefix[:n_prompt, :n_prompt] = 1
    shapes = {"Encoder": np.ones((n, n)), "Decoder": causal, "Encoder–decoder": prefix}
    figure = Figure(figsize=(9.6, 4.1), layout="constrained")
    for number, (title, seen) in enumerate(shapes.items(), start=1):
        axes = figure.add_subplot(1, 3, number)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=plots.INK)
        _draw_mask(axes, seen, words, title, n_prompt)
        if number > 1:
            axes.set_yticks([])
    show_figure(figure, "Three masks over a function's head and its body.")


def _draw_mask(axes: Axes, seen: np.ndarray, words: Sequence[str], title: str, n_prompt: int) -> None:
    n = len(words)
    both = title == "Encoder–decoder"
    for row in range(n):
        for column in range(n):
            colour = "#EDEDED"
            if seen[row, column]:
                colour = plots.COLOURS[0]
                if both and row >= n_prompt:
                    colour = plots.COLOURS[2] if column < n_prompt else plots.COLOURS[1]
            axes.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, color=colour, linewidth=0))
    if both:
        notes = [
            (n_prompt / 2, n_prompt / 2, "reads both ways"),
            (n_prompt / 2, n_prompt + 2, "cross-attention"),
            (n_prompt + 2, n_prompt / 2, "never"),
        ]
        for x, y, text in notes:
            axes.text(x, y, text, ha="center", va="center", color=plots.INK, fontsize=8.5, fontweight="bold",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.5})  # fmt: skip
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.set_aspect("equal")
    axes.set_xticks(np.arange(n) + 0.5, words, rotation=90, fontsize=8, family="DejaVu Sans Mono")
    axes.set_yticks(np.arange(n) + 0.5, words, fontsize=8, family="DejaVu Sans Mono")
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    for spine in axes.spines.values():
        spine.set_visible(False)


def figure_objectives() -> None:
    """What each objective makes of the same eight tokens: inputs above, what is to be told below."""
    text = ("for", "name", "in", "names", ":", "print", "(", "name")
    arms = [
        ("Causal", text, (*text[1:], ")")),
        ("Masked", (*text[:3], "[M]", *text[4:]), ("", "", "", "names", "", "", "", "")),
        ("Spans", ("for", "name", "⟨0⟩", ":", "print", "(", "⟨1⟩", "[S]"),
         ("⟨0⟩", "in", "names", "⟨1⟩", "name", "[S]", "", "")),
    ]  # fmt: skip
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set_xlim(-1.9, 8.1)
    axes.set_ylim(-8.6, 0.6)
    for number, (name, given, told) in enumerate(arms):
        top = -3.0 * number
        axes.text(-1.85, top - 0.15, name, fontsize=11, fontweight="bold", va="center", color=plots.INK)
        axes.text(-0.15, top, "reads", fontsize=8, va="center", ha="right", color=plots.GREY)
        axes.text(-0.15, top - 1.2, "tells", fontsize=8, va="center", ha="right", color=plots.GREY)
        for place, word in enumerate(given):
            _tile(axes, place, top, word, "#E8F1F8" if word in text else "#F7E3D4")
        for place, word in enumerate(told):
            if word:
                _tile(axes, place, top - 1.2, word, "#D5EDE4")
                if name != "Spans":
                    arrow = FancyArrowPatch(
                        (place + 0.45, top - 0.38), (place + 0.45, top - 0.82), arrowstyle="-|>",
                        mutation_scale=8, color=plots.GREY,
                    )  # fmt: skip
                    axes.add_patch(arrow)
    show_figure(figure, "Three objectives on the same text.")


def _tile(axes: Axes, place: float, top: float, word: str, colour: str) -> None:
    axes.add_patch(
        Rectangle((place, top - 0.36), 0.9, 0.72, facecolor=colour, edgecolor="#B8B8B8", linewidth=0.8)
    )
    axes.text(
        place + 0.45,
        top,
        word,
        ha="center",
        va="center",
        fontsize=8,
        family="DejaVu Sans Mono",
        color=plots.INK,
    )


def figure_start() -> None:
    """Held-out loss against training FLOPs, for each architecture's own question."""
    figure, axes = plots.new(
        "An encoder stays with token frequencies for a while",
        "training FLOPs",
        "held-out loss of its own question, nats",
        log_x=True,
    )
    lift = {"encoder": -7, "decoder": 0, "encoder-decoder": 7}  # points; the three end close to each other
    for kind in KINDS:
        for number, row in enumerate(rows("language", kind=kind)):
            x = [tokens / row["n_tokens"] * row["budget_flops"] for tokens, _ in row["curve"]]
            y = [loss for _, loss in row["curve"]]
            axes.plot(x, y, color=COLOUR[kind], linewidth=1.6, marker="o", markersize=3)
            if number == 0:
                axes.annotate(NAMES[kind], (x[-1], y[-1]), xytext=(8, lift[kind]), textcoords="offset points",
                              va="center", color=COLOUR[kind], fontsize=9, fontweight="bold")  # fmt: skip
    plots.reference(axes, rows("baselines")[0]["unigram_nats"], "token frequencies alone")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 2.2)
    show_figure(figure, "Losses of three objectives over training FLOPs.")


def figure_respelling() -> None:
    """Exact match over the training of the two that can write."""
    figure, axes = plots.new(
        "Reading first, then writing: respelled without a mistake",
        "training FLOPs, 10¹²", "exact match on unseen names",
    )  # fmt: skip
    for kind in ("encoder-decoder", "decoder"):
        for number, row in enumerate(rows("respelling", kind=kind)):
            x = [0.0, *(step / row["n_steps"] * row["flops"] / 1e12 for step, _, _ in row["curve"])]
            y = [0.0, *(exact for _, _, exact in row["curve"])]
            axes.plot(x, y, color=COLOUR[kind], marker="o", linewidth=1.6)
            if number == 0:
                axes.annotate(NAMES[kind], (x[-1], y[-1]), xytext=(8, 0), textcoords="offset points",
                              va="center", color=COLOUR[kind], fontsize=9, fontweight="bold")  # fmt: skip
    plots.reference(axes, rows("tasks")[0]["substitution"], "each character by itself", at="left")
    plots.reference(axes, rows("tasks")[0]["copy"], "copying", at="left")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.25)
    axes.set_ylim(-0.02, 1.04)
    show_figure(figure, "Exact match over training, two architectures.")


def show_figure(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "architectures", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
