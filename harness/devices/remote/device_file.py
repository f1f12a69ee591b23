"""Reads device files: YAML files in which the user says how a remote device is reached, one per device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_config_dir
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.api import Workload
from harness.devices.remote import ssh
from harness.devices.remote.adb import SERIAL, Adb
from harness.devices.remote.folder import ABSOLUTE
from harness.devices.remote.local import Local
from harness.devices.remote.shells import Python, Shell
from harness.devices.remote.transport import Transport
from harness.devices.remote.values import plain_value
from harness.errors import EnvironmentFault, UsageError, one_line
from harness.system import reading
from harness.system.paths import plain_name

__all__ = ["Target"]

REQUIRED_FIELD = {"ssh": "host", "adb": "serial", "local": None}
TRANSPORT_FIELDS = {  # fields that only one transport uses
    "ssh": {"host", "user", "port", "key", "options"},
    "adb": {"serial", "server_port"},
    "local": set(),
}


class Target(BaseModel):
    """The content of a device file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transport: Literal["ssh", "adb", "local"]
    host: str = Field("", description="for ssh: a name, an address, or a host of ~/.ssh/config")
    user: str = ""
    port: StrictInt | None = Field(None, ge=1, le=65535)
    key: str = Field(
        "", description="for ssh: a private key; without it, the keys of ~/.ssh/config and of the agent are used"
    )
    options: dict[str, str] = Field({}, description="for ssh: further options of ssh_config")
    serial: str = Field("", description="for adb: the serial that `adb devices` lists")
    server_port: StrictInt | None = Field(
        None, ge=1, le=65535, description="for adb: the port of a server other than the default one"
    )
    system: Literal["posix", "windows"] = Field(
        "posix", description="commands run in a shell on posix, by Python on windows"
    )
    folder: str = Field("", description="an absolute remote path for pushed files; without it, the temporary folder")
    python: str = Field("python3", description="the remote Python that has onnxruntime and numpy")
    threads: StrictInt = Field(1, ge=1, le=4096)
    clock: Literal["", "wall", "cpu", "device"] = Field(
        "", description="the clock to rank by, instead of the device's default"
    )
    tools: dict[str, str] = Field(
        {}, description="paths of remote programs that are not in their usual place, such as trtexec"
    )
    soc: str = Field(
        "", pattern=r"^[0-9]{0,9}$", description="for QNN: QNN's number of the chip, if it is not the default one"
    )
    accelerator: str = Field("", description="for nnapi: the accelerator to use, as benchmark_model names it")
    workloads: tuple[str, ...] = Field((), description="the default workloads, such as prefill:1x512, decode:1x512")
    power_mode: str = Field(
        "", description="the power mode that the board must be in, as nvpmodel names it; any other is refused"
    )
    timeout_s: float = Field(900, gt=0, le=7 * 86400, description="time limit of one visit")

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        try:
            for text in texts:
                if isinstance(text, str):
                    plain_value(text, "the value")
        except UsageError as error:
            raise ValueError(error.cause) from None
        return value

    @field_validator("folder", "python")
    @classmethod
    def _slashes(cls, path: str) -> str:
        """A Windows path with forward slashes, which Windows accepts too."""
        return path.replace("\\", "/") if path[1:2] == ":" else path

    @field_validator("workloads")
    @classmethod
    def _known(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(Workload.parse(text)) for text in texts)
        except UsageError as error:
            raise ValueError(error.line) from None

    @model_validator(mode="after")
    def _reachable(self) -> Target:
        required = REQUIRED_FIELD[self.transport]
        if required and not getattr(self, required):
            raise ValueError(f"transport {self.transport} needs {required}")
        try:
            if self.transport == "ssh":
                ssh.check(self.host, self.user, self.key, self.options)
        except UsageError as error:
            raise ValueError(error.cause) from None
        if self.transport == "adb" and not SERIAL.fullmatch(self.serial):
            raise ValueError(f"{one_line(self.serial, 100)!r} is not the serial of an Android device")
        of_other_transports = set().union(*TRANSPORT_FIELDS.values()) - TRANSPORT_FIELDS[self.transport]
        if unused := sorted(of_other_transports & self.model_fields_set):
            raise ValueError(f"transport {self.transport} has no field {', '.join(unused)}")
        if self.system == "windows" and (self.transport == "adb" or " " in self.python):
            raise ValueError("system windows needs transport ssh or local, and a python whose path has no blanks")
        if self.folder and not ABSOLUTE.match(self.folder):
            raise ValueError(f"folder {self.folder} is not an absolute path")
        return self

    def connect(self) -> Transport:
        if self.transport == "ssh":
            key = os.path.expanduser(self.key)
            return ssh.Ssh(self.host, self.user, self.port, key, self.options, self._shell())
        return Adb(self.serial, self.server_port) if self.transport == "adb" else Local(self._shell())

    def _shell(self) -> Shell | None:
        """The shell for Windows; None where the transport's default suits."""
        return Python(self.python) if self.system == "windows" else None


def path_of(device: str) -> Path:
    """The path of the file of a device, which may not exist."""
    home = os.environ.get("HARNESS_DEVICES") or Path(user_config_dir("harness")) / "devices"
    return Path(home) / f"{plain_name(device, 'a device')}.yaml"


def load_target(device: str, example: str) -> Target:
    """Read and check the file of a device. `example` is shown where the file is missing or wrong."""
    path = path_of(device)
    if not os.path.lexists(path):
        raise EnvironmentFault(f"there is no file that says where {device} is", f"write {path}, such as: {example}")
    with reading.parsing(path, "a device's file", f"such as: {example}", UsageError):
        values = reading.yaml_file(path)
    try:
        return Target.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        cause = one_line(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}")
        raise UsageError(cause, f"known: {', '.join(Target.model_fields)}") from None
