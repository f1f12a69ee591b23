"""Settings of this process: environment before torch is imported, memory, bf16 instructions, and stdout."""

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
from typing import Any, TextIO

from harness.system.host import add_cache_notes, cpu_model, read_cache_notes

__all__ = ["out_of_memory"]

ISA = "ONEDNN_MAX_CPU_ISA"
TAMED_ISA = "AVX512_CORE_BF16"
BF16_PRODUCT = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(a, a) @ a"
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's names for what mallopt sets


def prepare(dtype: str = "fp32", keep: bool = True) -> None:
    """Set environment variables: idle threads sleep, libraries print no progress, and bf16 avoids broken instructions.

    Some hypervisors announce AMX and kill the process that uses it. With `keep`, the process keeps freed memory, as a
    process must that is timed.
    """
    if keep:
        keep_freed()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads do little here, and spin while idle
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # harness shows its own progress
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs its start and end
    if dtype != "fp32" and "torch" not in sys.modules and not bf16_is_safe():
        os.environ[ISA] = TAMED_ISA
    if "transformers" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def keep_freed() -> None:
    """Have glibc keep freed memory instead of returning it to the system.

    Activations are allocated and freed with every layer. By default glibc returns their memory at irregular moments and
    gets it back page by page. A pass then has between none and eighty thousand page faults, up to a tenth of its time.
    `return_freed_memory` returns the memory between stages.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return all freed memory to the system."""
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


@cache
def glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc. None if the environment already sets how it allocates (MALLOC_...)."""
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def announces_amx() -> bool:
    """Whether the CPU claims to have AMX instructions for bf16."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def bf16_is_safe() -> bool:
    """Whether this process can compute bf16 products: AMX works here, or oneDNN is kept off it."""
    return ISA in os.environ or not bf16_kills_process()


def bf16_kills_process() -> bool:
    """Whether a bf16 product kills the process on this machine.

    It is tried in another process, once per CPU and version of torch; the result is cached.
    """
    if not announces_amx():
        return False
    key = f"{cpu_model()}, torch {version('torch')}"
    results = read_cache_notes("amx.json")
    if key not in results:
        trial = subprocess.run([sys.executable, "-c", BF16_PRODUCT], capture_output=True, check=False)
        results = {key: trial.returncode < 0}
        add_cache_notes("amx.json", results)
    return bool(results[key])


_answers: list[TextIO] = []  # the original stdout, while `stdout_for_answers` redirects it


@contextmanager
def stdout_for_answers() -> Iterator[None]:
    """Send what the block prints, from Python or from C, to stderr. Only `answer_stream()` writes to stdout."""
    if sys.stdout is None or _answers:  # closed, or redirected already
        yield
        return
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    try:
        copy = os.dup(1)
    except OSError:  # stdout has no file descriptor
        with redirect_stdout(sys.stderr):
            yield
        return
    os.dup2(2, 1)
    with open(copy, "w", encoding=sys.stdout.encoding, errors="backslashreplace", newline="", buffering=1) as stream:
        _answers.append(stream if sys.stdout is sys.__stdout__ else sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _answers.pop()
            os.dup2(copy, 1)


def answer_stream() -> Any:
    """The stream for a command's answer: stdout, also while `stdout_for_answers` redirects prints to stderr."""
    return _answers[-1] if _answers else sys.stdout


def last_line(output: str, default: str) -> str:
    """The last line of a program's output that is not blank, or `default`. It usually says why the program failed."""
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else default


def disable_library_progress_bars() -> None:
    """Disable the progress bars of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out. CUDA has a class for it, torch on CPUs only has messages."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(message in str(error) for message in ("can't allocate memory", "not enough memory"))
