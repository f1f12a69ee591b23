"""Where a device is and how to reach it: a small YAML file of the user's, one per device."""

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

NEEDS = {"ssh": "host", "adb": "serial", "local": None}
ONLY = {  # words that mean nothing to another transport
    "ssh": {"host", "user", "port", "key", "options"},
    "adb": {"serial", "server_port"},
    "local": set(),
}


class Target(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    transport: Literal["ssh", "adb", "local"]
    host: str = Field("", description="for ssh: a name, an address, or what ~/.ssh/config calls it")
    user: str = ""
    port: StrictInt | None = Field(None, ge=1, le=65535)
    key: str = Field("", description="for ssh: a private key; without it those of the configuration and the agent")
    options: dict[str, str] = Field({}, description="for ssh: more words of ssh_config")
    serial: str = Field("", description="for adb, as `adb devices` lists it")
    server_port: StrictInt | None = Field(
        None, ge=1, le=65535, description="for adb: of another server than the usual one"
    )
    system: Literal["posix", "windows"] = Field(
        "posix", description="how it is spoken to; on Windows by Python instead of a shell"
    )
    folder: str = Field("", description="an absolute path there for what is pushed; without it the temporary folder")
    python: str = Field("python3", description="one over there that has onnxruntime and numpy")
    threads: StrictInt = Field(1, ge=1, le=4096)
    clock: Literal["", "wall", "cpu", "device"] = Field("", description="ranked instead of the device's usual one")
    tools: dict[str, str] = Field({}, description="programs there that are not where they usually are: trtexec")
    soc: str = Field(
        "", pattern=r"^[0-9]{0,9}$", description="for QNN: another chip than the usual one, as QNN numbers them"
    )
    accelerator: str = Field("", description="for nnapi: the one to use, as benchmark_model names it")
    workloads: tuple[str, ...] = Field((), description="timed where none is asked for: prefill:1x512, decode:1x512")
    power_mode: str = Field(
        "", description="the one it must be in, in its own words; anything else is told and refused"
    )
    timeout_s: float = Field(900, gt=0, le=7 * 86400, description="of one visit")

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
        """As Windows takes them too."""
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
        need = NEEDS[self.transport]
        if need and not getattr(self, need):
            raise ValueError(f"transport {self.transport} needs {need}")
        try:
            if self.transport == "ssh":
                ssh.check(self.host, self.user, self.key, self.options)
        except UsageError as error:
            raise ValueError(error.cause) from None
        if self.transport == "adb" and not SERIAL.fullmatch(self.serial):
            raise ValueError(f"{one_line(self.serial, 100)!r} is not the serial of an Android device")
        others = set().union(*ONLY.values()) - ONLY[self.transport]
        if idle := sorted(others & self.model_fields_set):
            raise ValueError(f"transport {self.transport} knows no {', '.join(idle)}")
        if self.system == "windows" and (self.transport == "adb" or " " in self.python):
            raise ValueError("system windows goes with ssh or local, and with a python whose path has no blanks")
        if self.folder and not ABSOLUTE.match(self.folder):
            raise ValueError(f"folder {self.folder} is not an absolute path")
        return self

    def connect(self) -> Transport:
        if self.transport == "ssh":
            key = os.path.expanduser(self.key)
            return ssh.Ssh(self.host, self.user, self.port, key, self.options, self._shell())
        return Adb(self.serial, self.server_port) if self.transport == "adb" else Local(self._shell())

    def _shell(self) -> Shell | None:
        """The transport's own choice on POSIX systems."""
        return Python(self.python) if self.system == "windows" else None


def path_of(device: str) -> Path:
    home = os.environ.get("HARNESS_DEVICES") or Path(user_config_dir("harness")) / "devices"
    return Path(home) / f"{plain_name(device, 'a device')}.yaml"


def read(device: str, example: str) -> Target:
    """The file of a device; without one it is not usable, and the example says what it would hold."""
    path = path_of(device)
    if not os.path.lexists(path):
        raise EnvironmentFault(f"no file says where {device} is", f"write {path}, such as: {example}")
    with reading.parsing(path, "a device's file", f"such as: {example}", UsageError):
        values = reading.yaml_file(path)
    try:
        return Target.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        cause = one_line(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}")
        raise UsageError(cause, f"known: {', '.join(Target.model_fields)}") from None
