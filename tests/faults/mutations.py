"""Seeded mutations of well-formed inputs: of bytes, and of the values of JSON and YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

MOST = 1 << 18  # bytes of one input
DEEP = 3000

TEXTS = [
    "",
    " ",
    ".",
    "..",
    "/",
    "../canary/notes.txt",
    "../../canary/notes.txt",
    "../canary/folder",
    "../../canary/folder",
    "../../../canary/notes.txt",
    "/dev/zero",
    "a/b",
    "a\\b",
    ".hidden",
    "-",
    "--help",
    "name with blanks",
    "none",
    "null",
    "true",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "0x10",
    "1_000",
    "٣",  # int() takes it
    "²",  # isdigit() takes it, int() does not
    "1" * 5000,
    "1e" + "9" * 400,
    "x" * 5000,
    "\x00",
    "a\x00b",
    "\ud800",
    "\ufeff",
    "\u202e",
    "\x1b]0;title\x07",
    "a\r\nb",
    "line\n\n# heading",
    "a|b",
    "`",
    "]]>",
    "<script>alert(1)</script>",
    "[x](javascript:alert%281%29)",
    "{}",
    "%s%n%d",
    "$legend ${boards} $",
    "[bold]x[/nothing]",
    "é" * 300,
    "ok",
    "prefill:1x128",
    "decode:1x99999999999999999999",
    "dense",
    "magnitude",
    "2026-11-30T09:06:11+00:00",
    "0001-01-01T00:00:00+14:00",
    "f" * 64 + ".json.gz",
]
INTEGERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    4096,
    65536,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**9,
    10**30,
    10**300,
]
NUMBERS = [0.0, -0.0, 0.5, -0.5, 1.5, 1e-9, 5e-324, 1e-300, 1e18, 1e100, 1e300, 1.7e308, -1.7e308]
PLAIN: list[Any] = [None, True, False, [], {}, [[]], [{}], {"": None}, [None], [0, 0], ["", ""], {"a": 1, "b": [2]}]

# What no Python value would be written as stands for itself in the text: its number between two marks.
RAW_JSON = [
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"1" * 5000,
    b"0." + b"1" * 5000,
    b"2" * 130,
    b"340282366920938463463374607431768211457",
    b"1e400000000",
    b"1e-400000000",
    b"-0",
    b"01",
    b".5",
    b"nul",
    b"'x'",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xed\xa0\x80"',
    b'"\xff"',
    b'"\\',
    b'{"a": 1, "a": 2}',
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b"[" * 100 + b"]" * 100,
    b"[" * 20 * DEEP,
    b"[" + b"[]," * 20_000 + b"[]]",
]
RAW_YAML = [
    b"&a [*a]",
    b"&a {x: *a}",
    b"[&a [x,x,x,x,x,x,x,x,x]"
    + b"".join(b", &%c [%s]" % (name, b",".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefgh")
    + b"]",
    b"!!python/object/apply:os.system [true]",
    b"!!binary aGVsbG8=",
    b"!!binary x",
    b"!!set {a, b}",
    b"!!omap [a: 1]",
    b"!!int x",
    b"!!float x",
    b"!!bool x",
    b"!!timestamp x",
    b"!unknown x",
    b"2026-11-30",
    b"2026-99-99",
    b"2026-11-30T09:06:11Z",
    b"1:30",
    b"0o17",
    b"0b2",
    b"1_000",
    b".inf",
    b".nan",
    b"~",
    b"yes",
    b"=",
    b"*nobody",
    b"{<<: 1}",
    b"{<<: [{a: 1}, 2]}",
    b"{? [1]: 2}",
    b"{? {a: 1} : 2}",
    b"{1: 2}",
    b"{2026-11-30: 2}",
    b"{null: 2}",
    b"\x07",
    b"\t",
    b"@",
    b"%",
    b"--- 1\n--- 2",
]
TOKENS = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xfe\xff",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\n",
    b"\r\n",
    b"\x0b",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\t",
    b"\x1b[2J",
    b"../",
    b"/",
    b"-",
    b"- ",
    b"#",
    b"---\n",
    b"...\n",
    b"9" * 5000,
    b"1,234,567.8.9",
    b"1e999",
    b"-1e999",
    b"nan",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b",",
    b":",
    b": ",
    b"|",
    b"&a ",
    b"*a",
    b"!!",
    b"<<: ",
    b"[" * DEEP,
    b"{" * DEEP,
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
    b"\x01\x00\x00\x00",
]


def of_bytes(random: Random, base: bytes, bases: Sequence[bytes]) -> bytes:
    """A base after one to six changes of its bytes, some of which come from other bases."""
    text = base
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        text = random.choice(CHANGES)(random, text, bases)[:MOST]
    return text


def _span(random: Random, text: bytes) -> tuple[int, int]:
    """A place in a text and an end behind it, mostly near."""
    start = random.randrange(len(text) + 1)
    return start, min(len(text), start + random.choice((1, 1, 2, 4, 16, 64, 1024)))


def _flip(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    if not text:
        return text
    at = random.randrange(len(text))
    return text[:at] + bytes([text[at] ^ (1 << random.randrange(8))]) + text[at + 1 :]


def _replace(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(random, text)
    return text[:start] + random.choice(TOKENS) + text[end:]


def _insert(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, _end = _span(random, text)
    return text[:start] + random.choice(TOKENS) + text[start:]


def _noise(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(random, text)
    return text[:start] + random.randbytes(end - start) + text[end:]


def _delete(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(random, text)
    return text[:start] + text[end:]


def _repeat(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(random, text)
    return text[:end] + text[start:end] * random.choice((1, 1, 2, 50)) + text[end:]


def _truncate(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    return text[: random.choice((0, 1, 4, 8, random.randrange(len(text) + 1)))]


def _splice(random: Random, text: bytes, bases: Sequence[bytes]) -> bytes:
    other = random.choice(bases)
    return text[: random.randrange(len(text) + 1)] + other[random.randrange(len(other) + 1) :]


def _number(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    """Another number in the place of one that is written in digits."""
    if not (places := [match.span() for match in re.finditer(rb"\d+(?:\.\d+)?", text)]):
        return text
    start, end = random.choice(places)
    return text[:start] + str(random.choice((*INTEGERS, *NUMBERS, "9" * 5000, "1e999"))).encode() + text[end:]


def _line(random: Random, text: bytes, _: Sequence[bytes]) -> bytes:
    """A line removed, moved or repeated."""
    lines = text.splitlines(True)
    if not lines:
        return text
    line = lines.pop(random.randrange(len(lines)))
    for _ in range(random.choice((0, 1, 1, 2))):
        lines.insert(random.randrange(len(lines) + 1), line)
    return b"".join(lines)


CHANGES = (_flip, _replace, _insert, _noise, _delete, _repeat, _truncate, _splice, _number, _line)


# --- values ---


def of_value(random: Random, base: bytes, raw: Sequence[bytes] = (), kinds: float = 0.5) -> Any:
    """A JSON value after one to four changes. `kinds` is the share of replacements that keep a value's type."""
    top = {"": json.loads(base)}
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        nodes = [*places(top)]
        holder, key = random.choice(nodes)
        value = holder[key]
        how = random.random()
        if how < 0.6:
            holder[key] = _alike(random, value) if random.random() < kinds else _any(random, raw)
        elif how < 0.7 and holder is not top:
            del holder[key]
        elif how < 0.78:
            other, name = random.choice(nodes)
            holder[key] = json.loads(json.dumps(other[name]))
        elif how < 0.84:
            holder[key] = random.choice(
                ([value], {"a": value}, [value] * 50, str(value), {random.choice(TEXTS): value})
            )
        elif isinstance(holder, dict) and holder is not top:
            holder[random.choice((*TEXTS, key.upper(), f"{key}_"))] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), value)
            random.shuffle(holder)
        else:
            holder[key] = _any(random, raw)
    return top[""]


def places(top: dict[str, Any]) -> Any:
    """Each value below the top, as what holds it and under which key."""
    todo: list[Any] = [top]
    while todo:
        holder = todo.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])


def _any(random: Random, raw: Sequence[bytes]) -> Any:
    pool = random.randrange(5 if raw else 4)
    if pool == 4:
        return f"@@{random.randrange(len(raw))}@@"
    return json.loads(json.dumps(random.choice((TEXTS, INTEGERS, NUMBERS, PLAIN)[pool])))


def _alike(random: Random, value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or value is None:
        return random.choice((True, False, None))
    if isinstance(value, str):
        return random.choice((random.choice(TEXTS), value + random.choice(TEXTS), value[:-1], value.upper()))
    if isinstance(value, int):
        return random.choice((random.choice(INTEGERS), -value, value + 1, value - 1, value * 1000))
    if isinstance(value, float):
        return random.choice((random.choice(NUMBERS), -value, value * 1.5, value * 1e12, value / 1e12))
    if isinstance(value, list):
        return random.choice(([], value[:-1], value * 2, value[::-1], [value]))
    return random.choice(({}, {**value, random.choice(TEXTS): random.choice(PLAIN)}, dict(list(value.items())[:1])))


def text_of(random: Random, value: Any, raw: Sequence[bytes]) -> bytes:
    """A value as JSON, with what stands for itself in its place."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, indent=1 if random.random() < 0.1 else None)
    return re.sub(rb'"@@(\d+)@@"', lambda match: raw[int(match[1])], text.encode(errors="surrogatepass"))[:MOST]
