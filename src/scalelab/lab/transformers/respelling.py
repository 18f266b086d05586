"""The sequence-to-sequence task, learnt by the two architectures that can write.

Names of real code are to be respelled (data/transduction.py). An encoder–decoder reads the name and writes
the other spelling. A decoder reads the name as a prompt and goes on: one stream of ids, in which the loss
counts only the answer.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.core.checks import check_heads_divide, check_positive, check_positive_int, is_number
from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.cost import flops
from scalelab.data.transduction import END, PAD, Pair, TransductionTask
from scalelab.lab.transformers.architectures import make
from scalelab.models import Decoder, EncoderDecoder, generate
from scalelab.models.loss import IGNORE_INDEX, loss_nats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Writer = Decoder | EncoderDecoder
WriterConfig = DecoderConfig | EncoderDecoderConfig


def writer(
    kind: str, task: TransductionTask, *, n_layers: int = 4, d_model: int = 64, n_heads: int = 4
) -> WriterConfig:
    """The config of a model for the task; `kin` with the task's vocabulary of characters.

    Raises:
        ConfigError: a kind that cannot write, or a size the config refuses.
    """
    for name, count in {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads}.items():
        check_positive_int(name, count)
    check_heads_divide(d_model, n_heads)
    size: dict[str, Any] = {
        "d_model": d_model,
        "n_heads": n_heads,
        "d_ff": 4 * d_model,
        "vocab_size": task.vocab_size,
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "positions": "rope",
        "feed_forward": "gelu",
    }
    if kind == "decoder":
        seq_len = task.source_length + task.target_length
        return DecoderConfig(n_layers=n_layers, seq_len=seq_len, **size)
    if kind != "encoder-decoder" or n_layers % 2:
        raise ConfigError(
            f"kind={kind!r} with n_layers={n_layers} cannot write this task: take a decoder, or an "
            "encoder-decoder with an even number of layers"
        )
    return EncoderDecoderConfig(
        n_layers=n_layers // 2,
        d_head=d_model // n_heads,
        attention_bias=True,
        feed_forward_bias=True,
        scale_head=False,
        scale_scores=True,
        pad_id=PAD,
        **size,
    )


def pair_flops(config: WriterConfig, task: TransductionTask) -> int:
    """Training FLOPs of one pair, exactly."""
    if isinstance(config, DecoderConfig):
        return flops(config, batch_size=1, seq_len=config.seq_len, training=True).total
    lengths = {"seq_len": task.source_length, "target_len": task.target_length}
    return flops(config, batch_size=1, **lengths, training=True).total


def as_prompts(sources: Int[Tensor, "B S"]) -> tuple[Int[Tensor, "B S+1"], Bool[Tensor, "B S+1"]]:
    """Sources moved to the right, so that all end at one place, and the end sign that asks for the answer.

    Returns:
        prompts, and True where they are not filling.
    """
    length = sources.shape[1]
    n_filled = (sources == PAD).sum(1, keepdim=True)
    index = torch.arange(length, device=sources.device) - n_filled  # negative: filling
    moved = sources.gather(1, index.clamp(min=0)).masked_fill(index < 0, PAD)
    prompts = torch.cat((moved, torch.full_like(moved[:, :1], END)), dim=1)
    return prompts, prompts != PAD


def writing_loss(
    model: Writer, sources: Int[Tensor, "B S"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers, nats per character."""
    if isinstance(model, EncoderDecoder):
        return model.loss(sources, targets)
    prompts, is_text = as_prompts(sources)
    answers = targets[:, :-1].clamp(min=PAD)  # what follows an answer is read as filling
    tokens = torch.cat((prompts, answers), dim=1)
    padding = torch.cat((is_text, torch.ones_like(answers, dtype=torch.bool)), dim=1)
    logits = model(tokens, padding=padding)[:, prompts.shape[1] - 1 :]  # from the sign that asks, on
    return loss_nats(logits, targets, "mean", IGNORE_INDEX)


def write(model: Writer, sources: Int[Tensor, "B S"], n_tokens: int) -> Int[Tensor, "B T"]:
    """The likeliest character each time, until the end."""
    if isinstance(model, EncoderDecoder):
        return generate(
            model, sources, max_new_tokens=n_tokens, temperature=0.0, padding=sources != PAD, end_id=END
        )
    prompts, is_text = as_prompts(sources)
    written = generate(
        model, prompts, max_new_tokens=n_tokens, temperature=0.0, padding=is_text, end_id=END, pad_id=PAD
    )
    return written[:, prompts.shape[1] :]


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingRun:
    """How a model is trained on the task.

    Attributes:
        budget_flops: training FLOPs. batch_size: pairs a step. learning_rate: the peak, reached after a
            tenth of the steps; in the second half it falls in a straight line to nothing. seed: of weights
            and order.
    """

    budget_flops: float
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("budget_flops", self.budget_flops)
        check_positive_int("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)

    def n_steps(self, config: WriterConfig, task: TransductionTask) -> int:
        """Whole steps nearest to the budget, at least one."""
        return max(1, round(self.budget_flops / (self.batch_size * pair_flops(config, task))))


class Apprentice:
    """A model while it learns the task: `learn` takes a share of the steps, `exact_match` examines it."""

    def __init__(
        self, config: WriterConfig, task: TransductionTask, run: WritingRun, device: str = "cpu"
    ) -> None:
        self.task, self.run = task, run
        model = make(config, seed=run.seed).to(device)
        assert isinstance(model, Decoder | EncoderDecoder)
        self.model: Writer = model
        self.n_steps = run.n_steps(config, task)
        self.step = 0
        self.last_loss = float("nan")  # of the newest step, nats per character
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.sources, self.targets = (torch.from_numpy(t).to(device) for t in task.encode_batch(task.train))
        self.rng = np.random.default_rng(run.seed)
        self.order: list[int] = []

    def learn(self, share: float = 1.0) -> float:
        """Take this share of all steps (at least one), or what is left of them.

        Returns:
            The newest step's loss, nats per character; where no step is left, that of the last one taken.

        Raises:
            ConfigError: share is not above 0 and at most 1.
        """
        if not (is_number(share) and 0 < share <= 1):
            raise ConfigError(f"share must lie above 0 and at most at 1, got {share!r}")
        self.model.train()
        last = min(self.n_steps, self.step + max(1, round(share * self.n_steps)))
        while self.step < last:
            self.optimizer.param_groups[0]["lr"] = self._rate(self.step + 1)
            rows = self._rows()
            loss = writing_loss(self.model, self.sources[rows], self.targets[rows])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.last_loss = float(loss.detach()) if self.step == last else self.last_loss
        return self.last_loss

    def exact_match(self, pairs: tuple[Pair, ...]) -> float:
        """Share of pairs whose answer is right to the last character.

        Raises:
            DataError: there are none.
        """
        if not pairs:
            raise DataError("an examination needs at least one pair, got none")
        written = [self._written(pairs[start : start + 500]) for start in range(0, len(pairs), 500)]
        return self.task.exact_match(np.concatenate(written), pairs)

    def respell(self, pairs: tuple[Pair, ...]) -> list[str]:
        """What the model writes for these sources."""
        return [self.task.decode(row) for row in self._written(pairs)]

    def _written(self, pairs: tuple[Pair, ...]) -> np.ndarray:
        sources = torch.from_numpy(self.task.encode_batch(pairs)[0]).to(self.sources.device)
        rows = write(self.model, sources, self.task.target_length).cpu().numpy()
        return np.pad(rows, ((0, 0), (0, self.task.target_length - rows.shape[1])))  # rows end early

    def _rate(self, step: int) -> float:
        up, down = step / (0.1 * self.n_steps), (self.n_steps - step + 1) / (0.5 * self.n_steps)
        return self.run.learning_rate * min(1.0, up, down)

    def _rows(self) -> Int[Tensor, " B"]:
        while len(self.order) < self.run.batch_size:
            self.order += self.rng.permutation(len(self.sources)).tolist()
        chosen, self.order = self.order[: self.run.batch_size], self.order[self.run.batch_size :]
        return torch.tensor(chosen, device=self.sources.device)
