"""What in the README is made, not written: what is registered in this checkout, and how the published rows compare.

`python -m harness.leaderboard.readme` brings README.md up to date.
"""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from harness import plugins
from harness.records import Record

LIST, ROWS, END = (
    "<!-- made by `harness list --markdown` -->",
    "<!-- made from leaderboards/results/baselines -->",
    "<!-- end -->",
)
KINDS = ("pruner", "device", "evaluator", "recovery", "model")


def listed() -> str:
    """Every registered name by kind, with where it comes from."""
    known = plugins.registry()
    rows = []
    for kind in KINDS:
        for name, spec in sorted(known.specs[kind].items()):
            origin = known.origins[kind, name]
            home = "built in" if origin.plugin == "builtin" else f"`{origin.distribution}`"
            rows.append((kind, f"`{name}`", spec.summary, home))
    return tabulate(rows, headers=("kind", "name", "what it is", "from"), tablefmt="github", disable_numparse=True)


def compared(folder: Path) -> str:
    """Published cells in few columns, the best perplexity first."""
    records = [Record.model_validate_json(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    rows = []
    for record in sorted(records, key=lambda record: record.scores["passages"].value):
        healed = "" if record.spec.recovery == "none" else f" + {record.spec.recovery}"
        timing = record.latency[record.spec.workloads[0]]
        rows.append(
            {
                "method": f"`{record.spec.pruner}`{healed}",
                "removed": f"{record.artefact.ratio_blocks:.1%}" if record.artefact else "",
                "perplexity": f"{record.scores['passages'].value:,.3g}",
                "speed-up": f"{timing.speedup:.2f}x",
            }
        )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def filled(text: str, root: Path = Path()) -> str:
    """A page with what stands between its marks brought up to date."""
    made = {LIST: listed, ROWS: lambda: compared(root / "leaderboards/results/baselines")}
    for begin, make in made.items():
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{make()}\n{END}{rest.partition(END)[2]}"
    return text


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
