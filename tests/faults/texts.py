"""Records and pages whose every text is hostile, and what a page is made of once it is rendered."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pydantic import ValidationError

from harness.leaderboard import entries
from harness.leaderboard.entries import Entry
from harness.records.schema import Record, digest, seal

GOLDEN = Path(__file__).parent.parent / "golden" / "record-1d.json"
HARMLESS = "some tèxt"
SCRIPT = "window.owned=1"
TEXTS = {
    "script": f"<script>{SCRIPT}</script>",
    "script-after-quote": f"\"'><script>{SCRIPT}</script>",
    "script-after-end": f"</script></style></title></textarea>--><script>{SCRIPT}</script>",
    "script-in-cdata": f"]]><script>{SCRIPT}</script><![CDATA[",
    "image-handler": f'<img src=x onerror="{SCRIPT}">',
    "svg-handler": f"<svg onload={SCRIPT}><set onbegin={SCRIPT} /></svg>",
    "attribute": f'x" onmouseover="{SCRIPT}" style="position:fixed',
    "attribute-single": f"x' onmouseover='{SCRIPT}",
    "frame": "<iframe src=https://evil.example/></iframe><object data=x></object><base href=//evil.example>",
    "refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    "form": "<form action=https://evil.example/><button>press</button></form>",
    "comment": "<!-- --> <!-- made by harness leaderboard",
    "link": "[click](https://evil.example/)",
    "link-script": f"[click](javascript:{SCRIPT})",
    "link-encoded": "[click](javascript:alert%281%29)",
    "link-of-figures": "1.5x [1.4, 1.6](https://evil.example/)",
    "link-reference": "[a]: https://evil.example/\n\n[a] [a][] [b][a]",
    "link-nested": "![x](y) [![z](https://evil.example/z.png)](https://evil.example/)",
    "image": "![x](https://evil.example/x.png)",
    "autolink": "<https://evil.example/> <user@evil.example>",
    "autolink-bare": "https://evil.example/x www.evil.example http://evil.example ftp://evil.example",
    "autolink-mail": "user@evil.example mailto:user@evil.example xmpp:user@evil.example/x",
    "heading": "x\n\n# heading\n\nheading\n=======\n\nheading\n---",
    "heading-at-start": "# heading #",
    "list": "\n- item\n* item\n+ item\n\n1. item\n2) item",
    "list-at-start": "- item",
    "list-star-at-start": "* item",
    "number-at-start": "1. item",
    "quote": "> quoted",
    "rule": "---",
    "rule-of-stars": "* * *",
    "table": "| a | b |\n|---|---|\n| c | d |",
    "bar": "a|b\\|c\\\\|d",
    "backslash": "ends in \\",
    "code-block": "```\ncode\n```\n~~~\ncode",
    "code-indented": "\n\n        code",
    "code-span": "`code` ``x` `",
    "emphasis": "*a* **b** _c_ __d__ ***e*** ~~f~~ ~g~",
    "entity": "&lt;script&gt; &#60;b&#62; &amp;lt; &colon;",
    "escape-codes": "\x1b]0;owned\x07\x1b[31mred\x1b[0m\x9b31m\x08\x7f",
    "line-ends": "a\r\nb\u2028c\u2029d\x0be\x0cf\x85g",
    "bidirectional": "a\u202eb\u202cc\u2066d\u2069e\u200ff",
    "zero-width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f\xadg",
    "templates": "{{ 7 * 7 }} {% include 'x' %} ${7*7} {: onclick=alert(1) } {#id}",
    "terminal-markup": "[bold red]x[/] [link=https://evil.example]y[/link] [/]",
    "emoji": ":smile: :warning:",
    "front-matter": "---\ntitle: x\n---",
    "long": "a" * 3000 + " " + "<b>" * 300,
    "blank": " ",
}


def hostile(text: str, number: int, pruner: str = "", **changes: Any) -> dict[str, Any]:
    """A sealed record that holds this text wherever a record may."""
    words = json.loads(_filled(text))
    words["spec"] |= {"pruner": f"{text}{pruner}", "parameters": {text: text}}
    words |= {"reason": text, "unscored": {text: text}, "unusual": {text: text, "value": text}}
    words["gates"] = [{"name": text, "guards": text, "ok": False, "detail": text}]
    words["environment"]["device"] = {"model": text, "threads": text, text: text}
    (timing,) = words["latency"].values()
    timing |= {"provenance": "device", "told": {"pruned": {text: text, "speed-up": "99x", f"{text}_bytes": text}}}
    timing["sustained"] |= {"throttle": [text]}
    figures = {"value": 40.0, "stderr": 2.0, "n": 100, "dense": 20.0, "higher_is_better": False, "scale": "exp-mean"}
    perplexity = figures | {
        "details": dict.fromkeys(DETAILS, text),
        "notes": [text],
        "texts": [dict.fromkeys(SIDES, text)],
    }
    accuracy = {"value": 0.5, "stderr": (0.25 / 99) ** 0.5, "n": 100, "dense": 0.6, "higher_is_better": True}
    plain = text.replace(".", ",")  # a score with a full stop in its name is a part of another, and in no picture
    words["scores"] = {f"{text}.": perplexity, f"{plain} 0": perplexity, "record": perplexity}
    words["scores"] |= {f"{plain} {at}": accuracy | {"details": {"split": text}} for at in (1, 2)}
    words |= {"id": f"{number:024x}", "trust": "self-reported"} | changes
    words["digest"] = digest(words)
    words["seal"] = seal(words)
    Record.model_validate(words)
    return words


SIDES = ("prompt", "dense", "pruned")
DETAILS = ("window", "fewshot", "split", "data", "task_version", "bos")


@cache
def _filled(text: str) -> str:
    """A record with the text in place of every text that its types allow to be any."""
    usual = json.loads(GOLDEN.read_text())
    filled = _replaced(usual, text)
    while True:
        try:
            Record.model_validate(filled)
        except ValidationError as error:
            for fault in error.errors():
                path = [part for part in fault["loc"] if part != "[key]"]
                there, source = filled, usual
                for part in path[:-1]:
                    there, source = there[part], source[part]
                assert there[path[-1]] != source[path[-1]], fault
                there[path[-1]] = source[path[-1]]
        else:
            return json.dumps(filled)


def _replaced(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, text) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, text) for inner in value]
    return text if isinstance(value, str) and value else value


def published(folder: Path, text: str, first: int = 1) -> list[Entry]:
    """Two rows, a failure and one that no device measured, with figures that others reported."""
    simulated = json.loads(GOLDEN.read_text())["latency"]
    records = [
        hostile(text, first, " first"),
        hostile(text, first + 1, " second"),
        hostile(text, first + 2, status="failed"),
        hostile(text, first + 3, latency=simulated),
    ]
    results = folder / "results" / "set"
    results.mkdir(parents=True, exist_ok=True)
    for record in records:
        (results / f"{record['id']}.json").write_text(json.dumps(record))
    reported = {"pruner": text, "model": text, "setting": text, "source": text, "scores": {text: 1.0}}
    (folder / "reported.json").write_text(json.dumps([reported]))
    return entries.read(folder)


# --- what a page is made of ---

HARMLESS_PATH = re.compile(r"[\w.%-][\w.%/-]*", re.ASCII)


class Outline(HTMLParser):
    """The tags of a page with the names of their attributes, where its links lead, and its headings."""

    VOID = ("img", "meta", "input", "br", "hr")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, ...]] = []
        self.targets: list[str] = []
        self.policies: list[str] = []
        self.headings: list[str] = []
        self.within: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag != "code":  # some words are set as code, some are not
            self.tags.append((tag, *sorted(name for name, _ in attributes)))
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name, value)
            if name in ("href", "src", "action", "data", "xlink:href", "srcset"):
                self.targets.append(value or "")
            if name == "content" and ("http-equiv", "Content-Security-Policy") in attributes:
                self.policies.append(value or "")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag not in self.VOID:
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",)) if tag != "code" else None
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        if {"h1", "h2", "h3"} & set(self.within):
            self.headings[-1] += text

    def handle_comment(self, text: str) -> None:
        self.tags.append(("comment", text))


def outline_of_svg(text: str) -> list[tuple[str, ...]]:
    elements = ElementTree.fromstring(text).iter()
    return [(element.tag.rpartition("}")[2], *sorted(element.attrib)) for element in elements]
