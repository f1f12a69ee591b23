"""Errors that users see: one line of cause, one of remedy, and an exit code. Cleaning of text for messages."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "BadCut",
    "EnvironmentFault",
    "HarnessError",
    "OverBudget",
    "Unsupported",
    "UsageError",
    "describe",
    "one_line",
]

SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
REASON = 2000  # characters of a reason in a record


class HarnessError(Exception):
    """An error that a user can act on. Any other exception that reaches the user is a bug in harness."""

    exit_code = 1
    status = "failed"

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy

    @property
    def line(self) -> str:
        """Cause and remedy in one line."""
        return self.cause + (f" ({self.remedy})" if self.remedy else "")


class UsageError(HarnessError):
    """A name or a value on the command line that is not valid."""

    exit_code = 2


class EnvironmentFault(HarnessError):
    """The command is valid, but the machine is not ready: disk, weights, network or device."""

    exit_code = 3


class Unsupported(HarnessError):
    """This combination of method, model and device cannot work. The record says why."""

    status = "unsupported"


class OverBudget(HarnessError):
    """The pruned model exceeds its budget, or the method has no cut that meets it."""

    status = "over_budget"
    probes: tuple[dict[str, Any], ...] = ()  # the shapes that the search for a latency tried


class BadCut(HarnessError):
    """A pruner returned something that is not a cut of this model."""


def one_line(text: str, most: int = REASON) -> str:
    """Any text as one clean line of at most `most` characters, without control characters and lone surrogates."""
    plain = "".join(char if char.isprintable() else " " for char in without_secrets(text[: 4 * most]))
    line = " ".join(plain.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def without_secrets(text: str) -> str:
    """Text with the secrets of this environment replaced by their names, and lone surrogates escaped."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text.encode(errors="backslashreplace").decode()


def secrets() -> dict[str, str]:
    """Values that no file and no message may contain: variables that are named like secrets, and the hub's token."""
    values = {name: os.environ[name] for name in os.environ if _is_secret(name) and len(os.environ[name]) >= 8}
    token = _hub_token(os.environ.get("HF_TOKEN_PATH", ""), os.environ.get("HF_HOME", ""))
    return values | ({"the hub's token": token} if len(token) >= 8 else {})


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return SECRET.search(name) is not None


@lru_cache(maxsize=4)
def _hub_token(path: str, home: str) -> str:
    """The token that `hf auth login` stored; empty if there is none."""
    try:
        file = Path(path) if path else Path(home or Path("~/.cache/huggingface").expanduser()) / "token"
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return ""


def describe(error: BaseException, most: int = REASON) -> str:
    """An exception as one clean line. Its message may be megabytes long, and making it may raise."""
    try:
        text = str(error)
    except BaseException as fault:
        text = f"its message cannot be read ({type(fault).__name__})"
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__, most)
