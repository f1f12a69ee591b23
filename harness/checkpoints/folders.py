"""Writing a pruned model to a folder and opening it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.anatomy import anatomy_of
from harness.checkpoints import modeling, read_config
from harness.errors import EnvironmentFault, UsageError
from harness.surgery import CheckedCut

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOTES = "notes"  # what a method tells beside its cut


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """config.json, safetensors, tokenizer, and the modelling file where layers differ."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    family = words["model_type"].removeprefix("pruned_")
    if words["model_type"] != family:
        name = f"modeling_pruned_{family}"
        prefix = f"{name}.Pruned{modeling.FAMILIES[family].classes}"
        words["auto_map"] = {"AutoConfig": f"{prefix}Config", "AutoModelForCausalLM": f"{prefix}ForCausalLM"}
        for stray in folder.glob("modeling_*.py"):
            stray.unlink()
        (folder / f"{name}.py").write_text(modeling.source(family), encoding="utf-8")
    path.write_text(json.dumps(words, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_cut(cut: CheckedCut, origin: dict[str, Any], folder: Path) -> None:
    """cut.json says what was kept and why; masks and rewrites lie packed beside it, the method's files in notes/."""
    words = {
        "keep": dict(sorted(cut.keep.items())),
        "masks": sorted(cut.masks),
        "rewrites": sorted(cut.rewrites),
        "why": cut.why,
        "told": cut.told,
        **origin,
    }
    (folder / "cut.json").write_text(json.dumps(words, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if cut.files:
        (folder / NOTES).mkdir(exist_ok=True)
        for name, text in cut.files.items():
            (folder / NOTES / name).write_text(text, encoding="utf-8")
    tensors = {f"rewrite.{name}": value.contiguous() for name, value in cut.rewrites.items()}
    for name, mask in cut.masks.items():
        tensors[f"mask.{name}"] = torch.from_numpy(np.packbits(mask.cpu().numpy()))
    if tensors:
        save_file(tensors, folder / "cut.safetensors")


def read_cut(folder: Path) -> CheckedCut:
    """The cut of a saved model, masks unpacked."""
    words = json.loads((folder / "cut.json").read_text(encoding="utf-8"))
    shapes = words["dense_tensors"]
    masks, rewrites = {}, {}
    if words["masks"] or words["rewrites"]:
        with safe_open(folder / "cut.safetensors", "pt") as file:
            for name in words["masks"]:
                bits = np.unpackbits(file.get_tensor(f"mask.{name}").numpy(), count=int(np.prod(shapes[name])))
                masks[name] = torch.from_numpy(bits.astype(bool)).reshape(shapes[name])
            rewrites = {name: file.get_tensor(f"rewrite.{name}") for name in words["rewrites"]}
    files = {file.name: file.read_text(encoding="utf-8") for file in sorted((folder / NOTES).glob("*"))}
    return CheckedCut(words["keep"], masks, rewrites, words["why"], words.get("told", {}), files)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, as transformers would choose them; strays are not read."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise EnvironmentFault(f"{index} is not a readable index", "fetch it again") from None
        if lost := [name for name in names if not (folder / name).is_file()]:
            raise EnvironmentFault(f"{folder} lacks {lost[0]}, which its index names", "fetch the missing files")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
    if pickles:
        raise EnvironmentFault(
            f"{folder} holds its weights as pickles ({pickles[0]}), which harness does not open",
            "convert them to safetensors first",
        )
    raise EnvironmentFault(f"{folder} holds no weights", "put model.safetensors beside its config.json")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder; a damaged file is named."""
    found = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise EnvironmentFault(f"{path} is damaged: {error}", "fetch or save it again") from None
    return found


def read(folder: Path, dtype: str | None = None, words: dict[str, Any] | None = None) -> Any:
    """The model of a folder, even or uneven, from harness's own classes: no code of the folder is run."""
    words = words or read_config(folder)
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise UsageError(f"no dtype {dtype!r}", f"known: {', '.join(TORCH_DTYPES)}")
    anatomy = anatomy_of(words)
    state = {name: tensor for name, tensor in weights(folder).items() if name in anatomy.tensors}
    target = TORCH_DTYPES[dtype] if dtype else None
    for name, dims in anatomy.tensors.items():
        if name not in state:
            raise EnvironmentFault(f"{folder} lacks the tensor {name}", "fetch or save it again")
        if tuple(state[name].shape) != dims:
            raise EnvironmentFault(
                f"{name} in {folder} is {tuple(state[name].shape)} where its config.json says {dims}",
                "the config and the weights are of different models",
            )
        if not state[name].is_floating_point() or state[name].element_size() < 2:
            raise EnvironmentFault(f"{name} in {folder} is quantised ({state[name].dtype})", "give unquantised weights")
        if target:
            state[name] = state[name].to(target)
    model = modeling.fill({**anatomy.config, "model_type": words["model_type"]}, state)
    if (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def tokenizer(folder: Path) -> Any:
    """The tokenizer saved with a model."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        raise EnvironmentFault(f"{folder} has no tokenizer.json", "save the model's tokenizer with it")
    return PreTrainedTokenizerFast.from_pretrained(folder)
