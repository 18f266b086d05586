"""What an off-the-shelf compressor makes of a text: the line a language model has to get below.

A compressor is a language model too: its bits per byte are its cross-entropy, code and all learnt on the
fly. Taught in book/transformers/training.md; Source: Deletang et al. 2023, arXiv:2309.10668.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterable, Mapping

from scalelab.core.checks import check_choice
from scalelab.core.errors import DataError
from scalelab.data.documents import Document

METHODS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, compresslevel=9, mtime=0),
    "xz": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
}


def compressed_bits_per_byte(text: str | Iterable[Document], method: str = "gzip") -> float:
    """Bits of compressed stream per byte of UTF-8 text.

    The whole text is one stream, documents put end to end with nothing between them. All of the
    compressor's output counts, its header too (18 bytes for gzip, 60 or so for xz); the compressor starts
    knowing nothing, so short texts cost more per byte. gzip works at level 9 (a window of 32 KiB), xz at
    preset 9, extreme (64 MiB).

    Raises:
        DataError: the text is empty. ConfigError: the method is neither "gzip" nor "xz".
    """
    check_choice("method", method, tuple(METHODS))
    joined = text if isinstance(text, str) else "".join(document.text for document in text)
    content = joined.encode("utf-8")
    if not content:
        raise DataError("there is no text to compress")
    return 8 * len(METHODS[method](content)) / len(content)
