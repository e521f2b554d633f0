"""Which numbers of a model matter: scores from weights and gradients, and the best of them under a byte budget."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from graphlossy.core.budget import parse_bytes

__all__ = ["SaliencyAccumulator", "prune_to_budget", "saliency_scores"]

_KINDS = ("snip", "magnitude", "gradient", "fisher")
_CHUNK = 1 << 22
_DIGIT = 16  # bits of a score compared at a time


def saliency_scores(param: Tensor, grad: Tensor | None = None, kind: str = "snip") -> Tensor:
    """How much the loss depends on each entry w of ``param``, from its gradient g.

    ============  ============  =====================================================================
    kind          score
    ============  ============  =====================================================================
    snip          |w g|         change of the loss when w is removed, first order (Lee et al., ICLR 2019, eq. 4)
    magnitude     |w|           needs no gradient
    gradient      |g|
    fisher        w^2 g^2 / 2   the same change to second order, with the Fisher information g^2 as
                                curvature (Theis et al. 2018, eq. 6)
    ============  ============  =====================================================================

    Args:
        param: any shape, dense.
        grad: the same shape; may be sparse, as an embedding's with ``sparse=True`` is.
        kind: see above.

    Returns:
        Scores of the shape of ``param``, dense, float32 (float64 if ``param`` is).

    Raises:
        TypeError: ``grad`` is missing where it is needed.
        ValueError: ``kind`` is unknown or the shapes differ.

    Example:
        >>> w, g = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.5, 0.0])
        >>> saliency_scores(w, g), saliency_scores(w, kind="magnitude")
        (tensor([0.5000, 1.0000, 0.0000]), tensor([1., 2., 3.]))
    """
    _check_kind(kind, _KINDS)
    if kind == "magnitude":
        return _wide(param).abs()
    term = _term(param, grad, kind)
    return (term.to_dense() if term.is_sparse else term).abs_()


class SaliencyAccumulator:
    """Saliency over many batches: a single batch gives every token that it lacks a score of exactly 0.

    Two accumulations differ. ``"sum_of_abs"`` adds |w g_b| of every batch b, so that an entry which is pulled both
    ways counts; ``"abs_of_sum"`` is |sum_b w g_b|, which is |w sum_b g_b| while the weights stay the same: the score of
    all the data as one batch (SNIP). Memory: one float32 for each entry.

    Args:
        kind: ``"snip"``, ``"gradient"`` or ``"fisher"``, as in `saliency_scores`.
        accumulate: ``"sum_of_abs"`` or ``"abs_of_sum"``; fisher, a mean of squares, has the first only.

    Raises:
        ValueError: ``kind`` or ``accumulate`` is unknown, or they do not go together.

    Example:
        >>> table = torch.nn.Embedding.from_pretrained(torch.ones(3, 1), freeze=False)
        >>> saliency = SaliencyAccumulator("snip")
        >>> for tokens in ([0, 0], [0, 1]):
        ...     table.zero_grad()
        ...     table(torch.tensor(tokens)).sum().backward()
        ...     saliency.update(table.named_parameters())
        >>> saliency.scores()["weight"].flatten(), saliency.batches
        (tensor([3., 1., 0.]), 2)
    """

    def __init__(self, kind: str = "snip", accumulate: str = "sum_of_abs") -> None:
        if kind == "magnitude":
            raise ValueError("magnitude needs no batches; call saliency_scores(param, kind='magnitude')")
        _check_kind(kind, _KINDS)
        if accumulate not in ("sum_of_abs", "abs_of_sum"):
            raise ValueError(f"accumulate must be 'sum_of_abs' or 'abs_of_sum', got {accumulate!r}")
        if kind == "fisher" and accumulate == "abs_of_sum":
            raise ValueError("fisher adds squares of each batch: accumulate must be 'sum_of_abs'")
        self.kind, self.accumulate, self.batches = kind, accumulate, 0
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, named: Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]) -> None:
        """Add one batch: the present ``grad`` of every parameter; one without a gradient adds nothing.

        Args:
            named: (name, parameter) pairs such as ``model.named_parameters()``, or a mapping.

        Raises:
            ValueError: a parameter has another shape than before.
        """
        for name, param in named.items() if isinstance(named, Mapping) else named:
            total = self._sums.get(name)
            if total is None:
                total = self._sums[name] = torch.zeros_like(_wide(param), memory_format=torch.contiguous_format)
            if total.shape != param.shape:
                raise ValueError(f"{name} had shape {tuple(total.shape)} in earlier batches, now {tuple(param.shape)}")
            if param.grad is not None:
                term = _term(param, param.grad, self.kind)
                total.add_(term if self.accumulate == "abs_of_sum" else term.abs())
        self.batches += 1

    def scores(self) -> dict[str, Tensor]:
        """The accumulated scores by name: sums over the batches."""
        return {name: total.abs() for name, total in self._sums.items()}


def _check_kind(kind: str, allowed: tuple[str, ...]) -> None:
    if kind not in allowed:
        raise ValueError(f"kind must be one of {', '.join(map(repr, allowed))}; got {kind!r}")


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _term(param: Tensor, grad: Tensor | None, kind: str) -> Tensor:
    """w g, g or w^2 g^2 / 2, a tensor of its own; sparse if ``grad`` is."""
    if grad is None:
        raise TypeError(f"kind={kind!r} needs the gradient of param; got None. Call backward() first")
    if grad.shape != param.shape:
        raise ValueError(f"grad must have the shape of param, {tuple(param.shape)}; got {tuple(grad.shape)}")
    if grad.is_sparse:
        grad = grad.detach().coalesce()  # entries of one token add up before anything is squared
        index = grad.indices()
        values = _term(param.detach()[tuple(index)], grad.values(), kind)
        return torch.sparse_coo_tensor(index, values, grad.shape, is_coalesced=True, check_invariants=False)
    w, g = _wide(param), _wide(grad)
    if kind == "gradient":
        return g.clone()
    return w * g if kind == "snip" else (w * g).square_().mul_(0.5)


def prune_to_budget(
    scores: Mapping[str, Tensor], bytes_per_entry: float, budget_bytes: int | float | str
) -> dict[str, Tensor]:
    """Keep the highest scores of all tensors together, as many as the budget pays for.

    One threshold for all tensors; exactly floor(budget / bytes_per_entry) entries are kept (or all). Among entries
    equal to the threshold those of earlier tensors, and earlier in a tensor, are kept, on every device. The threshold
    is found by counting the scores' bits 16 at a time, without sorting or joining the tensors.

    Args:
        scores: tensors of any shapes, float; higher matters more.
        bytes_per_entry: bytes that one kept entry costs, indices included if they are stored.
        budget_bytes: a number of bytes or a text such as ``"1.5GiB"``.

    Returns:
        For each name a bool tensor of the same shape: True is kept.

    Raises:
        TypeError: a score tensor is no float tensor.
        ValueError: a score is NaN, ``bytes_per_entry`` is not positive, or the budget is negative or no size.

    Example:
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0, 1.0]])}
        >>> prune_to_budget(scores, bytes_per_entry=4, budget_bytes=12)
        {'a': tensor([True, True]), 'b': tensor([[ True, False]])}
    """
    if not (isinstance(bytes_per_entry, numbers.Real) and math.isfinite(bytes_per_entry) and bytes_per_entry > 0):
        raise ValueError(f"bytes_per_entry must be a positive number, got {bytes_per_entry!r}")
    budget = parse_bytes(budget_bytes)
    for name, score in scores.items():
        if not isinstance(score, Tensor) or not score.is_floating_point():
            kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"scores[{name!r}] must be a float tensor, got {kind}")
        if any(bool(chunk.isnan().any()) for chunk in _chunks(score)):
            raise ValueError(f"scores[{name!r}] holds NaN; were the gradients finite?")
    entries = sum(score.numel() for score in scores.values())
    keep = min(entries, _affordable(budget, bytes_per_entry))
    if keep in (0, entries):
        return {name: torch.full(s.shape, keep > 0, device=s.device) for name, s in scores.items()}
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    threshold, ties = _threshold(list(scores.values()), keep, wide)
    masks = {}
    for name, score in scores.items():
        mask = torch.empty(score.numel(), dtype=torch.bool, device=score.device)
        for start, chunk in zip(range(0, score.numel(), _CHUNK), _chunks(score), strict=True):
            value = chunk.to(wide)  # a threshold from another tensor may be no number of this one's dtype
            part = value > threshold
            if ties:
                equal = (value == threshold).nonzero().squeeze(1)[:ties]
                part[equal] = True
                ties -= equal.numel()
            mask[start : start + _CHUNK] = part
        masks[name] = mask.view(score.shape)
    return masks


def _affordable(budget: int, each: float) -> int:
    count = int(budget // each)
    return count - 1 if count * each > budget else count


def _chunks(score: Tensor) -> Iterator[Tensor]:
    flat = score.detach().reshape(-1)
    yield from (flat[start : start + _CHUNK] for start in range(0, flat.numel(), _CHUNK))


def _key(chunk: Tensor, wide: torch.dtype) -> Tensor:
    """int64 keys in the order of the values, as many bits as ``wide`` has."""
    # + 0.0 makes -0 into +0, so that equal values have equal keys
    pattern = (chunk.to(wide) + 0.0).view(torch.int64 if wide == torch.float64 else torch.int32)
    top = torch.iinfo(pattern.dtype)
    return (pattern ^ ((pattern >> (top.bits - 1)) & top.max)).to(torch.int64)


def _threshold(scores: list[Tensor], keep: int, wide: torch.dtype) -> tuple[float, int]:
    """(the keep-th highest score, how many equal to it are kept): a radix selection from the highest bits down."""
    size = torch.finfo(wide).bits
    prefix = 0  # the bits known so far
    left = keep
    for shift in range(size - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(2**_DIGIT, dtype=torch.int64, device="cpu")
        for chunk in (chunk for score in scores for chunk in _chunks(score)):
            digits = _key(chunk, wide) >> shift
            if shift == size - _DIGIT:
                digits = digits + 2 ** (_DIGIT - 1)  # keys are signed
            else:
                digits = digits[(digits >> _DIGIT) == prefix] & (2**_DIGIT - 1)
            histogram += torch.bincount(digits, minlength=2**_DIGIT).cpu()
        above = histogram.flip(0).cumsum(0).flip(0)  # with this digit or a higher one
        digit = int((above >= left).nonzero()[-1])
        left -= int(above[digit] - histogram[digit])
        prefix = digit - 2 ** (_DIGIT - 1) if shift == size - _DIGIT else (prefix << _DIGIT) + digit
    # back from the key to the number
    dtype = torch.int64 if wide == torch.float64 else torch.int32
    pattern = torch.tensor(prefix if prefix >= 0 else prefix ^ torch.iinfo(dtype).max, dtype=dtype, device="cpu")
    return float(pattern.view(wide)), left
