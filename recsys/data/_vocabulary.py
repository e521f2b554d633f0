"""Tokens and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from graphlossy.recsys.data._errors import DataError

__all__ = ["Collector", "NumberedVocabulary", "Vocabulary"]

UNSEEN = 0
PADDING = 1


class Vocabulary:
    """Tokens with ids; id 0 stands for all that are unseen, and in sequences id 1 for padding.

    Args:
        tokens: in the order of their ids, which begin at 1, or at 2 with padding.
        counts: int64 [V], of the training rows; ``counts[0]`` is of those that had too rare a token.
        padding: whether id 1 is padding.

    Raises:
        DataError: a token is there twice, or the numbers of tokens and counts differ.

    Example:
        >>> import numpy as np
        >>> words = Vocabulary(["blue", "red"], np.array([0, 5, 2]))
        >>> words.ids(["red", "green"]).tolist(), len(words), words.token(1)
        ([2, 0], 3, 'blue')
    """

    def __init__(self, tokens: Sequence[str], counts: np.ndarray, padding: bool = False) -> None:
        self.tokens = list(tokens)
        self.padding = padding
        self.first = 2 if padding else 1
        self.counts = np.asarray(counts, np.int64)
        self._ids = {token: number for number, token in enumerate(self.tokens, self.first)}
        if len(self._ids) != len(self.tokens):
            raise DataError("a vocabulary holds a token twice")
        if len(self.counts) != len(self):
            raise DataError(f"counts must be one for each of {len(self)} ids, got {len(self.counts)}")

    def __len__(self) -> int:
        return len(self.tokens) + self.first

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        """Ids of tokens, int32; 0 for those that are not in the vocabulary."""
        known = self._ids
        return np.fromiter((known.get(token, UNSEEN) for token in tokens), np.int32)

    def token(self, number: int) -> str | None:
        """The token of an id; None of unseen tokens' and of padding's.

        Raises:
            IndexError: there is no such id.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"ids are from 0 to {len(self) - 1}, got {number}")
        return self.tokens[number - self.first] if number >= self.first else None


class NumberedVocabulary(Vocabulary):
    """The tokens ``"0"``, ``"1"``, ... of a generated table, none of which is kept: token n has id n + 1.

    Args:
        size: how many tokens.
        counts: int64 [size + 1].
    """

    def __init__(self, size: int, counts: np.ndarray) -> None:
        super().__init__((), np.zeros(1, np.int64))
        self.size = size
        self.counts = np.asarray(counts, np.int64)
        if len(self.counts) != len(self):
            raise DataError(f"counts must be one for each of {len(self)} ids, got {len(self.counts)}")

    def __len__(self) -> int:
        return getattr(self, "size", 0) + 1

    def __contains__(self, token: str) -> bool:
        return self._number(token) != UNSEEN

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        return np.fromiter(map(self._number, tokens), np.int32)

    def token(self, number: int) -> str | None:
        super().token(0 if 0 <= number < len(self) else number)
        return str(number - 1) if number else None

    def _number(self, token: str) -> int:
        number = int(token) if token.isdecimal() and token.isascii() and len(token) < 20 else -1
        return number + 1 if 0 <= number < self.size and str(number) == token else UNSEEN


class Collector:
    """Gives tokens provisional ids in the order in which they come, before it is known which of them stay."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def collect(self, tokens: Iterable[str]) -> np.ndarray:
        """Provisional ids, int32."""
        known = self._numbers
        return np.fromiter((known.setdefault(token, len(known)) for token in tokens), np.int32)

    def finish(
        self, counts: np.ndarray, min_count: int, catalogue: Sequence[str], by_count: bool, padding: bool
    ) -> tuple[Vocabulary, np.ndarray]:
        """Keeps the tokens that occur often enough, or are in the catalogue.

        Args:
            counts: int64, by provisional id, of the training rows.
            min_count: at least 1, so that what no training row has is never kept.
            catalogue: tokens that are kept in any case.
            by_count: ids in descending order of counts, ties in the order of appearance; else all in that order.
            padding: whether id 1 is padding.

        Returns:
            The vocabulary, and for each provisional id the final one, int32.
        """
        listed = self.collect(dict.fromkeys(catalogue))
        counts = np.concatenate([counts, np.zeros(len(self) - len(counts), np.int64)])
        kept = counts >= min_count
        kept[listed] = True
        order = np.flatnonzero(kept)
        if by_count:
            order = order[np.argsort(-counts[order], kind="stable")]
        first = 2 if padding else 1
        final = np.zeros(len(self), np.int32)
        final[order] = np.arange(first, first + len(order), dtype=np.int32)
        texts = np.empty(len(self), object)
        texts[:] = list(self._numbers)
        ahead = [int(counts[~kept].sum())] + [0] * padding
        return Vocabulary(texts[order].tolist(), np.concatenate([ahead, counts[order]]), padding), final
