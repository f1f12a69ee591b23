"""Where passes run: a GPU, or the host, which runs the same code so that it is tested where no GPU is.

Everything that differs between the two stands in this file.
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
    """Why torch cannot use a GPU; nothing where it can."""
    none = "torch sees no CUDA GPU: "
    if torch.version.cuda is None:
        return f"{none}this torch ({torch.__version__}) is built without CUDA; install a CUDA build of torch"
    if torch.cuda.is_available():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return f"{none}CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except Exception as error:  # no driver, a driver too old, a GPU that fell off its bus: torch says which
        return none + (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{none}the driver reports none"


class Host:
    """The CPU in the place of a GPU: clocks are the host's, a graph is the plain call, memory is not told."""

    device = torch.device("cpu")

    def meter(self) -> Meter:
        return Meter()

    def identity(self) -> dict[str, Any]:
        return {"kind": "cuda on the host", "torch": str(torch.__version__)}

    def notes(self) -> list[str]:
        return ["place is cpu: this runs the code of the device and measures no GPU"]

    @contextmanager
    def lane(self, aside: bool) -> Iterator[None]:
        yield

    def synchronize(self) -> None: ...

    def mark(self) -> int:
        return time.perf_counter_ns()

    def between(self, start: int, end: int) -> int:
        return end - start

    def allocated(self) -> int | None:
        return None

    def forget_peak(self) -> None: ...

    def peak(self) -> int | None:
        return None

    def capture(self, step: Callable[[], None]) -> None:
        return None

    def end(self, graph: None) -> None: ...

    def tidy(self) -> None: ...


@dataclass
class Lane:
    stream: Any
    live: list[Any] = field(default_factory=list)
    ended: list[Any] = field(default_factory=list)


class Lanes:
    """The streams that graphs of one GPU were captured on.

    torch keys cuBLAS workspaces by stream, a graph holds their addresses, and resetting a graph frees those of its
    stream (github.com/pytorch/pytorch/issues/193402). So a graph has a stream for itself while there are enough, and
    graphs that share one are reset together, when the last of them ends.
    """

    ENOUGH = 64  # torch hands out 32 streams in turn

    def __init__(self) -> None:
        self.used: dict[int, Lane] = {}

    def stream(self) -> Any:
        for _ in range(self.ENOUGH):
            stream = torch.cuda.Stream()
            if stream.cuda_stream not in self.used:
                return stream
        # Not the one that is in use for longest: it may belong to a reference that outlives all others.
        younger = list(self.used.values())[1:] or [Lane(stream)]
        return min(younger, key=lambda lane: len(lane.live) + len(lane.ended)).stream

    def begin(self, graph: Any, stream: Any) -> None:
        self.used.setdefault(stream.cuda_stream, Lane(stream)).live.append(graph)

    def end(self, graph: Any) -> None:
        for key, lane in list(self.used.items()):
            if graph in lane.live:
                lane.live.remove(graph)
                lane.ended.append(graph)
                if not lane.live:
                    for each in lane.ended:
                        each.reset()
                    del self.used[key]


LANES: defaultdict[torch.device, Lanes] = defaultdict(Lanes)


class Gpu:
    """One CUDA device, by torch."""

    def __init__(self, place: str) -> None:
        device = torch.device(place)
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)

    @property
    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self.device)

    def meter(self) -> Meter:
        found, pci = self._properties, ""
        if hasattr(found, "pci_bus_id"):
            pci = f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
        return Meter(pci, str(getattr(found, "uuid", "")))

    def identity(self) -> dict[str, Any]:
        """What identical GPUs share: no serial number, no UUID."""
        found = self._properties
        return {
            "kind": "cuda",
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "fp32_matmul": torch.get_float32_matmul_precision(),  # TF32 makes fp32 several times as fast
        }

    def notes(self) -> list[str]:
        if self._properties.major >= 8:
            return []
        return ["bf16 is emulated before compute capability 8.0: give --dtype fp16"]

    @contextmanager
    def lane(self, aside: bool) -> Iterator[None]:
        """This GPU; `aside`, on a stream for a graph.

        Warm-up and capture share that stream, so that nothing is made lazily during the capture. Leaving this context
        also puts the old stream back where a failed capture did not.
        """
        with torch.cuda.device(self.device):
            if not aside:
                yield
                return
            before = torch.cuda.current_stream()
            stream = LANES[self.device].stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                yield
            before.wait_stream(stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> int:
        return round(start.elapsed_time(end) * 1e6)  # given in milliseconds, in steps of about half a microsecond

    def allocated(self) -> int | None:
        return torch.cuda.memory_allocated(self.device)

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device)

    def capture(self, step: Callable[[], None]) -> Any:
        """The step as a graph, recorded on the current stream, where it has been warmed up."""
        graph, broke, stream = torch.cuda.CUDAGraph(), None, torch.cuda.current_stream()
        self.synchronize()
        try:
            # thread_local: what other threads of the process do with CUDA is no error of this capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    step()
                except Exception as error:
                    broke = error  # ending the capture raises another error, which says only that it is broken
                    raise
        except RuntimeError as error:
            cause = broke or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise Unsupported(
                f"this model cannot be captured as a CUDA graph: {said}", "give --runtime eager"
            ) from error
        LANES[self.device].begin(graph, stream)
        return graph

    def end(self, graph: Any) -> None:
        self.synchronize()
        LANES[self.device].end(graph)

    def tidy(self) -> None:
        """Give back what nobody uses: models hold themselves in cycles, and the allocator keeps what it had."""
        gc.collect()
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
