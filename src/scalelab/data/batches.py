"""Batches in an order of seed and position alone, so that a run stopped anywhere goes on exactly.

The stream is cut into windows that do not overlap; each epoch visits all of them once, in an order of its
own. A batch may span two epochs. An objective makes inputs and targets of the windows; what it draws by
chance depends on seed and position too. Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_count, check_positive_int
from scalelab.core.errors import DataError
from scalelab.data.cache import fingerprint
from scalelab.data.objectives import CausalObjective, Objective

Ids64 = npt.NDArray[np.int64]
NEXT_TOKEN = CausalObjective()


class Batches:
    """Batches of windows of a token stream, [B, T] inputs and [B, T] targets, as many as asked for.

    Attributes:
        tokens: the stream. batch_size: B. seq_len: T. seed: of the order.
        objective: what is asked of each window; the next token, if nothing is said.
        n_windows: windows in one epoch; the stream's last tokens, too few to fill one more, are not used.

    Raises:
        ConfigError: a size that is not a positive whole number.
        DataError: the stream is shorter than one window and its shifted target.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer],
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        objective: Objective = NEXT_TOKEN,
    ) -> None:
        check_positive_int("batch_size", batch_size)
        check_count("seed", seed)
        self.tokens = tokens
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.objective = objective
        self.n_windows = count_windows(tokens, seq_len, objective)
        self._position = 0  # windows handed out since the beginning
        self._order: tuple[int, Ids64] | None = None  # of the epoch it names
        self._fingerprint = fingerprint(str(tokens.dtype), tokens.tobytes())

    @property
    def n_tokens_unique(self) -> int:
        """Places of the model's input in one epoch: T for each window."""
        return self.n_windows * self.seq_len

    def next(self) -> tuple[Ids64, Ids64]:
        """The next batch.

        Returns:
            inputs [B, T] and targets [B, T]; for the next-token objective, targets[b, t] is the token after
            inputs[b, t]. See `objectives` for the others.
        """
        begin, end = self._position, self._position + self.batch_size
        chosen = np.array([self._window(position) for position in range(begin, end)], dtype=np.int64)
        self._position = end
        rng = np.random.default_rng([self.seed, begin, 1])
        return self.objective(_take(self.tokens, chosen, self.seq_len, self.objective), rng)

    def state(self) -> dict[str, Any]:
        """Where this is, as values fit for JSON; `restore` goes on from there."""
        return {
            "position": self._position,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "tokens_sha256": self._fingerprint,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the batch size may be another.

        Raises:
            DataError: the state is not one, or belongs to another text, window length or seed.
        """
        for name, own in (
            ("seed", self.seed), ("seq_len", self.seq_len), ("tokens_sha256", self._fingerprint),
        ):  # fmt: skip
            if not isinstance(state, Mapping) or name not in state:
                raise DataError(f"this is not the state of Batches: it lacks {name!r}")
            if state[name] != own:
                raise DataError(
                    f"the saved data position belongs to {name}={state[name]!r}, this run has {own!r}; "
                    "resume with the text and settings it was begun with"
                )
        position = state.get("position")
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise DataError(f"the saved data position must be a whole number of at least 0, got {position!r}")
        self._position = position

    def _window(self, position: int) -> int:
        epoch, place = divmod(position, self.n_windows)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, rng.permutation(self.n_windows))
        return int(self._order[1][place])


def count_windows(tokens: npt.NDArray[np.integer], seq_len: int, objective: Objective = NEXT_TOKEN) -> int:
    """How many windows a stream holds side by side; those of the next-token objective share their ends.

    Raises:
        ConfigError: seq_len is not a positive whole number, or too short for the objective.
        DataError: not even one.
    """
    check_positive_int("seq_len", seq_len)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(f"tokens must be one row of whole numbers, got {tokens.dtype} {tokens.shape}")
    length, stride = _window(seq_len, objective)
    n_windows = (len(tokens) - (length - stride)) // stride
    if n_windows < 1:
        after = " and the token after it" if length > seq_len else ""
        raise DataError(
            f"{len(tokens)} tokens are too few for a window of seq_len={seq_len}{after}; "
            "take more text or a shorter seq_len"
        )
    return n_windows


def held_out_windows(
    tokens: npt.NDArray[np.integer],
    seq_len: int,
    max_tokens: int | None = None,
    objective: Objective = NEXT_TOKEN,
) -> tuple[Ids64, Ids64]:
    """Windows to evaluate on: side by side, so that every token is predicted at most once.

    Not predicted are the first token and the last ones that fill no window. An objective that draws by
    chance draws the same each time.

    Args:
        max_tokens: read at most this many, in whole windows spread evenly over the stream (at least one
            window).

    Returns:
        inputs [W, T] and targets [W, T].

    Raises:
        ConfigError, DataError: as `count_windows`.
    """
    n_windows = count_windows(tokens, seq_len, objective)
    chosen = np.arange(n_windows)
    if max_tokens is not None:
        check_positive_int("max_tokens", max_tokens)
        n_chosen = min(max(max_tokens // seq_len, 1), n_windows)
        chosen = np.arange(n_chosen) * n_windows // n_chosen  # strictly increasing as n_chosen <= n_windows
    return objective(_take(tokens, chosen, seq_len, objective), np.random.default_rng(0))


def _window(seq_len: int, objective: Objective) -> tuple[int, int]:
    """Tokens of a window, and from one window's beginning to the next one's."""
    length = objective.window_length(seq_len)
    return length, min(length, seq_len) if objective.name == "causal" else length


def _take(
    tokens: npt.NDArray[np.integer], windows: Ids64, seq_len: int, objective: Objective
) -> npt.NDArray[np.integer]:
    """The raw ids of windows by number, [B, W]."""
    length, stride = _window(seq_len, objective)
    taken: npt.NDArray[np.integer] = tokens[windows[:, None] * stride + np.arange(length)]
    return taken
