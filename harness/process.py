"""What a process must be told before torch is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def prepare(dtype: str = "fp32") -> None:
    """Quiet threads and libraries; keep bf16 off instructions that a hypervisor announces but kills."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # ours is the only bar
    if dtype != "fp32" and "torch" not in sys.modules and announces_amx():
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    if "transformers" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def announces_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def hush() -> None:
    """No bars of libraries between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
