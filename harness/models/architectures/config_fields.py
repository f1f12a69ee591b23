"""The fields of a config.json: their types and ranges, checked before anything is built of them.

The limits are generous: the largest open decoders have 126 layers (merged ones 315), a residual stream of 18,432
channels, MLPs of 65,536, 128 heads and vocabularies of 262,144.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import EnvironmentFault, one_line

REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
WHOLE = {  # least and most
    "num_hidden_layers": (0, 1_000),  # a model without layers is what every other one costs more than
    "hidden_size": (1, 2**18),
    "intermediate_size": (1, 2**20),
    "num_attention_heads": (1, 2**12),
    "num_key_value_heads": (1, 2**12),
    "head_dim": (1, 2**12),
    "vocab_size": (1, 2**22),
    "max_position_embeddings": (1, 2**32),
    "sliding_window": (1, 2**32),
    "max_window_layers": (0, 2**32),
    "bos_token_id": (-1, 2**32),
    "pad_token_id": (-1, 2**32),
    "num_labels": (0, 1_000),  # transformers makes a table of so many names
}
NUMBERS = {"rms_norm_eps": (0, 1), "rope_theta": (1e-3, 1e12), "partial_rotary_factor": (0, 1)}
SWITCHES = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
OBJECTS = ("per_layer_config", "rope_scaling", "rope_parameters")
MAY_BE_NULL = {
    *("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "rope_theta", "layer_types"),
    *("bos_token_id", "pad_token_id", *SWITCHES, *OBJECTS),
}
LAYER_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
SUBLAYERS = ("attention", "mlp")


def check(config: Mapping[str, Any], where: str, heads_divide_hidden: bool = False) -> None:
    """Refuse a config of a supported family, its defaults filled in, with a field of the wrong type or out of range."""
    for name, value, wanted in _wrong(config, heads_divide_hidden):
        raise EnvironmentFault(f"{where}: {name} is {_shown(value)}, not {wanted}", "repair config.json")


Wrong = tuple[str, Any, str]  # a field, its value, and what it may be


def _wrong(config: Mapping[str, Any], heads_divide_hidden: bool) -> Iterator[Wrong]:
    for name in REQUIRED:
        if name not in config:
            yield name, None, _range(name)
    for name in (*WHOLE, *NUMBERS, *SWITCHES, *OBJECTS):
        if name in config:
            yield from _field(name, config[name])
    layers = config["num_hidden_layers"]
    yield from _layer_types(config.get("layer_types"), layers)
    yield from _layers(config.get("per_layer_config") or {}, layers)
    for name in ("rope_scaling", "rope_parameters"):
        yield from _rope(name, config.get(name) or {})
    yield from _heads(config, heads_divide_hidden)


def _field(name: str, value: Any, label: str = "") -> Iterator[Wrong]:
    label = label or name
    if value is None and name in MAY_BE_NULL:
        return
    if name in WHOLE:
        least, most = WHOLE[name]
        if type(value) is not int or not least <= value <= most:
            yield label, value, _range(name)
    elif name in NUMBERS:
        low, high = NUMBERS[name]
        if type(value) not in (int, float) or not low <= value <= high:
            yield label, value, f"a number from {low:g} to {high:g}"
    elif name in SWITCHES:
        if not isinstance(value, bool):
            yield label, value, "true or false"
    elif not isinstance(value, Mapping):
        yield label, value, "an object"


def _range(name: str) -> str:
    least, most = WHOLE[name]
    return f"a whole number from {least:,} to {most:,}"


def _layer_types(kinds: Any, layers: int) -> Iterator[Wrong]:
    if kinds is None:
        return
    if not isinstance(kinds, list | tuple) or any(not isinstance(kind, str) for kind in kinds):
        yield "layer_types", kinds, "a list of names"
    elif len(kinds) != layers:
        yield "layer_types", kinds, f"a list of {layers:,}, one for each layer"


def _layers(overrides: Mapping[Any, Any], layers: int) -> Iterator[Wrong]:
    """What an uneven model's layers have of their own, by their numbers, which are text in a file.

    transformers writes numbers of one width: 00, 01, ... if there are ten layers or more.
    """
    widths = {len(str(number)) for number in range(layers)}
    numbers = {f"{number:0{width}}" for number in range(layers) for width in widths}
    names: dict[int, Any] = {}
    for number, own in overrides.items():
        if str(number) not in numbers or names.setdefault(int(number), number) != number:
            yield "a name in per_layer_config", number, f"the number of a layer, from 0 to {layers - 1:,}, once"
        label = f"per_layer_config.{number}"
        if not isinstance(own, Mapping):
            yield label, own, "an object"
        for name in LAYER_KEYS:
            if name in own and own[name] is None:
                yield f"{label}.{name}", None, _range(name)
            elif name in own:
                yield from _field(name, own[name], f"{label}.{name}")
        skip = own.get("skip", ())
        if not isinstance(skip, list | tuple) or any(part not in SUBLAYERS for part in skip):
            yield f"{label}.skip", skip, f"a list of {' and '.join(SUBLAYERS)}"


def _rope(name: str, values: Mapping[str, Any]) -> Iterator[Wrong]:
    """Scaled positions: what a factor may be is a matter of its kind, which transformers knows."""
    for key, value in values.items():
        label = f"{name}.{one_line(str(key), 40)}"
        parts = value if isinstance(value, list) else [value]
        if key in NUMBERS:
            yield from _field(key, value, label)
        elif isinstance(value, Mapping):  # of each type of layer
            yield from _rope(label, value)
        elif any(part is not None and type(part) not in (int, float, str, bool) for part in parts):
            yield label, value, "a number, a name, true, false or a list of numbers"


def _heads(config: Mapping[str, Any], heads_divide_hidden: bool) -> Iterator[Wrong]:
    """Query heads come in groups of equal size, and positions turn the two halves of a head."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = width // heads if config.get("head_dim") is None else config["head_dim"]
    if heads_divide_hidden and width % heads:
        yield "num_attention_heads", heads, f"a divisor of hidden_size, {width:,}"
    if size < 1:
        yield "num_attention_heads", heads, f"at most hidden_size, {width:,}"
    if size % 2:
        yield "head_dim", size, "an even number"
    for label, own in {"": {}, **(config.get("per_layer_config") or {})}.items():
        many = own.get("num_attention_heads", heads)
        groups = own.get("num_key_value_heads", config.get("num_key_value_heads") or heads)
        if many % groups:
            where = f"per_layer_config.{label}." if label != "" else ""
            yield f"{where}num_key_value_heads", groups, f"a divisor of num_attention_heads, {many:,}"


def _shown(value: Any) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, Mapping):
        return f"an object of {len(value):,}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    if type(value) is int and abs(value) > 2**128:
        return "an integer of many digits"
    return one_line(repr(value), 60)
