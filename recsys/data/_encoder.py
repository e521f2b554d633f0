"""From raw rows to ids and numbers: learned from the training rows, saved, and used again for serving."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.core._files import written
from graphlossy.recsys.data._ctr import Field
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._schema import Column, Schema, read_schema
from graphlossy.recsys.data._tables import Chunk, frame_chunk
from graphlossy.recsys.data._values import numbers, scaled, sequences, tokens
from graphlossy.recsys.data._vocabulary import PADDING, NumberedVocabulary, Vocabulary

__all__ = ["Encoder", "padded"]

_FORMAT = 1
_KEY = "graphlossy.recsys.data.Encoder"


class Encoder:
    """Vocabularies, scales and lengths of a schema's columns.

    In every token field id 0 stands for tokens that no training row had, or fewer than ``min_count``; in sequences id 1
    is padding. Ids are in descending order of popularity unless the schema says otherwise.

    Args:
        schema: the columns.
        vocabularies: of the tokens' and sequences' columns.
        scales: mean and deviation of the float columns.
        lengths: of the sequences' columns.

    Example:
        >>> rows = {"user": ["ann", "bob", "ann"], "price": [1.0, 3.0, 2.0], "click": [0, 1, 1]}
        >>> columns = {"user": "token", "price": {"kind": "float", "transform": "standard"}}
        >>> encoder = Encoder.fit(rows, {"columns": columns, "label": "click"})
        >>> batch = encoder.encode({"user": ["bob", "eve", "ann"], "price": [2.0, 2.0, None]})
        >>> batch["user"].tolist(), batch["price"].tolist()
        ([2, 0, 1], [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        schema: Schema,
        vocabularies: Mapping[str, Vocabulary],
        scales: Mapping[str, tuple[float, float]],
        lengths: Mapping[str, int],
    ) -> None:
        self.schema = schema
        self.vocabularies, self.scales, self.lengths = dict(vocabularies), dict(scales), dict(lengths)

    @classmethod
    def fit(cls, rows: Any, schema: Schema | Mapping[str, Any]) -> Encoder:
        """Learns from rows at hand, all of them training rows.

        Args:
            rows: a data frame or a mapping of columns, the label's included.
            schema: as :func:`read_schema` takes it.

        Raises:
            DataError: a column is missing or holds what it may not, or there are no rows.
        """
        from graphlossy.recsys.data._build import build
        from graphlossy.recsys.data._store import MemoryStore

        schema = read_schema(schema)
        chunk = frame_chunk(rows, replace(schema, time=None).sources())
        return build([chunk], schema, MemoryStore(), "random", (1.0, 0.0, 0.0), 0, "rows")

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of what :meth:`encode` returns."""
        made = []
        for column in self.schema.columns:
            if column.kind == "float":
                made.append(Field(column.name, "float"))
                continue
            words = self.vocabularies[column.name]
            length = self.lengths.get(column.name, 1)
            counts = torch.from_numpy(words.counts.copy())
            made.append(Field(column.name, column.kind, len(words), counts, words, length))
        return tuple(made)

    def encode(self, rows: Any) -> dict[str, Tensor]:
        """Rows as models take them; tokens never seen are 0.

        Args:
            rows: a data frame or a mapping of columns, named as in the file that was learned from; further columns,
                such as the label, do no harm.

        Returns:
            For every field int64 [n], int64 [n, length] or float32 [n].

        Raises:
            DataError: a column is missing, or a number is none; it names row and column.
        """
        wanted = list(dict.fromkeys(column.read_from for column in self.schema.columns))
        chunk = frame_chunk(rows, wanted)
        found = {column.name: self._encode(chunk, column) for column in self.schema.columns}
        kinds = {"float": np.float32}
        return {
            column.name: torch.from_numpy(found[column.name].astype(kinds.get(column.kind, np.int64)))
            for column in self.schema.columns
        }

    def _encode(self, chunk: Chunk, column: Column) -> np.ndarray:
        if column.kind == "float":
            return scaled(column, numbers(chunk, column.read_from), *self.scales[column.name])
        words = self.vocabularies[column.name]
        if column.kind == "token":
            codes, texts = tokens(chunk, column)
            return words.ids(texts)[codes]
        lengths, codes, texts = sequences(chunk, column)
        return padded(lengths, words.ids(texts)[codes], self.lengths[column.name], column.keep)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file with JSON in its metadata; a file of that name is replaced when it is whole.

        Raises:
            DataError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        arrays: dict[str, np.ndarray] = {}
        sizes = {}
        for name, words in self.vocabularies.items():
            arrays[f"{name}/counts"] = np.ascontiguousarray(words.counts)
            if isinstance(words, NumberedVocabulary):
                sizes[name] = words.size
                continue
            texts = [token.encode(errors="surrogatepass") for token in words.tokens]
            arrays[f"{name}/tokens"] = np.frombuffer(b"".join(texts), np.uint8)
            arrays[f"{name}/ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
        # The vocabularies hold the catalogues already.
        schema = replace(self.schema, columns=tuple(replace(column, catalogue=()) for column in self.schema.columns))
        facts = {
            "format": _FORMAT, "schema": schema.to_dict(), "scales": self.scales, "lengths": self.lengths,
            "numbered": sizes,
        }  # fmt: skip
        path = Path(path)
        try:
            with written(path) as half:
                save_file(arrays, half, {_KEY: json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be written ({reason}); give another path") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Encoder:
        """Reads what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, truncated, none of this kind, or of a later format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {}).get(_KEY, "null"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"{path}: is no whole encoder ({error}); save it again") from None
        if not isinstance(facts, dict):
            raise DataError(f"{path}: is a safetensors file, but no encoder's")
        if facts.get("format") != _FORMAT:
            raise DataError(
                f"{path}: is of format {facts.get('format')!r}, this version reads {_FORMAT}; use the version that "
                "wrote it"
            )
        try:
            schema = read_schema(facts["schema"])
            words = {column.name: _vocabulary(column, facts, arrays) for column in schema.columns
                     if column.kind != "float"}  # fmt: skip
            scales = {name: (float(mean), float(deviation)) for name, (mean, deviation) in facts["scales"].items()}
            return cls(schema, words, scales, facts["lengths"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}); save it again") from None


def padded(lengths: np.ndarray, ids: np.ndarray, width: int, keep: str) -> np.ndarray:
    """Lists of ids [n, width], int32: cut or padded with 1 at their ends.

    Args:
        lengths: of the lists [n].
        ids: of all lists in turn.
        width: of the result.
        keep: which end of a longer list stays, ``"first"`` or ``"last"``.
    """
    lengths = lengths.astype(np.int64)
    out = np.full((len(lengths), width), PADDING, np.int32)
    taken = np.minimum(lengths, width)
    starts = np.cumsum(lengths) - lengths + (lengths - taken if keep == "last" else 0)
    ends = np.cumsum(taken)
    inside = np.arange(int(taken.sum())) - np.repeat(ends - taken, taken)
    out[np.repeat(np.arange(len(lengths)), taken), inside] = ids[np.repeat(starts, taken) + inside]
    return out


def _vocabulary(column: Column, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Vocabulary:
    counts = arrays[f"{column.name}/counts"]
    if column.name in facts["numbered"]:
        return NumberedVocabulary(facts["numbered"][column.name], counts)
    data, ends = arrays[f"{column.name}/tokens"].tobytes(), arrays[f"{column.name}/ends"].tolist()
    texts = [data[start:end].decode(errors="surrogatepass") for start, end in zip([0, *ends], ends, strict=False)]
    return Vocabulary(texts, counts, padding=column.kind == "token_seq")
