"""What a token of a cache is worth: one small class a method, for :class:`graphlossy.llm.EvictionCache`.

Names and defaults are those of NVIDIA's kvpress where it has the method. A scorer is asked after every pass and says a
number for every token of every head of keys; the highest are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["H2O", "TOVA", "Knorm", "Scorer", "SnapKV", "StreamingLLM", "View"]


@dataclass(frozen=True)
class View:
    """What a scorer sees of one layer after a pass; slots hold the tokens that are kept, oldest first.

    Attributes:
        states: gives keys and values [B, H, K, D] after their rotary embedding.
        positions: int32 [B, H, K] of tokens, counted from each row's first real one.
        before: float32 [B, H, K] scores of the last pass, zero for new tokens.
        sums: ``sums(n)`` is [B, H, K], the attention that the last n queries of the pass (None: all) pay to each token,
            summed over these queries and over the heads that share keys. Queries that are pads count for nothing.
    """

    states: Callable[[], tuple[Tensor, Tensor]]
    positions: Tensor
    before: Tensor
    sums: Callable[[int | None], Tensor]


class Scorer:
    """Base of all scorers.

    Attributes:
        prompt_only: tokens are dropped after the first pass alone, and what is generated is kept.
    """

    prompt_only = False

    def scores(self, view: View) -> Tensor:
        """[B, H, K]: the highest are kept, infinity always."""
        raise NotImplementedError


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
        window_size: queries that vote; their own tokens are kept.
        kernel_size: odd; tokens of the moving average.
    """

    window_size: int = 64
    kernel_size: int = 5

    prompt_only = True

    def __post_init__(self) -> None:
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

    def scores(self, view: View) -> Tensor:
        return -view.states()[0].float().norm(dim=-1)


@dataclass(frozen=True)
class StreamingLLM(Scorer):
    """The first tokens and the most recent ones (Xiao et al., StreamingLLM, ICLR 2024, section 3.2).

    Args:
        n_sink: first tokens that are kept.
    """

    n_sink: int = 4

    def scores(self, view: View) -> Tensor:
        return view.positions.float().masked_fill(view.positions < self.n_sink, torch.inf)
