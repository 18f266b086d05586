"""The landing page's figure says what the recorded study says, and the texts come from the run it draws."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

from scalelab.lab.records import study_json, study_runs

ROOT = Path(__file__).resolve().parents[2]
STUDY = "transformers/training"


@pytest.fixture(scope="module")
def landing_figures():
    sys.path.insert(0, str(ROOT))
    try:
        from book import landing_figures
    finally:
        sys.path.remove(str(ROOT))
    return landing_figures


@pytest.fixture(scope="module")
def drawn(landing_figures) -> str:
    return landing_figures.figure().data


def test_the_texts_were_written_by_the_recorded_run():
    samples, run = study_json(STUDY, "samples"), study_runs(STUDY, "minute")[0]
    assert samples["run_id"] == run.run_id
    stages = samples["stages"]
    assert stages[-1]["n_tokens"] == run.n_tokens
    assert stages[-1]["bits_per_byte"] == pytest.approx(run.bits_per_byte, abs=1e-6)
    assert all(stage["text"].startswith(samples["prompt"]) for stage in stages)
    losses = [stage["bits_per_byte"] for stage in stages]
    assert losses == sorted(losses, reverse=True)


def test_an_untrained_model_s_sample_starts_near_indifference():
    run, first = study_runs(STUDY, "minute")[0], study_json(STUDY, "samples")["stages"][0]
    nats = first["bits_per_byte"] * run.loss_nats / run.bits_per_byte
    assert first["n_tokens"] == 0
    assert nats == pytest.approx(math.log(run.config["vocab_size"]), rel=0.01)


def test_the_curve_is_drawn_where_the_record_puts_it(landing_figures, drawn):
    run = study_runs(STUDY, "minute")[0]
    frame = landing_figures.Frame(width=700, height=300)
    points = re.search(r'<svg class="wide".*?<polyline class="run" points="([^"]+)"', drawn, flags=re.DOTALL)
    xs, ys = zip(*(map(float, pair.split(",")) for pair in points[1].split()), strict=True)
    assert len(xs) == len(run.curve)
    low, high = (frame.y(bits) for bits in frame.bits)
    assert all(high <= y <= low for y in ys)
    assert list(xs) == sorted(xs)
    factor = run.bits_per_byte / run.loss_nats
    share = (low - ys[-1]) / (low - high) * (frame.bits[1] - frame.bits[0]) + frame.bits[0]
    assert share == pytest.approx(run.curve[-1][1] * factor, abs=0.01)


def test_what_it_says_in_words_holds_the_measured_numbers(drawn):
    run, larger = study_runs(STUDY, "minute")[0], study_runs(STUDY, "larger")[0]
    compressors = study_json(STUDY, "measurements")["compressors_bits_per_byte"]
    (alt,) = set(re.findall(r'role="img" aria-label="([^"]+)"', drawn))
    for value in (run.bits_per_byte, larger.bits_per_byte, compressors["gzip"], compressors["xz"]):
        assert f"{value:.2f}" in alt
    assert f"{run.n_params:,}" in alt
    assert "better than gzip" in drawn
    assert run.bits_per_byte < compressors["gzip"]


def test_no_text_breaks_out_of_its_place(drawn):
    """What a model writes is shown as text, whatever it is."""
    for text in re.findall(r"<pre>(.*?)</pre>", drawn, flags=re.DOTALL):
        assert not re.search(r"<(?!/?span>)", text)
