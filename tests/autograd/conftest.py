"""Graphs and measures shared by the tests of the autograd functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture
def edges() -> Callable[..., Tensor]:
    """Random edges [2, E] with isolated nodes (the last), self-loops and parallel edges."""

    def make(num_src: int, num_edges: int, num_dst: int | None = None, seed: int = 0) -> Tensor:
        num_dst = num_src if num_dst is None else num_dst
        generator = torch.Generator().manual_seed(seed)
        src = torch.randint(0, num_src - 1, (num_edges,), generator=generator)
        dst = torch.randint(0, num_dst - 1, (num_edges,), generator=generator)
        src[1], dst[1] = src[0], dst[0]
        dst[2] = src[2] = 0
        return torch.stack([src, dst])

    return make


@pytest.fixture
def saved_bytes() -> Callable[..., int]:
    """Bytes of all distinct storages that a function's autograd graph keeps, beyond those of ``known`` tensors."""

    def measure(function: Callable[[], Tensor], *known: Tensor | None) -> int:
        ignored = {t.untyped_storage().data_ptr() for t in known if t is not None}
        held: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            assert tensor.layout is torch.strided
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in ignored:
                held[pointer] = tensor  # alive, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = function()
        total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
        del out
        return total

    return measure


@pytest.fixture
def bias_score() -> Callable[..., float]:
    """Mean over elements of (mean error / its standard error)^2: about 1 if there is no bias, large if there is."""

    def score(estimate: Callable[[], Tensor], exact: Tensor, rounds: int = 64) -> float:
        samples = torch.stack([estimate().detach().double().flatten() for _ in range(rounds)])
        error = samples.mean(0) - exact.double().flatten()
        spread = samples.std(0) / rounds**0.5
        rounding = 1e-5 * exact.double().abs().mean()  # summation order of float32
        return float((error / (spread + rounding)).square().mean())

    return score


@pytest.fixture
def planted_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the steps of every low-bit copy a tenth too large."""
    import graphlossy.autograd._ops as ops
    import graphlossy.autograd.norm as norm
    from graphlossy.autograd import _packed

    honest = _packed.pack_tensor

    def biased(*args: object) -> tuple[Tensor, Tensor, Tensor]:
        packed, scale, offset = honest(*args)
        return packed, (scale.view(torch.bfloat16) * 1.1).view(torch.uint8), offset

    monkeypatch.setattr(ops, "pack_tensor", biased)
    monkeypatch.setattr(norm, "pack_tensor", biased)
