"""Writes a model and its cut to a folder, and reads both again."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file

from harness.api import Cut
from harness.errors import BadCut, EnvironmentFault, UsageError
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import anatomy_of, architecture, architecture_for
from harness.models.cut import CheckedCut, check_cut
from harness.models.saved.contents import read_config
from harness.system import reading
from harness.system.paths import below, plain_name

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOTES = "notes"  # the folder of the files that a method wrote beside its cut
CUT = 256 * 2**20  # bytes of a cut.json: it lists all units of sites that lose some
TOKENIZER = 256 * 2**20  # bytes of a tokenizer.json
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
GENERATION = 2**20  # bytes of a generation_config.json
AGAIN = "fetch or save it again"


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model and its tokenizer as a folder that transformers opens."""
    architecture_for(model).write(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_cut(cut: CheckedCut, origin: dict[str, Any], folder: Path) -> None:
    """Write cut.json, with masks and rewrites packed in cut.safetensors and the method's files in notes/."""
    payload = {
        "keep": dict(sorted(cut.keep.items())),
        "masks": sorted(cut.masks),
        "rewrites": sorted(cut.rewrites),
        "why": cut.why,
        "told": cut.details,
        **origin,
    }
    (folder / "cut.json").write_text(json.dumps(payload, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if cut.files:
        (folder / NOTES).mkdir(exist_ok=True)
        for name, text in cut.files.items():
            below(folder / NOTES, name).write_text(text, encoding="utf-8")
    tensors = {f"rewrite.{name}": value.contiguous() for name, value in cut.rewrites.items()}
    for name, mask in cut.masks.items():
        tensors[f"mask.{name}"] = torch.from_numpy(np.packbits(mask.cpu().numpy()))
    if tensors:
        save_file(tensors, folder / "cut.safetensors")


class SavedCut(BaseModel):
    """The fields of a cut.json that harness reads."""

    model_config = ConfigDict(strict=True)

    keep: dict[str, list[Annotated[int, Field(ge=0)]]]
    masks: list[str]
    rewrites: list[str]
    why: str
    told: dict[str, Any] = {}
    dense_tensors: dict[str, list[Annotated[int, Field(ge=0)]]]


def read_cut(folder: Path, anatomy: Anatomy | None = None) -> CheckedCut:
    """The cut of a saved model. With an anatomy, the cut is checked to be one of that model."""
    path = folder / "cut.json"
    with reading.parsing(path, "a cut", AGAIN):
        saved = SavedCut.model_validate(reading.json_file(path, CUT))
    masks, rewrites = {}, {}
    path = folder / "cut.safetensors"
    with reading.parsing(path, "the masks and rewrites that cut.json names", AGAIN):
        if saved.masks or saved.rewrites:
            reading.must_be_regular(path)
            with safe_open(path, "pt") as file:
                masks = {name: _unpacked(file, name, saved.dense_tensors[name]) for name in saved.masks}
                rewrites = {name: file.get_tensor(f"rewrite.{name}") for name in saved.rewrites}
    files = {}
    for path in sorted((folder / NOTES).glob("*")):
        with reading.parsing(path, "text that a method wrote", AGAIN):
            files[path.name] = reading.content(path).decode()
    cut = CheckedCut(saved.keep, masks, rewrites, saved.why, saved.told, files)
    if anatomy is None:
        return cut
    try:
        return check_cut(anatomy, Cut(cut.keep, cut.masks, cut.rewrites, cut.why, cut.details, cut.files))
    except BadCut as error:
        raise EnvironmentFault(f"{folder} holds a cut of another model: {error.cause}", AGAIN) from None


def _unpacked(file: Any, name: str, dims: list[int]) -> torch.Tensor:
    """A mask that is stored with one bit per element. In memory it takes one byte."""
    packed = file.get_tensor(f"mask.{name}")
    if packed.dtype != torch.uint8 or packed.numel() != (math.prod(dims) + 7) // 8:
        raise ValueError(f"the mask of {name} has another size than the tensor")
    bits = np.unpackbits(packed.numpy(), count=math.prod(dims))
    return torch.from_numpy(bits.astype(bool)).reshape(dims)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, chosen as transformers does. Other safetensors are not read."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if os.path.lexists(index):
        with reading.parsing(index, "an index of weights", "fetch it again"):
            names = sorted(set(reading.json_file(index)["weight_map"].values()))
            paths = [folder / plain_name(name, f"a file of weights in {index}", EnvironmentFault) for name in names]
        if absent := [path.name for path in paths if not path.exists()]:
            raise EnvironmentFault(f"{folder} lacks {absent[0]}, which its index names", "fetch the missing files")
    elif os.path.lexists(single):
        paths = [single]
    else:
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        if pickles:
            raise EnvironmentFault(
                f"{folder} holds its weights as pickles ({pickles[0]}), which harness does not open",
                "convert them to safetensors first",
            )
        raise EnvironmentFault(f"{folder} holds no weights", "put model.safetensors beside its config.json")
    for path in paths:
        with reading.parsing(path, "a file of weights", AGAIN):
            reading.must_be_regular(path)
    return paths


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder. An error names the damaged file."""
    tensors = {}
    for path in weight_files(folder):
        with reading.parsing(path, "an intact file of weights", AGAIN), safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


def read(
    folder: Path, dtype: str | None = None, config: dict[str, Any] | None = None, check_values: bool = True
) -> Any:
    """The model of a folder, built from harness's own classes: no code of the folder is run.

    `check_values` refuses NaN and infinite weights, which takes a pass over all of them.
    """
    config = config or read_config(folder)
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise UsageError(f"no dtype {dtype!r}", f"known: {', '.join(TORCH_DTYPES)}")
    anatomy = anatomy_of(config, str(folder / "config.json"))
    state = {name: tensor for name, tensor in weights(folder).items() if name in anatomy.tensors}
    target = TORCH_DTYPES[dtype] if dtype else None
    for name, dims in anatomy.tensors.items():
        if name not in state:
            raise EnvironmentFault(f"{folder} lacks the tensor {name}", AGAIN)
        if tuple(state[name].shape) != dims:
            raise EnvironmentFault(
                f"{name} in {folder} is {tuple(state[name].shape)} where its config.json says {dims}",
                "the config and the weights are of different models",
            )
        if not state[name].is_floating_point() or state[name].element_size() < 2:
            raise EnvironmentFault(f"{name} in {folder} is quantised ({state[name].dtype})", "give unquantised weights")
        if check_values and (odd := _odd_values(state[name])):
            raise EnvironmentFault(
                f"{name} in {folder} holds {odd}", "the weights are damaged: fetch or save them again"
            )
        if target:
            state[name] = state[name].to(target)
    with reading.parsing(folder / "config.json", "a config that transformers can build a model of", "repair it"):
        model = architecture(anatomy.architecture).build({**anatomy.config, "model_type": config["model_type"]}, state)
    path = folder / "generation_config.json"
    if os.path.lexists(path):
        from transformers import GenerationConfig

        with reading.parsing(path, "a generation config that transformers reads", "repair or remove it"):
            reading.json_file(path, GENERATION)
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _odd_values(tensor: torch.Tensor) -> str:
    """How many elements are not finite, as text; empty if all are. The sum alone tells whether any is."""
    if torch.isfinite(tensor.sum(dtype=torch.float32)):
        return ""
    wrong = int((~torch.isfinite(tensor)).sum())
    return f"{wrong:,} values that are NaN or infinite" if wrong else ""


def tokenizer(folder: Path) -> Any:
    """The tokenizer saved with a model."""
    from transformers import PreTrainedTokenizerFast

    path, remedy = folder / "tokenizer.json", "save the model's tokenizer with it"
    if not os.path.lexists(path):
        raise EnvironmentFault(f"{folder} has no tokenizer.json", remedy)
    for beside in (folder / name for name in BESIDE_TOKENIZER):
        if os.path.lexists(beside):
            with reading.parsing(beside, "part of a tokenizer", remedy):
                reading.json_file(beside)
    with reading.parsing(path, "a tokenizer that transformers reads", remedy):
        reading.must_be_regular(path)
        if path.stat().st_size > TOKENIZER:
            raise reading.Unreadable(path, f"is larger than {TOKENIZER:,} bytes")
        return PreTrainedTokenizerFast.from_pretrained(folder)
