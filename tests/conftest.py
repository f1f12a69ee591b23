"""Shared by all tests: no network, folders of their own, tiny random models of every family."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["HARNESS_CHECK"] = "0"  # the kit has tests of its own; a run would check each method first

import pytest
from hypothesis import HealthCheck, settings

from .forks import in_one_process

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

settings.register_profile(
    "calm", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("calm")

# what a shell starts aside ignores Ctrl-C, and so would the commands that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache of made models for the session, not the user's."""
    os.environ["HARNESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["HARNESS_CACHE"])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty runs folder that commands and functions write to."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("HARNESS_RUNS", str(folder))
    return folder


@pytest.fixture
def shared_data(monkeypatch):
    if not (SHARED / "data").is_dir():
        pytest.skip("the development data set is not beside this checkout")
    monkeypatch.setenv("HARNESS_DATA", str(SHARED / "data"))
    return SHARED / "data"


@pytest.fixture
def one_process(monkeypatch):
    in_one_process(monkeypatch)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder
