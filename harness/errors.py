"""Errors a user sees: one line of cause, one of remedy, and the exit code that goes with them."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
REASON = 2000  # characters of a reason in a record


class HarnessError(Exception):
    """Something a person can act on. Anything else that escapes is a bug of ours."""

    exit_code = 1
    status = "failed"

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy

    @property
    def line(self) -> str:
        return self.cause + (f" ({self.remedy})" if self.remedy else "")


class UsageError(HarnessError):
    """A name or a value on the command line that cannot be meant."""

    exit_code = 2


class EnvironmentFault(HarnessError):
    """Disk, weights, network, device: the command is right, the machine is not ready."""

    exit_code = 3


class Unsupported(HarnessError):
    """This combination cannot work; a row with its reason, not a crash."""

    status = "unsupported"


class OverBudget(HarnessError):
    """The method ran and kept more than it was asked to, or nothing it can leave is small or fast enough."""

    status = "over_budget"
    probes: tuple[dict[str, Any], ...] = ()  # what was tried on the way to a latency


class BadCut(HarnessError):
    """A pruner returned something that is not a cut of this model."""


def one_line(text: str, most: int = REASON) -> str:
    """Text of anyone's as one clean line: no line breaks, no control characters, no lone surrogates, not too long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in without_secrets(text[: 4 * most]))
    line = " ".join(plain.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def without_secrets(text: str) -> str:
    """Text that may be shown: tokens of this environment by their names, undecodable bytes written out."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text.encode(errors="backslashreplace").decode()


def secrets() -> dict[str, str]:
    """What must appear in no file and no message: values of variables that are named like secrets, the hub's token."""
    known = {name: os.environ[name] for name in os.environ if _is_secret(name) and len(os.environ[name]) >= 8}
    token = _hub_token(os.environ.get("HF_TOKEN_PATH", ""), os.environ.get("HF_HOME", ""))
    return known | ({"the hub's token": token} if len(token) >= 8 else {})


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return SECRET.search(name) is not None


@lru_cache(maxsize=4)
def _hub_token(path: str, home: str) -> str:
    """The token that `hf auth login` stored."""
    try:
        file = Path(path) if path else Path(home or Path("~/.cache/huggingface").expanduser()) / "token"
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return ""


def describe(error: BaseException, most: int = REASON) -> str:
    """An exception as one clean line; its own text may raise or be megabytes long."""
    try:
        text = str(error)
    except BaseException as fault:
        text = f"its message cannot be read ({type(fault).__name__})"
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__, most)
