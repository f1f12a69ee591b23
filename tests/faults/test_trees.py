"""Folders of others: what writes a tree replaces and removes its own files only, and what it makes appears whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.cli import new as new_command
from harness.errors import HarnessError
from harness.leaderboard import site

from .texts import GOLDEN, HARMLESS, published

PAGE = "some-t-xt/some-t-xt-prefill-1x128.md"
PICTURE = PAGE.replace(".md", "-record.svg")
OLD_INDEX = "Made by `harness leaderboard leaderboards` from the records below `results/`."
OLD_REPORTED = "From `reported.json`: what papers and repositories say, in their own settings."
OLD_LEGEND = (
    "± is a standard error over documents, brackets hold 95 %. Rows of one table that share a letter cannot be told "
    "apart on the same documents (paired, Holm-corrected, 5 %). Several seeds are one row, with the range of their "
    "values. A speed-up closer to 1 than the noise floor is none."
)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`harness WORDS` in this process, with errors as `main` prints them."""
    done = CliRunner().invoke(cli, words)
    errors, code = done.stderr, done.exit_code
    if isinstance(done.exception, HarnessError):
        errors, code = (
            f"{errors}error: {done.exception.cause}\n  try: {done.exception.remedy}\n",
            done.exception.exit_code,
        )
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, code, done.stdout, errors)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, links not followed."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of leaderboards with all its pages."""
    folder = tmp_path_factory.mktemp("finished") / "boards"
    records = published(folder, HARMLESS)
    site.write(folder, site.page_files(folder, records))
    return folder


@pytest.fixture
def boards(finished, tmp_path):
    """A copy with the records only."""
    folder = tmp_path / "boards"
    shutil.copytree(finished / "results", folder / "results")
    shutil.copy(finished / "reported.json", folder)
    return folder


@pytest.fixture
def full(finished, tmp_path):
    """A copy with its pages."""
    return Path(shutil.copytree(finished, tmp_path / "boards"))


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- files of others ---

OTHERS = {
    "docs/guide.md": "hi",
    "src/sub/logo.svg": "<svg/>",
    "some-t-xt/by-hand.md": "mine",
    "some-t-xt/deeper/page.md": f"{site.MARK}\n",
    "results/notes.md": f"{site.MARK}\n",
    "latency/notes.md": f"{site.MARK}\n",
    "quoting.md": f"The first line of a page is\n\n{site.MARK}\n",
    ".hidden/notes.md": "mine",
    "page.html": "<p>mine",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_stay(boards, name):
    put(boards, {name: OTHERS[name]})
    before = contents(boards)
    looked = command("leaderboard", str(boards), "--check")
    assert looked.returncode == 1
    assert contents(boards) == before
    assert name not in looked.stdout
    done = command("leaderboard", str(boards))
    assert done.returncode == 0, done.stderr
    assert contents(boards).items() > before.items()
    assert name not in done.stdout


@pytest.mark.parametrize("name", ["README.md", "reported.md", PAGE, PICTURE])
@pytest.mark.parametrize("check", [True, False], ids=["check", "write"])
def test_a_file_of_others_in_the_way_of_a_page_is_refused(boards, name, check):
    put(boards, {name: "mine"})
    before = contents(boards)
    done = command("leaderboard", str(boards), *["--check"] * check)
    assert done.returncode == 2
    assert f"{boards / name} was not made by harness leaderboard" in done.stderr
    assert "try: move it away" in done.stderr
    assert contents(boards) == before


def in_the_way(boards: Path, how: str, elsewhere: Path) -> str:
    """Something that is no page where a page belongs; its name."""
    elsewhere.mkdir()
    put(elsewhere, {"page.md": f"{site.MARK}\nmine", Path(PAGE).name: f"{site.MARK}\nmine"})
    model = boards / Path(PAGE).parent
    model.mkdir()
    if how == "link":
        (boards / "README.md").symlink_to(elsewhere / "page.md")
        return "README.md is a link"
    if how == "link-to-nothing":
        (boards / PAGE).symlink_to(elsewhere / "new.md")
        return f"{PAGE} is a link"
    if how == "folder":
        (boards / PAGE).mkdir()
        return f"{PAGE} is a folder"
    if how == "pipe":
        os.mkfifo(boards / PAGE)
        return f"{PAGE} is not a regular file"
    if how == "link-to-a-device":
        (boards / "README.md").symlink_to("/dev/null")
        return "README.md is a link"
    model.rmdir()
    if how == "file-for-a-folder":
        model.write_text("mine")
        return f"{model.name} is not a folder"
    inside = boards / "docs"
    inside.mkdir()
    model.symlink_to(elsewhere if how == "link-for-a-folder" else inside)
    return f"{model.name} is a link"


HOW = (
    "link",
    "link-to-nothing",
    "link-to-a-device",
    "folder",
    "pipe",
    "file-for-a-folder",
    "link-for-a-folder",
    "link-for-a-folder-that-stays-inside",
)


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_written_through_what_is_no_page(boards, tmp_path, how):
    why = in_the_way(boards, how, tmp_path / "elsewhere")
    before = contents(tmp_path)
    done = command("leaderboard", str(boards))
    assert done.returncode == 2
    assert why in done.stderr
    assert "nothing was written" in done.stderr
    assert contents(tmp_path) == before


def test_pages_behind_a_link_are_not_removed(full, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, {"stale.md": f"{site.MARK}\n"})
    (full / "linked").symlink_to(elsewhere)
    (full / "some-t-xt" / "stale.md").symlink_to(elsewhere / "stale.md")
    before = contents(tmp_path)
    done = command("leaderboard", str(full))
    assert (done.returncode, done.stdout) == (0, "")
    assert contents(tmp_path) == before


RESULTS = {
    "empty": {},
    "others": {"results/metrics.json": '{"accuracy": 1}', "results/run-1/log.txt": "x"},
    "others-in-lists": {"results/a.json": "[]", "results/b.json": "not JSON"},
}


@pytest.mark.parametrize("files", RESULTS)
def test_a_folder_with_results_but_no_record_is_refused(tmp_path, files):
    put(tmp_path, RESULTS[files] | {"README.md": "mine", "docs/guide.md": "hi"})
    (tmp_path / "results").mkdir(exist_ok=True)
    before = contents(tmp_path)
    for words in ([], ["--check"], ["--html", str(tmp_path / "new.html")]):
        done = command("leaderboard", str(tmp_path), *words)
        assert done.returncode == 2
        assert "no record in " in done.stderr
        assert "try: harness publish" in done.stderr
    assert contents(tmp_path) == before
    for name in RESULTS[files]:
        assert (name in done.stderr) == name.endswith(".json")


# --- files of its own ---


def test_what_would_be_done_is_said_and_then_done(full):
    put(full, {"README.md": f"{site.MARK}\nolder", "gone/page.md": f"{site.MARK}\nof a model that is gone"})
    (full / PAGE).unlink()
    before = contents(full)
    looked = command("leaderboard", str(full), "--check")
    assert looked.returncode == 1
    assert looked.stdout.splitlines() == [
        "README.md is out of date: would be replaced",
        f"{PAGE} is missing: would be written",
        "gone/page.md belongs to no record: would be removed",
    ]
    assert contents(full) == before
    assert command("leaderboard", str(full)).returncode == 0
    assert command("leaderboard", str(full), "--check").returncode == 0
    assert set(before) - set(contents(full)) == {"gone/page.md"}


def test_pages_of_a_checkout_with_other_line_ends_are_up_to_date(full):
    for path in full.rglob("*.md"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert command("leaderboard", str(full), "--check").returncode == 0


def test_pages_from_before_the_mark_are_replaced_where_they_stand(full):
    for path in [*full.glob("*.md"), *full.glob("*/*.md")]:
        text = path.read_text().removeprefix(f"{site.MARK}\n\n")
        path.write_text(text if path.name != "README.md" else f"# Leaderboards\n\n{OLD_INDEX}\n")
    put(full, {"gone/page.md": f"# Of a model that is gone\n\n{site.LEGEND}\n"})
    assert command("leaderboard", str(full)).returncode == 0
    assert command("leaderboard", str(full), "--check").returncode == 0
    assert (full / "gone" / "page.md").exists()


@pytest.mark.parametrize("line", [OLD_INDEX, OLD_REPORTED, OLD_LEGEND])
def test_a_page_from_before_the_mark_is_known_by_its_old_text(tmp_path, line):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{line}\n")
    assert site.why_not_generated(page) == ""
    page.write_text("# A page\n\nmine\n")
    assert site.why_not_generated(page) == f"{page} was not made by harness leaderboard"


BAD = {
    "truncated": lambda path: path.write_text(path.read_text()[:200]),
    "edited": lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 7')),
    "empty": lambda path: path.write_text(""),
    "link-to-nothing": lambda path: (path.unlink(), path.symlink_to("nothing.json")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("words", [[], ["--html", "all.html"], ["--json"]], ids=["pages", "html", "json"])
def test_one_bad_record_is_named_and_left_out(boards, tmp_path, monkeypatch, how, words):
    monkeypatch.chdir(tmp_path)
    path = sorted((boards / "results" / "set").glob("*.json"))[1]
    BAD[how](path)
    before = contents(boards / "results")
    done = command("leaderboard", str(boards), *words)
    assert done.returncode == 1
    assert f"error: {path} " in done.stderr
    assert "try: harness validate" in done.stderr
    assert contents(boards / "results") == before
    if "--json" in words:
        assert len(json.loads(done.stdout)) == 3
    else:
        page = tmp_path / "all.html" if words else boards / PAGE
        assert "some tèxt first" in page.read_text()
        assert "some tèxt second" not in page.read_text()


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_disk_that_fills_up_leaves_whole_pages(full, monkeypatch, at):
    """The n-th page finds no room. Each page is the old or the new one, and the same command goes on."""
    entries = published(full, HARMLESS)
    old = site.page_files(full, entries)
    new = {name: f"{text}<!-- new -->\n" for name, text in old.items()}
    calls = iter(range(100))
    inner = os.fsync

    def fsync(descriptor):
        if next(calls) >= 2 * at:  # of a file, and of its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(Exception, match="No space left on device") as fault:
            site.write(full, new)
    assert fault.value.exit_code == 3
    assert "room" in fault.value.remedy
    assert set(contents(full)) == {*old, *(name for name in contents(full) if not name.endswith((".md", ".svg")))}
    assert all((full / name).read_text() in (old[name], new[name]) for name in old)
    site.write(full, new)
    assert site.find_changes(full, new) == {}


# --- --html ---


@pytest.mark.parametrize("how", ["others", "markdown", "link", "folder", "pipe"])
def test_an_html_page_replaces_nothing_of_others(boards, tmp_path, how):
    page = tmp_path / "page.html"
    put(tmp_path, {"mine.html": f"<!doctype html>\n{site.MARK}\nmine"})
    if how == "others":
        page.write_text("<!doctype html>\n<title>mine</title>\n")
    elif how == "markdown":
        page.write_text(f"# mine\n\n- {site.MARK}\n")
    elif how == "link":
        page.symlink_to(tmp_path / "mine.html")
    elif how == "folder":
        page.mkdir()
    else:
        os.mkfifo(page)
    before = contents(tmp_path)
    done = command("leaderboard", str(boards), "--html", str(page))
    assert done.returncode == 2
    assert str(page) in done.stderr
    assert "try: give --html the name of a new file" in done.stderr
    assert contents(tmp_path) == before


def test_an_html_page_replaces_its_own(boards, tmp_path):
    page = tmp_path / "page.html"
    for old in (None, f"<!doctype html>\n{site.MARK}\nolder", "<!doctype html>\n<title>harness: leaderboard</title>\n"):
        if old:
            page.write_text(old)
        assert command("leaderboard", str(boards), "--html", str(page)).returncode == 0
        assert "<h1>Leaderboard</h1>" in page.read_text()


# --- harness new ---


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(tmp_path: Path, into: str | Path, why: str, code: int = 2) -> None:
    before = contents(tmp_path)
    folders = sorted(path for path in tmp_path.rglob("*") if path.is_dir())
    done = command("new", "pruner", "foo", "--into", str(into))
    assert done.returncode == code, done.stderr
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.splitlines()[1].startswith("  try: ")
    assert contents(tmp_path) == before
    assert sorted(path for path in tmp_path.rglob("*") if path.is_dir()) == folders


def test_new_into_a_file(here):
    put(here, {"file": "mine"})
    refused(here, "file", "file is not a folder")


def test_new_below_a_file(here):
    put(here, {"file": "mine"})
    refused(here, "file/below/it", "file is not a folder")


def test_new_into_a_link_to_a_file(here):
    put(here, {"file": "mine"})
    (here / "link").symlink_to("file")
    refused(here, "link", "link is not a folder")


def test_new_into_a_link_to_nothing(here):
    (here / "link").symlink_to("nothing")
    refused(here, "link", "link is not a folder")


def test_new_into_a_link_to_itself(here):
    (here / "link").symlink_to("link")
    refused(here, "link", "link is not a folder")


def test_new_into_what_cannot_be_written(here):
    refused(here, "/proc/nowhere", "cannot write /proc/nowhere/foo", code=3)


@pytest.mark.parametrize("into", ["a\nb", "a\x1b[31m", "a\u202eb"], ids=["line-end", "escape", "direction"])
def test_new_into_a_path_that_cannot_be_shown(here, into):
    refused(here, into, "cannot be printed")


@pytest.mark.parametrize("what", ["folder", "file", "link", "link-to-nothing", "empty-folder"])
def test_new_over_what_is_there(here, what):
    folder = here / "foo"
    if what == "folder":
        put(folder, {"mine.txt": "mine", "pyproject.toml": "mine"})
    elif what == "file":
        folder.write_text("mine")
    elif what == "empty-folder":
        folder.mkdir()
    else:
        folder.symlink_to("nothing" if "nothing" in what else GOLDEN)
    refused(here, ".", "foo already exists")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_new_that_ends_halfway_leaves_nothing(tmp_path, monkeypatch, error, at):
    put(tmp_path, {".foo.1/mine.txt": "mine"})
    before = contents(tmp_path)
    calls = iter(range(100))
    inner = Path.write_text

    def write_text(path, *words, **more):
        inner(path, *words, **more)
        if next(calls) == at:
            raise error

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises((HarnessError, KeyboardInterrupt)) as fault:
        new_command.create_folder(
            tmp_path / "a" / "b" / "foo", dict.fromkeys(["a.py", "b.py", "tests/c.py", "d.md"], "text")
        )
    assert contents(tmp_path) == before
    assert not (tmp_path / "a").exists()
    if isinstance(error, OSError):
        assert fault.value.exit_code == 3
        assert "No space left on device" in fault.value.cause
        assert "make room" in fault.value.remedy
    else:
        assert isinstance(fault.value, KeyboardInterrupt)
