"""What runs on the other machine: one file, Python 3.8 or newer, and ONNX Runtime. harness pushes it and takes it away.

    python3 agent.py

A request is a line of stdin, one JSON object; its answer a line of stdout, `HARNESS_ANSWER {...}`, with its nonce.
It ends when its stdin does: nobody waits for an answer any more.

    do        probe: versions, sensors.  devices: of a plug-in.  open: a model, for this process's life.
              time: passes of what is open.  run: one pass of a model, outputs to a file.
              compile: what an execution provider makes of a model, to a file
    model     a file that ONNX Runtime opens; packages: of which a probe tells the versions
    provider  name and options of an execution provider; the library or package of a plug-in, if it is one
    inputs    an .npz of them; without it tokens are ones, and what else there is small numbers
    outputs, compiled  where the .npz of them goes; where the model with its binary goes
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
kept: dict = {}  # of the open model


def main():
    for request in requests():
        answer = {"nonce": request["nonce"], "agent": 2}
        try:
            answer.update(WORK[request["do"]](request))
        except Exception as error:  # whatever it is, the one who asked wants to know
            answer.update(error=type(error).__name__, said=" ".join(str(error).split())[:1000])
        print("\n" + ANSWER + json.dumps(answer), flush=True)


def requests():
    if os.name == "nt":  # where a thread that waits for input holds up imports; it ends after what it is doing
        return map(json.loads, sys.stdin)
    lines: queue.Queue = queue.Queue()
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    return map(json.loads, iter(lines.get, None))


def listen(lines):
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def probe(request):
    found: dict = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    found.update(model=read_text("/proc/device-tree/model") or cpu_name(), cores=cores(), state=state(0))
    found["governors"] = sorted(set(filter(None, map(read_text, glob.glob(CPUS + "cpu*/cpufreq/scaling_governor")))))
    found.update(emulated=emulated(), packages={}, missing={})
    for name in request.get("packages", ()):
        try:
            found["packages"][name] = getattr(__import__(name), "__version__", "there")
        except Exception as error:
            found["missing"][name] = type(error).__name__ + ": " + str(error).strip()[:300]
    return found


def keep(request):
    session, inputs, facts = opened(request)
    elsewhere = (request.get("provider") or {}).get("library")  # what waits for an NPU does not run all the time
    kept.update(facts, run=bound(session, inputs), resident=memory())
    kept["threads"] = 0 if elsewhere else request.get("threads") or 1
    return facts


def measure(request):
    run, threads = kept["run"], kept["threads"]
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
    before["fallback"] = after["fallback"] = kept["fallback"]
    cpu = [] if os.name == "nt" else cpu  # where it moves in steps of 16 ms
    return {"wall_ns": wall, "cpu_ns": cpu or None, "before": before, "after": after, "memory": held()}


def once(request):
    import numpy

    session, inputs, facts = opened(request)
    numpy.savez(request["outputs"], **{str(at): value for at, value in enumerate(session.run(None, inputs))})
    return dict(facts, outputs=[value.name for value in session.get_outputs()])


def compiled(request):
    target = request["compiled"]
    entries = {"ep.context_enable": "1", "ep.context_file_path": target, "ep.context_embed_mode": "0"}
    session, _, facts = opened(dict(request, entries=entries))
    del session
    files = glob.glob(glob.escape(os.path.splitext(target)[0]) + "*.bin")
    return dict(facts, bytes=sum(map(os.path.getsize, files)))


def devices(request):
    return {"devices": [kind(device) for device in plugged(__import__("onnxruntime"), request["provider"])]}


WORK = {"probe": probe, "devices": devices, "open": keep, "time": measure, "run": once, "compile": compiled}


# --- ONNX Runtime ---

CPU = "CPUExecutionProvider"


def opened(request):
    """A session, its inputs, and what is to be known of both."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request.get("threads") or 1, 1
    options.log_severity_level = 3
    provider = request.get("provider") or {"name": CPU}
    entries = {  # a waiting thread that spins is counted as CPU time
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.record_ep_graph_assignment_info": "1",
    }
    tells = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    if not tells and provider["name"] != CPU:
        entries["session.disable_cpu_ep_fallback"] = "1"
    entries.update(request.get("entries") or {})
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    if provider.get("library"):
        options.add_provider_for_devices(plugged(onnxruntime, provider)[:1], provider.get("options") or {})
        base = memory()
        session = onnxruntime.InferenceSession(request["model"], options)
    else:
        known, base = [(provider["name"], provider.get("options") or {})], memory()
        session = onnxruntime.InferenceSession(request["model"], options, providers=known)
    placed = session.get_provider_graph_assignment_info() if tells else []
    facts = {
        "parts": sum(part.ep_name == provider["name"] for part in placed) if tells else None,
        "fallback": [
            node.op_type + " " + node.name + " on " + part.ep_name
            for part in placed
            for node in part.get_nodes()
            if part.ep_name != provider["name"]
        ],
        "base": base,
    }
    return session, examples(session, request), facts


def plugged(onnxruntime, provider):
    """The devices of an execution provider that comes as a library of its own, NPUs first."""
    library = provider["library"]
    if not os.path.exists(library):
        library = __import__(library).get_library_path()
    onnxruntime.register_execution_provider_library(provider["name"], library)
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider["name"]]
    if not found:
        raise RuntimeError("no device for " + provider["name"])
    return sorted(found, key=lambda device: kind(device) != "NPU")


def kind(device):
    return str(device.device.type).rpartition(".")[2]


def examples(session, request):
    import numpy

    if request.get("inputs"):
        with numpy.load(request["inputs"]) as known:
            return {name: known[name] for name in known.files}
    kinds = {"int64": "int64", "int32": "int32", "float": "float32", "float16": "float16"}
    found = {}
    for value in session.get_inputs():
        kind = kinds.get(value.type[len("tensor(") : -1])
        if not kind or not all(isinstance(size, int) for size in value.shape):
            raise ValueError("input " + value.name + " is " + value.type + " of " + str(value.shape))
        random = numpy.random.default_rng(0).standard_normal(value.shape)
        found[value.name] = (numpy.ones(value.shape) if "int" in kind else random).astype(kind)
    return found


def bound(session, inputs):
    """One pass that copies and allocates nothing."""
    import onnxruntime

    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    names = [value.name for value in session.get_outputs()]
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    written = binding.get_outputs()
    for at, name in enumerate(names):
        binding.bind_ortvalue_output(name, written[at])
    return lambda: session.run_with_iobinding(binding)


CPUS = "/sys/devices/system/cpu/"
TRIPPED = 95.0  # degrees at which phones and boards hold their clocks down


def emulated():
    """Whether a PC plays an ARM processor: some files show what it really is; newer emulators play the first, too."""
    shown = re.search("vendor_id|type:x86", read_text("/proc/cpuinfo") + read_text(CPUS + "modalias"))
    return bool(shown) and platform.machine().lower().startswith(("aarch64", "arm"))


def read_text(path):
    """The words of a small file, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def cpu_name():
    if os.name == "nt":
        words = __import__("winreg")
        with words.OpenKey(words.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return words.QueryValueEx(key, "ProcessorNameString")[0].strip()
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def state(threads):
    """Time, what competed for it, clocks and temperatures. What this system does not tell is left out."""
    found: dict = {"time_ns": time.monotonic_ns(), "own_ns": time.process_time_ns(), "cores": cores()}
    found.update({"threads": threads} if threads else {})
    pressure = read_text("/proc/pressure/cpu").partition("\n")[0].rpartition("total=")[2]
    if pressure.isdigit():
        found["pressure_us"] = int(pressure)
    words = read_text("/proc/stat").partition("\n")[0].split()[1:9]
    if len(words) == 8 and hasattr(os, "sysconf"):
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        found["busy_ns"], found["steal_ns"] = (user + nice + system + irq + softirq) * tick, steal * tick
    clocks = map(read_text, glob.glob(CPUS + "cpu*/cpufreq/scaling_cur_freq"))
    found["clocks_khz"] = [int(word) for word in clocks if word.isdigit()]
    zones = temperatures()
    if zones:
        found["temperatures_c"] = zones
        found["throttle"] = sorted(name + " is hot" for name, degrees in zones.items() if degrees >= TRIPPED)
        for path in glob.glob("/sys/class/thermal/cooling_device*"):  # a fan is no brake
            if "freq" in read_text(path + "/type") and read_text(path + "/cur_state") not in ("", "0"):
                found["throttle"].append(read_text(path + "/type") + " is held down")
    return found


def temperatures():
    zones = {}
    for folder in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        words = read_text(folder + "/temp")
        if words.lstrip("-").isdigit() and int(words) > 0:
            zones[read_text(folder + "/type") or os.path.basename(folder)] = int(words) / 1000
    return zones


def memory():
    """Resident bytes of this process now and at most, where the system tells."""
    found = re.findall(r"^Vm(?:HWM|RSS):\s*(\d+) kB", read_text("/proc/self/status"), re.MULTILINE)
    return [int(now) * 1024 for now in reversed(found)] if len(found) == 2 else None


def held():
    """Of the model alone: what came since the process had its libraries."""
    base, resident, now = kept["base"], kept["resident"], memory()
    sizes = base and resident and now and {"average": resident[0] - base[0], "peak": now[1] - base[0]}
    return sizes and {name: max(0, size) for name, size in sizes.items()}


if __name__ == "__main__":
    main()
