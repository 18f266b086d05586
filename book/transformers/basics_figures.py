"""Tables and figures of the chapter `basics`: everything is computed here, from this machine's own text.

The chapter's cells call these; no torch is needed. The text is the standard library's source, so numbers
differ a little from one version of Python to the next, and the prose takes them from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from scalelab.data import Document, corpus
from scalelab.lab import plots

V = 256
N_STEPS = 1_500
RATES = {"gradient descent": 20.0, "momentum": 20.0, "Adam": 0.3}
GAINS = (0.7, 1.0, 1.4)
N_LAYERS = 30


@dataclass(frozen=True)
class Bigrams:
    """Pairs of neighbouring bytes, counted.

    Attributes:
        train, held_out: counts of the pair (a, b) at [a, b]; [V, V].
    """

    train: np.ndarray
    held_out: np.ndarray

    @property
    def joint(self) -> np.ndarray:
        """Share of each pair among all training pairs, [V, V]."""
        return self.train / self.train.sum()

    @property
    def asked(self) -> np.ndarray:
        """Share of pairs that begin with each byte, [V, 1]."""
        return self.joint.sum(axis=1, keepdims=True)

    @property
    def counted(self) -> np.ndarray:
        """Probability of b after a by counting; rows never seen are all 0. [V, V]."""
        return self.train / np.maximum(self.train.sum(axis=1, keepdims=True), 1)


@dataclass(frozen=True)
class Descent:
    """One way down: `losses` after 0, 1, 2 … steps, nats a byte; `table`, the logits at the end, [V, V]."""

    losses: np.ndarray
    table: np.ndarray


def count() -> Bigrams:
    """All neighbouring bytes of Python's standard library; no pair crosses from one file to the next."""
    text = corpus("python")
    return Bigrams(train=_pairs(text.train), held_out=_pairs(text.held_out))


def _pairs(documents: Sequence[Document]) -> np.ndarray:
    found = np.zeros(V * V, dtype=np.int64)
    for document in documents:
        tokens = np.frombuffer(document.text.encode(), dtype=np.uint8).astype(np.int64)
        found += np.bincount(tokens[:-1] * V + tokens[1:], minlength=V * V)
    return found.reshape(V, V)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax of each row, without overflow; [R, V]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def loss(probabilities: np.ndarray, shares: np.ndarray) -> float:
    """Mean of -ln p over pairs with the given shares, nats; infinite if one of them has p = 0."""
    seen = shares > 0
    with np.errstate(divide="ignore"):
        return float(-(shares[seen] * np.log(probabilities[seen])).sum() / shares[seen].sum())


def descend(bigrams: Bigrams, way: str, rate: float, n_steps: int = N_STEPS) -> Descent:
    """From a table of zeros downhill over the whole training text at every step."""
    joint, asked = bigrams.joint.astype(np.float32), bigrams.asked.astype(np.float32)
    logits, m, v = (np.zeros((V, V), dtype=np.float32) for _ in range(3))
    losses = []
    for step in range(1, n_steps + 1):
        log_p = log_softmax(logits)
        losses.append(-float(np.vdot(joint, log_p)))
        gradient = asked * np.exp(log_p) - joint
        if way == "gradient descent":
            logits -= rate * gradient
        elif way == "momentum":
            m = 0.9 * m + gradient
            logits -= rate * m
        else:
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            logits -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-12)
    losses.append(loss(np.exp(log_softmax(logits)), bigrams.joint))
    return Descent(losses=np.array(losses), table=logits)


def descents(bigrams: Bigrams) -> dict[str, Descent]:
    """The three ways of the chapter, each at a rate that suits it."""
    return {way: descend(bigrams, way, rate) for way, rate in RATES.items()}


def steepest(bigrams: Bigrams, byte: str) -> float:
    """The largest curvature of the loss within one row of the counted table: an eigenvalue of its Hessian."""
    row = bigrams.counted[ord(byte)]
    return float(bigrams.asked[ord(byte), 0] * np.linalg.eigvalsh(np.diag(row) - np.outer(row, row))[-1])


def numbers(bigrams: Bigrams, done: dict[str, Descent]) -> dict[str, str]:
    """Every number that the chapter's prose takes from the text, ready to print."""
    counted = loss(bigrams.counted, bigrams.joint)
    share = bigrams.asked[:, 0]
    added = (bigrams.train + 1) / (bigrams.train + 1).sum(axis=1, keepdims=True)
    learned = np.exp(log_softmax(done["Adam"].table))
    plain, adam = done["gradient descent"].losses - counted, done["Adam"].losses - counted
    seen = bigrams.train.sum(axis=1) > 0
    space, rare = steepest(bigrams, " "), steepest(bigrams, "q")
    return {
        "n_pairs": f"{bigrams.train.sum() / 1e6:.1f} million",
        "counted": f"{counted:.3f}",
        "counted_bits": f"{counted / math.log(2):.2f}",
        "n_steps": f"{N_STEPS:,}",
        "plain_excess": f"{plain[-1]:.2f}",
        "plain_within_tenth": f"{int(np.argmax(plain < 0.1)):,}",
        "momentum_excess": f"{done['momentum'].losses[-1] - counted:.3f}",
        "adam_excess": f"{adam[-1]:.5f}",
        "adam_as_good": f"{int(np.argmax(adam < plain[-1]))}",
        "apart": f"{math.ceil(1e4 * np.abs(learned - bigrams.counted)[seen].max()) / 1e4:.4f}",  # at most
        "u_after_q": f"{bigrams.counted[ord('q'), ord('u')]:.3f}",
        "n_unseen": f"{bigrams.held_out[bigrams.train == 0].sum()}",
        "n_held_out": f"{bigrams.held_out.sum():,}",
        "held_out_added": f"{loss(added, bigrams.held_out):.4f}",
        "held_out_learned": f"{loss(learned, bigrams.held_out):.4f}",
        "empty": f"{(bigrams.train == 0).mean():.0%}",
        "space_share": f"{share[ord(' ')]:.0%}",
        "q_share": f"{share[ord('q')]:.2%}",
        "stable_rate": f"{2 / space:.0f}",
        "steeper": f"{space / rare:.0f}",
        "growth": f"{GAINS[-1] ** N_LAYERS:,.0f}",
        "sharp": f"{_largest_share(64, 128, scaled=False):.2f}",
        "soft": f"{_largest_share(64, 128, scaled=True):.2f}",
    }


def _largest_share(width: int, n_choices: int, *, scaled: bool) -> float:
    """Mean of the largest probability in a softmax over dot products of random vectors; 2,000 draws."""
    rng = np.random.default_rng(0)
    logits = np.stack([
        rng.standard_normal((n_choices, width)) @ rng.standard_normal(width) for _ in range(2_000)
    ])  # fmt: skip
    return float(np.exp(log_softmax(logits / (math.sqrt(width) if scaled else 1.0))).max(axis=1).mean())


def figure_descent(bigrams: Bigrams, done: dict[str, Descent]) -> None:
    """Loss over steps, in three ways, above the line of counting."""
    steps = sorted({round(1.15**k) for k in range(60) if 1.15**k <= N_STEPS} | {N_STEPS})
    figure, axes = plots.curve(
        {way: (steps, descent.losses[steps].tolist()) for way, descent in done.items()},
        references={
            "one pass of counting": loss(bigrams.counted, bigrams.joint),
            "knows nothing": math.log(V),
        },
        references_at="left",
        title="All three arrive late where counting is at once",
        xlabel="steps downhill, each over the whole text",
        ylabel="loss, nats per byte",
        log_x=True,
    )
    axes.set_ylim(2.1, 5.8)
    plots.show(figure, alt="Loss over steps of gradient descent, momentum and Adam, with the counted loss.")


def figure_shapes() -> None:
    """A batched product: which axes stay, which one is summed away."""
    figure, axes = plots.new("D is summed over and gone; B and T stay", "", "", height=3.0)
    axes.axis("off")
    axes.set_xlim(0, 14)
    axes.set_ylim(-0.7, 5.0)
    _slab(axes, 0.6, 1.4, (1.5, 2.0), 3, plots.COLOURS[0], ("D", "T", "B"), "x   [B, T, D]")
    axes.text(4.1, 2.4, "@", ha="center", va="center", fontsize=16)
    _slab(axes, 5.0, 1.65, (2.6, 1.5), 1, plots.COLOURS[1], ("F", "D", ""), "W   [D, F]")
    axes.text(8.7, 2.4, "=", ha="center", va="center", fontsize=16)
    _slab(axes, 9.7, 1.4, (2.6, 2.0), 3, plots.COLOURS[2], ("F", "T", "B"), "x @ W   [B, T, F]")
    plots.show(figure, alt="Blocks for x, W and their product.")


def _slab(
    axes: Axes, left: float, bottom: float, size: tuple[float, float], n_sheets: int, colour: str,
    names: tuple[str, str, str], title: str,
) -> None:  # fmt: skip
    """A pile of `n_sheets` rectangles seen from the front; names of its width, height and depth."""
    width, height = size
    for sheet in reversed(range(n_sheets)):
        x, y = left + 0.3 * sheet, bottom + 0.3 * sheet
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=1.5))
    axes.text(left + width / 2, bottom - 0.15, names[0], ha="center", va="top", fontsize=11)
    axes.text(left - 0.15, bottom + height / 2, names[1], ha="right", va="center", fontsize=11)
    if names[2]:
        axes.text(left - 0.05, bottom + height + 0.35, names[2], ha="center", va="center", fontsize=11)
    axes.text(left + width / 2, 0.1, title, ha="center", va="top", fontsize=10, fontweight="bold")


def figure_excess(bigrams: Bigrams) -> None:
    """What each model pays: the text's own entropy, given the byte before, and its divergence on top."""
    entropy = loss(bigrams.counted, bigrams.joint)
    share = np.broadcast_to(bigrams.asked[:, 0], (V, V))
    models = {"knows nothing": math.log(V), "knows how common bytes are": loss(share, bigrams.joint)}
    for n_steps in (10, 100, 1_000):
        models[f"table after {n_steps:,} steps"] = descend(bigrams, "gradient descent", 20.0, n_steps).losses[
            -1
        ]
    models["counted table"] = entropy
    figure, axes = plots.new(
        "Only the orange part can be learned away", "nats per byte", "", width=7.4, height=3.4
    )
    for row, (name, paid) in enumerate(models.items()):
        axes.barh(row, entropy, color=plots.COLOURS[0], height=0.65)
        axes.barh(row, paid - entropy, left=entropy, color=plots.COLOURS[5], height=0.65)
        axes.text(paid + 0.06, row, f"{paid:.2f}" + (f" = {entropy:.2f} + {paid - entropy:.2f}"
                  if paid > entropy + 1e-6 else ""), va="center", fontsize=9)  # fmt: skip
        axes.text(0.08, row, name, va="center", fontsize=9, color="white", fontweight="bold")
    axes.set_yticks([])
    axes.set_xlim(0, 7.2)
    axes.invert_yaxis()
    axes.grid(visible=False)
    plots.show(figure, alt="Bars of entropy and divergence for six models.")


def figure_graph() -> None:
    """The way forward and back through -ln softmax(w x + b)_y for one number x and two classes."""
    x, w, b = 2.0, (0.5, -0.5), (0.0, 1.0)
    z = tuple(weight * x + bias for weight, bias in zip(w, b, strict=True))
    p = np.exp(log_softmax(np.array([z])))[0]
    d = (p[0] - 1, p[1])
    figure, axes = plots.new("Forward values above, gradients below", "", "", width=7.4, height=3.3)
    axes.axis("off")
    axes.set_xlim(-0.3, 14.4)
    axes.set_ylim(-0.4, 6.2)
    nodes = [
        (1.2, 4.6, f"x = {x:g}", f"{w[0] * d[0] + w[1] * d[1]:.2f}"),
        (1.2, 1.6, f"w = ({w[0]:g}, {w[1]:g})", f"({d[0] * x:.2f}, {d[1] * x:.2f})"),
        (5.0, 3.1, f"w·x = ({w[0] * x:g}, {w[1] * x:g})", f"({d[0]:.2f}, {d[1]:.2f})"),
        (5.0, 0.7, f"b = ({b[0]:g}, {b[1]:g})", f"({d[0]:.2f}, {d[1]:.2f})"),
        (9.0, 3.1, f"z = ({z[0]:g}, {z[1]:g})", f"p − y = ({d[0]:.2f}, {d[1]:.2f})"),
        (12.9, 3.1, f"−ln p₀ = {-math.log(p[0]):.2f}", "1"),
    ]
    for left, up, value, gradient in nodes:
        box = FancyBboxPatch((left - 1.15, up - 0.42), 2.3, 0.84, boxstyle="round,pad=0.08",
                             facecolor="#EEF4F9", edgecolor=plots.COLOURS[0])  # fmt: skip
        axes.add_patch(box)
        axes.text(left, up, value.replace("-", "−"), ha="center", va="center", fontsize=9)
        axes.text(
            left,
            up - 0.6,
            gradient.replace("-", "−"),
            ha="center",
            va="top",
            fontsize=9,
            color=plots.COLOURS[1],
        )
    ends = {2: (0, 1), 4: (2, 3), 5: (4,)}
    for target, sources in ends.items():
        for source in sources:
            start, end = nodes[source], nodes[target]
            axes.add_patch(FancyArrowPatch((start[0] + 1.25, start[1]), (end[0] - 1.28, end[1]),
                           arrowstyle="-|>", mutation_scale=12, color=plots.GREY))  # fmt: skip
    axes.text(0.0, 6.0, "values →", fontsize=10, va="top", color=plots.INK)
    axes.text(2.3, 6.0, "← gradients of the loss", fontsize=10, va="top", color=plots.COLOURS[1])
    plots.show(figure, alt="A computational graph with values and gradients.")


def figure_depth() -> None:
    """A signal's size through thirty random layers, for three sizes of their weights."""
    lines = {f"{gain:g} / √D": (range(N_LAYERS + 1), _through_layers(gain)) for gain in GAINS}
    figure, _ = plots.curve(
        {name: (list(layers), sizes) for name, (layers, sizes) in lines.items()},
        title="Only weights of spread 1/√D keep a signal's size",
        xlabel="layer",
        ylabel="standard deviation of the signal",
        log_y=True,
    )
    plots.show(figure, alt="Standard deviation of a signal through thirty layers, three sizes of weights.")


def _through_layers(gain: float, width: int = 256) -> list[float]:
    """Standard deviations before the first and after each layer of weights with variance gain² / width."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, width))
    sizes = [float(x.std())]
    for _ in range(N_LAYERS):
        x = x @ (gain / math.sqrt(width) * rng.standard_normal((width, width)))
        sizes.append(float(x.std()))
    return sizes


def valley(rate: float, memory: float, n_steps: int) -> np.ndarray:
    """The path from (-9, 2) in f(a, b) = a²/2 + 25 b²/2, a row for each step; [n_steps + 1, 2].

    Args:
        memory: the share of its velocity that a step keeps; 0 is plain gradient descent.
    """
    at, velocity = np.array([-9.0, 2.0]), np.zeros(2)
    path = [at]
    for _ in range(n_steps):
        velocity = memory * velocity + np.array([1.0, 25.0]) * at
        at = at - rate * velocity
        path.append(at)
    return np.array(path)


def height(at: np.ndarray) -> float:
    """f at a point of the valley."""
    return float(0.5 * at[0] ** 2 + 12.5 * at[1] ** 2)


def figure_valley() -> None:
    """Twenty steps down a stretched valley: a cautious rate, one near the limit, and momentum."""
    figure, axes = plots.new(
        "Cautious steps crawl along the valley, bold ones bounce across it", "a, curvature 1",
        "b, curvature 25", width=7.4, height=3.6,
    )  # fmt: skip
    a, b = np.meshgrid(np.linspace(-10.5, 2.0, 200), np.linspace(-3.3, 2.5, 200))
    levels = [1, 4, 12, 28, 55, 95, 140]
    axes.contour(a, b, 0.5 * a**2 + 12.5 * b**2, levels=levels, colors="#C8C8C8", linewidths=0.9)
    ways = {"rate 0.02": (0.02, 0.0), "rate 0.076": (0.076, 0.0), "momentum 0.5, rate 0.1": (0.1, 0.5)}
    for index, (name, (rate, memory)) in enumerate(ways.items()):
        path = valley(rate, memory, 20)
        left = f"= {height(path[-1]):.2g}" if height(path[-1]) > 0.001 else "< 0.001"
        axes.plot(path[:, 0], path[:, 1], color=plots.COLOURS[index], marker="o", markersize=3, linewidth=1.3,
                  label=f"{name}: f {left}")  # fmt: skip
    axes.plot([0], [0], marker="x", color=plots.INK, markersize=8)
    axes.grid(visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=8.5)
    plots.show(figure, alt="Three paths down a stretched valley.")
