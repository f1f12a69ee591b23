"""All generated files of a folder of leaderboards, and whether what lies there is what its records give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from harness.leaderboard import pareto, reported
from harness.leaderboard.entries import Entry
from harness.leaderboard.page import file_of, index, outside_words, page, reported_page
from harness.leaderboard.rows import Board, boards
from harness.leaderboard.standing import stand
from harness.spread import spread

NOT_PAGES = ("results", "latency")
INDEX, REPORTED = "README.md", "reported.md"
FEW = 8  # pages; more are made on all cores


def paged(records: Sequence[Entry]) -> tuple[dict[str, list[Board]], list[Entry]]:
    """The boards of each page; and what has no page."""
    found, outside = boards(records)
    pages: dict[str, list[Board]] = defaultdict(list)
    for board in found:
        pages[file_of(board.place)].append(board)
    return dict(sorted(pages.items())), outside


def ranked(boards: Sequence[Board]) -> Sequence[Board]:
    """Sorted and with letters."""
    for board in boards:
        for group in board.groups:
            stand(group, board.columns)
    return boards


def made(folder: Path, records: Sequence[Entry]) -> dict[str, str]:
    """Every file that the records give, by its path below the folder."""
    pages, outside = paged(records)
    known = reported.read(folder)

    def files(name: str) -> dict[str, str]:
        """A page and its pictures."""
        found, stem = ranked(pages[name]), PurePosixPath(name).with_suffix("")
        plots: list[dict[str, str]] = []
        for at, board in enumerate(found, 1):
            number = f"{at}-" if len(found) > 1 else ""
            plots.append({f"{stem.name}-{number}{figure}.svg": svg for figure, svg in pareto.pictures(board).items()})
        text = page(found, known, (folder / name).parent, [list(own) for own in plots])
        return {name: text, **{f"{stem.parent}/{plot}": svg for own in plots for plot, svg in own.items()}}

    made = {INDEX: index(pages, outside, folder, REPORTED if known else "")}
    if known:
        made[REPORTED] = reported_page(known)
    for found in spread(files, list(pages), least=FEW):
        made |= found
    return made


def differing(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """What is missing, stale or made by no record, and which of it."""
    found = {}
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            found[name] = "is missing"
        elif path.read_text(encoding="utf-8") != text:
            found[name] = "is not what the records give"
    mine = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".md", ".svg") and path.is_file())
    there = {path.as_posix() for path in mine if len(path.parts) > 1 and path.parts[0] not in NOT_PAGES}
    return found | dict.fromkeys(sorted(there - set(files)), "is made by no record")


def write(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Bring the folder up to date; what no record gives any more is removed. What was done to which file."""
    done = {}
    for name, why in differing(folder, files).items():
        path = folder / name
        if name in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[name], encoding="utf-8")
            done[name] = "is new" if why == "is missing" else "was brought up to date"
        else:
            path.unlink()
            done[name] = "was removed: no record makes it"
    return done


def printed(records: Sequence[Entry]) -> str:
    """The same tables for a terminal: no pictures, no links."""
    pages, outside = paged(records)
    parts = spread(lambda found: page(ranked(found), [], None), list(pages.values()), least=FEW)
    return "\n".join([*parts, *([outside_words(outside, None)] if outside else ())])
