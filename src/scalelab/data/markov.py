"""A synthetic language whose entropy is known, so that a fitted loss floor can be held against the truth.

A first-order chain over 128 symbols. The matrix of transition logits has singular values k^-0.8, so a
model learns the language's strongest regularities first and its loss falls as a power law, down to the
entropy rate and no further. For scaling laws: a loss whose irreducible part is exact.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_count, check_positive_int
from scalelab.core.errors import DataError
from scalelab.data.cache import CacheChoice, fingerprint, read_entry, resolve_cache, write_entry
from scalelab.data.documents import Corpus, Document

N_SYMBOLS = 128
# Symbol i is written as the character U+0100 + i: that block has just 128 letters, two bytes each.
FIRST_CHARACTER = 0x100
SPECTRUM_EXPONENT = 0.8
# Standard deviation of the logits: 2.4 puts the entropy rate near 2.9 nats, of ln 128 = 4.85 possible.
LOGIT_SCALE = 2.4
TRAIN_TOKENS = 4_000_000
HELD_OUT_TOKENS = 200_000


class MarkovSource:
    """One language: its transition probabilities, what they imply, and text drawn from it.

    Attributes:
        seed: which language.
        transitions: [128, 128], row: the symbol before, column: the symbol after; rows sum to 1.
    """

    def __init__(self, seed: int = 0) -> None:
        check_count("seed", seed)
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        left, _ = np.linalg.qr(rng.standard_normal((N_SYMBOLS, N_SYMBOLS)))
        right, _ = np.linalg.qr(rng.standard_normal((N_SYMBOLS, N_SYMBOLS)))
        strengths = np.arange(1, N_SYMBOLS + 1) ** -SPECTRUM_EXPONENT
        logits = np.asarray((left * strengths) @ right.T, dtype=np.float64)
        logits *= LOGIT_SCALE / logits.std()
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.transitions: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> npt.NDArray[np.float64]:
        """How often each symbol comes up in the long run, [128]: pi with pi P = pi and sum 1."""
        # One equation of pi (P - 1) = 0 is implied by the others: the sum takes its place.
        system = self.transitions.T - np.eye(N_SYMBOLS)
        system[-1] = 1.0
        target = np.zeros(N_SYMBOLS)
        target[-1] = 1.0
        return np.asarray(np.linalg.solve(system, target), dtype=np.float64)

    @cached_property
    def entropy_rate_nats(self) -> float:
        """Nats per symbol that no model can go below: -sum_i pi_i sum_j P_ij ln P_ij."""
        rows = -(self.transitions * np.log(self.transitions)).sum(axis=1)
        return float(self.stationary @ rows)

    def token_losses_nats(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The true model's loss on each token but the first, -ln P(token | the one before).

        Args:
            tokens: [..., T] ids of symbols below 128.

        Returns:
            [..., T-1], nats.

        Raises:
            DataError: fewer than two tokens, or one that is no symbol of this language.
        """
        ids = np.asarray(tokens)
        if ids.ndim == 0 or ids.shape[-1] < 2 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(
                f"exact losses need at least two whole-number tokens, got {ids.dtype} {ids.shape}"
            )
        ids = ids.astype(np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= N_SYMBOLS):
            wrong = ids[(ids < 0) | (ids >= N_SYMBOLS)][0]
            raise DataError(f"token {wrong} is no symbol of the markov language (0 to {N_SYMBOLS - 1})")
        losses: npt.NDArray[np.float64] = -np.log(self.transitions[ids[..., :-1], ids[..., 1:]])
        return losses

    def exact_loss_nats(self, tokens: npt.ArrayLike) -> float:
        """The true model's mean loss on these very tokens, nats per token: no model can expect less."""
        return float(self.token_losses_nats(tokens).mean())

    def sample(self, n_tokens: int, *, seed: int) -> npt.NDArray[np.uint16]:
        """Symbols drawn from the chain, its first from the long-run distribution, [n_tokens].

        A shorter sample of the same seed is a prefix of a longer one.
        """
        check_positive_int("n_tokens", n_tokens)
        check_count("seed", seed)
        uniform = np.random.default_rng([self.seed, 1, seed]).random(n_tokens)
        # Inverse of the cumulative distribution; rounding must not leave the last entry below 1.
        rows = np.cumsum(self.transitions, axis=1)
        rows[:, -1] = 1.0
        cumulative = rows.tolist()
        first = np.cumsum(self.stationary)
        state = min(bisect_right(first.tolist(), float(uniform[0])), N_SYMBOLS - 1)
        drawn = [state]
        for u in uniform[1:].tolist():
            state = bisect_right(cumulative[state], u)
            drawn.append(state)
        return np.array(drawn, dtype=np.uint16)


def symbols_to_text(symbols: npt.NDArray[np.integer]) -> str:
    """Symbol ids as the characters that stand for them."""
    return (symbols.astype("<u2") + FIRST_CHARACTER).astype("<u2").tobytes().decode("utf-16-le")


def markov_corpus(*, seed: int = 0, max_bytes: int | None = None, cache: CacheChoice = "default") -> Corpus:
    """Two long draws from `MarkovSource(seed)`: 4 M symbols to train on, 200 k held out, no breaks inside.

    Args:
        max_bytes: fewer or more training symbols, two bytes each; a smaller draw is a prefix of a larger.
    """
    n_train = TRAIN_TOKENS
    if max_bytes is not None:
        check_positive_int("max_bytes", max_bytes)
        n_train = max(max_bytes // 2, 2)
    source = MarkovSource(seed)
    train, held_out = (
        _cached_sample(source, n, draw, cache) for draw, n in enumerate((n_train, HELD_OUT_TOKENS))
    )
    return Corpus(
        name=f"markov:seed={seed}" + ("" if max_bytes is None else f":max_bytes={max_bytes}"),
        train=(Document("markov/train", train),),
        held_out=(Document("markov/held-out", held_out),),
        note=f"entropy rate {source.entropy_rate_nats:.4f} nats per symbol, two bytes a symbol",
    )


def _cached_sample(source: MarkovSource, n_tokens: int, draw: int, cache: CacheChoice) -> str:
    folder = resolve_cache(cache)
    if folder is None:
        return symbols_to_text(source.sample(n_tokens, seed=draw))
    # The probabilities themselves are part of the key: another linear algebra library may round otherwise.
    key = fingerprint(source.transitions.tobytes(), str(n_tokens), str(draw))[:16]
    place = folder / "corpora" / f"markov-{key}.cache"
    entry = read_entry(place)
    if entry is not None:
        return entry[1].decode("utf-8")
    text = symbols_to_text(source.sample(n_tokens, seed=draw))
    write_entry(place, {"seed": source.seed, "draw": draw}, text.encode("utf-8"))
    return text
