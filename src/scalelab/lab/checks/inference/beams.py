"""One step of beam search, and the ways in which beams are compared that cannot be compared.

Source: Sutskever et al. 2014, arXiv:1409.3215, section 3.2; Wu et al. 2016, arXiv:1609.08144, section 7
(length). Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

PARTS = ("parents", "tokens", "sums", "finished parents", "finished scores")


def beam_step(
    log_p: Float[Tensor, "N V"], sums: Float[Tensor, " N"], end_id: int, length: int, length_penalty: float
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " F"], Float[Tensor, " F"]]:
    """The N best beams that go on, and the endings among the N best extensions with their scores."""
    n_beams, vocab_size = log_p.shape
    best, places = (sums[:, None] + log_p).flatten().topk(2 * n_beams)  # both [2N], best first
    parents, tokens = places // vocab_size, places % vocab_size
    ends = tokens == end_id
    finished = ends.clone()
    finished[n_beams:] = False
    running = (~ends).nonzero().flatten()[:n_beams]  # at most N of 2N end: each beam has one end token
    scores = best[finished] / length**length_penalty
    return parents[running], tokens[running], best[running], parents[finished], scores


def _build(
    *, compare: str = "right", read: str = "right", ending: str = "right", penalty: str = "right",
    running: str = "sums",
) -> Answer:  # fmt: skip
    """A step with the given faults; without any, the right one."""

    def answer(log_p: Tensor, sums: Tensor, end_id: int, length: int, length_penalty: float) -> Any:
        n, vocab = log_p.shape
        base = torch.zeros_like(sums) if compare == "last token" else sums
        totals = base[:, None] + log_p
        if compare == "probabilities":
            totals = base[:, None] + log_p.exp()
        if compare == "each beam":
            own, ids = totals.topk(2, dim=1)
            best, order = own.flatten().sort(descending=True)
            places = (torch.arange(n)[:, None] * vocab + ids).flatten()[order]
        else:
            best, places = totals.flatten().topk(2 * n)
        parents, tokens = places // vocab, places % vocab
        if read == "swapped":
            parents, tokens = places % n, places // n % vocab
        ends = tokens == end_id
        n_unfinished = (~ends).cumsum(0)  # among the extensions up to each
        among = {"all": ends, "until full": n_unfinished < n}.get(ending, torch.arange(len(places)) < n)
        finished = ends & among
        if ending == "goes on":
            chosen = torch.arange(n)
        elif ending == "takes a place":
            chosen = torch.arange(n)[~ends[:n]]
        elif compare == "each beam":  # one extension of each beam
            going = [((parents == beam) & ~ends).nonzero().flatten()[:1] for beam in range(n)]
            chosen = torch.cat(going).sort().values
        else:
            chosen = (~ends).nonzero().flatten()[:n]
        steps = length - 1 if penalty == "one less" else length
        factor = {"none": 1.0, "multiplied": 1.0 * steps**length_penalty}.get(
            penalty, 1.0 / max(steps, 1) ** length_penalty
        )
        kept = best[chosen] / length**length_penalty if running == "divided" else best[chosen]
        return parents[chosen], tokens[chosen], kept, parents[finished], best[finished] * factor

    return answer


MISTAKES = (
    Mistake(
        name="beams compared by their last token",
        faults={"compare": "last token"},
        message="Extensions are ranked by the log-probability of the new token alone. What goes on is "
        "decided by the whole text: add `sums` first.",
    ),
    Mistake(
        name="probabilities added to log-probabilities",
        faults={"compare": "probabilities"},
        message="exp(log_p) is added to a sum of logarithms. Probabilities multiply, so logarithms add.",
    ),
    Mistake(
        name="one extension of each beam",
        faults={"compare": "each beam"},
        message="Each beam keeps its own best extension, so these are N greedy searches side by side. All N "
        "· V extensions compete: a good beam may have several children, a bad one none.",
    ),
    Mistake(
        name="place read by the wrong width",
        faults={"read": "swapped"},
        message="A place in the flattened [N · V] is beam · V + token. Its beam is place // V and its token "
        "place % V; here it was taken apart by N.",
    ),
    Mistake(
        name="an ended text goes on",
        faults={"ending": "goes on"},
        message="Texts that just wrote the end token are among the beams that go on. They are finished: set "
        "them aside and take the next best in their place.",
    ),
    Mistake(
        name="an ended text takes up a beam",
        faults={"ending": "takes a place"},
        message="Ended texts are set aside and nothing takes their place, so the search becomes narrower "
        "with each of them. N unfinished texts should go on: look at the 2N best.",
    ),
    Mistake(
        name="endings beyond the N best",
        faults={"ending": "all"},
        message="An ending counts only if it is among the N best extensions. Here those among the 2N best "
        "are finished too.",
    ),
    Mistake(
        name="endings until the beams are full",
        faults={"ending": "until full"},
        message="Endings are finished until N texts go on. Only those among the N best extensions count: "
        "others were not good enough, whether or not an ending has made room.",
    ),
    Mistake(
        name="no length penalty",
        faults={"penalty": "none"},
        message="A finished text's score is its sum as it is. Every token makes a sum smaller, so short "
        "texts always win. Divide by length ** length_penalty.",
    ),
    Mistake(
        name="multiplied by the length",
        faults={"penalty": "multiplied"},
        message="The sum is multiplied by length ** length_penalty. Sums are negative: that punishes long "
        "texts twice. Divide.",
    ),
    Mistake(
        name="the end token not counted",
        faults={"penalty": "one less"},
        message="The score is divided by a power of length - 1. `length` counts the new token, which for a "
        "finished text is the end token; it is counted.",
    ),
    Mistake(
        name="running sums divided too",
        faults={"running": "divided"},
        message="The sums of beams that go on are divided by the length. The next step adds to them, so they "
        "must stay sums; only finished texts are divided.",
    ),
)

HINTS = (
    "totals = sums[:, None] + log_p is [N, V]. Flatten it and take the 2N best: at most N of them are ends, "
    "one for each beam, so at least N go on.",
    "best, places = totals.flatten().topk(2 * N); parents = places // V; tokens = places % V; ends = tokens "
    "== end_id.",
    "running = (~ends).nonzero().flatten()[:N]; finished = ends with [N:] set to False; return "
    "parents[running], tokens[running], best[running], parents[finished], best[finished] / "
    "length**length_penalty.",
)


def _case(
    about: str, log_p: np.ndarray, sums: np.ndarray, end_id: int, length: int, length_penalty: float
) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = (torch.tensor(log_p, dtype=torch.float32), torch.tensor(sums, dtype=torch.float32))
        return (*tensors, end_id, length, length_penalty), {}

    return Case(about=about, make=make)


def _likely(rng: np.random.Generator, n_beams: int, vocab_size: int, best: dict[tuple[int, int], float],
            sums: np.ndarray) -> np.ndarray:  # fmt: skip
    """Log-probabilities in which the given extensions have these totals and all others lower ones."""
    totals = -9.0 - rng.permutation(n_beams * vocab_size).reshape(n_beams, vocab_size) * 0.11
    for (beam, token), total in best.items():
        totals[beam, token] = total
    return np.asarray(totals - sums[:, None])


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n, vocab = 3, int(rng.integers(7, 10))
    a, b, c, d, end = (int(token) for token in rng.permutation(vocab)[:5])
    jitter = rng.uniform(0, 0.09, 8)
    sums = np.array([-2.0, -3.5, -5.4]) - rng.uniform(0, 0.3, 3)
    # The first beam has the two best children, the third none; nothing ends.
    plain = {(0, a): -2.9, (0, b): -3.9, (1, c): -4.4, (0, c): -4.9, (1, a): -5.6, (2, d): -6.3}
    # The second best ends. So do the fourth and the sixth, which are not among the three best, though the
    # fourth is better than the last beam that goes on.
    ends = {(0, a): -2.7, (1, end): -3.8, (0, c): -4.3, (0, end): -4.7, (1, b): -5.0, (2, end): -6.2,
            (2, a): -6.7}  # fmt: skip
    draws = []
    for best in (plain, ends):
        moved = {place: total - jitter[i] for i, (place, total) in enumerate(best.items())}
        draws.append(_likely(rng, n, vocab, moved, sums))
    length = int(rng.integers(3, 7))
    return (
        _case(f"{n} beams, {vocab} tokens, none ends", draws[0], sums, end, length, 1.0),
        _case(f"{n} beams, the second best extension ends, penalty 1", draws[1], sums, end, length, 1.0),
        _case("the same with a penalty of 0.6", draws[1], sums, end, length, 0.6),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="beam_step",
    reference=beam_step,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
