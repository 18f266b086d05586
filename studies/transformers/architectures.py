"""The recorded study behind book/transformers/architectures.md: three architectures, equal FLOPs, one text.

Run it again, alone on two cores without a GPU (about an hour and a half; it goes on where it was stopped):

    .venv/dev/bin/python studies/transformers/architectures.py

Five parts, each of which can be asked for alone (--parts):

- rates: a learning rate for each architecture, by short runs with seed 0, which judges nothing else;
- language: each architecture pretrained on the same text with the same FLOPs, then asked for a hidden token,
  for the next token, and probed for the roles of names;
- sentences: an encoder trained on pairs of passages, with and without next-sentence prediction;
- positions: how fast an encoder learns from rotary positions, and how fast from BERT's table of them;
- respelling: a sequence-to-sequence task, learnt from nothing by the two architectures that can write.

It writes JSON files of rows, one row a run, under src/scalelab/lab/records/transformers/architectures/.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.cost import flops, params
from scalelab.data import (
    Corpus,
    TokenData,
    Tokenizer,
    corpus,
    encode_corpus,
    held_out_windows,
    next_sentence_pairs,
    train_bpe,
    transduction_task,
)
from scalelab.data.transduction import copy_baseline, substitution_baseline
from scalelab.lab.transformers import probes
from scalelab.lab.transformers.architectures import (
    KINDS,
    Model,
    ask,
    ask_by_whole_text,
    ask_for_one_token,
    draw_places,
    kin,
    make,
    specials,
    steps_for,
)
from scalelab.lab.transformers.respelling import Apprentice, WritingRun, pair_flops, writer
from scalelab.lab.transformers.sentences import next_accuracy, pair_mlm_nats, pair_states, train_on_pairs
from scalelab.models import Decoder, Encoder, EncoderDecoder
from scalelab.train import TrainConfig, Trainer

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "architectures"
COMMAND = "python studies/transformers/architectures.py"
PARTS = ("respelling", "rates", "language", "sentences", "positions")
SEEDS = (1, 2, 3)
OBJECTIVE = {"decoder": "causal", "encoder": "mlm", "encoder-decoder": "spans"}

VOCAB, SEQ_LEN, BATCH = 512, 64, 16
SIZE = {"n_layers": 4, "d_model": 64, "n_heads": 4, "vocab_size": VOCAB, "seq_len": SEQ_LEN}
BUDGET_FLOPS = 1e13
FIRST_RATES = (3e-3, 6e-3)
LOWEST, HIGHEST = 7e-4, 2.5e-2  # no rate beyond these is tried
WORTH_A_STEP = 0.02  # nats: with less to gain, the search for a rate ends
RATE_BUDGET_FLOPS = 4e12  # enough for an encoder to be beyond token frequencies
SENTENCE_FLOPS = 5e12
TABLE_RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3)  # tried for an encoder with a table of positions
N_PAIRS, N_HELD_OUT_PAIRS = 60_000, 512
WINDOW = SEQ_LEN - 2  # [CLS] and [SEP] take a place each
N_QUESTIONS, N_LONG_QUESTIONS = 3_000, 500
N_PER_ROLE = 200
WRITING_FLOPS = 1.9e12
N_WRITTEN = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """The text, its ids, and the questions that every model is asked."""

    text: Corpus
    tokenizer: Tokenizer
    data: TokenData
    windows: np.ndarray
    probes: probes.Probes


def material() -> Material:
    """The interpreter's own library, questions drawn by a fixed seed."""
    text = corpus("python")
    tokenizer = train_bpe(text, VOCAB)
    data = encode_corpus(text, tokenizer)
    windows, _ = held_out_windows(data.held_out, WINDOW, N_QUESTIONS * WINDOW)
    found = probes.draw_probes(text, data, n_per_role=N_PER_ROLE, window=WINDOW, seed=0)
    is_text = (windows[:, WINDOW // 4 : -(WINDOW // 4)] < data.end_of_text).any(1) & (
        windows[:, -1] < data.end_of_text
    )
    return Material(text=text, tokenizer=tokenizer, data=data, windows=windows[is_text], probes=found)


def settings(kind: str, budget: float, rate: float, seed: int) -> TrainConfig:
    """What a pretraining run of a budget is."""
    n_steps = steps_for(kin(kind, **SIZE), budget, batch_size=BATCH, seq_len=SEQ_LEN)
    return TrainConfig(
        n_tokens=n_steps * BATCH * SEQ_LEN,
        objective=OBJECTIVE[kind],  # type: ignore[arg-type]
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        learning_rate=rate,
        min_lr_fraction=0.05,
        seed=seed,
        n_evals=1 if budget == RATE_BUDGET_FLOPS else 12,
        eval_tokens=32_768,
    )


def pretrained(
    kind: str, budget: float, rate: float, seed: int, data: TokenData, **changes: Any
) -> tuple[Model, dict[str, Any]]:
    """A model trained on a budget, and the row that says how; `changes` are of its config."""
    config = dataclasses.replace(kin(kind, **SIZE), **changes)
    train = settings(kind, budget, rate, seed)
    model = make(config, seed=seed)
    trainer = Trainer(model, data, train, progress=False)
    record = trainer.run()
    _, targets = trainer.batches.objective(
        np.zeros((1, trainer.objective.window_length(SEQ_LEN)), dtype=np.int64), np.random.default_rng(0)
    )
    per_step = steps_for(config, budget, batch_size=BATCH, seq_len=SEQ_LEN)
    row = {
        "kind": kind,
        "seed": seed,
        "learning_rate": rate,
        "budget_flops": budget,
        "n_steps": per_step,
        "n_params": params(config).total,
        "n_tokens": record.n_tokens,
        "n_targets": int((targets >= 0).sum()) * BATCH * per_step,
        "loss_nats": record.loss_nats,
        "curve": [list(point) for point in record.curve],
        "seconds": record.seconds,
    }
    return model, row


def best_rate(kind: str) -> float:
    """The rate with the lowest loss on the held-out text at seed 0."""
    tried = rates_tried(kind)
    return min(tried, key=lambda rate: tried[rate])


def rates_tried(kind: str) -> dict[float, float]:
    """Loss of each short run of an architecture, by rate."""
    return {row["learning_rate"]: row["loss_nats"] for row in kept("rates") if row["kind"] == kind}


def run_rates(given: Material) -> None:
    """Short runs of each architecture; rates are added while the best is the first or the last tried."""
    for kind in ("encoder", "encoder-decoder", "decoder"):
        for rate in FIRST_RATES:
            try_rate(kind, rate, given)
        while (further := next_rate(rates_tried(kind))) is not None:
            try_rate(kind, further, given)


def next_rate(tried: dict[float, float]) -> float | None:
    """Half of the lowest rate or twice the highest, if that one was best by enough; None: look no further."""
    ordered = sorted(tried)
    best = min(tried, key=lambda rate: tried[rate])
    further, inner = {ordered[0]: (best / 2, ordered[1]), ordered[-1]: (best * 2, ordered[-2])}.get(
        best, (None, best)
    )
    if further is None or not LOWEST <= further <= HIGHEST or tried[inner] - tried[best] < WORTH_A_STEP:
        return None
    return further


def try_rate(kind: str, rate: float, given: Material) -> None:
    """One short run with seed 0."""
    key = {"kind": kind, "learning_rate": rate}
    once("rates", key, lambda: pretrained(kind, RATE_BUDGET_FLOPS, rate, 0, given.data)[1])


def run_language(given: Material, seeds: Sequence[int]) -> None:
    """The comparison: each architecture with each seed, and what no training gives."""
    special = specials(VOCAB, SEQ_LEN)
    once("baselines", {"what": "no model"}, lambda: baselines(given))
    for seed in seeds:
        for kind in KINDS:

            def judged(kind: str = kind, seed: int = seed) -> dict[str, Any]:
                model, row = pretrained(kind, BUDGET_FLOPS, best_rate(kind), seed, given.data)
                return {**row, **answers(model, given, special)}

            once("language", {"kind": kind, "seed": seed}, judged)


def answers(model: Model, given: Material, special: Any) -> dict[str, Any]:
    """What a model makes of the questions and of the probe."""
    windows, long = given.windows, given.windows[:N_LONG_QUESTIONS]
    places = draw_places(windows, special, seed=0)
    last = np.full(len(windows), WINDOW - 1)
    fill, following = ask(model, windows, places, special), ask(model, windows, last, special)
    found: dict[str, Any] = {
        "fill_accuracy": fill.accuracy,
        "fill_nats": fill.nats,
        "next_accuracy": following.accuracy,
        "next_nats": following.nats,
        "fill_few": ask(model, long, places[: len(long)], special).accuracy,
    }
    if isinstance(model, Decoder):
        found["fill_whole_text"] = ask_by_whole_text(model, long, places[: len(long)], special).accuracy
    if isinstance(model, EncoderDecoder):
        found["fill_one_token"] = ask_for_one_token(model, windows, places, special).accuracy
    names = given.probes
    state = probes.states(model, names.windows, names.places, special)
    found["probe"] = probes.probe_accuracy(state, names)
    later = probes.states(model, names.windows, names.places, special, later=1)
    found["probe_later"] = probes.probe_accuracy(later, names)
    found["probe_words"] = probes.probe_accuracy(probes.words_alone(model, names), names)
    return found


def baselines(given: Material) -> dict[str, Any]:
    """Token frequencies alone, and the probe on models that were never trained."""
    special = specials(VOCAB, SEQ_LEN)
    counts = np.bincount(given.data.train, minlength=VOCAB) + 1
    nats = -np.log(counts / counts.sum())
    places = draw_places(given.windows, special, seed=0)
    hidden = given.windows[np.arange(len(places)), places]
    untrained = {}
    for kind in KINDS:
        model = make(kin(kind, **SIZE), seed=0)
        state = probes.states(model, given.probes.windows, given.probes.places, special)
        untrained[kind] = probes.probe_accuracy(state, given.probes)
    return {
        "unigram_nats": float(nats[hidden].mean()),
        "commonest": float((hidden == counts.argmax()).mean()),
        "n_questions": len(places),
        "n_long_questions": len(given.windows[:N_LONG_QUESTIONS]),
        "n_names": len(given.probes.places),
        "probe_untrained": untrained,
    }


def run_sentences(given: Material, seeds: Sequence[int]) -> None:
    """Masked LM on pairs, with and without the second loss, at equal FLOPs."""
    special = specials(VOCAB, SEQ_LEN)

    def pairs(side: Any, n_pairs: int, seed: int) -> Any:
        return next_sentence_pairs(
            given.data, given.tokenizer, special, side=side, n_pairs=n_pairs, seq_len=SEQ_LEN, seed=seed
        )

    held_out = pairs("held_out", N_HELD_OUT_PAIRS, 0)
    for seed in seeds:
        for with_next in (False, True):

            def judged(with_next: bool = with_next, seed: int = seed) -> dict[str, Any]:
                config = kin("encoder", **SIZE, sentences=with_next)
                train = sentence_settings(config, seed)
                model = make(config, seed=seed)
                assert isinstance(model, Encoder)
                start = time.perf_counter()
                train_on_pairs(model, pairs("train", N_PAIRS, seed), train, with_next=with_next)
                seconds = time.perf_counter() - start
                names = given.probes
                state = pair_states(model, names.windows, names.places, special)
                return {
                    "n_steps": train.n_steps,
                    "budget_flops": SENTENCE_FLOPS,
                    "learning_rate": train.learning_rate,
                    "pair_mlm_nats": pair_mlm_nats(model, held_out),
                    "probe": probes.probe_accuracy(state, names),
                    "next_accuracy": next_accuracy(model, held_out) if with_next else None,
                    "seconds": seconds,
                }

            once("sentences", {"with_next": with_next, "seed": seed}, judged)


def sentence_settings(config: Any, seed: int) -> TrainConfig:
    """A run on pairs: the steps that the budget pays for, the heads of this config counted."""
    a_step = flops(config, batch_size=BATCH, seq_len=SEQ_LEN, training=True).total
    n_tokens = round(SENTENCE_FLOPS / a_step) * BATCH * SEQ_LEN
    return TrainConfig(
        n_tokens=n_tokens,
        objective="mlm",
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        learning_rate=best_rate("encoder"),
        min_lr_fraction=0.05,
        seed=seed,
    )


def run_positions(given: Material, seeds: Sequence[int]) -> None:
    """An encoder with rotary positions and one with a table, each at its own rate, at equal FLOPs."""

    def trained(positions: str, rate: float, seed: int) -> None:
        key = {"positions": positions, "learning_rate": rate, "seed": seed}
        once(
            "positions",
            key,
            lambda: pretrained("encoder", RATE_BUDGET_FLOPS, rate, seed, given.data, positions=positions)[1],
        )

    for rate in TABLE_RATES:
        trained("learned", rate, 0)
    tried = {row["learning_rate"]: row["loss_nats"] for row in kept("positions") if row["seed"] == 0}
    best = {"learned": min(tried, key=lambda rate: tried[rate]), "rope": best_rate("encoder")}
    for seed in seeds:
        for positions, rate in best.items():
            trained(positions, rate, seed)


def run_respelling(seeds: Sequence[int]) -> None:
    """The sequence-to-sequence task at equal FLOPs, and what copying and substituting give."""
    task = transduction_task(corpus("python"))
    pairs = task.held_out[:N_WRITTEN]
    once(
        "tasks",
        {"task": "respelling"},
        lambda: {
            "about": task.describe(),
            "n_written": len(pairs),
            "copy": copy_baseline(pairs),
            "substitution": substitution_baseline(task.train, pairs),
        },
    )
    for seed in seeds:
        for kind in ("encoder-decoder", "decoder"):

            def judged(kind: str = kind, seed: int = seed) -> dict[str, Any]:
                config = writer(kind, task)
                pupil = Apprentice(config, task, WritingRun(budget_flops=WRITING_FLOPS, seed=seed))
                start, curve = time.perf_counter(), []
                for quarter in range(1, 5):
                    loss = pupil.learn(0.25) if quarter < 4 else pupil.learn()
                    curve.append([pupil.step, loss, pupil.exact_match(pairs)])
                return {
                    "n_params": params(config).total,
                    "n_steps": pupil.n_steps,
                    "flops": pupil.n_steps * pupil.run.batch_size * pair_flops(config, task),
                    "exact": curve[-1][2],
                    "curve": curve,
                    "seconds": time.perf_counter() - start,
                }

            once("respelling", {"kind": kind, "seed": seed}, judged)


def once(name: str, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
    """Do a piece of work whose row is not there yet, and add its row to a file of the record."""
    if any(all(row.get(field) == value for field, value in key.items()) for row in kept(name)):
        return
    row = {**key, **work()}
    folder = os.open(OUT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # another process may be at another seed
        keep(name, [*kept(name), row])
    finally:
        os.close(folder)
    print(name, key, {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}, flush=True)


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def kept(name: str) -> list[dict[str, Any]]:
    """The rows of a file so far."""
    path = OUT / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="these only")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="these only")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if "respelling" in options.parts:
        run_respelling(options.seeds)
    if set(options.parts) - {"respelling"}:
        given = material()
        if "rates" in options.parts:
            run_rates(given)
        if "language" in options.parts:
            run_language(given, options.seeds)
        if "sentences" in options.parts:
            run_sentences(given, options.seeds)
        if "positions" in options.parts:
            run_positions(given, options.seeds)
    provenance = {
        "command": COMMAND,
        "machine": f"CPU ({torch.backends.cpu.get_cpu_capability()}), no GPU",
        "python": platform.python_version(),
        "versions": {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scalelab": scalelab.__version__,
        },
        "text": corpus("python").describe(),
        "size": SIZE,
        "batch_size": BATCH,
        "date": time.strftime("%Y-%m-%d"),
    }
    keep("provenance", provenance)


if __name__ == "__main__":
    main()
