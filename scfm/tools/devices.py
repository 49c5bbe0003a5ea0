"""What a plan knows of a device: its memory and its speed.

in   a device's short name
out  Device, or a ConfigError with the names there are
"""

import os
from dataclasses import dataclass
from typing import Literal

from scfm.errors import ConfigError

GIB = 2**30
# GFLOP/s of one core with AVX-512, as measured in matrix products on an AMD Zen 5; older cores
# reach a third of it, and no more in bfloat16 than in float32.
CORE_GFLOPS = {"32-true": 90.0, "bf16": 417.0}


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes
    ----------
    cuda_name
        As CUDA tells it, to look its peak up in scfm.train.peaks; None for a CPU.
    memory_gib
        What a process may use, in GiB: what CUDA reports, a little less than what is sold.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    cuda_name: str | None
    memory_gib: float

    def peak_flops(self, precision: str) -> float | None:
        """FLOP/s at most; of a CPU, of all its cores, roughly. None where it cannot do it."""
        if self.cuda_name is None:
            core = CORE_GFLOPS["bf16" if precision.startswith("bf16") else "32-true"]
            return core * 1e9 * (os.cpu_count() or 1)
        from scfm.train.peaks import peak_flops

        return peak_flops(self.cuda_name, precision)


GPUS = {  # short name -> CUDA's name, GiB
    "b200": ("NVIDIA B200", 178.0),
    "h200": ("NVIDIA H200", 139.0),
    "h100": ("NVIDIA H100 80GB HBM3", 79.0),
    "h100-pcie": ("NVIDIA H100 PCIe", 79.0),
    "a100-80": ("NVIDIA A100-SXM4-80GB", 79.0),
    "a100-40": ("NVIDIA A100-SXM4-40GB", 39.4),
    "l40s": ("NVIDIA L40S", 44.4),
    "a40": ("NVIDIA A40", 44.4),
    "a30": ("NVIDIA A30", 23.6),
    "a10": ("NVIDIA A10", 22.1),
    "l4": ("NVIDIA L4", 22.0),
    "rtx-5090": ("NVIDIA GeForce RTX 5090", 31.3),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 23.5),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", 23.6),
}


def find_device(name: str) -> Device:
    """The device called ``name``. Raises ConfigError for one that is not known."""
    if name == "cpu":
        return Device(
            "cpu", "cpu", None, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        )
    if name not in GPUS:
        raise ConfigError(
            f"--device {name} is not known. Known are cpu, {', '.join(GPUS)}; for another GPU take "
            "the one most like it and give its memory with --memory (GiB)."
        )
    cuda_name, memory = GPUS[name]
    return Device(name, "cuda", cuda_name, memory)
