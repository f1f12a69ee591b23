"""The kit: everything that needs a GPU skips where there is none."""

from harness.conformance import Conformance


class TestCuda(Conformance):
    name = "cuda"
