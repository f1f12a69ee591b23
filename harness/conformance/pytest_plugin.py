"""A pytest plug-in that turns a subclass of `harness.conformance.Conformance` into one test per check.

It imports harness only where there is such a class.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest


def pytest_generate_tests(metafunc: Any) -> None:
    if "harness_check" not in metafunc.fixturenames or metafunc.cls is None:
        return
    from harness.conformance.kit import bench_of, checks, kinds_of, run_check
    from harness.conformance.report import Result
    from harness.errors import UsageError

    test_class = metafunc.cls
    cases, titles = [], []
    try:
        kinds = kinds_of(test_class.name, test_class.kind)
    except UsageError as error:  # one failing test, so that the session can still begin
        kinds = []
        result = Result("name", "failed", f"{error.cause} ({error.remedy})")
        cases = [(f"{test_class.__name__}.name = {test_class.name!r}", lambda: result)]
        titles = ["name"]
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix="harness-check-"))
        bench = bench_of(kind, test_class.name, test_class.settings, folder)
        metafunc.config.stash.setdefault(BENCHES, []).append((bench, folder))
        for title, function, _ in checks(bench):
            cases.append((f"{kind} {test_class.name}: {title}", partial(run_check, bench, title, function)))
            titles.append(f"{kind}-{test_class.name}-{title}")
    metafunc.parametrize("harness_check", cases, ids=titles)


BENCHES: pytest.StashKey[list[Any]] = pytest.StashKey()


def pytest_unconfigure(config: Any) -> None:
    import shutil

    for bench, folder in config.stash.get(BENCHES, []):
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
