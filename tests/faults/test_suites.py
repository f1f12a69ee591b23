"""Suites that others wrote: refused by name, soon, and before any cell is planned."""

from __future__ import annotations

import json

import pytest

from harness.sweep.suite import cell_requests, load_suite

from .folders import DEEP, ODD_FILES, limited, odd_files, refused

BASE = "pruners: [magnitude]\nmodels: [tiny]\n"
NINES = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else '1'] * 9)}]\n" for i in range(9))


def bomb(place: str) -> str:
    """900 bytes that stand for 9**8 nodes."""
    head = "".join(f"    - &x{i} [{', '.join([f'*x{i - 1}' if i else '1'] * 9)}]\n" for i in range(9))
    return f"{place}\n{head}"


SUITES = {
    "empty": ("", "is not a suite"),
    "a list": ("- magnitude", "is not a suite"),
    "text": ("magnitude", "is not a suite"),
    "truncated": ("pruners: [magnitude", "is not YAML"),
    "binary": ("\x00\x01", "is not YAML"),
    "3,000 lists": ("[" * DEEP, ""),
    "3,000 objects": (BASE + "exclude: " + "{seeds: " * DEEP, ""),
    "two documents": (BASE + "---\n" + BASE, "is not YAML"),
    "a tag of Python": ("!!python/object/apply:os.system ['id']", "is not YAML"),
    "a list for a name": ("? [a]\n: b", "is not YAML"),
    "anchors in exclude": (BASE + bomb("exclude:\n- seeds:"), "has more than 100,000 nodes"),
    "anchors in a method's parameters": (
        "models: [tiny]\npruners:\n- name: random\n  set:\n" + bomb("    a:").replace("    -", "     -"),
        "has more than 100,000 nodes",
    ),
    "anchors beside all": (BASE + NINES, "has more than 100,000 nodes"),
    "a suite within itself": ("&a\npruners: [magnitude]\nmodels: [tiny]\ninclude: [*a]\n", "nested too deeply"),
    "parameters within themselves": (
        "pruners: [{name: random, set: &a {x: *a}}]\nmodels: [tiny]\n",
        "nested too deeply",
    ),
    "a rule within itself": (BASE + "exclude: [&a {seeds: [*a]}]\n", "nested too deeply"),
    "a million cells": (
        f"{BASE}seeds: {list(range(1000))}\nbudgets: {[i / 1000 for i in range(1000)]}\n",
        "asks for 1,000,000 cells",
    ),
    "10**15 cells": (
        f"pruners: {['random'] * 1000}\nmodels: {['tiny'] * 1000}\nseeds: {list(range(1000))}\n"
        f"budgets: {[0.3] * 1000}\ndevices: {['cpu'] * 1000}\n",
        "asks for 1,000,000,000,000,000 cells",
    ),
    "many cells of many parts": (
        f"{BASE}include: {json.dumps([{'seeds': list(range(200)), 'budgets': ['0.1'] * 200}] * 20)}\n",
        "asks for 800,001 cells",
    ),
    "a date": (BASE + "about: 2020-01-01\n", "holds a date"),
    "a date that is none": (BASE + "about: 2020-99-99\n", "is not YAML"),
    "a set": (BASE + "seeds: !!set {1}\n", "holds a set"),
    "binary text": (BASE + "about: !!binary aGVsbG8=\n", "holds a bytes"),
    "no number": (BASE + "sustain: .nan\n", "holds a number that is not finite"),
    "an infinite time": (BASE + "timeout_minutes: .inf\n", "holds a number that is not finite"),
    "a time of 1e308": (BASE + "timeout_minutes: 1.0e+308\n", "timeout_minutes"),
    "a seed of 5,000 digits": (BASE + "seeds: [" + "9" * 5000 + "]\n", "an integer that is too large"),
    "a switch for a seed": (BASE + "seeds: [true]\n", "seeds.0"),
    "a float for a seed": (BASE + "seeds: [0.5]\n", "seeds.0"),
    "no limit": (BASE + "limit: 0\n", "limit"),
    "an object in a rule": (BASE + "exclude: [{pruners: {name: magnitude}}]\n", "exclude.0.pruners"),
    "lists in a rule": (BASE + "exclude: [{seeds: [[0]]}]\n", "exclude.0.seeds"),
    "1,001 rules": (f"{BASE}exclude: {json.dumps([{'seeds': seed} for seed in range(1001)])}\n", "1,000 rules"),
    "a rule of nothing": (BASE + "exclude: [{}]\n", "each rule must name one or more of"),
    "an escape in a name": ('pruners: ["a\\x1b[2J"]\nmodels: [tiny]\n', "has a control character"),
    "a line break in a name": ('pruners: [magnitude]\nmodels: ["a\\n# heading"]\n', "has a control character"),
    "a long name": (f"pruners: [{'x' * 501}]\nmodels: [tiny]\n", "longer than 500"),
    "an escape in a parameter": (
        'pruners: [{name: random, set: {"a\\e": 1}}]\nmodels: [tiny]\n',
        "has a control character",
    ),
    "many parameters": (
        "pruners: [{name: random, set: {" + ", ".join(f"name{i}: {i}" for i in range(500)) + "}}]\nmodels: [tiny]\n",
        "more than 2,000 characters",
    ),
    "an escape in a key": (BASE + '"a\\e[2J": 1\n', "has a control character"),
    "a dtype that is not known": (BASE + "devices: [{name: cpu, dtype: evil}]\n", "devices.0.dtype"),
    "a share of more than one": (BASE + "budgets: ['uniform:2']\n", "has no ratio between 0 and 1"),
    "300,000 bytes": (BASE + "# " + "x" * 300_000, "is larger than"),
}


@pytest.mark.parametrize("fault", SUITES)
def test_a_suite(tmp_path, fault):
    words, part = SUITES[fault]
    path = tmp_path / "suite.yaml"
    path.write_text(words)
    refused(lambda: cell_requests(load_suite(path)), tmp_path, str(path), part, codes=(2,))


def test_a_suite_that_is_not_text(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_bytes(b"pruners: [\xff\xfe]")
    refused(lambda: cell_requests(load_suite(path)), tmp_path, str(path), codes=(2,))


@pytest.mark.parametrize("fault", [*ODD_FILES, "nothing"])
def test_something_else_in_the_place_of_a_suite(tmp_path, fault):
    path = tmp_path / "suite.yaml"
    if fault != "nothing":
        odd_files(path)[fault]()
    refused(lambda: cell_requests(load_suite(path)), tmp_path, "suite.yaml", codes=(2,))


@pytest.mark.parametrize("rule", ["{seeds: 99}", "{pruners: [magnitude], seeds: [9]}"])
def test_a_rule_that_excludes_nothing_names_its_file(tmp_path, rule):
    path = tmp_path / "suite.yaml"
    path.write_text(f"{BASE}exclude: [{rule}]\n")
    refused(lambda: cell_requests(load_suite(path)), tmp_path, str(path), "excludes nothing", codes=(2,))


def test_a_text_about_a_suite_is_one_clean_line(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(BASE + 'about: "a\\e]0;owned\\a\\n# b"\n')
    about = load_suite(path).about
    assert about.isprintable()
    assert about.endswith("# b")


def test_many_rules_cost_little(tmp_path):
    path = tmp_path / "suite.yaml"
    rules = [{"seeds": list(range(number, number + 9)), "pruners": "magnitude"} for number in range(1000)]
    path.write_text(f"{BASE}seeds: {list(range(2000))}\nexclude: {json.dumps(rules)}")
    with limited(5):
        found = cell_requests(load_suite(path))
    assert [ask.request.seed for ask in found] == list(range(1008, 2000))
