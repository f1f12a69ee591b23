"""Generation: what a pruned model writes, beside what the dense one writes after the same openings."""

from harness import EvaluatorSpec, Param, hookimpl

HARNESS_API = 1


@hookimpl
def harness_register_evaluators():
    return [
        EvaluatorSpec(
            name="generation",
            target="harness_generation.evaluate:Generation",
            summary="texts it writes: variety, repetition, likeness to the dense model's, perplexity under that",
            needs=("dense",),
            parameters={
                "tokens": Param(48, "the most that are written after each prompt", paper=128, least=1),
                "batch": Param(20, "prompts continued at a time; fewer where memory ends", least=1),
            },
            check_with={"tokens": 8},
            tokens=130,
            documents=40,
        )
    ]
