"""The anatomy behind a config.json, whatever kind of network it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import Unsupported, one_line
from harness.models.anatomy.core import Anatomy


def anatomy_of(config: Mapping[str, Any], where: str = "the model's config") -> Anatomy:
    """The anatomy behind a config.json, or `Unsupported` with what is supported."""
    from harness.models.architectures.decoder import FAMILIES, decoder, family_of

    family = family_of(config)
    if family is None:
        name = str(config.get("model_type", "")).removeprefix("pruned_") or "(none)"
        raise Unsupported(
            f"model family {one_line(repr(name), 60)} has no anatomy yet", f"supported: {', '.join(sorted(FAMILIES))}"
        )
    check_config(config, where)
    if config.get("quantization_config"):
        raise Unsupported("the weights are quantised", "give the unquantised model")
    return decoder(family, config)


def check_config(config: Mapping[str, Any], where: str = "the model's config") -> None:
    """Refuse wrong types and sizes in the config of a supported family; other families have no anatomy to build."""
    from harness.models.architectures.config_fields import check
    from harness.models.architectures.decoder import family_of

    if family := family_of(config):
        uneven = str(config["model_type"]).startswith("pruned_")
        check({**family.defaults, **config}, where, family.heads_divide_hidden and not uneven)
