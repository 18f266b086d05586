"""Floor 1: text, tokens and batches, from what every machine has to named public sets. No torch here."""

from scalelab.data import datasets
from scalelab.data.batches import Batches, held_out_windows
from scalelab.data.compression import compressed_bits_per_byte
from scalelab.data.corpora import corpus, corpus_names
from scalelab.data.documents import Corpus, Document, Split, split_of
from scalelab.data.markov import MarkovSource
from scalelab.data.tokenization import (
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    symbol_tokenizer,
    train_bpe,
)
from scalelab.data.tokens import TokenData, encode_corpus

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "MarkovSource",
    "Split",
    "TokenData",
    "Tokenizer",
    "byte_tokenizer",
    "compressed_bits_per_byte",
    "corpus",
    "corpus_names",
    "datasets",
    "encode_corpus",
    "held_out_windows",
    "load_tokenizer",
    "split_of",
    "symbol_tokenizer",
    "train_bpe",
]
