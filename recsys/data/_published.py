"""MovieLens 100K and Epinions, from the packages that bring them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graphlossy.recsys.data._atomic import AtomicFiles, atomic_chunks
from graphlossy.recsys.data._build import build, check_tokens, splits
from graphlossy.recsys.data._ctr import CTRData
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._negatives import distinct, sample_negatives
from graphlossy.recsys.data._packages import PACKAGES, absent, find, open_member
from graphlossy.recsys.data._schema import Column, Schema
from graphlossy.recsys.data._store import MemoryStore
from graphlossy.recsys.data._tables import Chunk, frame_chunk, text_chunks

__all__ = ["epinions", "movielens"]

_AGES = (18.0, 25.0, 35.0, 45.0, 50.0, 56.0)  # the groups of MovieLens 1M
_ROWS = 100_000
_USERS, _ITEMS = 943, 1_682
_PAIRS = 346_035
_IDS = (Column("user", source="user_id"), Column("item", source="item_id"))
_CTR = (
    *_IDS,
    Column("age", source="age", buckets=_AGES),
    Column("gender"),
    Column("occupation"),
    Column("zip", source="zip_code"),
    Column("genres", "token_seq", source="class"),
    Column("year", source="release_year"),
)


def movielens(
    name: str, root: str | os.PathLike[str] | None, split: str, fractions: tuple[float, float, float], seed: int,
    min_count: int | None,
) -> CTRData:  # fmt: skip
    """MovieLens 100K (Harper and Konstan, ACM TiiS 2015): 100,000 ratings; the label is a rating of at least 4.

    ``"movielens-100k"`` has user, item, age group, gender, occupation, zip code, genres and year of release.
    ``"movielens-100k-ids"`` has user and item alone, and an id for all 943 users and 1,682 items, which the data set
    lists beside the ratings, whether a training row has them or not.

    Raises:
        DataError: the data are not here, or damaged.
    """
    place = find(name, root)
    if place is None:
        raise absent(name, root)
    parts = ("inter",) if name.endswith("-ids") else ("inter", "user", "item")
    files = AtomicFiles({part: open_member(name, place, f"ml-100k.{part}") for part in parts})
    columns = _IDS if name.endswith("-ids") else _CTR
    if name.endswith("-ids"):
        sizes = {"user": _USERS, "item": _ITEMS}
        columns = tuple(
            Column(column.name, source=column.source, catalogue=tuple(map(str, range(1, sizes[column.name] + 1))))
            for column in columns
        )
    schema = Schema(columns, "rating>=4", time="timestamp", min_count=min_count or 1)
    chunks = atomic_chunks(files, schema)
    return _finish(name, _counted(chunks, _ROWS, str(place)), schema, split, fractions, seed, str(place))


def epinions(
    root: str | os.PathLike[str] | None, split: str, fractions: tuple[float, float, float], seed: int,
    min_count: int | None, per_positive: int = 1,
) -> CTRData:  # fmt: skip
    """Epinions (Massa and Avesani, RecSys 2007): 346,035 pairs of 4,718 users and 36,165 items, and as many negatives.

    The pairs of the package's two files together are the positives; for each, ``per_positive`` items that are no
    positive of the user in any split are drawn uniformly from the seed. Fields: user and item. There are no times.

    Raises:
        DataError: the data are not here, or damaged; or a split by time is asked for.
    """
    if split == "time":
        raise DataError("epinions: has no times, so split must be 'random'")
    place = find("epinions", root)
    if place is None:
        raise absent("epinions", root)
    pairs = np.concatenate([_pairs(place, file) for file in PACKAGES["epinions"].files])
    width = int(pairs[:, 1].max(initial=0)) + 1
    pairs = np.stack(np.divmod(distinct(pairs[:, 0] * width + pairs[:, 1]), width), axis=1)
    if len(pairs) != _PAIRS:
        raise DataError(f"{place}: has {len(pairs):,} pairs of user and item, expected {_PAIRS:,}; fetch it again")
    listed, item = np.unique(pairs[:, 1], return_inverse=True)
    users, items = sample_negatives(pairs[:, 0], item, len(listed), per_positive, seed)
    rows = {
        "user": np.concatenate([pairs[:, 0], users]),
        "item": np.concatenate([pairs[:, 1], listed[items]]),
        "label": np.concatenate([np.ones(len(pairs), np.int8), np.zeros(len(users), np.int8)]),
    }
    schema = Schema((Column("user"), Column("item")), "label", min_count=min_count or 1)
    chunks = iter([frame_chunk(rows, schema.sources())])
    data = _finish("epinions", chunks, schema, split, fractions, seed, str(place))
    data.note += f" Negatives: {per_positive} for each pair, drawn uniformly, seed {seed}."
    return data


def _finish(
    name: str, chunks: Iterator[Chunk], schema: Schema, split: str, fractions: tuple[float, float, float], seed: int,
    where: str,
) -> CTRData:  # fmt: skip
    store = MemoryStore()
    encoder = build(chunks, schema, store, split, fractions, seed, where)
    check_tokens(encoder, name)
    return CTRData(name, encoder.fields, *splits(schema, store), PACKAGES[name].notice, encoder)


def _counted(chunks: Iterator[Chunk], expected: int, where: str) -> Iterator[Chunk]:
    rows = 0
    for chunk in chunks:
        rows += chunk.rows
        yield chunk
    if rows != expected:
        raise DataError(f"{where}: has {rows:,} ratings, expected {expected:,}; it is cut off or another version")


def _pairs(place: Path, file: str) -> np.ndarray:
    """Users and items of one of Epinions' files, after its three header lines."""
    source = open_member("epinions", place, file)
    columns: dict[str, list[np.ndarray]] = {"user": [], "items": []}
    first = 3
    for chunk in text_chunks(source, ["user", "items"], ["user", "items", "relevance"]):
        for name, values in columns.items():
            text = chunk.columns[name][first:]
            try:
                values.append(text.astype(np.int64))
            except ValueError:
                row = next(row for row, value in enumerate(text) if not value.isdecimal())
                chunk.fail(row + first, name, f"must be a whole number, got {text[row][:40]!r}")
        first = 0
    return np.stack([np.concatenate(columns["user"]), np.concatenate(columns["items"])], axis=1)
