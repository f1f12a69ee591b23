"""Files and commands reach another machine by a real SSH server, whatever their names are and whatever breaks."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness.api import TimingPlan, Workload
from harness.devices.remote import agent as agent_file
from harness.devices.remote import shells
from harness.devices.remote.adb import Adb
from harness.devices.remote.agent_client import Agent
from harness.devices.remote.folder import FOLDER_NAME, Folder
from harness.devices.remote.local import Local
from harness.devices.remote.ort_device import OnnxRuntime
from harness.devices.remote.shells import split_exit_code
from harness.devices.remote.ssh import Ssh
from harness.devices.remote.transport import CommandResult, ConnectionLost, TimedOut, TransferFailed, Unreachable
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.models.saved.contents import file_sha256
from harness.system import host

from ...adbd import Phone
from ...sshd import Server

REAL = {"ssh": "server", "adb": "phone", "adb-crlf": "old_phone"}
HOSTILE = ["a b", "it's", 'say "x"', "$(touch PWNED)", "; touch PWNED", "*", "[ab]?", "-rf", "a\\b", "ü", "`id`", "#"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("ssh"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    found = Phone(tmp_path_factory.mktemp("adb"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def old_phone(tmp_path_factory):
    found = Phone(tmp_path_factory.mktemp("adb"), crlf=True)
    yield found
    found.close()


@pytest.fixture(params=["local", "local-python", *REAL, "ssh-python"])
def transport(request):
    kind, python, _ = request.param.partition("-python")
    shell = shells.Python(sys.executable) if python else None
    found = Local(shell) if kind == "local" else request.getfixturevalue(REAL[kind]).client()
    found.shell = shell or found.shell
    yield found
    found.close()


@pytest.fixture
def folder(transport, tmp_path):
    found = Folder(transport, str(tmp_path / "there"))
    yield found
    found.close()


def left(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if FOLDER_NAME.fullmatch(name)] if root.exists() else []


# --- commands and files ---


def test_exit_codes_and_outputs_come_back(transport):
    done = transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    together = CommandResult(3, "out\nerr\n", "")  # a phone of old has one stream for both
    assert done == (together if isinstance(transport, Adb) else CommandResult(3, "out\n", "err\n"))
    assert transport.run(["true"]).code == 0
    assert transport.run(["no-such-program"]).code == 127
    assert transport.run(["printf", "no newline"]).out == "no newline"
    assert transport.run(["sh", "-c", "kill -9 $$"]).code == 137


def test_words_arrive_as_they_are(transport):
    done = transport.run(["printf", "%s\\n", *HOSTILE])
    assert done.out.splitlines() == HOSTILE


def test_an_exit_code_is_not_taken_from_what_a_command_prints():
    assert split_exit_code("text\n__HARNESS_ENDED_WITH_0\nmore\n__HARNESS_ENDED_WITH_4\n") == (
        4,
        "text\n__HARNESS_ENDED_WITH_0\nmore",
    )
    assert split_exit_code("text\r\n\r\n__HARNESS_ENDED_WITH_4\r\n") == (4, "text\n")
    assert split_exit_code("text") == (-1, "text")
    assert (
        subprocess.run(shells.Posix().argv(["false"]), capture_output=True, text=True).stdout.split()[-1].endswith("_1")
    )


@pytest.mark.parametrize("by", ["server", "phone"])
@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_any_name_get_there_and_back(request, tmp_path, name, by):
    source, there, back = tmp_path / name, tmp_path / f"there {name}", tmp_path / "back"
    source.write_bytes(b"\0\xff" * 1000)
    machine = request.getfixturevalue(by)
    client = machine.client()
    try:
        client.push(source, str(there))
        client.pull(str(there), back)
    finally:
        client.close()
    assert there.read_bytes() == back.read_bytes() == source.read_bytes()
    begins = machine.home / "empty" if by == "server" else Path.cwd()  # where a command begins over there
    assert not [at for at in (tmp_path, Path.cwd(), begins) if (at / "PWNED").exists()]


def test_a_command_that_takes_too_long_is_ended(transport):
    start = time.monotonic()
    with pytest.raises(TimedOut, match=r"no end after 1 s"):
        transport.run(["sleep", "60.25"], timeout_s=1)
    assert time.monotonic() - start < 20
    left = [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[-2:] == ["sleep", "60.25"]]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


# --- who may, and who is there ---


def test_a_wrong_key_is_said_so(server):
    client = server.client(key="stranger")
    with pytest.raises(Unreachable, match=r"refuses to log .* in") as error:
        client.run(["true"])
    assert "authorized_keys" in error.value.remedy
    assert error.value.exit_code == 3
    with pytest.raises(Unreachable, match=r"refuses to log .* in"):
        client.push(Path(__file__), "/tmp/x")
    client.close()


def test_an_unknown_host_is_not_trusted(server):
    client = server.client(known="nobody")
    with pytest.raises(Unreachable, match="is not a known host") as error:
        client.run(["true"])
    assert "ssh 127.0.0.1 once" in error.value.remedy
    client.close()


def test_nobody_there_is_said_so(server):
    from ...sshd import free_port

    client = server.client(port=free_port())
    with pytest.raises(Unreachable, match="has no SSH server at this port"):
        client.run(["true"])
    client.close()
    client = Ssh("no-such-host.invalid")
    with pytest.raises(Unreachable, match=r"has no known address|cannot be reached"):
        client.run(["true"])
    client.close()


@pytest.mark.parametrize("name", ["-oProxyCommand=touch PWNED", "a b", "$(id)", "", "a;b", "a\nb"])
def test_names_that_are_options_or_commands_are_refused(name):
    for make in (lambda: Ssh(name), lambda: Ssh("host", user=name or "a b"), lambda: Adb(name)):
        with pytest.raises(UsageError):
            make()


def test_a_host_that_goes_in_the_middle(tmp_path):
    server = Server(tmp_path / "ssh")
    client = server.client()
    folder = Folder(client, str(tmp_path / "there"))
    made = folder.path
    threading.Timer(1, server.stop).start()
    with pytest.raises(ConnectionLost, match=r"the connection to .* was lost") as error:
        client.run(["sleep", "60"], timeout_s=30)
    assert "continues" in error.value.remedy
    folder.close()  # which cannot reach it any more, and says nothing more about it
    assert left(tmp_path / "there") == [Path(made).name]
    server.start()
    assert client.run(["true"]).code == 0  # the same client finds its way back
    again = Folder(server.client(), str(tmp_path / "there"))
    os.rename(made, swept := made.replace(f"-{os.getpid()}-", f"-{dead()}-"))
    assert Path(again.path).is_dir()
    assert not Path(swept).exists()  # of a process that is gone
    again.close()
    assert left(tmp_path / "there") == []
    again.transport.close()
    server.stop()


def test_a_phone_that_is_unplugged_in_the_middle(tmp_path):
    phone = Phone(tmp_path / "adb")
    client = phone.client()
    assert client.run(["true"]).code == 0
    threading.Timer(1, phone.unplug).start()
    with pytest.raises(ConnectionLost, match=r"the connection to .* was lost"):
        client.run(["sleep", "60"], timeout_s=30)
    with pytest.raises(Unreachable, match=r"is not connected|is offline"):
        client.run(["true"])
    phone.close()


def test_a_phone_by_its_address_is_connected_to(tmp_path):
    phone = Phone(tmp_path / "adb")
    client = phone.client()
    for _ in range(2):
        phone.adb("disconnect", phone.serial)
        assert client.run(["true"]).code == 0
    phone.close()


def test_a_phone_that_is_not_there_is_said_so(phone):
    with pytest.raises(Unreachable, match="is not connected") as error:
        Adb("R5CW12345", phone.server_port).run(["true"])
    assert "adb devices" in error.value.remedy
    with pytest.raises(Unreachable, match="is not connected"):
        Adb("R5CW12345", phone.server_port).push(Path(__file__), "/tmp/x")


def dead() -> int:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return int(done.stdout)


# --- a folder of ours ---


def test_nothing_is_left_behind(folder, tmp_path):
    there = folder.push(Path(__file__), "file.py")
    assert Path(there).read_bytes() == Path(__file__).read_bytes()
    assert oct(Path(folder.path).stat().st_mode)[-3:] == "700"
    folder.remove("file.py")
    assert not Path(there).exists()
    folder.push(Path(__file__), "file.py")
    other = tmp_path / "there" / "of somebody else"
    other.mkdir()
    folder.close()
    assert os.listdir(tmp_path / "there") == [other.name]


def test_a_full_disk_is_said_so_and_the_part_is_gone(server, tmp_path):
    client = server.client()
    folder = Folder(client, str(tmp_path / "there"))
    Path(folder.path, "model.onnx").symlink_to("/dev/full")
    with pytest.raises(TransferFailed, match="put failed"):
        folder.push(Path(__file__), "model.onnx")
    assert os.listdir(folder.path) == []
    folder.free = lambda: 1000
    with pytest.raises(EnvironmentFault, match=r"has 0 MB free, test_transports.py takes 0 MB"):
        folder.push(Path(__file__), "model.onnx")
    folder.close()
    client.close()


def test_free_space_is_what_the_system_says(folder):
    told = os.statvfs(folder.path)
    assert folder.free() == pytest.approx(told.f_bavail * told.f_frsize, rel=0.05)


def test_a_folder_that_cannot_be_made_is_said_so(transport):
    with pytest.raises(EnvironmentFault, match="cannot make /proc/no/harness"):
        Folder(transport, "/proc/no").push(Path(__file__), "file.py")


# --- the agent ---


def test_the_agent_needs_little():
    text = Path(agent_file.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    top = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert top <= set(sys.stdlib_module_names)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]


def test_it_counts_as_this_machine_does():
    assert set(host.counters()) - {"load_1m"} <= set(agent_file.state(1))


def test_a_probe_comes_back(folder):
    found = Agent(folder, sys.executable).request("probe", packages=["json", "no_such_package"])
    assert found["cores"] == host.cores()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"] == {"json": json.__version__}
    assert found["missing"] == {"no_such_package": "ModuleNotFoundError: No module named 'no_such_package'"}
    assert not found["emulated"]


def test_what_goes_wrong_there_is_told_here(folder):
    agent = Agent(folder, sys.executable)
    with pytest.raises(EnvironmentFault, match="cannot hash what it was sent"):
        folder.hashes(["/no/model.onnx"])
    with pytest.raises(HarnessError, match="KeyError: 'nonsense'"):
        agent.request("nonsense")
    with pytest.raises(EnvironmentFault, match="has no python9"):
        Agent(folder, "python9").request("probe")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A graph of one matrix product, the same size in and out."""
    onnx = pytest.importorskip("onnx", reason="prune-harness[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="prune-harness[onnx] is not installed")
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(numpy.eye(8, dtype=numpy.float32) * 2, "w")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


PLAN = {"warmup": 1, "iterations": 5, "seconds": 0, "most": 100}


def test_a_model_is_timed_there(folder, model):
    agent = Agent(folder, sys.executable)
    there = folder.push(model, "model.onnx")
    process = agent.start()
    opened = process.request("open", model=there)
    found = process.request("time", **PLAN)
    assert len(process.request("time", **PLAN)["wall_ns"]) == 5
    process.close()
    assert len(found["wall_ns"]) == len(found["cpu_ns"]) == 5
    assert min(found["wall_ns"]) > 0
    assert opened["parts"] == 1
    assert opened["fallback"] == found["before"]["fallback"] == []
    assert found["after"]["time_ns"] > found["before"]["time_ns"]
    assert found["memory"]["peak"] >= 0
    assert folder.hashes([there]) == [file_sha256(model)]


def test_what_it_computes_comes_back(folder, model, tmp_path):
    import numpy

    agent = Agent(folder, sys.executable)
    there = folder.push(model, "model.onnx")
    given = numpy.arange(8, dtype=numpy.float32)[None]
    numpy.savez(tmp_path / "in.npz", x=given)
    inputs, outputs = folder.push(tmp_path / "in.npz", "in.npz"), f"{folder.path}/out.npz"
    found = agent.request("run", model=there, inputs=inputs, outputs=outputs)
    folder.transport.pull(outputs, tmp_path / "out.npz")
    with numpy.load(tmp_path / "out.npz") as known:
        assert found["outputs"] == ["y"]
        numpy.testing.assert_array_equal(known["0"], given * 2)


def running(path: str) -> list[psutil.Process]:
    """The agents that work in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0] == sys.executable and any(word.startswith(path) for word in words):
            found.append(process)
    return found


def at_work(path: str) -> psutil.Process:
    for _ in range(400):
        if found := running(path):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no agent is at work")


def test_an_agent_that_is_killed_is_told_and_leaves_nothing(folder, model, tmp_path):
    agent = Agent(folder, sys.executable)
    there = folder.push(model, "model.onnx")
    long = {**PLAN, "seconds": 600, "most": 10**9}
    killer = threading.Thread(target=lambda: (time.sleep(1), at_work(folder.path).kill()))
    process = agent.start()
    process.request("open", model=there)
    killer.start()
    with pytest.raises(HarnessError, match="was ended by SIGKILL"):
        process.request("time", **long)
    killer.join()
    with pytest.raises(HarnessError, match="was ended by SIGKILL"):
        process.request("time", **PLAN)  # it is gone, and says so again
    process = agent.start()
    process.request("open", model=there)
    assert len(process.request("time", **PLAN)["wall_ns"]) == 5
    process.close()
    folder.close()
    assert left(tmp_path / "there") == []


def test_an_agent_nobody_waits_for_any_more_ends(folder, model):
    agent = Agent(folder, sys.executable)
    there = folder.push(model, "model.onnx")
    process = agent.start()
    process.request("open", model=there)
    with pytest.raises(TimedOut):
        process.request("time", 3, **{**PLAN, "seconds": 600, "most": 10**9})
    _, alive = psutil.wait_procs(running(folder.path), timeout=20)
    assert alive == []


# --- a device that is another machine ---


class Board(OnnxRuntime):
    name = "board"


@pytest.fixture(params=["local", "ssh", "ssh-windows"])
def board(request, tmp_path, monkeypatch):
    transport, _, system = request.param.partition("-")
    words = {"transport": transport, "folder": str(tmp_path / "there"), "python": sys.executable}
    words |= {"system": system} if system else {}
    if transport == "ssh":
        words |= request.getfixturevalue("server").words()
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    (tmp_path / "board.yaml").write_text(json.dumps(words))
    found = Board()
    yield found
    found.folder.end()
    assert left(tmp_path / "there") == []


def test_a_model_is_exported_sent_and_timed(board, tmp_path):
    pytest.importorskip("onnxscript", reason="prune-harness[onnx] is not installed")
    info = board.probe()
    assert info.usable, info.reason
    assert info.fingerprint["threads"] == 1
    assert info.fingerprint["onnxruntime"]
    model = transformers_model()
    for workload in ("prefill:1x16", "decode:1x16"):
        handle = board.prepare(model, Workload.parse(workload))
        found = board.measure(handle, TimingPlan(warmup=1, iterations=3))
        assert len(found.wall_ns) == len(found.cpu_ns) == 3
        assert found.before["fallback"] == []
        assert sorted(os.listdir(Path(board.folder.path) / handle.name)) == ["model.onnx", "model.onnx.data"]
        board.close(handle)
        board.close(handle)
        with pytest.raises(HarnessError, match="this handle is closed"):
            board.measure(handle, TimingPlan())
    assert [name for name in os.listdir(board.folder.path) if name != "agent.py"] == []


def transformers_model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no file that says where board is"),
        ("transport: [", "is not YAML"),
        ("transport: carrier-pigeon", "transport"),
        ("transport: ssh", "transport ssh needs host"),
        ("{transport: local, folder: here}", "folder here is not an absolute path"),
        ("{transport: local, hots: x}", "hots"),
        ("{transport: ssh, host: '-oProxyCommand=id'}", "begins with a dash"),
        ("{transport: local, python: python9}", "has no python9"),
        ("{transport: adb, serial: nobody, server_port: 1}", ""),
    ],
)
def test_a_device_that_cannot_be_used_says_why(tmp_path, monkeypatch, text, told):
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    if text is not None:
        (tmp_path / "board.yaml").write_text(text)
    info = Board().probe()
    assert not info.usable
    assert told in info.reason
    assert "\n" not in info.reason
