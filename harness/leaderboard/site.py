"""All generated files of a folder of leaderboards, and whether what lies there is what its records give."""

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
from harness.leaderboard.markdown_page import LEGEND, index, outside_words, page, reported_page
from harness.leaderboard.ranking import stand
from harness.leaderboard.rows import Board, Place, boards
from harness.records.files import put
from harness.system.parallel import spread
from harness.system.paths import below, plain_name
from harness.system.reading import Unreadable, content

NOT_PAGES = ("results", "latency")
INDEX, REPORTED = "README.md", "reported.md"
RESERVED = (*NOT_PAGES, INDEX.lower(), REPORTED, "reported.json")  # no folder of a model
FEW = 8  # pages; more are made on all cores
MARK = "<!-- made by harness leaderboard, which replaces and removes this file: do not edit it -->"
OLDER = (  # lines of what was written before files carried the mark
    "Made by `harness leaderboard leaderboards` from the records below `results/`.",
    "From `reported.json`: what papers and repositories say, in their own settings.",
    LEGEND,
    "<style>text{font:11px system-ui,sans-serif;fill:#333}</style>",
    "<title>harness: leaderboard</title>",
)
MISSING, STALE, ORPHAN = "is missing", "is not what the records give", "is made by no record"
WOULD = {MISSING: "would be written", STALE: "would be replaced", ORPHAN: "would be removed"}
DONE = {MISSING: "is new", STALE: "was brought up to date", ORPHAN: "was removed: no record makes it"}
Subject = tuple[str, str, str]


def paged(records: Sequence[Entry]) -> tuple[dict[str, list[Board]], list[Entry]]:
    """The boards of each page; and what has no page."""
    every, outside = boards(records)
    names = page_names([board.place for board in every])
    pages: dict[str, list[Board]] = defaultdict(list)
    for board in every:
        pages[names[_subject(board.place)]].append(board)
    return dict(sorted(pages.items())), outside


def _subject(place: Place) -> Subject:
    """What the boards of one page have in common."""
    return place.model, place.device, place.workload


def page_names(places: Sequence[Place]) -> dict[Subject, str]:
    """Where each page lies below the leaderboards. Pages whose names would be one on some machine get a suffix each."""
    by_path: dict[str, list[tuple[Subject, str]]] = defaultdict(list)
    for subject in dict.fromkeys(map(_subject, places)):
        model, device, workload = subject
        folder = path_part(model, "model")
        folder += f"-{_digest(model)}" if folder.lower() in RESERVED else ""
        path = f"{folder}/{path_part(f'{device}-{workload}', 'page')}"
        by_path[path.lower()].append((subject, path))
    paths = {
        subject: f"{path}-{_digest(*subject)}" if len(alike) > 1 else path
        for alike in by_path.values()
        for subject, path in alike
    }
    return {subject: f"{path}.md" for subject, path in zip(paths, distinct(paths.values()), strict=True)}


def path_part(text: str, what: str) -> str:
    """The text as the name of a file; where it cannot be one even with hyphens in it, a name of its own."""
    part = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)
    try:
        return plain_name(part, what)
    except UsageError:
        return f"{what}-{_digest(text)}"


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with a number where one would be the same file as another on some machine."""
    taken: set[str] = set()
    answer = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(one for one in itertools.chain([name], numbered) if one.lower() not in taken)
        taken.add(free.lower())
        answer.append(free)
    return answer


def _digest(*text: str) -> str:
    return hashlib.sha256("\n".join(text).encode(errors="backslashreplace")).hexdigest()[:12]


def ranked(boards: Sequence[Board]) -> Sequence[Board]:
    """Sorted and with letters."""
    for board in boards:
        for group in board.groups:
            stand(group, board.columns)
    return boards


def page_files(folder: Path, records: Sequence[Entry]) -> dict[str, str]:
    """Every file that the records give, by its path below the folder."""
    pages, outside = paged(records)
    known = reported.read(folder)

    def board_files(name: str, number: str = "") -> dict[str, str]:
        """A page and its pictures, which are named after it."""
        own, stem = ranked(pages[name]), name.removesuffix(".md")
        files: dict[str, str] = {}
        shown: list[list[str]] = []
        for at, board in enumerate(own, 1):
            svgs = pareto.pictures(board)
            board_number = f"{at}-" if len(own) > 1 else ""
            figures = distinct(path_part(figure, "figure") for figure in svgs)
            paths = [f"{stem}-{number}{board_number}{figure}.svg" for figure in figures]
            files |= dict(zip(paths, svgs.values(), strict=True))
            shown.append([PurePosixPath(path).name for path in paths])
        return {name: page(own, known, (folder / name).parent, shown), **files}

    files = {INDEX: index(pages, outside, folder, REPORTED if known else "")}
    if known:
        files[REPORTED] = reported_page(known)
    taken = {name.lower() for name in files}
    for name, own in zip(pages, spread(board_files, list(pages), least=FEW), strict=True):
        numbers = itertools.count(2)
        while not taken.isdisjoint(path.lower() for path in own):  # a picture is named as another page's
            own = board_files(name, f"{next(numbers)}-")
        taken |= {path.lower() for path in own}
        files |= own
    return {name: f"{MARK}\n{text}" if name.endswith(".svg") else f"{MARK}\n\n{text}" for name, text in files.items()}


def differing(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """What is missing, stale or made by no record, and which of it. A file of others in the way is refused."""
    try:
        must_be_free(folder, files)
        different = {}
        for name, text in files.items():
            path = folder / name
            if not path.is_file():
                different[name] = MISSING
            elif path.read_bytes().replace(b"\r\n", b"\n") != text.encode():
                different[name] = STALE
        here = {name.lower() for name in files}  # some machines tell no capitals from small letters
        return different | {name: ORPHAN for name in marked_files(folder) if name.lower() not in here}
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {one_line(str(error.filename or folder))}: {error.strerror}",
            "give a folder that can be read",
        ) from error


def must_be_free(folder: Path, names: Iterable[str]) -> None:
    """Refuse where a page would go through a link, or onto what harness did not write."""
    obstacles = [why for name in names if (why := _obstacle(folder, PurePosixPath(name)))]
    if obstacles:
        more = f" (and {len(obstacles) - 1} more: {'; '.join(obstacles[1:4])})" if len(obstacles) > 1 else ""
        raise UsageError(
            one_line(f"{obstacles[0]}; a page belongs there{more}"),
            "move it away, or keep leaderboards in a folder of their own; nothing was written",
        )
    for name in names:
        below(folder, name, error=UsageError)


def _obstacle(folder: Path, name: PurePosixPath) -> str:
    path = folder
    for part in name.parts[:-1]:
        path = path / part
        if path.is_symlink():
            return f"{path} is a link"
        if path.exists() and not path.is_dir():
            return f"{path} is not a folder"
    return foreign(path / name.name)


def foreign(path: Path) -> str:
    """Why a file must not be replaced, a link among others; empty if harness wrote it, or if there is none."""
    if path.is_symlink():
        return f"{path} is a link"
    try:
        lines = content(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    except Unreadable as error:
        return str(error)
    return (
        "" if MARK in lines[:2] or not set(OLDER).isdisjoint(lines) else f"{path} was not made by harness leaderboard"
    )


def marked_files(folder: Path) -> Iterator[str]:
    """All pages and pictures with the mark. No link is followed; what cannot be read is not ours."""
    rooms = [path for path in sorted(folder.iterdir()) if path.name not in NOT_PAGES and not path.is_symlink()]
    for room in (folder, *rooms):
        try:
            files = sorted(room.iterdir())
        except OSError:  # a file, mostly
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
    """Bring the folder up to date; what no record gives any more is removed. What was done to which file."""
    done = {}
    for name, why in differing(folder, files).items():
        if name in files:
            put(folder / name, files[name].encode())
        else:
            (folder / name).unlink()
        done[name] = DONE[why]
    return done


def printed(records: Sequence[Entry]) -> str:
    """The same tables for a terminal: no pictures, no links."""
    pages, outside = paged(records)
    parts = spread(lambda own: page(ranked(own), [], None), list(pages.values()), least=FEW)
    return "\n".join([*parts, *([outside_words(outside, None)] if outside else ())])
