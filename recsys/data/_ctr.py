"""A click-through-rate data set: fields and three splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphlossy.recsys.data._split import Split
from graphlossy.recsys.data._vocabulary import Vocabulary

if TYPE_CHECKING:
    from graphlossy.recsys.data._encoder import Encoder

__all__ = ["CTRData", "Field"]


@dataclass(frozen=True, eq=False)
class Field:
    """A feature as models see it.

    Args:
        name: key of the batches.
        kind: ``"token"`` (int64 [B]; 0 stands for unseen tokens), ``"token_seq"`` (int64 [B, length]; 0 as before, 1 is
            padding) or ``"float"`` (float32 [B]).
        num_tokens: V, rows that an embedding table needs; 0 of a float.
        counts: int64 [V], how often each id occurs in the training rows; padding is not counted.
        vocabulary: the tokens; None of a float.
        length: of a token_seq; else 1.
    """

    name: str
    kind: str
    num_tokens: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), repr=False)
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    length: int = 1


@dataclass
class CTRData:
    """Encoded data for predicting a label of 0 or 1.

    Args:
        name: of the data.
        fields: the features.
        train, valid, test: the parts; vocabularies and scales are of the training rows alone.
        note: where the data come from and on what terms; says "synthetic" where they are generated.
        encoder: turns raw rows into batches, as serving needs.
    """

    name: str
    fields: tuple[Field, ...]
    train: Split
    valid: Split
    test: Split
    note: str
    encoder: Encoder

    @property
    def synthetic(self) -> bool:
        """Whether the data are generated."""
        return self.note.startswith("synthetic")

    @property
    def num_tokens(self) -> int:
        """Rows of all embedding tables together."""
        return sum(entry.num_tokens for entry in self.fields)

    def __str__(self) -> str:
        sizes = f"{len(self.train):,} training, {len(self.valid):,} validation, {len(self.test):,} test rows"
        fields = ", ".join(
            f"{entry.name} ({f'{entry.num_tokens:,}' if entry.num_tokens else entry.kind})" for entry in self.fields
        )
        return f"{self.name}: {sizes}; {fields}; {self.note}"
