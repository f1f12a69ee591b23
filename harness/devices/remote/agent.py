"""The agent: a program that opens and times models with ONNX Runtime on a remote machine.

    python3 agent.py

It is a single file for Python 3.8 or newer. harness pushes it to the machine and deletes it afterwards. A request is
a line of stdin with one JSON object, the reply a line of stdout: `HARNESS_ANSWER {...}`, with the request's nonce. The
agent ends when its stdin ends, because then there is no one to reply to. Fields of a request:

    do        probe: report versions and sensors.  devices: list those of a plug-in execution provider.
              open: open a model; it stays open until the process ends.  time: time passes of the open model.
              run: run a model once and write its outputs.  compile: compile a model by an execution provider
    packages  for probe: the packages whose versions are reported
    model     the path of a model that ONNX Runtime can open
    provider  name and options of an execution provider; library: the file or package of a plug-in provider
    inputs    the path of an .npz with the inputs; without it, tokens are ones and other inputs small random numbers
    outputs   for run: the path of the .npz to write
    compiled  for compile: the path of the model to write; its binary is written beside it
"""

from __future__ import annotations

import glob
import json
import os
import platform
import queue
import re
import sys
import threading
import time

ANSWER = "HARNESS_ANSWER "
open_model: dict = {}  # what is known of the model that `open` opened


def main():
    for request in requests():
        answer = {"nonce": request["nonce"], "agent": 2}
        try:
            answer.update(REQUESTS[request["do"]](request))
        except Exception as error:  # the client reports any error
            answer.update(error=type(error).__name__, message=" ".join(str(error).split())[:1000])
        print("\n" + ANSWER + json.dumps(answer), flush=True)


def requests():
    """The requests as they arrive. The process ends with stdin, even in the middle of a request."""
    # On Windows a thread that waits for input would block imports, so there the process finishes its request first.
    if os.name == "nt":
        return map(json.loads, sys.stdin)
    lines: queue.Queue = queue.Queue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    return map(json.loads, iter(lines.get, None))


def read_lines(lines):
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def probe(request):
    facts: dict = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    facts.update(model=read_text("/proc/device-tree/model") or cpu_name(), cores=cores(), state=state(0))
    facts["governors"] = sorted(set(filter(None, map(read_text, glob.glob(CPUS + "cpu*/cpufreq/scaling_governor")))))
    facts.update(emulated=is_emulated(), packages={}, missing={})
    for name in request.get("packages", ()):
        try:
            facts["packages"][name] = getattr(__import__(name), "__version__", "there")
        except Exception as error:
            facts["missing"][name] = type(error).__name__ + ": " + str(error).strip()[:300]
    return facts


def open_for_timing(request):
    session, inputs, facts = create_session(request)
    on_npu = (request.get("provider") or {}).get("library")
    open_model.update(facts, run=bind(session, inputs), resident=memory())
    # A process that waits for an NPU does not keep its threads busy, so their number means nothing.
    open_model["threads"] = 0 if on_npu else request.get("threads") or 1
    return facts


def time_passes(request):
    """The same loops as in harness/devices/cpu.py, copied because this file must stand alone."""
    run, threads = open_model["run"], open_model["threads"]
    start, warmed = time.perf_counter(), 0
    while warmed < request["warmup"] or (request["warmup"] and time.perf_counter() - start < request["seconds"]):
        run()
        warmed += 1
    wall: list = []
    cpu: list = []
    before, start = state(threads), time.perf_counter()
    while len(wall) < request["iterations"] or (
        time.perf_counter() - start < request["seconds"] and len(wall) < request["most"]
    ):
        wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
        run()
        cpu.append(time.process_time_ns() - cpu_start)
        wall.append(time.perf_counter_ns() - wall_start)
    after = state(threads)
    before["fallback"] = after["fallback"] = open_model["fallback"]
    cpu = [] if os.name == "nt" else cpu  # on Windows CPU time moves in steps of 16 ms
    return {"wall_ns": wall, "cpu_ns": cpu or None, "before": before, "after": after, "memory": model_memory()}


def run_once(request):
    import numpy

    session, inputs, facts = create_session(request)
    numpy.savez(request["outputs"], **{str(i): value for i, value in enumerate(session.run(None, inputs))})
    return dict(facts, outputs=[value.name for value in session.get_outputs()])


def compile_model(request):
    target = request["compiled"]
    entries = {"ep.context_enable": "1", "ep.context_file_path": target, "ep.context_embed_mode": "0"}
    session, _, facts = create_session(dict(request, entries=entries))
    del session
    files = glob.glob(glob.escape(os.path.splitext(target)[0]) + "*.bin")
    return dict(facts, bytes=sum(map(os.path.getsize, files)))


def list_devices(request):
    devices = plugin_devices(__import__("onnxruntime"), request["provider"])
    return {"devices": [device_type(device) for device in devices]}


REQUESTS = {
    "probe": probe,
    "devices": list_devices,
    "open": open_for_timing,
    "time": time_passes,
    "run": run_once,
    "compile": compile_model,
}


# --- ONNX Runtime ---

CPU = "CPUExecutionProvider"


def create_session(request):
    """A session for the model, example inputs, and facts: which nodes fell back to another provider, base memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request.get("threads") or 1, 1
    options.log_severity_level = 3
    provider = request.get("provider") or {"name": CPU}
    entries = {  # spinning threads would add to the CPU time while they wait
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.record_ep_graph_assignment_info": "1",
    }
    reports_assignment = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    if not reports_assignment and provider["name"] != CPU:
        entries["session.disable_cpu_ep_fallback"] = "1"
    entries.update(request.get("entries") or {})
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    if provider.get("library"):
        options.add_provider_for_devices(plugin_devices(onnxruntime, provider)[:1], provider.get("options") or {})
        base = memory()
        session = onnxruntime.InferenceSession(request["model"], options)
    else:
        providers = [(provider["name"], provider.get("options") or {})]
        base = memory()
        session = onnxruntime.InferenceSession(request["model"], options, providers=providers)
    parts = session.get_provider_graph_assignment_info() if reports_assignment else []
    facts = {
        "parts": sum(part.ep_name == provider["name"] for part in parts) if reports_assignment else None,
        "fallback": [
            node.op_type + " " + node.name + " on " + part.ep_name
            for part in parts
            for node in part.get_nodes()
            if part.ep_name != provider["name"]
        ],
        "base": base,
    }
    return session, example_inputs(session, request), facts


def plugin_devices(onnxruntime, provider):
    """The devices of an execution provider that is a separate library, NPUs first."""
    library = provider["library"]
    if not os.path.exists(library):
        library = __import__(library).get_library_path()
    onnxruntime.register_execution_provider_library(provider["name"], library)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider["name"]]
    if not devices:
        raise RuntimeError("no device for " + provider["name"])
    return sorted(devices, key=lambda device: device_type(device) != "NPU")


def device_type(device):
    return str(device.device.type).rpartition(".")[2]


def example_inputs(session, request):
    """The inputs of the request, or generated ones."""
    import numpy

    if request.get("inputs"):
        with numpy.load(request["inputs"]) as file:
            return {name: file[name] for name in file.files}
    dtypes = {"int64": "int64", "int32": "int32", "float": "float32", "float16": "float16"}
    inputs = {}
    for value in session.get_inputs():
        dtype = dtypes.get(value.type[len("tensor(") : -1])
        if not dtype or not all(isinstance(size, int) for size in value.shape):
            raise ValueError("input " + value.name + " is " + value.type + " of " + str(value.shape))
        random = numpy.random.default_rng(0).standard_normal(value.shape)
        inputs[value.name] = (numpy.ones(value.shape) if "int" in dtype else random).astype(dtype)
    return inputs


def bind(session, inputs):
    """A function that runs one pass, which copies and allocates nothing."""
    import onnxruntime

    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    names = [value.name for value in session.get_outputs()]
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    for i, name in enumerate(names):
        binding.bind_ortvalue_output(name, outputs[i])
    return lambda: session.run_with_iobinding(binding)


CPUS = "/sys/devices/system/cpu/"
HOT = 95.0  # degrees Celsius at which phones and boards reduce their clocks


def is_emulated():
    """Whether an x86 machine emulates an ARM processor.

    Two files show the real processor; newer emulators also replace the first of them.
    """
    x86 = re.search("vendor_id|type:x86", read_text("/proc/cpuinfo") + read_text(CPUS + "modalias"))
    return bool(x86) and platform.machine().lower().startswith(("aarch64", "arm"))


def read_text(path):
    """The text of a small file, or an empty text if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def cpu_name():
    if os.name == "nt":
        winreg = __import__("winreg")
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return winreg.QueryValueEx(key, "ProcessorNameString")[0].strip()
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def state(threads):
    """Counters of time and load, clocks and temperatures. What the system does not report is left out."""
    readings: dict = {"time_ns": time.monotonic_ns(), "own_ns": time.process_time_ns(), "cores": cores()}
    readings.update({"threads": threads} if threads else {})
    pressure = read_text("/proc/pressure/cpu").partition("\n")[0].rpartition("total=")[2]
    if pressure.isdigit():
        readings["pressure_us"] = int(pressure)
    ticks = read_text("/proc/stat").partition("\n")[0].split()[1:9]
    if len(ticks) == 8 and hasattr(os, "sysconf"):
        user, nice, system, _, _, irq, softirq, steal = (int(count) for count in ticks)
        tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        readings["busy_ns"] = (user + nice + system + irq + softirq) * tick_ns
        readings["steal_ns"] = steal * tick_ns
    clocks = map(read_text, glob.glob(CPUS + "cpu*/cpufreq/scaling_cur_freq"))
    readings["clocks_khz"] = [int(clock) for clock in clocks if clock.isdigit()]
    zones = temperatures()
    if zones:
        readings["temperatures_c"] = zones
        readings["throttle"] = sorted(name + " is hot" for name, degrees in zones.items() if degrees >= HOT)
        for path in glob.glob("/sys/class/thermal/cooling_device*"):  # only those that reduce clocks; fans do not
            if "freq" in read_text(path + "/type") and read_text(path + "/cur_state") not in ("", "0"):
                readings["throttle"].append(read_text(path + "/type") + " is held down")
    return readings


def temperatures():
    zones = {}
    for folder in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        text = read_text(folder + "/temp")
        if text.lstrip("-").isdigit() and int(text) > 0:
            zones[read_text(folder + "/type") or os.path.basename(folder)] = int(text) / 1000
    return zones


def memory():
    """Resident bytes of this process, now and at peak, or None where the system does not report them."""
    sizes = re.findall(r"^Vm(?:HWM|RSS):\s*(\d+) kB", read_text("/proc/self/status"), re.MULTILINE)
    return [int(size) * 1024 for size in reversed(sizes)] if len(sizes) == 2 else None


def model_memory():
    """Bytes of the open model: the growth of this process since its libraries were loaded."""
    base, resident, now = open_model["base"], open_model["resident"], memory()
    sizes = base and resident and now and {"average": resident[0] - base[0], "peak": now[1] - base[0]}
    return sizes and {name: max(0, size) for name, size in sizes.items()}


if __name__ == "__main__":
    main()
