"""What the recorded study of book/transformers/tokens.md measures that is no training run.

Bits per byte of counting, of compressors and of the base model on one held-out text; what vocabularies do to
a text without a model; Zipf's and Heaps' laws; how much of the held-out text stands in what was trained on.
`studies/transformers/tokens.py` calls these and writes `measurements.json`.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scalelab.cost import count_params
from scalelab.data import (
    Corpus,
    TokenData,
    Tokenizer,
    byte_tokenizer,
    compressed_bits_per_byte,
    corpus,
    encode_corpus,
    train_bpe,
)
from scalelab.data.contamination import Overlap, overlap
from scalelab.data.ngrams import NGramModel
from scalelab.data.word_laws import (
    Estimate,
    heaps_curve,
    heaps_exponent,
    read_words,
    with_interval,
    zipf_exponent,
)

NGRAM_VOCAB = 1024
SAMPLE_SYMBOLS = 400
LEAKED_SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def tokenizer_of(text: Corpus, vocab_size: int) -> Tokenizer:
    """Bytes for 257 ids, else BPE learnt from the first 2 MB of training text."""
    return byte_tokenizer() if vocab_size == 257 else train_bpe(text, vocab_size)


def ngram(data: TokenData, order: int, train: Any = None) -> NGramModel:
    """The model of an order, from the training ids or from others."""
    ids = data.train if train is None else train
    return NGramModel(ids, vocab_size=data.vocab_size, order=order, start=data.end_of_text)


def marks(text: Corpus) -> dict[str, float]:
    """Bits per byte on the whole held-out text, the end of each file counted."""
    found = {"uniform": 8.0}
    by_byte = encode_corpus(text, byte_tokenizer())
    for order in (1, 2, 3, 4, 5, 6):
        bits = ngram(by_byte, order).bits(by_byte.held_out)
        found[f"{order}-gram of bytes"] = float(bits.sum() / by_byte.held_out_bytes)
    by_token = encode_corpus(text, train_bpe(text, NGRAM_VOCAB))
    for order in (1, 2, 3, 5):
        bits = ngram(by_token, order).bits(by_token.held_out)
        found[f"{order}-gram of tokens"] = float(bits.sum() / by_token.held_out_bytes)
    found["gzip"] = compressed_bits_per_byte(text.held_out, "gzip")
    found["xz"] = compressed_bits_per_byte(text.held_out, "xz")
    found["xz primed"] = primed(text)
    return found


def table_sizes(text: Corpus) -> dict[str, int]:
    """How many distinct 5-grams the training text holds: the entries of the counting models."""
    by_byte = encode_corpus(text, byte_tokenizer())
    by_token = encode_corpus(text, train_bpe(text, NGRAM_VOCAB))
    return {"bytes": ngram(by_byte, 5).n_ngrams[-1], "tokens": ngram(by_token, 5).n_ngrams[-1]}


def primed(text: Corpus) -> float:
    """What xz adds for the held-out text when it has read the training text first, bits per byte."""
    train, held_out = ("".join(d.text for d in part).encode() for part in (text.train, text.held_out))
    settings = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]

    def size(content: bytes) -> int:
        return len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=settings))

    return 8 * (size(train + held_out) - size(train)) / len(held_out)


def base_mark(text: Corpus) -> dict[str, Any]:
    """The base model on the same text, each token predicted from its own window only."""
    from scalelab.lab.pretrained import base
    from scalelab.train import evaluate

    found = base("decoder")
    seq_len = found.model.config.seq_len
    # Only the held-out side is needed in this model's own tokens.
    only_held_out = Corpus(text.name, train=text.held_out[:1], held_out=text.held_out)
    data = encode_corpus(only_held_out, found.tokenizer)
    result = evaluate(found.model, data, seq_len=seq_len)
    return {
        "bits_per_byte": result.bits_per_byte,
        "loss_nats": result.loss_nats,
        "n_tokens": result.n_tokens,
        "n_bytes": result.n_bytes,
        "seq_len": seq_len,
        "vocab_size": data.vocab_size,
        "n_params": count_params(found.model.config),
        "own_bits_per_byte": found.card["bits_per_byte"],
    }


def samples(text: Corpus) -> dict[str, str]:
    """What n-gram models write when they draw from their own probabilities."""
    by_byte = encode_corpus(text, byte_tokenizer())
    by_token = encode_corpus(text, train_bpe(text, NGRAM_VOCAB))
    found = {}
    for name, data, order in (
        ("1-gram of bytes", by_byte, 1),
        ("2-gram of bytes", by_byte, 2),
        ("5-gram of bytes", by_byte, 5),
        ("5-gram of tokens", by_token, 5),
    ):
        n_symbols = SAMPLE_SYMBOLS if data is by_byte else SAMPLE_SYMBOLS // 3
        ids = ngram(data, order).sample(n_symbols, np.random.default_rng(0))
        tokenizer = byte_tokenizer() if data is by_byte else train_bpe(text, NGRAM_VOCAB)
        found[name] = tokenizer.decode(ids[ids != data.end_of_text])
    return found


def vocabularies(text: Corpus, sizes: Sequence[int]) -> list[dict[str, float]]:
    """What a vocabulary does to the text before any network: length, and the loss of counting alone."""
    rows = []
    for size in sizes:
        data = encode_corpus(text, tokenizer_of(text, size))
        unigram = ngram(data, 1).bits(data.held_out)
        counts = np.bincount(data.train, minlength=data.vocab_size)
        rows.append(
            {
                "vocab_size": data.vocab_size,
                "bytes_per_token": data.held_out_bytes / len(data.held_out),
                "uniform_nats": math.log(data.vocab_size),
                "unigram_nats": float(unigram.mean() * math.log(2)),
                "unigram_bits_per_byte": float(unigram.sum() / data.held_out_bytes),
                "share_of_ids_seen_100_times": float((counts >= 100).mean()),
            }
        )
    return rows


def words(text: Corpus) -> dict[str, Any]:
    """Both laws on the training files, with intervals and what the figures need."""
    found = read_words(text.train)
    counts = found.counts()
    ordered = np.sort(counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), 60).round().astype(int))
    read, distinct = heaps_curve(found)
    logs = np.log(np.arange(1, len(ordered) + 1)), np.log(ordered)
    return {
        "n_words": int(counts.sum()),
        "n_distinct": len(counts),
        "most_frequent": [[found.names[i], int(counts[i])] for i in np.argsort(-counts)[:8]],
        "zipf": interval(with_interval(found, lambda w: zipf_exponent(w.counts()), n_halves=200)),
        "zipf_by_n_min": {str(n): zipf_exponent(counts, n_min=n) for n in (5, 10, 20, 50, 100, 200)},
        "zipf_line_through_all_ranks": float(-np.polyfit(*logs, 1)[0]),
        "zipf_line_through_first_1000": float(-np.polyfit(logs[0][:1000], logs[1][:1000], 1)[0]),
        "heaps": interval(with_interval(found, heaps_exponent, n_halves=200)),
        "ranks": ranks.tolist(),
        "counts_at_ranks": ordered[ranks - 1].tolist(),
        "words_read": read.tolist(),
        "distinct_words": distinct.tolist(),
    }


def interval(estimate: Estimate) -> list[float]:
    """Value, low end and high end."""
    return [estimate.value, estimate.low, estimate.high]


def leak(text: Corpus) -> dict[str, Any]:
    """What stands in both parts, and what a planted leak does to the loss of counting."""
    inside = overlap(text.train, text.held_out)
    packages = overlap(corpus("packages").train, text.held_out)
    by_byte = encode_corpus(text, byte_tokenizer())
    bits = ngram(by_byte, 5).bits(by_byte.held_out)
    seen = np.concatenate([np.append(mask, False) for mask in inside.seen])[: len(bits)]  # False: end of text
    spelling = by_byte.held_out != by_byte.end_of_text
    curves = {}
    data = encode_corpus(text, train_bpe(text, NGRAM_VOCAB))
    for order in (2, 3, 5):
        curves[str(order)] = [leaked_bits(data, order, share) for share in LEAKED_SHARES]
    return {
        "train": told(inside),
        "packages": told(packages),
        "bits_per_seen_byte": float(bits[seen].mean()),
        "bits_per_new_byte": float(bits[~seen & spelling].mean()),
        "leaked_shares": list(LEAKED_SHARES),
        "bits_per_byte_by_order": curves,
    }


def leaked_bits(data: TokenData, order: int, share: float) -> float:
    """Bits per byte when the first part of the held-out ids has slipped into the training ids."""
    slipped = data.held_out[: round(share * len(data.held_out))]
    train = np.concatenate([data.train, [data.end_of_text], slipped]) if len(slipped) else data.train
    return float(ngram(data, order, train).bits(data.held_out).sum() / data.held_out_bytes)


def told(found: Overlap) -> dict[str, Any]:
    """An overlap as JSON."""
    return {"share": found.share, "width": found.width, "worst": [list(item) for item in found.worst()]}


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pieces that a tokenizer cuts a text into, as text."""
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def cuts(text: Corpus) -> dict[str, Any]:
    """How the tokenizer of 1,024 cuts what people stumble over, and ids that training hardly met."""
    tokenizer = train_bpe(text, NGRAM_VOCAB)
    data = encode_corpus(text, tokenizer)
    lines = (
        "    def __init__(self, name, value=None):",
        "The tokenizer cuts words.",
        "tokenizer",
        " tokenizer",
        "1000 1001 12345 31415926",
        "naïve Straße 日本",
        "\t\tx = 1",
    )
    counts = np.bincount(data.train, minlength=data.vocab_size)
    rare = [int(i) for i in np.argsort(counts[: data.end_of_text], kind="stable")]
    spelt = [i for i in rare if len(tokenizer.decode([i])) > 1][:8]
    longest = np.argsort(-data.bytes_per_token, kind="stable")[:8]
    return {
        "lines": {line: tokens_of(tokenizer, line) for line in lines},
        "never_met": int((counts[: data.end_of_text] == 0).sum()),
        "rarest_merged": [[tokenizer.decode([i]), int(counts[i])] for i in spelt],
        "longest": [tokenizer.decode([int(i)]) for i in longest],
        "first_merged": [tokenizer.decode([i]) for i in range(256, 272)],
    }
