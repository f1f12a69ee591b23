"""Records for the fault suite: real ones of this repository, and the same with changes and a new seal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from harness.cli import cli
from harness.errors import HarnessError
from harness.records.files import json_text
from harness.records.schema import digest, seal

from ..conftest import ROOT

SOURCE = ROOT / "leaderboards" / "results" / "baselines"
GOOD = ("7aa1c4dbaada0393433fc98a", "cdd80b6570e80014af9d4727")  # two methods at one budget, of one device
OTHER = "240e41c281b677c18949d84b"  # a third one there


def runs_folder(folder: Path, *cells: str) -> Path:
    """A runs folder with these records, without their samples."""
    (folder / "records").mkdir(parents=True)
    for cell in cells:
        shutil.copy(SOURCE / f"{cell}.json", folder / "records")
    return folder


def published_folder(folder: Path, *cells: str) -> Path:
    """A folder of leaderboards with these records, without their samples."""
    (folder / "results" / "set").mkdir(parents=True)
    for cell in cells:
        shutil.copy(SOURCE / f"{cell}.json", folder / "results" / "set")
    return folder


def changed(
    cell: str, change: Callable[[dict[str, Any]], Any], edit: Callable[[str], str] = lambda text: text
) -> bytes:
    """The text of a record with a change in it, sealed anew, as anyone can."""
    words = json.loads((SOURCE / f"{cell}.json").read_text())
    change(words)
    words = json.loads(edit(json.dumps(words)))
    words["digest"] = digest(words)
    words["seal"] = seal(words)
    return json_text(words)


def harness(*words: str, **env: str) -> tuple[int, str]:
    """The exit code and everything printed. What is no message to a user fails the test."""
    done = CliRunner().invoke(cli, list(words), env=env)
    error = done.exception
    if isinstance(error, HarnessError):
        return error.exit_code, f"{done.output}{error.cause}\n{error.remedy}\n"
    assert error is None or isinstance(error, SystemExit), f"a bug of harness: {error!r}"
    return done.exit_code, done.output


def contents(folder: Path) -> list[bytes]:
    """What lies in a folder, whatever it is called: links by where they lead, folders by their number of names."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink():
            found.append(b"link to " + str(path.readlink()).encode())
        elif path.is_dir():
            found.append(b"folder of %d" % len(list(path.iterdir())))
        elif path.is_file():
            found.append(path.read_bytes())
        else:
            found.append(b"special file")
    return sorted(found)
