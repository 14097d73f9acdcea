"""What this machine is and can do, where numbers depend on it: its processor, and whether it trains in bfloat16."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path
from typing import Literal

TrainingPrecision = Literal["auto", "fp32", "bf16"]


def processor_identity() -> str:
    """What tells this processor from others, for a cache's key: architecture, model and, on Linux, all its features."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags")))
    return " ".join([platform.machine(), platform.processor(), *itertools.islice(named, 2)])


def train_in_bf16(precision: TrainingPrecision) -> bool:
    """Whether training should run under bfloat16 autocast.

    Args:
        precision: "auto" takes bfloat16 only where the processor multiplies it natively. Elsewhere it is emulated,
            and on CPUs without AVX512-BF16 or AMX that is tens of times slower than float32.
    """
    import torch

    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)
