"""Device files that others wrote: nothing in them becomes an option, a command or a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness.devices.remote.device_file import load_target
from harness.devices.remote.ssh import Ssh

from ..sshd import Server
from .folders import DEEP, ODD_FILES, odd_files, refused
from .test_suites import NINES

EXAMPLE = "{transport: ssh, host: board.local}"
SSH, ADB, LOCAL = {"transport": "ssh", "host": "h"}, {"transport": "adb", "serial": "s"}, {"transport": "local"}

VALUES = {
    "a key with a NUL": (SSH | {"key": "a\0b"}, "key"),
    "a key with a line break": (SSH | {"key": "a\nProxyCommand=id"}, "key"),
    "a key that is an option": (SSH | {"key": "-oProxyCommand=id"}, "key"),
    "a key of 5,000 letters": (SSH | {"key": "x" * 5000}, "key"),
    "a host that is an option": (SSH | {"host": "-oProxyCommand=touch PWNED"}, "host"),
    "a host with a line break": (SSH | {"host": "h\nid"}, "host"),
    "a host with a NUL": (SSH | {"host": "h\0"}, "host"),
    "a host of two words": (SSH | {"host": "h id"}, "host"),
    "a host that is a command": (SSH | {"host": "$(id)"}, "host"),
    "a user of two words": (SSH | {"user": "a b"}, "user"),
    "a key with a quotation mark": (SSH | {"key": 'a"b'}, "key"),
    "an option's name of two words": (SSH | {"options": {"A B": "x"}}, "ssh_config"),
    "a serial of two words": (ADB | {"serial": "s; id"}, "serial"),
    "a user that is an option": (SSH | {"user": "-l"}, "user"),
    "a user with an escape": (SSH | {"user": "\x1b[2J"}, "user"),
    "an option with a line break": (SSH | {"options": {"LogLevel": "QUIET\nProxyCommand=id"}}, "options"),
    "an option with a NUL": (SSH | {"options": {"LogLevel": "\0"}}, "options"),
    "an option's name with a line break": (SSH | {"options": {"A\nB": "x"}}, "options"),
    "an option's name that is one": (SSH | {"options": {"-oProxyCommand": "id"}}, "options"),
    "options that are a list": (SSH | {"options": ["ProxyCommand=id"]}, "options"),
    "an option that is an object": (SSH | {"options": {"LogLevel": {}}}, "options"),
    "a port of text": (SSH | {"port": "22"}, "port"),
    "a port that is true": (SSH | {"port": True}, "port"),
    "port 0": (SSH | {"port": 0}, "port"),
    "port 65536": (SSH | {"port": 65536}, "port"),
    "a serial that is an option": (ADB | {"serial": "-H evil"}, "serial"),
    "a serial with a NUL": (ADB | {"serial": "s\0"}, "serial"),
    "a serial with an escape": (ADB | {"serial": "\x1b[2J"}, "serial"),
    "a folder with a NUL": (LOCAL | {"folder": "/tmp/a\0b"}, "folder"),
    "a folder with a line break": (LOCAL | {"folder": "/tmp/a\nb"}, "folder"),
    "a folder that is an option": (LOCAL | {"folder": "--help"}, "folder"),
    "a relative folder": (LOCAL | {"folder": "../x"}, "folder"),
    "a python that is an option": (LOCAL | {"python": "-c"}, "python"),
    "a python with a line break": (LOCAL | {"python": "python3\nid"}, "python"),
    "a tool that is an option": (LOCAL | {"tools": {"trtexec": "--help"}}, "tools"),
    "a tool with a NUL": (LOCAL | {"tools": {"trtexec": "/a\0"}}, "tools"),
    "a tool's name with an escape": (LOCAL | {"tools": {"\x1b[2J": "/a"}}, "tools"),
    "a tool that is a list": (LOCAL | {"tools": {"trtexec": []}}, "tools"),
    "a chip in other digits": (LOCAL | {"soc": "\u0663"}, "soc"),
    "a chip of 5,000 digits": (LOCAL | {"soc": "1" * 5000}, "soc"),
    "an accelerator with a line break": (LOCAL | {"accelerator": "a\nb"}, "accelerator"),
    "a power mode with an escape": (LOCAL | {"power_mode": "\x1b]0;x\x07"}, "power_mode"),
    "an endless visit": (LOCAL | {"timeout_s": 1e300}, "timeout_s"),
    "a visit of no time": (LOCAL | {"timeout_s": 0}, "timeout_s"),
    "2**60 threads": (LOCAL | {"threads": 2**60}, "threads"),
    "threads that are true": (LOCAL | {"threads": True}, "threads"),
    "a workload that is none": (LOCAL | {"workloads": ["prefill:1x\n9"]}, "workloads"),
    "a transport with a NUL": ({"transport": "ssh\0"}, "transport"),
    "a field with an escape": (LOCAL | {"\x1b[2J": 1}, ""),
    "a list": ([1], "it"),
    "a number": (5, "it"),
    "null": (None, "it"),
}


@pytest.fixture
def board(tmp_path, monkeypatch):
    """The place of a device file, and the folder it lies in."""
    monkeypatch.setenv("HARNESS_DEVICES", str(tmp_path))
    return tmp_path / "board.yaml"


@pytest.mark.parametrize("fault", VALUES)
def test_a_value_of_a_device_file(board, fault):
    values, field = VALUES[fault]
    board.write_text(json.dumps(values))
    refused(lambda: load_target("board", EXAMPLE).connect().close(), board.parent, str(board), field, codes=(2,))


TEXTS = {
    "truncated": b"transport: [",
    "3,000 lists": b"[" * DEEP,
    "3,000 objects": b"{a: " * DEEP,
    "a port of 5,000 digits": b"{transport: ssh, host: h, port: " + b"9" * 5000 + b"}",
    "a date": b"{transport: ssh, host: 2020-01-01}",
    "binary text": b"{transport: ssh, host: !!binary aGVsbG8=}",
    "a set": b"{transport: local, workloads: !!set {a}}",
    "anchors": b"transport: local\n" + NINES.encode(),
    "within itself": b"&a {transport: local, tools: *a}",
    "a tag of Python": b"!!python/object/apply:os.system ['id']",
    "not UTF-8": b"transport: \xff",
    "no number": b"{transport: local, timeout_s: .nan}",
    "300,000 bytes": b"# " + b"x" * 300_000,
    "a NUL": b"transport: \0",
}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_device_file_that_is_none(board, fault):
    board.write_bytes(TEXTS[fault])
    refused(lambda: load_target("board", EXAMPLE), board.parent, str(board), codes=(2,))


@pytest.mark.parametrize("fault", ODD_FILES)
def test_something_else_in_the_place_of_a_device_file(board, fault):
    odd_files(board)[fault]()
    refused(lambda: load_target("board", EXAMPLE), board.parent, "board.yaml", codes=(2,))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".x", "", "a\nb", "a\0b", "-x", "x" * 300])
def test_a_name_of_a_device_stays_in_the_folder(board, monkeypatch, name):
    (board.parent / "inner").mkdir()
    (board.parent / "x.yaml").write_text("transport: local")
    monkeypatch.setenv("HARNESS_DEVICES", str(board.parent / "inner"))
    refused(lambda: load_target(name, EXAMPLE), board.parent, "cannot be the name of a device", codes=(2,))


CLIENTS = [
    {"key": "a\0b"},
    {"key": "a\nb"},
    {"key": 'a"b'},
    {"key": "-x"},
    {"options": {"A B": "x"}},
    {"options": {"": "x"}},
    {"options": {"A": "x\ny"}},
    {"options": {"A": "\0"}},
]


@pytest.fixture(scope="module")
def clients():
    """What a process prints that tries to make these clients and then ends."""
    code = f"""from harness.devices.remote.ssh import Ssh
for wrong in {CLIENTS!r}:
    try:
        Ssh("host", **wrong)
    except Exception as error:
        print(type(error).__name__)
    else:
        print("made")
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", range(len(CLIENTS)), ids=[str(wrong) for wrong in CLIENTS])
def test_a_client_that_cannot_be_leaves_no_traceback_when_python_ends(clients, number):
    assert clients.stdout.splitlines()[number] == "UsageError"
    assert clients.stderr == ""


def test_a_key_whose_path_has_blanks(tmp_path):
    """It is a key, not three words."""
    server = Server(tmp_path / "ssh")
    try:
        (tmp_path / "my own keys").mkdir()
        key = (server.home / "user").rename(tmp_path / "my own keys" / "key")
        client = Ssh(**server.words() | {"key": str(key)})
        assert client.run(["echo", "well"]).out.strip() == "well"
        client.close()
    finally:
        server.stop()
