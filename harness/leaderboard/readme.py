"""What in the README is made, not written: what is registered in this checkout, and how the published rows compare.

`python -m harness.leaderboard.readme` brings README.md up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness import plugins
from harness.leaderboard.entries import read
from harness.leaderboard.markdown_page import Table, table, tabled
from harness.leaderboard.ranking import stand
from harness.leaderboard.rows import Group, Row, boards
from harness.markup import Code

LIST, ROWS, END = (
    "<!-- made by `harness list --markdown` -->",
    "<!-- made from leaderboards: smollm2-135m, cpu, prefill:1x512, 0.65x -->",
    "<!-- end -->",
)
SHOWN = ("method", "settings", "speed-up", "removed", "wikitext2", "c4")
KINDS = ("pruner", "device", "evaluator", "recovery", "model")


def listed() -> str:
    """Every registered name by kind, with where it comes from."""
    known = plugins.registry()
    rows: Table = []
    for kind in KINDS:
        for name, spec in sorted(known.specs[kind].items()):
            origin = known.origins[kind, name]
            home = "built in" if origin.plugin == "builtin" else Code(origin.distribution)
            rows.append({"kind": kind, "name": Code(name), "what it is": spec.summary, "from": home})
    return tabled(rows)


def compared(folder: Path) -> str:
    """One group of the leaderboards in few columns: a row of each method, on the board where most have one."""
    model, device, workload, limit = ROWS.partition(": ")[2].removesuffix(" -->").split(", ")
    entries = [entry for entry in read(folder) if entry.words["spec"]["recovery"] == "none"]
    found = []
    for board in boards(entries)[0]:
        if (board.place.model, board.place.device, board.place.workload) == (model, device, workload):
            groups = [group for group in board.groups if group.budget.startswith(f"at most {limit} ")]
            found += [(board, Group(group.budget, usual(group.rows, board.rows), [])) for group in groups]
    if not found:
        return "nothing yet"
    board, group = max(found, key=lambda one: len(one[1].rows))
    first = [column for name in SHOWN for column in board.columns if column.name == name][:1]
    stand(group, board.columns, by=first)
    lines = table(board, group, [], None)
    shown = [name for name in SHOWN if any(line.get(name) for line in lines)]
    return tabled([{name: line.get(name, "") for name in shown} for line in lines])


def usual(rows: Sequence[Row], everywhere: Sequence[Row]) -> list[Row]:
    """Of each method those as it was asked most often at all budgets; of what is as common, with the fewest settings.

    No score is looked at: the best of several tries would be better than the method.
    """
    often = Counter(map(_request, everywhere))
    chosen: dict[str, tuple[str, ...]] = {}
    for asked in sorted(map(_request, rows), key=lambda asked: (-often[asked], asked[-1].count("="), asked)):
        chosen.setdefault(asked[0], asked)
    return [row for row in rows if _request(row) == chosen[row.spec.pruner]]


def _request(row: Row) -> tuple[str, ...]:
    return row.spec.pruner, row.spec.preset, row.spec.calibration, row.settings


def filled(text: str, root: Path = Path()) -> str:
    """A page with what stands between its marks brought up to date."""
    made = {LIST: listed, ROWS: lambda: compared(root / "leaderboards")}
    for begin, make in made.items():
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{make()}\n{END}{rest.partition(END)[2]}"
    return text


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
