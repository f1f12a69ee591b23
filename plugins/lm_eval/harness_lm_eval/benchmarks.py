"""One evaluator class for each benchmark."""

from __future__ import annotations

from harness_lm_eval.evaluator import Benchmark


class Hellaswag(Benchmark):
    name = "hellaswag"


class ArcEasy(Benchmark):
    name = "arc_easy"


class ArcChallenge(Benchmark):
    name = "arc_challenge"


class Piqa(Benchmark):
    name = "piqa"


class Openbookqa(Benchmark):
    name = "openbookqa"


class Winogrande(Benchmark):
    name = "winogrande"


class Boolq(Benchmark):
    name = "boolq"


class BoolqPassages(Benchmark):
    name = "boolq_passages"


class Mmlu(Benchmark):
    name = "mmlu"
