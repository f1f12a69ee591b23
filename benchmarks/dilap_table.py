"""The tables of leaderboards/dilap.md from a runs folder: methods at the same latency, each paired with DiLAP."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from harness import stats
from harness.plugins import registry
from harness.records import Record
from harness.store import Store

TEXTS = ("wikitext2", "c4")


def main(folder: Path) -> None:
    store = Store(folder)
    found: dict[tuple[str, str, float, str], list[Record]] = defaultdict(list)
    for path in sorted(folder.glob("records/*.json")):
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
        spec = record.spec
        assert spec.budget is not None
        found[spec.device, spec.workloads[0], -spec.budget.value, spec.recovery.partition(":")[0]].append(record)
    for (device, workload, asked, recovery), records in sorted(found.items(), key=lambda item: item[0]):
        groups = grouped(records)
        own = standing(groups)
        print(f"\n## {-asked:g}x of dense, {workload} on {device}, recovery {recovery}\n")
        print(f"Ratios are to `{own}`.\n")
        print(tabulate(rows(groups, own, store), headers="keys", tablefmt="github", disable_numparse=True))


def grouped(records: list[Record]) -> dict[str, list[Record]]:
    """By method and settings, its seeds together."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        group = groups[named(record)]
        if twice := [other.id for other in group if other.spec.seed == record.spec.seed]:
            which = f"{named(record)}, seed {record.spec.seed}"
            sys.exit(f"{which} has two records: delete the older of {twice[0]} and {record.id}")
        group.append(record)
    return groups


def standing(groups: dict[str, list[Record]]) -> str:
    """The DiLAP that others are compared with: that of most seeds, then the plainest."""
    known = [name for name in groups if name.partition(" ")[0] == "dilap"]
    return min(known, key=lambda name: (-len(groups[name]), len(name.split())), default="")


def rows(groups: dict[str, list[Record]], own: str, store: Store) -> list[dict[str, str]]:
    """A line per method and settings, the best first; what failed has its line too."""
    losses = {name: {text: documents(group, text, store) for text in TEXTS} for name, group in groups.items()}
    ours = losses.get(own)
    lines = []
    for name, group in groups.items():
        took = [record.budget.achieved for record in group if record.budget]
        cuts = [record.artefact.ratio_blocks for record in group if record.artefact]
        line = {
            "method": name,
            "status": "/".join(sorted({record.status for record in group})),
            "measured": " ".join(f"{x:.3f}x" for x in took),
            "parameters gone": f"{sum(cuts) / len(cuts):.1%}" if cuts else "",
        }
        for text in TEXTS:
            mine = losses[name][text]
            line[text] = f"{perplexity(mine):.1f}" + spread(group, text) if mine else ""
            line[f"ratio, {text}"] = paired(mine, ours[text]) if ours and name != own else ""
        if any(record.cost.train_tokens for some in groups.values() for record in some):
            line["trained on"] = f"{max(record.cost.train_tokens for record in group):,}"
        line["search, s"] = f"{sum(r.cost.prepare_s + r.cost.search_s for r in group) / len(group):.0f}"
        lines.append((perplexity(losses[name]["wikitext2"]), line))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def named(record: Record) -> str:
    """A method, DiLAP with every setting that is not the preset's."""
    spec, given = registry().get("pruner", record.spec.pruner), record.spec.parameters
    changed = [f"{k}={given[k]}" for k, known in spec.parameters.items() if k in given and given[k] != known.quick]
    return " ".join([spec.name, *(changed if spec.name == "dilap" else ())])


def documents(group: list[Record], text: str, store: Store) -> dict[str, float]:
    """The loss of each window, the mean over seeds."""
    each = [store.read_side_file(record.scores[text].samples)["documents"] for record in group if text in record.scores]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]} if each else {}


def perplexity(losses: dict[str, float]) -> float:
    return math.exp(sum(losses.values()) / len(losses)) if losses else math.inf


def spread(group: list[Record], text: str) -> str:
    values = [record.scores[text].value for record in group if text in record.scores]
    return f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""


def paired(mine: dict[str, float], ours: dict[str, float]) -> str:
    """How many times the perplexity, with the 95 % interval over windows."""
    differences = [mine[name] - ours[name] for name in mine if name in ours]
    if not differences or (bounds := stats.interval(differences)) is None:
        return ""
    mean = sum(differences) / len(differences)
    return f"{math.exp(mean):.2f} [{math.exp(bounds[0]):.2f}, {math.exp(bounds[1]):.2f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
