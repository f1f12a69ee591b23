"""Reads the header of a GGUF file. Every count and length is checked against the size of the file.

The readers of `gguf` and `transformers` loop as often as a header says, and a header of 60 bytes can say 2**60.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from harness.system import reading

MAGIC, VERSIONS = b"GGUF", (2, 3)
ENTRIES = 2**16  # of metadata, and tensors: the largest files have some thousands
ELEMENTS = 2**21  # of an array: vocabularies and merges have some 100,000
DIMENSIONS = 4
TEXT = 2**20  # bytes of a text; chat templates have some thousands
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FIELDS = {  # of the family's metadata, as a config.json calls them
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
HEAD_SIZES = ("attention.key_length", "rope.dimension_count")


class Length(int):
    """The length of an array in the metadata. Its elements are skipped."""


class Header:
    """The metadata of a file. ValueError if a count or a length does not fit the file's size."""

    def __init__(self, path: Path) -> None:
        reading.must_be_regular(path)
        self.metadata: dict[str, Any] = {}
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.bytes:
            self.at, self.order = 0, "<"
            self._read()

    @property
    def family(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def config(self) -> dict[str, Any]:
        """The fields of a config.json that this file states."""
        family = {name.removeprefix(f"{self.family}."): value for name, value in self.metadata.items()}
        fields = {field: family[name] for name, field in FIELDS.items() if name in family}
        if sizes := [family[name] for name in HEAD_SIZES if name in family]:
            fields["head_dim"] = max(sizes)
        if (tokens := self.metadata.get("tokenizer.ggml.tokens")) is not None:
            fields.setdefault("vocab_size", int(tokens))
        return {"model_type": self.family, **fields}

    def _read(self) -> None:
        if self._take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if self._number("I") % 2**16 == 0:
            self.order = ">"  # written by a machine of the other byte order
        self.at = 4
        if (version := self._number("I")) not in VERSIONS:
            raise ValueError(f"its version is {version}")
        tensors, entries = self._count(ENTRIES, "tensors", 24), self._count(ENTRIES, "entries", 13)
        for _ in range(entries):
            name = self._text()
            self.metadata[name] = self._value(self._number("I"))
        sizes = [self._tensor() for _ in range(tensors)]
        if max(sizes, default=0) > len(self.bytes) - self.at:
            raise ValueError("it ends before its tensors do")

    def _tensor(self) -> int:
        """The offset of a tensor's end, from the start of the first tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self._text()
        count = self._number("I")
        if count > DIMENSIONS:
            raise ValueError(f"a tensor has {count:,} dimensions")
        dims = [self._number("Q") for _ in range(count)]
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("I"))]
        return self._number("Q") + math.prod(dims) // block * size

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"it holds a value of type {kind}")
        kind = self._number("I")
        if kind != STRING and kind not in SCALARS:
            raise ValueError(f"it holds an array of type {kind}")
        width = struct.calcsize(f"<{SCALARS.get(kind, 'Q')}")
        count = self._count(ELEMENTS, "elements", width)
        if kind == STRING:
            self._skip_texts(count)
        else:
            self._take(count * width)
        return Length(count)

    def _skip_texts(self, count: int) -> None:
        """Skip the texts of an array, without slicing: a vocabulary has 100,000 of them."""
        length, at, end = struct.Struct(f"{self.order}Q").unpack_from, self.at, len(self.bytes)
        for _ in range(count):
            if at + 8 > end:
                raise ValueError("it is truncated")
            at += 8 + length(self.bytes, at)[0]
        self.at = at
        self._take(0)

    def _text(self) -> str:
        return self._take(self._count(TEXT, "bytes of text", 1)).decode(errors="replace")

    def _count(self, most: int, what: str, least_bytes: int) -> int:
        count = int(self._number("Q"))
        if count > most or count * least_bytes > len(self.bytes) - self.at:
            raise ValueError(f"it says that it has {count:,} {what}")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(self.order + code, self._take(struct.calcsize(f"<{code}")))[0]

    def _take(self, count: int) -> bytes:
        if count > len(self.bytes) - self.at:
            raise ValueError("it is truncated")
        self.at += count
        return self.bytes[self.at - count : self.at]
