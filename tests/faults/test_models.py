"""Folders and files of models that others made: refused by name, soon, and before anything is built of them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
from harness.api import Cut, ModelCard
from harness.cell import planning
from harness.cell.request import Request
from harness.errors import BadCut, EnvironmentFault, HarnessError, UsageError
from harness.models.cut import CheckedCut, check_cut
from harness.models.loading import cards, weights
from harness.models.loading.cache import once
from harness.models.saved import folders, states
from harness.system import host

from .folders import DEEP, ODD_FILES, change, limited, odd_files, refused, tiny

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, cache):
    return tiny(tmp_path_factory.mktemp("healthy") / "model")


@pytest.fixture
def folder(tmp_path, healthy):
    import shutil

    return Path(shutil.copytree(healthy, tmp_path / "model"))


def plan(folder: Path) -> planning.Plan:
    """As `harness run --model FOLDER --dry-run` does."""
    request = Request(pruner="dense", model=str(folder), device="null", evaluators=("footprint",))
    return planning.make_plan(request)


# --- config.json ---

FIELDS = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "2**60 channels": ({"hidden_size": 2**60}, "hidden_size"),
    "2**60 channels of an MLP": ({"intermediate_size": 2**60}, "intermediate_size"),
    "2**60 tokens in the vocabulary": ({"vocab_size": 2**60}, "vocab_size"),
    "2**60 heads": ({"num_attention_heads": 2**60}, "num_attention_heads"),
    "a head of 2**60": ({"head_dim": 2**60}, "head_dim"),
    "2**60 labels": ({"num_labels": 2**60}, "num_labels"),
    "no channels": ({"hidden_size": 0}, "hidden_size is 0"),
    "a negative width": ({"intermediate_size": -1}, "intermediate_size is -1"),
    "negative layers": ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    "a list for a number": ({"hidden_size": [64]}, "hidden_size is a list of 1"),
    "text for a number": ({"num_attention_heads": "8"}, "num_attention_heads is '8'"),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "a float for a number": ({"hidden_size": 64.0}, "hidden_size is 64.0"),
    "null for a number": ({"vocab_size": None}, "vocab_size is missing or null"),
    "an object for a number": ({"num_key_value_heads": {}}, "num_key_value_heads is an object"),
    "an odd head": ({"head_dim": 7}, "head_dim is 7, not an even number"),
    "heads that groups do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads is 3, not a divisor"),
    "heads that do not divide the width": ({"num_attention_heads": 12}, "not a divisor of hidden_size"),
    "more heads than channels": ({"num_attention_heads": 128, "head_dim": None}, "num_attention_heads is 128"),
    "text for a window": ({"sliding_window": "wide"}, "sliding_window is 'wide'"),
    "a window of nothing": ({"sliding_window": 0}, "sliding_window is 0"),
    "text for the longest text": ({"max_position_embeddings": "long"}, "max_position_embeddings is 'long'"),
    "a list for an epsilon": ({"rms_norm_eps": [1e-5]}, "rms_norm_eps is a list"),
    "a negative epsilon": ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    "text for a switch": ({"attention_bias": "no"}, "attention_bias is 'no'"),
    "a number for a switch": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    "a list for rope_scaling": ({"rope_scaling": [2]}, "rope_scaling is a list"),
    "an object for a factor": ({"rope_scaling": {"factor": [{}]}}, "rope_scaling.factor is a list"),
    "text for rope_theta": ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta is 'x'"),
    "rope_theta of zero": ({"rope_theta": 0}, "rope_theta is 0"),
    "few layer_types": ({"layer_types": ["full_attention"]}, "layer_types is a list of 1"),
    "numbers for layer_types": ({"layer_types": [1, 2, 3, 4]}, "layer_types is a list of 4, not a list of names"),
    "text for layer_types": ({"layer_types": "full"}, "layer_types is 'full'"),
    "a list for per_layer_config": ({"per_layer_config": [1]}, "per_layer_config is a list"),
    "a layer that is not there": ({"per_layer_config": {"9": {}}}, "a name in per_layer_config is '9'"),
    "a layer without a number": ({"per_layer_config": {"one": {}}}, "a name in per_layer_config is 'one'"),
    "a number for a layer": ({"per_layer_config": {"0": 7}}, "per_layer_config.0 is 7"),
    "a layer of 2**60": ({"per_layer_config": {"0": {"intermediate_size": 2**60}}}, "per_layer_config.0.intermediate"),
    "a layer of uneven heads": ({"per_layer_config": {"1": {"num_key_value_heads": 3}}}, "per_layer_config.1.num_key"),
    "a layer that skips all": ({"per_layer_config": {"0": {"skip": ["all"]}}}, "per_layer_config.0.skip"),
    "a layer that skips text": ({"per_layer_config": {"0": {"skip": "mlp"}}}, "per_layer_config.0.skip"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_a_field_of_a_config(folder, fault):
    changes, part = FIELDS[fault]
    change(folder / CONFIG, **changes)
    refused(lambda: plan(folder), folder, str(folder / CONFIG), part, codes=(3,))
    refused(lambda: harness.load(folder), folder, str(folder / CONFIG), part, codes=(3,))


TEXTS = {
    "empty": b"",
    "truncated": b'{"model_type": ',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "binary": bytes(range(256)),
    "3,000 lists": b"[" * DEEP,
    "3,000 lists in a field": b'{"model_type": "llama", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "an integer of 5,000 digits": b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}",
    "an infinite epsilon": b'{"model_type": "llama", "rms_norm_eps": 1e999}',
    "NaN": b'{"model_type": "llama", "rms_norm_eps": NaN}',
    "half of a surrogate pair": b'{"model_type": "\\ud800"}',
    "five million bytes": b'{"model_type": "llama", "x": "' + b"x" * 5_000_000 + b'"}',
}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_config_that_is_none(folder, fault):
    (folder / CONFIG).write_bytes(TEXTS[fault])
    refused(lambda: plan(folder), folder, str(folder / CONFIG), codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
def test_something_else_in_the_place_of_a_config(folder, fault):
    odd_files(folder / CONFIG)[fault]()
    refused(lambda: plan(folder), folder, CONFIG, codes=(3,))


BUILT = {  # well-formed, and what the classes of transformers make of it
    "an activation that is not known": {"hidden_act": "evil"},
    "a dtype that is not known": {"dtype": "evil"},
    "a scaling that is not known": {"rope_scaling": {"rope_type": "evil", "factor": 2.0}},
    "a scaling without its factors": {"rope_scaling": {"rope_type": "llama3"}},
    "a list for a token": {"bos_token_id": [1]},
    "padding outside of the vocabulary": {"pad_token_id": 999_999},
    "a list for names of labels": {"id2label": [1]},
    "a field named as a method": {"to_dict": 5},
    "a field named as Python's own": {"__class__": "x"},
    "text for a range": {"initializer_range": "x"},
}


@pytest.mark.parametrize("fault", BUILT)
def test_a_config_that_transformers_refuses(folder, fault):
    change(folder / CONFIG, **BUILT[fault])
    refused(lambda: harness.load(folder), folder, str(folder / CONFIG), codes=(3,))


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_of_the_hub_that_a_config_names_is_not_asked_for(folder, field):
    """transformers fetches and runs kernels of this form."""
    change(folder / CONFIG, **{field: "nobody/kernels"})
    assert harness.load(folder).config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("text", [b"[", b"[1]", b"5", b"[" * DEEP])
def test_a_damaged_generation_config(folder, text):
    (folder / "generation_config.json").write_bytes(text)
    refused(lambda: harness.load(folder), folder, str(folder / "generation_config.json"), codes=(3,))


# --- weights ---

HEADERS = {
    "empty": b"",
    "a length without a header": struct.pack("<Q", 100),
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 5) + b"{nope",
    "a header of lists": struct.pack("<Q", DEEP) + b"[" * DEEP,
    "a tensor of 2**60": struct.pack("<Q", 70)
    + b'{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0,4]}}'.ljust(70)[:70]
    + b"1234",
    "text": b"not a model at all",
}


@pytest.mark.parametrize("fault", HEADERS)
def test_weights_with_a_damaged_header(folder, fault):
    (folder / WEIGHTS).write_bytes(HEADERS[fault])
    refused(lambda: harness.load(folder), folder, str(folder / WEIGHTS), codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
def test_something_else_in_the_place_of_weights(folder, fault):
    odd_files(folder / WEIGHTS)[fault]()
    refused(lambda: harness.load(folder), folder, WEIGHTS, codes=(3,))


@pytest.mark.parametrize("fault", ["a folder", "a pipe", "a link to a device"])
@pytest.mark.parametrize("name", [WEIGHTS, "stray.safetensors", "tokenizer.json"])
def test_only_files_are_hashed(folder, name, fault):
    """As `harness run` does, to name the weights."""
    odd_files(folder / name)[fault]()
    card = ModelCard(name="m", summary="", config={}, source=str(folder), loader="")
    refused(lambda: weights.from_folder(card), folder, str(folder / name), codes=(3,))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers(folder, value):
    state = load_file(folder / WEIGHTS)
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float(value)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    parts = (str(folder), "model.layers.1.mlp.up_proj.weight", "1 values that are NaN or infinite")
    refused(lambda: harness.load(folder), folder, *parts, codes=(3,))
    refused(lambda: folders.read(folder, "bf16"), folder, *parts, codes=(3,))


def indexed(folder: Path, names: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


INDICES = {
    "a path upwards": {"a": "../outside.safetensors"},
    "an absolute path": {"a": "/dev/zero"},
    "a path downwards": {"a": "sub/model.safetensors"},
    "a path of dots": {"a": ".."},
    "no name": {"a": ""},
    "a number": {"a": 5},
    "numbers and names": {"a": 5, "b": WEIGHTS},
    "a list": ["model.safetensors"],
    "text": "model.safetensors",
    "nothing": None,
    "a list for a name": {"a": [WEIGHTS]},
    "a name with a line break": {"a": "a\nb.safetensors"},
    "a file that is not there": {"a": "model-00002-of-00002.safetensors"},
}


@pytest.mark.parametrize("fault", INDICES)
def test_an_index_of_weights(folder, fault):
    (folder.parent / "outside.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    indexed(folder, INDICES[fault])
    refused(lambda: harness.load(folder), folder, str(folder), codes=(3,))


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b"[" * DEEP, b'{"weight_map": ' + b"[" * DEEP, b"\xff\xfe"])
def test_an_index_that_is_none(folder, text):
    (folder / INDEX).write_bytes(text)
    refused(lambda: harness.load(folder), folder, str(folder / INDEX), codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
def test_something_else_in_the_place_of_an_index(folder, fault):
    odd_files(folder / INDEX)[fault]()
    refused(lambda: harness.load(folder), folder, INDEX, codes=(3,))


# --- tokenizers ---

TOKENIZERS = {
    "empty": b"",
    "no object": b"[]",
    "an empty object": b"{}",
    "truncated": b'{"version": "1.0", ',
    "3,000 lists": b"[" * DEEP,
    "not UTF-8": b'{"version": "\xff"}',
    "a model that is none": b'{"version": "1.0", "model": 5}',
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_tokenizer_that_is_none(folder, fault):
    (folder / "tokenizer.json").write_bytes(TOKENIZERS[fault])
    refused(lambda: folders.tokenizer(folder), folder, str(folder / "tokenizer.json"), codes=(3,))


def test_a_tokenizer_at_which_the_library_panics(folder, capfd):
    """A panic of Rust is no Exception."""
    change(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="})
    refused(lambda: folders.tokenizer(folder), folder, str(folder / "tokenizer.json"), codes=(3,))


def test_a_tokenizer_of_a_gigabyte(folder):
    os.truncate(folder / "tokenizer.json", 2**30)
    refused(lambda: folders.tokenizer(folder), folder, "tokenizer.json is larger than", codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
def test_something_else_in_the_place_of_a_tokenizer(folder, fault):
    odd_files(folder / "tokenizer.json")[fault]()
    refused(lambda: folders.tokenizer(folder), folder, "tokenizer.json", codes=(3,))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", [b"{", b"[" * DEEP, b"\xff", b'{"x": 1e999}'], ids=["cut", "deep", "bytes", "inf"])
def test_a_damaged_file_beside_a_tokenizer(folder, name, text):
    (folder / name).write_bytes(text)
    refused(lambda: folders.tokenizer(folder), folder, str(folder / name), codes=(3,))


# --- cuts and states of the store ---


@pytest.fixture
def cut(tmp_path):
    folder = tmp_path / "cut"
    folder.mkdir()
    mask = torch.ones(3, 5, dtype=torch.bool)
    checked = CheckedCut({"layers.0.mlp": [0, 2]}, {"m": mask}, {"r": torch.zeros(4)}, "why", {}, {"a.svg": "<svg/>"})
    folders.write_cut(checked, {"dense_tensors": {"m": [3, 5], "r": [4]}}, folder)
    assert folders.read_cut(folder).masks["m"].shape == (3, 5)
    return folder


CUTS = {
    "keep is a list": {"keep": []},
    "units are text": {"keep": {"layers.0.mlp": "all"}},
    "units are words": {"keep": {"layers.0.mlp": ["a"]}},
    "units are floats": {"keep": {"layers.0.mlp": [0.5]}},
    "units are switches": {"keep": {"layers.0.mlp": [True]}},
    "units are negative": {"keep": {"layers.0.mlp": [-1]}},
    "masks is a number": {"masks": 5},
    "masks are numbers": {"masks": [5]},
    "rewrites is null": {"rewrites": None},
    "why is a list": {"why": []},
    "told is a list": {"told": []},
    "no shapes": {"dense_tensors": {}},
    "shapes are text": {"dense_tensors": {"m": "large", "r": [4]}},
    "a mask of 2**60": {"dense_tensors": {"m": [2**30, 2**30], "r": [4]}},
    "a mask of 2**40": {"dense_tensors": {"m": [2**40], "r": [4]}},
    "a negative mask": {"dense_tensors": {"m": [-3, -5], "r": [4]}},
    "a mask of another shape": {"dense_tensors": {"m": [300, 5], "r": [4]}},
    "a mask that is not there": {"masks": ["m", "gone"], "dense_tensors": {"m": [3, 5], "gone": [1], "r": [4]}},
    "a rewrite that is not there": {"rewrites": ["r", "gone"]},
}


@pytest.mark.parametrize("fault", CUTS)
def test_a_cut(cut, fault):
    change(cut / "cut.json", **CUTS[fault])
    refused(lambda: folders.read_cut(cut), cut, str(cut), codes=(3,))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"[" * DEEP, b'{"keep": ' + b"[" * DEEP, b"\xff"])
def test_a_cut_that_is_none(cut, text):
    (cut / "cut.json").write_bytes(text)
    refused(lambda: folders.read_cut(cut), cut, str(cut / "cut.json"), codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
@pytest.mark.parametrize("name", ["cut.json", "cut.safetensors", "notes/a.svg"])
def test_something_else_in_the_place_of_a_cut(cut, name, fault):
    odd_files(cut / name)[fault]()
    refused(lambda: folders.read_cut(cut), cut, str(cut / name), codes=(3,))


def test_a_note_that_is_not_text(cut):
    (cut / "notes" / "a.svg").write_bytes(b"\xff\xfe\x00")
    refused(lambda: folders.read_cut(cut), cut, "a.svg", codes=(3,))


def test_a_cut_of_another_model(cut):
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card

    anatomy = anatomy_of(card("tiny").config)
    refused(lambda: folders.read_cut(cut, anatomy), cut, str(cut), "which this model does not have", codes=(3,))


NAMES = ["../escape.svg", "/tmp/escape.svg", "a/b.svg", "..", ".hidden", "", "a\nb", "con.txt", "x" * 300, "a\x00b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_cut_has_a_plain_name(tmp_path, name):
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card

    anatomy = anatomy_of(card("tiny").config)
    with pytest.raises(BadCut, match="cannot be the name of a file of the cut"):
        check_cut(anatomy, Cut(files={name: "text"}))
    raw = CheckedCut({}, {}, {}, "", {}, {name: "text"})
    if name.startswith(("..", "/")):  # also where nobody checked it
        (tmp_path / "cut").mkdir()
        with pytest.raises(HarnessError):
            folders.write_cut(raw, {}, tmp_path / "cut")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cut"]
        assert not Path("/tmp/escape.svg").exists()


DECISIONS = {
    "text that UTF-8 cannot hold": Cut(files={"a.txt": "\ud800"}),
    "a reason that is no text": Cut(why=b"why"),  # type: ignore[arg-type]
    "units that are words": Cut(keep={"layers.0.mlp": ["a"]}),  # type: ignore[list-item]
    "units that are no list": Cut(keep={"layers.0.mlp": 5}),  # type: ignore[dict-item]
    "units that never end": Cut(keep={"layers.0.mlp": iter(int, 1)}),
    "units that are infinite": Cut(keep={"layers.0.mlp": [float("inf")]}),  # type: ignore[list-item]
    "a mask that is a list": Cut(masks={"model.norm.weight": [True] * 64}),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("fault", DECISIONS)
def test_what_a_method_may_not_decide(fault):
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card

    with limited(), pytest.raises(BadCut):
        check_cut(anatomy_of(card("tiny").config), DECISIONS[fault])


def test_facts_that_contain_themselves():
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card

    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadCut, match="are not JSON"):
        check_cut(anatomy_of(card("tiny").config), Cut(details={"deep": deep}))


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    states.write({"a": torch.ones(3), "b": 2.0}, folder)
    assert states.read(folder)["b"] == 2.0
    return folder


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"5", b"[" * DEEP, b'{"none": false, "values": [1]}', b"\xff"])
def test_a_damaged_state(state, text):
    (state / "state.json").write_bytes(text)
    refused(lambda: states.read(state), state, str(state / "state.json"), codes=(3,))


@pytest.mark.parametrize("fault", ODD_FILES)
@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_something_else_in_the_place_of_a_state(state, name, fault):
    odd_files(state / name)[fault]()
    refused(lambda: states.read(state), state, str(state / name), codes=(3,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}], ids=str)
def test_a_state_that_cannot_be_stored(tmp_path, value):
    refused(lambda: states.write({"a": value}, tmp_path), tmp_path, "cannot be stored", codes=(1,))


# --- GGUF ---

STRING, ARRAY, U32 = 8, 9, 4


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def gguf(entries: list[bytes], tensors: list[bytes] = [], counts: tuple[int, int] | None = None) -> bytes:  # noqa: B006
    many, values = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", 3, many, values) + b"".join(entries) + b"".join(tensors)


def tensor(dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text("w") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


LLAMA = entry("general.architecture", STRING, text("llama"))
SIZES = {"block_count": 2, "embedding_length": 64, "feed_forward_length": 64, "attention.head_count": 4}
SIZES |= {"vocab_size": 100, "context_length": 64}


def family(**changed: int) -> list[bytes]:
    sizes = {**SIZES, **{name.replace("__", "."): value for name, value in changed.items()}}
    return [LLAMA, *(entry(f"llama.{name}", U32, struct.pack("<I", value)) for name, value in sizes.items())]


GGUFS = {
    "empty": b"",
    "another magic": b"GGML" + gguf(family())[4:],
    "only the magic": b"GGUF",
    "another version": b"GGUF" + struct.pack("<I", 99) + gguf(family())[8:],
    "2**60 entries": gguf([], counts=(0, 2**60)),
    "2**60 tensors": gguf(family(), counts=(2**60, 7)),
    "more tensors than bytes": gguf(family(), counts=(60_000, 7)),
    "a name of 2**62 bytes": gguf([struct.pack("<Q", 2**62) + b"x"], counts=(0, 1)),
    "text of 2**62 bytes": gguf([text("a") + struct.pack("<IQ", STRING, 2**62)], counts=(0, 1)),
    "an array of 2**60 numbers": gguf([text("a") + struct.pack("<IIQ", ARRAY, U32, 2**60)], counts=(0, 1)),
    "an array of 2**60 texts": gguf([text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**60)], counts=(0, 1)),
    "an array of arrays": gguf([text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 50], counts=(0, 1)),
    "an array of texts that leave the file": gguf(
        [text("a") + struct.pack("<IIQ", ARRAY, STRING, 4) + struct.pack("<Q", 2**63) * 8], counts=(0, 1)
    ),
    "a value of an unknown type": gguf([entry("a", 77, b"")]),
    "a tensor of 2**40": gguf(family(), [tensor([2**40])]),
    "a tensor of 2**240": gguf(family(), [tensor([2**60] * 4)]),
    "a tensor of 1000 dimensions": gguf(family(), [tensor([1] * 1000)]),
    "a tensor of an unknown type": gguf(family(), [tensor([1], 250)]),
    "a tensor behind the end": gguf(family(), [tensor([1], 0, 2**50)]),
    "truncated": gguf(family(), [tensor([4])])[:-20],
    "a billion layers": gguf(family(block_count=10**9)),
    "4 billion channels": gguf(family(embedding_length=2**32 - 1)),
    "heads that do not divide": gguf(family(attention__head_count=3)),
    "a head of 4 billion": gguf(family(rope__dimension_count=2**32 - 2)),
    "no sizes": gguf([LLAMA]),
    "text for a size": gguf([LLAMA, entry("llama.block_count", STRING, text("two"))]),
    "a list for a size": gguf([LLAMA, entry("llama.block_count", ARRAY, struct.pack("<IQI", U32, 1, 2))]),
    "no family": gguf([]),
    "another family": gguf([entry("general.architecture", STRING, text("mamba\n\x1b[2J"))]),
}


@pytest.mark.parametrize("fault", GGUFS)
def test_a_gguf_file(tmp_path, fault):
    path = tmp_path / "models" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(GGUFS[fault])
    refused(lambda: cards.card(str(path)), tmp_path, "m.gguf", codes=(3,))


@pytest.mark.parametrize("fault", ["a pipe", "a link to a device"])
def test_something_else_in_the_place_of_a_gguf_file(tmp_path, fault):
    path = tmp_path / "m.gguf"
    odd_files(path)[fault]()
    refused(lambda: cards.card(str(path)), tmp_path, "m.gguf", codes=(2, 3))


# --- names ---


@pytest.mark.parametrize("name", ["a\x00b", "./a\nb", "./\x1b]0;x\x07", "./\udcff", "~nobody/model", "./" + "x" * 5000])
def test_a_name_of_a_model(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(lambda: cards.card(name), tmp_path)


def test_a_folder_with_a_name_that_cannot_be_printed(tmp_path, healthy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "model\n# heading"
    odd.symlink_to(healthy)
    refused(lambda: plan(Path(odd.name)), tmp_path, "cannot be printed", codes=(2,))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", "", "x" * 300, "a\x00b"])
def test_a_cached_model_has_a_plain_name(cache, name):
    before = sorted(path.name for path in cache.parent.iterdir())
    with pytest.raises(EnvironmentFault, match="cannot be the name of a cached model"):
        once(name, lambda folder: None)
    assert sorted(path.name for path in cache.parent.iterdir()) == before


# --- the cache ---

NOTES = {
    "a list": b"[1]",
    "text": b'"a"',
    "3,000 lists": b"[" * DEEP,
    "3,000 objects": b'{"a":' * DEEP,
    "not UTF-8": b"\xff\xfe",
    "an infinite number": b'{"a": 1e999}',
    "truncated": b'{"a',
    "empty": b"",
}


@pytest.mark.parametrize("fault", [*NOTES, *ODD_FILES])
def test_notes_of_the_cache(tmp_path, monkeypatch, healthy, fault):
    """What cannot be read is found out again, and noted where that is possible."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    path = tmp_path / "hashes.json"
    if fault in NOTES:
        path.write_bytes(NOTES[fault])
    else:
        odd_files(path)[fault]()
    card = ModelCard(name="m", summary="", config={}, source=str(healthy), loader="")
    with limited():
        assert host.read_cache_notes("hashes.json") == {}
        host.add_cache_notes("hashes.json", {"a": 1})
        revision = weights.from_folder(card)[1]
    assert revision == weights.from_folder(card)[1]
    assert [name for name in os.listdir(tmp_path) if name != "hashes.json"] == []
    if fault != "a folder":
        assert host.read_cache_notes("hashes.json")["a"] == 1


@pytest.mark.parametrize("value", [5, [], {}, None, "short"], ids=repr)
def test_a_note_of_another_shape_is_no_hash(tmp_path, monkeypatch, healthy, value):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    card = ModelCard(name="m", summary="", config={}, source=str(healthy), loader="")
    revision = weights.from_folder(card)[1]
    host.add_cache_notes("hashes.json", dict.fromkeys(host.read_cache_notes("hashes.json"), value))
    assert weights.from_folder(card)[1] == revision


def test_without_a_home_folder(tmp_path, monkeypatch):
    """A user without one, as in a container: no folder named ~ is made here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setattr(host, "user_cache_dir", lambda name: f"~/.cache/{name}")
    host.add_cache_notes("a.json", {"a": 1})
    assert host.read_cache_notes("a.json") == {}
    refused(lambda: once("model", lambda folder: None), tmp_path, "HARNESS_CACHE", codes=(3,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a file", "a folder below a file"])
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, kind):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    monkeypatch.setenv("HARNESS_CACHE", str(blocked if kind == "a file" else blocked / "cache"))
    host.add_cache_notes("a.json", {"a": 1})
    assert host.read_cache_notes("a.json") == {}
    refused(lambda: once("model", lambda folder: None), tmp_path, str(blocked), "HARNESS_CACHE", codes=(3,))


def test_settings_that_are_no_numbers():
    from harness import resolve
    from harness.api import Param

    known = {"whole": Param(1, "h"), "part": Param(0.5, "h"), "name": Param("a", "h"), "switch": Param(True, "h")}
    for name, value in [
        *(("whole", wrong) for wrong in (2.5, "9" * 5000, 10**30, [1], None, {}, True, "nan")),
        *(("part", wrong) for wrong in ("nan", "1e999", 10**400, [1], None, True)),
        *(("name", wrong) for wrong in ("a\nb", "\x1b[2J", [1], {}, None)),
        *(("switch", wrong) for wrong in ("maybe", [], {}, None)),
    ]:
        with pytest.raises(UsageError) as caught:
            resolve.resolve_settings("pruner m", known, "quick", {name: value})
        assert name in caught.value.line
        assert caught.value.line.isprintable()
