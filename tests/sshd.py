"""A real OpenSSH server on loopback with keys of its own, thrown away afterwards."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness.devices.remote.ssh import Ssh

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Server:
    def __init__(self, home: Path) -> None:
        if SSHD is None:
            pytest.skip("no OpenSSH server is installed (apt install openssh-server)")
        self.home, self.port = home, free_port()
        home.mkdir(parents=True, exist_ok=True)
        for name in ("host", "user", "stranger"):
            made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
            subprocess.run(made, check=True, capture_output=True)
        (home / "authorized_keys").write_text((home / "user.pub").read_text())
        (home / "empty").mkdir()  # for who logs in: nothing of the tester's own shell start-up, such as pyenv's lock
        known = f"[127.0.0.1]:{self.port} {(home / 'host.pub').read_text()}"
        (home / "known_hosts").write_text(known)
        (home / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile {home}/pid\n"
            f"AuthorizedKeysFile {home}/authorized_keys\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
            "Subsystem sftp internal-sftp\nLogLevel ERROR\nPermitRootLogin yes\n"
            f"SetEnv HOME={home}/empty\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        words = [str(SSHD), "-D", "-e", "-f", str(self.home / "sshd_config")]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.skip("sshd did not start here")

    def stop(self) -> None:
        """The server and every connection to it: the host is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)  # nobody comes in meanwhile
            for child in children(self.process.pid):
                with suppress(ProcessLookupError):  # one that ended by itself
                    os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def words(self, key: str = "user", known: str = "known_hosts", port: int | None = None) -> dict:
        """What a device's file says of it."""
        return {
            "host": "127.0.0.1",
            "user": getpass.getuser(),
            "port": port or self.port,
            "key": str(self.home / key),
            "options": {"UserKnownHostsFile": str(self.home / known), "GlobalKnownHostsFile": "/dev/null"},
        }

    def client(self, **words) -> Ssh:
        return Ssh(**self.words(**words))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
