"""How much of a held-out text stands in the training text, word for word.

Every stretch of `width` bytes of the training text is remembered by a 64-bit hash; a held-out byte is
"seen" when some stretch that covers it is among them. Two different stretches share a hash once in 10^19
pairs, so a share is exact for all purposes.
Differs from GPT-3's check (Brown et al. 2020, arXiv:2005.14165, appendix C), which compares 8 to 13 words,
in its unit: 50 bytes, a line of code or so, need no agreement on what a word of code is.
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError
from scalelab.data.documents import Document

WIDTH_BYTES = 50
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits spread: 2^64 over the golden ratio
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Overlap:
    """What of each held-out document stands in the training text.

    Attributes:
        paths: of the held-out documents. seen: for each, whether each of its bytes was seen, [bytes].
        width: length of a stretch, bytes.
    """

    paths: tuple[str, ...]
    seen: tuple[Mask, ...]
    width: int

    @property
    def n_bytes(self) -> tuple[int, ...]:
        """Bytes of each document."""
        return tuple(len(mask) for mask in self.seen)

    @property
    def n_seen(self) -> tuple[int, ...]:
        """Bytes of each document that were seen."""
        return tuple(int(mask.sum()) for mask in self.seen)

    @property
    def share(self) -> float:
        """Seen bytes over all bytes."""
        return sum(self.n_seen) / sum(self.n_bytes)

    def worst(self, n: int = 5) -> list[tuple[str, float]]:
        """The documents with the largest shares of seen bytes, and these; empty ones have none."""
        sizes = zip(self.paths, self.n_bytes, self.n_seen, strict=True)
        shares = [(path, seen / size) for path, size, seen in sizes if size]
        return sorted(shares, key=lambda item: -item[1])[:n]


def overlap(train: Iterable[Document], held_out: Sequence[Document], *, width: int = WIDTH_BYTES) -> Overlap:
    """The share of held-out bytes in stretches of `width` bytes that the training documents hold too.

    Memory goes with the held-out text, so the training text may be long and come one by one.

    Raises:
        DataError: no held-out text. ConfigError: width is not a whole number of at least 1.
    """
    check_positive_int("width", width)
    hashes = [stretch_hashes(document.text.encode("utf-8"), width) for document in held_out]
    if not sum(document.n_bytes for document in held_out):
        raise DataError("there is no held-out text to look for")
    wanted = np.unique(np.concatenate(hashes))
    found = np.zeros(len(wanted), dtype=bool)
    for document in train:
        theirs = stretch_hashes(document.text.encode("utf-8"), width)
        if len(wanted) and len(theirs):
            place = np.minimum(np.searchsorted(wanted, theirs), len(wanted) - 1)
            found[place[wanted[place] == theirs]] = True
    seen = []
    for document, own in zip(held_out, hashes, strict=True):
        starts = found[np.searchsorted(wanted, own)] if len(own) else np.zeros(0, dtype=bool)
        seen.append(_covered(starts, document.n_bytes, width))
    return Overlap(paths=tuple(document.path for document in held_out), seen=tuple(seen), width=width)


def stretch_hashes(content: bytes, width: int) -> Hashes:
    """A hash of each stretch of `width` bytes, [len(content) - width + 1]; none where it is too short.

    h(b_0 … b_{w-1}) = Σ b_i · M^(w-1-i) modulo 2^64, put together from stretches half as long.
    """
    check_positive_int("width", width)
    if len(content) < width:
        return np.zeros(0, dtype=np.uint64)
    # A byte alone is too regular a number: give each value one that looks random.
    table = np.random.default_rng(0).integers(1, 2**64, size=256, dtype=np.uint64)
    block = table[np.frombuffer(content, dtype=np.uint8)]  # of length 1, 2, 4, … below
    made, made_length, block_length = np.zeros(0, dtype=np.uint64), 0, 1
    while True:
        if width & block_length:
            made = block if not made_length else _join(made, block, made_length, block_length)
            made_length += block_length
        if made_length == width:
            return made[: len(content) - width + 1]
        block = _join(block, block, block_length, block_length)
        block_length *= 2


def _join(left: Hashes, right: Hashes, left_length: int, right_length: int) -> Hashes:
    """Hashes of stretches made of one of the left length and, right behind it, one of the right length."""
    behind = right[left_length:]
    power = pow(int(MULTIPLIER), right_length, 2**64)
    with np.errstate(over="ignore"):  # modulo 2^64 is what is meant
        return left[: len(behind)] * np.uint64(power) + behind


def _covered(starts: Mask, n_bytes: int, width: int) -> Mask:
    """Which bytes lie in a stretch that begins at one of the marked places."""
    change = np.zeros(n_bytes + 1, dtype=np.int64)
    change[: len(starts)] += starts
    change[width : width + len(starts)] -= starts
    return np.asarray(np.cumsum(change)[:n_bytes] > 0)
