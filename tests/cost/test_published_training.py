"""Published training runs: our formulas give every printed digit, and rows that do not hold are named."""

from __future__ import annotations

import dataclasses

import pytest

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import (
    contradictions,
    count_params,
    flops,
    hardware_flops,
    megatron_params,
    model_flops,
    printed_hardware_flops,
    training_seconds,
    zero_memory,
)
from scalelab.cost.published_training import (
    LAYER_TIMES,
    LLAMA_3,
    RECOMPUTATION,
    WEAK_SCALING,
    ZERO_MEMORY,
    Printed,
    WeakScalingRow,
)

DAY = 86_400
GPT3 = {"seq_len": 2048, "n_layers": 96, "d_model": 12_288, "vocab_size": 51_200}
MT_530B = {"seq_len": 2048, "n_layers": 105, "d_model": 20_480, "vocab_size": 51_200}


@pytest.mark.parametrize("row", WEAK_SCALING, ids=lambda row: row.params_billions.text)
def test_narayanans_table_1_holds_to_every_printed_digit(row: WeakScalingRow) -> None:
    assert contradictions(row) == ()
    assert f"{row.n_params / 1e9:.1f}" == row.params_billions.text
    assert f"{100 * row.teraflops_per_gpu.value / 312:.0f}" == row.peak_percent.text
    assert row.dp * row.tp * row.pp == row.n_gpus


def test_the_papers_parameters_are_ours_but_for_the_final_norm() -> None:
    for row in WEAK_SCALING[:4]:
        config = DecoderConfig(
            n_layers=row.n_layers, d_model=row.d_model, n_heads=row.n_heads, vocab_size=51_200, seq_len=2_048
        )
        assert count_params(config) == row.n_params + 2 * row.d_model


def test_the_papers_model_flops_are_ours_to_the_last() -> None:
    for row in WEAK_SCALING[:4]:
        config = DecoderConfig(
            n_layers=row.n_layers, d_model=row.d_model, n_heads=row.n_heads, vocab_size=51_200, seq_len=2_048
        )
        sizes = {"seq_len": 2_048, "n_layers": row.n_layers, "d_model": row.d_model, "vocab_size": 51_200}
        ours = flops(config, batch_size=row.batch_size, seq_len=2_048, training=True).total
        assert model_flops(batch_size=row.batch_size, **sizes) == ours


@pytest.mark.parametrize("sizes", [GPT3, MT_530B])
def test_the_closed_formulas_are_those_that_the_papers_print(sizes: dict[str, int]) -> None:
    s, n, h, v = sizes["seq_len"], sizes["n_layers"], sizes["d_model"], sizes["vocab_size"]
    b = 64
    assert megatron_params(n_layers=n, d_model=h, vocab_size=v, seq_len=s) == pytest.approx(
        12 * n * h**2 * (1 + 13 / (12 * h) + (v + s) / (12 * n * h)), rel=1e-14
    )
    full = 96 * b * s * n * h**2 * (1 + s / (6 * h) + v / (16 * n * h))
    assert hardware_flops(batch_size=b, **sizes, recompute="full") == pytest.approx(full, rel=1e-14)
    model = 72 * b * n * s * h**2 * (1 + s / (6 * h) + v / (12 * h * n))
    assert model_flops(batch_size=b, **sizes) == pytest.approx(model, rel=1e-14)
    selective = 72 * b * n * s * h**2 * (1 + s / (3 * h) + v / (12 * h * n))
    assert printed_hardware_flops(batch_size=b, **sizes) == pytest.approx(selective, rel=1e-14)


def test_training_times_are_the_papers_days() -> None:
    # Narayanan et al. 2021, section 5.1: GPT-3 34 days; a trillion parameters 84, which wants their 1,008 G.
    gpt3 = training_seconds(175e9, 300e9, n_gpus=1024, flops_per_s=140e12) / DAY
    assert f"{gpt3:.0f}" == "34"
    trillion = [training_seconds(n, 450e9, n_gpus=3072, flops_per_s=163e12) / DAY for n in (1008e9, 1e12)]
    assert [f"{days:.0f}" for days in trillion] == ["84", "83"]


@pytest.mark.parametrize("row", RECOMPUTATION, ids=lambda row: row.name)
def test_korthikantis_tables_3_and_5_hold_within_the_rounding_of_their_seconds(row) -> None:  # type: ignore[no-untyped-def]
    assert contradictions(row) == ()
    assert row.full_s.value / row.selective_s.value == pytest.approx(
        1 + row.gain_percent.value / 100, rel=2e-3
    )


def test_the_overheads_of_selective_recomputation_are_equation_8s_and_three_times_a_forward_pass() -> None:
    # Section 5: 2.7 % for GPT-3 and 1.6 % for the 530B model.
    for sizes, printed, made_once in ((GPT3, "2.7", 0.9), (MT_530B, "1.6", 0.5)):
        model = model_flops(batch_size=1, **sizes)
        over = 100 * (printed_hardware_flops(batch_size=1, **sizes) / model - 1)
        once = 100 * (hardware_flops(batch_size=1, **sizes, recompute="selective") / model - 1)
        assert f"{over:.1f}" == printed
        assert once == pytest.approx(made_once, abs=0.05)
        assert over == pytest.approx(3 * once)


@pytest.mark.parametrize("row", LAYER_TIMES, ids=lambda row: row.name)
def test_korthikantis_table_4_adds_up(row) -> None:  # type: ignore[no-untyped-def]
    assert contradictions(row) == ()


@pytest.mark.parametrize("row", ZERO_MEMORY, ids=lambda row: f"{row.n_params // 10**9}B-{row.dp}")
def test_zeros_table_1_holds_but_where_large_numbers_are_cut_off(row) -> None:  # type: ignore[no-untyped-def]
    cut_off = {
        (128, 1_024): ("stage_2_gb is printed as 257, but the rest of the row gives 257.75",),
        (1_000, 64): ("stage_2_gb is printed as 2218, but the rest of the row gives 2218.75",),
        (1_000, 256): (
            "stage_1_gb is printed as 4046, but the rest of the row gives 4046.88",
            "stage_2_gb is printed as 2054, but the rest of the row gives 2054.69",
        ),
        (1_000, 1_024): (
            "stage_1_gb is printed as 4011, but the rest of the row gives 4011.72",
            "stage_2_gb is printed as 2013, but the rest of the row gives 2013.67",
        ),
    }
    assert contradictions(row) == cut_off.get((row.n_params // 10**9, row.dp), ())
    for stage, printed in enumerate((row.stage_1_gb, row.stage_2_gb, row.stage_3_gb), start=1):
        held = zero_memory(row.n_params, stage=stage, dp=row.dp, precision="mixed").total_bytes / 1e9
        assert abs(held - printed.value) < 2 * printed.half_unit  # cut off or rounded, never worse


def test_llama_3s_table_4_has_a_utilisation_too_high_and_its_first_version_too_few_replicas() -> None:
    small, large, first, corrected = LLAMA_3
    assert contradictions(small) == contradictions(corrected) == ()
    assert contradictions(large) == (
        "model_percent is printed as 41, but the rest of the row gives 40.378 to 40.4791",
    )
    assert contradictions(first) == (
        "tp · cp · pp · dp = 8192, but n_gpus = 16384",
        "tokens_millions is printed as 16, but the rest of the row gives 8",
    )
    assert dataclasses.replace(first, version="v3", dp=8) == corrected


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        (
            "params_billions",
            Printed("7.6"),
            "params_billions is printed as 7.6, but the rest of the row gives 7.46",
        ),
        ("peak_percent", Printed("91"), "peak_percent is printed as 91"),  # sparse and dense peaks confused
        ("aggregate_petaflops", Printed("18.3"), "aggregate_petaflops is printed as 18.3"),
        ("n_gpus", 130, "n_gpus = 130 is no multiple of tp · pp = 4"),
        ("batch_size", 500, "batch_size = 500 is no multiple of replicas = 32"),
        ("pp", 5, "n_layers = 36 is no multiple of pp = 5"),
        ("n_heads", 30, "n_heads = 30 is no multiple of tp = 4"),
    ],
)
def test_a_planted_fault_in_a_row_is_found(field: str, wrong: object, said: str) -> None:
    row = dataclasses.replace(WEAK_SCALING[2], **{field: wrong})
    assert any(sentence.startswith(said) for sentence in contradictions(row))


def test_planted_faults_in_other_tables_are_found() -> None:
    assert contradictions(dataclasses.replace(RECOMPUTATION[1], n_gpus=128))[0].startswith("tp · pp = 64")
    assert contradictions(dataclasses.replace(RECOMPUTATION[1], gain_percent=Printed("24.2")))
    assert contradictions(dataclasses.replace(RECOMPUTATION[1], hardware_percent=Printed("52.6")))
    assert contradictions(dataclasses.replace(LAYER_TIMES[2], combined_ms=Printed("27.5")))
    assert contradictions(dataclasses.replace(LAYER_TIMES[2], overhead_percent=Printed("28")))  # of the total
    assert contradictions(dataclasses.replace(ZERO_MEMORY[1], stage_1_gb=Printed("52.4")))


def test_a_printed_number_stands_for_a_range() -> None:
    assert (Printed("142").low, Printed("142").high) == (141.5, 142.5)
    assert (Printed("502.0").low, Printed("502.0").high) == (501.95, 502.05)
    assert Printed("-3").agrees(-3.06)
    assert not Printed("4.4").agrees(4.46)
    assert Printed("4.4").agrees(4.0, 4.36)
    assert not Printed("4.4").agrees(4.0, 4.3)


def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_layers must be a whole number of at least 1, got 0"):
        megatron_params(n_layers=0, d_model=8, vocab_size=8, seq_len=8)
    with pytest.raises(ConfigError, match="recompute must be one of none, selective, full"):
        hardware_flops(batch_size=1, **GPT3, recompute="some")
    with pytest.raises(ConfigError, match="n_tokens must be a finite number above 0"):
        training_seconds(1e9, 0, n_gpus=8, flops_per_s=1e14)
