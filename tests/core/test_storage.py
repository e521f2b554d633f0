"""Moving, copying, pickling and saving of QuantizedTensor and PackedMask; damaged input."""

from __future__ import annotations

import copy
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from graphlossy.core import PackedMask, QuantizedTensor, pack_mask, quantize, unpack_mask

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def assert_equal(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert a.to_tensors().keys() == b.to_tensors().keys()
    assert a.scale.dtype == b.scale.dtype == torch.bfloat16 and a.packed.dtype == b.packed.dtype == torch.uint8
    for name, tensor in a.to_tensors().items():
        other = b.to_tensors()[name]
        assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), name  # NaN scales too
    torch.testing.assert_close(a.dequantize(), b.dequantize(), rtol=0, atol=0, equal_nan=True)
    assert (a.bits, a.group_size, a.shape, a.dtype, a.dim, a.order) == (
        b.bits, b.group_size, b.shape, b.dtype, b.dim, b.order
    )  # fmt: skip


@pytest.fixture(params=[-1, 0, None])
def q(request: pytest.FixtureRequest) -> QuantizedTensor:
    x = torch.randn(3, 7, 20, dtype=torch.float16).transpose(0, 1)
    x[2, 1, 5] = torch.nan
    return quantize(x, 3, 8, dim=request.param, seed=5)


def test_pickle(q: QuantizedTensor) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert_equal(pickle.loads(pickle.dumps(q, protocol)), q)


def test_copies(q: QuantizedTensor) -> None:
    shallow, deep = copy.copy(q), copy.deepcopy(q)
    assert_equal(deep, q)
    assert shallow.packed is q.packed
    assert deep.packed.data_ptr() != q.packed.data_ptr() and deep.scale.data_ptr() != q.scale.data_ptr()
    deep.packed.zero_()
    assert bool(q.packed.any())
    pair = copy.deepcopy([q, q])
    assert pair[0] is pair[1]


def test_save_and_load_of_weights_only(q: QuantizedTensor, tmp_path: Path) -> None:
    torch.save({"h": q, "mask": pack_mask(torch.tensor([1, 0, 1]))}, tmp_path / "q.pt")
    loaded = torch.load(tmp_path / "q.pt", weights_only=True)
    assert_equal(loaded["h"], q)
    assert unpack_mask(loaded["mask"]).tolist() == [True, False, True]


def test_safetensors(q: QuantizedTensor, tmp_path: Path) -> None:
    other = quantize(torch.randn(5), 8, seed=1)
    save_file(q.to_tensors("layer1.") | other.to_tensors("layer2.x."), tmp_path / "q.safetensors")
    tensors = load_file(tmp_path / "q.safetensors")
    assert_equal(QuantizedTensor.from_tensors(tensors, "layer1."), q)
    assert_equal(QuantizedTensor.from_tensors(tensors, "layer2.x."), other)


@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
    dim=st.none() | st.integers(-4, 3),
    dtype=st.sampled_from(DTYPES),
    bits=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_every_shape_reads_back(shape, dim, dtype, bits) -> None:
    if dim is not None and not -max(1, len(shape)) <= dim < max(1, len(shape)):
        dim = -1
    q = quantize(torch.randn(shape).to(dtype), bits, 8, dim=dim, seed=0)
    assert_equal(QuantizedTensor.from_tensors(q.to_tensors("a."), "a."), q)


def test_to(q: QuantizedTensor, device) -> None:
    assert q.to("cpu") is q and q.to(torch.device("cpu"), non_blocking=True) is q
    there = q.to(device)
    assert there.device.type == device.type and there.nbytes == q.nbytes
    assert_equal(there.to("cpu"), q)
    torch.testing.assert_close(there.dequantize().cpu(), q.dequantize(), rtol=0, atol=0, equal_nan=True)
    meta = q.to("meta")
    assert meta.device.type == "meta" and meta.dequantize().shape == q.shape and meta.nbytes == q.nbytes


@pytest.mark.parametrize("place", [torch.float16, True, None])
def test_to_takes_a_place_only(q: QuantizedTensor, place: object) -> None:
    for stored in (q, pack_mask(torch.ones(9))):
        with pytest.raises(TypeError, match="device must be a torch.device or its name"):
            stored.to(place)


def test_repr_weak_references_and_no_stray_attributes(q: QuantizedTensor) -> None:
    text = repr(quantize(torch.zeros(4, 256), 2))
    assert text == (
        "QuantizedTensor(shape=(4, 256), dtype=float32, bits=2, group_size=256, dim=-1, 272 bytes, "
        "2.12 bits/element, cpu)"
    )
    assert weakref.ref(q)() is q
    with pytest.raises(AttributeError):
        q.packd = q.packed  # type: ignore[attr-defined]


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor | None] = {**quantize(torch.ones(4, 20), 2, 8, seed=0).to_tensors("h."), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


META = [1, 2, 8, 0, -1, 4, 20, 0, 1]  # version, bits, group size, dtype, dim, shape, order


def meta(**at: int) -> torch.Tensor:
    numbers = list(META)
    for place, value in at.items():
        numbers[int(place[1:])] = value
    return torch.tensor(numbers)


def test_the_layout_of_the_metadata() -> None:
    assert changed()["h.meta"].tolist() == META  # a file of version 1 is read for ever


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"h.meta": None}, KeyError, r"tensors has no h\.meta; give the prefix given to to_tensors \(got 'h\.'\)"),
        ({"h.packed": None, "h.scale": None}, KeyError, r"has no h\.packed, h\.scale"),
        ({"h.meta": meta(_0=2)}, ValueError, r"h\.meta has version 2; this graphlossy reads 1"),
        ({"h.meta": torch.tensor([], dtype=torch.int64)}, ValueError, r"h\.meta is damaged: \[\]; write the tensors"),
        ({"h.meta": torch.tensor([1, 2])}, ValueError, r"h\.meta is damaged: \[1, 2\]"),
        ({"h.meta": torch.tensor(META[:-1])}, ValueError, r"h\.meta is damaged"),
        ({"h.meta": torch.tensor(META).float()}, TypeError, r"h\.meta must be int64, got torch\.float32"),
        ({"h.meta": meta(_1=5)}, ValueError, r"bits must be one of .*got 5"),
        ({"h.meta": meta(_2=0)}, ValueError, "group_size .*got 0"),
        ({"h.meta": meta(_2=16)}, ValueError, r"a width of 20 at 2 bits in groups of 16 needs .*\[rows, 2\]"),
        ({"h.meta": meta(_3=4)}, ValueError, "damaged"),
        ({"h.meta": meta(_3=-1)}, ValueError, "damaged"),
        ({"h.meta": meta(_4=2)}, ValueError, "damaged"),
        ({"h.meta": meta(_4=-3)}, ValueError, "damaged"),
        ({"h.meta": meta(_5=5)}, ValueError, r"h\.packed must have 5 rows for shape \(5, 20\), got 4"),
        ({"h.meta": meta(_6=30)}, ValueError, r"a width of 30 .*needs packed \[rows, 8\]"),
        ({"h.meta": meta(_5=-4)}, ValueError, "damaged"),
        ({"h.meta": meta(_8=0)}, ValueError, "damaged"),
        ({"h.packed": torch.zeros(4, 5, dtype=torch.uint8)}, ValueError, r"needs packed \[rows, 6\].*got \(4, 5\)"),
        ({"h.packed": torch.zeros(24, dtype=torch.uint8)}, ValueError, "packed must have 2 dimensions"),
        ({"h.packed": torch.zeros(4, 6)}, TypeError, "must be uint8, bfloat16 and bfloat16, got torch.float32"),
        ({"h.scale": torch.ones(4, 3)}, TypeError, "got torch.uint8, torch.float32 and torch.bfloat16"),
        ({"h.offset": torch.ones(3, 3).bfloat16()}, ValueError, r"got \(4, 6\), \(4, 3\) and \(3, 3\)"),
        ({"h.scale": torch.ones(4, 3, device="meta").bfloat16()}, ValueError, "on one device, got cpu, meta and cpu"),
    ],
)
def test_damaged_tensors(changes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        QuantizedTensor.from_tensors(changed(**changes), "h.")


def test_masks(tmp_path: Path, device) -> None:
    mask = torch.rand(3, 5, 7) > 0.5
    m = pack_mask(mask)
    torch.save(m, tmp_path / "m.pt")
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m), torch.load(tmp_path / "m.pt", weights_only=True)):
        assert isinstance(other, PackedMask) and torch.equal(unpack_mask(other), mask)
        assert other.bits.data_ptr() != m.bits.data_ptr()
    assert m.to("cpu") is m and m.to("meta").device.type == "meta" and m.device.type == "cpu"
    assert torch.equal(unpack_mask(m.to(device)).cpu(), mask)
    assert repr(m) == "PackedMask(shape=(3, 5, 7), 14 bytes, cpu)"
    assert weakref.ref(m)() is m
