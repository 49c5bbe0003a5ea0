"""What a device can do at most: the denominator of a model's FLOP utilisation.

in   a device's name as CUDA tells it, the precision of the matrix products
out  floating-point operations per second, a multiplication and an addition counted as two

Dense figures, without structured sparsity, at boost clock, of tensor cores that accumulate in
float32. A device that is not in the table has no figure: give one by ``logging.peak_tflops``.
"""

import re
from dataclasses import dataclass

import torch

TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of matrix products by the type of their factors; None where there are no such units.

    ``tf32`` is float32 rounded to ten bits of mantissa in tensor cores; ``float32`` is whole.
    """

    bfloat16: float | None
    tf32: float | None
    float32: float


# By words of the name; the first line of which all words occur holds. NVIDIA's data sheets and
# architecture white papers give them; where these state "with sparsity", half of it is meant.
PEAKS: dict[tuple[str, ...], Peak] = {
    # HGX B200 data sheet: 36 / 18 PFLOP/s sparse and 600 TFLOP/s for eight
    ("b200",): Peak(2250.0, 1125.0, 75.0),
    # H200 data sheet; the SXM part has the arithmetic units of the H100 SXM
    ("h200", "nvl"): Peak(835.5, 417.5, 60.0),
    ("h200",): Peak(989.4, 494.7, 66.9),
    ("gh200",): Peak(989.4, 494.7, 66.9),
    # H100 white paper (SXM5: "H100 80GB HBM3"; PCIe), H100 NVL product brief
    ("h100", "nvl"): Peak(835.5, 417.5, 60.0),
    ("h100", "pcie"): Peak(756.0, 378.0, 51.2),
    ("h100",): Peak(989.4, 494.7, 66.9),
    # A100, A30, A40, A10 data sheets; SXM and PCIe alike
    ("a100",): Peak(312.0, 156.0, 19.5),
    ("a30",): Peak(165.0, 82.0, 10.3),
    ("a40",): Peak(149.7, 74.8, 37.4),
    ("a10",): Peak(125.0, 62.5, 31.2),
    ("rtx", "a6000"): Peak(154.8, 77.4, 38.7),
    # L4, L40, L40S data sheets
    ("l40s",): Peak(362.0, 183.0, 91.6),
    ("l40",): Peak(181.0, 90.5, 90.5),
    ("l4",): Peak(121.0, 60.0, 30.3),
    # GeForce: GA102, Ada and RTX Blackwell white papers, tensor cores with FP32 accumulation
    ("rtx", "5090"): Peak(209.5, 104.8, 104.8),
    ("rtx", "4090"): Peak(165.2, 82.6, 82.6),
    ("rtx", "3090"): Peak(71.0, 35.6, 35.6),
    # V100 and T4 data sheets: tensor cores for float16 alone
    ("v100", "sxm2"): Peak(None, None, 15.7),
    ("v100", "pcie"): Peak(None, None, 14.0),
    ("t4",): Peak(None, None, 8.1),
}
# What is only a part of a device, or a slower one of the same name.
OTHERS = {"mig", "laptop", "d", "ti"}


def peak_flops(device: str, precision: str) -> float | None:
    """FLOP/s of one device at most, None where it is not known.

    ``device`` is the name CUDA tells ("NVIDIA H100 80GB HBM3"), ``precision`` is train.precision.
    In float32 the products run in TF32 when ``torch.get_float32_matmul_precision()`` is "high" or
    "medium", and are whole when it is "highest", torch's default.
    """
    peak = _known(device)
    if peak is None:
        return None
    if precision.startswith("bf16"):
        tera = peak.bfloat16
    elif torch.get_float32_matmul_precision() == "highest":
        tera = peak.float32
    else:
        tera = peak.tf32 or peak.float32
    return None if tera is None else tera * TERA


def _known(device: str) -> Peak | None:
    words = set(re.split(r"[\s-]+", device.lower()))
    if words & OTHERS:
        return None
    return next((peak for wanted, peak in PEAKS.items() if words.issuperset(wanted)), None)
