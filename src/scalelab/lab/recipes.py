"""How the base models are made: text, tokenizer, shape and budget of each, and the run that makes it.

The decoder is a Llama in small, the encoder a RoFormer in small: a BERT with rotary positions, since from a
table of positions a small encoder learns too slowly. Both share one tokenizer, and each reads the frozen
corpus `packages` less than once. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalelab.core.checks import check_positive_int
from scalelab.core.config import DecoderConfig, EncoderConfig
from scalelab.core.errors import CheckpointError, LabError
from scalelab.core.records import RunRecord, read_records
from scalelab.data import Corpus, Tokenizer, corpus, encode_corpus, train_bpe
from scalelab.data.special import N_SPECIAL
from scalelab.data.tokenization import BpeTokenizer
from scalelab.lab.pretrained import write_base_model
from scalelab.models import Decoder, Encoder
from scalelab.models.pretrained import check_free
from scalelab.train import CheckpointFolder, TrainConfig, Trainer, load_checkpoint
from scalelab.train.checkpoint import FOLDER
from scalelab.train.loop import RECORD

CORPUS = "packages"
VOCAB_SIZE = 2048
TOKENIZER_BYTES = 16_000_000
TOKENIZER_EVERY = 7  # the tokenizer learns from every seventh document, so that no package decides alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a base model is trained by.

    Attributes:
        model: its shape. train: its budget and settings, with the objective.
    """

    model: DecoderConfig | EncoderConfig
    train: TrainConfig


RECIPES: Mapping[str, Recipe] = {
    "decoder": Recipe(
        model=DecoderConfig(
            n_layers=4, d_model=192, n_heads=6, d_ff=512, vocab_size=VOCAB_SIZE, seq_len=256,
            norm="rmsnorm", norm_eps=1e-6, positions="rope", feed_forward="swiglu",
            attention_bias=False, feed_forward_bias=False,
        ),
        train=TrainConfig(
            n_tokens=20_000_000, batch_size=16, seq_len=256, learning_rate=3e-3, schedule="wsd",
            decay_fraction=0.3, warmup_steps=200, precision="bf16", eval_tokens=262_144, checkpoint_every=200,
        ),
    ),
    "encoder": Recipe(
        model=EncoderConfig(
            n_layers=4, d_model=192, n_heads=6, d_ff=768, vocab_size=VOCAB_SIZE, seq_len=256,
            positions="rope", pooler=False, mlm_head=True,
        ),
        train=TrainConfig(
            objective="mlm", n_tokens=12_000_000, batch_size=32, seq_len=128, learning_rate=2e-3,
            schedule="wsd", decay_fraction=0.3, warmup_steps=400, precision="bf16", eval_tokens=524_288,
            checkpoint_every=200,
        ),
    ),
}  # fmt: skip


def base_tokenizer(text: Corpus) -> BpeTokenizer:
    """The tokenizer that the base models share: BPE from a spread of the training documents."""
    every = TOKENIZER_EVERY if len(text.train) >= 10 * TOKENIZER_EVERY else 1
    sample = (document.text for document in text.train[::every])
    return train_bpe(sample, VOCAB_SIZE - N_SPECIAL, max_bytes=TOKENIZER_BYTES)


def recipe_for(name: str, tokenizer: Tokenizer, n_tokens: int | None = None) -> Recipe:
    """A recipe, fitted to a text that gave fewer merges or to another budget.

    Raises:
        LabError: there is no recipe of that name.
        ConfigError: a budget that is not a positive whole number, or below one step.
    """
    if name not in RECIPES:
        raise LabError(f"no base model {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    model = dataclasses.replace(recipe.model, vocab_size=tokenizer.vocab_size + N_SPECIAL)
    train = recipe.train
    if n_tokens is not None:
        check_positive_int("tokens", n_tokens)
        share = n_tokens / train.n_tokens
        train = dataclasses.replace(
            train, n_tokens=n_tokens, warmup_steps=max(1, round(share * train.warmup))
        )
    return Recipe(model=model, train=train)


def pretrain(
    name: str,
    run_dir: Path,
    *,
    model_folder: Path,
    corpus_name: str | None = None,
    n_tokens: int | None = None,
    progress: bool = True,
) -> RunRecord:
    """Train a base model, or go on with a run that was stopped, and write it for `transformers`.

    Args:
        name: "decoder" or "encoder".
        run_dir: the run's folder: checkpoints and the record.
        model_folder: where the finished model goes: config, safetensors, tokenizer, card.
        corpus_name: another text than `packages`. n_tokens: another budget than the recipe's.

    Raises:
        LabError: there is no recipe of that name.
        WeightsError: `transformers`' layout needs a package that is not installed, or something else stands
            where the model is to go.
        ConfigError, DataError, DataFileError, TrainingError, CheckpointError: as `Trainer`.
    """
    check_free(model_folder)  # now, and not when half an hour of training is done
    text = corpus(CORPUS if corpus_name is None else corpus_name)
    tokenizer = base_tokenizer(text)
    recipe = recipe_for(name, tokenizer, n_tokens)
    checkpoint = load_checkpoint(run_dir) if CheckpointFolder(run_dir / FOLDER).steps() else None
    if checkpoint is not None and type(checkpoint.model_config) is not type(recipe.model):
        raise CheckpointError(
            f"{run_dir} holds a run with a model of {type(checkpoint.model_config).__name__}, not of "
            f"{type(recipe.model).__name__}: name the base model that was begun there, or choose another "
            "folder"
        )
    data = encode_corpus(text, tokenizer)
    trainer = Trainer(
        recipe.model,
        data,
        recipe.train,
        run_dir=run_dir,
        progress=progress,
        checkpoint=checkpoint,
    )
    trainer.run()
    record = read_records(run_dir / RECORD)[
        -1
    ]  # of the session that finished it, not of one that looked again
    assert isinstance(trainer.model, Decoder | Encoder)  # one process trains the module itself
    write_base_model(trainer.model, tokenizer, record, model_folder)
    return record
