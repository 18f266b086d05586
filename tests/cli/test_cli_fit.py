"""`scalelab fit`: planted laws come back within intervals, mistakes are one line, files whole or absent."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import scalelab
from scalelab.cli import main
from scalelab.cli.fit_files import as_json
from scalelab.cli.fit_laws import default_resamples, fit_law
from scalelab.cli.fit_report import fit_report, report_text, summary
from scalelab.laws.check_runs import Finding
from scalelab.laws.intervals import Interval
from scalelab.laws.read_runs import read_runs

LAW = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
SMALL = ["--bootstrap", "50"]


def planted_loss(n_params: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    return np.asarray(LAW["E"] + LAW["A"] * n_params ** -LAW["alpha"] + LAW["B"] * n_tokens ** -LAW["beta"])


def planted_rows(noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """72 runs: 8 sizes on 9 lengths."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 8), np.geomspace(3e8, 3e11, 9)))
    loss = planted_loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return [
        {"n_params": float(a), "n_tokens": float(b), "flops": float(6 * a * b), "loss_nats": float(c)}
        for a, b, c in zip(n, d, loss, strict=True)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A table of planted runs with a noise of 0.5 %."""
    return write_csv(tmp_path / "runs.csv", planted_rows(0.005))


@pytest.fixture
def fit(capsys: pytest.CaptureFixture[str]) -> Any:
    """`fit(*words)`: the report that `scalelab fit words --json` prints."""

    def run(*words: object) -> dict[str, Any]:
        assert main(["fit", *map(str, words), "--json"]) == 0
        out, err = capsys.readouterr()
        assert not err
        report: dict[str, Any] = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
        return report

    return run


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tsv"])
def test_a_planted_law_without_noise_is_recovered(kind: str, fit: Any, tmp_path: Path) -> None:
    rows, path = planted_rows(), tmp_path / f"runs.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        text = write_csv(path, rows).read_text()
        path.write_text(text.replace(",", "\t") if kind == "tsv" else text)
    report = fit(path, "--bootstrap", 0)
    for name, value in LAW.items():
        assert report[name] == pytest.approx(value, rel=1e-6)
    assert report["a"] == pytest.approx(LAW["beta"] / (LAW["alpha"] + LAW["beta"]), rel=1e-6)
    assert (report["status"], report["n_runs"], report["outliers"]) == ("converged", 72, [])
    assert report["intervals"] == {}


def test_a_planted_law_with_noise_lies_within_its_intervals(fit: Any, runs: Path) -> None:
    report = fit(runs, "--bootstrap", 400, "--level", 0.99, "--budget", "1e22", "1e24")
    for name, value in LAW.items():
        low, high = report["intervals"][name]
        assert low < value < high
        assert low < report[name] < high
    for plan in report["budgets"]:
        best = minimize_scalar(
            lambda log_n, c=plan["flops"]: float(planted_loss(np.exp(log_n), c / 6 / np.exp(log_n))),
            bounds=(math.log(1e7), math.log(1e13)),
            method="bounded",
        )
        truth = {
            "n_params": math.exp(best.x),
            "n_tokens": plan["flops"] / 6 / math.exp(best.x),
            "loss": best.fun,
        }
        for name, value in truth.items():
            low, high = plan["intervals"][name]
            assert low < value < high
    assert report["settings"]["n_resamples"] == 400


def test_the_optimum_is_that_of_the_fitted_law_on_6nd(fit: Any, runs: Path) -> None:
    report = fit(runs, *SMALL, "--budget", 3e21)
    (plan,) = report["budgets"]
    assert 6 * plan["n_params"] * plan["n_tokens"] == pytest.approx(3e21)
    law = {name: report[name] for name in LAW}

    def loss(log_n: float) -> float:
        n = math.exp(log_n)
        tokens = (3e21 / 6 / n) ** -law["beta"]
        return float(law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * tokens)

    best = minimize_scalar(loss, bounds=(10, 40), method="bounded", options={"xatol": 1e-10})
    assert plan["n_params"] == pytest.approx(math.exp(best.x), rel=1e-4)
    assert plan["loss"] == pytest.approx(best.fun, rel=1e-12)
    assert plan["tokens_per_param"] == pytest.approx(plan["n_tokens"] / plan["n_params"])


def test_default_budgets_are_the_largest_run_and_ten_times_it(fit: Any, runs: Path) -> None:
    budgets = fit(runs, *SMALL)["budgets"]
    assert [plan["flops"] for plan in budgets] == pytest.approx([6 * 1e10 * 3e11, 60 * 1e10 * 3e11])
    assert [plan["times_largest_run"] for plan in budgets] == pytest.approx([1, 10])


def test_budgets_are_read_as_people_write_them(fit: Any, runs: Path) -> None:
    budgets = fit(runs, "--bootstrap", 0, "--budget", "1e21", "500T", "--budget", "2.5e23")["budgets"]
    assert [plan["flops"] for plan in budgets] == [1e21, 5e14, 2.5e23]


def test_the_same_seed_gives_the_same_answer_and_another_other_intervals(fit: Any, runs: Path) -> None:
    first, again, other = (fit(runs, *SMALL, "--seed", seed) for seed in (1, 1, 2))
    assert first == again
    assert first["intervals"] != other["intervals"]
    assert first["E"] == other["E"]


def test_epoch_s_chinchilla_points_are_fitted_by_their_own_column_names(fit: Any) -> None:
    """Besiroglu et al. 2024, arXiv:2404.10102: with the five points out, alpha 0.348 and beta 0.366."""
    folder = os.environ.get("SCALELAB_DATA")
    if not folder or not (Path(folder) / "epoch_chinchilla.csv").is_file():
        pytest.skip("set SCALELAB_DATA to a folder with epoch_chinchilla.csv")
    path = Path(folder) / "epoch_chinchilla.csv"
    report = fit(path, "--n-params", "Model Size", "--flops", "Training FLOP", "--loss", "loss", *SMALL)
    assert report["n_runs"] == 245
    assert report["notes"] == ["n_tokens is C / 6N: the file has no column for it"]
    assert report["alpha"] == pytest.approx(0.35, abs=0.02)
    highest = {"line 3", "line 2", "line 5", "line 4"}  # four of the five that the re-analysis leaves out
    assert highest < {outlier["row"] for outlier in report["outliers"]}
    assert "lie far off the law (kept): line 3 (+30" in " ".join(report["warnings"])


def record(study: str, name: str) -> Path:
    return Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / study / f"{name}.jsonl"


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        (record("training", "rates"), "the same n_params"),
        (record("block", "baseline"), "the same n_params"),
        (record("training", "larger"), "1 runs cannot determine 5 parameters"),
    ],
    ids=["rates", "baseline", "larger"],
)
def test_records_of_one_size_are_read_and_what_is_missing_is_said(
    file: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(file)]) == 2
    assert missing in capsys.readouterr().err


def test_records_are_fitted_without_naming_columns(fit: Any, tmp_path: Path) -> None:
    """Records of our own as a sweep would leave them: a real one, with other sizes, tokens and losses."""
    kept = json.loads(record("training", "larger").read_text().splitlines()[0])
    lines = [
        json.dumps(
            {
                **kept,
                "run_id": f"planted-{i}",
                "n_params": int(row["n_params"]),
                "n_params_matmul": int(row["n_params"]),
                "n_tokens": int(row["n_tokens"]),
                "n_tokens_unique": int(row["n_tokens"]),
                "flops": 1.2 * row["flops"],
                "loss_nats": row["loss_nats"],
                "seed": i,
            }
        )
        for i, row in enumerate(planted_rows())
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n" + lines[0][:100])  # a killed writer's last line
    report = fit(path, *SMALL)
    assert report["n_runs"] == 72
    assert report["alpha"] == pytest.approx(LAW["alpha"], rel=1e-4)
    assert "line 73 is cut off and left out" in report["notes"]
    assert "the FLOPs given are 1.2 times 6ND in the middle run; budgets here are 6ND" in report["notes"]
    assert report["warnings"] == []


def test_bad_rows_stop_the_fit_unless_they_are_to_be_skipped(
    fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = planted_rows()
    rows[3]["loss_nats"] = "nan"
    rows[9]["flops"] /= 3
    path = write_csv(tmp_path / "runs.csv", rows)
    assert main(["fit", str(path)]) == 2
    err = capsys.readouterr().err
    assert "2 of 72 rows cannot be used: line 5: loss_nats is NaN; line 11: flops is" in err
    assert "--skip-bad" in err
    report = fit(path, "--skip-bad", *SMALL)
    assert report["n_runs"] == 70
    assert [bad["row"] for bad in report["skipped"]] == ["line 5", "line 11"]
    assert report["warnings"][0].startswith("2 bad rows left out: line 5: loss_nats is NaN; line 11:")
    assert fit(path, "--skip-bad", "--flops-tolerance", 4, *SMALL)["n_runs"] == 71


def test_outliers_repeats_and_far_budgets_are_warned_of(fit: Any, tmp_path: Path) -> None:
    rows = planted_rows(0.002)
    rows[20]["loss_nats"] *= 1.1
    rows.append(dict(rows[0]))
    path = write_csv(tmp_path / "runs.csv", rows)
    report = fit(path, *SMALL, "--budget", 1e25, 1e27)
    assert report["outliers"][0]["row"] == "line 22"
    assert report["outliers"][0]["log_ratio"] == pytest.approx(math.log(1.1), abs=0.01)
    text = "\n".join(report["warnings"])
    assert "line 74: the run of line 2 again" in text
    assert "line 22 (+" in text
    assert "1e+25 FLOPs are 556× the largest run" in text
    assert report["n_runs"] == 73


def test_hardware_columns_are_held_against_the_flops(fit: Any, tmp_path: Path) -> None:
    rows = [
        {**row, "gpu_hours": row["flops"] / (0.4 * 312e12 * 3600), "hardware": "a100"}
        for row in planted_rows()
    ]
    rows[7]["gpu_hours"] /= 10
    rows[8]["hardware"] = "abacus"
    report = fit(write_csv(tmp_path / "runs.csv", rows), *SMALL)
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].startswith("line 9: more than the hardware can do")


def test_an_optimum_that_no_run_has_been_near_is_warned_of(fit: Any, tmp_path: Path) -> None:
    rows = [row for row in planted_rows() if row["n_tokens"] > 200 * row["n_params"]]
    report = fit(write_csv(tmp_path / "runs.csv", rows), *SMALL)
    assert any("tokens a parameter; the runs have" in warning for warning in report["warnings"])


def test_a_law_that_explains_little_is_warned_of(fit: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = planted_rows()
    shuffled = rng.permutation([row["loss_nats"] for row in rows])
    rows = [
        {**row, "loss_nats": 0.1 * row["loss_nats"] + 0.9 * loss}
        for row, loss in zip(rows, shuffled, strict=True)
    ]
    report = fit(write_csv(tmp_path / "runs.csv", rows), *SMALL)
    (little,) = (text for text in report["warnings"] if "Do the losses fall with N and D?" in text)
    assert little == report["warnings"][0]
    right = fit(write_csv(tmp_path / "right.csv", planted_rows(0.005)), *SMALL)
    assert right["warnings"] == []
    assert right["median_residual"] == pytest.approx(0.6745 * 0.005, rel=0.3)


@pytest.mark.parametrize(
    ("column", "says"),
    [("loss_bits", "seems to hold bits"), ("val/bpb", "seems to hold bits"), ("ppl", "hold perplexities")],
)
def test_a_loss_that_is_by_its_name_not_in_nats_is_warned_of(
    column: str, says: str, fit: Any, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{**row, column: row.pop("loss_nats")} for row in planted_rows(0.005)]
    report = fit(write_csv(tmp_path / "runs.csv", rows), "--loss", column, "--bootstrap", 0)
    assert says in report["warnings"][0]


def test_counts_in_millions_and_billions_are_warned_of(fit: Any, tmp_path: Path) -> None:
    rows = [
        {"N": row["n_params"] / 1e6, "D": row["n_tokens"] / 1e9, "loss_nats": row["loss_nats"]}
        for row in planted_rows(0.005)
    ]
    path = write_csv(tmp_path / "runs.csv", rows)
    report = fit(path, "--n-params", "N", "--n-tokens", "D", "--bootstrap", 0)
    assert [warning.split(":")[0] for warning in report["warnings"][:2]] == [
        "n_params runs from 10 to 1e+04",
        "n_tokens runs from 0.3 to 300",
    ]


def test_runs_of_several_learning_rates_are_not_fitted_without_a_word(fit: Any, tmp_path: Path) -> None:
    rows = [
        {**row, "learning_rate": rate, "seed": seed, "loss_nats": row["loss_nats"] * worse * (1 + seed / 50)}
        for row in planted_rows(0.0005)
        for rate, worse in ((1e-2, 1.0), (1e-3, 1.08))
        for seed in (0, 1)
    ]
    report = fit(write_csv(tmp_path / "runs.csv", rows), "--bootstrap", 0)
    (warning,) = (text for text in report["warnings"] if "trained more than once" in text)
    assert warning.startswith("72 of 72 pairs of N and D were trained more than once, to losses up to 8.0%")
    assert "keep only the best run of each pair" in warning
    tuned = [row for row in rows if row["learning_rate"] == 1e-2]  # seeds alone are no reason to warn
    assert fit(write_csv(tmp_path / "tuned.csv", tuned), "--bootstrap", 0)["warnings"] == []


def test_kaplan_s_law_of_one_ratio_is_warned_of(fit: Any, tmp_path: Path) -> None:
    sizes = np.geomspace(1e7, 1e10, 12)
    rows = [{"n_params": n, "n_tokens": 20 * n, "loss_nats": float(planted_loss(n, 20 * n))} for n in sizes]
    report = fit(write_csv(tmp_path / "runs.csv", rows), "--law", "kaplan", "--bootstrap", 0)
    assert any("move together in all runs" in warning for warning in report["warnings"])


def test_runs_on_one_ray_have_a_warning_and_no_interval(fit: Any, tmp_path: Path) -> None:
    """D = 20 N within a per mille: the parameters are printed, but nothing that says how sure they are."""
    rng = np.random.default_rng(0)
    n_params = np.geomspace(1e7, 1e10, 24)
    n_tokens = 20 * n_params * np.exp(0.003 * rng.standard_normal(24))
    losses = 1.8 + 480 / n_params**0.35 + 2100 / n_tokens**0.37
    losses *= np.exp(0.002 * rng.standard_normal(24))
    columns = zip(n_params, n_tokens, losses, strict=True)
    rows = [dict(zip(("n_params", "n_tokens", "loss_nats"), row, strict=True)) for row in columns]
    report = fit(write_csv(tmp_path / "runs.csv", rows), "--bootstrap", 200)
    assert "nearly move together" in report["warnings"][0]
    assert any(text.startswith("No intervals") for text in report["warnings"])
    assert report["intervals"] == report["budgets"][0]["intervals"] == {}
    right = fit(write_csv(tmp_path / "right.csv", planted_rows(0.005)), *SMALL)
    assert not any("move together" in text for text in right["warnings"])


def test_what_the_data_do_not_bound_is_null_in_the_json(tmp_path: Path) -> None:
    data = read_runs(write_csv(tmp_path / "runs.csv", planted_rows()))
    law = fit_law("chinchilla", data.runs, delta=None, n_resamples=0, seed=0, level=0.9)
    half_open = Interval(low=0.1, high=math.inf, level=0.9)
    open_law = replace(
        law,
        settings={"condition": math.inf},
        intervals={"A": half_open},
        spread=lambda flops: {name: [half_open] * len(flops) for name in ("n_params", "n_tokens", "loss")},
    )
    report = fit_report(tmp_path, data, open_law, [1e21], [], n_resamples=9, seed=0, level=0.9)
    found = json.loads(as_json(report))
    assert found["intervals"]["A"] == [0.1, None]
    assert found["budgets"][0]["intervals"]["loss"] == [0.1, None]
    assert found["settings"]["condition"] is None
    assert "[0.1, unbounded]" in report_text(report, open_law)


def test_large_tables_are_refitted_less_often() -> None:
    assert default_resamples("chinchilla", 240) == 1000
    assert default_resamples("chinchilla", 10_000) == 200
    assert default_resamples("chinchilla", 10**6) == 100
    assert default_resamples("kaplan", 240) == 200


def test_numbers_beyond_all_use_are_still_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "runs.csv", planted_rows(0.005))
    assert main(["fit", str(path), *SMALL, "--budget", "1e300", "1e-30"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) < 200


def test_findings_of_one_kind_are_one_sentence() -> None:
    found = [
        Finding(row=f"line {i}", what=f"the run of line {i - 1} again, loss", given=3.0) for i in range(2, 30)
    ]
    (text,) = summary(found)
    assert text.startswith(
        "28 rows: the run of another row again, loss (line 2, line 3, line 4, line 5, line 6 and"
    )


@pytest.mark.parametrize("law", ["isoflop", "kaplan"])
def test_other_laws_are_fitted_by_name(law: str, fit: Any, tmp_path: Path) -> None:
    rows = []
    for budget in np.geomspace(1e18, 1e21, 5):
        for n in np.geomspace(0.15, 6, 9) * 0.3 * math.sqrt(budget / 6 / 20):
            d = budget / 6 / n
            loss = float(planted_loss(np.array(n), np.array(d)))
            if law == "kaplan":
                loss = float(((1e14 / n) ** (0.076 / 0.095) + 5e13 / d) ** 0.095)
            rows.append(
                {"n_params": n, "n_tokens": d, "loss_nats": loss * (1 + 1e-4 * math.sin(1e3 * len(rows)))}
            )
    report = fit(write_csv(tmp_path / "runs.csv", rows), "--law", law, "--bootstrap", 20, "--budget", "1e21")
    assert report["law"] == law
    expected = {"isoflop": LAW["beta"] / (LAW["alpha"] + LAW["beta"]), "kaplan": 0.095 / (0.076 + 0.095)}[law]
    assert report["a"] == pytest.approx(expected, abs=0.02)
    assert set(report["budgets"][0]["intervals"]) == {"n_params", "n_tokens", "loss"}


def test_the_text_says_what_the_json_says(runs: Path, fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report = fit(runs, *SMALL)
    assert main(["fit", str(runs), *SMALL]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert out.startswith(f"{runs}: 72 runs, N 10.0 M to 10.0 G")
    for name in ("E", "alpha", "beta", "a", "b"):
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        low, high = report["intervals"][name]
        assert f"{report[name]:.4g}" in line
        assert f"[{low:.4g}, {high:.4g}]" in line
    assert "50 refits to resampled runs (seed 0)" in out
    assert f"{report['budgets'][0]['loss']:.4f}" in out


def test_help_explains_the_flags_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    for word in ("--n-params", "--budget", "--skip-bad", "--out", "examples:\n  scalelab fit runs.csv"):
        assert word in out
    main(["--help"])
    assert "\n  fit" in capsys.readouterr().out


def test_out_writes_the_same_json_and_a_picture_that_xml_can_read(
    runs: Path, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "fitted"
    report = fit(runs, *SMALL, "--out", out)
    assert sorted(file.name for file in out.iterdir()) == ["fit.json", "fit.svg"]
    assert json.loads((out / "fit.json").read_text()) == report
    svg = (out / "fit.svg").read_bytes()
    assert ET.fromstring(svg).tag.endswith("svg")
    assert len(svg) < 300_000
    assert main(["fit", str(runs), *SMALL, "--out", str(out)]) == 0  # ours may be replaced
    assert f"Written: {out / 'fit.json'} and {out / 'fit.svg'}" in capsys.readouterr().out
    assert (out / "fit.svg").read_bytes() == svg  # the same fit is the same picture


def test_the_picture_of_many_runs_stays_small() -> None:
    from scalelab.cli.fit_figure import as_svg, draw
    from scalelab.cli.fit_laws import FittedLaw
    from scalelab.laws.runs import runs_from_arrays

    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(16, 23, 20_000)), np.exp(rng.uniform(20, 26, 20_000))
    law = FittedLaw(
        name="x", formula="", fields={"a": 0.5}, meaning={}, objective=0.0, n_runs=1, status="", warnings=(),
        how="", refits="", settings={}, intervals={}, spread=None, outliers=(), log_ratios=None,
        optimum=lambda c: {"n_params": 1e9, "n_tokens": c / 6e9, "loss": 2.0},
    )  # fmt: skip
    plan = {"flops": 1e22, "n_params": 1e9, "n_tokens": 1e13, "loss": 2.0}
    svg = as_svg(draw(runs_from_arrays(n_params=n, n_tokens=d, loss=planted_loss(n, d)), law, [plan]))
    assert len(svg) < 1_000_000


@pytest.mark.parametrize("name", ["fit.json", "fit.svg"])
@pytest.mark.parametrize("content", [b"mine", b"{}", b"\xff\0", b'{"made_by": "me"}'])
def test_a_file_that_is_not_its_own_is_not_overwritten(
    name: str, content: bytes, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "theirs"
    out.mkdir()
    (out / name).write_bytes(content)
    assert main(["fit", str(runs), *SMALL, "--out", str(out)]) == 2
    assert f"{out / name} was not written by scalelab fit" in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in out.iterdir()] == [(name, content)]


def test_other_files_in_the_folder_stay(runs: Path, fit: Any, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / ".notes.txt.0.tmp").write_text("mine too")
    fit(runs, *SMALL, "--out", out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / ".notes.txt.0.tmp").read_text() == "mine too"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["fit.svg", "fit.json"])
def test_a_stop_while_writing_leaves_no_half_file(
    stop: Any, at: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, move = tmp_path / "out", os.replace

    def stopping(source: Any, target: Any) -> None:
        if Path(target).name == at:
            raise stop
        move(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    assert main(["fit", str(runs), *SMALL, "--out", str(out)]) == (130 if stop is KeyboardInterrupt else 2)
    left = sorted(file.name for file in out.iterdir())
    assert left == ([] if at == "fit.svg" else ["fit.svg"])


KILLED = """
import os, signal, sys
from scalelab.cli import main
sync = os.fsync
def kill(handle):
    sync(handle)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill
main(sys.argv[1:])
"""


def test_a_kill_while_writing_leaves_no_half_file_and_the_next_run_clears_up(
    runs: Path, fit: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["fit", str(runs), *SMALL, "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, timeout=120)
    assert done.returncode == -9
    assert not (out / "fit.json").exists()
    assert not (out / "fit.svg").exists()
    assert len(list(out.iterdir())) == 1  # the hidden beginning of one
    fit(runs, *SMALL, "--out", out)
    assert sorted(file.name for file in out.iterdir()) == ["fit.json", "fit.svg"]


def in_a_process(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=120
    )


def test_fit_imports_no_torch_and_matplotlib_only_to_draw(runs: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom scalelab.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    words = ("fit", runs, *SMALL, "--json")
    assert in_a_process(program, *words).stderr == "[]\n"
    assert in_a_process(program, *words, "--out", tmp_path / "out").stderr == "['matplotlib']\n"


def test_without_matplotlib_nothing_is_written_and_the_extra_is_named(runs: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom scalelab.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = in_a_process(program, "fit", runs, *SMALL, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "matplotlib: pip install 'scalelab[plot]'" in done.stderr
    assert not (tmp_path / "out").exists()
    assert in_a_process(program, "fit", runs, *SMALL).returncode == 0


def test_a_mistake_in_a_process_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", "fit", str(tmp_path / "gone.csv")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"scalelab: error: there is no file {tmp_path / 'gone.csv'}\n"


HEAD = "n_params,n_tokens,flops,loss_nats\n"
SIZES, LENGTHS = (1e6, 2e6, 4e6, 8e6), (1e8, 3e8, 9e8)
FILES = {
    "empty.csv": "",
    "header.csv": HEAD,
    "binary.csv": "\0\1\2",
    "two.csv": HEAD + "1e6,2e7,,3.5\n2e6,4e7,,3.2\n",
    "one-size.csv": HEAD + "".join(f"1e6,{d}e7,,{3 + 1 / d}\n" for d in range(1, 11)),
    "one-length.csv": HEAD + "".join(f"{n}e6,1e8,,{3 + 1 / n}\n" for n in range(1, 11)),
    "one-line.csv": HEAD + "".join(f"{n}e6,{20 * n}e6,,{3 + 1 / n}\n" for n in range(1, 11)),
    "flat.csv": HEAD + "".join(f"{n},{d},,3\n" for n in SIZES for d in LENGTHS),
    "rising.csv": HEAD + "".join(
        f"{n},{d},,{9 - planted_loss(np.array(n), np.array(d))}\n" for n in SIZES for d in LENGTHS
    ),
    "nan.csv": HEAD + "1e6,2e7,,nan\n" * 3,
    "other.csv": "size,tokens,loss\n1,2,3\n",
    "good.csv": HEAD + "".join(
        f"{n},{d},,{planted_loss(np.array(n), np.array(d))}\n" for n in SIZES for d in LENGTHS
    ),
}  # fmt: skip

CASES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "file"),
    "no such file": (["{tmp}/gone.csv"], "gone.csv"),
    "a folder": (["{tmp}"], "is a folder"),
    "nobody's home": (["~nobody-here/runs.csv"], "~nobody-here"),
    "an empty file": (["{tmp}/empty.csv"], "is empty"),
    "only a header": (["{tmp}/header.csv"], "no runs"),
    "a binary file": (["{tmp}/binary.csv"], "binary"),
    "two runs": (["{tmp}/two.csv"], "2 runs cannot determine 5 parameters"),
    "one size": (["{tmp}/one-size.csv"], "the same n_params"),
    "one length": (["{tmp}/one-length.csv"], "the same n_tokens"),
    "tokens in proportion": (["{tmp}/one-line.csv"], "proportional"),
    "losses all equal": (["{tmp}/flat.csv"], "the same loss"),
    "losses that rise": (["{tmp}/rising.csv"], "does not fall with n_"),
    "losses that are no numbers": (["{tmp}/nan.csv"], "lines 2, 3, 4: loss_nats is NaN"),
    "no good row": (["{tmp}/nan.csv", "--skip-bad"], "all 3 rows are bad"),
    "columns of other names": (["{tmp}/other.csv"], "did you mean 'loss'"),
    "a column that is not there": (["{tmp}/good.csv", "--loss", "los"], "'los'"),
    "one column twice": (["{tmp}/good.csv", "--n-params", "n_tokens"], "both n_params and n_tokens"),
    "a misspelt flag": (["{tmp}/good.csv", "--budgets", "1e21"], "--budget"),
    "an unknown law": (["{tmp}/good.csv", "--law", "chinchila"], "did you mean chinchilla"),
    "a budget of text": (["{tmp}/good.csv", "--budget", "much"], "'much'"),
    "a budget of zero": (["{tmp}/good.csv", "--budget", "0"], "--budget"),
    "a negative budget": (["{tmp}/good.csv", "--budget=-1e21"], "--budget"),
    "a budget that is nan": (["{tmp}/good.csv", "--budget", "nan"], "'nan'"),
    "an infinite budget": (["{tmp}/good.csv", "--budget", "inf"], "'inf'"),
    "a file after budgets": (["--budget", "1e21", "{tmp}/good.csv"], "good.csv"),
    "a level in per cent": (["{tmp}/good.csv", "--level", "90"], "--level: level must be a share"),
    "a level of one": (["{tmp}/good.csv", "--level", "1"], "--level"),
    "one resample": (["{tmp}/good.csv", "--bootstrap", "1"], "--bootstrap 1"),
    "resamples that are a fraction": (["{tmp}/good.csv", "--bootstrap", "0.5"], "'0.5'"),
    "a negative seed": (["{tmp}/good.csv", "--seed", "-1"], "'-1'"),
    "a delta of zero": (["{tmp}/good.csv", "--delta", "0"], "--delta"),
    "a delta for isoflop": (["{tmp}/good.csv", "--law", "isoflop", "--delta", "1"], "--delta"),
    "a tolerance below one": (["{tmp}/good.csv", "--flops-tolerance", "0.5"], "--flops-tolerance"),
    "out that is a file": (["{tmp}/good.csv", "--out", "{tmp}/good.csv"], "is a file"),
    "out below a file": (["{tmp}/good.csv", "--out", "{tmp}/good.csv/x"], "good.csv"),
    "out in nobody's home": (["{tmp}/good.csv", "--out", "~nobody-here/x"], "~nobody-here"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_command_line_is_one_line_and_changes_nothing(
    case: tuple[list[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    words = [word.replace("{tmp}", str(tmp_path)) for word in case[0]]
    code = main(["fit", *words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("scalelab: error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert case[1] in err.replace(f"{tmp_path}{os.sep}", "")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == FILES
