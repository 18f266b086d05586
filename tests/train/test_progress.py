from __future__ import annotations

import dataclasses
import functools
import io
import re
import shutil
import time
from typing import Any

import pytest
import torch

import scalelab.train.reporting as reporting
from scalelab.core.config import DecoderConfig, VisionConfig
from scalelab.cost import flops
from scalelab.data import TokenData
from scalelab.train import Peak, Trainer, find_peak, measure_peak_flops
from scalelab.train.compilation import settle_compilation
from scalelab.train.progress import FileDisplay, Meter, TerminalDisplay, progress_line
from scalelab.train.throughput import utilisation

CPU = torch.device("cpu")
STAYS = r"step {step}/12 · held out \d\.\d{{3}} nats/token, \d\.\d{{3}} bits/byte · .* tokens/s · MFU \d+ %"


def test_mfu_is_costs_flops_per_second_over_the_peak(small: DecoderConfig) -> None:
    tokens_per_s, peak = 12_345.0, Peak(flops_per_s=1e9, source="measured")
    per_batch = flops(small, batch_size=8, seq_len=32, training=True).total
    expected = per_batch * (tokens_per_s / (8 * 32)) / 1e9
    assert utilisation(tokens_per_s, small, 32, peak) == pytest.approx(expected)


def test_no_mfu_is_made_up_where_flops_cannot_be_counted() -> None:
    vision = VisionConfig(n_layers=1, d_model=8, n_heads=1, d_ff=8, patch_size=14)
    assert utilisation(1e3, vision, 8, Peak(flops_per_s=1e9, source="measured")) is None


def test_the_measured_peak_is_at_least_what_one_plain_product_reaches() -> None:
    found = find_peak(CPU, "fp32")
    assert found.source == "measured"
    left = torch.ones(512, 512)
    start = time.perf_counter()
    left @ left
    plain = 2 * 512**3 / (time.perf_counter() - start)
    assert plain / 5 < measure_peak_flops(CPU, torch.float32, seconds=0.02)
    assert 1e8 < found.flops_per_s < 1e14


def test_measuring_the_peak_draws_nothing_from_the_callers_generator() -> None:
    before = torch.get_rng_state()
    assert measure_peak_flops(CPU, torch.bfloat16, side=64, seconds=0.0) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_line_states_loss_rate_and_mfu_and_each_evaluation_stays(
    small: DecoderConfig, chain: TokenData, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(reporting, "make_display", lambda shown: TerminalDisplay(stream))
    monkeypatch.setattr("scalelab.train.progress.INTERVAL_S", 0.0)
    Trainer(small, chain, settings(12)).run()
    text = stream.getvalue()
    assert re.search(r"fp32 · MFU is against .*FLOP/s \(measured\)", text)
    assert re.search(r"step \d+/12 · loss \d\.\d{3} nats/token · .* tokens/s · MFU \d+ %", text)
    stays = [line for line in text.split("\n") if "held out" in line]
    assert len(stays) == 3
    assert re.search(STAYS.format(step=12), stays[-1])


def test_a_file_gets_loss_rate_and_mfu_at_each_evaluation(
    small: DecoderConfig, chain: TokenData, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(reporting, "make_display", lambda shown: FileDisplay(stream))
    trainer = Trainer(small, chain, settings(12))
    trainer.run()
    first, *stays = stream.getvalue().splitlines()
    assert "MFU is against" in first
    steps = [tokens // 256 for tokens, _ in trainer.history.curve]
    for step, line in zip(steps, stays, strict=True):
        assert re.fullmatch(STAYS.format(step=step), line)


def test_a_stretch_is_the_rate_of_all_readings_since_the_last_without_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Meter()
    for seconds, tokens in ((1.0, 100), (2.0, 500)):
        meter.add(tokens)
        now += seconds
        meter.read()
    now += 50
    meter.skip()  # an evaluation
    meter.add(300)
    now += 1
    assert meter.stretch() == 900 / 4
    meter.add(40)
    now += 2
    assert meter.stretch() == 20


def test_the_rate_on_the_line_that_stays_leaves_out_the_evaluation(
    small: DecoderConfig, chain: TokenData, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(reporting, "make_display", lambda shown: FileDisplay(stream))
    trainer = Trainer(small, chain, settings(4, n_evals=1))
    evaluate = trainer.evaluate

    def slow() -> Any:
        time.sleep(1)
        return evaluate()

    monkeypatch.setattr(trainer, "evaluate", slow)
    shown: list[float] = []
    line = reporting.evaluation_line

    def note(where: str, **values: Any) -> str:
        shown.append(values["tokens_per_s"])
        return line(where, **values)

    monkeypatch.setattr(reporting, "evaluation_line", note)
    trainer.run()
    assert shown[-1] > 4 * 256  # so few a second it would be with the evaluation's


def test_the_line_changes_at_most_twice_a_second(
    small: DecoderConfig, chain: TokenData, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(reporting, "make_display", lambda shown: TerminalDisplay(stream))
    trainer = Trainer(small, chain, settings(60, n_evals=1))
    record = trainer.run()
    changing = [line for line in re.split(r"[\r\n]", stream.getvalue()) if "left" in line]
    assert len(changing) <= 2 * record.seconds + 1


def test_a_file_gets_only_the_lines_that_stay() -> None:
    stream = io.StringIO()
    display = FileDisplay(stream)
    display.show("passing", final=False)
    display.show("staying", final=True)
    assert stream.getvalue() == "staying\n"


def test_a_shorter_line_wipes_out_the_longer_one_before() -> None:
    stream = io.StringIO()
    display = TerminalDisplay(stream)
    display.show("a long line", final=False)
    display.show("short", final=False)
    assert stream.getvalue().endswith("\rshort      ")


def test_unknown_rates_are_left_out_of_the_line() -> None:
    assert progress_line("step 1/2", loss_nats=1.0, tokens_per_s=0.0, left_s=0.0, mfu="") == (
        "step 1/2 · loss 1.000 nats/token"
    )


def test_without_a_compiler_a_run_goes_on_uncompiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=r"uncompiled: torch\.compile on a CPU needs a C\+\+ compiler"):
        assert settle_compilation(True, CPU) is False
    assert settle_compilation(False, CPU) is False


def test_a_compiled_run_follows_the_eager_one(
    chain: TokenData, small: DecoderConfig, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything but the C++ that comes out at the end, which takes a minute to compile and is torch's affair.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("scalelab.train.compilation.missing_compiler", lambda device: None)
    tiny = dataclasses.replace(small, n_layers=1, dropout=0.0)
    eager = Trainer(tiny, chain, settings(5, n_evals=1), progress=False)
    compiled = Trainer(tiny, chain, settings(5, n_evals=1, compile=True), progress=False)
    eager.run()
    compiled.run()
    assert compiled.compiled
    assert compiled.history.loss_nats == pytest.approx(eager.history.loss_nats, rel=1e-4)
