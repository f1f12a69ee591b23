"""What a process must be told before torch is imported."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.system.host import cpu_model, note, notes

ISA = "ONEDNN_MAX_CPU_ISA"
TAMED_ISA = "AVX512_CORE_BF16"
TRIAL = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(a, a) @ a"
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's names for what mallopt sets


def prepare(dtype: str = "fp32", keep: bool = True) -> None:
    """Quiet threads and libraries; keep bf16 off instructions that a hypervisor announces but kills.

    `keep` lets the process keep what it frees, as a process must whose time is measured.
    """
    if keep:
        keep_freed()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which has little to do here and waits by spinning
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # ours is the only bar
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would tell of its own start and end
    if dtype != "fp32" and "torch" not in sys.modules and not tamed():
        os.environ[ISA] = TAMED_ISA
    if "transformers" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def keep_freed() -> None:
    """Activations come and go with every layer. glibc hands their memory back by fits and starts and takes it again
    page by page: none or eighty thousand faults in a pass, up to a tenth of its time. Here it goes back between stages.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """All freed memory, for other processes to have."""
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


@cache
def glibc() -> Any:
    """The C library, if it is this one and nobody has told it how to allocate."""
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    found = ctypes.CDLL(None)
    return found if hasattr(found, "gnu_get_libc_version") else None


def announces_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def tamed() -> bool:
    """Whether products in bf16 are safe in this process."""
    return ISA in os.environ or not amx_kills()


def amx_kills() -> bool:
    """Whether a bf16 product ends the process here: tried in another one, once per CPU and torch."""
    if not announces_amx():
        return False
    key = f"{cpu_model()}, torch {version('torch')}"
    known = notes("amx.json")
    if key not in known:
        known = {key: subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, check=False).returncode < 0}
        note("amx.json", known)
    return bool(known[key])


_answers: list[Any] = []  # where stdout leads, while it is kept


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Whatever prints meanwhile, by Python or below it, goes to stderr: stdout is the answer's, see `answers`."""
    if sys.stdout is None or _answers:  # closed, or kept already
        yield
        return
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    try:
        spare = os.dup(1)
    except OSError:  # no file is behind it
        with redirect_stdout(sys.stderr):
            yield
        return
    os.dup2(2, 1)
    with open(spare, "w", encoding=sys.stdout.encoding, errors="backslashreplace", newline="", buffering=1) as stream:
        _answers.append(stream if sys.stdout is sys.__stdout__ else sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _answers.pop()
            os.dup2(spare, 1)


def answers() -> Any:
    """The stream for a command's answer: stdout, or where it led before it was kept."""
    return _answers[-1] if _answers else sys.stdout


def last_line(output: str, default: str) -> str:
    """The last line of a program's output that is not blank, or `default`. It usually says why the program failed."""
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else default


def hush() -> None:
    """No bars of libraries between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it, the CPU's allocator only words, by system."""
    words = ("can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(some in str(error) for some in words)
