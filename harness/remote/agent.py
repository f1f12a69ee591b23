"""What runs on the other machine: one file, Python 3.8 or newer, and ONNX Runtime. harness pushes it and takes it away.

    python3 agent.py REQUEST.json

A request is one JSON object; the answer is the last line of stdout, `HARNESS_ANSWER {...}`, with the request's nonce.
It ends when its stdin does: nobody waits for the answer any more.

    do        probe: versions, free space, sensors.  time: passes of a model.  run: one pass, outputs to a file
              hash: of files, each with its sha256.
    model     a file that ONNX Runtime opens
    provider  name and options of an execution provider; a plug-in's library, if it is one; whether the CPU may help out
    threads, warmup, iterations, seconds, most
    inputs    an .npz of them; without it tokens are ones, and what else there is small numbers
    outputs   where the .npz of them goes
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import sys
import threading
import time

ANSWER = "HARNESS_ANSWER "


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    threading.Thread(target=leave_with_stdin, daemon=True).start()
    answer = {"nonce": request["nonce"], "agent": 1}
    try:
        answer.update(WORK[request["do"]](request))
    except Exception as error:  # whatever it is, the one who asked wants to know
        answer.update(error=type(error).__name__, said=str(error).strip()[:2000])
    print("\n" + ANSWER + json.dumps(answer), flush=True)


def leave_with_stdin():
    while os.read(0, 4096):
        pass
    os._exit(9)


# --- what it is asked for ---


def probe(request):
    found: dict = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    found.update(model=told("/proc/device-tree/model") or cpu_name(), cores=cores(), state=state(0))
    found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    found["governors"] = sorted(set(filter(None, map(told, glob.glob(CPUS + "cpufreq/scaling_governor")))))
    for name in ("onnxruntime", "numpy"):
        try:
            found[name] = __import__(name).__version__
        except Exception as error:
            found[name + "_missing"] = type(error).__name__ + ": " + str(error).strip()[:300]
    if "onnxruntime" in found:
        found["providers"] = __import__("onnxruntime").get_available_providers()
    return found


def measure(request):
    session, inputs, told = opened(request)
    run = bound(session, inputs)
    resident = memory()
    threads = request.get("threads") or 1
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
    for side in (before, after):
        side["fallback"] = told["fallback"]
    return dict(told, wall_ns=wall, cpu_ns=cpu, before=before, after=after, memory=held(told["base"], resident))


def once(request):
    import numpy

    session, inputs, told = opened(request)
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, inputs)
    numpy.savez(request["outputs"], **{str(at): value for at, value in enumerate(found)})
    return dict(told, outputs=names)


def hashed(request):
    found = {}
    for path in request["files"]:
        sha256 = hashlib.sha256()
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                sha256.update(part)
        found[path] = sha256.hexdigest()
    return {"sha256": found}


WORK = {"probe": probe, "hash": hashed, "time": measure, "run": once}


# --- ONNX Runtime ---


def opened(request):
    """A session, its inputs, and what is to be known of both."""
    import onnxruntime

    base, start = memory(), time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request.get("threads") or 1, 1
    options.log_severity_level = 3
    entries = {  # a waiting thread that spins is counted as CPU time
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.record_ep_graph_assignment_info": "1",
    }
    entries.update(request.get("entries") or {})
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    provider = request.get("provider") or {"name": "CPUExecutionProvider"}
    if provider.get("library"):
        session = plugged(onnxruntime, provider, options, request["model"])
    else:
        known = [(provider["name"], provider.get("options") or {})]
        session = onnxruntime.InferenceSession(request["model"], options, providers=known)
    ran = placed(session)
    told = {
        "runtime": "onnxruntime " + onnxruntime.__version__,
        "providers": ran,
        "fallback": [name for name in ran if name != provider["name"]],
        "load_s": time.perf_counter() - start,
        "base": base,
    }
    return session, examples(session, request), told


def plugged(onnxruntime, provider, options, model):
    """An execution provider that comes as a library of its own."""
    library = provider["library"]
    if not os.path.exists(library):
        library = __import__(library).get_library_path()
    onnxruntime.register_execution_provider_library(provider["name"], library)
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider["name"]]
    if not found:
        raise RuntimeError("no device for " + provider["name"])
    options.add_provider_for_devices(found[:1], provider.get("options") or {})
    return onnxruntime.InferenceSession(model, options)


def placed(session):
    """The execution providers that nodes were given to; those that might have been, where it is too old to tell."""
    try:
        return sorted({part.ep_name for part in session.get_provider_graph_assignment_info()})
    except AttributeError:
        return list(session.get_providers())[:1]


def examples(session, request):
    import numpy

    if request.get("inputs"):
        with numpy.load(request["inputs"]) as known:
            return {name: known[name] for name in known.files}
    kinds = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}
    found = {}
    for value in session.get_inputs():
        if not all(isinstance(size, int) for size in value.shape):
            raise ValueError("input " + value.name + " has no fixed shape")
        if value.type in ("tensor(int64)", "tensor(int32)"):
            found[value.name] = numpy.ones(value.shape, value.type[7:-1])
        elif value.type in kinds:
            random = numpy.random.default_rng(0).standard_normal(value.shape)
            found[value.name] = random.astype(kinds[value.type])
        else:
            raise ValueError("input " + value.name + " is " + value.type)
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


# --- the machine ---

CPUS = "/sys/devices/system/cpu/cpu*/"
TRIPPED = 95.0  # degrees at which phones and boards hold their clocks down


def told(path):
    """The words of a small file, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def cpu_name():
    for line in told("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def state(threads):
    """Time, what competed for it, clocks and temperatures. What this system does not tell is left out."""
    found = {"time_ns": time.monotonic_ns(), "own_ns": time.process_time_ns(), "cores": cores()}
    if threads:
        found["threads"] = threads
    pressure = told("/proc/pressure/cpu").partition("\n")[0].rpartition("total=")[2]
    if pressure.isdigit():
        found["pressure_us"] = int(pressure)
    words = told("/proc/stat").partition("\n")[0].split()[1:9]
    if len(words) == 8 and hasattr(os, "sysconf"):
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
        tick = 10**9 // os.sysconf("SC_CLK_TCK")
        found["busy_ns"], found["steal_ns"] = (user + nice + system + irq + softirq) * tick, steal * tick
    clocks = [int(word) for word in map(told, glob.glob(CPUS + "cpufreq/scaling_cur_freq")) if word.isdigit()]
    if clocks:
        found["clocks_khz"] = clocks
    zones = temperatures()
    if zones:
        found["temperatures_c"] = zones
        found["throttle"] = sorted(name + " is hot" for name, degrees in zones.items() if degrees >= TRIPPED)
    return found


def temperatures():
    zones = {}
    for folder in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        words = told(folder + "/temp")
        if words.lstrip("-").isdigit() and int(words) > 0:
            zones[told(folder + "/type") or os.path.basename(folder)] = int(words) / 1000
    return zones


def memory():
    """Resident bytes of this process now and at most, where the system tells."""
    found = {}
    for line in told("/proc/self/status").splitlines():
        if line.startswith(("VmRSS", "VmHWM")):
            found[line[:5]] = int(line.split()[1]) * 1024
    return [found["VmRSS"], found["VmHWM"]] if len(found) == 2 else None


def held(base, resident):
    """Of the model alone: what came since the process had its libraries."""
    now = memory()
    if not (base and resident and now):
        return None
    return {"average": max(0, resident[0] - base[0]), "peak": max(0, now[1] - base[0])}


if __name__ == "__main__":
    main()
