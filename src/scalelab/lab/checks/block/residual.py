"""The pre-norm block around its parts, and the ways to wire it wrongly.

Source: Xiong et al. 2020, arXiv:2002.04745, table 1 (pre-LN). Taught in book/transformers/block.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Part = Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T D"]]


def block(
    x: Float[Tensor, "B T D"], attention_norm: Part, attention: Part, ff_norm: Part, feed_forward: Part
) -> Float[Tensor, "B T D"]:
    """Attention, then feed-forward; each reads a normed copy of the stream and adds to the stream."""
    x = x + attention(attention_norm(x))
    return x + feed_forward(ff_norm(x))


def _build(
    *,
    norm_at: str = "reader",
    residual: str = "both",
    second_reads: str = "the sum",
    second_norm: str = "own",
    order: str = "attention first",
) -> Answer:
    """A block with the given faults; without any, the right one."""

    def step(x: Tensor, norm: Part, part: Part, adds: bool) -> Tensor:
        if norm_at == "stream":
            x = norm(x)
        out = part(norm(x) if norm_at in ("reader", "reader and sum") else x)
        out = norm(out) if norm_at == "writer" else out
        total = x + out if adds else out
        return norm(total) if norm_at in ("sum", "reader and sum") else total

    def answer(x: Tensor, attention_norm: Part, attention: Part, ff_norm: Part, feed_forward: Part) -> Tensor:
        first, second = (attention_norm, attention), (ff_norm, feed_forward)
        if second_norm == "the first's":
            second = (attention_norm, feed_forward)
        if order == "feed-forward first":
            first, second = second, first
        adds_first = residual in ("both", "first")
        after = step(x, *first, adds_first)
        if second_reads == "the input":  # and adds to the sum: parallel branches
            return after + step(x, *second, False)
        if residual == "from the start":
            return x + step(step(x, *first, True), *second, False)
        return step(after, *second, residual == "both")

    return answer


MISTAKES = (
    Mistake(
        name="post-norm",
        faults={"norm_at": "sum"},
        message="The sum is normed, as in the Transformer of 2017. In a pre-norm block nothing ever "
        "touches the stream but additions; the norm stands before the part that reads.",
    ),
    Mistake(
        name="normed stream",
        faults={"norm_at": "stream"},
        message="x itself was replaced by norm(x) before the addition. Norm a copy for the part to read, "
        "and add to the x that came in.",
    ),
    Mistake(
        name="norm of what is written",
        faults={"norm_at": "writer"},
        message="The norm follows the part, on what it writes. It should stand before it, on what it reads.",
    ),
    Mistake(
        name="no norm",
        faults={"norm_at": "nowhere"},
        message="The parts read the bare stream; the norms are not used.",
    ),
    Mistake(
        name="no residual",
        faults={"residual": "none"},
        message="Nothing is added: each part replaces the stream by its own output.",
    ),
    Mistake(
        name="second residual missing",
        faults={"residual": "first"},
        message="Attention adds to the stream, and the feed-forward part replaces it.",
    ),
    Mistake(
        name="second part adds to the input",
        faults={"residual": "from the start"},
        message="The feed-forward part's output is added to the block's input, so attention's own "
        "contribution is lost. Add it to the stream as attention left it.",
    ),
    Mistake(
        name="parallel branches",
        faults={"second_reads": "the input"},
        message="Both parts read the block's input, as in GPT-J. Here the feed-forward part reads the "
        "stream after attention has added to it.",
    ),
    Mistake(
        name="one norm used twice",
        faults={"second_norm": "the first's"},
        message="Each part has a norm of its own, with gains of its own: ff_norm is not used.",
    ),
    Mistake(
        name="feed-forward first",
        faults={"order": "feed-forward first"},
        message="The order is attention, then feed-forward.",
    ),
    Mistake(
        name="normed before and after",
        faults={"norm_at": "reader and sum"},
        message="There is a norm before each part, which is right, and one more on the sum, which takes the "
        "clear path through the stream away.",
    ),
)

HINTS = (
    "Two lines of the same form. Each changes x only by adding to it.",
    "What is added by the first is attention(attention_norm(x)); the second reads the new x.",
    "x = x + attention(attention_norm(x)); return x + feed_forward(ff_norm(x)).",
)


def _parts(rng: np.random.Generator, width: int) -> tuple[Any, ...]:
    """A norm, a mixer over time, a norm, a bent map: each its own, none linear in the stream's size."""
    gains = [torch.tensor(rng.uniform(0.5, 1.5, width), dtype=torch.float32) for _ in range(2)]
    maps = [torch.tensor(rng.standard_normal((width, width)), dtype=torch.float32) for _ in range(2)]

    def norm(gain: Tensor) -> Any:
        return lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    def attention(x: Tensor) -> Tensor:
        return torch.tanh(x.cumsum(-2) @ maps[0])

    def feed_forward(x: Tensor) -> Tensor:
        return torch.relu(x @ maps[1])

    return norm(gains[0]), attention, norm(gains[1]), feed_forward


def _case(about: str, rng: np.random.Generator, shape: tuple[int, int, int], size: float) -> Case:
    values = size * rng.standard_normal(shape)
    parts = _parts(rng, shape[-1])

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(values, dtype=torch.float32), *parts), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    time, width = int(rng.integers(2, 6)), int(rng.integers(4, 8))
    return (
        _case("one token, D = 4", rng, (1, 1, 4), 1.0),
        _case(f"shape [2, {time}, {width}]", rng, (2, time, width), 1.0),
        _case(f"a stream five times as large, shape [1, {time}, {width}]", rng, (1, time, width), 5.0),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the new stream": as_numbers(call(answer, *args), "the new stream")}


EXERCISE = Exercise(
    name="block",
    reference=block,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-4,
    atol=1e-5,
)
