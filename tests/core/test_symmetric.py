"""Groups of rotated vectors without an offset: right on average over rotations, and how far off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.core import quantize
from graphlossy.core.symmetric import SYMMETRIC_BITS, offset_of, quantize_symmetric

D = 64


def decoded(codes: Tensor, scale: Tensor, bits: int, group: int, width: int) -> Tensor:
    stored = (codes.flatten(0, -2), scale.flatten(0, -2), offset_of(scale, bits).flatten(0, -2))
    flat = torch.ops.graphlossy.dequantize(*stored, bits, min(group, -(-width // 8) * 8), width, torch.float32)
    return flat.view(*codes.shape[:-1], width)


def through(x: Tensor, bits: int, group: int = D) -> Tensor:
    return decoded(*quantize_symmetric(x, bits, group), bits, group, x.shape[-1])


# Of a vector, in squared lengths: 1 / (1 - e) - 1, where e is the least error of equal steps (Max, 1960, table II).
ERRORS = {1: 0.5710, 2: 0.1348, 3: 0.0389}


def off_on_average(bits: int, factor: float = 1.0, rotations: int = 2000) -> float:
    """How far the mean over random rotations of a vector is from it, over how far chance would take it."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(D, generator=generator) ** 3  # far from normal, before it is rotated
    turned = torch.linalg.qr(torch.randn(rotations, D, D, generator=generator))[0]
    back = (turned.transpose(-1, -2) @ through(turned @ x, bits)[..., None] * factor)[..., 0]
    off = (back.mean(0) - x).square().sum() / x.square().sum()
    return float(off) / (ERRORS[bits] / rotations)


@pytest.mark.parametrize("bits", SYMMETRIC_BITS)
def test_it_is_right_on_average_over_rotations(bits: int) -> None:
    assert off_on_average(bits) < 2


@pytest.mark.parametrize("bits", SYMMETRIC_BITS)
def test_the_scale_of_the_least_error_is_not_right_on_average_which_would_be_noticed(bits: int) -> None:
    assert off_on_average(bits, factor=1 / (1 + ERRORS[bits])) > 10


@pytest.mark.parametrize("bits", SYMMETRIC_BITS)
def test_the_error_of_normal_numbers(bits: int) -> None:
    x = torch.randn(1000, 2048, generator=torch.Generator().manual_seed(0))
    errors = []
    for back in (through(x, bits, 2048), through(x, bits, 64), quantize(x, bits, 64, rounding="nearest").dequantize()):
        errors.append(float((back - x).square().sum() / x.square().sum()))
    assert errors[0] == pytest.approx(ERRORS[bits], rel=0.01)
    assert errors[1] < errors[0]  # shorter groups know more of themselves
    assert errors[1] < 1.02 * errors[2]  # and least and greatest value take twice the metadata


@pytest.mark.parametrize("bits", SYMMETRIC_BITS)
def test_a_group_keeps_its_length_along_itself(bits: int) -> None:
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    along = (through(x, bits).double() * x).sum(-1) / x.square().sum(-1)
    torch.testing.assert_close(along, torch.ones_like(along), rtol=2**-7, atol=0)  # scale and offset are bfloat16


@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=3), width=st.integers(1, 70),
    group=st.sampled_from([8, 16, 64, 2**28]), bits=st.sampled_from(SYMMETRIC_BITS), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape: list[int], width: int, group: int, bits: int, seed: int) -> None:
    x = torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed))
    codes, scale = quantize_symmetric(x, bits, group)
    assert scale.shape == (*shape, -(-width // group)) and scale.dtype == torch.bfloat16 and codes.dtype == torch.uint8
    found = (
        decoded(codes, scale, bits, group, width) if shape else decoded(codes[None], scale[None], bits, group, width)
    )
    assert found.numel() == x.numel() and bool(found.isfinite().all())
    for first in range(0, width, group):  # a group knows nothing of the others
        part = x[..., first : first + group]
        alone = quantize_symmetric(part, bits, group)[1]
        assert torch.equal(alone[..., 0], scale[..., first // group])


def test_groups_of_zeros_of_extreme_numbers_and_without_a_number() -> None:
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-30
    x[3, 5] = torch.nan
    x[4, 5] = torch.inf
    found = through(x, 2).double()
    assert bool((found[0] == 0).all()) and bool(found[3:5].isnan().all()) and bool(found[[0, 1, 2, 5]].isfinite().all())
    for row in (1, 2, 5):
        assert float((found[row] - x[row]).square().sum() / x[row].square().sum()) < 0.3
    assert quantize_symmetric(x.to("meta"), 2, D)[0].shape == (6, 16)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="bits must be one of 1, 2, 3, got 4"):
        quantize_symmetric(torch.ones(2, 8), 4, 8)
    with pytest.raises(ValueError, match="group_size must be a multiple of 8"):
        quantize_symmetric(torch.ones(2, 8), 2, 12)
    with pytest.raises(TypeError, match="x must be"):
        quantize_symmetric(torch.ones(2, 8, dtype=torch.int64), 2, 8)
