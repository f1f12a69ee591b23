"""The generated files of a folder of leaderboards: their content, their names, and which of them are out of date."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from harness.errors import EnvironmentFault, UsageError, one_line
from harness.leaderboard import pareto, reported
from harness.leaderboard.entries import Entry
from harness.leaderboard.markdown_page import LEGEND, REPORTED_NOTE, index, outside_text, page, reported_page
from harness.leaderboard.ranking import rank_group
from harness.leaderboard.rows import Board, Setup, boards
from harness.records.files import write_file
from harness.system.parallel import parallel_map
from harness.system.paths import below, plain_name
from harness.system.reading import Unreadable, content

NOT_PAGES = ("results", "latency")
INDEX, REPORTED = "README.md", "reported.md"
RESERVED = (*NOT_PAGES, INDEX.lower(), REPORTED, "reported.json")  # names that no folder of a model may have
FEW = 8  # more pages than this are made on all cores
MARK = "<!-- made by harness leaderboard, which replaces and removes this file: do not edit it -->"
LINES_BEFORE_MARK = (  # that identify files written before files had the mark
    "Made by `harness leaderboard leaderboards` from the records below `results/`.",
    "From `reported.json`: what papers and repositories say, in their own settings.",
    "± is a standard error over documents, brackets hold 95 %. Rows of one table that share a letter cannot be told "
    "apart on the same documents (paired, Holm-corrected, 5 %). Several seeds are one row, with the range of their "
    "values. A speed-up closer to 1 than the noise floor is none.",
    REPORTED_NOTE,
    LEGEND,
    "<style>text{font:11px system-ui,sans-serif;fill:#333}</style>",
    "<title>harness: leaderboard</title>",
)
MISSING = "is missing"
STALE = "is out of date"
ORPHAN = "belongs to no record"
WOULD = {MISSING: "would be written", STALE: "would be replaced", ORPHAN: "would be removed"}
DONE = {MISSING: "is new", STALE: "was brought up to date", ORPHAN: "was removed: it belonged to no record"}
Subject = tuple[str, str, str]


def group_pages(records: Sequence[Entry]) -> tuple[dict[str, list[Board]], list[Entry]]:
    """The boards of each page, by the page's path, and the records that are on no page."""
    all_boards, outside = boards(records)
    names = page_names([board.setup for board in all_boards])
    pages: dict[str, list[Board]] = defaultdict(list)
    for board in all_boards:
        pages[names[_subject(board.setup)]].append(board)
    return dict(sorted(pages.items())), outside


def _subject(setup: Setup) -> Subject:
    """What the boards of one page have in common."""
    return setup.model, setup.device, setup.workload


def page_names(setups: Sequence[Setup]) -> dict[Subject, str]:
    """The path of each page below the leaderboards.

    Pages whose paths would be the same file on some machine get a suffix each.
    """
    by_path: dict[str, list[tuple[Subject, str]]] = defaultdict(list)
    for subject in dict.fromkeys(map(_subject, setups)):
        model, device, workload = subject
        folder = path_part(model, "model")
        folder += f"-{_digest(model)}" if folder.lower() in RESERVED else ""
        path = f"{folder}/{path_part(f'{device}-{workload}', 'page')}"
        by_path[path.lower()].append((subject, path))
    paths = {
        subject: f"{path}-{_digest(*subject)}" if len(same_path) > 1 else path
        for same_path in by_path.values()
        for subject, path in same_path
    }
    return {subject: f"{path}.md" for subject, path in zip(paths, distinct(paths.values()), strict=True)}


def path_part(text: str, what: str) -> str:
    """The text as a file name, with hyphens for other characters. If even that is no valid name, one from a hash."""
    part = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)
    try:
        return plain_name(part, what)
    except UsageError:
        return f"{what}-{_digest(text)}"


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with a number where two would be the same file on some machine."""
    used: set[str] = set()
    free_names = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(candidate for candidate in itertools.chain([name], numbered) if candidate.lower() not in used)
        used.add(free.lower())
        free_names.append(free)
    return free_names


def _digest(*text: str) -> str:
    return hashlib.sha256("\n".join(text).encode(errors="backslashreplace")).hexdigest()[:12]


def rank_boards(boards: Sequence[Board]) -> Sequence[Board]:
    """The boards, after sorting their rows and giving them letters."""
    for board in boards:
        for group in board.groups:
            rank_group(group, board.columns)
    return boards


def page_files(folder: Path, records: Sequence[Entry]) -> dict[str, str]:
    """The content of every file that the records give, by its path below the folder."""
    pages, outside = group_pages(records)
    reported_figures = reported.read(folder)

    def board_files(name: str, prefix: str = "") -> dict[str, str]:
        """A page and its pictures, which are named after it."""
        page_boards, stem = rank_boards(pages[name]), name.removesuffix(".md")
        files: dict[str, str] = {}
        pictures: list[list[str]] = []
        for number, board in enumerate(page_boards, 1):
            svgs = pareto.pictures(board)
            board_prefix = f"{number}-" if len(page_boards) > 1 else ""
            figures = distinct(path_part(figure, "figure") for figure in svgs)
            paths = [f"{stem}-{prefix}{board_prefix}{figure}.svg" for figure in figures]
            files |= dict(zip(paths, svgs.values(), strict=True))
            pictures.append([PurePosixPath(path).name for path in paths])
        return {name: page(page_boards, reported_figures, (folder / name).parent, pictures), **files}

    files = {INDEX: index(pages, outside, folder, REPORTED if reported_figures else "")}
    if reported_figures:
        files[REPORTED] = reported_page(reported_figures)
    used = {name.lower() for name in files}
    for name, new_files in zip(pages, parallel_map(board_files, list(pages), least=FEW), strict=True):
        # If a picture's name is another page's, number the pictures until all names are free.
        numbers = itertools.count(2)
        while not used.isdisjoint(path.lower() for path in new_files):
            new_files = board_files(name, f"{next(numbers)}-")
        used |= {path.lower() for path in new_files}
        files |= new_files
    return {name: f"{MARK}\n{text}" if name.endswith(".svg") else f"{MARK}\n\n{text}" for name, text in files.items()}


def find_changes(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """The files that are missing, out of date or belong to no record, each with which of the three it is.

    Raises UsageError where a file that harness did not write is in the way.
    """
    try:
        must_be_free(folder, files)
        differences = {}
        for name, text in files.items():
            path = folder / name
            if not path.is_file():
                differences[name] = MISSING
            elif path.read_bytes().replace(b"\r\n", b"\n") != text.encode():
                differences[name] = STALE
        expected = {name.lower() for name in files}  # some file systems ignore case
        return differences | {name: ORPHAN for name in marked_files(folder) if name.lower() not in expected}
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {one_line(str(error.filename or folder))}: {error.strerror}",
            "give a folder that can be read",
        ) from error


def must_be_free(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError where a page would be written through a link, or over a file that harness did not write."""
    obstacles = list(filter(None, (_obstacle(folder, PurePosixPath(name)) for name in names)))
    if obstacles:
        more = f" (and {len(obstacles) - 1} more: {'; '.join(obstacles[1:4])})" if len(obstacles) > 1 else ""
        raise UsageError(
            one_line(f"{obstacles[0]}; a page would be written there{more}"),
            "move it away, or keep leaderboards in a folder of their own; nothing was written",
        )
    for name in names:
        below(folder, name, error=UsageError)


def _obstacle(folder: Path, name: PurePosixPath) -> str:
    """Why a page cannot be written; empty if it can."""
    path = folder
    for part in name.parts[:-1]:
        path = path / part
        if path.is_symlink():
            return f"{path} is a link"
        if path.exists() and not path.is_dir():
            return f"{path} is not a folder"
    return why_not_generated(path / name.name)


def why_not_generated(path: Path) -> str:
    """Why a file must not be replaced, such as a link; empty if harness wrote it, or if there is none."""
    if path.is_symlink():
        return f"{path} is a link"
    try:
        lines = content(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    except Unreadable as error:
        return str(error)
    is_ours = MARK in lines[:2] or not set(LINES_BEFORE_MARK).isdisjoint(lines)
    return "" if is_ours else f"{path} was not made by harness leaderboard"


def marked_files(folder: Path) -> Iterator[str]:
    """All pages and pictures with the mark. Links are not followed, and unreadable files are skipped."""
    folders = [path for path in sorted(folder.iterdir()) if path.name not in NOT_PAGES and not path.is_symlink()]
    for subfolder in (folder, *folders):
        try:
            files = sorted(subfolder.iterdir())
        except OSError:  # mostly because it is a file
            continue
        for path in files:
            if path.suffix in (".md", ".svg") and not path.is_symlink() and _is_marked(path):
                yield path.relative_to(folder).as_posix()


def _is_marked(path: Path) -> bool:
    try:
        return MARK in content(path).decode(errors="replace").splitlines()[:2]
    except (FileNotFoundError, Unreadable):
        return False


def write(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Write what is missing or out of date and remove what belongs to no record. Returns what was done to each file."""
    done = {}
    for name, why in find_changes(folder, files).items():
        if name in files:
            write_file(folder / name, files[name].encode())
        else:
            (folder / name).unlink()
        done[name] = DONE[why]
    return done


def terminal_pages(records: Sequence[Entry]) -> str:
    """The pages for a terminal, without pictures and links."""
    pages, outside = group_pages(records)
    parts = parallel_map(lambda boards: page(rank_boards(boards), [], None), list(pages.values()), least=FEW)
    return "\n".join([*parts, *([outside_text(outside, None)] if outside else ())])
