"""All boards as one HTML page that needs nothing else: rows sort and filter, pictures tell what they show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from harness.leaderboard import pareto
from harness.leaderboard.entries import Entry
from harness.leaderboard.page import LEGEND, Table, failed, setting, table, taken_words
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import Board, Group
from harness.leaderboard.site import FEW, paged, ranked
from harness.spread import spread

TEMPLATE = Path(__file__).with_name("sheet.html")


def sheet(records: Sequence[Entry], home: Path, known: Sequence[Reported] = ()) -> str:
    """`home` is the folder that the page will lie in, which links start from."""
    pages, outside = paged(records)

    def made_of(found: Sequence[Board]) -> str:
        return "\n".join(_board(board, known, home) for board in ranked(found))

    made = spread(made_of, list(pages.values()), least=FEW)
    places = [board.place for found in pages.values() for board in found]
    if outside:
        lost = _group(Group("in no table", [], list(outside)), [], home)
        made.append(f"<section>{lost}</section>")
    if known:
        lines = _table([one.row() for one in known])
        made.append(f'<section><h2>Reported, not re-run</h2><div class="group" data-budget="">{lines}</div></section>')
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        legend=escape(LEGEND),
        models=_options({place.model for place in places}),
        devices=_options({place.device for place in places}),
        boards="\n".join(made),
    )


def _options(names: set[str]) -> str:
    return "".join(f"<option>{escape(name)}</option>" for name in sorted(names))


def _board(board: Board, known: Sequence[Reported], home: Path) -> str:
    place = board.place
    plots = "\n".join(pareto.pictures(board).values())
    notes = "<br>".join(escape(line) for line in [setting(board), *taken_words(board)])
    groups = "\n".join(_group(group, table(board, group, known, home), home) for group in board.groups)
    head = f'<section data-model="{escape(place.model)}" data-device="{escape(place.device)}">'
    title = escape(f"{place.model} on {place.device}, {place.workload}")
    return f'{head}\n<h2>{title}</h2>\n<p class="note">{notes}</p>\n{plots}\n{groups}\n</section>'


def _group(group: Group, lines: Table, home: Path) -> str:
    parts = [f'<div class="group" data-budget="{escape(group.title)}"><h3>{escape(group.title)}</h3>']
    if lines:
        parts.append(_table(lines))
    if group.failures:
        failures = (
            f"<li class=failed>{_plain(failed(entry, home).removeprefix('- '))}</li>" for entry in group.failures
        )
        parts.append(f"<ul>{''.join(failures)}</ul>")
    return "\n".join([*parts, "</div>"])


def _table(lines: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in lines[0])
    body = "\n".join(f"<tr>{''.join(_cell(*pair) for pair in line.items())}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, text: str) -> str:
    return f"<td{' class=settings' if name == 'settings' else ''}>{_plain(text)}</td>"


def _plain(text: str) -> str:
    """What little Markdown our tables hold, as HTML."""
    words = escape(text.replace("`", "").replace("**", ""))
    return re.sub(r"\[(\w+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', words)
