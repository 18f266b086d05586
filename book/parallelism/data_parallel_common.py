"""What the pages of the chapter `data-parallel` share: named links, models, and an all-reduce's cost on them.

Nothing here was timed on such machines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from IPython.display import HTML

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import Link, all_reduce, interconnect, params

# An H100's NVLink, and a network port of 400 Gbit/s for each GPU. Latencies are those by which NCCL chooses
# (src/graph/tuning.cc: ring, protocol "Simple", NVLINK and NET).
NVLINK = interconnect("nvlink-4").link(latency_s=3.4e-6)
NETWORK = interconnect("infiniband-ndr").link(latency_s=14e-6)
TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 11, "fontweight": "bold"}  # over several panels
RATE = 400e12  # FLOP/s of one H100 in training: what Llama 3's report gives


def config(name: str) -> DecoderConfig:
    """A decoder of the worked numbers."""
    found = preset(name)
    assert isinstance(found, DecoderConfig)
    return found


@lru_cache(maxsize=4)
def size(name: str) -> int:
    """All parameters of a preset."""
    return params(config(name)).total


def reduce_s(n_bytes: int, ranks: int, link: Link = NETWORK, algorithm: str = "ring") -> float:
    """Seconds of an all-reduce of so many bytes of fp32 by the cost model."""
    return all_reduce(n_bytes // 4, ranks, algorithm=algorithm).seconds(link)


def ms(seconds: float) -> str:
    """Seconds as milliseconds, three digits."""
    value = 1e3 * seconds
    if value < 0.01:
        return f"{1e3 * value:.1f} µs"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def percent(share: float, digits: int = 0) -> str:
    """0.31 as 31 %, not to be broken between the two."""
    return f"{100 * share:.{digits}f}\u00a0%"


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """A plain table, numbers to the right."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return HTML(f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')
