"""The model card that travels with a pruned model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from harness.api import ModelCard
from harness.formatting import figure_with_error
from harness.markup import Cell, Code, Link, markdown, markdown_table, yaml_text
from harness.records.schema import Record


def in_one_line(text: str) -> str:
    """Text as one line: a sign for each line end, since a model may write only those, and no control codes."""
    return "".join(c if c.isprintable() else "�" for c in re.sub(r"\s*\n\s*", " ⏎ ", text))


def card(record: Record, source: ModelCard, uneven: bool, pictures: Iterable[str] = ()) -> str:
    artefact, spec = record.artefact, record.spec
    assert artefact is not None
    settings = "".join(f" --set {name}={value}" for name, value in spec.parameters.items())
    lines = [
        "---",
        f"base_model: {yaml_text(source.source)}",
        *([f"license: {yaml_text(source.licence)}"] if source.licence else []),
        "tags: [pruned]",
        "---",
        "",
        f"# {markdown(f'{spec.model}, pruned by {spec.pruner}')}",
        "",
        f"Made by harness from {markdown(source.source)} (revision {markdown(spec.revision)}). "
        f"{artefact.ratio_blocks:.2%} of the prunable",
        f"parameters were removed: {artefact.params:,} of {artefact.params_dense:,} remain.",
        "",
    ]
    rows: list[dict[str, Cell]] = []
    for workload, timing in record.latency.items():
        dense, pruned = (f"{timing_side.median_ns / 1e6:.2f}" for timing_side in (timing.dense, timing.pruned))
        rows.append({"": f"{workload}, {timing.clock} time on {spec.device}, ms", "dense": dense, "pruned": pruned})
    for name, score in record.scores.items():
        if not name.startswith("footprint"):
            dense = figure_with_error(score.dense, score.dense_stderr)
            pruned = figure_with_error(score.value, score.stderr)
            rows.append({"": f"{name} (n={score.n})", "dense": dense, "pruned": pruned})
    if rows:
        lines.append(markdown_table(rows))
    for name, score in record.scores.items():
        if score.texts:
            texts = [{column: in_one_line(text) for column, text in pair.items()} for pair in score.texts]
            lines += ["", f"What both models wrote ({markdown(name)}):", "", markdown_table(texts)]
    lines.append("")
    lines += [markdown(Link(Path(name).stem, f"notes/{quote(os.fsencode(name))}", picture=True)) for name in pictures]
    if uneven:
        lines += [
            "Its layers differ, so transformers needs the modelling file in this folder:",
            "`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.",
            "`harness.load(folder)` opens it without running code from the folder.",
        ]
    else:
        lines += ["`AutoModelForCausalLM.from_pretrained(folder)` opens it as it is."]
    lines.append("")
    options = Code(f"--pruner {spec.pruner}{settings} --seed {spec.seed}")
    lines += [f"Made with {markdown(options)}; `cut.json` says which units remain,"]
    lines += ["`record.json` holds the evidence.", ""]
    return "\n".join(lines)
