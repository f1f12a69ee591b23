"""Turns a subclass of `harness.conformance.Conformance` into one test per check. Nothing is imported before that."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest


def pytest_generate_tests(metafunc: Any) -> None:
    if "harness_check" not in metafunc.fixturenames or metafunc.cls is None:
        return
    from harness.conformance.kit import bench_of, checks, judged, kinds_of
    from harness.conformance.report import Result
    from harness.errors import UsageError

    named = metafunc.cls
    cases, titles = [], []
    try:
        kinds = kinds_of(named.name, named.kind)
    except UsageError as error:  # a failing test, not a session that cannot begin
        kinds, told = [], Result("name", "failed", f"{error.cause} ({error.remedy})")
        cases, titles = [(f"{named.__name__}.name = {named.name!r}", lambda: told)], ["name"]
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix="harness-check-"))
        bench = bench_of(kind, named.name, named.settings, folder)
        metafunc.config.stash.setdefault(BENCHES, []).append((bench, folder))
        for title, function, _ in checks(bench):
            cases.append((f"{kind} {named.name}: {title}", partial(judged, bench, title, function)))
            titles.append(f"{kind}-{named.name}-{title}")
    metafunc.parametrize("harness_check", cases, ids=titles)


BENCHES: pytest.StashKey[list[Any]] = pytest.StashKey()


def pytest_unconfigure(config: Any) -> None:
    import shutil

    for bench, folder in config.stash.get(BENCHES, []):
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
