"""Encoded rows, and their batches in order or shuffled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._hashing import check_seed, permutation

__all__ = ["Batches", "Split"]

FULL_BYTES = 1 << 30  # a split of at most these is shuffled as a whole
BLOCK_ROWS = 1 << 14  # read together from disk when a larger one is shuffled
WINDOW_BLOCKS = 32  # in memory together, and shuffled among themselves
_STREAM = 2  # of the random numbers


class Split:
    """The rows of the training, validation or test part.

    Args:
        columns: field -> values, int32 [n] or [n, L] for ids and float32 [n] for numbers, in memory or memory-mapped.
        label: float32 [n] of 0 and 1.

    Raises:
        DataError: a column has another number of rows.

    Example:
        >>> import numpy as np
        >>> split = Split({"user": np.arange(5, dtype=np.int32)}, np.array([0, 1, 0, 1, 1], np.float32))
        >>> [batch["user"].tolist() for batch in split.batches(2)]
        [[0, 1], [2, 3], [4]]
        >>> batches = split.batches(2, shuffle=True, seed=3, drop_last=True)
        >>> len(batches), [a["label"].equal(b["label"]) for a, b in zip(batches, batches)]
        (2, [True, True])
    """

    def __init__(self, columns: Mapping[str, np.ndarray], label: np.ndarray) -> None:
        self.columns = {**columns, "label": label}
        for name, values in self.columns.items():
            if len(values) != len(label):
                raise DataError(f"column {name!r} has {len(values):,} rows, the label {len(label):,}")

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __repr__(self) -> str:
        return f"Split({len(self):,} rows of {', '.join(self.columns)})"

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, in memory or on disk."""
        return sum(values.nbytes for values in self.columns.values())

    def rows(self, index: slice | np.ndarray | Tensor) -> dict[str, Tensor]:
        """Some rows as one batch.

        Args:
            index: a slice, or row numbers or a mask.

        Returns:
            For every field int64 [B] or [B, L], or float32 [B]; ``"label"`` is float32 [B].
        """
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        return {name: _tensor(values[index]) for name, values in self.columns.items()}

    def batches(self, batch_size: int, shuffle: bool | str = False, seed: int = 0, drop_last: bool = False) -> Batches:
        """The rows in batches; what is returned may be iterated over again and gives the same batches again.

        Shuffled, each row comes once, in an order that depends on the seed alone: give another seed in every epoch. A
        split of more than 1 GiB, which may be on disk, is shuffled by blocks: blocks of 16,384 neighbouring rows in a
        random order, 32 of them in memory at a time, whose rows are mixed. Rows that are near in the file are then
        nearer to each other than at random; a full permutation would read the disk row by row.

        Args:
            batch_size: rows of a batch.
            shuffle: False, True, or ``"full"`` or ``"blocks"`` whatever the size.
            seed: of the order.
            drop_last: leaves out a last batch of fewer rows.

        Raises:
            ValueError: ``batch_size`` is below 1, or ``shuffle`` another word.
            TypeError: ``batch_size`` or ``seed`` is no integer.
        """
        return Batches(self, batch_size, shuffle, seed, drop_last)


class Batches:
    """The batches of :meth:`Split.batches`."""

    def __init__(self, split: Split, batch_size: int, shuffle: bool | str, seed: int, drop_last: bool) -> None:
        if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool):
            raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not isinstance(shuffle, bool) and shuffle not in ("full", "blocks"):
            raise ValueError(f"shuffle must be False, True, 'full' or 'blocks', got {shuffle!r}")
        self.split, self.batch_size, self.drop_last = split, int(batch_size), bool(drop_last)
        self.seed = check_seed(seed)
        if shuffle is True:
            shuffle = "full" if split.nbytes <= FULL_BYTES else "blocks"
        self.shuffle = shuffle

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self.shuffle == "blocks":
            return self._by_blocks()
        return self._in_order(permutation(len(self.split), self.seed, _STREAM) if self.shuffle else None)

    def _in_order(self, order: np.ndarray | None) -> Iterator[dict[str, Tensor]]:
        for number in range(len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield self.split.rows(part if order is None else order[part])

    def _by_blocks(self) -> Iterator[dict[str, Tensor]]:
        columns, rows = self.split.columns, len(self.split)
        blocks = permutation(math.ceil(rows / BLOCK_ROWS), self.seed, _STREAM)
        left = {name: values[:0] for name, values in columns.items()}
        for window, first in enumerate(range(0, len(blocks), WINDOW_BLOCKS)):
            starts = [int(block) * BLOCK_ROWS for block in blocks[first : first + WINDOW_BLOCKS]]
            window_columns = {
                name: np.concatenate([left[name], *(values[start : start + BLOCK_ROWS] for start in starts)])
                for name, values in columns.items()
            }
            count = len(window_columns["label"])
            order = permutation(count, self.seed, _STREAM, window)
            last = first + WINDOW_BLOCKS >= len(blocks)
            end = count if last and not self.drop_last else count // self.batch_size * self.batch_size
            for start in range(0, end, self.batch_size):
                picked = order[start : start + self.batch_size]
                yield {name: _tensor(values[picked]) for name, values in window_columns.items()}
            left = {name: values[order[end:]] for name, values in window_columns.items()}


def _tensor(values: np.ndarray) -> Tensor:
    """In memory of its own: what is memory-mapped may not be written to."""
    return torch.from_numpy(np.array(values, np.int64 if values.dtype.kind in "iu" else np.float32))
