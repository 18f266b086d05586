"""Three small tasks of different kinds, which one small decoder learns side by side.

    facts     128 names of two letters, each with a letter to know by heart: weights must hold the answer
    recall    four pairs of letter and digit, then the letters again: the answer stands in the context
    sorting   seven letters, then the same in order: a rule, and an answer of seven tokens

A row has 16 places and holds one task. Only answers are learned and judged, in nats an answer token: what is
asked is drawn at random, and no model can foretell it. Since each next token is judged after the *right*
ones before it, a row whose every token is the likeliest is what greedy writing would give too.
Taught in book/scaling-laws/capability.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from scalelab.core.checks import check_choice, check_positive_int
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.core.seeding import derive_seed
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab.checks.answers import one_thread
from scalelab.models import Decoder

Task = Literal["facts", "recall", "sorting"]
Ints = npt.NDArray[np.int64]
TASKS: tuple[Task, ...] = ("facts", "recall", "sorting")
ROW = 16
N_FACTS, N_PAIRS, N_SORTED = 128, 4, 7
N_DIGITS, N_LETTERS, N_KEYS = 10, 26, 8
FIRST_LETTER = N_DIGITS
THEN = N_DIGITS + N_LETTERS  # between the letters and the same in order
FIRST_TAG = THEN + 1  # one a task, at the row's first place
VOCAB_SIZE = FIRST_TAG + len(TASKS)
NOT_ASKED = -100
ANSWER_LENGTH = {"facts": 1, "recall": 1, "sorting": N_SORTED}
CHANCE = {"facts": 1 / N_LETTERS, "recall": 1 / N_PAIRS, "sorting": 1 / N_SORTED}  # who knows the form alone
RATE, RATE_WIDTH = 1e-2, 16  # the peak rate of width 16; others go as 1/√width
WARMUP_STEPS, DECAY_FRACTION = 50, 0.4
EVAL_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well a task is done.

    Attributes:
        nats: cross-entropy of an answer token. token_accuracy: share of answer tokens that are right.
        exact: share of *rows* all of whose answer tokens are right. brier: squared distance between the
            probabilities and what came, summed over the vocabulary; 0 is best.
    """

    nats: float
    token_accuracy: float
    exact: float
    brier: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRun:
    """One model trained on tasks.

    Attributes:
        width: d_model. n_params: all parameters. n_tokens: places of rows read, asked or not.
        flops: 6 n_params n_tokens. scores: by task, on fresh rows. seconds: wall time.
        curve: scores on the way, where asked for: [tokens, then nats, token accuracy and exact match of each
            task], a row a mark.
    """

    width: int
    n_params: int
    n_tokens: int
    flops: float
    seed: int
    seconds: float
    scores: dict[str, Score]
    curve: list[list[float]]

    @property
    def loss_nats(self) -> float:
        """What training minimised: nats an answer token, each task counting the same."""
        return float(np.mean([score.nats for score in self.scores.values()]))

    def as_dict(self) -> dict[str, object]:
        """As the record keeps it."""
        return dataclasses.asdict(self)


def task_run(values: dict[str, object]) -> TaskRun:
    """A run from what `as_dict` gave."""
    scores = {name: Score(**score) for name, score in values["scores"].items()}  # type: ignore[attr-defined]
    return TaskRun(**{**values, "scores": scores})  # type: ignore[arg-type]


def small_decoder(width: int, *, seed: int, n_layers: int = 2) -> Decoder:
    """A decoder of two layers with two heads, wide enough for the rows of all tasks."""
    config = DecoderConfig(
        n_layers=n_layers, d_model=width, n_heads=2, vocab_size=VOCAB_SIZE, seq_len=ROW, norm="rmsnorm",
        positions="rope", feed_forward="gelu", attention_bias=False, feed_forward_bias=False,
    )  # fmt: skip
    return Decoder(config, seed=seed)


def n_params_of(width: int) -> int:
    """All parameters of the small decoder of this width."""
    return sum(part.numel() for part in small_decoder(width, seed=0).parameters())


@lru_cache(maxsize=1)
def fact_table() -> tuple[Ints, Ints]:
    """The names [facts, 2] and what is to be known of each [facts]; the same in every run."""
    rng = np.random.default_rng(derive_seed(0, "facts"))
    chosen = rng.permutation(N_LETTERS**2)[:N_FACTS]
    names = np.stack([chosen // N_LETTERS, chosen % N_LETTERS], axis=1) + FIRST_LETTER
    return names, rng.integers(0, N_LETTERS, N_FACTS) + FIRST_LETTER


def draw_rows(task: Task, n_rows: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Tokens [B, T] and targets [B, T], one place later; -100 where nothing is asked.

    Raises:
        ConfigError: no such task, or no row.
    """
    check_choice("task", task, TASKS)
    check_positive_int("n_rows", n_rows)
    rows = np.zeros((n_rows, ROW + 1), dtype=np.int64)
    rows[:, 0] = FIRST_TAG + TASKS.index(task)
    asked = np.zeros(ROW + 1, dtype=bool)
    if task == "facts":
        names, values = fact_table()
        which = rng.integers(0, N_FACTS, (n_rows, 5))
        told = np.concatenate([names[which], values[which][..., None]], axis=2)  # [B, 5, 3]
        rows[:, 1:16] = told.reshape(n_rows, 15)
        asked[3:16:3] = True
    elif task == "recall":
        keys = _distinct(n_rows, N_PAIRS, rng, of=N_KEYS)
        pairs = np.stack([keys, rng.integers(0, N_DIGITS, (n_rows, N_PAIRS))], axis=2)  # [B, 4, 2]
        again = rng.integers(
            0, N_PAIRS, (n_rows, N_PAIRS)
        )  # with repeats, or the last could be told by exclusion
        rows[:, 1:9] = pairs.reshape(n_rows, -1)
        rows[:, 9:17] = np.take_along_axis(pairs, again[..., None], axis=1).reshape(n_rows, -1)
        asked[10:17:2] = True
    else:
        letters = _distinct(n_rows, N_SORTED, rng)
        rows[:, 1 : 1 + N_SORTED] = letters
        rows[:, 1 + N_SORTED] = THEN
        rows[:, 2 + N_SORTED : 2 + 2 * N_SORTED] = np.sort(letters, axis=1)
        asked[2 + N_SORTED : 2 + 2 * N_SORTED] = True
    return rows[:, :-1], np.where(asked[1:], rows[:, 1:], NOT_ASKED)


@torch.no_grad()
def answers(
    model: Decoder, task: Task, *, n_rows: int = EVAL_ROWS, seed: int = 0
) -> tuple[npt.NDArray[np.float64], Ints]:
    """What a model makes of fresh rows: log-probabilities [B, L, V] of the answer tokens, and the right ones.

    Right tokens are [B, L], L of them a row. The rows are the same for every model, and other ones than it
    was trained on (facts excepted: there are no others).
    """
    rng = np.random.default_rng(derive_seed(seed, "fresh rows", task))
    tokens, targets = draw_rows(task, n_rows, rng)
    device = next(model.parameters()).device
    logits = model(torch.from_numpy(tokens).to(device)).double().log_softmax(-1).cpu().numpy()
    places = targets[0] != NOT_ASKED
    return logits[:, places], targets[:, places]


def score(log_probs: npt.NDArray[np.float64], right: Ints) -> Score:
    """The four metrics of the same answers: log-probabilities [B, L, V] and right tokens [B, L]."""
    of_right = np.take_along_axis(log_probs, right[..., None], axis=-1)[..., 0]
    hit = log_probs.argmax(-1) == right
    p = np.exp(log_probs)
    return Score(
        nats=float(-of_right.mean()),
        token_accuracy=float(hit.mean()),
        exact=float(hit.all(axis=1).mean()),
        brier=float(((p**2).sum(-1) - 2 * np.exp(of_right) + 1).mean()),
    )


def train_on_tasks(
    width: int,
    n_steps: int,
    *,
    seed: int,
    tasks: Sequence[Task] = TASKS,
    rows_per_task: int = 21,
    n_marks: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[TaskRun, Decoder]:
    """Train one small decoder on fresh rows of these tasks, every task in every step, and score it.

    The rate rises over 50 steps, stays, and falls to nothing over the last 40 %.

    Args:
        n_marks: how often it is scored on the way, on a quarter of the rows.

    Raises:
        ConfigError: no task, no step, or a width that two heads cannot share.
    """
    check_positive_int("n_steps", n_steps)
    if not tasks:
        raise ConfigError("tasks is empty: name at least one of " + ", ".join(TASKS))
    model = small_decoder(width, seed=derive_seed(seed, "weights")).to(device)
    rng = np.random.default_rng(derive_seed(seed, "rows"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    peak = RATE * (RATE_WIDTH / width) ** 0.5
    marks = set(np.linspace(0, n_steps, n_marks + 1).round().astype(int)[1:].tolist())
    step_tokens = rows_per_task * len(tasks) * ROW
    began, curve = time.perf_counter(), []
    with one_thread():
        for step in range(n_steps):
            left = (n_steps - step) / (DECAY_FRACTION * n_steps)
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARMUP_STEPS, left)
            drawn = [draw_rows(task, rows_per_task, rng) for task in tasks]
            tokens, targets = (
                torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*drawn, strict=True)
            )
            logits = model(tokens)
            # Every task counts the same, however many tokens its answers have.
            losses = [
                F.cross_entropy(own.flatten(0, 1), want.flatten(), ignore_index=NOT_ASKED)
                for own, want in zip(logits.chunk(len(tasks)), targets.chunk(len(tasks)), strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step + 1 in marks:
                found = [score(*answers(model, task, n_rows=EVAL_ROWS // 4)) for task in tasks]
                parts = [part for one in found for part in (one.nats, one.token_accuracy, one.exact)]
                curve.append([(step + 1) * step_tokens, *(round(part, 5) for part in parts)])
        scores: dict[str, Score] = {task: score(*answers(model, task)) for task in tasks}
    n_params = sum(part.numel() for part in model.parameters())
    n_tokens = n_steps * step_tokens
    run = TaskRun(
        width=width,
        n_params=n_params,
        n_tokens=n_tokens,
        flops=FLOPS_PER_PARAM_TOKEN * n_params * n_tokens,
        seed=seed,
        seconds=round(time.perf_counter() - began, 2),
        scores=scores,
        curve=curve,
    )
    return run, model


def steps_for(flops: float, width: int, *, n_tasks: int = len(TASKS), rows_per_task: int = 21) -> int:
    """Steps that spend this many FLOPs on the small decoder of this width, at least one."""
    step_tokens = rows_per_task * n_tasks * ROW
    return max(1, round(flops / (FLOPS_PER_PARAM_TOKEN * n_params_of(width) * step_tokens)))


def _distinct(n_rows: int, n: int, rng: np.random.Generator, *, of: int = N_LETTERS) -> Ints:
    """So many different letters a row, of the first `of`, [B, n]."""
    return rng.random((n_rows, of)).argsort(axis=1)[:, :n] + FIRST_LETTER
