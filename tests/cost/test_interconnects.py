"""The table of interconnects: one direction, in bytes, whatever way makers print it."""

from __future__ import annotations

import pytest

from scalelab.core.errors import ConfigError
from scalelab.cost import Link, interconnect, interconnect_names


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("nvlink-2", 6 * 25),  # links a device, GB/s of one link in one direction
        ("nvlink-3", 12 * 25),
        ("nvlink-4", 18 * 25),
        ("nvlink-5", 18 * 50),
        ("pcie-3", 15.75),
        ("pcie-4", 31.5),
        ("pcie-5", 63.0),
        ("infiniband-hdr", 25),
        ("Infiniband-NDR", 50),
        ("ethernet-10", 1.25),
    ],
)
def test_an_interconnect_has_the_bytes_of_one_direction(name: str, gigabytes: float) -> None:
    assert interconnect(name).bytes_per_s / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_a_link_of_a_kind_has_its_bandwidth_and_the_latency_it_is_given() -> None:
    found = interconnect("nvlink-4").link(latency_s=3e-6, share=0.8)
    assert found == Link(latency_s=3e-6, bytes_per_s=0.8 * 450e9)


def test_every_row_is_complete_and_stands_once() -> None:
    assert len(set(interconnect_names())) == len(interconnect_names())
    for name in interconnect_names():
        row = interconnect(name)
        assert row.name == name
        assert row.found_in
        assert row.source
        assert 1e9 < row.bytes_per_s < 1e12


def test_unknown_kinds_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown interconnect 'nvlink'; known: nvlink-2, "):
        interconnect("nvlink")
    with pytest.raises(ConfigError, match=r"share must lie in \(0, 1\], got 1\.2"):
        interconnect("pcie-4").link(latency_s=0, share=1.2)
