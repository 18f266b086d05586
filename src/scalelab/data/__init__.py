"""Floor 1: text, tokens and batches, from what every machine has to named public sets. No torch here."""

from scalelab.data import datasets
from scalelab.data.batches import Batches, held_out_windows
from scalelab.data.compression import compressed_bits_per_byte
from scalelab.data.corpora import corpus, corpus_names
from scalelab.data.documents import Corpus, Document, Split, split_of
from scalelab.data.markov import MarkovSource
from scalelab.data.objectives import OBJECTIVES, Objective, ObjectiveName, make_objective
from scalelab.data.sentence_pairs import PairBatch, SentencePairs, next_sentence_pairs
from scalelab.data.special import SpecialTokens, special_tokens
from scalelab.data.tokenization import (
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    symbol_tokenizer,
    train_bpe,
)
from scalelab.data.tokens import TokenData, encode_corpus
from scalelab.data.transduction import TransductionTask, transduction_task

__all__ = [
    "OBJECTIVES",
    "Batches",
    "Corpus",
    "Document",
    "MarkovSource",
    "Objective",
    "ObjectiveName",
    "PairBatch",
    "SentencePairs",
    "SpecialTokens",
    "Split",
    "TokenData",
    "Tokenizer",
    "TransductionTask",
    "byte_tokenizer",
    "compressed_bits_per_byte",
    "corpus",
    "corpus_names",
    "datasets",
    "encode_corpus",
    "held_out_windows",
    "load_tokenizer",
    "make_objective",
    "next_sentence_pairs",
    "special_tokens",
    "split_of",
    "symbol_tokenizer",
    "train_bpe",
    "transduction_task",
]
