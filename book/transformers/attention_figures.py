"""Tables and figures of the chapter `attention`, computed from formulas, configs and the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import io
import math
import statistics
from typing import Any

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import params
from scalelab.cost.hardware import require_accelerator
from scalelab.lab import plots
from scalelab.lab.records import study_json
from scalelab.lab.transformers.attention_map import draw_map

STUDY = "transformers/attention"
WIDTHS = (4, 16, 64, 256, 1024)
N_KEYS = 64
ONLINE = ((1.0, 10.0), (3.0, 20.0), (2.0, 30.0))  # scores and values of the worked example
FLASH = {"n_places": 1024, "d_head": 64, "tile": 128}  # a head of GPT-2


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config or the study, ready to print."""
    llama = preset("llama-3.1-8b")
    assert isinstance(llama, DecoderConfig)
    per_token = kept_bytes(llama, llama.kv_heads)
    spread = {width: draw_attention(width, divide=False) for width in WIDTHS}
    divided = {width: draw_attention(width, divide=True) for width in WIDTHS}
    longest = 2 * math.pi * 10_000 ** ((128 - 2) / 128)
    return {
        **copying_numbers(),
        **scaling_numbers(),
        **memory_numbers(),
        **traffic_numbers(),
        **map_numbers(),
        "keys_plain_64": f"{spread[64][1]:.1f}",
        "keys_plain_1024": f"{spread[1024][1]:.1f}",
        "keys_divided": f"{divided[64][1]:.0f}",
        "slope_plain_64": f"{spread[64][2]:.4f}",
        "slope_divided_64": f"{divided[64][2]:.4f}",
        "slope_ratio_1024": f"{divided[1024][2] / spread[1024][2]:.0f}",
        "kv_per_token": f"{per_token:,}",
        "kv_8k": f"{per_token * 8_192 / 1e9:.2f} GB",
        "kv_full": f"{per_token * llama.seq_len / 1e9:.1f} GB",
        "kv_full_unshared": f"{kept_bytes(llama, llama.n_heads) * llama.seq_len / 1e9:.0f} GB",
        "llama_weights": f"{2 * params(llama).total / 1e9:.0f} GB",
        "kv_ratio": f"{llama.n_heads // llama.kv_heads}",
        "rope_longest": f"{longest:,.0f}",
        "rope_theta": f"{llama.rope_theta:,.0f}",
        "rope_longest_llama": f"{2 * math.pi * llama.rope_theta ** (126 / 128) / 1e6:.1f} million",
    }


def copying_numbers() -> dict[str, str]:
    """Accuracies of the task that only positions solve: means over seeds, and what can be known at best."""
    found = {
        "copy_blind": copying(positions="none", is_causal=False, n_layers=2),
        "copy_blind_one": copying(positions="none", is_causal=False, n_layers=1),
        "copy_causal": copying(positions="none", is_causal=True, n_layers=2),
        "copy_causal_one": copying(positions="none", is_causal=True, n_layers=1),
        "copy_alibi": copying(positions="alibi", is_causal=False, n_layers=2),
        "copy_alibi_causal": copying(positions="alibi", is_causal=True, n_layers=2),
        "copy_rope": copying(positions="rope", is_causal=False, n_layers=2),
        "copy_learned": copying(positions="learned", is_causal=False, n_layers=2),
        "copy_sinusoidal": copying(positions="sinusoidal", is_causal=False, n_layers=2),
        "copy_unscaled": copying(positions="rope", is_causal=False, n_layers=2, is_scaled=False),
    }
    numbers = {name: f"{statistics.mean(values):.1%}" for name, values in found.items()}
    numbers |= {
        "copy_seeds": str(len(found["copy_blind"])),
        "copy_steps": str(study_json(STUDY, "copying")["runs"][0]["n_steps"]),
        "copy_cases": f"{len(found['copy_blind']) * 512 * 15:,}",  # seeds, test sequences, places
        "copy_sinusoidal_worst": f"{min(found['copy_sinusoidal']):.0%}",
        "copy_unscaled_solved": str(sum(value > 0.95 for value in found["copy_unscaled"])),
        "copy_one_causal_best": f"{sum(1 / t for t in range(1, 16)) / 15:.1%}",
    }
    return numbers


def copying(**wanted: Any) -> list[float]:
    """Accuracies of the runs with these settings, one a seed."""
    wanted = {"is_scaled": True, **wanted}
    rows = study_json(STUDY, "copying")["runs"]
    return [row["accuracy"] for row in rows if all(row[key] == value for key, value in wanted.items())]


def scaling_numbers() -> dict[str, str]:
    """Losses with and without the root, from either size of initial weights."""
    found = {}
    for start, words in ((None, "unit"), (0.02, "small")):
        for is_scaled in (True, False):
            losses = language_losses(start, is_scaled)
            name = f"loss_{words}_{'root' if is_scaled else 'plain'}"
            found[name] = f"{statistics.mean(losses):.3f}"
            found[f"{name}_spread"] = f"{statistics.stdev(losses):.3f}"
        means = [statistics.mean(language_losses(start, is_scaled)) for is_scaled in (True, False)]
        found[f"loss_{words}_gap"] = f"{abs(means[1] - means[0]):.2f}"
    rows = study_json(STUDY, "scaling")["runs"]
    found["loss_seeds"] = str(len(language_losses(None, True)))
    found["loss_tokens"] = f"{rows[0]['n_tokens'] / 1e3:.0f} thousand"
    found["small_scores"] = f"{8 * (0.02 * 8) ** 2:.1f}"  # √64 · variance of q and k at D = 64
    return found


def language_losses(init_std: float | None, is_scaled: bool) -> list[float]:
    """Held-out losses of the study's language models, one a seed, nats per token."""
    rows = study_json(STUDY, "scaling")["runs"]
    return [row["loss_nats"] for row in rows if (row["init_std"], row["is_scaled"]) == (init_std, is_scaled)]


def memory_numbers() -> dict[str, str]:
    """Bytes held at most, at the longest length that was measured."""
    rows = study_json(STUDY, "memory")["runs"]
    last = rows[-1]
    return {
        "memory_places": f"{last['n_places']:,}",
        "memory_plain": f"{last['plain_bytes'] / 1e6:.0f} MB",
        "memory_tiled": f"{last['tiled_bytes'] / 1e6:.1f} MB",
        "memory_result": f"{last['n_places'] * last['d_head'] * 4 / 1e6:.1f} MB",
        "memory_ratio": f"{last['plain_bytes'] / last['tiled_bytes']:.0f}",
    }


def traffic_numbers() -> dict[str, str]:
    """What one head of GPT-2 moves and multiplies on an A100, plain and in tiles, 16-bit numbers."""
    time, width, tile = FLASH["n_places"], FLASH["d_head"], FLASH["tile"]
    card = require_accelerator("a100")
    flops = 4 * time**2 * width
    rows = 2 * 4 * time * width  # queries, keys, values and result
    plain = rows + 2 * 4 * time**2  # scores written and read, weights written and read
    tiled = 2 * (2 * time * width + 2 * time * width * (time // tile))  # keys and values again for each tile
    seconds = {
        "compute": flops / card.peak_flops["bf16"],
        "plain": plain / card.bandwidth_bytes_per_s,
        "tiled": tiled / card.bandwidth_bytes_per_s,
    }
    return {
        "io_flops": f"{flops / 1e6:.0f} million",
        "io_peak": f"{card.peak_flops['bf16'] / 1e12:.0f} TFLOP/s",
        "io_bandwidth": f"{card.bandwidth_bytes_per_s / 1e12:.2f} TB/s",
        "io_compute_us": f"{seconds['compute'] * 1e6:.2f} µs",
        "io_plain_mb": f"{plain / 1e6:.1f} MB",
        "io_plain_us": f"{seconds['plain'] * 1e6:.1f} µs",
        "io_ratio": f"{seconds['plain'] / seconds['compute']:.0f}",
        "io_tiled_mb": f"{tiled / 1e6:.1f} MB",
        "io_tiled_us": f"{seconds['tiled'] * 1e6:.1f} µs",
    }


def kept_bytes(config: DecoderConfig, kv_heads: int) -> int:
    """Keys and values of one token in all layers, in 16-bit numbers."""
    return 2 * config.n_layers * kv_heads * config.head_width * 2


def draw_attention(width: int, *, divide: bool, n_draws: int = 4000) -> tuple[float, float, float]:
    """Spread of scores, keys looked at (e^entropy) and mean p(1 - p), for independent unit numbers."""
    draw = np.random.default_rng(0)
    q = draw.standard_normal((n_draws, 1, width), dtype=np.float32)
    k = draw.standard_normal((N_KEYS, width), dtype=np.float32)
    scores = (q @ k.T)[:, 0] / (math.sqrt(width) if divide else 1.0)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
    return float(scores.std()), float(np.exp(entropy.mean())), float((p * (1 - p)).mean())


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_lookup() -> HTML:
    """A look-up among three keys, with every number of it."""
    query, keys, values = (
        np.array([2.0, 1.0]),
        np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
        (10.0, 20.0, 30.0),
    )
    scores = keys @ query
    halves = scores / math.sqrt(2)
    weights = np.exp(halves) / np.exp(halves).sum()
    rows = [
        [f"key {i + 1}: ({keys[i][0]:g}, {keys[i][1]:g})", f"{scores[i]:g}", f"{halves[i]:.2f}",
         f"{weights[i]:.3f}", f"{values[i]:g}", f"{weights[i] * values[i]:.2f}"]
        for i in range(3)
    ]  # fmt: skip
    rows.append(["together", "", "", f"{weights.sum():.3f}", "", f"{weights @ np.array(values):.2f}"])
    return table(["query (2, 1)", "q·k", "by √2", "weight", "value", "weight · value"], rows)


def table_kept() -> HTML:
    """Keys and values of Llama-3.1-8B with as many key heads as one likes."""
    llama = preset("llama-3.1-8b")
    assert isinstance(llama, DecoderConfig)
    rows = []
    for kv_heads, name in (
        (32, "32, one for each query head"),
        (8, "8, as released"),
        (1, "1, shared by all"),
    ):
        size = kept_bytes(llama, kv_heads)
        rows.append([name, f"{size:,}", f"{size * 8192 / 1e9:.2f}", f"{size * llama.seq_len / 1e9:.1f}"])
    return table(["key heads", "bytes a token", "GB, 8,192 tokens", f"GB, {llama.seq_len:,} tokens"], rows)


def table_online() -> HTML:
    """The running softmax over three scores, step by step, against the plain one at the end."""
    largest, total, mixed = -math.inf, 0.0, 0.0
    rows = []
    for score, value in ONLINE:
        grown = max(largest, score)
        shrink = math.exp(largest - grown)
        weight = math.exp(score - grown)
        total, mixed, largest = total * shrink + weight, mixed * shrink + weight * value, grown
        rows.append([f"score {score:g}, value {value:g}", f"{grown:g}", f"{shrink:.4f}", f"{weight:.4f}",
                     f"{total:.4f}", f"{mixed:.4f}", f"{mixed / total:.4f}"])  # fmt: skip
    weights = [math.exp(score) for score, _ in ONLINE]
    plain = sum(w * value for w, (_, value) in zip(weights, ONLINE, strict=True)) / sum(weights)
    assert math.isclose(plain, mixed / total, rel_tol=1e-12)
    return table(["came in", "m", "old sums ×", "e^(score - m)", "l", "a", "a / l"], rows)


def figure_spread() -> None:
    """Keys looked at over the width of a head."""
    lines = {
        "divided by √K": (WIDTHS, [draw_attention(width, divide=True)[1] for width in WIDTHS]),
        "as they are": (WIDTHS, [draw_attention(width, divide=False)[1] for width in WIDTHS]),
    }
    figure, axes = plots.curve(
        lines, references={"all keys alike": N_KEYS}, title="Without the root, a wide head looks at one key",
        xlabel="width of a head, K", ylabel="keys looked at, e^entropy", log_x=True, log_y=True,
    )  # fmt: skip
    axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    show(figure, "Keys looked at over the width of a head, with and without the division.")


def figure_masks() -> None:
    """The three shapes of sight."""
    places = np.arange(8)
    seen = {
        "Encoder: everything": np.ones((8, 8)),
        "Decoder: itself and before": (places[:, None] >= places[None, :]).astype(float),
        "Decoder on an encoder: another text": np.ones((8, 5)),
    }
    figure, panels = plots_row(3, width=8.4, height=3.2)
    for axes, (title, mask) in zip(panels, seen.items(), strict=True):
        axes.imshow(mask, cmap="Blues", vmin=0, vmax=1.6, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(np.arange(-0.5, mask.shape[1]), [])
        axes.set_yticks(np.arange(-0.5, mask.shape[0]), [])
        axes.tick_params(length=0)
        axes.set_xlabel("keys")
        axes.grid(color="white", linewidth=1.5)
        axes.set_axisbelow(False)
    panels[0].set_ylabel("queries")
    show(figure, "Three masks: a full square, a lower triangle, and a full rectangle.")


def figure_rotation() -> None:
    """How the product of a query and a key falls with distance once both are turned."""
    distance = np.arange(0, 257)
    figure, axes = plots.new(
        "Turned apart, the same two vectors agree less",
        "distance between query and key, places", "product, as a share of that at distance 0",
    )  # fmt: skip
    for colour, base in enumerate((10_000.0, 500_000.0)):
        frequencies = base ** (-np.arange(0, 128, 2) / 128)
        product = np.cos(distance[:, None] * frequencies).mean(1)  # all pairs alike: a query equal to its key
        axes.plot(distance, product, color=plots.COLOURS[colour])
        axes.annotate(f"base {base:,.0f}", (distance[-1], product[-1]), xytext=(5, 0), va="center",
                      textcoords="offset points", color=plots.COLOURS[colour], fontsize=9)  # fmt: skip
    axes.set_xlim(0, 310)
    axes.set_ylim(0, 1.02)
    show(figure, "Product of a turned query and key over their distance, for two bases.")


def figure_copying() -> None:
    """Accuracy of every arm, each seed a point, beside what can be known at best."""
    arms = [
        ("nothing, unmasked", {"positions": "none", "is_causal": False, "n_layers": 2}, 1 / 15),
        ("a mask, 1 layer", {"positions": "none", "is_causal": True, "n_layers": 1},
         sum(1 / t for t in range(1, 16)) / 15),
        ("distance, unmasked (ALiBi)", {"positions": "alibi", "is_causal": False, "n_layers": 2}, 8 / 15),
        ("a mask, 2 layers", {"positions": "none", "is_causal": True, "n_layers": 2}, 1.0),
        ("sinusoids", {"positions": "sinusoidal", "is_causal": False, "n_layers": 2}, 1.0),
        ("learned table", {"positions": "learned", "is_causal": False, "n_layers": 2}, 1.0),
        ("rotation (RoPE)", {"positions": "rope", "is_causal": False, "n_layers": 2}, 1.0),
    ]  # fmt: skip
    figure, axes = plots.new(
        "What a model is not told, it cannot learn", "accuracy: which symbol stood one place before?", "",
        width=7.4, height=3.8,
    )  # fmt: skip
    for row, (_, wanted, best) in enumerate(arms):
        axes.plot([best, best], [row - 0.32, row + 0.32], color=plots.INK, linewidth=2.5, zorder=1)
        found = copying(**wanted)
        axes.plot(found, [row] * len(found), "o", color=plots.COLOURS[0], alpha=0.6, zorder=2)
    axes.set_yticks(range(len(arms)), [name for name, *_ in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.03)
    axes.set_ylabel("what tells of order")
    axes.annotate("at best", (8 / 15, 1.68), xytext=(5, 2), textcoords="offset points", fontsize=9)
    show(figure, "Accuracy of seven models on the task, each seed a dot, with the best possible as a bar.")


def figure_memory() -> None:
    """Bytes held over length, plain and in tiles."""
    rows = study_json(STUDY, "memory")["runs"]
    lengths = [row["n_places"] for row in rows]
    figure, axes = plots.curve(
        {"plain": (lengths, [row["plain_bytes"] / 1e6 for row in rows]),
         "in tiles": (lengths, [row["tiled_bytes"] / 1e6 for row in rows])},
        title="The same numbers, held in tiles", xlabel="places, T", ylabel="MB held at most, one head",
        log_x=True, log_y=True,
    )  # fmt: skip
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])
    axes.minorticks_off()
    show(figure, "Megabytes held over the number of places: plain rises as the square, tiles in proportion.")


def map_numbers() -> dict[str, str]:
    """How much the picked heads look where their name says, on held-out code."""
    found = study_json(STUDY, "maps")
    numbers = {"map_windows": f"{found['n_windows'] * found['n_places']:,}"}
    for kind, (layer, head, share) in picked_heads().items():
        short = kind.replace(" ", "_")
        numbers |= {f"head_{short}": f"head {head} of layer {layer}"}
        if kind == "everything":
            numbers["breadth"] = f"{share:.0f} of {found['n_places']}"
        else:
            alike = found["kinds"][kind]["alike"]
            numbers |= {f"share_{short}": f"{share:.0%}", f"alike_{short}": f"{alike:.0%}"}
    numbers["share_first"] = f"{np.max(found['kinds']['first']['share']):.0%}"
    return numbers


def picked_heads() -> dict[str, tuple[int, int, float]]:
    """For each kind of place the head that looks there most: layer, head, and its share or breadth."""
    found = study_json(STUDY, "maps")
    tables = {kind: found["kinds"][kind]["share"] for kind in ("previous", "after same", "line start")}
    tables["everything"] = found["breadth"]
    picked = {}
    for kind, rows in tables.items():
        layer, head = (int(i) for i in np.unravel_index(np.argmax(rows), np.shape(rows)))
        picked[kind] = (layer, head, float(rows[layer][head]))
    return picked


def figure_maps() -> None:
    """Four heads of the base decoder over a function of the standard library."""
    found = study_json(STUDY, "maps")
    weights = np.array(found["thousandths"]) / 1000
    names = {
        "previous": "one place back",
        "after same": "what followed this token before",
        "line start": "the start of the line",
        "everything": "everything",
    }
    figure, panels = plots_row(4, rows=2, width=8.6, height=9.0)
    for axes, (kind, (layer, head, share)) in zip(panels, picked_heads().items(), strict=True):
        draw_map(axes, weights[layer, head], found["tokens"], fontsize=6.5)
        measure = "" if kind == "everything" else f", {share:.0%}"
        axes.set_title(f"Layer {layer}, head {head}: {names[kind]}{measure}", fontsize=9)
    show(figure, "Four attention maps over a short function, each with its own pattern.")


def plots_row(n_panels: int, *, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Empty panels in the course's style."""
    with matplotlib.rc_context({**plots.STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        columns = n_panels // rows
        return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(n_panels)]


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "attention", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
