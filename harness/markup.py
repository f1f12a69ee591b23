"""Text from anywhere, written into Markdown, HTML, SVG and YAML so that it stays text.

A plain `str` is text of anyone's: it is escaped where it enters a page. The other kinds of piece are the few things
that pages hold beside text, and only this tool makes them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from harness.errors import REASON


class Code(str):
    """A name or a command, set as code."""


class Strong(str):
    """Text in bold."""


class Figures(str):
    """Numbers as this tool formats them, with their brackets: 1.62x [1.57, 1.67]."""


@dataclass(frozen=True)
class Link:
    """A link to a file near the page, or a picture that is shown in it."""

    text: str
    href: str
    picture: bool = False

    def __post_init__(self) -> None:
        if not _HREF.fullmatch(self.href):
            raise ValueError(f"{self.href!r} is not a path beside a page")


Piece = str | Link
Cell = Piece | tuple[Piece, ...]

_HREF = re.compile(r"[\w.~%-][\w.~%/-]*", re.ASCII)  # no scheme, no other host, no quotes
_CODE = re.compile(r"(?=\S)[\w .,:=/+@'\"()\[\]~-]+(?<=\S)", re.ASCII)
_FIGURES = re.compile(r"(?:[A-Za-z0-9 .,%±+-]|(?<= )\[[^\[\]()]*\]|(?<= )\([^\[\]()]*\))*")
_SPECIAL = re.compile(
    r"[\\`*\[\]|~$<>&{}]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # between letters it is no emphasis: no_rope
    r"|(?<!\S)\#"
    r"|(?<=/)/|(?<=[wW]{3})\.|(?<=[\w.+-])@(?=\w)"  # addresses that renderers make links of
)
# Entities where some renderers know no backslash; an @ in code is part of no address.
_OTHERWISE = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "{": "&#123;", "}": "&#125;", "/": "&#47;", "@": "`@`"}
_START = re.compile(r"[-+=:!?/#]|\d{1,9}(?=[.)](?:\s|$))")
_YAML = re.compile(r"[A-Za-z/][\w./-]*(?: [\w./-]+)*", re.ASCII)
_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def link(text: str, path: Path, home: Path) -> Link:
    """A link to a file from a page in the folder `home`."""
    return Link(text, quote(os.fsencode(Path(os.path.relpath(path, home)).as_posix())))


def markdown(cell: Cell) -> str:
    """For a table cell or a heading, in CommonMark with or without GitHub's extensions."""
    return "".join(map(_markdown_piece, _pieces(cell)))


def markdown_line(cell: Cell) -> str:
    """For a paragraph or a list item, which must not begin as another block does."""
    line = markdown(cell).strip()
    start = _START.match(line)
    if start is None:
        return line
    at = start.end() if start[0].isdigit() else 0
    return f"{line[:at]}\\{line[at:]}"


def html(cell: Cell) -> str:
    """For HTML and SVG, between tags or in quotes."""
    return "".join(map(_html_piece, _pieces(cell)))


def yaml_text(text: str) -> str:
    """A value in YAML: as it is where that can only be text, else in quotes."""
    plain = plain_line(text)
    is_text = _YAML.fullmatch(plain) and plain.lower() not in _YAML_WORDS
    return plain if is_text else json.dumps(plain, ensure_ascii=False)


def _pieces(cell: Cell) -> tuple[Piece, ...]:
    return cell if isinstance(cell, tuple) else (cell,)


def plain_line(text: str, most: int = REASON) -> str:
    """Text in one line without control characters, the same on every machine: unlike messages, pages are compared."""
    text = text[: 4 * most]
    if not text.isprintable():  # which lone surrogates, marks of direction and letters without width are not either
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _clean(text: str) -> str:
    """One line; a space at an end, which parts a piece from its neighbour, stays."""
    plain = plain_line(text)
    return f"{' ' * text[:1].isspace()}{plain}{' ' * (plain != '' and text[-1:].isspace())}"


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
    return _SPECIAL.sub(lambda found: _OTHERWISE.get(found[0], f"\\{found[0]}"), _clean(text))


def _html_piece(piece: Piece) -> str:
    if isinstance(piece, Link):
        return f'<a href="{piece.href}">{_html_piece(piece.text)}</a>'
    return escape(_clean(piece))
