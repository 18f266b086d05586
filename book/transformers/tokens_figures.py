"""Tables and figures of the chapter `tokens`, computed from configs, small examples and the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from typing import Any

import numpy as np
from IPython.display import HTML

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.core.records import RunRecord
from scalelab.cost import flops, params
from scalelab.data.byte_pairs import Pair, bpe_encode, bpe_merges, merge
from scalelab.lab import plots
from scalelab.lab.records import study_json, study_runs

STUDY = "transformers/tokens"
TOY = {"index": 5, "indent": 3, "extend": 4, "end": 6}
TOY_MERGES = 5
CONTEXT = 1024  # tokens at which operations are compared
PROBABILITIES = (0.5, 0.25, 0.125, 0.125)


def measured() -> dict[str, Any]:
    """The study's measurements."""
    return study_json(STUDY, "measurements")


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from the study or from a config, ready to print."""
    found = measured()
    marks, words, leak = found["marks"], found["words"], found["leak"]
    by_size = {row["vocab_size"]: row for row in found["vocabularies"]}
    recorded = best_runs("vocabulary")
    bits = {size: mean_bits(runs) for size, runs in recorded.items()}
    best, second = sorted(bits, key=lambda size: bits[size])[:2]
    sizes = re.findall(r"(\d+) documents \(([\d.]+ .B)\)", study_json(STUDY, "provenance")["text"])
    return {
        "train_files": sizes[0][0],
        "train_size": sizes[0][1],
        "held_out_files": sizes[1][0],
        "held_out_size": sizes[1][1],
        "grams_bytes": f"{found['distinct_5_grams']['bytes']:,}",
        "grams_tokens": f"{found['distinct_5_grams']['tokens'] / 1e6:.1f} million",
        "base_params": f"{found['base']['n_params'] / 1e6:.1f} million",
        "context_8192": f"{128 * by_size[8192]['bytes_per_token']:.0f}",
        **{f"mark_{name.replace(' ', '_')}": f"{value:.2f}" for name, value in marks.items()},
        "base_bpb": f"{found['base']['bits_per_byte']:.2f}",
        "base_own": f"{found['base']['own_bits_per_byte']:.2f}",
        "base_nats": f"{found['base']['loss_nats']:.2f}",
        "base_perplexity": f"{math.exp(found['base']['loss_nats']):.1f}",
        "base_vocab": f"{found['base']['vocab_size']:,}",
        "base_perplexity_byte": f"{2 ** found['base']['bits_per_byte']:.2f}",
        "n_words": f"{words['n_words']:,}",
        "n_distinct": f"{words['n_distinct']:,}",
        "self_count": f"{words['most_frequent'][0][1]:,}",
        "zipf": interval(words["zipf"]),
        "zipf_line": f"{words['zipf_line_through_all_ranks']:.2f}",
        "zipf_head": f"{words['zipf_line_through_first_1000']:.2f}",
        "zipf_rare": f"{words['zipf_by_n_min']['200']:.2f}",
        "heaps": interval(words["heaps"], 3),  # 8^b follows from what is printed
        "heaps_eight": f"{8 ** words['heaps'][0]:.2f}",
        "one_over_zipf": f"{1 / words['zipf'][0]:.2f}",
        "bytes_per_token_512": f"{by_size[512]['bytes_per_token']:.2f}",
        "bytes_per_token_8192": f"{by_size[8192]['bytes_per_token']:.2f}",
        "rare_ids_8192": f"{1 - by_size[8192]['share_of_ids_seen_100_times']:.0%}",
        "best_vocab": f"{best:,}",
        "second_vocab": f"{second:,}",
        "second_bits": f"{bits[second]:.2f}",
        "best_scatter": f"{scatter(recorded[best]):.2f}",
        "best_bits": f"{bits[best]:.2f}",
        "bits_257": f"{bits[257]:.2f}",
        "bits_8192": f"{bits[8192]:.2f}",
        "nats_257": f"{statistics.mean(run.loss_nats for run in recorded[257]):.2f}",
        "nats_8192": f"{statistics.mean(run.loss_nats for run in recorded[8192]):.2f}",
        "overlap_train": f"{leak['train']['share']:.1%}",
        "overlap_packages": f"{leak['packages']['share']:.1%}",
        "bits_seen": f"{leak['bits_per_seen_byte']:.2f}",
        "bits_new": f"{leak['bits_per_new_byte']:.2f}",
        "toy_unseen": toy_cut("extended"),
        "table_gpt2": f"{table_share('gpt2'):.0%}",
        "table_405b": f"{table_share('llama-3.1-405b'):.1%}",
        "rror_count": str(dict(found["cuts"]["rarest_merged"])["rror"]),
        "never_met": str(found["cuts"]["never_met"]),
        "leak_5": f"{leak['bits_per_byte_by_order']['5'][0]:.2f}",
        "leak_5_tenth": f"{at_share(leak, '5', 0.1):.2f}",
        "leak_3_tenth": f"{at_share(leak, '3', 0.1):.2f}",
        "leak_2_tenth": f"{at_share(leak, '2', 0.1):.2f}",
        "leak_5_whole": f"{at_share(leak, '5', 1.0):.2f}",
        "leak_3_whole": f"{at_share(leak, '3', 1.0):.2f}",
    }


def at_share(leak: dict[str, Any], order: str, share: float) -> float:
    """Bits per byte of an order when this share of the held-out text has leaked."""
    value: float = leak["bits_per_byte_by_order"][order][leak["leaked_shares"].index(share)]
    return value


def interval(estimate: list[float], digits: int = 2) -> str:
    """As in 0.71 [0.69, 0.72]."""
    value, low, high = estimate
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def best_runs(arm: str) -> dict[int, list[RunRecord]]:
    """For each vocabulary size the runs of all seeds at the best of its learning rates."""
    groups: dict[int, dict[float, list[RunRecord]]] = {}
    for run in study_runs(STUDY, arm):
        groups.setdefault(run.config["vocab_size"], {}).setdefault(run.learning_rate, []).append(run)
    return {
        size: min((runs for runs in rates.values() if len(runs) >= 3), key=mean_bits)
        for size, rates in sorted(groups.items())
    }


def mean_bits(runs: list[RunRecord]) -> float:
    """Mean bits per byte of some runs."""
    return statistics.mean(run.bits_per_byte for run in runs)


def scatter(runs: list[RunRecord]) -> float:
    """Standard deviation over seeds of bits per byte."""
    return statistics.stdev(run.bits_per_byte for run in runs)


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_entropy() -> HTML:
    """Four symbols, what each costs under the right and under a wrong distribution."""
    rows = [
        [symbol, f"{q:g}", f"{-math.log2(q):g}", f"{-math.log2(0.25):g}"]
        for symbol, q in zip("abcd", PROBABILITIES, strict=True)
    ]
    right = -sum(q * math.log2(q) for q in PROBABILITIES)
    rows.append(["on average", "", f"{right:g}", f"{-math.log2(0.25):g}"])
    return table(["symbol", "share q", "bits, by q", "bits, if all are taken as equal"], rows)


def table_toy() -> HTML:
    """The merges of a text of four words, each with the words as they then are."""
    merges = bpe_merges(TOY, TOY_MERGES)
    rows = [["start", "", *(spelt(list(word)) for word in TOY)]]
    for number in range(1, len(merges) + 1):
        left, right = merges[number - 1]
        count = pair_count(merges[: number - 1], merges[number - 1])
        done = [spelt(replay(word, merges[:number])) for word in TOY]
        rows.append([f"{left} + {right}", str(count), *done])
    return table(["merge", "met", *(f"{word} (×{count})" for word, count in TOY.items())], rows)


def pair_count(before: list[Pair], pair: Pair) -> int:
    """How often a pair is met after some merges."""
    total = 0
    for word, count in TOY.items():
        parts = replay(word, before)
        total += count * sum(1 for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == pair)
    return total


def replay(word: str, merges: list[Pair]) -> list[str]:
    """A word's pieces after these merges."""
    parts = list(word)
    for pair in merges:
        parts = merge(parts, pair)
    return parts


def spelt(parts: list[str]) -> str:
    """Pieces with thin bars between them."""
    return "|".join(parts)


def toy_cut(word: str) -> str:
    """How the toy's merges cut a word it has not seen."""
    return spelt(bpe_encode(word, bpe_merges(TOY, TOY_MERGES)))


def table_cuts() -> HTML:
    """How the course's tokenizer of 1,024 ids cuts some lines."""
    rows = []
    for line, pieces in measured()["cuts"]["lines"].items():
        shown = " ".join(f"<code>{visible(piece)}</code>" for piece in pieces)
        rows.append([f"<code>{visible(line)}</code>", str(len(pieces)), shown])
    return table(["text", "tokens", "pieces"], rows)


def visible(text: str) -> str:
    """Blanks, tabs and line breaks as signs."""
    signs = {" ": "·", "\t": "→", "\n": "⏎"}
    return html.escape("".join(signs.get(character, character) for character in text))


def table_share(name: str) -> float:
    """The share of a published model's parameters that lies in tables of V × D."""
    config = preset(name)
    assert isinstance(config, DecoderConfig)
    n_tables = 1 if config.tie_embeddings else 2
    return n_tables * config.vocab_size * config.d_model / params(config).total


def table_tables() -> HTML:
    """What a vocabulary takes of published models: parameters, and operations of the head."""
    rows = []
    names = {
        "gpt2": "GPT-2 (124 M)",
        "gpt2-xl": "GPT-2 XL",
        "llama-2-7b": "Llama-2-7B",
        "llama-3.1-8b": "Llama-3.1-8B",
        "llama-3.1-405b": "Llama-3.1-405B",
    }
    for name, label in names.items():
        config = preset(name)
        assert isinstance(config, DecoderConfig)
        n_tables = 1 if config.tie_embeddings else 2
        in_tables = n_tables * config.vocab_size * config.d_model
        length = min(config.seq_len, CONTEXT)
        head = 2 * config.vocab_size * config.d_model * length
        whole = flops(config, batch_size=1, seq_len=length, training=False).total
        rows.append([
            label, f"{config.vocab_size:,}", f"{config.d_model:,}",
            f"{in_tables / 1e6:,.0f} M" + ("" if n_tables == 2 else " (one table)"),
            f"{table_share(name):.1%}", f"{head / whole:.1%}",
        ])  # fmt: skip
    header = ["", "V", "D", "in tables of V × D", "of all parameters", "head's share of the operations"]
    return table(header, rows)


def table_sizes() -> HTML:
    """Vocabulary sizes with what they do to the text and to a small model."""
    rows = []
    by_size = {row["vocab_size"]: row for row in measured()["vocabularies"]}
    for size, runs in best_runs("vocabulary").items():
        config = runs[0].config
        share = size * config["d_model"] / runs[0].n_params
        rows.append([
            f"{size:,}", f"{by_size[size]['bytes_per_token']:.2f}", f"{share:.0%}",
            f"{runs[0].n_tokens * by_size[size]['bytes_per_token'] / 1e6:.1f} MB",
            f"{statistics.mean(run.loss_nats for run in runs):.2f}",
            f"{mean_bits(runs):.3f} ± {scatter(runs):.3f}",
        ])  # fmt: skip
    header = ["V", "bytes a token", "table's share of parameters", "text read", "nats per token",
              "bits per byte"]  # fmt: skip
    return table(header, rows)


def figure_ladder() -> None:
    """Bits per byte of everything that predicts the held-out text."""
    found = measured()
    marks = found["marks"]
    bars = {
        "uniform": marks["uniform"],
        "1-gram of bytes": marks["1-gram of bytes"],
        "2-gram of bytes": marks["2-gram of bytes"],
        "gzip -9": marks["gzip"],
        "5-gram of bytes": marks["5-gram of bytes"],
        "xz -9e": marks["xz"],
        "5-gram of tokens": marks["5-gram of tokens"],
        "xz, training text read first": marks["xz primed"],
        "the base model": found["base"]["bits_per_byte"],
    }
    names = sorted(bars, key=lambda name: -bars[name])
    figure, axes = plots.new(
        "The way down: bits for a byte of unseen Python", "bits per byte, held out", "", height=3.8
    )
    colours = [plots.COLOURS[{"the": 1, "gzi": 4, "xz ": 4, "xz,": 4}.get(name[:3], 0)] for name in names]
    drawn = axes.barh(names, [bars[name] for name in names], color=colours)
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, 8.8)
    plots.show(figure, alt="Bars of bits per byte on the same held-out text.")


def figure_vocabulary() -> None:
    """Loss per token and per byte over vocabulary sizes, every seed a point."""
    figure, _ = plots.new("", "", "", width=7.4, height=3.6)
    figure.clear()
    panels = figure.subplots(1, 2)
    recorded = best_runs("vocabulary")
    titles = ("Per token: bytes look best", "Per byte: the middle is")
    for axes, title, field, label in zip(
        panels, titles, ("loss_nats", "bits_per_byte"), ("nats per token", "bits per byte"), strict=True
    ):
        sizes = list(recorded)
        for size, runs in recorded.items():
            values = [getattr(run, field) for run in runs]
            axes.plot([size] * len(values), values, "o", color=plots.COLOURS[0], alpha=0.5)
        means = [statistics.mean(getattr(run, field) for run in runs) for runs in recorded.values()]
        axes.plot(sizes, means, color=plots.COLOURS[0])
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("vocabulary size V")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6")
    plots.show(figure, alt="Loss per token and per byte over vocabulary sizes.")


def figure_zipf() -> None:
    """Counts of words over their ranks, with the law fitted to words seen ten times or more."""
    words = measured()["words"]
    ranks, counts = np.array(words["ranks"]), np.array(words["counts_at_ranks"])
    s = words["zipf"][0]
    figure, axes = plots.new(
        "Zipf: straight over three decades, flatter at the head", "rank of the word",
        "times it comes", log_x=True, log_y=True,
    )  # fmt: skip
    axes.plot(ranks, counts, "o", color=plots.COLOURS[0])
    anchor = np.flatnonzero(counts >= 10)[-1]
    law = counts[anchor] * (ranks / ranks[anchor]) ** -s
    axes.plot(ranks, law, color=plots.COLOURS[1])
    axes.annotate(
        f"rank^-{s:.2f}: most likely for words\nseen ten times or more", (30, law[np.argmax(ranks >= 30)]),
        xytext=(10, 2), textcoords="offset points", color=plots.COLOURS[1], fontsize=9,
    )  # fmt: skip
    word, count = words["most_frequent"][0]
    axes.annotate(word, (1, count), xytext=(4, -12), textcoords="offset points", fontsize=9)
    plots.show(figure, alt="Counts of words over their ranks on logarithmic axes.")


def figure_heaps() -> None:
    """Distinct words over words read, with the law of the first eighth carried on."""
    words = measured()["words"]
    read, distinct = np.array(words["words_read"]), np.array(words["distinct_words"])
    early = (read >= 1e4) & (read <= read[-1] / 8)
    slope, height = np.polyfit(np.log(read[early]), np.log(distinct[early]), 1)
    figure, axes = plots.new(
        "Heaps: new words never stop coming", "words read", "distinct words among them",
        log_x=True, log_y=True,
    )  # fmt: skip
    axes.plot(read, distinct, "o", color=plots.COLOURS[0])
    law = np.exp(height) * read**slope
    solid = read <= read[-1] / 8
    axes.plot(read[solid], law[solid], color=plots.COLOURS[1])
    axes.plot(read[~solid], law[~solid], color=plots.COLOURS[1], linestyle="--")
    axes.annotate(
        f"fitted to the first eighth: n^{slope:.2f},\n{law[-1] / distinct[-1] - 1:+.0%} at the end",
        (read[-1], law[-1]), xytext=(-12, 4), textcoords="offset points", ha="right",
        color=plots.COLOURS[1], fontsize=9,
    )  # fmt: skip
    plots.show(figure, alt="Distinct words over words read on logarithmic axes.")


def figure_leak() -> None:
    """Loss of three n-gram models when a part of the held-out text slips into training."""
    leak = measured()["leak"]
    shares = leak["leaked_shares"]
    lines = {f"{order}-gram": (shares, bits) for order, bits in leak["bits_per_byte_by_order"].items()}
    figure, axes = plots.curve(
        lines,
        title="The more a model remembers, the more a leak flatters it",
        xlabel="share of the held-out text that slipped into training",
        ylabel="bits per byte, held out",
    )
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, 0.1, 0.3, 1.0], ["0", "10 %", "30 %", "all"])
    plots.show(figure, alt="Bits per byte over the share of leaked text, for three orders.")


def sample(name: str, n_lines: int = 8, width: int = 86) -> str:
    """The first lines of what a model wrote."""
    lines = [line for line in measured()["samples"][name].splitlines() if line.strip()]
    return "\n".join(line[:width] for line in lines[:n_lines])
