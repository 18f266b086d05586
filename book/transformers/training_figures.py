"""Tables and figures of the chapter `training`, computed from configs and from the recorded study.

The chapter's cells call these; no torch is needed.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
import textwrap

import numpy as np
from IPython.display import HTML
from matplotlib.ticker import FuncFormatter

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.core.units import format_count
from scalelab.cost import Memory, flops, flops_6nd, memory, params
from scalelab.lab import plots
from scalelab.lab.records import study_json, study_runs

STUDY = "transformers/training"
ENGINE = "transformers/engine"
LAB = DecoderConfig(
    n_layers=3, d_model=96, n_heads=3, vocab_size=1024, seq_len=128, positions="rope", feed_forward="gelu"
)
LAB_BATCH = 8
TOKENS_AXIS = FuncFormatter(lambda value, _: re.sub(r"\.0+(?= )| ", "", format_count(value)))


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from the lab's model or from the study, ready to print."""
    minute, measured = study_runs(STUDY, "minute"), study_json(STUDY, "measurements")
    larger = study_runs(STUDY, "larger")[0]
    counts = params(LAB)
    step = flops(LAB, batch_size=LAB_BATCH, seq_len=LAB.seq_len, training=True).total
    per_token = step / (LAB_BATCH * LAB.seq_len)
    n_tokens = minute[0].n_tokens
    seconds = statistics.median(run.seconds for run in minute)
    rates, peak = measured["matmul_flops_per_s"], measured["peak_bytes"]
    bits = [run.bits_per_byte for run in minute]
    speeds = {row["d_model"]: row["bf16_tokens_per_s"] / row["fp32_tokens_per_s"]
              for row in measured["speed_by_width"]}  # fmt: skip
    early = measured["gradients"]["after 10240 tokens"]["counts"]
    edges = measured["gradients"]["bin_edges_log2"]
    gpt2, llama = params("gpt2"), params("llama-3.1-8b")
    held = memory("gpt2", batch_size=8, seq_len=1024)
    compressors = measured["compressors_bits_per_byte"]
    by_rate = rates_study()
    means = {rate: statistics.mean(bits_there) for rate, bits_there in by_rate.items()}
    best = min(means, key=lambda rate: means[rate])
    attention = {name: attention_share(name) for name in ("gpt2", "llama-3.1-8b")}
    return {
        "n_params": f"{counts.total:,}",
        "vocab_size": f"{LAB.vocab_size:,}",
        "ln_v": f"{math.log(LAB.vocab_size):.2f}",
        "n_tokens": f"{n_tokens / 1e6:.1f} million",
        "lab_seconds": f"{seconds:.0f}",
        "lab_bpb": f"{statistics.mean(bits):.2f}",
        "lab_bpb_spread": f"{max(bits) - min(bits):.2f}",
        "table_bpb": f"{statistics.mean(run.bits_per_byte for run in study_runs(STUDY, 'minute-table')):.2f}",
        "gzip_bpb": f"{compressors['gzip']:.2f}",
        "xz_bpb": f"{compressors['xz']:.2f}",
        "xz_primed_bpb": f"{compressors['xz primed']:.2f}",
        "larger_bpb": f"{larger.bits_per_byte:.2f}",
        "larger_minutes": f"{larger.seconds / 60:.0f}",
        "larger_n_params": f"{larger.n_params / 1e6:.1f} million",
        "lab_tflop": f"{step * n_tokens / (LAB_BATCH * LAB.seq_len) / 1e12:.1f}",
        "peak_mb": f"{peak / 1e6:.0f} MB",
        "weight_share": f"{4 * counts.total / peak:.0%}",
        "matmul_rate": f"{rates['fp32'] / 1e9:.0f} GFLOP/s",
        "flops_per_token": f"{per_token / 1e6:.2f} million operations",
        "max_tokens_per_s": f"{rates['fp32'] / per_token:,.0f}",
        "lab_tokens_per_s": f"{n_tokens / seconds:,.0f}",
        "lab_mfu": f"{per_token * n_tokens / seconds / rates['fp32']:.0%}",
        "bf16_matmul_ratio": f"{rates['bf16'] / rates['fp32']:.1f}",
        "bf16_narrow": f"{speeds[64]:.2f}",
        "bf16_wide": f"{speeds[512]:.2f}",
        "rate_half": f"{means[best / 2] - means[best]:.2f}",
        "rate_double": f"{means[best * 2] - means[best]:.2f}",
        "scatter_low": f"{statistics.stdev(by_rate[0.001]):.3f}",
        "scatter_high": f"{statistics.stdev(by_rate[0.008]):.2f}",
        "gpt2_attention": f"{attention['gpt2']:.0%}",
        "llama_attention": f"{attention['llama-3.1-8b']:.1f}",
        "activations_rule": f"{4 * LAB_BATCH * 128 * (18 * 3 * 96 + 1024) / 1e6:.1f}",
        "activations_mb": f"{memory(LAB, batch_size=LAB_BATCH, seq_len=128).activations_bytes / 1e6:.1f}",
        "gpt2_matmul": f"{gpt2.matmul / 1e6:.1f}",
        "gpt2_params": f"{gpt2.total / 1e6:.1f} million",
        "llama_matmul": f"{llama.matmul / 1e9:.2f}",
        "llama_params": f"{llama.total / 1e9:.2f} billion",
        "gpt2_head_share": f"{head_bytes(held) / held.total_bytes:.0%}",
        **engine_numbers(),
        "fp16_lost": f"{share_between(early, edges, -99, -25):.1%}",
        "fp16_blurred": f"{share_between(early, edges, -25, -14):.0%}",
    }


def engine_numbers() -> dict[str, str]:
    """What the prose takes from the recorded runs in two processes."""
    measured = study_json(ENGINE, "measurements")
    equal, timed = measured["equality"], measured["speeds"]
    held = equal["optimizer_bytes_by_process"]
    best = {name: max(rates) for name, rates in timed["tokens_per_s"].items()}
    return {
        "engine_steps": str(equal["steps"]),
        "engine_ddp_difference": power_of_ten(equal["largest_difference_nats"]["ddp"]),
        "engine_fsdp_difference": power_of_ten(equal["largest_difference_nats"]["fsdp"]),
        "engine_whole_mb": f"{held['ddp'][0] / 1e6:.2f} MB",
        "engine_part_mb": f"{held['fsdp'][0] / 1e6:.2f} MB",
        "engine_rounds": str(len(timed["tokens_per_s"]["one"])),
        "engine_ddp_ratio": f"{best['ddp'] / best['one']:.2f}",
        "engine_fsdp_ratio": f"{best['fsdp'] / best['one']:.2f}",
    }


def power_of_ten(value: float) -> str:
    """As in 3 · 10⁻¹³."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit} · 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def recorded_session(part: int) -> str:
    """A command of the recorded session and what `scalelab` printed, long lines folded."""
    done = study_json(ENGINE, "measurements")["session"][part]
    command = re.sub(r"(--[\w-]+) (?!-)", "\\1\N{NO-BREAK SPACE}", done["command"])  # a flag and its value
    folded = " \\\n    ".join(textwrap.wrap(command, 84, break_on_hyphens=False))
    lines = ["$ " + folded.replace("\N{NO-BREAK SPACE}", " ")]
    for line in done["printed"].splitlines():
        lines.append(textwrap.fill(line, 92, subsequent_indent="    ", break_on_hyphens=False))
    if done["then"]:
        lines.insert(-1, f"({done['then']})")
    return "\n".join(lines)


def table_engine() -> HTML:
    """Three ways to use two cores."""
    measured = study_json(ENGINE, "measurements")
    held, timed = measured["equality"]["optimizer_bytes_by_process"], measured["speeds"]["tokens_per_s"]
    names = {
        "one": "one process, two threads",
        "ddp": "two processes of one thread, DDP",
        "fsdp": "two processes of one thread, FSDP",
    }
    rows = [
        [label, f"{held[name][0] / 1e6:.2f}", f"{max(timed[name]):,.0f}"] for name, label in names.items()
    ]
    return table(["", "optimiser, MB a process", "tokens/s, best"], rows)


def rates_study() -> dict[float, list[float]]:
    """Final bits per byte of every seed, by peak learning rate."""
    found: dict[float, list[float]] = {}
    for run in study_runs(STUDY, "rates"):
        found.setdefault(run.learning_rate, []).append(run.bits_per_byte)
    return dict(sorted(found.items()))


def attention_share(name: str) -> float:
    """Attention's training FLOPs over those of everything else, at the model's full context."""
    config = preset(name)
    assert isinstance(config, DecoderConfig)
    exact = flops(config, batch_size=1, seq_len=config.seq_len, training=True).total
    return exact / flops_6nd(params(config).matmul, config.seq_len) - 1


def share_between(counts: list[int], edges: list[int], low: int, high: int) -> float:
    """The share of non-zero gradients from 2^low to 2^high."""
    return sum(n for left, n in zip(edges, counts, strict=False) if low <= left < high) / sum(counts)


def head_bytes(held: Memory) -> int:
    """Bytes that the head and the loss keep for the way back."""
    return held.activation_parts["head"] + held.activation_parts["log-probabilities"]


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    # The corner above the rows' names heads nothing, so it is no heading.
    head = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def table_formats() -> HTML:
    """Three number formats by their limits, computed from their bits; numpy confirms the two it has."""
    formats = [("fp32", 8, 23), ("fp16", 5, 10), ("bf16", 8, 7)]
    rows = []
    for name, exponent_bits, fraction_bits in formats:
        bias = 2 ** (exponent_bits - 1) - 1
        largest = (2 - 2.0**-fraction_bits) * 2.0**bias
        smallest = 2.0 ** (1 - bias - fraction_bits)
        if name != "bf16":
            info = np.finfo({"fp32": np.float32, "fp16": np.float16}[name])
            assert largest == float(info.max)
            assert smallest == float(info.smallest_subnormal)
        rows.append([name, f"{exponent_bits} + {fraction_bits}", f"{largest:.3g}", f"{smallest:.1e}",
                     f"{2.0**-fraction_bits:.1e}"])  # fmt: skip
    return table(
        ["", "bits: exponent + fraction", "largest", "smallest above 0", "next after 1, minus 1"], rows
    )


def figure_minute() -> None:
    """Bits per byte over tokens, in the lab's run and in the larger one."""
    compressors = study_json(STUDY, "measurements")["compressors_bits_per_byte"]
    lines = {}
    for arm, label in (("minute", "the lab's run"), ("larger", "a larger model")):
        run = study_runs(STUDY, arm)[0]
        scale = run.bits_per_byte / run.loss_nats  # the same tokens at each point, so one factor for all
        lines[label] = ([n for n, _ in run.curve], [loss * scale for _, loss in run.curve])
    figure, axes = plots.curve(
        lines,
        references={
            "gzip": compressors["gzip"],
            "xz": compressors["xz"],
            "xz, training text read first": compressors["xz primed"],
        },
        references_at="left",
        title="A minute of training beats gzip",
        xlabel="training tokens",
        ylabel="held-out bits per byte",
        log_x=True,
    )
    axes.xaxis.set_major_formatter(TOKENS_AXIS)
    plots.show(figure, alt="Held-out bits per byte over training tokens.")


def figure_rates() -> None:
    """Final loss over peak rate, every seed a point."""
    by_rate = rates_study()
    figure, axes = plots.new(
        "A slope on the left, a wall on the right", "peak learning rate", "held-out bits per byte", log_x=True
    )
    rates = list(by_rate)
    axes.plot(rates, [statistics.mean(bits) for bits in by_rate.values()], color=plots.COLOURS[0])
    for rate, bits in by_rate.items():
        axes.plot([rate] * len(bits), bits, "o", color=plots.COLOURS[0], alpha=0.6)
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    plots.show(figure, alt="Final loss over peak learning rate.")


def figure_schedules() -> None:
    """The four schedules, each named with the loss it led to."""
    done = np.linspace(0, 1, 401)
    warm, late = 0.05, 0.2
    after = np.clip((done - warm) / (1 - warm), 0, 1)
    shapes = {
        "constant": np.ones_like(done),
        "cosine": 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * after)),
        "linear": 1 - after,
        "wsd": np.clip((1 - done) / late, 0, 1),
    }
    figure, axes = plots.new(
        "What decays ends lower, and latest is lowest here",
        "share of the run",
        "learning rate / peak",
        width=7.4,
        height=3.8,
    )
    for index, (name, shape) in enumerate(shapes.items()):
        bits = [run.bits_per_byte for run in study_runs(STUDY, f"schedule-{name}")]
        label = f"{name}: {statistics.mean(bits):.3f} ± {statistics.stdev(bits):.3f} bits per byte"
        axes.plot(done, np.minimum(done / warm, shape), color=plots.COLOURS[index], label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=9)
    plots.show(figure, alt="Four learning-rate schedules with their final losses.")


def figure_attention_share() -> None:
    """Exact training FLOPs over 6N·D, as the context grows."""
    figure, axes = plots.new(
        "Attention adds about T/6D: it counts when the context is long for the width",
        "context, tokens", "exact operations / 6N per token", log_x=True, log_y=True,
    )  # fmt: skip
    ends = {
        "the lab's model": (LAB, 4_096),
        "GPT-2": (preset("gpt2"), 32_768),
        "Llama-3.1-8B": (preset("llama-3.1-8b"), 131_072),
    }
    for index, (name, (config, longest)) in enumerate(ends.items()):
        assert isinstance(config, DecoderConfig)
        lengths = [2**k for k in range(6, int(math.log2(longest)) + 1)]
        ratios = []
        for length in lengths:
            stretched = dataclasses.replace(config, seq_len=length)
            exact = flops(stretched, batch_size=1, seq_len=length, training=True).total
            ratios.append(exact / flops_6nd(params(stretched).matmul, length))
        axes.plot(lengths, ratios, color=plots.COLOURS[index])
        axes.annotate(name, (lengths[-1], ratios[-1]), xytext=(5, 0), textcoords="offset points",
                      color=plots.COLOURS[index], va="center", fontsize=9)  # fmt: skip
        at = min(config.seq_len, longest)
        axes.plot([at], [ratios[lengths.index(at)]], "o", color=plots.COLOURS[index])
    axes.set_xlim(50, 1_200_000)
    axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(TOKENS_AXIS)
    plots.show(figure, alt="Exact operations over 6N per token, against context length.")


def figure_memory() -> None:
    """Shares of training memory by kind, for three models at a batch that people use."""
    setups = {
        f"the lab's model\n{LAB_BATCH} × 128 tokens": (LAB, LAB_BATCH, 128),
        "GPT-2\n8 × 1,024 tokens": (preset("gpt2"), 8, 1024),
        "Llama-3.1-8B\n1 × 8,192 tokens": (preset("llama-3.1-8b"), 1, 8192),
    }
    kinds = ("weights", "gradients", "optimiser", "activations in blocks", "logits and loss")
    figure, axes = plots.new("What fills the memory", "share of all bytes", "", height=3.0)
    for row, (config, batch_size, seq_len) in enumerate(setups.values()):
        held = memory(config, batch_size=batch_size, seq_len=seq_len)
        logits = head_bytes(held)
        sizes = (held.weights_bytes, held.gradients_bytes, held.optimizer_bytes,
                 held.activations_bytes - logits, logits)  # fmt: skip
        left = 0.0
        for kind, size in zip(range(len(kinds)), sizes, strict=True):
            share = size / held.total_bytes
            axes.barh(row, share, left=left, color=plots.COLOURS[kind], height=0.6,
                      label=kinds[kind] if row == 0 else None)  # fmt: skip
            if share > 0.06:
                ink = plots.INK if kind >= 3 else "white"  # the later colours are light
                axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", color=ink,
                          fontsize=9, fontweight="bold")  # fmt: skip
            left += share
        axes.text(1.01, row, _bytes(held.total_bytes), va="center", fontsize=9)
    axes.set_yticks(range(len(setups)), list(setups))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.legend(loc="upper center", bbox_to_anchor=(0.42, -0.22), ncols=5, frameon=False, fontsize=8,
                columnspacing=1.0, handlelength=1.0)  # fmt: skip
    plots.show(figure, alt="Shares of training memory by kind for three models.")


def figure_gradients() -> None:
    """How large gradients are, and what fp16 can hold of them."""
    found = study_json(STUDY, "measurements")["gradients"]
    edges = np.array(found["bin_edges_log2"])
    early, late = (found[key]["counts"] for key in list(found)[1:])
    figure, axes = plots.new(
        "What fp16 can hold of our gradients",
        "size of a gradient, power of two",
        "share of all non-zero gradients",
    )  # fmt: skip
    axes.axvspan(-25, -14, color="#E6E6E6", zorder=0)
    for counts, label, colour in ((early, "after 10 steps", 4), (late, "at the end", 0)):
        share = np.array(counts) / sum(counts)
        axes.step(edges[:-1] + 0.5, share, where="mid", color=plots.COLOURS[colour])
        top = int(np.argmax(share))
        axes.annotate(label, (edges[top] + 0.5, share[top]), xytext=(8, 2), textcoords="offset points",
                      color=plots.COLOURS[colour], fontsize=9)  # fmt: skip
    top = axes.get_ylim()[1]
    axes.axvline(-25, color=plots.GREY, linewidth=1.2)
    axes.text(-25.3, top * 0.97, "below: zero in fp16", ha="right", va="top", fontsize=9, color=plots.GREY)
    axes.text(-19.5, top * 0.97, "fewer digits", ha="center", va="top", fontsize=9, color=plots.GREY)
    axes.set_xlim(-45, 0)
    plots.show(figure, alt="Histogram of gradient sizes beside fp16's range.")


def figure_precision() -> None:
    """Speed of training in bf16 over fp32, by width."""
    measured = study_json(STUDY, "measurements")
    rows, rates = measured["speed_by_width"], measured["matmul_flops_per_s"]
    widths = [row["d_model"] for row in rows]
    ratios = [row["bf16_tokens_per_s"] / row["fp32_tokens_per_s"] for row in rows]
    figure, axes = plots.curve(
        {"training": (widths, ratios)},
        references={"no gain": 1.0, "large products alone": rates["bf16"] / rates["fp32"]},
        title="bf16 pays where products are large",
        xlabel="model width D",
        ylabel="speed in bf16 / speed in fp32",
        log_x=True,
    )
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    plots.show(figure, alt="Speed of training in bf16 over fp32, by width.")


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
