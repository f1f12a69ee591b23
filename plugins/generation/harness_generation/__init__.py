"""Generation: compares texts of a pruned model with those of the dense model after the same prompts."""

from harness import EvaluatorSpec, Param, hookimpl

HARNESS_API = 2


@hookimpl
def harness_register_evaluators():
    return [
        EvaluatorSpec(
            name="generation",
            target="harness_generation.evaluate:Generation",
            summary="texts it writes: variety, repetition, likeness to the dense model's, perplexity under that",
            needs=("dense",),
            parameters={
                "tokens": Param(48, "the most tokens to write after each prompt", paper=128, least=1),
                "batch": Param(20, "prompts in a batch; fewer if memory does not suffice", least=1),
            },
            check_with={"tokens": 8},
            tokens=130,
            documents=40,
        )
    ]
