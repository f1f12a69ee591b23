"""A phone: models are timed by a program that lies on it, with the libraries it needs beside it."""

from __future__ import annotations

from collections.abc import Iterator

from harness.devices.remote import android
from harness.devices.remote.device import Look, Remote
from harness.errors import EnvironmentFault


class Phone(Remote):
    program = ""  # as the device's file has it among `tools`

    @property
    def binary(self) -> str:
        return self.target.tools.get(self.program, "")

    @property
    def beside(self) -> str:
        """Where the program and its libraries are."""
        return self.binary.rpartition("/")[0]

    def is_genuine(self) -> bool:
        """What adb does not reach is played by something else."""
        return self.target.transport == "adb" and super().is_genuine()

    def more_looks(self) -> Iterator[Look]:
        yield self.program, self._program
        yield "phone", self._phone

    def _program(self) -> str:
        if not self.binary:
            wanted = f"tools: {{{self.program}: /data/local/tmp/{self.program}}}"
            raise EnvironmentFault(f"the device's file names no {self.program}", f"push it, and name it: {wanted}")
        self.found["tool"] = android.usable(self.folder.transport, self.binary, self.where)
        return self.binary

    def _phone(self) -> str:
        self.found |= android.look(self.folder.transport)
        return android.words(self.found)
