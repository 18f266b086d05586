"""Nats, bits and readable numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.units import NATS_PER_BIT, bits_per_byte, format_bytes, format_count, format_seconds


def test_knowing_nothing_about_bytes_costs_eight_bits_a_byte() -> None:
    logits, targets = torch.zeros(5, 256), torch.arange(5)
    loss_nats = F.cross_entropy(logits, targets).item()
    assert bits_per_byte(loss_nats, n_tokens=5, n_bytes=5) == pytest.approx(8)


def test_bits_per_byte_do_not_depend_on_how_the_text_was_cut() -> None:
    # The same text at the same total cost, as 1,000 bytes or as 400 tokens.
    total_nats = 1_500.0
    as_bytes = bits_per_byte(total_nats / 1_000, n_tokens=1_000, n_bytes=1_000)
    as_tokens = bits_per_byte(total_nats / 400, n_tokens=400, n_bytes=1_000)
    assert as_bytes == pytest.approx(as_tokens) == pytest.approx(1.5 / math.log(2))


def test_a_bit_is_the_surprise_of_a_fair_coin() -> None:
    assert pytest.approx(-math.log(0.5)) == NATS_PER_BIT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1_000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_999, "1.00 M"),
        (124_439_808, "124 M"),
        (8_030_261_248, "8.03 G"),
        (3.14e23, "314 Z"),
        (6e26, "600 Y"),
        (-1_500, "-1.50 k"),
    ],
)
def test_a_count_is_said_in_three_figures(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3_221_225_472, "3.00 GiB"), (80 * 2**30, "80.0 GiB")],
)
def test_bytes_are_said_in_binary_units(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize("step", [1000.0, 1024.0])
def test_no_number_is_said_in_four_figures_before_a_unit(step: float) -> None:
    say = format_count if step == 1000 else format_bytes
    for exponent in range(1, 5):
        for share in (0.999, 0.9994, 0.9996, 0.99999, 1.0, 1.0001):
            number, _, unit = say(round(step**exponent * share)).partition(" ")
            assert float(number) < step, (number, unit)
            assert len(number.replace(".", "")) <= 4, (number, unit)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.004, "0.004 s"),
        (0.42, "0.42 s"),
        (9.5, "9.5 s"),
        (59, "59 s"),
        (65, "1 min 05 s"),
        (3_599.6, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_seconds_are_said_as_people_say_them(value: float, text: str) -> None:
    assert format_seconds(value) == text
