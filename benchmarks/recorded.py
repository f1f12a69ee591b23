"""Whether a cell was recorded, on this machine or another: `harness run … --dry-run --json | recorded.py FOLDER`.

What was asked decides, not the stage keys: those hold the machine's own cost table.
"""

import json
import sys
from pathlib import Path

DONE = ("ok", "over_budget", "unsupported")  # the rest may end otherwise when asked again


def asked(spec: dict) -> dict:
    """The parts of a request that a plan knows as well as a record."""
    return {name: value for name, value in spec.items() if name != "revision"}


if __name__ == "__main__":
    wanted = asked(json.load(sys.stdin)["spec"])
    records = (json.loads(path.read_text(encoding="utf-8")) for path in Path(sys.argv[1]).glob("*.json"))
    sys.exit(not any(record["status"] in DONE and asked(record["spec"]) == wanted for record in records))
