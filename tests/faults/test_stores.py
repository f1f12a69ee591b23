"""Stores that several processes, hosts and strangers write to: nothing live is swept, nothing outside is touched."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError, UsageError
from harness.paths import below, plain_name

NAMES = {
    "empty": "",
    "parent": "..",
    "dot": ".",
    "hidden": ".git",
    "slash": "a/b",
    "backslash": "a\\b",
    "absolute": "/etc/passwd",
    "drive": "C:x",
    "line-break-at-the-end": "name\n",
    "nul": "a\0b",
    "escape": "a\x1b[31mb",
    "option": "-rf",
    "blank": "a b",
    "device": "NUL",
    "device-with-suffix": "com1.json",
    "dot-at-the-end": "name.",
    "letters-of-others": "naïve",
    "too-long": "a" * 101,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_a_path_is_refused(name):
    with pytest.raises(UsageError) as caught:
        plain_name(NAMES[name], "a folder of records")
    assert "a folder of records" in caught.value.cause
    assert caught.value.cause.isprintable()
    assert "letters" in caught.value.remedy


def test_ordinary_names_are_plain():
    for name in ("smollm2-135m", "2026.1", "a", "console", "Orin_NX", "v1.0-rc.2"):
        assert plain_name(name, "a folder") == name


@pytest.mark.parametrize(
    "parts",
    [("..",), ("a", "../.."), ("/etc/passwd",), (".",), ("out",), ("out", "x"), ("a\0b",), ("\ud800",)],
    ids=["parent", "grandparent", "absolute", "itself", "link-out", "below-link-out", "nul", "lone-surrogate"],
)
def test_a_join_that_leaves_its_folder_is_refused(tmp_path, parts):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(HarnessError) as caught:
        below(root, *parts)
    assert str(root) in caught.value.remedy


def test_a_join_may_pass_through_links_that_stay(tmp_path):
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "link").symlink_to("real")
    (tmp_path / "other-way").symlink_to(root)
    assert below(tmp_path / "other-way", "link", "file") == tmp_path / "other-way" / "link" / "file"
