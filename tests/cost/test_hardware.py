"""The table of accelerators: names as devices report them, dense peaks, and what follows from them."""

from __future__ import annotations

import pytest

from scalelab.core.errors import ConfigError
from scalelab.cost import accelerator, accelerator_names, mfu, peak_flops, require_accelerator


@pytest.mark.parametrize(
    ("device_name", "precision", "tera"),
    [
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "fp32", 8.1),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla P100-PCIE-16GB", "fp32", 9.3),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "fp16", 312),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA GeForce RTX 3090", "fp16", 71),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA B200", "bf16", 2250),
    ],
)
def test_a_device_found_by_the_name_torch_gives_it_has_its_datasheets_dense_peak(
    device_name: str, precision: str, tera: float
) -> None:
    assert peak_flops(device_name, precision) == tera * 1e12


@pytest.mark.parametrize("short", ["t4", "a100", "h100", "l4", "V100", "rtx 4090", "b200", "tpu-v4"])
def test_a_device_is_found_by_the_name_people_use(short: str) -> None:
    assert require_accelerator(short) is accelerator(short)


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",  # a seventh of the card
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "Intel(R) Xeon(R)",
        "cpu",
        "",
    ],
)
def test_another_device_with_a_similar_name_is_not_taken_for_it(device_name: str) -> None:
    assert accelerator(device_name) is None
    assert peak_flops(device_name, "fp16") is None


@pytest.mark.parametrize("name", ["Tesla T4", "Tesla V100-SXM2-16GB", "p100"])
def test_cards_older_than_2020_have_no_bf16(name: str) -> None:
    assert accelerator(name) is not None
    assert peak_flops(name, "bf16") is None


@pytest.mark.parametrize("name", accelerator_names())
def test_every_row_is_complete_and_its_formats_are_in_order(name: str) -> None:
    row = require_accelerator(name)
    order = [row.peak_flops[p] for p in ("fp32", "tf32", "fp16", "fp8") if p in row.peak_flops]
    assert order == sorted(order)  # a narrower format is never slower
    if {"fp16", "bf16"} <= set(row.peak_flops):
        assert row.peak_flops["fp16"] == row.peak_flops["bf16"]
    assert all(1e12 < peak < 5e15 for peak in row.peak_flops.values())
    assert 10e9 < row.memory_bytes < 300e9
    assert 1e11 < row.bandwidth_bytes_per_s < 1e13
    assert row.tdp_watts is None or 50 < row.tdp_watts <= 1200
    assert row.source.startswith("https://")


def test_no_device_name_stands_in_two_rows() -> None:
    names = [n.lower() for row in map(require_accelerator, accelerator_names()) for n in row.device_names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("device_name", "multiprocessors", "boost_ghz", "flops_a_clock"),
    [
        # FLOPs of one multiprocessor's tensor cores a clock, half precision summed in fp32, from the makers'
        # architecture whitepapers; a figure with sparsity would be twice as large.
        ("Tesla V100-SXM2-16GB", 80, 1.530, 1024),
        ("Tesla T4", 40, 1.590, 1024),
        ("NVIDIA A100-SXM4-80GB", 108, 1.410, 2048),
        ("NVIDIA GeForce RTX 3090", 82, 1.695, 512),
        ("NVIDIA GeForce RTX 4090", 128, 2.520, 512),
        ("NVIDIA H100 80GB HBM3", 132, 1.830, 4096),
        ("NVIDIA H200", 132, 1.830, 4096),
        ("NVIDIA L4", 60, 2.040, 1024),
    ],
)
def test_the_peak_follows_from_multiprocessors_clock_and_width(
    device_name: str, multiprocessors: int, boost_ghz: float, flops_a_clock: int
) -> None:
    derived = multiprocessors * boost_ghz * 1e9 * flops_a_clock
    assert peak_flops(device_name, "fp16") == pytest.approx(derived, rel=0.05)


def test_llama_3s_published_utilisation_follows_from_its_published_speed() -> None:
    # Llama 3, arXiv:2407.21783, table 4: 430 TFLOP/s on each H100 in bf16 is called 43 %.
    peak = peak_flops("NVIDIA H100 80GB HBM3", "bf16")
    assert peak is not None
    assert 430e12 / peak == pytest.approx(0.43, abs=0.005)


def test_utilisation_never_exceeds_one_at_the_peak_itself() -> None:
    peak = peak_flops("a100", "bf16")
    assert peak is not None
    per_token = mfu(1.0, "gpt2", 1024, peak)
    assert mfu(1 / per_token, "gpt2", 1024, peak) == pytest.approx(1.0)


def test_an_unknown_device_or_format_that_a_person_typed_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown accelerator 'a1000'; known: .*a100"):
        require_accelerator("a1000")
    with pytest.raises(ConfigError, match="precision must be one of fp32"):
        peak_flops("a100", "int4")
