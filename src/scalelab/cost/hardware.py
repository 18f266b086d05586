"""What an accelerator can do at best: peak FLOP/s by number format, memory, bandwidth, power.

All peaks are dense. Makers print the figure for 2:4 structured sparsity in the same row, twice as large, and
training reaches none of it; a peak twice too high makes a utilisation twice too low. Half-precision peaks are
those with sums kept in fp32, as torch keeps them; on GeForce cards that is half the printed figure. Only the
P100's is printed for sums in fp16: it has no tensor cores.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from scalelab.core.checks import check_choice
from scalelab.core.errors import ConfigError

NumberFormat = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]

_TERA = 1e12
_GB = 1e9
_GIB = 2**30
_NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions"
_V100 = (
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
)
_P100 = "https://images.nvidia.com/content/tesla/pdf/nvidia-tesla-p100-datasheet.pdf"
_A100 = f"{_NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One accelerator's ceiling, as its maker states it.

    Attributes:
        name: short name, as `accelerator` takes it.
        device_names: what `torch.cuda.get_device_name()` calls it, in all spellings known; none for TPUs.
        peak_flops: dense peak of matrix products by number format, FLOP/s; those without hardware are absent.
        memory_bytes: device memory. GPU makers' GB are GiB, as their drivers show (to 1 %; cards with GDDR
            memory, such as the T4, L4 and A10, show a sixteenth less while error correction is on).
        bandwidth_bytes_per_s: peak of device memory.
        tdp_watts: board power limit; None where the maker states none.
        source: where the figures stand.
    """

    name: str
    device_names: tuple[str, ...]
    peak_flops: Mapping[str, float]
    memory_bytes: int
    bandwidth_bytes_per_s: float
    tdp_watts: float | None
    source: str


def accelerator(name: str) -> Accelerator | None:
    """The accelerator of that name, or None if the table does not have it.

    Args:
        name: a short name ("t4", "a100", "h100") or what `torch.cuda.get_device_name()` returns
            ("Tesla T4", "NVIDIA H100 80GB HBM3"); case does not matter. Names are compared whole: a laptop
            version or a slice of a card (MIG) is another device, with another peak.
    """
    wanted = " ".join(name.lower().split())
    wanted = _SHORTER.get(wanted, wanted)
    for entry in _TABLE:
        if wanted == entry.name or wanted in (known.lower() for known in entry.device_names):
            return entry
    return None


def accelerator_names() -> tuple[str, ...]:
    """Short names of all accelerators in the table, oldest first."""
    return tuple(entry.name for entry in _TABLE)


def peak_flops(name: str, precision: str) -> float | None:
    """Dense peak of a device's matrix products, FLOP/s, or None if it is not known or lacks the format.

    Args:
        name: as for `accelerator`.
        precision: "fp32", "tf32", "fp16", "bf16" or "fp8". "fp32" is without tensor cores: torch leaves TF32
            off unless it is asked for.

    Raises:
        ConfigError: an unknown precision.
    """
    check_choice("precision", precision, get_args(NumberFormat))
    found = accelerator(name)
    return None if found is None else found.peak_flops.get(precision)


def require_accelerator(name: str) -> Accelerator:
    """Like `accelerator`, for names that a person typed.

    Raises:
        ConfigError: the table does not have it; the message lists what it has.
    """
    found = accelerator(name)
    if found is None:
        raise ConfigError(f"unknown accelerator {name!r}; known: {', '.join(accelerator_names())}")
    return found


def _entry(
    name: str,
    device_names: tuple[str, ...],
    *,
    memory_bytes: float,
    bandwidth: float,
    tdp_watts: float | None,
    source: str,
    **peaks_tera: float,
) -> Accelerator:
    """A row of the table; bandwidth in GB/s, peaks in TFLOP/s, as datasheets print them."""
    return Accelerator(
        name=name,
        device_names=device_names,
        peak_flops={precision: peak * _TERA for precision, peak in peaks_tera.items()},
        memory_bytes=int(memory_bytes),
        bandwidth_bytes_per_s=bandwidth * _GB,
        tdp_watts=tdp_watts,
        source=source,
    )


# What people say when they mean the most common version.
_SHORTER: Mapping[str, str] = {
    "p100": "p100-sxm2",
    "v100": "v100-sxm2-16gb",
    "a100": "a100-sxm4-80gb",
    "h100": "h100-sxm",
    "h100-sxm5": "h100-sxm",
    "rtx3090": "rtx-3090",
    "rtx 3090": "rtx-3090",
    "rtx4090": "rtx-4090",
    "rtx 4090": "rtx-4090",
}

_TABLE: tuple[Accelerator, ...] = (
    _entry("p100-pcie", ("Tesla P100-PCIE-16GB",), fp32=9.3, fp16=18.7,
           memory_bytes=16 * _GIB, bandwidth=732, tdp_watts=250, source=_P100),
    _entry("p100-sxm2", ("Tesla P100-SXM2-16GB",), fp32=10.6, fp16=21.2,
           memory_bytes=16 * _GIB, bandwidth=732, tdp_watts=300, source=_P100),
    _entry("v100-pcie-16gb", ("Tesla V100-PCIE-16GB",), fp32=14.0, fp16=112.0,
           memory_bytes=16 * _GIB, bandwidth=900, tdp_watts=250, source=_V100),
    _entry("v100-pcie-32gb", ("Tesla V100-PCIE-32GB",), fp32=14.0, fp16=112.0,
           memory_bytes=32 * _GIB, bandwidth=900, tdp_watts=250, source=_V100),
    _entry("v100-sxm2-16gb", ("Tesla V100-SXM2-16GB",), fp32=15.7, fp16=125.0,
           memory_bytes=16 * _GIB, bandwidth=900, tdp_watts=300, source=_V100),
    _entry("v100-sxm2-32gb", ("Tesla V100-SXM2-32GB",), fp32=15.7, fp16=125.0,
           memory_bytes=32 * _GIB, bandwidth=900, tdp_watts=300, source=_V100),
    _entry("t4", ("Tesla T4", "NVIDIA T4"), fp32=8.1, fp16=65.0,
           memory_bytes=16 * _GIB, bandwidth=320, tdp_watts=70,
           source=f"{_NVIDIA}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"),
    _entry("a100-pcie-40gb", ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
           fp32=19.5, tf32=156.0, fp16=312.0, bf16=312.0,
           memory_bytes=40 * _GIB, bandwidth=1_555, tdp_watts=250, source=_A100),
    _entry("a100-pcie-80gb", ("NVIDIA A100 80GB PCIe",), fp32=19.5, tf32=156.0, fp16=312.0, bf16=312.0,
           memory_bytes=80 * _GIB, bandwidth=1_935, tdp_watts=300, source=_A100),
    _entry("a100-sxm4-40gb", ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
           fp32=19.5, tf32=156.0, fp16=312.0, bf16=312.0,
           memory_bytes=40 * _GIB, bandwidth=1_555, tdp_watts=400, source=_A100),
    _entry("a100-sxm4-80gb", ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
           fp32=19.5, tf32=156.0, fp16=312.0, bf16=312.0,
           memory_bytes=80 * _GIB, bandwidth=2_039, tdp_watts=400, source=_A100),
    _entry("rtx-3090", ("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
           fp32=35.6, tf32=35.6, fp16=71.0, bf16=71.0,
           memory_bytes=24 * _GIB, bandwidth=936, tdp_watts=350,
           source="https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"),
    _entry("a10", ("NVIDIA A10", "A10"), fp32=31.2, tf32=62.5, fp16=125.0, bf16=125.0,
           memory_bytes=24 * _GIB, bandwidth=600, tdp_watts=150,
           source=f"{_NVIDIA}/Data-Center/a10/pdf/a10-datasheet.pdf"),
    _entry("a10g", ("NVIDIA A10G", "A10G"), fp32=35.0, tf32=35.0, fp16=70.0, bf16=70.0,
           memory_bytes=24 * _GIB, bandwidth=600, tdp_watts=300,
           source="https://d1.awsstatic.com/product-marketing/ec2/"
                  "NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf; power limit as nvidia-smi shows it"),
    _entry("l4", ("NVIDIA L4",), fp32=30.3, tf32=60.0, fp16=121.0, bf16=121.0, fp8=242.5,
           memory_bytes=24 * _GIB, bandwidth=300, tdp_watts=72,
           source="https://www.nvidia.com/en-us/data-center/l4/ (printed with sparsity; halved)"),
    _entry("l40s", ("NVIDIA L40S",), fp32=91.6, tf32=183.0, fp16=362.05, bf16=362.05, fp8=733.0,
           memory_bytes=48 * _GIB, bandwidth=864, tdp_watts=350,
           source="https://www.nvidia.com/en-us/data-center/l40s/"),
    _entry("rtx-4090", ("NVIDIA GeForce RTX 4090",), fp32=82.6, tf32=82.6, fp16=165.2, bf16=165.2, fp8=330.3,
           memory_bytes=24 * _GIB, bandwidth=1_008, tdp_watts=450,
           source="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"),
    _entry("h100-pcie", ("NVIDIA H100 PCIe",), fp32=51.2, tf32=378.0, fp16=756.0, bf16=756.0, fp8=1_513.0,
           memory_bytes=80 * _GIB, bandwidth=2_000, tdp_watts=350, source=_H100),
    _entry("h100-nvl", ("NVIDIA H100 NVL",), fp32=60.0, tf32=417.5, fp16=835.5, bf16=835.5, fp8=1_670.5,
           memory_bytes=94 * _GIB, bandwidth=3_900, tdp_watts=400, source=f"{_H100} (with sparsity; halved)"),
    _entry("h100-sxm", ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80GB"),
           fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1_978.9,
           memory_bytes=80 * _GIB, bandwidth=3_350, tdp_watts=700, source=f"{_H100} (with sparsity; halved)"),
    _entry("h200", ("NVIDIA H200",), fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1_978.9,
           memory_bytes=141 * _GIB, bandwidth=4_800, tdp_watts=700,
           source="https://www.nvidia.com/en-us/data-center/h200/ (with sparsity; halved)"),
    _entry("b200", ("NVIDIA B200",), fp32=75.0, tf32=1_100.0, fp16=2_250.0, bf16=2_250.0, fp8=4_500.0,
           memory_bytes=180 * _GIB, bandwidth=7_700, tdp_watts=1_000,
           source="https://www.nvidia.com/en-us/data-center/hgx/ (HGX B200; with sparsity; halved)"),
    _entry("tpu-v4", (), bf16=275.0, memory_bytes=32 * _GIB, bandwidth=1_200, tdp_watts=192,
           source="https://cloud.google.com/tpu/docs/v4 (power: largest measured)"),
    _entry("tpu-v5e", (), bf16=197.0, memory_bytes=16 * _GB, bandwidth=819, tdp_watts=None,
           source="https://cloud.google.com/tpu/docs/v5e"),
    _entry("tpu-v5p", (), bf16=459.0, memory_bytes=95 * _GB, bandwidth=2_765, tdp_watts=None,
           source="https://cloud.google.com/tpu/docs/v5p-training"),
    _entry("tpu-v6e", (), bf16=918.0, memory_bytes=32 * _GB, bandwidth=1_638, tdp_watts=None,
           source="https://cloud.google.com/tpu/docs/v6e"),
)  # fmt: skip
