"""The base class of phones: models are timed by a program on the phone, with its libraries in the same folder."""

from __future__ import annotations

from collections.abc import Iterator

from harness.devices.remote import android
from harness.devices.remote.device import Remote, StepCheck
from harness.errors import EnvironmentFault

__all__ = ["Phone"]


class Phone(Remote):
    program = ""  # its name among the `tools` of the device file

    @property
    def binary(self) -> str:
        return self.target.tools.get(self.program, "")

    @property
    def program_folder(self) -> str:
        """The remote folder of the program and its libraries."""
        return self.binary.rpartition("/")[0]

    def is_genuine(self) -> bool:
        """A phone is reached by adb; whatever is not only stands in for one."""
        return self.target.transport == "adb" and super().is_genuine()

    def more_steps(self) -> Iterator[StepCheck]:
        yield self.program, self._program
        yield "phone", self._phone

    def _program(self) -> str:
        if not self.binary:
            entry = f"tools: {{{self.program}: /data/local/tmp/{self.program}}}"
            raise EnvironmentFault(
                f"the device's file names no {self.program}", f"push it, and add to the file: {entry}"
            )
        self.facts["tool"] = android.check_program(self.folder.transport, self.binary, self.machine)
        return self.binary

    def _phone(self) -> str:
        self.facts |= android.probe(self.folder.transport)
        return android.describe(self.facts)
