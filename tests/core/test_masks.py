"""Exact one-bit masks, mask_apply, and 32-bit copies of indices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import PackedMask, mask_apply, narrow_index, pack_mask, unpack_mask

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NUMBERS = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64)


@given(
    shape=st.lists(st.integers(0, 40), min_size=0, max_size=3),
    dtype=st.sampled_from(NUMBERS),
    share=st.floats(0, 1),
    transposed=st.booleans(),
)
def test_a_mask_comes_back(device, shape, dtype, share, transposed) -> None:
    x = torch.where(torch.rand(shape) < share, torch.randint(1, 100, shape), 0).to(dtype).to(device)
    x = x.T if transposed and x.dim() == 2 else x
    m = pack_mask(x)
    out = unpack_mask(m)
    assert m.nbytes == -(-x.numel() // 8) == m.bits.numel() and m.numel() == x.numel() and m.shape == x.shape
    assert out.dtype == torch.bool and out.is_contiguous() and torch.equal(out, x != 0)


@given(
    size=st.integers(0, 300),
    dtype=st.sampled_from((torch.bool, *FLOATS)),
    low=st.floats(-4, 4),
    high=st.floats(-1e6, 1e6),
)
def test_a_mask_comes_back_as_two_values(device, size, dtype, low, high) -> None:
    mask = torch.rand(size, device=device) < 0.5
    out = unpack_mask(pack_mask(mask), low, high, dtype)
    expected = torch.full((size,), low, dtype=torch.float64, device=device)
    expected[mask] = high
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))


def test_bit_i_is_bit_i_and_7_of_byte_i_over_8(device) -> None:
    mask = torch.zeros(21, dtype=torch.bool, device=device)
    mask[[0, 3, 8, 20]] = True
    assert pack_mask(mask).bits.tolist() == [0b1001, 0b1, 0b10000]
    assert pack_mask(~mask).bits.tolist() == [0b11110110, 0b11111110, 0b01111]  # bits beyond the end are 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nonzero_is_set(device, dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([0.0, -0.0, tiny, -tiny, torch.nan, -torch.inf, 1.0], dtype=torch.float64).to(dtype)
    assert x[2] != 0
    assert unpack_mask(pack_mask(x.to(device))).tolist() == [False, False, True, True, True, True, True]


def test_integers_are_compared_as_a_whole(device) -> None:
    for dtype, value in ((torch.int16, 256), (torch.int32, 2**16), (torch.int64, 2**32), (torch.int64, -(2**63))):
        assert unpack_mask(pack_mask(torch.tensor([0, value], dtype=dtype, device=device))).tolist() == [False, True]


@given(
    shape=st.lists(st.integers(0, 30), min_size=0, max_size=3),
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([1.0, 2.0, 1 / 0.9, -0.3, 0.0]),
)
def test_mask_apply_is_the_product(device, shape, dtype, scale) -> None:
    grad, kept = torch.randn(shape, device=device).to(dtype), torch.rand(shape, device=device) > 0.5
    out = mask_apply(grad, pack_mask(kept), scale)
    wide = torch.promote_types(dtype, torch.float32)
    expected = torch.where(kept, (grad.to(wide) * torch.tensor(scale, dtype=wide)).to(dtype), 0)
    assert out.dtype == dtype and out.shape == grad.shape and torch.equal(out, expected)


def test_mask_apply_stops_nan_and_infinity_and_keeps_the_gradient(device) -> None:
    grad = torch.tensor([torch.nan, torch.inf, -1.0, torch.nan, torch.inf, -1.0], device=device)
    mask = pack_mask(torch.tensor([0, 0, 0, 1, 1, 1], device=device))
    out = mask_apply(grad, mask, 2.0)
    torch.testing.assert_close(out.cpu(), torch.tensor([0, 0, 0, torch.nan, torch.inf, -2]), equal_nan=True)
    assert not bool(torch.signbit(out[:3]).any()) and grad.isnan().sum() == 2


def test_a_relu_by_mask_is_exact(device) -> None:
    x = (torch.randn(100, 70, device=device) * 1e-20).requires_grad_()
    grad = torch.randn(100, 70, device=device)
    x.relu().backward(grad)
    assert torch.equal(mask_apply(grad, pack_mask(x > 0)), x.grad)


def test_grad_may_have_another_shape_and_layout() -> None:
    kept = torch.rand(6, 10) > 0.5
    grad = torch.randn(10, 6).T
    assert torch.equal(mask_apply(grad, pack_mask(kept)), grad * kept)
    assert torch.equal(mask_apply(grad.reshape(60), pack_mask(kept)), (grad * kept).reshape(60))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pack_mask([True]), TypeError, "mask must be a dense torch.Tensor, got list"),
        (lambda: pack_mask(torch.eye(2).to_sparse()), TypeError, "got torch.sparse_coo"),
        (lambda: unpack_mask(torch.ones(2)), TypeError, "mask must be a PackedMask, got Tensor; make it with pack"),
        (lambda: unpack_mask(pack_mask(torch.ones(2)), dtype=torch.int8), TypeError, "dtype must be one of float32"),
        (lambda: mask_apply(torch.ones(2), torch.ones(2)), TypeError, "mask must be a PackedMask, got Tensor"),
        (lambda: mask_apply([1.0], pack_mask(torch.ones(1))), TypeError, "grad must be a torch.Tensor, got list"),
        (lambda: mask_apply(torch.ones(2, 4), pack_mask(torch.ones(9))), ValueError, r"got \(2, 4\) and \(9,\)"),
        (lambda: mask_apply(torch.ones(2, dtype=torch.int64), pack_mask(torch.ones(2))), TypeError, "grad must be one"),
        (
            lambda: mask_apply(torch.ones(8, device="meta"), pack_mask(torch.ones(8))),
            (ValueError, RuntimeError),
            "grad and packed must be on one device, got meta and cpu",
        ),
        (lambda: unpack_mask(PackedMask(torch.zeros(2, dtype=torch.uint8), (17,))), ValueError, "needs 3 packed bytes"),
        (lambda: unpack_mask(PackedMask(torch.zeros(3), (17,))), TypeError, "packed must be uint8, got torch.float32"),
    ],
)
def test_errors(call, error, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_no_gradient_flows_into_a_mask() -> None:
    x = torch.randn(10, requires_grad=True)
    assert not unpack_mask(pack_mask(x)).requires_grad


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 7], torch.int32),
        ([], torch.int32),
        ([2**31 - 1, -(2**31)], torch.int32),
        ([2**31], torch.int64),
        ([-(2**31) - 1], torch.int64),
        ([0, 2**62], torch.int64),
    ],
)
def test_indices_are_narrowed_where_they_fit(device, values: list[int], dtype: torch.dtype) -> None:
    index = torch.tensor(values, dtype=torch.int64, device=device)
    out = narrow_index(index)
    assert out.dtype == dtype and out.tolist() == values and out.shape == index.shape
    assert (out is index) == (dtype == torch.int64)


def test_other_indices_come_back_as_they_are() -> None:
    for index in (torch.tensor([1], dtype=torch.int32), torch.tensor([True]), torch.tensor([1.5])):
        assert narrow_index(index) is index
    with pytest.raises(TypeError, match="index must be a torch.Tensor, got list"):
        narrow_index([1])  # type: ignore[arg-type]
