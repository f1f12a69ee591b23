"""Escaping text for Markdown, HTML, SVG and YAML.

A plain `str` may come from anyone and is escaped. The other kinds of piece are markup, and only harness makes them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from harness.errors import REASON


class Code(str):
    """A name or a command, shown as code."""


class Strong(str):
    """Text in bold."""


class Figures(str):
    """Numbers as harness formats them, whose brackets are not escaped: 1.62x [1.57, 1.67]."""


@dataclass(frozen=True)
class Link:
    """A relative link to a file; with `picture`, the file is an image that the page shows."""

    text: str
    href: str
    picture: bool = False

    def __post_init__(self) -> None:
        if not _HREF.fullmatch(self.href):
            raise ValueError(f"{self.href!r} is not a path beside a page")


Piece = str | Link
Cell = Piece | tuple[Piece, ...]
Table = Sequence[Mapping[str, Cell]]  # rows by column; all have the columns of the first one

_HREF = re.compile(r"[\w.~%-][\w.~%/-]*", re.ASCII)  # no scheme, no other host, no quotes
_CODE = re.compile(r"(?=\S)[\w .,:=/+@'\"()\[\]~-]+(?<=\S)", re.ASCII)
_FIGURES = re.compile(r"(?:[A-Za-z0-9 .,%±+-]|(?<= )\[[^\[\]()]*\]|(?<= )\([^\[\]()]*\))*")
_SPECIAL = re.compile(
    r"[\\`*\[\]|~$<>&{}]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore, except between letters, where it is not emphasis: no_rope
    r"|(?<!\S)\#"
    r"|(?<=/)/|(?<=[wW]{3})\.|(?<=[\w.+-])@(?=\w)"  # addresses that renderers turn into links
)
# Characters for which a backslash does not work in all renderers. An @ in code is not part of an address.
_REPLACEMENTS = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "{": "&#123;", "}": "&#125;", "/": "&#47;", "@": "`@`"}
_START = re.compile(r"[-+=:!?/#]|\d{1,9}(?=[.)](?:\s|$))")
_YAML = re.compile(r"[A-Za-z/][\w./-]*(?: [\w./-]+)*", re.ASCII)
_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def link(text: str, path: Path, home: Path) -> Link:
    """A link to a file from a page in the folder `home`."""
    return Link(text, quote(os.fsencode(Path(os.path.relpath(path, home)).as_posix())))


def markdown(cell: Cell) -> str:
    """A cell as Markdown for a table or a heading: CommonMark, with or without GitHub's extensions."""
    return "".join(map(_markdown_piece, _pieces(cell)))


def markdown_line(cell: Cell) -> str:
    """A cell as Markdown for a paragraph or a list item: its start is escaped if it would begin another block."""
    line = markdown(cell).strip()
    start = _START.match(line)
    if start is None:
        return line
    index = start.end() if start[0].isdigit() else 0  # the backslash goes behind a number
    return f"{line[:index]}\\{line[index:]}"


def markdown_table(table: Table) -> str:
    """The table in GitHub's Markdown, the same bytes on every machine."""
    import tabulate

    # Without this, widths would depend on whether wcwidth is installed, and committed pages are compared byte by byte.
    tabulate.WIDE_CHARS_MODE = False
    lines = [[markdown(row[name]) for name in table[0]] for row in table]
    headers = [markdown(name) for name in table[0]]
    return tabulate.tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def html(cell: Cell) -> str:
    """A cell as HTML or SVG, between tags or in quotes."""
    return "".join(map(_html_piece, _pieces(cell)))


def yaml_text(text: str) -> str:
    """A text as a value in YAML, in quotes unless it can only be read as text."""
    plain = plain_line(text)
    is_text = _YAML.fullmatch(plain) and plain.lower() not in _YAML_WORDS
    return plain if is_text else json.dumps(plain, ensure_ascii=False)


def _pieces(cell: Cell) -> tuple[Piece, ...]:
    return cell if isinstance(cell, tuple) else (cell,)


def plain_line(text: str, most: int = REASON) -> str:
    """Text as one line without control characters. It is the same on every machine, because pages are compared."""
    text = text[: 4 * most]
    if not text.isprintable():  # lone surrogates, direction marks and zero-width characters are not printable either
        text = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _clean(text: str) -> str:
    """The text as one line. A space at its start or end stays, because it separates a piece from the next."""
    plain = plain_line(text)
    before = " " if text[:1].isspace() else ""
    after = " " if plain and text[-1:].isspace() else ""
    return f"{before}{plain}{after}"


def _markdown_piece(piece: Piece) -> str:
    if isinstance(piece, Link):
        return f"{'!' * piece.picture}[{_markdown_text(piece.text)}]({piece.href})"
    if isinstance(piece, Code) and _CODE.fullmatch(piece):
        return f"`{piece}`"
    if isinstance(piece, Figures) and _FIGURES.fullmatch(piece):
        return str(piece)
    text = _markdown_text(piece)
    return f"**{text}**" if isinstance(piece, Strong) and text else text


def _markdown_text(text: str) -> str:
    return _SPECIAL.sub(lambda match: _REPLACEMENTS.get(match[0], f"\\{match[0]}"), _clean(text))


def _html_piece(piece: Piece) -> str:
    if isinstance(piece, Link):
        return f'<a href="{piece.href}">{_html_piece(piece.text)}</a>'
    return escape(_clean(piece))
