"""GPUs as their vendor describes them, by name, and fleets of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chess_cxr.records import UsageError


@dataclass(frozen=True)
class Gpu:
    """A GPU according to the vendor's data sheet, without sparsity.

    half_tflops: bfloat16 (V100: float16) with float32 accumulation.  single_tflops: float32, as TF32 if the GPU has it
    (torch's default for convolutions).  link_gb_s: GB/s to the other GPUs of a node, in one direction.
    """

    name: str
    half_tflops: float
    single_tflops: float
    memory_gb: float
    memory_gb_s: float
    link_gb_s: float
    source: str


GPUS = (
    Gpu("V100-SXM2-32GB", 125, 15.7, 32, 900, 150, "NVIDIA V100 data sheet"),
    Gpu("A100-SXM4-40GB", 312, 156, 40, 1555, 300, "NVIDIA A100 data sheet"),
    Gpu("A100-SXM4-80GB", 312, 156, 80, 2039, 300, "NVIDIA A100 data sheet"),
    Gpu("H100-SXM5-80GB", 989, 494, 80, 3350, 450, "NVIDIA H100 data sheet"),
    Gpu("H100-PCIe-80GB", 756, 378, 80, 2000, 64, "NVIDIA H100 data sheet"),
    Gpu("H200-SXM-141GB", 989, 494, 141, 4800, 450, "NVIDIA H200 data sheet"),
    Gpu("L4-24GB", 121, 60, 24, 300, 32, "NVIDIA L4 data sheet"),
    Gpu("L40S-48GB", 362, 183, 48, 864, 32, "NVIDIA L40S data sheet"),
    Gpu("A10-24GB", 125, 62.5, 24, 600, 32, "NVIDIA A10 data sheet"),
    Gpu("RTX4090-24GB", 165, 82.6, 24, 1008, 32, "NVIDIA Ada architecture white paper"),
    Gpu("RTX3090-24GB", 71, 35.6, 24, 936, 32, "NVIDIA GA102 white paper"),
)
SHORT_NAMES = {
    "v100": "V100-SXM2-32GB", "a100": "A100-SXM4-80GB", "h100": "H100-SXM5-80GB", "h200": "H200-SXM-141GB",
    "l4": "L4-24GB", "l40s": "L40S-48GB", "a10": "A10-24GB", "rtx4090": "RTX4090-24GB", "rtx3090": "RTX3090-24GB",
}  # fmt: skip


@dataclass(frozen=True)
class Fleet:
    """A number of nodes with equal GPUs."""

    nodes: int
    gpus_a_node: int
    gpu: Gpu

    @property
    def ranks(self) -> int:
        """Number of GPUs on all nodes."""
        return self.nodes * self.gpus_a_node


def parse_gpus(text: str) -> Fleet:
    """Parse "H100", "8xH100" or "4x8xH100" (nodes x GPUs per node x name); raises UsageError that lists known GPUs."""
    found = re.fullmatch(r"(?:(?:(\d{1,5})x)?(\d{1,3})x)?([A-Za-z][\w-]*)", text.strip())
    name = found[3].lower() if found else ""
    gpu = next((gpu for gpu in GPUS if gpu.name.lower() == SHORT_NAMES.get(name, name).lower()), None)
    if not found or gpu is None:
        known = ", ".join(short.upper() for short in SHORT_NAMES)
        raise UsageError(f"--gpus {text[:40]!r} is not known; name GPUs such as 8xH100 or 4x8xA100; known: {known}")
    nodes, each = int(found[1] or 1), int(found[2] or 1)
    if nodes < 1 or each < 1:
        raise UsageError(f"--gpus {text[:40]!r} should have 1 or more nodes and GPUs")
    return Fleet(nodes, each, gpu)


def get_link_bytes(fleet: Fleet, network_gbit: float) -> float:
    """Return the bandwidth of the ring's slowest link in bytes per second, in one direction."""
    link = fleet.gpu.link_gb_s * 1e9
    return min(link, network_gbit / 8 * 1e9) if fleet.nodes > 1 else link
