"""Column-row sampling: a product X^T G of many rows from a few of them, and draws from very many weights.

The rows of X and G are the samples (nodes, tokens), the product is the gradient of a weight. Keeping k rows of X for
the backward pass costs k / n of its bytes, and the product k / n of its time. Which estimator to take:

=========  ========  ====================================================================================
method     unbiased  rows
=========  ========  ====================================================================================
crs        yes       k draws with replacement, p_i ~ weight (Drineas, Kannan and Mahoney 2006, section 4)
wta        yes       the heaviest for certain, the rest drawn from the tail (WTA-CRS, Liu et al. 2023)
pps        yes       without replacement, P(row i is in) ~ weight; least variance of all in our measurements
uniform    yes       without replacement, all rows alike
topk       no        the k heaviest, nothing rescaled; least error of a single product
=========  ========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphlossy.core._random import permutation, uniform
from graphlossy.core._weighted_sample import check_count, check_weights, unit_exponent, units, weighted_sample
from graphlossy.core.quantize import seed_or_draw

__all__ = ["RowSample", "sample_rows", "sampled_matmul", "weighted_sample"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class RowSample:
    """Rows chosen by `sample_rows`: sum_j scale_j x_index_j g_index_j^T estimates the sum over all rows.

    Attributes:
        index: int64 [m], m <= k distinct rows: first the ones kept for certain, heaviest first, then the drawn ones.
        scale: float32 [m], the factor of each row; a row that was drawn twice is here once with twice the factor.
        deterministic_count: how many rows at the front are kept for certain.
        probabilities: float32 [m]; of one draw picking the row (crs, and the drawn rows of wta) or of the row being
            in the sample (uniform, pps); 1 for rows kept for certain.
        rows: n, among which they were chosen.
        unbiased: whether the estimate's expected value is the product.
    """

    index: Tensor
    scale: Tensor
    deterministic_count: int
    probabilities: Tensor
    rows: int
    unbiased: bool

    def __len__(self) -> int:
        return self.index.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of indices, factors and probabilities."""
        return sum(t.numel() * t.element_size() for t in (self.index, self.scale, self.probabilities))

    def matmul(self, kept: Tensor, g: Tensor) -> Tensor:
        """The estimate of X^T G from the kept rows ``X[index]``, all that has to be stored of X.

        Args:
            kept: [m, D] rows ``X[index]``.
            g: [n, K] all rows of the other factor.

        Returns:
            [D, K].

        Raises:
            ValueError: the shapes do not fit the sample.

        Example:
            >>> x, g = torch.ones(8, 2), torch.ones(8, 3)
            >>> sample = sample_rows(torch.ones(8), 4, method="uniform", seed=0)
            >>> sample.matmul(x[sample.index], g).tolist()
            [[8.0, 8.0, 8.0], [8.0, 8.0, 8.0]]
        """
        if kept.dim() != 2 or kept.shape[0] != len(self):
            raise ValueError(f"kept must be the {len(self)} sampled rows, X[sample.index]; got {tuple(kept.shape)}")
        if g.dim() != 2 or g.shape[0] != self.rows:
            raise ValueError(f"g must have all {self.rows} rows, of which the sample was taken; got {tuple(g.shape)}")
        scaled = (g[self.index] * self.scale.unsqueeze(1)).to(g.dtype)  # the factor is applied in float32 at least
        return kept.t() @ scaled


def sample_rows(weights: Tensor, k: int, method: str = "wta", seed: int | None = None) -> RowSample:
    """Choose at most k rows by weight, with the factors that make the estimate of a sum over all rows unbiased.

    With weights w_i = ||x_i|| ||g_i||, p_i = w_i / sum w and the total S = sum w, E||estimate - X^T G||_F^2 is
    (S^2 - ||X^T G||_F^2) / k for crs, the least that any p gives (Drineas et al. 2006, lemma 4). wta keeps the set C of
    the heaviest rows and draws k - |C| from the others with p_i / (1 - P_C), factor (1 - P_C) / ((k - |C|) p_i); |C| is
    the size that minimises (1 - P_C) / (k - |C|) (WTA-CRS, Liu et al., NeurIPS 2023, theorem 2). pps keeps the rows
    with k w_i >= S (S and k those of the rows not yet kept) and takes the others by systematic sampling in random
    order with inclusion probabilities pi_i ~ w_i, factor 1 / pi_i (Horvitz and Thompson 1952).

    A row of weight zero is never taken: a weight may be zero only where the row contributes nothing. wta, pps, topk
    and uniform are exact if k reaches the number of rows that count (of positive weight; for uniform, all).

    Args:
        weights: [n] finite, at least 0: norms of rows or products of norms.
        k: most rows kept.
        method: ``"crs"``, ``"wta"``, ``"pps"``, ``"uniform"`` or ``"topk"``; see the table of this module.
        seed: of the draws; None takes one from torch's global generator.

    Raises:
        TypeError: ``weights`` is no dense real tensor or ``k`` no int.
        ValueError: a weight is negative, NaN or infinite; ``k`` is below 1; ``method`` is unknown.

    Example:
        >>> sample = sample_rows(torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0]), 3, method="wta", seed=0)
        >>> sample.deterministic_count, sample.index[0].item(), sample.scale[0].item()
        (1, 0, 1.0)
        >>> sample.scale[1:].sum().item()  # two draws stand for the four light rows
        4.0
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}; got {method!r}")
    check_count("k", k, 1)
    largest = check_weights(weights)
    weights = weights.detach()
    seed = seed_or_draw(seed)
    if largest == 0 and method != "uniform":  # which does not look at the weights
        return _sample(weights, torch.empty(0, dtype=torch.int64, device=weights.device))
    return _METHODS[method](weights, k, seed)


def sampled_matmul(
    x: Tensor, g: Tensor, k: int, method: str = "wta", weights: Tensor | None = None, seed: int | None = None
) -> Tensor:
    """X^T G from at most k of the rows: the gradient of a weight by column-row sampling.

    Where X has to be stored before G is known, use `sample_rows` then and `RowSample.matmul` later.

    Args:
        x: [..., D], leading dimensions are rows.
        g: [..., K], the same leading dimensions.
        k: most rows used.
        method: see `sample_rows`.
        weights: one for each row; None is ||x_i|| ||g_i||, the best there is.
        seed: of the draws; None takes one from torch's global generator.

    Returns:
        [D, K].

    Raises:
        ValueError: the leading dimensions of ``x`` and ``g`` differ, one of them is not finite, or as `sample_rows`.

    Example:
        >>> x, g = torch.eye(4), torch.arange(8.0).view(4, 2)
        >>> bool((sampled_matmul(x, g, k=4) == g).all())
        True
    """
    if x.dim() < 2 or g.dim() < 2 or x.shape[:-1] != g.shape[:-1]:
        shapes = f"{tuple(x.shape)} and {tuple(g.shape)}"
        raise ValueError(f"x and g must be [..., D] and [..., K] with the same leading dimensions; got {shapes}")
    x, g = x.flatten(0, -2), g.flatten(0, -2)
    if weights is None:
        weights = _row_norms(x) * _row_norms(g)
        bad = ~weights.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            name = "g" if bool(x[row].isfinite().all()) else "x"
            raise ValueError(f"{name} must be finite, but row {row} holds NaN or infinity")
    elif weights.numel() != x.shape[0]:
        raise ValueError(f"weights must have one entry for each of the {x.shape[0]} rows, got {tuple(weights.shape)}")
    sample = sample_rows(weights.flatten(), k, method, seed)
    return sample.matmul(x[sample.index], g)


def _row_norms(x: Tensor) -> Tensor:
    # float64, some rows at a time: squares leave float32's range, and a norm rounded to zero would drop its row
    parts = x.detach().split(max(1, _CHUNK // max(1, x.shape[1])))
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def _sample(
    weights: Tensor,
    kept: Tensor,
    drawn: Tensor | None = None,
    scale: Tensor | None = None,
    probabilities: Tensor | None = None,
    unbiased: bool = True,
) -> RowSample:
    """``kept`` rows with factor 1, then ``drawn`` rows with theirs."""
    ones = torch.ones(kept.numel(), dtype=torch.float32, device=weights.device)
    if drawn is None or scale is None or probabilities is None:
        return RowSample(kept, ones, kept.numel(), ones.clone(), weights.numel(), unbiased)
    index = torch.cat([kept, drawn])
    scale = torch.cat([ones, scale.to(torch.float32)])
    probabilities = torch.cat([ones, probabilities.to(torch.float32)])
    return RowSample(index, scale, kept.numel(), probabilities, weights.numel(), unbiased)


def _draw(weights: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(index, counts, probability of one draw) of ``count`` draws with replacement."""
    exponent, total = unit_exponent(weights, float(weights.max()))
    index, counts = weighted_sample(weights, count, seed)
    return index, counts, units(weights[index], exponent).to(torch.float64) / total


def _crs(weights: Tensor, k: int, seed: int) -> RowSample:
    index, counts, p = _draw(weights, k, seed)
    return _sample(weights, index[:0], index, counts / (k * p), p)


def _heaviest(weights: Tensor) -> Tensor:
    """Rows of positive weight from the heaviest on; the earlier row first among equals."""
    return weights.argsort(descending=True, stable=True)[: int((weights > 0).sum())]


def _units_and_rest(falling: Tensor) -> tuple[Tensor, Tensor]:
    """(weight of each row, weight of it and of all behind it) of falling positive weights, in units, int64."""
    heavy = units(falling, unit_exponent(falling, float(falling[0]))[0])
    # Integers: 1 minus the mass of the winners would cancel to nothing where they have nearly all of it.
    return heavy, heavy.flip(0).cumsum(0).flip(0)


def _wta(weights: Tensor, k: int, seed: int) -> RowSample:
    order = _heaviest(weights)
    if order.numel() <= k:
        return _sample(weights, order)
    behind = _units_and_rest(weights[order])[1][:k]
    spread = behind.to(torch.float64) / (k - torch.arange(k, device=weights.device))
    winners = order[: int((spread == spread.min()).nonzero()[0])]
    tail = weights.clone()
    tail[winners] = 0
    draws = k - winners.numel()
    index, counts, p = _draw(tail, draws, seed)
    # The winners' rows are exact, so that the tail alone is estimated: its own probabilities are p_i / (1 - P_C).
    return _sample(weights, winners, index, counts / (draws * p), p)


def _pps(weights: Tensor, k: int, seed: int) -> RowSample:
    order = _heaviest(weights)
    if order.numel() <= k:
        return _sample(weights, order)
    winners = 0
    while True:
        heavy, behind = _units_and_rest(weights[order[winners:]])
        draws = k - winners
        left = draws - torch.arange(draws, device=weights.device)
        certain = (heavy[:draws].to(torch.float64) * left >= behind[:draws].to(torch.float64)) & (heavy[:draws] > 0)
        more = int(certain.to(torch.int64).cumprod(0).sum())
        winners += more
        if more == draws:  # by rounding: what is left has less than 2**-53 of the weight
            return _sample(weights, order[:winners])
        if more == 0:
            break  # else look at the others in units of their own
    shuffled = permutation(seed, heavy.numel(), 1, weights.device)
    running = heavy[shuffled].cumsum(0)
    total = int(running[-1])
    points = torch.arange(draws, device=weights.device) + uniform(seed, 1, stream=2, device=weights.device)
    points = points.mul_(total / draws).to(torch.int64).clamp_(max=total - 1)
    at = torch.searchsorted(running, points, right=True)
    at, counts = shuffled[at].unique(return_counts=True)  # counts are 1 but for rounding
    inclusion = heavy[at].to(torch.float64) * (draws / total)
    return _sample(weights, order[:winners], order[winners:][at], counts / inclusion, inclusion)


def _uniform(weights: Tensor, k: int, seed: int) -> RowSample:
    n = weights.numel()
    if n <= k:
        return _sample(weights, torch.arange(n, device=weights.device))
    drawn = permutation(seed, n, 1, weights.device)[:k].sort().values
    share = torch.full((k,), k / n, dtype=torch.float64, device=weights.device)
    return _sample(weights, drawn[:0], drawn, 1 / share, share)


def _topk(weights: Tensor, k: int, seed: int) -> RowSample:
    order = _heaviest(weights)
    return _sample(weights, order[:k], unbiased=order.numel() <= k)


_METHODS: dict[str, Callable[[Tensor, int, int], RowSample]] = {
    "crs": _crs,
    "wta": _wta,
    "pps": _pps,
    "uniform": _uniform,
    "topk": _topk,
}
