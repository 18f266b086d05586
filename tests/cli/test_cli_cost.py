"""`scalelab cost`: figures equal to published ones and to sums done here by hand; no torch; clean JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main
from scalelab.core.presets import preset_names


@pytest.fixture
def cost(capsys: pytest.CaptureFixture[str]) -> Any:
    """`cost(words)`: the report that `scalelab cost words --json` prints."""

    def run(words: str) -> dict[str, Any]:
        assert main(["cost", *words.split(), "--json"]) == 0
        out, err = capsys.readouterr()
        assert not err
        report: dict[str, Any] = json.loads(out)
        return report

    return run


def test_cost_and_its_help_import_no_torch() -> None:
    program = (
        "import sys\nfrom scalelab.cli import main\n"
        "main(['cost', 'gpt2', '--tokens', '1e9', '--device', 'h100', '--json'])\n"
        "main(['train', '--help']); main(['data', '--help']); main(['generate', '--help'])\n"
        "heavy = sorted({'torch', 'transformers', 'tokenizers', 'pandas'} & set(sys.modules))\n"
        "print(heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_gpt2_has_the_parameters_that_were_published(cost: Any) -> None:
    report = cost("gpt2")
    assert report["params"]["total"] == 124_439_808
    assert sum(report["params"]["parts"].values()) == 124_439_808


def test_gpt2_flops_are_the_sum_of_its_matrix_products(cost: Any) -> None:
    found = cost("gpt2 --seq-len 1024 --batch-size 8")["flops"]
    d, n_layers, vocab, length, tokens = 768, 12, 50_257, 1024, 8 * 1024
    forward = 2 * tokens * (n_layers * (12 * d * d + 2 * d * length) + d * vocab)
    assert found["forward_per_step"] == forward
    assert found["training_per_step"] == 3 * forward
    assert found["training_per_token"] == 3 * forward / tokens


def test_bert_and_t5_cost_what_their_matrix_products_and_adamw_need(cost: Any) -> None:
    bert = cost("bert-base-uncased --batch-size 4 --seq-len 128")
    d, n_layers, length, rows = 768, 12, 128, 4
    forward = 2 * rows * (length * n_layers * (12 * d * d + 2 * d * length) + d * d)  # and the pooler
    assert bert["flops"]["training_per_step"] == 3 * forward
    held = bert["memory_bytes"]
    assert held["weights"] + held["gradients"] + held["optimizer"] == 16 * 109_482_240
    assert held["activations"] > 0
    t5 = cost("t5-small --batch-size 2 --seq-len 64 --target-len 10")
    d, inner, d_ff, read, written = 512, 512, 2048, 64, 10
    maps = read * (4 * d * inner + 2 * d * d_ff) + written * (4 * d * inner + 2 * d * d_ff)
    across = 2 * written * d * inner + 2 * read * d * inner
    scores = 2 * inner * (read**2 + written**2 + read * written)
    forward = 2 * 2 * (6 * (maps + across + scores) + written * d * 32_128)
    assert t5["flops"]["training_per_step"] == 3 * forward
    assert t5["memory_bytes"]["optimizer"] == 8 * t5["params"]["total"]


def test_an_encoder_decoder_has_a_6nd_where_both_sides_read_as_much(cost: Any) -> None:
    equal, short = cost("t5-small --seq-len 512"), cost("t5-small --seq-len 512 --target-len 114 --tokens 1M")
    assert equal["step"]["target_len"] == 512
    assert equal["flops"]["six_n_per_token"] == 6 * equal["params"]["matmul"]
    assert short["flops"]["six_nd_per_step"] is None
    assert short["run"]["flops_6nd"] is None
    assert short["run"]["flops"] == pytest.approx(1e6 * short["flops"]["training_per_token"])


def test_tables_of_an_encoder_decoder_name_both_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "t5-small", "--seq-len=512", "--target-len=114", "--tokens=1e9"]) == 0
    out = capsys.readouterr().out
    assert "per step of 8 × 512 and 114 tokens" in out
    assert "6ND needs one D" in out
    assert "by 6ND" not in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("gpt2 --target-len 9", "target_len=9 is for encoder–decoders"),
        ("bert-base-uncased --seq-len 513", "seq_len=513 exceeds the model's context of 512"),
        ("vit-b-16 --tokens 1M", "vit-b-16 reads no tokens"),
        ("vit-b-16 --target-len 9", "vit-b-16 reads no tokens"),
    ],
)
def test_what_a_kind_cannot_do_is_refused_by_name(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *words.split()]) != 0
    assert says in capsys.readouterr().err


def test_memory_of_weights_gradients_and_adamw_is_sixteen_bytes_a_parameter(cost: Any) -> None:
    found = cost("gpt2 --precision fp32")["memory_bytes"]
    assert found["weights"] + found["gradients"] + found["optimizer"] == 16 * 124_439_808
    assert found["total"] == 16 * 124_439_808 + found["activations"]


def test_time_is_flops_over_the_share_of_the_peak(cost: Any) -> None:
    run = cost("gpt2 --tokens 10B --precision bf16 --device a100 --mfu 0.5")["run"]
    assert run["n_tokens"] == 10**10
    assert run["peak_flops_per_s"] == 312e12  # dense; its datasheet's 624 counts zeros
    assert run["seconds"] == pytest.approx(run["flops"] / 156e12)
    assert run["flops_6nd"] == pytest.approx(6 * 1e10 * cost("gpt2")["params"]["matmul"])


def test_a_shape_costs_the_same_by_flags_by_file_and_by_name(cost: Any, tmp_path: Path) -> None:
    file = tmp_path / "gpt2.toml"
    file.write_text(
        "vocab_size = 50257\n[model]\nn_layers = 12\nd_model = 768\nn_heads = 12\nseq_len = 1024\n"
    )
    flags = "--n-layers 12 --d-model 768 --n-heads 12 --vocab-size 50257 --seq-len 1024"
    by_name, by_flags, by_file = cost("gpt2"), cost(flags), cost(f"--config {file}")
    for part in ("config", "params", "step", "flops", "memory_bytes"):
        assert by_name[part] == by_flags[part] == by_file[part]


def test_flags_override_the_file(cost: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[model]\nn_layers = 2\nd_model = 64\n[train]\nbatch_size = 4\nn_tokens = 1_000_000\n")
    report = cost(f"--config {file} --n-layers 3")
    assert (report["config"]["n_layers"], report["config"]["d_model"]) == (3, 64)
    assert report["step"]["batch_size"] == 4
    assert report["run"]["n_tokens"] == 1_000_000


def test_a_file_s_step_is_costed_as_it_would_be_trained(cost: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    shape = "[model]\nn_layers = 2\nd_model = 64\n[train]\nbatch_size = 6\n"
    file.write_text(f'{shape}precision = "bf16"\naccumulate = 4\n')
    flags = "--n-layers 2 --d-model 64 --batch-size 6 --precision bf16 --accumulate 4"
    by_file, by_flags = cost(f"--config {file}"), cost(flags)
    for part in ("step", "flops", "memory_bytes"):
        assert by_file[part] == by_flags[part]
    assert by_file["step"]["precision"] == "bf16"
    assert by_file["step"]["n_tokens"] == 6 * by_file["step"]["seq_len"]
    one_piece = cost("--n-layers 2 --d-model 64 --batch-size 2 --precision bf16")
    assert by_file["memory_bytes"]["activations"] == one_piece["memory_bytes"]["activations"]
    overridden = cost(f"--config {file} --precision fp32 --accumulate 1")
    assert overridden["memory_bytes"] == cost("--n-layers 2 --d-model 64 --batch-size 6")["memory_bytes"]
    file.write_text(f'{shape}precision = "auto"\n')
    assert cost(f"--config {file}")["step"]["precision"] == "fp32"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_prints_tables(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ")
    assert "total (n_params)" in out


def test_list_names_every_preset_with_its_count(cost: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(preset_names())
    assert cost("--list")["gpt2"] == 124_439_808


def test_tables_say_what_the_json_says(cost: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "gpt2", "--tokens=1e9", "--precision=bf16", "--device=h100", "--mfu=0.4"]) == 0
    out = capsys.readouterr().out
    assert "124,439,808" in out
    assert "6ND is 0." in out
    assert "989 TFLOP/s dense in bf16" in out
    assert "optimiser (AdamW)" in out
    assert "949 MiB" in out  # two fp32 numbers a parameter: 8 x 124,439,808 bytes
