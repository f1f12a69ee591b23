"""The code of the device on the host, its GPU side with torch.cuda played, and the real thing where a GPU is."""

from __future__ import annotations

import collections
import inspect
import statistics
import subprocess
import sys
import time
import types
import weakref
from contextlib import contextmanager
from unittest import mock

import harness_cuda.backends
import pytest
import torch
from harness_cuda import Cuda, Handle, harness_register_devices
from harness_cuda.backends import Gpu
from harness_cuda.nvml import Meter
from harness_cuda.passes import StaticPass, allocate_workspaces, measure_memory, on_device, weight_bytes

from harness import Cut, HarnessError, TimingPlan, Unsupported, Workload
from harness.errors import EnvironmentFault, UsageError
from harness.models.architectures import modeling
from harness.models.architectures.lookup import anatomy_of
from harness.models.cut import check_cut
from harness.models.surgery import apply

BASE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
QUIRKS = {"mistral": {"sliding_window": 6}, "gemma": {"num_key_value_heads": 2}, "qwen3": {"head_dim": 16}}
UNEVEN = {
    "layers.0.attention": [],
    "layers.1.attention": [1],
    "layers.1.mlp": [2, 3, 5],
    "layers.2.mlp": [],
}
NO_ATTENTION = {f"layers.{i}.attention": [] for i in range(3)} | {"layers.0.mlp": [1]}
WORKLOADS = ["prefill:2x9", "prefill:1x1", "decode:2x9", "decode:1x1"]

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


def model_of(family: str = "llama", keep: dict[str, list[int]] | None = None, **more):
    words = {**BASE, **QUIRKS.get(family, {}), **more, "model_type": family}
    _, model_class = modeling.classes(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(modeling.config(words)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    if keep is None:
        return model
    anatomy = anatomy_of(modeling.config_dict(model))
    return apply(model, anatomy, check_cut(anatomy, Cut(keep=keep)))


def plain(model, workload: Workload):
    """Logits of the last position, without any cache."""
    length = workload.size + (workload.kind == "decode")
    tokens = torch.ones(workload.batch, length, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        return model(tokens, use_cache=False).logits[:, -1:]


def last_logits(model, device: Cuda, handle: Handle):
    """Those of one more pass: kept by a static pass, overheard from an eager one."""
    heard = []
    hook = handle.model.register_forward_hook(lambda _module, _inputs, output: heard.append(output.logits))
    handle.rewind()
    handle.run()
    hook.remove()
    return (handle.static.logits if handle.static else heard[-1]).clone()


# --- the spec ---


def test_describing_the_device_imports_neither_torch_nor_nvml():
    asked = "import sys, harness_cuda as d; s, = d.harness_register_devices(); print(s.name, s.target, s.clock)"
    heavy = "assert not {'torch', 'pynvml', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{asked}; {heavy}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "cuda harness_cuda:Cuda device\n"), done.stderr


def test_the_spec_is_that_of_the_design():
    (spec,) = harness_register_devices()
    assert (spec.runtimes, spec.dtype, spec.workload) == (("eager", "graph"), "bf16", "prefill:1x512")
    assert spec.in_process
    assert Cuda().place == "cuda"


def test_wrong_words_are_refused():
    with pytest.raises(UsageError, match="no runtime 'fast'"):
        Cuda(runtime="fast")
    with pytest.raises(UsageError, match="'mps' is no CUDA device"):
        Cuda(place="mps")


# --- probing ---


@pytest.mark.parametrize(
    ("built", "visible", "said"),
    [
        (None, None, "is built without CUDA"),
        ("13.0", "", "CUDA_VISIBLE_DEVICES hides every GPU"),
        ("13.0", None, "no driver here"),
    ],
)
def test_a_probe_without_a_gpu_says_why(monkeypatch, built, visible, said):
    def refuse():
        raise RuntimeError("no driver here\nand more")

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = Cuda().probe()
    assert not found.usable
    assert found.reason.startswith("torch sees no CUDA GPU: ")
    assert said in found.reason
    assert "and more" not in found.reason
    with pytest.raises(EnvironmentFault, match="torch sees no CUDA GPU"):
        Cuda().prepare(None, Workload("prefill", 1, 2))


def test_a_probe_never_raises(monkeypatch):
    def broken():
        raise OSError("libcudart is not what it was")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = Cuda().probe()
    assert (found.usable, found.reason) == (False, "OSError: libcudart is not what it was")


def test_the_host_says_that_it_is_no_gpu():
    found = Cuda(place="cpu").probe()
    assert found.usable
    assert found.fingerprint["kind"] == "cuda on the host"
    assert list(found.state) == ["time_ns"]
    assert "measures no GPU" in found.notes[0]


# --- passes ---


@pytest.mark.parametrize("runtime", ["eager", "graph"])
@pytest.mark.parametrize("keep", [None, UNEVEN, NO_ATTENTION], ids=["even", "uneven", "no-attention"])
@pytest.mark.parametrize("text", WORKLOADS)
def test_every_pass_is_the_same_forward(runtime, keep, text):
    model, workload = model_of(keep=keep), Workload.parse(text)
    device = Cuda(runtime, place="cpu")
    handle = device.prepare(model, workload)
    expected = plain(model, workload)
    for _ in range(3):  # a position that crept on would be seen here
        torch.testing.assert_close(last_logits(model, device, handle), expected, rtol=1e-4, atol=1e-4)
    device.close(handle)


@pytest.mark.parametrize("family", ["gemma", "mistral", "qwen2", "qwen3"])
def test_other_families_are_static_too(family):
    model = model_of(family, sliding_window=None) if family == "mistral" else model_of(family)
    device = Cuda("graph", place="cpu")
    for text in ("prefill:1x9", "decode:1x9"):
        handle = device.prepare(model, Workload.parse(text))
        expected = plain(model, Workload.parse(text))
        torch.testing.assert_close(last_logits(model, device, handle), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sliding_windows_prefill_but_do_not_decode(size):
    model, device = model_of("mistral"), Cuda("graph", place="cpu")
    with pytest.raises(Unsupported, match="cannot step back"):
        device.prepare(model, Workload("decode", 1, size))
    handle, workload = device.prepare(model, Workload("prefill", 2, size)), Workload("prefill", 2, size)
    for _ in range(2):
        torch.testing.assert_close(last_logits(model, device, handle), plain(model, workload), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["eager", "graph"])
def test_images_are_refused(runtime):
    with pytest.raises(Unsupported, match="no image workload"):
        Cuda(runtime, place="cpu").prepare(model_of(), Workload("image", 1, 224))


def test_a_pinned_step_makes_no_mask_and_reads_no_length(monkeypatch):
    """What a capture could not record, or would record as work that eager passes do not do."""
    import transformers.masking_utils as masks

    def unexpected(*_, **__):
        raise AssertionError("a mask is being made")

    handles = {
        text: Cuda("graph", place="cpu").prepare(model_of(keep=UNEVEN), Workload.parse(text)) for text in WORKLOADS
    }
    monkeypatch.setattr(masks, "_non_vmap_expansion_sdpa", unexpected)
    monkeypatch.setattr(masks, "is_tracing", lambda *_: True)  # what it answers during a capture
    monkeypatch.setattr(torch.Tensor, "__bool__", unexpected)
    monkeypatch.setattr(torch.Tensor, "item", unexpected)
    monkeypatch.setattr(torch.Tensor, "__int__", unexpected)
    monkeypatch.setattr(torch.Tensor, "__index__", unexpected)
    for handle in handles.values():
        handle.rewind()
        handle.run()


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2", "qwen3"])
def test_tensors_of_a_gpu_stay_there(family):
    """Tensors without data, said to lie on a GPU: whatever meets one of the host, or asks for a value, raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Hollow(FakeTensorMode):
        def may_turn_const(self, t):  # small constants would be moved for real
            return False

    keep = UNEVEN if family == "llama" else None
    model = model_of(family, keep).to(torch.bfloat16)
    with Hollow(allow_non_fake_inputs=True):
        moved = on_device(model, torch.device("cuda:0"))
        allocate_workspaces(moved)
        for text in WORKLOADS:
            static = StaticPass(moved, Workload.parse(text))
            static.rewind()
            static.step()
            assert static.logits.device == static.cache.positions.device == torch.device("cuda:0")
            assert static.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("runtime", ["eager", "graph"])
def test_the_callers_model_is_left_as_it_was(runtime):
    model = model_of(keep=UNEVEN)
    before, names = {name: t.clone() for name, t in model.state_dict().items()}, set(vars(model))
    device = Cuda(runtime, place="cpu")
    handle = device.prepare(model, Workload("decode", 1, 5))
    device.measure(handle, TimingPlan(1, 2))
    device.close(handle)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert set(vars(model)) == names
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_elsewhere_is_copied_without_a_second_one_on_the_host():
    model = model_of(tie_word_embeddings=True)
    moved = on_device(model, torch.device("meta"))
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert moved.lm_head.weight is moved.model.embed_tokens.weight
    assert moved.config is not model.config
    assert not moved.training
    assert on_device(model, torch.device("cpu")) is model


def test_closing_twice_is_closing_once():
    for runtime in ("eager", "graph"):
        device = Cuda(runtime, place="cpu")
        handle = device.prepare(model_of(), Workload("decode", 1, 5))
        device.close(handle)
        device.close(handle)
        assert (handle.model, handle.static, handle.graph) == (None, None, None)
        with pytest.raises(HarnessError, match="closed"):
            device.measure(handle, TimingPlan(1, 1))


# --- measuring ---


@pytest.mark.parametrize("runtime", ["eager", "graph"])
@pytest.mark.parametrize("iterations", [1, 5])
def test_as_many_passes_as_asked(runtime, iterations):
    device = Cuda(runtime, place="cpu")
    handle = device.prepare(model_of(), Workload("prefill", 1, 4))
    found = device.measure(handle, TimingPlan(warmup=0, iterations=iterations))
    assert len(found.device_ns) == len(found.wall_ns) == len(found.cpu_ns) == iterations
    assert all(type(ns) is int and ns > 0 for ns in (*found.device_ns, *found.wall_ns, *found.cpu_ns))
    assert found.before["time_ns"] < found.after["time_ns"]
    assert (found.memory, found.energy_j) == (None, None)


def test_seconds_are_filled_and_not_overrun():
    device = Cuda("graph", place="cpu")
    handle = device.prepare(model_of(), Workload("prefill", 1, 4))
    start = time.monotonic()
    found = device.measure(handle, TimingPlan(warmup=1, iterations=2, seconds=0.3))
    took = time.monotonic() - start
    assert sum(found.device_ns) >= 0.15e9
    assert len(found.wall_ns) == len(found.device_ns) > 2
    assert 0.2 < took < 3


def test_fast_passes_end_at_the_cap(monkeypatch):
    import harness_cuda

    monkeypatch.setattr(harness_cuda, "MAX_PASSES", 300)
    device = Cuda(place="cpu")
    calls = []
    handle = Handle(model="", run=lambda: calls.append(1), rewind=lambda: None)
    found = device.measure(handle, TimingPlan(warmup=2, iterations=3, seconds=60))
    assert len(found.device_ns) == len(found.wall_ns) == 300
    assert len(device.measure(handle, TimingPlan(0, 400, 0.0)).device_ns) == 400


def test_every_timed_pass_starts_from_where_the_first_did():
    order = []
    handle = Handle(model="", run=lambda: order.append("run"), rewind=lambda: order.append("rewind"))
    Cuda(place="cpu").measure(handle, TimingPlan(warmup=1, iterations=4))
    assert order == ["rewind", "run"] * (len(order) // 2)


def test_memory_is_the_models_own():
    class Allocator:
        """An allocator with another model's 1000 bytes, whose modules end at 1100, 1200 and so on."""

        now, top = 1000, 9999

        def allocated_bytes(self):
            self.now += 100
            return self.now

        def reset_peak(self):
            self.top = 1000

        def peak_bytes(self):
            return self.top + 500

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert weight_bytes(model) == 48
    eager = measure_memory(Allocator(), model, 1000, lambda: model(torch.ones(2)), capture=False)
    assert eager == {"average": 48 + 200, "peak": 48 + 500}
    assert measure_memory(Allocator(), model, 1000, lambda: None, capture=True) == {"average": 548, "peak": 548}
    assert measure_memory(Allocator(), model, None, lambda: None, capture=True) is None


# --- the GPU's side, with torch.cuda played by the host ---


class FakeGraph:
    """A graph that does again what was done while it was captured."""

    def __init__(self):
        self.step, self.was_reset = None, False

    def replay(self):
        self.step()

    def reset(self):
        self.was_reset = True


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class FakeStream:
    """One of a few, in turn."""

    made = 0

    def __init__(self):
        FakeStream.made += 1
        self.cuda_stream = FakeStream.made % 3

    def wait_stream(self, other): ...


@pytest.fixture
def played(monkeypatch):
    """torch.cuda with the real functions' signatures, each call noted; `breaks` ends a capture as torch does."""
    calls, state = [], types.SimpleNamespace(stream="default", breaks=None, capturing=False)

    @contextmanager
    def stream(to):
        before, state.stream = state.stream, to
        yield
        state.stream = before

    @contextmanager
    def graph(made, stream, capture_error_mode):
        assert stream is state.stream is not None
        calls.append("capture")
        state.capturing = True
        try:
            yield
        finally:
            state.capturing = False
            if state.breaks:
                raise RuntimeError("the capture is broken")

    def noted(name, answer=None):
        real = getattr(torch.cuda, name)

        def call(*arguments, **words):
            inspect.signature(real).bind(*arguments, **words)
            calls.append(name)
            return answer

        monkeypatch.setattr(torch.cuda, name, call)

    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        noted(name)
    noted("memory_allocated", 1_000_000)
    noted("max_memory_allocated", 1_500_000)
    inspect.signature(torch.cuda.graph).bind(None, stream=None, capture_error_mode="thread_local")
    monkeypatch.setattr(torch.cuda, "device", mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(
        harness_cuda.backends, "GRAPH_STREAMS", collections.defaultdict(harness_cuda.backends.GraphStreams)
    )
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda: mock.MagicMock() if state.stream == "default" else state.stream
    )
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(harness_cuda.backends, "gc", mock.MagicMock())
    backend = Gpu("cuda:0")
    backend.device = torch.device("cpu")
    backend.meter = Meter

    def device(runtime):
        made = Cuda(runtime)
        made._backend = backend
        return made

    return types.SimpleNamespace(calls=calls, state=state, device=device)


@pytest.mark.parametrize("text", WORKLOADS)
def test_a_capture_and_its_replays(played, text):
    model, workload, device = model_of(keep=UNEVEN), Workload.parse(text), played.device("graph")
    handle = device.prepare(model, workload)
    assert played.calls.count("capture") == 1
    assert played.calls.index("reset_peak_memory_stats") < played.calls.index("capture")
    assert played.state.stream == "default"
    graph = handle.graph
    graph.step = handle.static.step
    torch.testing.assert_close(last_logits(model, device, handle), plain(model, workload), rtol=1e-4, atol=1e-4)
    found = device.measure(handle, TimingPlan(warmup=1, iterations=3))
    assert len(found.device_ns) == len(found.wall_ns) == 3
    assert min(found.device_ns) > 0
    assert found.memory == {"average": weight_bytes(model) + 500_000, "peak": weight_bytes(model) + 500_000}
    device.close(handle)
    device.close(handle)
    assert graph.was_reset
    assert played.calls[-1] == "empty_cache"


def test_an_eager_gpu_records_nothing(played):
    model, device = model_of(), played.device("eager")
    handle = device.prepare(model, Workload("decode", 1, 5))
    found = device.measure(handle, TimingPlan(warmup=0, iterations=2))
    device.close(handle)
    assert "capture" not in played.calls
    assert found.memory == {"average": weight_bytes(model), "peak": weight_bytes(model) + 500_000}


def test_a_pass_that_cannot_be_captured_is_unsupported(played, monkeypatch):
    step = StaticPass.step

    def refuse(self):
        if played.state.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        step(self)

    monkeypatch.setattr(StaticPass, "step", refuse)
    for played.state.breaks in (True, False):
        with pytest.raises(Unsupported, match="cannot be captured as a CUDA graph: operation not permitted") as told:
            played.device("graph").prepare(model_of(), Workload("decode", 1, 5))
        assert told.value.remedy == "give --runtime eager"
        assert "and more" not in told.value.cause


@pytest.mark.parametrize("runtime", ["eager", "graph"])
def test_a_full_gpu_is_said_in_one_line(played, monkeypatch, runtime):
    def full(self, *_, **__):
        if runtime == "eager" or played.state.capturing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        return forward(self, *_, **__)

    model = model_of()
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", full)
    played.state.breaks = True
    with pytest.raises(HarnessError, match="no room on the GPU for decode:1x5: CUDA out of memory") as told:
        played.device(runtime).prepare(model, Workload("decode", 1, 5))
    assert "and more" not in told.value.cause


def test_graphs_on_one_stream_are_reset_together(played):
    """Three streams for five graphs: the first keeps its own, and none loses its workspace to another's end."""
    streams, graphs, on = harness_cuda.backends.GraphStreams(), [FakeGraph() for _ in range(5)], []
    for graph in graphs:
        stream = streams.choose()
        streams.add(graph, stream)
        on.append(stream.cuda_stream)
    assert len(set(on[:3])) == 3
    assert sorted(on[3:]) == sorted(on[1:3])
    for ended, graph in enumerate(graphs, start=1):
        streams.release(graph)
        for which, each in enumerate(graphs):
            assert each.was_reset == all(other < ended for other in range(5) if on[other] == on[which])
    assert not streams.in_use


def test_what_is_asked_of_a_gpu_is_there():
    properties = getattr(torch._C, "_CudaDeviceProperties", None)
    if properties is None:
        pytest.skip("this torch is built without CUDA")
    for name in ("name", "major", "minor", "multi_processor_count", "total_memory", "uuid"):
        assert hasattr(properties, name)
    for name in ("pci_domain_id", "pci_bus_id", "pci_device_id"):
        assert hasattr(properties, name)


# --- the real thing ---


@on_gpu
def test_a_gpu_is_probed():
    found = Cuda().probe()
    assert found.usable, found.reason
    assert found.fingerprint["kind"] == "cuda"
    assert found.fingerprint["memory_bytes"] > 0


@on_gpu
@pytest.mark.parametrize("runtime", ["eager", "graph"])
@pytest.mark.parametrize("keep", [None, UNEVEN, NO_ATTENTION], ids=["even", "uneven", "no-attention"])
@pytest.mark.parametrize("text", WORKLOADS)
def test_a_gpu_computes_what_the_host_does(runtime, keep, text):
    model, workload, device = model_of(keep=keep), Workload.parse(text), Cuda(runtime)
    handle = device.prepare(model, workload)
    assert (handle.graph is not None) == (runtime == "graph")
    expected = plain(model, workload)
    for _ in range(3):
        torch.testing.assert_close(last_logits(model, device, handle).cpu(), expected, rtol=1e-2, atol=1e-2)
    found = device.measure(handle, TimingPlan(warmup=2, iterations=5))
    assert all(ns > 0 for ns in (*found.device_ns, *found.wall_ns))
    assert found.memory["peak"] >= found.memory["average"] > weight_bytes(model)
    assert model.device.type == "cpu"
    device.close(handle)
    device.close(handle)


@on_gpu
def test_closing_gives_the_memory_back():
    model = model_of()
    for runtime in ("eager", "graph"):
        device = Cuda(runtime)
        device.close(device.prepare(model, Workload("decode", 1, 9)))  # what lives as long as the process
        before = torch.cuda.memory_allocated()
        handle = device.prepare(model, Workload("decode", 1, 9))
        copy = weakref.ref(handle.model)
        device.close(handle)
        assert copy() is None
        # Some versions of torch keep the cuBLAS workspace of a graph's stream.
        assert torch.cuda.memory_allocated() <= before + (64 << 20) * (runtime == "graph")


@on_gpu
def test_one_graphs_end_is_not_anothers():
    device, workload = Cuda("graph"), Workload("decode", 1, 9)
    models = [model_of(), model_of(keep=UNEVEN)]
    first, second = [device.prepare(model, workload) for model in models]
    device.close(first)
    found = last_logits(models[1], device, second).cpu()
    torch.testing.assert_close(found, plain(models[1], workload), rtol=1e-2, atol=1e-2)


@on_gpu
def test_a_graph_decodes_small_models_no_slower():
    medians = {}
    for runtime in ("eager", "graph"):
        device = Cuda(runtime)
        handle = device.prepare(model_of(), Workload("decode", 1, 32))
        medians[runtime] = statistics.median(device.measure(handle, TimingPlan(5, 50)).device_ns)
        device.close(handle)
    assert medians["graph"] < 1.2 * medians["eager"]
