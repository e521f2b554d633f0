"""What each number of a token's row is worth: falling lists of scores that sizes are made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["ColumnScores", "EntryScores", "PowerScores", "TokenScores"]

_CHUNK = 1 << 22  # elements at a time


class TokenScores(ABC):
    """For every token a falling list of d scores: of its row's first number, of the second, and so on.

    Attributes:
        num_embeddings: tokens V.
        embedding_dim: width d.
    """

    num_embeddings: int
    embedding_dim: int

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """(smallest, largest) positive score; (0, 0) if there is none."""

    @abstractmethod
    def kept(self, threshold: float) -> Tensor:
        """int16 [V]: how many scores of each token are above ``threshold``, which is at least 0."""

    @abstractmethod
    def sums(self, groups: Tensor) -> Tensor:
        """float64 [d + 1, d + 1]: entry [g, s] sums the s best scores of all tokens whose ``groups`` [V] is g."""

    def value(self, sizes: Tensor) -> float:
        """Sum of all scores that rows of these sizes keep."""
        return float(self.sums(sizes).diagonal().sum())


class EntryScores(TokenScores):
    """Scores of the entries of a table, of which the best of each row count, wherever in the row they are.

    Args:
        scores: float [V, d], at least 0; it is taken over, and its rows are sorted in place.

    Raises:
        ValueError: a score is negative, infinite or NaN.

    Example:
        >>> EntryScores(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]])).kept(1.5)
        tensor([2, 1], dtype=torch.int16)
    """

    def __init__(self, scores: Tensor) -> None:
        self.num_embeddings, self.embedding_dim = scores.shape
        self._sorted = scores.detach()
        for part in self._chunks():
            if not bool(part.isfinite().all()) or bool((part < 0).any()):
                raise ValueError("scores must be finite and at least 0; were all gradients finite?")
            part.copy_(part.sort(dim=1, descending=True).values)

    def _chunks(self) -> Iterator[Tensor]:
        step = max(1, _CHUNK // max(1, self.embedding_dim))
        yield from (self._sorted[i : i + step] for i in range(0, self.num_embeddings, step))

    def range(self) -> tuple[float, float]:
        low, high = float("inf"), 0.0
        for part in self._chunks():
            high = max(high, float(part[:, 0].max()))
            low = min(low, float(part.masked_fill(part <= 0, float("inf")).min()))
        return (low, high) if high > 0 else (0.0, 0.0)

    def kept(self, threshold: float) -> Tensor:
        out = [(part > threshold).sum(1, dtype=torch.int16) for part in self._chunks()]
        return torch.cat(out) if out else torch.zeros(0, dtype=torch.int16)

    def sums(self, groups: Tensor) -> Tensor:
        d, at = self.embedding_dim, 0
        total = torch.zeros((d + 1, d), dtype=torch.float64, device=self._sorted.device)
        for part in self._chunks():
            index = groups[at : at + part.shape[0]].to(device=part.device, dtype=torch.int64)
            total.index_add_(0, index, part.double())
            at += part.shape[0]
        return torch.nn.functional.pad(total.cumsum(1), (1, 0)).cpu()


class PowerScores(TokenScores):
    """A weight for every token: the score of its s-th number is weight / (s - 1/2).

    A threshold t then keeps weight / t numbers, rounded: sizes are proportional to the weights.

    Args:
        weights: [V], finite and at least 0.
        embedding_dim: width d.

    Raises:
        ValueError: a weight is negative, infinite or NaN.

    Example:
        >>> PowerScores(torch.tensor([8.0, 4.0, 0.6, 0.2, 0.0]), 8).kept(1.0)
        tensor([8, 4, 1, 0, 0], dtype=torch.int16)
    """

    def __init__(self, weights: Tensor, embedding_dim: int) -> None:
        self._weights = weights.detach().to(device="cpu", dtype=torch.float64)
        if not bool(self._weights.isfinite().all()) or bool((self._weights < 0).any()):
            raise ValueError("weights must be finite and at least 0")
        self.num_embeddings, self.embedding_dim = self._weights.shape[0], embedding_dim

    def range(self) -> tuple[float, float]:
        positive = self._weights[self._weights > 0]
        if not positive.numel():
            return 0.0, 0.0
        return float(positive.min()) / self.embedding_dim, 2 * float(positive.max())

    def kept(self, threshold: float) -> Tensor:
        if threshold <= 0:
            return torch.where(self._weights > 0, self.embedding_dim, 0).to(torch.int16)
        quotient = self._weights / threshold
        below = (quotient + 0.5).ceil() - 1  # weight / (s - 1/2) > threshold  <=>  s < weight / threshold + 1/2
        return below.clamp(0, self.embedding_dim).to(torch.int16)

    def sums(self, groups: Tensor) -> Tensor:
        total = torch.zeros(self.embedding_dim + 1, dtype=torch.float64)
        total.index_add_(0, groups.to(device="cpu", dtype=torch.int64), self._weights)
        return total.unsqueeze(1) * torch.nn.functional.pad(_shares(self.embedding_dim).cumsum(0), (1, 0))


class ColumnScores(TokenScores):
    """Scores that are the same for all tokens of a table.

    Args:
        scores: [d], finite and at least 0, in any order.
        num_embeddings: tokens V.

    Example:
        >>> ColumnScores(torch.tensor([3.0, 1.0, 2.0]), 2).kept(1.5)
        tensor([2, 2], dtype=torch.int16)
    """

    def __init__(self, scores: Tensor, num_embeddings: int) -> None:
        self._one = EntryScores(scores.detach().to(device="cpu", dtype=torch.float64, copy=True).unsqueeze(0))
        self.num_embeddings, self.embedding_dim = num_embeddings, scores.shape[0]

    @classmethod
    def proportional(cls, weight: float, num_embeddings: int, embedding_dim: int) -> ColumnScores:
        """Scores of which a threshold t keeps weight / t, rounded."""
        return cls(weight * _shares(embedding_dim), num_embeddings)

    def range(self) -> tuple[float, float]:
        return self._one.range()

    def kept_by_all(self, threshold: float) -> int:
        """How many scores are above the threshold."""
        return int(self._one.kept(threshold))

    def kept(self, threshold: float) -> Tensor:
        return self._one.kept(threshold).expand(self.num_embeddings)

    def sums(self, groups: Tensor) -> Tensor:
        tokens = torch.bincount(groups.long().cpu(), minlength=self.embedding_dim + 1)
        best = self._one.sums(torch.zeros(1, dtype=torch.int64))[0]
        return tokens.unsqueeze(1).double() * best


def _shares(embedding_dim: int) -> Tensor:
    """float64 [d]: 1 / (s - 1/2) for s = 1 .. d."""
    return (torch.arange(1, embedding_dim + 1, dtype=torch.float64) - 0.5).reciprocal()
