"""How fast a machine computes and how fast it fetches, and where a model's passes lie below these two limits.

A pass that takes I FLOPs for each byte it moves cannot run faster than min(P, I · W): P the FLOP/s of large
matrix products, W the bytes a second that come in from memory. Both are measured here as a model uses them: W
by reading as many bytes as the weights have, so that it is the bandwidth of whatever they fit into.
Source: Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785. Taught in
book/transformers/inference.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalelab.core.checks import check_positive, check_positive_int
from scalelab.cost import attainable_flops
from scalelab.lab import plots

if TYPE_CHECKING:
    import torch

    from scalelab.models import Decoder

READ_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """A machine's two limits.

    Attributes:
        peak_flops_per_s: of large matrix products, FLOP/s. bandwidth_bytes_per_s: of reading, bytes/s.

    Raises:
        ConfigError: a limit that is not a finite number above 0.
    """

    peak_flops_per_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        check_positive("peak_flops_per_s", self.peak_flops_per_s)
        check_positive("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on computing is the limit."""
        return self.peak_flops_per_s / self.bandwidth_bytes_per_s

    def attainable(self, intensity: float) -> float:
        """FLOP/s at most, at so many FLOPs per byte."""
        return attainable_flops(intensity, self.peak_flops_per_s, self.bandwidth_bytes_per_s)


def measure_roofline(
    device: torch.device | str = "cpu", *, n_bytes: int = READ_BYTES, seconds: float = 0.6
) -> Roofline:
    """Both limits of this device in fp32, with the threads torch has.

    Args:
        n_bytes: what is read over and over: about as much as the weights in question.
        seconds: how long to try each; the fastest try counts, since others may use the machine too.
    """
    from scalelab.lab.measure import matmul_flops_per_s

    return Roofline(
        peak_flops_per_s=matmul_flops_per_s(device, seconds=seconds),
        bandwidth_bytes_per_s=read_bytes_per_s(device, n_bytes=n_bytes, seconds=seconds),
    )


def read_bytes_per_s(
    device: torch.device | str = "cpu", *, n_bytes: int = READ_BYTES, seconds: float = 0.6
) -> float:
    """Bytes a second at best, by matrix–vector products: each number is read once and used once.

    Args:
        n_bytes: of the matrix. seconds: how long to try; the fastest product counts.

    Raises:
        ConfigError: no positive whole number of bytes.
    """
    import torch

    check_positive_int("n_bytes", n_bytes)
    n_columns = 4096
    n_rows = max(1, n_bytes // (4 * n_columns))
    matrix = torch.ones(n_rows, n_columns, device=device)
    vector, out = torch.ones(n_columns, device=device), torch.empty(n_rows, device=device)
    taken = fastest(lambda: torch.mv(matrix, vector, out=out), torch.device(device), seconds=seconds)
    return 4 * n_rows * n_columns / taken


def pass_seconds(
    model: Decoder, *, batch_size: int, n_new: int, n_kept: int = 0, seconds: float = 0.3
) -> float:
    """Seconds, at best, of a pass over `n_new` tokens in each row, beside `n_kept`; the head at the last.

    Args:
        batch_size: B. n_new: 1 for a step of decoding, the prompt's length for prefill.
        n_kept: tokens kept of each row. seconds: how long to try; the fastest pass counts.

    Raises:
        ConfigError, DataError: sizes that the model does not take.
    """
    import torch

    c = model.config
    device = model.token_embedding.weight.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(c.vocab_size, (batch_size, n_new), generator=generator).to(device)
    cache = model.make_cache(batch_size, n_kept + n_new)
    if n_kept:  # any keys will do: the time of a pass does not depend on them
        shape = (batch_size, c.kv_heads, n_kept, c.head_width)
        for layer in cache.layers:
            layer.append(torch.ones(shape, device=device), torch.ones(shape, device=device))

    def one_pass() -> None:
        cache.crop(n_kept)
        model.logits(model.hidden(tokens, cache=cache)[:, -1])

    with torch.inference_mode():
        return fastest(one_pass, device, seconds=seconds)


def fastest(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """The shortest time that `work` took, of as many tries as fit in `seconds`, and of three at least."""
    best, spent, tries = float("inf"), 0.0, 0
    while tries < 4 or spent < seconds:
        _wait_for(device)
        begin = time.perf_counter()
        work()
        _wait_for(device)
        taken = time.perf_counter() - begin
        tries, spent = tries + 1, spent + taken
        if tries > 1:  # the first one also sets things up
            best = min(best, taken)
    return best


def draw_roofline(
    roof: Roofline, points: Mapping[str, tuple[float, float]], *, title: str, where: str = "this machine"
) -> tuple[Figure, Axes]:
    """The two limits, and measured passes below them.

    Args:
        points: name → (FLOPs per byte, FLOP/s reached). where: whose limits they are.
    """
    figure, axes = plots.new(
        title, "arithmetic intensity, FLOPs per byte moved", "FLOP/s", log_x=True, log_y=True, height=4.2
    )
    lows = [intensity for intensity, _ in points.values()] or [roof.ridge]
    grid = np.geomspace(min(*lows, roof.ridge) / 3, max(*lows, roof.ridge) * 4, 200)
    axes.plot(grid, [roof.attainable(float(x)) for x in grid], color=plots.INK, linewidth=2)
    axes.axvline(roof.ridge, color=plots.GREY, linewidth=1, linestyle=(0, (5, 3)))
    axes.annotate(
        f"{where}: {_rate(roof.peak_flops_per_s)}", (grid[-1], roof.peak_flops_per_s), xytext=(0, 4),
        textcoords="offset points", ha="right", va="bottom", fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"{roof.bandwidth_bytes_per_s / 1e9:.3g} GB/s", (grid[20], roof.attainable(float(grid[20]))),
        xytext=(-4, 8), textcoords="offset points", ha="right", va="bottom", fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"ridge {roof.ridge:.3g}", (roof.ridge, 0.03), xycoords=axes.get_xaxis_transform(), xytext=(4, 0),
        textcoords="offset points", fontsize=9, color=plots.GREY,
    )  # fmt: skip
    for index, (name, (intensity, reached)) in enumerate(points.items()):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        axes.plot([intensity], [reached], "o", color=colour, markersize=7)
        axes.annotate(
            name, (intensity, reached), xytext=(7, -4), textcoords="offset points", ha="left", va="top",
            fontsize=9, color=colour, fontweight="bold",
        )  # fmt: skip
    return figure, axes


def _rate(flops_per_s: float) -> str:
    """A rate as people say it."""
    tera = flops_per_s >= 1e12
    return f"{flops_per_s / (1e12 if tera else 1e9):.3g} {'T' if tera else 'G'}FLOP/s"


def _wait_for(device: torch.device) -> None:
    """GPUs work in the background; a clock must wait for them."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
