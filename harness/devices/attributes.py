"""Optional attributes of a device class, with the value that holds where it does not define them.

`harness.api.Device` describes them for authors of plug-ins.
"""

from __future__ import annotations


def torch_device(device: object) -> str:
    """The torch device on which a model must lie before `prepare`: the attribute `place`, or "cpu"."""
    return str(getattr(device, "place", "cpu"))


def copies_weights(device: object) -> bool:
    """Whether every handle holds weights of its own: the attribute `copies_weights`, or false."""
    return bool(getattr(device, "copies_weights", False))
