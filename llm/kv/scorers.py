"""What a token of a cache is worth: one small class a method, for :class:`graphlossy.llm.EvictionCache`.

Names and defaults are those of NVIDIA's kvpress where it has the method. A scorer is asked after every pass and says a
number for every token of every head of keys; the highest are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphlossy.llm.kv._rope import Rotary

__all__ = ["H2O", "TOVA", "ExpectedAttention", "Knorm", "Scorer", "SnapKV", "StreamingLLM", "View"]


@dataclass(frozen=True)
class View:
    """What a scorer sees of one layer after a pass; slots hold the tokens that are kept, oldest first.

    Attributes:
        states: gives keys and values [B, H, K, D] after their rotary embedding.
        positions: int32 [B, H, K] of tokens, counted from each row's first real one.
        before: float32 [B, H, K] scores of the last pass, zero for new tokens.
        sums: ``sums(n)`` is [B, H, K], the attention that the last n queries of the pass (None: all) pay to each token,
            summed over these queries and over the heads that share keys. Queries that are pads count for nothing.
        query: [B, heads, Q, D] of the pass, after their rotary embedding; their own tokens are the last Q slots.
        module: the attention layer of the model.
    """

    states: Callable[[], tuple[Tensor, Tensor]]
    positions: Tensor
    before: Tensor
    sums: Callable[[int | None], Tensor]
    query: Tensor
    module: Any


class Scorer(ABC):
    """Base of all scorers.

    Attributes:
        prompt_only: tokens of the prompt alone are dropped and what is generated is kept, unless a cache is told
            otherwise.
        reads_sums: whether it asks for sums of the attention.
    """

    prompt_only = False
    reads_sums = True

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError where a field of whole numbers has another value, or one below 0."""
        for name, number in ((f.name, getattr(self, f.name)) for f in fields(self) if type(f.default) is int):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{type(self).__name__}: {name} must be a whole number, got {number!r}")
            if number < 0:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 0, got {number}")

    @abstractmethod
    def scores(self, view: View) -> Tensor:
        """[B, H, K]: the highest are kept, infinity always."""


@dataclass(frozen=True)
class H2O(Scorer):
    """All attention that a token was paid by queries that could see it (Zhang et al., NeurIPS 2023, section 3)."""

    def scores(self, view: View) -> Tensor:
        return view.before + view.sums(None)


@dataclass(frozen=True)
class TOVA(Scorer):
    """Attention of the last query, the mean over all heads (Oren et al., TOVA, EMNLP 2024, section 3.2)."""

    def scores(self, view: View) -> Tensor:
        return view.sums(1).mean(1, keepdim=True).expand_as(view.before)


@dataclass(frozen=True)
class SnapKV(Scorer):
    """Attention of the end of the prompt, smoothed over neighbours (Li et al., SnapKV, NeurIPS 2024, section 4).

    Args:
        window_size: queries that vote, of the pass; their own tokens are kept.
        kernel_size: odd; tokens of the moving average.
    """

    window_size: int = 64
    kernel_size: int = 5

    prompt_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1 or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"window_size must be at least 1 and kernel_size odd, got {self.window_size} and {self.kernel_size}"
            )

    def scores(self, view: View) -> Tensor:
        votes = view.sums(self.window_size)
        smooth = functional.avg_pool1d(votes, self.kernel_size, 1, self.kernel_size // 2)
        recent = view.positions > view.positions.amax(-1, keepdim=True) - self.window_size
        return smooth.masked_fill(recent, torch.inf)


@dataclass(frozen=True)
class Knorm(Scorer):
    """Keys of small norm are kept (Devoto et al., EMNLP 2024, section 3)."""

    reads_sums = False

    def scores(self, view: View) -> Tensor:
        return -view.states()[0].float().norm(dim=-1)


@dataclass(frozen=True)
class StreamingLLM(Scorer):
    """The first tokens and the most recent ones (Xiao et al., StreamingLLM, ICLR 2024, section 3.2).

    Args:
        n_sink: first tokens that are kept.
    """

    n_sink: int = 4

    reads_sums = False

    def scores(self, view: View) -> Tensor:
        return view.positions.float().masked_fill(view.positions < self.n_sink, torch.inf)


@dataclass(frozen=True)
class ExpectedAttention(Scorer):
    """Attention that queries to come are expected to pay, times the norm of the value (Devoto et al., 2510.00636).

    Queries before their rotary embedding are taken to be normal, with the mean and the covariance of those of the
    pass; the embedding is averaged over the positions that follow. The expectation of exp(q k / sqrt(D)) is then
    known in closed form (equation 4 there).

    Args:
        n_future_positions: positions over which the rotary embedding is averaged.
        n_sink: first tokens, which are kept and whose queries are left out.
        use_covariance: count the covariance too, not the mean alone.
        use_vnorm: multiply by the norm of the value.
        epsilon: is added to the attention before.
    """

    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    prompt_only = True
    reads_sums = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_future_positions < 1 or self.epsilon < 0:
            raise ValueError(
                "n_future_positions must be at least 1 and epsilon at least 0, got "
                f"{self.n_future_positions} and {self.epsilon}"
            )

    def scores(self, view: View) -> Tensor:
        keys, values = (t.float() for t in view.states())
        batch, heads, count, width = keys.shape
        mean, covariance = self._queries(view)
        grouped = mean.view(batch, heads, -1, width)
        logits = torch.einsum("bhgd,bhkd->bhgk", grouped, keys) / width**0.5
        if self.use_covariance:
            spread = covariance.view(*grouped.shape, width)
            squares = [(keys @ one * keys).sum(-1) for one in spread.unbind(2)]  # a head at a time: keys are many
            logits = logits + torch.stack(squares, 2) / (2 * width)
        pads = view.positions < 0
        expected = torch.softmax(logits.masked_fill(pads[:, :, None], -torch.inf), -1).mean(2)
        if self.use_vnorm:
            expected = (expected + self.epsilon) * values.norm(dim=-1)
        return expected.masked_fill(view.positions < self.n_sink, torch.inf)

    def _queries(self, view: View) -> tuple[Tensor, Tensor]:
        """Mean [B, heads, D] and covariance [B, heads, D, D] of the queries to come."""
        query = view.query.float()
        places = view.positions[:, 0, -query.shape[2] :].long()  # below 0 for pads
        rotary = Rotary(view.module)
        query = rotary.undo(query, places.clamp(min=0))
        weight = (places >= self.n_sink).float()[:, None, :, None]
        total = weight.sum(2, keepdim=True).clamp(min=1)
        mean = (query * weight).sum(2, keepdim=True) / total
        around = (query - mean) * weight
        covariance = around.transpose(-1, -2) @ around / total
        ahead = places[:, -1:] + 1 + torch.arange(self.n_future_positions, device=places.device)
        turn = rotary.mean_matrix(ahead, query)[:, None]
        return (mean @ turn).squeeze(2), turn.transpose(-1, -2) @ covariance @ turn
