"""GPUs as data: what their maker states, and which share of it programs are assumed to reach.

Sources, all NVIDIA's. A100: the A100 80GB data sheet (SXM) and the A100 architecture white paper. H100 and H200: their
data sheets (SXM) and the H100 architecture white paper. B200: the HGX B200 data sheet, a board's figures over its eight
GPUs; its multiprocessors, clock and level 2 cache, which no data sheet has, as such devices report them. Shared memory:
the CUDA C++ programming guide's table of compute capabilities. Peaks are for dense bfloat16, half of what the data
sheets give with sparsity. Links are half of the stated bandwidth, which adds both directions.

Every share is an assumption until a GPU has measured it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["cudnn", "flash"]


@dataclass(frozen=True)
class AttentionRate:
    """Assumed floating-point operations per second of causal attention with heads of 64 channels.

    For orientation: on an H100, over 2,048 positions and without a mask, the FlashAttention-3 paper (arXiv 2407.08608,
    figures 5 and 6) measured 395 TFLOP/s forward and backward with cuDNN, 318 and 264 with FlashAttention 2. Causal
    attention is slower.
    """

    forward: float
    backward: float


@dataclass(frozen=True)
class Chip:
    """One GPU.

    Args:
        name: As CUDA reports it.
        capability: Compute capability, major and minor.
        num_sms: Streaming multiprocessors.
        clock: Boost clock in hertz, outside the tensor cores: those of an H100 reach their peak at 1.83 GHz.
        peak_products: Stated bfloat16 operations per second of the tensor cores.
        peak_copy: Stated bytes per second of the memory.
        peak_link: Stated bytes per second to the other GPUs of the machine, in one direction.
        memory: Bytes of memory.
        l2_cache: Bytes of the level 2 cache.
        shared_memory: Bytes of shared memory that a block may ask for.
        attention: Assumed rates by backend.
    """

    name: str
    capability: tuple[int, int]
    num_sms: int
    clock: float
    peak_products: float
    peak_copy: float
    peak_link: float
    memory: int
    l2_cache: int
    shared_memory: int
    attention: dict[Backend, AttentionRate]

    @property
    def copy(self) -> float:
        """Bytes per second that kernels are assumed to read and write."""
        return COPY_SHARE * self.peak_copy

    @property
    def product_ceiling(self) -> float:
        """Operations per second of the largest matrix products."""
        return PRODUCT_CEILING_SHARE * self.peak_products

    @property
    def products(self) -> float:
        """Operations per second that this network's matrix products are assumed to reach."""
        return PRODUCT_SHARE * self.peak_products

    @property
    def link(self) -> float:
        """Bytes per second that a collective is assumed to move in and out of a GPU."""
        return LINK_SHARE * self.peak_link

    @property
    def instructions(self) -> float:
        """Instructions of a thread per second, all threads together; four schedulers issue one a cycle for 32."""
        return ISSUE_SHARE * self.num_sms * 4 * 32 * self.clock


COPY_SHARE = 0.9  # an H100 copies 3.0 of 3.35 TB/s
PRODUCT_CEILING_SHARE = 0.8  # 790 of 989 TFLOP/s
PRODUCT_SHARE = 0.66  # 650 of 989 TFLOP/s
LINK_SHARE = 0.65
ISSUE_SHARE = 0.75
LAUNCH = 2e-6
"""Seconds that a kernel takes at the least."""
HOST_LAUNCH = 1e-5
"""Seconds that the host needs to launch a kernel; the device works meanwhile."""

CHIPS = {
    "A100": Chip(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41e9, 312e12, 2.039e12, 300e9, 80 * 2**30, 40 * 2**20, 163 << 10,
        {"cudnn": AttentionRate(150e12, 120e12), "flash": AttentionRate(160e12, 130e12)},
    ),
    "H100": Chip(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98e9, 989.4e12, 3.35e12, 450e9, 80 * 2**30, 50 * 2**20, 227 << 10,
        {"cudnn": AttentionRate(330e12, 330e12), "flash": AttentionRate(250e12, 220e12)},
    ),
    "H200": Chip(
        "NVIDIA H200", (9, 0), 132, 1.98e9, 989.4e12, 4.8e12, 450e9, 141 * 2**30, 50 * 2**20, 227 << 10,
        {"cudnn": AttentionRate(330e12, 330e12), "flash": AttentionRate(250e12, 220e12)},
    ),
    "B200": Chip(
        "NVIDIA B200", (10, 0), 148, 1.965e9, 2250e12, 8e12, 900e9, 180 * 2**30, 126 * 2**20, 227 << 10,
        {"cudnn": AttentionRate(650e12, 550e12), "flash": AttentionRate(250e12, 220e12)},
    ),
}  # fmt: skip
"""By the name that the command line takes. B200's attention is guessed from H100's and the ratio of their peaks."""
