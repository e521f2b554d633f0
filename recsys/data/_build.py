"""Encodes a table of any length: one pass over its text, a second over what the first wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from graphlossy.recsys.data._encoder import Encoder, padded
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._partition import PARTS, Partition, time_partition
from graphlossy.recsys.data._schema import Column, Schema
from graphlossy.recsys.data._split import Split
from graphlossy.recsys.data._store import Store
from graphlossy.recsys.data._tables import Chunk
from graphlossy.recsys.data._values import labels, numbers, scaled, sequences, tokens
from graphlossy.recsys.data._vocabulary import Collector, Vocabulary

__all__ = ["build", "check_tokens", "splits"]

_ROWS = 1 << 16  # read together from the store


def build(
    chunks: Iterable[Chunk], schema: Schema, store: Store, split: str, fractions: tuple[float, float, float],
    seed: int, where: str,
) -> Encoder:  # fmt: skip
    """Writes the encoded columns of the three parts to a store.

    The text is read once: tokens get provisional ids, and all columns go to the store as numbers. Then the parts are
    known, and with them the vocabularies, scales and lengths of the training rows; a second pass over the numbers
    writes ``"train/user"`` and so on. Memory grows with the distinct tokens, not with the rows.

    Args:
        chunks: the table.
        schema: its columns.
        store: where the columns go.
        split: ``"random"`` or ``"time"``.
        fractions: of the parts.
        seed: of the random split.
        where: the table's name in messages.

    Returns:
        The encoder, learned from the training rows.

    Raises:
        DataError: a value is wrong, or there are no rows, or none for training.
    """
    try:
        return _Builder(schema, store).run(chunks, split, fractions, seed, where)
    finally:
        store.close()


def check_tokens(encoder: Encoder, where: str) -> None:
    """Raises DataError where all rows look alike: there are token fields alone, and all their tokens are too rare."""
    if not encoder.scales and all(len(v) == v.first for v in encoder.vocabularies.values()):
        raise DataError(
            f"{where}: no token of any field occurs min_count times in the rows for training; "
            "lower min_count, or give more rows"
        )


def splits(schema: Schema, store: Store) -> tuple[Split, Split, Split]:
    """The parts that :func:`build` wrote."""
    names = [column.name for column in schema.columns]
    made = []
    for part in PARTS:
        columns = {name: store.array(f"{part}/{name}") for name in names}
        made.append(Split(columns, store.array(f"{part}/label")))
    return made[0], made[1], made[2]


class _Builder:
    def __init__(self, schema: Schema, store: Store) -> None:
        self.schema, self.store = schema, store
        self.collectors = {column.name: Collector() for column in schema.columns if column.kind != "float"}
        self.rows = 0

    def run(
        self, chunks: Iterable[Chunk], split: str, fractions: tuple[float, float, float], seed: int, where: str
    ) -> Encoder:
        by_time = self.schema.time if split == "time" else None
        for chunk in chunks:
            if chunk.rows:
                self._collect(chunk, by_time)
        if not self.rows:
            raise DataError(f"{where}: has no rows; it must hold at least one after the header")
        names = ["label", *(["time"] if by_time else [])]
        for column in self.schema.columns:
            names += [f"of {column.name}"] + ([f"lengths of {column.name}"] if column.kind == "token_seq" else [])
        for name in names:
            self.store.finish(f"pass/{name}")
        training = self._divide(Partition(split, fractions, seed, self.rows), by_time)
        if not training:
            raise DataError(
                f"{where}: none of its {self.rows:,} rows is for training; give more rows or another seed or fractions"
            )
        encoder = Encoder(self.schema, {}, {}, {})
        for column in self.schema.columns:
            self._finish(column, encoder)
        for part, rows in self._parts():
            self._write("label", part, self.store.read("pass/label", *rows))
        for name in [f"{part}/label" for part in PARTS]:
            self.store.finish(name)
        for name in ["label", "part", *(["time"] if by_time else [])]:
            self.store.drop(f"pass/{name}")
        return encoder

    def _collect(self, chunk: Chunk, by_time: str | None) -> None:
        append = self.store.append
        append("pass/label", labels(chunk, self.schema.label, self.schema.threshold))
        if by_time:
            append("pass/time", numbers(chunk, by_time, missing=False))
        for column in self.schema.columns:
            name = f"pass/of {column.name}"
            if column.kind == "float":
                append(name, numbers(chunk, column.read_from))
            elif column.kind == "token":
                codes, texts = tokens(chunk, column)
                append(name, self.collectors[column.name].collect(texts)[codes])
            else:
                lengths, codes, texts = sequences(chunk, column)
                append(name, self.collectors[column.name].collect(texts)[codes])
                append(f"pass/lengths of {column.name}", lengths)
        self.rows += chunk.rows

    def _divide(self, partition: Partition, by_time: str | None) -> int:
        """Writes the part of each row; returns the training rows."""

        def times() -> Iterator[np.ndarray]:
            return (self.store.read("pass/time", *rows) for rows in self._ranges())

        if by_time:
            parts: Iterator[np.ndarray] = time_partition(partition, times)
        else:
            parts = (partition.part(*rows) for rows in self._ranges())
        training = 0
        for part in parts:
            self.store.append("pass/part", part)
            training += int(np.count_nonzero(part == 0))
        self.store.finish("pass/part")
        return training

    def _finish(self, column: Column, encoder: Encoder) -> None:
        """Learns one column from the training rows, and writes it."""
        name = f"pass/of {column.name}"
        if column.kind == "float":
            encoder.scales[column.name] = self._scale(column)
            for part, rows in self._parts():
                self._write(column.name, part, scaled(column, self.store.read(name, *rows),
                                                      *encoder.scales[column.name]))  # fmt: skip
        elif column.kind == "token":
            collector = self.collectors[column.name]
            counts = np.zeros(len(collector), np.int64)
            for part, rows in self._parts():
                counts += np.bincount(self.store.read(name, *rows)[part == 0], minlength=len(counts))
            encoder.vocabularies[column.name], final = self._vocabulary(column, counts)
            for part, rows in self._parts():
                self._write(column.name, part, final[self.store.read(name, *rows)])
        else:
            self._finish_sequence(column, encoder)
        for part in PARTS:
            self.store.finish(f"{part}/{column.name}")
        self.store.drop(name)

    def _finish_sequence(self, column: Column, encoder: Encoder) -> None:
        collector, longest = self.collectors[column.name], 1
        counts = np.zeros(len(collector), np.int64)
        for part, lengths, ids in self._sequences(column):
            training = part == 0
            counts += np.bincount(ids[np.repeat(training, lengths)], minlength=len(counts))
            longest = max(longest, int(lengths[training].max(initial=0)))
        encoder.vocabularies[column.name], final = self._vocabulary(column, counts)
        width = encoder.lengths[column.name] = column.length or longest
        for part, lengths, ids in self._sequences(column):
            self._write(column.name, part, padded(lengths, final[ids], width, column.keep))
        self.store.drop(f"pass/lengths of {column.name}")

    def _vocabulary(self, column: Column, counts: np.ndarray) -> tuple[Vocabulary, np.ndarray]:
        by_count = self.schema.order == "popularity"
        sequence = column.kind == "token_seq"
        collector = self.collectors.pop(column.name)
        return collector.finish(counts, self.schema.least(column), column.catalogue, by_count, sequence)

    def _scale(self, column: Column) -> tuple[float, float]:
        """Mean and deviation of the training rows (Chan, Golub and LeVeque 1983); 0 and 1 where they are not used."""
        if not column.transform.endswith("standard"):
            return 0.0, 1.0
        count, mean, squares = 0, 0.0, 0.0
        for part, rows in self._parts():
            raw = self.store.read(f"pass/of {column.name}", *rows)[part == 0]
            value = np.log1p(np.maximum(raw, 0)) if column.transform.startswith("log") else raw
            value = value[~np.isnan(value)]
            if len(value):
                here = float(value.mean())
                squares += float(((value - here) ** 2).sum()) + (here - mean) ** 2 * count * len(value) / (
                    count + len(value)
                )
                count += len(value)
                mean += (here - mean) * len(value) / count
        deviation = math.sqrt(squares / count) if count else 0.0
        return mean, deviation if deviation > 1e-12 * abs(mean) else 1.0

    def _ranges(self) -> Iterator[tuple[int, int]]:
        return ((start, min(start + _ROWS, self.rows)) for start in range(0, self.rows, _ROWS))

    def _parts(self) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        return ((self.store.read("pass/part", *rows), rows) for rows in self._ranges())

    def _sequences(self, column: Column) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        start = 0
        for part, rows in self._parts():
            lengths = self.store.read(f"pass/lengths of {column.name}", *rows)
            stop = start + int(lengths.sum())
            yield part, lengths, self.store.read(f"pass/of {column.name}", start, stop)
            start = stop

    def _write(self, name: str, part: np.ndarray, values: np.ndarray) -> None:
        for number, which in enumerate(PARTS):
            self.store.append(f"{which}/{name}", values[part == number])
