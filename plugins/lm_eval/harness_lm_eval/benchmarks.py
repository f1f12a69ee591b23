"""A class per benchmark, for the registry to name."""

from __future__ import annotations

from harness_lm_eval.evaluator import Benchmark
from harness_lm_eval.tasks import TASKS

globals().update({name: type(name, (Benchmark,), {"name": name}) for name in TASKS})
