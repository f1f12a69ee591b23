"""All boards as one HTML page that needs nothing else: rows sort and filter, pictures tell what they show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from harness.leaderboard import pareto
from harness.leaderboard.entries import Entry
from harness.leaderboard.page import LEGEND, Table, setting, table, taken_words
from harness.leaderboard.rows import Board, Group
from harness.leaderboard.site import FEW, paged, ranked
from harness.spread import spread

TEMPLATE = Path(__file__).with_name("sheet.html")


def sheet(records: Sequence[Entry]) -> str:
    pages, outside = paged(records)
    made = spread(lambda found: "\n".join(map(_board, ranked(found))), list(pages.values()), least=FEW)
    places = [board.place for found in pages.values() for board in found]
    if outside:
        lost = [Group("in no table", [], list(outside))]
        made.append("<section>" + "".join(_group(group, []) for group in lost) + "</section>")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        legend=escape(LEGEND),
        models=_options({place.model for place in places}),
        devices=_options({place.device for place in places}),
        boards="\n".join(made),
    )


def _options(names: set[str]) -> str:
    return "".join(f"<option>{escape(name)}</option>" for name in sorted(names))


def _board(board: Board) -> str:
    place = board.place
    plots = "\n".join(pareto.pictures(board).values())
    notes = "<br>".join(escape(line) for line in [setting(board), *taken_words(board)])
    groups = "\n".join(_group(group, table(board, group, [], None)) for group in board.groups)
    head = f'<section data-model="{escape(place.model)}" data-device="{escape(place.device)}">'
    title = escape(f"{place.model} on {place.device}, {place.workload}")
    return f'{head}\n<h2>{title}</h2>\n<p class="note">{notes}</p>\n{plots}\n{groups}\n</section>'


def _group(group: Group, lines: Table) -> str:
    parts = [f'<div class="group" data-budget="{escape(group.budget)}"><h3>{escape(group.budget)}</h3>']
    if lines:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in lines[0])
        body = "\n".join(f"<tr>{''.join(_cell(*pair) for pair in line.items())}</tr>" for line in lines)
        parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    if group.failures:
        parts.append(f"<ul>{''.join(_failed(entry) for entry in group.failures)}</ul>")
    return "\n".join([*parts, "</div>"])


def _cell(name: str, text: str) -> str:
    return f"<td{' class=settings' if name == 'settings' else ''}>{escape(text.strip('`'))}</td>"


def _failed(entry: Entry) -> str:
    record = entry.record
    words = f"{record.spec.pruner} {record.spec.recovery}: {record.status}: {record.reason} ({record.id[:8]})"
    return f"<li class=failed>{escape(words)}</li>"
