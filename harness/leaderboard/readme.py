"""The generated tables of the README: what is registered in this checkout, and an excerpt of the leaderboards.

`python -m harness.leaderboard.readme` brings README.md up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness import plugins
from harness.leaderboard.entries import read
from harness.leaderboard.markdown_page import table
from harness.leaderboard.ranking import rank_group
from harness.leaderboard.rows import Group, Row, boards
from harness.markup import Cell, Code, markdown_table

LIST_MARK = "<!-- made by `harness list --markdown` -->"
EXCERPT = ("smollm2-135m", "cpu", "prefill:1x512", "0.65x")  # model, device, workload and budget
EXCERPT_MARK = f"<!-- made from leaderboards: {', '.join(EXCERPT)} -->"
END_MARK = "<!-- end -->"
SHOWN = ("method", "settings", "speed-up", "removed", "wikitext2", "c4")
KINDS = ("pruner", "device", "evaluator", "recovery", "model")


def registry_table() -> str:
    """A table of every registered name by kind, with the distribution it comes from."""
    registry = plugins.registry()
    rows: list[dict[str, Cell]] = []
    for kind in KINDS:
        for name, spec in sorted(registry.specs[kind].items()):
            origin = registry.origins[kind, name]
            source = "built in" if origin.plugin == "builtin" else Code(origin.distribution)
            rows.append({"kind": kind, "name": Code(name), "what it is": spec.summary, "from": source})
    return markdown_table(rows)


def compared(folder: Path) -> str:
    """A table of one group of the leaderboards in few columns, from the board that has most methods."""
    model, device, workload, limit = EXCERPT
    entries = [entry for entry in read(folder) if entry.payload["spec"]["recovery"] == "none"]
    candidates = []
    for board in boards(entries)[0]:
        if (board.setup.model, board.setup.device, board.setup.workload) == (model, device, workload):
            groups = [group for group in board.groups if group.budget.startswith(f"at most {limit} ")]
            candidates += [
                (board, Group(group.budget, most_common_settings(group.rows, board.rows), [])) for group in groups
            ]
    if not candidates:
        return "nothing yet"
    board, group = max(candidates, key=lambda candidate: len(candidate[1].rows))
    first = [column for name in SHOWN for column in board.columns if column.name == name][:1]
    rank_group(group, board.columns, by=first)
    lines = table(board, group, [], None)
    shown = [name for name in SHOWN if any(line.get(name) for line in lines)]
    return markdown_table([{name: line.get(name, "") for name in shown} for line in lines])


def most_common_settings(rows: Sequence[Row], everywhere: Sequence[Row]) -> list[Row]:
    """For each method, the rows with the settings that most of its rows have at all budgets of the board.

    Of equally common settings, those with the fewest parameters. Scores play no part: to show a method by its best
    result of several would flatter it.
    """
    counts = Counter(map(_request, everywhere))
    chosen: dict[str, tuple[str, ...]] = {}
    for request in sorted(map(_request, rows), key=lambda r: (-counts[r], r[-1].count("="), r)):
        chosen.setdefault(request[0], request)
    return [row for row in rows if _request(row) == chosen[row.spec.pruner]]


def _request(row: Row) -> tuple[str, ...]:
    return row.spec.pruner, row.spec.preset, row.spec.calibration, row.settings


def with_new_tables(text: str, root: Path = Path()) -> str:
    """The text of a page, with new tables between its marks."""
    tables = {LIST_MARK: registry_table, EXCERPT_MARK: lambda: compared(root / "leaderboards")}
    for mark, make_table in tables.items():
        before, found_mark, rest = text.partition(mark)
        if found_mark:
            text = f"{before}{mark}\n{make_table()}\n{END_MARK}{rest.partition(END_MARK)[2]}"
    return text


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(with_new_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
