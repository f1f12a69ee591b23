"""Devices that are other machines, through the commands: reached by SSH, and kept out of every table if not real."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import TimingPlan, Workload, plugins
from harness.api import Samples
from harness.devices.remote.folder import FOLDER_NAME
from harness.errors import HarnessError
from harness.latency import sustained
from harness.records.schema import digest, seal
from harness.records.store import Store

from ...forks import command
from ...sshd import Server, free_port

RUN = ("run", "--pruner", "magnitude", "--model", "tiny", "--device", "orin-cpu", "--workload", "prefill:1x16")
ARM = os.environ.get("HARNESS_AARCH64", "")
only_installed = pytest.mark.skipif(
    "orin-cpu" not in plugins.registry().specs["device"], reason="prune-harness-orin is not installed"
)

SIDE = f"{'0' * 64}.json.gz"  # the name of a file of samples


@pytest.fixture
def home(tmp_path):
    """The folders of a user: devices, runs, and what lies over there."""

    class Home:
        there = tmp_path / "there"
        runs = tmp_path / "runs"

        def __init__(self) -> None:
            self.env = {"HARNESS_DEVICES": str(tmp_path / "devices"), "HARNESS_RUNS": str(self.runs)}

        def is_at(self, **words) -> None:
            known = {"folder": str(self.there), "python": sys.executable, "timeout_s": 300, **words}
            (tmp_path / "devices").mkdir(exist_ok=True)
            (tmp_path / "devices" / "orin-cpu.yaml").write_text(json.dumps(known))

        def run(self, *words: str) -> tuple[int, dict]:
            done = command(*RUN, "--limit", "2", "--json", *words, **self.env)
            assert done.stdout, done.stderr
            return done.returncode, json.loads(done.stdout)

        def left(self) -> list[str]:
            return [name for name in os.listdir(self.there) if FOLDER_NAME.fullmatch(name)]

        def is_at_work(self, stage: str) -> bool:
            stages = [lease["stage"] for lease in Store(self.runs).leases().values()]
            return any(found.startswith(stage) for found in stages) and self.there.is_dir() and bool(self.left())

        def cuts(self) -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in (self.runs / "cuts").rglob("*") if path.is_file()}

    return Home()


def once(come: Callable[[], object], work: Callable[[], None]) -> threading.Thread:
    """Do something when a run has come so far."""

    def wait() -> None:
        while not come():
            time.sleep(0.05)
        work()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("ssh"))
    yield found
    found.stop()


@only_installed
def test_what_is_no_device_gets_into_no_table(home, tmp_path):
    """Whatever its record says, as long as its machine is in it."""
    home.is_at(transport="local")
    _, record = home.run("--ratio", "0.3", "--sustain", "1")
    (latency,) = record["latency"].values()
    assert latency["provenance"] == "simulated"
    assert latency["sustained"]["seconds"] >= 1
    assert home.left() == []

    store = Store(home.runs)
    (found,) = store.records()  # as a calm machine would have it
    store.save_record(found.model_copy(update={"status": "ok", "reason": "", "gates": []}).sealed())
    path = next((home.runs / "records").glob("*.json"))
    words = json.loads(path.read_text())
    assert words["environment"]["device"]["provenance"] == "simulated"
    assert published(words, tmp_path / "as it is") == (0, "simulated, not measured on a device")
    words["latency"]["prefill:1x16"]["provenance"] = words["environment"]["device"]["provenance"] = "emulator"
    assert published(words, tmp_path / "emulated") == (0, "emulator, not measured on a device")

    words["latency"]["prefill:1x16"]["provenance"] = "device"
    words["environment"]["device"]["provenance"] = "simulated"
    path.write_text(json.dumps(words))
    assert "was edited since it was written" in refused(home)
    path.write_text(json.dumps(sealed(words)))
    assert "device in the record, but orin-cpu is simulated" in refused(home)
    assert published(words, tmp_path / "forged")[0] == 0
    del words["environment"]["device"]["provenance"]  # what a real one would say
    assert published(words, tmp_path / "real") == (1, "")


def sealed(words: dict) -> dict:
    """As somebody would who knows how records are sealed."""
    words["digest"] = digest(words)
    words["seal"] = seal(words)
    return words


def published(words: dict, boards: Path) -> tuple[int, str]:
    """On how many pages its row stands, and what the index says of it."""
    results = boards / "results" / "anyway"
    results.mkdir(parents=True)
    (results / f"{words['id']}.json").write_text(json.dumps(sealed(words)))
    assert command("leaderboard", str(boards)).returncode == 0
    index = (boards / "README.md").read_text()
    pages = [page for page in boards.rglob("*.md") if page.parent != boards and "`magnitude`" in page.read_text()]
    said = re.search(r"\w+, not measured on a device", index)
    return len(pages), said[0] if said else ""


def refused(home) -> str:
    judged = command("validate", **home.env)
    assert judged.returncode == 1
    return judged.stdout


@only_installed
@pytest.mark.slow
def test_a_budget_is_met_over_ssh(home, server):
    home.is_at(transport="ssh", **server.words())
    code, record = home.run("--latency", "0.7x")
    assert (code, record["status"]) in ((0, "ok"), (1, "unstable"))
    assert record["budget"]["achieved"] < 0.75
    assert record["environment"]["device"]["kind"] == "orin-cpu"
    assert home.left() == []


@only_installed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["match", "time"])
def test_a_host_that_goes_in_the_middle_of_a_run_is_waited_for_by_the_next(home, server, stage):
    home.is_at(transport="ssh", **server.words())
    going = once(lambda: home.is_at_work(stage), server.stop)
    done = command(*RUN, "--limit", "2", "--latency", "0.7x", **home.env)
    assert done.returncode == 3
    assert re.search("was lost|has no SSH server|closed the connection", done.stderr + done.stdout)
    going.join(timeout=30)
    assert not going.is_alive()
    made = home.cuts()
    assert bool(made) == (stage == "time")
    server.start()
    _, record = home.run("--latency", "0.7x")
    assert record["status"] in ("ok", "unstable")
    assert made.items() <= home.cuts().items()  # what was done is not done again
    assert home.left() == []


@only_installed
def test_a_devices_file_may_say_what_is_timed(home):
    asked = ("run", "--pruner", "magnitude", "--model", "tiny", "--device", "orin-cpu", "--dry-run", "--json")
    home.is_at(transport="local", workloads=["decode:1x16", "prefill:1x16"])
    for more, wanted in ((), ["decode:1x16", "prefill:1x16"]), (("--workload", "prefill:1x8"), ["prefill:1x8"]):
        done = command(*asked, *more, **home.env)
        assert json.loads(done.stdout)["spec"]["workloads"] == wanted, done.stderr
    home.is_at(transport="local", workloads=["fill:16"])
    done = command(*asked, **home.env)
    assert done.returncode == 3
    assert "orin-cpu.yaml: workloads: " in done.stderr
    assert "fill:16" in done.stderr


@only_installed
def test_a_machine_that_is_not_there_is_exit_3(home):
    home.is_at(transport="ssh", host="127.0.0.1", port=free_port())
    done = command(*RUN, "--ratio", "0.3", **home.env)
    assert done.returncode == 3
    assert "has no SSH server at this port" in done.stderr
    done = command("doctor", "orin-cpu", **home.env)
    assert done.returncode == 3
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "missing"]
    assert "start sshd there" in done.stdout


@only_installed
@pytest.mark.slow
@pytest.mark.skipif(not ARM, reason="HARNESS_AARCH64 names no folder made by tests/aarch64.sh")
def test_another_processor_is_emulated_and_says_so(home):
    """The agent itself, and ONNX Runtime's own wheel for it, under qemu."""
    home.is_at(transport="local", python=f"{ARM}/python")
    device = plugins.registry().device("orin-cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_DEVICES", home.env["HARNESS_DEVICES"])
        info = device.probe()
    assert info.usable, info.reason
    assert (info.provenance, info.fingerprint["machine"]) == ("emulator", "aarch64")
    handle = device.prepare(decoder(), Workload.parse("prefill:1x16"))
    found = device.measure(handle, TimingPlan(warmup=1, iterations=3))
    assert len(found.wall_ns) == 3
    assert found.before["fallback"] == []
    outputs = f"{device.folder.path}/out.npz"
    device.agent.request("run", model=handle.model, outputs=outputs)
    import numpy
    import torch

    with numpy.load(outputs) as known, torch.no_grad():
        wanted = decoder()(torch.ones(1, 16, dtype=torch.long), logits_to_keep=1).logits
        assert numpy.abs(known["0"] - wanted.numpy()).max() < 1e-4
    device.close(handle)
    device.folder.end()
    assert home.left() == []


def decoder():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


class Warming:
    """Ten per cent slower and five degrees warmer with every visit."""

    def __init__(self) -> None:
        self.visits = 0
        self.closed = False

    def measure(self, plan):
        now = {"temperatures_c": {"soc": 40.0 + 5 * self.visits}, "throttle": ["soc is hot"] if self.visits > 3 else []}
        self.visits += 1
        ns = int(1e6 * 1.1 ** (self.visits - 1))
        return Samples(wall_ns=[ns] * 3, before=now, after={**now, "temperatures_c": {"soc": 40.0 + 5 * self.visits}})

    def close(self):
        self.closed = True


def test_work_that_lasts_is_told_beside_its_first_seconds(monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("harness.latency.sustained.time.monotonic", lambda: next(clock))
    session, kept = Warming(), {}
    found = sustained.measure(lambda: session, 20, "wall", lambda words: kept.update(words) or SIDE)
    assert session.closed
    assert found.first_ns == 1e6
    assert found.last_ns == pytest.approx(1e6 * 1.1 ** (session.visits - 1), rel=0.1)
    assert found.temperatures_c == {"soc": (40.0, 40.0 + 5 * session.visits)}
    assert found.throttle == ["soc is hot"]
    again = sustained.from_visits([Samples(**visit) for visit in kept["visits"]], found.seconds, "wall", SIDE)
    assert again == found


def test_a_session_that_breaks_is_closed():
    class Broken(Warming):
        def measure(self, plan):
            raise HarnessError("gone")

    session = Broken()
    with pytest.raises(HarnessError):
        sustained.measure(lambda: session, 20, "wall", lambda words: SIDE)
    assert session.closed


@pytest.mark.parametrize("seconds", ["0.5", "-3", "99999"])
def test_seconds_that_sustain_nothing_are_refused(seconds, tmp_path):
    done = command("run", "--pruner", "random", "--model", "tiny", "--sustain", seconds, HARNESS_RUNS=str(tmp_path))
    assert done.returncode == 2
    assert "give from 1 to 7200" in done.stderr


def test_paths_of_windows_are_told_to_sftp_its_way():
    from harness.devices.remote.ssh import sftp_path

    assert sftp_path("C:/Users/me/harness-x/model.onnx") == "/C:/Users/me/harness-x/model.onnx"
    assert sftp_path("/tmp/harness-x") == "/tmp/harness-x"
    assert Path(sftp_path("/tmp")).is_absolute()
