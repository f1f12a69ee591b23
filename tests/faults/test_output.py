"""Where an answer goes: closed, full, broken or narrow outputs, and what must never be in any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness.records.store import Store

from ..forks import command
from .hostile import METHOD, install
from .test_methods import PRUNE

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]
RUN = ["run", "--pruner", "random", "--model", "tiny", "--device", "null", "--ratio", "0.2", "--eval", "footprint"]
READERS = (["list"], ["status"], ["leaderboard"], ["validate"], ["info", "magnitude"])
TOKEN = "hf_planted-0123456789-token"


@pytest.fixture(scope="module")
def one_record(tmp_path_factory):
    """A runs folder with one finished cell."""
    folder = tmp_path_factory.mktemp("one") / "runs"
    done = command(*RUN, "--json", HARNESS_RUNS=str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def shell(line: str, folder, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HARNESS_RUNS": str(folder), "PYTHON": sys.executable, **env}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)


def harness(words: list[str]) -> str:
    return "\"$PYTHON\" -c 'from harness.cli import main; main()' " + " ".join(words)


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_full_disk_behind_stdout(one_record, words):
    done = shell(f"{harness(words)} > /dev/full", one_record)
    assert done.returncode == 3
    assert "error: the output cannot be written: No space left on device" in done.stderr
    assert "try: make room" in done.stderr


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_reader_that_goes_away(one_record, words):
    done = shell(f"{harness(words)} | true; echo ${{PIPESTATUS[0]}}", one_record)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"], ids=["stdin", "stdout", "stderr", "all"])
def test_closed_streams(one_record, closed):
    done = shell(f"exec 3>&1; {harness([*RUN, '--json'])} {closed}; echo code $? >&3", one_record)
    assert done.stdout.strip().endswith("code 0"), done.stderr
    assert len(Store(one_record).records()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_letters(one_record, encoding):
    done = shell(harness(RUN), one_record, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "a bug of harness" not in done.stderr
    assert "tiny" in done.stdout


def test_a_plain_locale(one_record):
    done = shell(harness(["leaderboard"]), one_record, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr


def test_a_working_folder_that_was_deleted(one_record, tmp_path):
    gone = tmp_path / "gone"
    done = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; {harness(['status'])}", one_record)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [*READERS, RUN], ids=lambda words: words[0])
def test_json_stands_alone(one_record, words):
    done = command(*words, "--json", HARNESS_RUNS=str(one_record))
    json.loads(done.stdout)


def everything_below(*folders) -> str:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("place", ["prune", "evaluate"])
def test_a_planted_token_is_nowhere(tmp_path, runs, monkeypatch, variable, place):
    """A method fails with the token in its message: row, log, pages and streams have its name instead."""
    deed = f'raise RuntimeError("401 for " + os.environ["{variable}"])'
    source = METHOD.replace('"print":', f"'leak': {deed!r},\n    \"print\":")
    environment = install(tmp_path / "site", source=source)
    words = PRUNE if place == "prune" else [*RUN[:-1], "hostile"]
    env = {**environment, "HOSTILE": f"{place}:leak", variable: TOKEN}
    streams = [command(*words, cwd=tmp_path, **env), command("status", cwd=tmp_path, **env)]
    streams.append(command("leaderboard", "--html", str(tmp_path / "page.html"), cwd=tmp_path, **env))
    streams.append(command("leaderboard", cwd=tmp_path, **env))
    assert streams[0].returncode == 1
    assert f"<{variable}>" in streams[1].stdout
    assert (tmp_path / "page.html").is_file()
    text = everything_below(runs, tmp_path) + "".join(done.stdout + done.stderr for done in streams)
    assert f"<{variable}>" in text
    assert TOKEN not in text


def test_the_token_file_of_the_hub_is_no_message(tmp_path, monkeypatch):
    from harness.errors import one_line

    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert one_line(f"denied: {TOKEN}") == "denied: <the hub's token>"
