"""All boards as one self-contained HTML page, whose rows can be sorted and filtered."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from harness.leaderboard import pareto, scatter
from harness.leaderboard.entries import Entry
from harness.leaderboard.markdown_page import LEGEND, failed, reported_row, score_notes, setup_text, table
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import Board, Group
from harness.leaderboard.site import FEW, MARK, group_pages, rank_boards
from harness.markup import Cell, Table, html
from harness.system.parallel import parallel_map

TEMPLATE = Path(__file__).with_name("sheet.html")


def render_page(records: Sequence[Entry], home: Path, reported: Sequence[Reported] = ()) -> str:
    """The page as text. Its links are relative to `home`, the folder it will be in; `reported` are reported figures."""
    pages, outside = group_pages(records)

    def sections(boards: Sequence[Board]) -> str:
        return "\n".join(_board(board, reported, home) for board in rank_boards(boards))

    parts = parallel_map(sections, list(pages.values()), least=FEW)
    setups = [board.setup for boards in pages.values() for board in boards]
    if outside:
        parts.append(f"<section>{_group(Group('records in no table', [], list(outside)), [], home)}</section>")
    if reported:
        lines = _table([reported_row(item) for item in reported])
        parts.append(f'<section><h2>Reported, not re-run</h2><div class="group" data-budget="">{lines}</div></section>')
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template).substitute(
        mark=MARK,
        policy=_policy(template),
        legend=html(LEGEND),
        models=_options({setup.model for setup in setups}),
        devices=_options({setup.device for setup in setups}),
        boards="\n".join(parts),
    )


def _policy(template: str) -> str:
    """The page's Content-Security-Policy, which allows its own script and styles by their hashes and nothing else."""
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    allowed = " ".join(map(_hash, [*styles, scatter.STYLE]))
    return f"default-src 'none'; script-src {_hash(script)}; style-src {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _options(names: set[str]) -> str:
    return "".join(f"<option>{html(name)}</option>" for name in sorted(names))


def _board(board: Board, reported: Sequence[Reported], home: Path) -> str:
    setup = board.setup
    plots = "\n".join(pareto.pictures(board).values())
    notes = "<br>".join(html(line) for line in [setup_text(board), *score_notes(board)])
    groups = "\n".join(_group(group, table(board, group, reported, home), home) for group in board.groups)
    head = f'<section data-model="{html(setup.model)}" data-device="{html(setup.device)}">'
    title = html(f"{setup.model} on {setup.device}, {setup.workload}")
    return f'{head}\n<h2>{title}</h2>\n<p class="note">{notes}</p>\n{plots}\n{groups}\n</section>'


def _group(group: Group, lines: Table, home: Path) -> str:
    parts = [f'<div class="group" data-budget="{html(group.title)}"><h3>{html(group.title)}</h3>']
    if lines:
        parts.append(_table(lines))
    if group.failures:
        failures = (f"<li class=failed>{html(failed(entry, home))}</li>" for entry in group.failures)
        parts.append(f"<ul>{''.join(failures)}</ul>")
    return "\n".join([*parts, "</div>"])


def _table(lines: Table) -> str:
    head = "".join(f'<th scope="col">{html(name)}</th>' for name in lines[0])
    body = "\n".join(f"<tr>{''.join(_cell(*pair) for pair in line.items())}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, cell: Cell) -> str:
    return f"<td{' class=settings' if name == 'settings' else ''}>{html(cell)}</td>"
