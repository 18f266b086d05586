"""What joins devices: bytes a second in one direction, as makers state them.

NVLink is sold by the sum of both directions and networks by bits: the figures here are bytes in one direction
for one device, what a ring's messages to the next rank can use. Real messages reach less (an H100's 450 GB/s
shows about 380 between two devices: NVIDIA/nccl, issue 1264), and no maker states the latency, which decides
for short ones: measure both on the machine at hand (`fit_link`).
Taught in book/parallelism/data-parallel.md and tensor-parallel.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.core.errors import ConfigError
from scalelab.cost.communication import Link

_GB = 1e9
_GBIT = 1e9 / 8
_PCIE_LANES = 16
_PCIE_CODE = 128 / 130  # bits of data for bits sent, from the third generation on
_NVLINK = "https://www.nvidia.com/en-us/data-center/nvlink/ (both directions; halved)"
_PCIE = "PCI Express Base Specification: rate a lane, 16 lanes, 128 bits of data in 130"
_NETWORK = "https://docs.nvidia.com/networking (bits a second; an eighth)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interconnect:
    """One kind of wire.

    Attributes:
        name: as `interconnect` takes it.
        bytes_per_s: peak in one direction, for one device.
        found_in: what has it.
        source: where the figure stands, and what was made of it.
    """

    name: str
    bytes_per_s: float
    found_in: str
    source: str

    def link(self, *, latency_s: float, share: float = 1.0) -> Link:
        """A link of this kind.

        Args:
            latency_s: measured, or supposed.
            share: of the peak that messages reach.

        Raises:
            ConfigError: a share outside (0, 1], or a latency that is no finite number of at least 0.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"share must lie in (0, 1], got {share!r}")
        return Link(latency_s=latency_s, bytes_per_s=share * self.bytes_per_s)


def interconnect(name: str) -> Interconnect:
    """The interconnect of that name; case does not matter.

    Raises:
        ConfigError: the table does not have it; the message lists what it has.
    """
    for entry in _TABLE:
        if entry.name == name.strip().lower():
            return entry
    raise ConfigError(f"unknown interconnect {name!r}; known: {', '.join(interconnect_names())}")


def interconnect_names() -> tuple[str, ...]:
    """Names of all interconnects in the table, fastest family first."""
    return tuple(entry.name for entry in _TABLE)


def _nvlink(generation: int, both_ways_gb: float, found_in: str) -> Interconnect:
    rate = both_ways_gb / 2 * _GB
    return Interconnect(name=f"nvlink-{generation}", bytes_per_s=rate, found_in=found_in, source=_NVLINK)


def _pcie(generation: int, gigatransfers: float) -> Interconnect:
    rate = gigatransfers * _GBIT * _PCIE_LANES * _PCIE_CODE
    return Interconnect(name=f"pcie-{generation}", bytes_per_s=rate, found_in="16 lanes", source=_PCIE)


def _network(name: str, gigabits: float, found_in: str) -> Interconnect:
    return Interconnect(name=name, bytes_per_s=gigabits * _GBIT, found_in=found_in, source=_NETWORK)


_TABLE: tuple[Interconnect, ...] = (
    _nvlink(2, 300, "V100"),
    _nvlink(3, 600, "A100"),
    _nvlink(4, 900, "H100, H200"),
    _nvlink(5, 1_800, "B200"),
    _pcie(3, 8),
    _pcie(4, 16),
    _pcie(5, 32),
    _network("infiniband-hdr", 200, "one ConnectX-6 port, as in A100 servers"),
    _network("infiniband-ndr", 400, "one ConnectX-7 port, as in H100 servers"),
    _network("ethernet-10", 10, "a port"),
    _network("ethernet-100", 100, "a port"),
)
