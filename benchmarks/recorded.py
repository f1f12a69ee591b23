"""Exit code 0 if a cell has a final record in a folder: `harness run … --dry-run --json | recorded.py FOLDER`.

It compares specs and not stage keys, because a key includes the cost table of the machine that it was made on.
A record from another machine therefore counts as well.
"""

import json
import sys
from pathlib import Path

FINAL = ("ok", "over_budget", "unsupported")  # another run may change any other status


def comparable(spec: dict) -> dict:
    """The fields of a spec that a plan has as well as a record; a plan does not know the model's revision."""
    return {name: value for name, value in spec.items() if name != "revision"}


if __name__ == "__main__":
    requested = comparable(json.load(sys.stdin)["spec"])
    records = (json.loads(path.read_text(encoding="utf-8")) for path in Path(sys.argv[1]).glob("*.json"))
    sys.exit(not any(record["status"] in FINAL and comparable(record["spec"]) == requested for record in records))
