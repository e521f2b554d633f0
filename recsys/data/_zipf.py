"""Generated click data with a structure to be found: tokens as popular as Zipf's law says, with latent factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphlossy.recsys.data._build import splits
from graphlossy.recsys.data._ctr import CTRData
from graphlossy.recsys.data._encoder import Encoder
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._hashing import check_seed, normal, uniform
from graphlossy.recsys.data._partition import PARTS, Partition, check_split
from graphlossy.recsys.data._schema import Column, Schema
from graphlossy.recsys.data._store import FolderStore, MemoryStore, Store
from graphlossy.recsys.data._vocabulary import NumberedVocabulary

__all__ = ["zipf"]

_FACTOR, _BIAS, _TOKEN, _LABEL, _NUMBER, _WEIGHT = range(10, 16)  # streams of random numbers


def zipf(
    rows: int = 100_000,
    vocab: int | Sequence[int] = (5_000, 2_000, 1_000, 200, 50, 10),
    *,
    exponent: float = 1.05,
    factors: int = 4,
    strength: float = 1.5,
    positives: float = 0.3,
    floats: int = 0,
    split: str = "random",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    chunk: int = 1 << 16,
    folder: str | None = None,
) -> CTRData:
    """Synthetic clicks: each row draws one token of each field, whose factors make a factorisation machine's logit.

    Token r of a field with V tokens has probability ~ (r + 1) ** -exponent. It has a bias b ~ N(0, 1/4) and a vector
    z ~ N(0, I) of ``factors`` numbers, and a row with the tokens t_1 ... t_F is positive with probability sigmoid(l),

        l = c + strength * (sum_f b_f + sum_{f<g} <z_f, z_g> / sqrt(factors * F(F-1)/2) + sum_k w_k x_k),

    the model of Rendle (ICDM 2010). Row r depends on the seed and r alone, so the size of the chunks changes nothing.
    Every token has an id, in the order of its probability: token r is r + 1, whether a training row has it or not.

    Args:
        rows: of all parts together.
        vocab: tokens of each field; one number makes two fields of as many.
        exponent: of Zipf's law, at least 0.
        factors: of a token, at least 1; rounded up to an even number.
        strength: of the structure; 0 makes labels that nothing can predict.
        positives: about the share of positive labels.
        floats: fields of standard normal numbers with a linear weight.
        split: ``"random"``, or ``"time"``: the order of the rows.
        fractions: of the parts.
        seed: of everything.
        chunk: rows made together; the memory in use grows with it.
        folder: of ``.npy`` files that the rows are written to, and memory-mapped; None keeps them in memory.

    Returns:
        Fields ``f0``, ``f1``, ... and ``x0``, ``x1``, ...; ``note`` begins with "synthetic".

    Raises:
        DataError: a parameter is out of range.

    Example:
        >>> data = zipf(1_000, (50, 20), seed=1)
        >>> [(field.name, field.num_tokens) for field in data.fields]
        [('f0', 51), ('f1', 21)]
        >>> len(data.train) + len(data.valid) + len(data.test)
        1000
    """
    sizes = (vocab, vocab) if isinstance(vocab, (int, np.integer)) else tuple(vocab)
    _check(
        rows=(rows, 1, 1 << 40), factors=(factors, 1, 1 << 10), floats=(floats, 0, 1 << 12), chunk=(chunk, 1, 1 << 30)
    )
    for number, size in enumerate(sizes):
        _check(**{f"vocab[{number}]": (size, 1, (1 << 31) - 2)})
    if not sizes:
        raise DataError("vocab must hold at least one field's number of tokens")
    for name, value, good in (
        ("exponent", exponent, exponent >= 0), ("strength", strength, strength >= 0),
        ("positives", positives, 0 < positives < 1),
    ):  # fmt: skip
        if not (good and math.isfinite(value)):
            raise DataError(f"{name} must be {'between 0 and 1' if name == 'positives' else 'at least 0'}, got {value}")
    seed, shares = check_seed(seed), check_split(split, fractions)
    store: Store = MemoryStore() if folder is None else _folder_store(folder)
    make = _Rows(sizes, exponent, factors + factors % 2, strength, math.log(positives / (1 - positives)), floats, seed)
    partition = Partition(split, shares, seed, rows)
    counts = [np.zeros(size + 1, np.int64) for size in sizes]
    columns = tuple([Column(f"f{f}") for f in range(len(sizes))] + [Column(f"x{k}", "float") for k in range(floats)])
    try:
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            made, part = make.rows(start, stop), partition.part(start, stop)
            for name, values in made.items():
                for number, which in enumerate(PARTS):
                    store.append(f"{which}/{name}", values[part == number])
            for f, count in enumerate(counts):
                np.add.at(count, made[f"f{f}"][part == 0], 1)
        for which in PARTS:
            for name in ("label", *(column.name for column in columns)):
                store.finish(f"{which}/{name}")
    finally:
        store.close()
    words = {f"f{f}": NumberedVocabulary(size, counts[f]) for f, size in enumerate(sizes)}
    schema = Schema(columns, "label")
    encoder = Encoder(schema, words, {f"x{k}": (0.0, 1.0) for k in range(floats)}, {})
    note = f"synthetic: generated by graphlossy.recsys.data.zipf, exponent {exponent:g}, seed {seed}"
    return CTRData("zipf", encoder.fields, *splits(schema, store), note, encoder)


class _Rows:
    """Makes rows from their numbers."""

    def __init__(
        self, sizes: Sequence[int], exponent: float, factors: int, strength: float, offset: float, floats: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.sizes, self.factors, self.strength, self.offset = sizes, factors, strength, offset
        self.floats, self.seed = floats, seed
        distinct = {size: np.cumsum(np.arange(1, size + 1) ** -float(exponent)) for size in set(sizes)}
        self.cumulative = [distinct[size] for size in sizes]
        self.weights = normal(np.arange(floats), seed, _WEIGHT)[..., 0] / max(1, floats) ** 0.5

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        index = np.arange(start, stop)
        made: dict[str, np.ndarray] = {}
        linear = np.zeros(len(index), np.float32)
        total = np.zeros((len(index), self.factors), np.float32)
        squares = np.zeros(len(index), np.float32)
        for f, cumulative in enumerate(self.cumulative):
            drawn = uniform(index, self.seed, _TOKEN, f) * cumulative[-1]
            token = np.minimum(np.searchsorted(cumulative, drawn, side="right"), self.sizes[f] - 1)
            made[f"f{f}"] = (token + 1).astype(np.int32)
            linear += normal(token, self.seed, _BIAS, f)[..., 0] * np.float32(0.5)
            pairs = [normal(token, self.seed, _FACTOR, f, k) for k in range(self.factors // 2)]
            vector = np.concatenate(pairs, axis=1)
            total += vector
            squares += (vector**2).sum(1)
        couples = len(self.sizes) * (len(self.sizes) - 1) / 2
        pairwise = ((total**2).sum(1) - squares) / 2 / max(1.0, self.factors * couples) ** 0.5
        for k in range(self.floats):
            made[f"x{k}"] = normal(index, self.seed, _NUMBER, k)[..., 0]
            linear += made[f"x{k}"] * self.weights[k]
        logit = self.offset + self.strength * (linear + pairwise).astype(np.float64)
        made["label"] = (uniform(index, self.seed, _LABEL) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        return made


def _check(**limits: tuple[object, int, int]) -> None:
    for name, (value, least, most) in limits.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
            raise DataError(f"{name} must be an integer from {least} to {most}, got {value!r}")


def _folder_store(folder: str) -> FolderStore:
    from pathlib import Path

    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: exists already and is no empty folder; give another path")
    return FolderStore(path)
