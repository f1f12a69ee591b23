"""The list in the README that is made, not written: what is registered in this checkout.

`python -m harness.leaderboard.readme` brings README.md up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from tabulate import tabulate

from harness import plugins

BEGIN, END = "<!-- made by `harness list --markdown` -->", "<!-- end -->"
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


def filled(text: str) -> str:
    """A page with the list between its marks brought up to date."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{listed()}\n{END}", text, flags=re.DOTALL
    )


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
