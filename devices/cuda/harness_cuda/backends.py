"""The two backends of the device: a GPU, and the host, which runs the same code so that tests need no GPU.

Everything that differs between the two is in this file.
"""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.errors import Unsupported
from harness_cuda.nvml import Meter


def why_no_gpu() -> str:
    """Why torch cannot use a GPU, or an empty text if it can."""
    start = "torch sees no CUDA GPU: "
    if torch.version.cuda is None:
        return f"{start}this torch ({torch.__version__}) is built without CUDA; install a CUDA build of torch"
    if torch.cuda.is_available():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return f"{start}CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except Exception as error:  # no driver, an old driver, a broken GPU: torch says which
        return start + (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{start}the driver reports none"


class Host:
    """The CPU in place of a GPU: it uses the host's clock, makes no graph, and does not count memory."""

    device = torch.device("cpu")

    def meter(self) -> Meter:
        return Meter()

    def identity(self) -> dict[str, Any]:
        return {"kind": "cuda on the host", "torch": str(torch.__version__)}

    def notes(self) -> list[str]:
        return ["place is cpu: this runs the code of the device and measures no GPU"]

    @contextmanager
    def use(self, own_stream: bool) -> Iterator[None]:
        yield

    def synchronize(self) -> None: ...

    def record_event(self) -> int:
        return time.perf_counter_ns()

    def elapsed_ns(self, start: int, end: int) -> int:
        return end - start

    def allocated_bytes(self) -> int | None:
        return None

    def reset_peak(self) -> None: ...

    def peak_bytes(self) -> int | None:
        return None

    def capture(self, step: Callable[[], None]) -> None:
        return None

    def release_graph(self, graph: None) -> None: ...

    def free_unused_memory(self) -> None: ...


@dataclass
class GraphStream:
    """A stream and the graphs that were captured on it. Released graphs wait to be reset with the others."""

    stream: Any
    live: list[Any] = field(default_factory=list)
    released: list[Any] = field(default_factory=list)


class GraphStreams:
    """The streams of one GPU on which graphs were captured.

    torch has one cuBLAS workspace per stream. A graph holds the address of its stream's workspace, and resetting any
    graph of the stream frees it (github.com/pytorch/pytorch/issues/193402). So each graph gets a stream of its own
    while there are enough. Graphs that share a stream are reset together, when the last of them is released.
    """

    ATTEMPTS = 64  # torch hands out 32 streams in turn

    def __init__(self) -> None:
        self.in_use: dict[int, GraphStream] = {}

    def choose(self) -> Any:
        """A stream for a new graph: an unused one if there is any."""
        for _ in range(self.ATTEMPTS):
            stream = torch.cuda.Stream()
            if stream.cuda_stream not in self.in_use:
                return stream
        # Not the oldest one: it may belong to a reference model that outlives all others.
        younger = list(self.in_use.values())[1:] or [GraphStream(stream)]
        return min(younger, key=lambda used: len(used.live) + len(used.released)).stream

    def add(self, graph: Any, stream: Any) -> None:
        self.in_use.setdefault(stream.cuda_stream, GraphStream(stream)).live.append(graph)

    def release(self, graph: Any) -> None:
        for key, used in list(self.in_use.items()):
            if graph in used.live:
                used.live.remove(graph)
                used.released.append(graph)
                if not used.live:
                    for released in used.released:
                        released.reset()
                    del self.in_use[key]


GRAPH_STREAMS: defaultdict[torch.device, GraphStreams] = defaultdict(GraphStreams)


class Gpu:
    """One CUDA device of torch."""

    def __init__(self, name: str) -> None:
        device = torch.device(name)
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)

    @property
    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self.device)

    def meter(self) -> Meter:
        gpu = self._properties
        pci = ""
        if hasattr(gpu, "pci_bus_id"):
            pci = f"{gpu.pci_domain_id:08x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
        return Meter(pci, str(getattr(gpu, "uuid", "")))

    def identity(self) -> dict[str, Any]:
        """What identical GPUs have in common, hence no serial number and no UUID."""
        gpu = self._properties
        return {
            "kind": "cuda",
            "gpu": gpu.name,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "fp32_matmul": torch.get_float32_matmul_precision(),  # TF32 makes fp32 several times as fast
        }

    def notes(self) -> list[str]:
        if self._properties.major >= 8:
            return []
        return ["bf16 is emulated before compute capability 8.0: give --dtype fp16"]

    @contextmanager
    def use(self, own_stream: bool) -> Iterator[None]:
        """Make this GPU the current one and, for a graph, make a stream of its own the current stream.

        Warm-up and capture share that stream, so that nothing is created lazily during the capture. Leaving this
        context also restores the old stream where a failed capture did not.
        """
        with torch.cuda.device(self.device):
            if not own_stream:
                yield
                return
            previous = torch.cuda.current_stream()
            stream = GRAPH_STREAMS[self.device].choose()
            stream.wait_stream(previous)
            with torch.cuda.stream(stream):
                yield
            previous.wait_stream(stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def record_event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ns(self, start: Any, end: Any) -> int:
        return round(start.elapsed_time(end) * 1e6)  # milliseconds, with a resolution of about half a microsecond

    def allocated_bytes(self) -> int | None:
        return torch.cuda.memory_allocated(self.device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device)

    def capture(self, step: Callable[[], None]) -> Any:
        """Record the step as a graph on the current stream, on which it was warmed up."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        step_error = None
        self.synchronize()
        try:
            # thread_local: CUDA calls of other threads do not break this capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    step()
                except Exception as error:
                    step_error = error  # the end of the capture raises another error, which has no details
                    raise
        except RuntimeError as error:
            cause = step_error or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise Unsupported(
                f"this model cannot be captured as a CUDA graph: {reason}", "give --runtime eager"
            ) from error
        GRAPH_STREAMS[self.device].add(graph, stream)
        return graph

    def release_graph(self, graph: Any) -> None:
        self.synchronize()
        GRAPH_STREAMS[self.device].release(graph)

    def free_unused_memory(self) -> None:
        """Free unused memory: models are held by reference cycles, and torch's allocator keeps freed memory."""
        gc.collect()
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
