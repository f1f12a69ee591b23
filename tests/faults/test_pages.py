"""Pages and terminals against the text of records: whatever a record says stays text, in every place that shows it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt

from harness import plugins
from harness.api import ModelCard, Param, PrunerSpec
from harness.cli import cli
from harness.cli.record import print_record
from harness.errors import one_line
from harness.leaderboard import entries, site
from harness.leaderboard.html_page import render_page
from harness.leaderboard.markdown_page import markdown_list
from harness.markup import Code, Link, Strong, markdown, markdown_line, markdown_table, plain_line
from harness.models.saved.model_card import card
from harness.records.schema import Record
from harness.system.paths import plain_name

from .. import browser
from .texts import HARMLESS, HARMLESS_PATH, SCRIPT, TEXTS, Outline, hostile, outline_of_svg, published

WORKLOAD = "prefill:1x128"
RENDERERS = {
    "commonmark": MarkdownIt("commonmark", {"html": True}),
    "github": MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]),
}
ADDRESS = re.compile(r"(?:https?|ftp)://|\bwww\.\w|[\w.+-]@\w", re.IGNORECASE)  # what GitHub makes links of


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """The same records with an ordinary text: what pages are made of when nothing is hostile."""
    folder = tmp_path_factory.mktemp("harmless")
    records = published(folder, HARMLESS)
    return site.page_files(folder, records), render_page(records, folder)


@pytest.fixture(params=TEXTS)
def pages(request, tmp_path):
    """The text, the files of a folder of leaderboards, and the HTML page."""
    text = TEXTS[request.param]
    folder = tmp_path / "boards"
    records = published(folder, text)
    return text, site.page_files(folder, records), render_page(records, folder)


def pages_in(files: dict[str, str]) -> list[str]:
    return [text for name, text in files.items() if name.endswith(".md")]


def svgs_in(files: dict[str, str]) -> list[str]:
    return [text for name, text in files.items() if name.endswith(".svg")]


def clean(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_text_of_records_stays_text(pages, harmless):
    text, files, html = pages
    usual_files, usual_html = harmless
    assert len(files) == len(usual_files) == 6
    for name in files:
        assert all(HARMLESS_PATH.fullmatch(part) and len(part) < 200 for part in name.split("/")), name

    for page, usual in zip(pages_in(files), pages_in(usual_files), strict=True):
        assert clean(page)
        assert not ADDRESS.search(re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", page))
        for renderer in RENDERERS.values():
            outline, expected = Outline(renderer.render(page)), Outline(renderer.render(usual))
            assert outline.tags == expected.tags
            assert all(HARMLESS_PATH.fullmatch(target) for target in outline.targets)
            assert outline.policies == []
            assert len(outline.headings) == len(expected.headings)

    outline, expected = Outline(html), Outline(usual_html)
    assert clean(html)
    assert outline.tags == expected.tags
    assert all(HARMLESS_PATH.fullmatch(target) for target in outline.targets)
    assert outline.headings[1].strip() == one_line(f"{text} on {text}, {WORKLOAD}")

    for svg, usual in zip(svgs_in(files), svgs_in(usual_files), strict=True):
        assert clean(svg)
        assert outline_of_svg(svg) == outline_of_svg(usual)


SIGNS = [
    *"\\`*_{}[]()#+-.!|<>&~^$:/=@'\"%; \n\tab1é\u200b",
    "<b>",
    "](x)",
    "![",
    "```",
    "~~~",
    "**",
    "__",
    "&lt;",
    "---",
]
SIGNS += [
    "https://a.b",
    "www.a.b",
    "a@b.c",
    "[x]: y",
    "- ",
    "1. ",
    "# ",
    "<!--",
    "-->",
    "\\\\",
    "\\|",
    "&#60;",
    "\x1b[31m",
]


def every_place(one: str, other: str) -> str:
    cell = (one, " ", Strong("failed"), ": ", other, " (", Link(one, "x.json"), ")")
    rows = [{one: cell, f"{one} ": Code(other)}]
    return "\n\n".join(
        [f"# {markdown(one)}", markdown_list([cell, other]), markdown_line(one), markdown_table(rows), "end"]
    )


@pytest.mark.parametrize("name", RENDERERS)
def test_no_mixture_of_signs_is_markup(name):
    """Random texts side by side in every place of a page."""
    chance = random.Random(5)
    expected = Outline(RENDERERS[name].render(every_place(HARMLESS, HARMLESS)))
    for _ in range(400):
        one, other = ("".join(chance.choices(SIGNS, k=chance.randint(1, 14))) + "x" for _ in range(2))
        outline = Outline(RENDERERS[name].render(every_place(one, other)))
        assert outline.tags == expected.tags, (one, other)
        assert outline.targets == expected.targets, (one, other)


def test_a_record_names_no_column_of_ours(tmp_path):
    folder = tmp_path / "boards"
    page = site.page_files(folder, published(folder, HARMLESS))["some-t-xt/some-t-xt-prefill-1x128.md"]
    (head, *_) = [line for line in page.splitlines() if line.startswith("| method")]
    names = [name.strip() for name in head.split("|")[1:-1]]
    assert len(set(names)) == len(names)
    assert {"speed-up", "speed-up (device)", "record", "record (1)"} <= set(names)
    rows = [line for line in page.splitlines() if line.startswith(("| some tèxt first", "| some tèxt second"))]
    assert len(rows) == 2
    for row in rows:
        cells = dict(zip(names, (cell.strip() for cell in row.split("|")[1:-1]), strict=True))
        assert cells["speed-up"].startswith("1.")
        assert cells["speed-up (device)"] == "99x"
        assert cells["record"].startswith("[00000000](")


# --- a browser ---


@pytest.fixture(scope="module")
def window():
    if browser.PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    window = browser.Browser()
    yield window
    window.close()


@pytest.fixture(scope="module")
def all_hostile(tmp_path_factory):
    """Every hostile text in one folder of leaderboards: its files, and one HTML page."""
    folder = tmp_path_factory.mktemp("hostile") / "boards"
    for at, text in enumerate(TEXTS.values()):
        published(folder, text, first=1 + 4 * at)
    beside = sorted(folder.parent.rglob("*"))
    done = CliRunner().invoke(cli, ["leaderboard", str(folder)])
    assert done.exit_code == 0, done.output
    html = folder / "all.html"
    done = CliRunner().invoke(cli, ["leaderboard", str(folder), "--html", str(html)])
    assert done.exit_code == 0, done.output
    written = [path for path in folder.parent.rglob("*") if path not in beside]
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in written)
    assert not [path for path in written if path.is_relative_to(folder / "results")]
    return folder, html


def near(folder: Path, urls: list[str]) -> bool:
    return all(url.startswith(f"{folder.as_uri()}/") for url in urls)


def test_a_browser_runs_no_script_of_a_record_in_the_html_page(window, all_hostile):
    folder, html = all_hostile
    window.open(html)
    assert window.evaluate("document.querySelectorAll('tbody tr').length") >= 2 * len(TEXTS)
    assert window.evaluate("document.getElementById('count').textContent").endswith(" rows")
    assert window.evaluate("document.querySelector('th').click(); document.querySelectorAll('[aria-sort]').length") == 1
    assert window.evaluate("typeof window.owned") == "undefined"
    assert near(folder, window.evaluate("[...document.links].map(link => link.href)"))
    assert window.requests == [html.as_uri()]
    assert window.dialogs == []
    assert window.refused == []


@pytest.mark.parametrize("kind", [*RENDERERS, "svg"])
def test_a_browser_runs_no_script_of_a_record_in_pages_and_pictures(window, all_hostile, kind):
    folder, _ = all_hostile
    if kind == "svg":
        parts = [path.read_text() for path in sorted(folder.glob("*/*.svg"))]
    else:
        parts = [RENDERERS[kind].render(path.read_text()) for path in sorted(folder.rglob("*.md"))]
        parts = [part.replace('src="', 'src="somewhere/') for part in parts]
    assert len(parts) > len(TEXTS)
    page = folder / f"{kind}.html"  # with no policy of its own
    page.write_text(f"<!doctype html><meta charset=utf-8>{''.join(parts)}")
    window.open(page)
    assert window.evaluate("typeof window.owned") == "undefined"
    assert near(folder, window.requests)
    assert near(folder.parent, window.evaluate("[...document.links].map(link => link.href)"))
    assert window.evaluate("document.scripts.length + document.querySelectorAll('iframe,form,object,base').length") == 0
    assert window.dialogs == []


def test_a_browser_opens_a_picture_alone(window, all_hostile):
    folder, _ = all_hostile
    picture = max(folder.glob("*/*.svg"), key=lambda path: path.read_text().count("script"))
    window.open(picture)
    assert window.evaluate("document.documentElement.tagName") == "svg"
    assert window.evaluate("typeof window.owned") == "undefined"
    assert window.requests == [picture.as_uri()]


FORBIDDEN = {
    "script": f"document.body.append(Object.assign(document.createElement('script'), {{textContent: '{SCRIPT}'}}))",
    "script-from-a-file": "document.body.append(Object.assign(document.createElement('script'), {src: 'x.js'}))",
    "handler": f"document.body.setAttribute('onclick', '{SCRIPT}'); document.body.click()",
    "script-link": f"document.body.innerHTML = '<a href=\"javascript:{SCRIPT}\">x</a>'; document.links[0].click()",
    "eval": f"setTimeout('{SCRIPT}')",
    "image": "document.body.append(Object.assign(document.createElement('img'), {src: 'https://evil.example/x.png'}))",
    "style": "document.body.insertAdjacentHTML('beforeend', '<style>body { color: red }</style>')",
    "style-attribute": "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')",
    "frame": "document.body.insertAdjacentHTML('beforeend', '<iframe src=\"x.html\"></iframe>')",
    "connection": "fetch('https://evil.example/').catch(() => 0)",
    "form": "document.body.innerHTML = '<form action=\"https://evil.example/\"></form>'; document.forms[0].submit()",
    "base": "document.head.insertAdjacentHTML('beforeend', '<base href=\"https://evil.example/\">')",
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_the_policy_of_the_html_page_forbids_what_it_does_not_need(window, harmless, tmp_path, deed):
    page = tmp_path / "all.html"
    page.write_text(harmless[1])
    window.open(page)
    assert window.refused == []
    window.evaluate(f"{FORBIDDEN[deed]}; 0")
    window.wait_until(lambda: window.refused, "nothing was refused", seconds=10)
    assert "Content Security Policy" in window.refused[0]
    assert window.evaluate("typeof window.owned") == "undefined"
    assert window.evaluate("location.href") == page.as_uri()


# --- terminals ---

CODES = "\x1b]0;owned\x07\x1b[31m\x9b2J [bold]x[/] [/] [link=file:///]y[/link] :smile: \u202eabc\u200b\nnext\ttab\r"


def spec(**changes):
    texts = {"name": "hostile", "target": "a:b", "summary": CODES, "paper": CODES}
    return PrunerSpec(**texts, parameters={CODES: Param(CODES, CODES, choices=(CODES,))}, **changes)


def shown_list(folder, patch):
    row = {"name": CODES, "kind": "pruner", "ok": True, "version": CODES, "origin": CODES, "summary": CODES}
    broken = {**row, "kind": "plugin", "ok": False, "reason": CODES}
    patch.setattr(plugins, "list_rows", lambda kind: [{**row, "reason": ""}, broken])
    return ["list", "pruners"]


def shown_groups(folder, patch):
    patch.setattr(plugins, "evaluator_groups", lambda: {CODES: [CODES], "many": [CODES]})
    return ["list", "evaluators"]


def shown_info(folder, patch):
    patch.setitem(plugins.registry().specs["pruner"], "hostile", spec())
    patch.setitem(plugins.registry().origins, ("pruner", "hostile"), plugins.Origin(CODES, CODES, CODES))
    return ["info", "hostile"]


def shown_group(folder, patch):
    patch.setattr(plugins, "evaluator_groups", lambda: {"many": [CODES]})
    return ["info", "many"]


def shown_compare(folder, patch):
    first, second = sorted((folder / "results" / "set").glob("*.json"))[:2]
    return ["compare", str(first), str(second)]


def shown_tables(folder, patch):
    store = folder / "runs" / "records"
    store.mkdir(parents=True)
    for path in (folder / "results" / "set").glob("*.json"):
        (store / path.name).write_bytes(path.read_bytes())
    patch.setenv("HARNESS_RUNS", str(store.parent))
    return ["leaderboard"]


def shown_bad_file(folder, patch):
    (folder / "results" / f"{CODES.replace('/', '-')}.json").write_text("{")
    return ["leaderboard", str(folder)]


SHOWN = (shown_list, shown_groups, shown_info, shown_group, shown_compare, shown_tables, shown_bad_file)


@pytest.mark.parametrize("place", SHOWN, ids=lambda place: place.__name__.removeprefix("shown_"))
def test_no_text_steers_a_terminal(tmp_path, monkeypatch, place):
    published(tmp_path, CODES)
    words = place(tmp_path, monkeypatch)
    done = CliRunner().invoke(cli, words, color=True)
    assert done.exit_code in (0, 1), done.output
    shown = re.sub("\x1b\\[(?:0|1|2|31)m", "", done.output)  # bold, dim and red are ours
    assert clean(shown)
    assert shown.count("owned") >= 1
    assert "[bold]x" in shown.replace("\\", "")
    assert not re.search(r"^\s*next", shown, re.MULTILINE)


@pytest.mark.parametrize("status", ["ok", "failed", "unstable"])
def test_a_record_on_a_terminal_is_its_text(tmp_path, monkeypatch, capsys, status):
    record = Record.model_validate(hostile(CODES, 1, status=status))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    print_record(record, tmp_path, cached=False)
    shown = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert clean(shown)
    assert "[bold]x[/] [/] [link=file:///]y[/link] :smile:" in shown
    assert not re.search(r"^\s*next", shown, re.MULTILINE)


@pytest.mark.parametrize("text", TEXTS)
def test_a_model_card_holds_text_of_records_as_text(text, harmless_card):
    card_text = card_of(TEXTS[text])
    assert clean(card_text)
    head, body = card_text.removeprefix("---\n").split("\n---\n", 1)
    source = yaml.safe_load(head)
    assert source == {"base_model": plain_line(TEXTS[text]), "license": plain_line(TEXTS[text]), "tags": ["pruned"]}
    for renderer in RENDERERS.values():
        outline = Outline(renderer.render(body))
        expected = Outline(renderer.render(harmless_card.split("\n---\n", 1)[1]))
        assert outline.tags == expected.tags
        assert all(HARMLESS_PATH.fullmatch(target) for target in outline.targets)


def card_of(text):
    record = Record.model_validate(hostile(text, 1))
    source = ModelCard(name="x", summary="x", source=text, licence=text, config={})
    return card(record, source, uneven=True, pictures=["a b.svg"])


@pytest.fixture(scope="module")
def harmless_card():
    return card_of(HARMLESS)


# --- names of pages ---

NAMES = {
    "parent": "..",
    "self": ".",
    "dots": "....",
    "empty": "",
    "blank": "  ",
    "device-of-windows": "CON",
    "device-with-suffix": "nul.txt",
    "climbing": "../../escaped",
    "absolute": "/etc/passwd",
    "drive": "C:\\Windows",
    "home": "~root",
    "option": "-rf",
    "hidden": ".git",
    "long": "x" * 5000,
    "line-end": "a\nb",
    "not-ascii": "модель",
    "results": "results",
    "results-in-capitals": "RESULTS",
    "latency": "latency",
    "index": "README.md",
    "reported": "reported.md",
    "ends-in-dot": "model.",
    "percent": "%2e%2e%2fescaped",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_lies_in_a_folder_of_its_own_whatever_its_model_is_called(tmp_path, name):
    folder = tmp_path / "above" / "boards"
    results = folder / "results" / "set"
    results.mkdir(parents=True)
    words = hostile(HARMLESS, 1)
    words["spec"]["model"] = NAMES[name]
    record = Record.model_validate(words).sealed()
    (results / f"{record.id}.json").write_text(json.dumps(record.to_dict()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = CliRunner().invoke(cli, ["leaderboard", str(folder)])
    assert done.exit_code == 0, done.output
    assert {path: path.read_bytes() for path in before} == before
    written = {path.relative_to(folder) for path in tmp_path.rglob("*") if path.is_file() and path not in before}
    (page,) = (path for path in written if len(path.parts) == 2)
    assert written == {Path("README.md"), page}
    assert page.parts[0].lower() not in ("results", "latency", "readme.md", "reported.md")
    assert plain_name(page.parts[0], "a folder") == page.parts[0]
    (title,) = Outline(RENDERERS["github"].render((folder / page).read_text())).headings[:1]
    assert title.strip() == one_line(f"{NAMES[name]} on {HARMLESS}, {WORKLOAD}")


PAIRS = {
    "capitals": ("Model", "model"),
    "replaced-alike": ("a b", "a-b"),
    "slash": ("org/model", "org-model"),
    "odd": ("..", "."),
    "empty": ("", " "),
    "not-ascii": ("модель", "Модель"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_models_never_share_a_page(tmp_path, pair):
    records = []
    for at, name in enumerate(PAIRS[pair]):
        words = hostile(HARMLESS, 1 + at)
        words["spec"]["model"] = name
        record = Record.model_validate(words).sealed()
        path = tmp_path / f"{record.id}.json"
        path.write_text(json.dumps(record.to_dict()))
        records.append(entries.Entry(path, tmp_path))
    files = site.page_files(tmp_path, records)
    names = [name.lower() for name in files]
    assert len(set(names)) == len(names) == 3
    assert len(set(pages_in(files))) == 3


def test_a_picture_is_never_written_over_another_pages(tmp_path):
    assert site.distinct(["a", "A", "a-2", "b"]) == ["a", "A-2", "a-2-2", "b"]
    records = []
    for at, (device, score) in enumerate([("x", "prefill-1x128-c"), ("x-prefill-1x128", "c")]):
        for pruner in ("a", "b"):
            words = hostile(HARMLESS, 1 + 2 * at + (pruner == "b"), pruner)
            words["spec"] |= {"model": "m", "device": device}
            words["scores"] = {score: words["scores"]["record"]}
            record = Record.model_validate(words).sealed()
            path = tmp_path / f"{record.id}.json"
            path.write_text(json.dumps(record.to_dict()))
            records.append(entries.Entry(path, tmp_path))
    files = site.page_files(tmp_path, records)
    assert len(pages_in(files)) == 3
    assert len(svgs_in(files)) == 2
    for name, page in files.items():
        if name.startswith("m/") and name.endswith(".md"):
            (picture,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)
            assert page.splitlines()[2].removeprefix("# ").split(",")[0] in files[f"m/{picture}"]
