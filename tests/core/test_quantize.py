"""quantize and QuantizedTensor: what is stored, how far values move, unusual input, layouts, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import QuantizedTensor, quantize

BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST = 3.3895313892515355e38  # of bfloat16


def unpacked(q: QuantizedTensor) -> torch.Tensor:
    """Codes [rows, width with padding] by the layout in the documentation, written anew."""
    width = q.shape[-1]
    rows = []
    for row in q.packed.numpy().reshape(q.packed.shape[0], -1):
        codes: list[int] = []
        at = 0
        for start in range(0, width, q.group_size):
            n = -(-min(q.group_size, width - start) // 8) * 8
            group = row[at : at + n * q.bits // 8]
            at += len(group)
            low, high = (2, group[n // 4 :]) if q.bits == 3 else (q.bits, group[:0])
            plane = n * low // 8
            values = [int(group[i % plane]) >> (i // plane * low) & (2**low - 1) for i in range(n)]
            codes += [v | (int(high[i % len(high)]) >> (i // len(high)) & 1) << 2 if q.bits == 3 else v
                      for i, v in enumerate(values)]  # fmt: skip
        rows.append(codes)
    return torch.tensor(rows)


def per_element(metadata: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    """Scale or offset of every element: float32 [rows, width]."""
    return metadata.float().repeat_interleave(q.group_size, 1)[:, : q.shape[-1]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 8, 13, 40, 64, 100])
def test_values_are_encoded_with_the_stored_metadata(bits: int, width: int) -> None:
    x = torch.randn(6, width) * torch.logspace(-3, 3, 6).unsqueeze(1)
    q = quantize(x, bits, group_size=32, rounding="nearest")
    s, o = per_element(q.scale, q), per_element(q.offset, q)
    codes = ((x - o) * (1 / s) + 0.5).floor().clamp(max=2**bits - 1)
    codes[s == 0] = 0
    assert torch.equal(unpacked(q)[:, :width], codes.long())
    assert not bool(unpacked(q)[:, width:].any())  # padding
    assert torch.equal(q.dequantize(), codes * s + o)
    if width > 1:  # the stored range covers the values, which the plain one, rounded, would not
        assert bool((o <= x).all()) and bool((o + s * (2**bits - 1) >= x * (1 - 1e-6)).all())


@pytest.mark.parametrize("bits", BITS)
def test_metadata_is_rounded_outwards_to_bfloat16(bits: int) -> None:
    x = torch.randn(500, 64)
    q = quantize(x, bits, group_size=64, seed=0)
    low, high = x.double().aminmax(dim=1)
    offset, scale = q.offset.double().squeeze(1), q.scale.double().squeeze(1)
    assert bool((offset <= low).all()) and bool((low - offset < low.abs() * 2**-7).all())
    step = (high - offset) / (2**bits - 1)
    assert bool((scale >= step * (1 - 2**-24)).all()) and bool((scale <= step * (1 + 2**-7)).all())
    assert bool((offset != low).any()) and bool((scale != step).any())  # else this test would say nothing


@given(
    bits=st.sampled_from(BITS),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 5),
    width=st.integers(1, 200),
    group=st.sampled_from([8, 16, 24, 64, 256]),
    size=st.floats(-30, 30),
    shift=st.floats(-100, 100),
    nearest=st.booleans(),
    dim=st.sampled_from([0, 1, -1, -2, None]),
    seed=st.integers(-(2**70), 2**70),
)
def test_error_bound(bits, dtype, rows, width, group, size, shift, nearest, dim, seed) -> None:
    limit = 4 if dtype == torch.float16 else 30
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) + shift
    x = (x * 10 ** (max(-limit, min(limit, size)) - 2)).to(dtype)
    q = quantize(x, bits, group, "nearest" if nearest else "stochastic", dim=dim, seed=seed)
    moved = q.dequantize().double() - x.double()
    lines = x.double().reshape(1, -1) if dim is None else x.double().movedim(dim, -1)
    moved = moved.reshape(1, -1) if dim is None else moved.movedim(dim, -1)
    assert q.scale.shape == (lines.shape[0], -(-lines.shape[1] // q.group_size))
    for g in range(q.scale.shape[1]):
        part = slice(g * q.group_size, (g + 1) * q.group_size)
        values, scale = lines[:, part], q.scale[:, g : g + 1].double()
        step = (values.amax(1, True) - values.amin(1, True)) / (2**bits - 1)
        # rounding the offset down adds up to 2**-7 of its size to the range, rounding the scale up 2**-7 of itself
        most = (step + values.abs().amax(1, True) * 2**-7) * (1 + 2**-7) + 2.0**-126
        assert bool((scale <= most * (1 + 1e-6)).all())
        rounding = torch.finfo(dtype).eps if dtype != torch.float64 else 2.0**-23
        slack = 4 * (rounding + 2**-22) * (values.abs().amax(1, True) + scale * 2**bits)
        slack = slack + (2.0**-24 if dtype == torch.float16 else 0)
        assert bool((moved[:, part].abs() <= scale * (0.5 if nearest else 1) + slack).all())


def test_eight_bits_are_closer_than_four_than_two() -> None:
    x = torch.randn(100, 256)
    error = [float((quantize(x, b, rounding="nearest").dequantize() - x).square().mean()) for b in BITS]
    assert error == sorted(error, reverse=True) and error[-1] < 1e-4 < 1e-2 < error[1]
    # nearest: about step**2 / 12 with a step of about 5.6 / 255
    assert error[-1] == pytest.approx((5.6 / 255) ** 2 / 12, rel=0.15)
    stochastic = float((quantize(x, 8).dequantize() - x).square().mean())
    assert 1.7 < stochastic / error[-1] < 2.3  # step**2 / 6


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_need_no_rounding_come_back(dtype: torch.dtype, bits: int, rounding: str) -> None:
    levels = 2**bits - 1
    x = torch.arange(16).remainder(levels + 1).to(dtype)
    x[0], x[1] = 0, levels
    assert torch.equal(quantize(x, bits, 16, rounding).dequantize(), x)
    constant = torch.full((3, 20), -1.5, dtype=dtype)
    assert torch.equal(quantize(constant, bits, 8, rounding).dequantize(), constant)
    assert torch.equal(quantize(torch.zeros(3, 20, dtype=dtype), bits, 8, rounding).dequantize(), constant * 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_a_group_with_nan_or_infinity_is_nan_and_no_other_is(device, dtype, bits, rounding, poison) -> None:
    x = torch.randn(4, 30, device=device).to(dtype)
    x[1, 9], x[2, 29] = poison, poison
    q = quantize(x, bits, 8, rounding, seed=0)
    out = q.dequantize()
    poisoned = torch.zeros(4, 30, dtype=torch.bool, device=device)
    poisoned[1, 8:16] = poisoned[2, 24:] = True
    assert torch.equal(out.isnan(), poisoned) and bool(out[~poisoned].isfinite().all())
    assert torch.equal(q.scale.isnan().cpu(), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0] * 4]).bool())
    assert bool((q.offset.float()[q.scale.isnan()] == 0).all())


def test_huge_and_tiny_ranges(device) -> None:
    def back(*values: float, bits: int = 2, dtype: torch.dtype = torch.float32) -> list[float]:
        x = torch.tensor(values, dtype=dtype, device=device)
        return quantize(x, bits, 8, "nearest").dequantize().tolist()

    assert all(v != v for v in back(-3e38, 3e38))  # a range beyond float32: NaN, never a finite number
    assert all(v != v for v in back(0.0, 3.4028e38))  # its top rounds beyond bfloat16
    assert all(v != v for v in back(0.0, 1e300, dtype=torch.float64))  # infinite in float32
    assert back(0.0, 3e38)[0] == 0 and back(0.0, 3e38)[1] == pytest.approx(3e38, rel=2**-6)
    assert back(-1.6e38, 1.6e38)[1] == pytest.approx(1.6e38, rel=0.02)
    assert back(-LARGEST, -LARGEST) == [-LARGEST] * 2 and back(LARGEST, LARGEST) == [LARGEST] * 2
    # steps below the normal range are raised to its least number: the error is below 2**-126
    for values in ((0.0, 1e-40), (-1e-44, 1e-45), (2.0**-126, 1.5 * 2.0**-126)):
        assert all(abs(a - b) <= 2.0**-126 for a, b in zip(back(*values), values, strict=True))
    assert back(1e-320, -1e-320, dtype=torch.float64) == [0, 0]
    half = back(-65504.0, 65504.0, bits=8, dtype=torch.float16)
    assert half == [-65504, 65504]  # finite stays finite, though the stored range is wider
    out = quantize(torch.tensor([-0.0, -0.0, 0.0], device=device), 2, 8).dequantize()
    assert out.tolist() == [0, 0, 0] and not bool(torch.signbit(out).any())


def test_scalars_empty_tensors_and_tiny_ones(device) -> None:
    scalar = quantize(torch.tensor(3.0, device=device), 4)
    assert scalar.shape == () and scalar.dequantize().item() == 3 and scalar.nbytes == 4 + 4
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3)):
        for dim in (-1, 0, None):
            q = quantize(torch.empty(shape, device=device), 2, dim=dim)
            assert q.dequantize().shape == shape and q.nbytes == q.bits_per_element == q.numel() == 0
    one = torch.tensor([[0.123]], device=device, dtype=torch.float64)
    assert quantize(one, 1).dequantize().dtype == torch.float64
    assert quantize(one, 1, rounding="nearest").dequantize().item() == pytest.approx(0.123, rel=2**-7)


@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=4),
    dim=st.none() | st.integers(-4, 3),
    order=st.randoms(use_true_random=False),
    bits=st.sampled_from(BITS),
    group=st.sampled_from([8, 24, 256]),
)
def test_shape_strides_and_groups_of_any_layout(shape, dim, order, bits, group) -> None:
    if dim is not None and not -max(1, len(shape)) <= dim < max(1, len(shape)):
        dim = None
    permutation = list(range(len(shape)))
    order.shuffle(permutation)
    x = torch.randn([shape[d] for d in permutation]).permute(np.argsort(permutation).tolist())
    assert list(x.shape) == shape
    q = quantize(x, bits, group, "nearest", dim=dim)
    out = q.dequantize()
    assert out.shape == x.shape and (1 in shape or 0 in shape or out.stride() == x.stride())
    if dim is not None and shape:  # groups along `dim`: every line by itself gives the same
        lines = x.movedim(dim, -1).reshape(-1, x.shape[dim]) if x.numel() else torch.empty(0, 1)
        found = out.movedim(dim, -1).reshape(lines.shape)
        for line, expected in zip(found, lines, strict=True):
            assert torch.equal(line, quantize(expected, bits, group, "nearest").dequantize())
    elif x.numel():  # groups over the memory
        flat = torch.as_strided(x, (x.numel(),), (1,))
        expected = quantize(flat, bits, group, "nearest").dequantize()
        in_memory = sorted(range(x.dim()), key=lambda d: -x.stride(d))
        assert torch.equal(out.permute(in_memory).reshape(-1), expected)


def test_views_that_are_no_dense_block() -> None:
    x = torch.randn(20, 30)
    for view in (x[::2], x[:, 3:9], x[:, ::3], x[5:6].expand(4, 30), x.t()[::2], x.as_strided((3, 30), (15, 1))):
        for dim in (0, 1, None):
            expected = quantize(view.contiguous(), 2, 8, dim=dim, seed=1).dequantize()
            assert torch.equal(quantize(view, 2, 8, dim=dim, seed=1).dequantize(), expected)
    complex_view = torch.randn(4, 6, dtype=torch.complex64).conj().imag  # lazily negated
    assert complex_view.is_neg()
    assert torch.equal(
        quantize(complex_view, 8, seed=0).dequantize(), quantize(complex_view.clone(), 8, seed=0).dequantize()
    )


@given(
    rows=st.integers(0, 20),
    width=st.integers(0, 3000),
    bits=st.sampled_from(BITS),
    group=st.integers(1, 200).map(lambda n: 8 * n),
)
def test_bytes_by_hand(rows: int, width: int, bits: int, group: int) -> None:
    q = quantize(torch.zeros(rows, width), bits, group)
    groups = -(-width // group)
    assert q.nbytes == rows * (-(-width // 8) * bits + 4 * groups)
    assert q.bits_per_element == (8 * q.nbytes / (rows * width) if rows * width else 0)
    flat = quantize(torch.zeros(rows, width), bits, group, dim=None)
    assert flat.nbytes == -(-rows * width // 8) * bits + 4 * -(-rows * width // group)


def test_bits_of_the_documentation() -> None:
    x = torch.zeros(64, 256)
    assert [quantize(x, b).bits_per_element for b in BITS] == [1.125, 2.125, 3.125, 4.125, 8.125]
    assert quantize(x, 2, dim=0).bits_per_element == 2.5  # 64 rows: groups of 64
    assert quantize(x, 2, dim=None).bits_per_element == 2.125


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=str)
def test_dequantize_to_another_type(dtype: torch.dtype | None) -> None:
    q = quantize(torch.randn(3, 40, dtype=torch.float16), 4, 8, seed=0)
    out = q.dequantize(dtype)
    assert out.dtype == (dtype or torch.float16)
    assert torch.equal(out, q.dequantize(torch.float32).to(out.dtype))


def test_no_gradient_flows_and_the_input_is_untouched(device) -> None:
    x = torch.randn(5, 50, device=device, requires_grad=True)
    before = x.detach().clone()
    assert not quantize(x, 2).dequantize().requires_grad and torch.equal(x, before)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 2).to_sparse()}, TypeError, "dense tensor, got layout torch.sparse_coo; quantise its val"),
        ({"x": torch.ones(3, dtype=torch.int32)}, TypeError, "x must be one of float32, .*got int32; convert it first"),
        ({"x": torch.ones(3, dtype=torch.complex64)}, TypeError, "got complex64"),
        ({"bits": 5}, ValueError, r"bits must be one of \(1, 2, 3, 4, 8\), got 5"),
        ({"bits": 0}, ValueError, "bits .*got 0"),
        ({"bits": True}, ValueError, "bits .*got True"),
        ({"bits": 2.0}, ValueError, "bits .*got 2.0"),
        ({"bits": "2"}, ValueError, "bits .*got '2'"),
        ({"group_size": 0}, ValueError, "group_size must be a multiple of 8 .*got 0; try 256"),
        ({"group_size": 12}, ValueError, "group_size .*got 12"),
        ({"group_size": -8}, ValueError, "group_size .*got -8"),
        ({"group_size": 64.0}, ValueError, "group_size .*got 64.0"),
        ({"group_size": 2**28 + 8}, ValueError, "8 to 268435456, got 268435464"),
        ({"rounding": "up"}, ValueError, r"rounding must be one of \('stochastic', 'nearest'\), got 'up'"),
        ({"dim": 2}, ValueError, r"dim must be None or in \[-2, 1\], got 2"),
        ({"dim": -3}, ValueError, r"in \[-2, 1\], got -3"),
        ({"x": torch.tensor(1.0), "dim": 1}, ValueError, r"in \[-1, 0\], got 1"),
        ({"dim": 1.0}, TypeError, "dim must be an int or None, got float"),
        ({"dim": True}, TypeError, "dim must be an int or None, got bool"),
        ({"seed": 1.5}, TypeError, "seed must be an int or None, got float"),
        ({"seed": torch.tensor(1.5)}, TypeError, "seed must be an int or None, got Tensor"),
        ({"seed": "7"}, TypeError, "seed must be an int or None, got str"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], text: str) -> None:
    arguments: dict[str, object] = {"x": torch.ones(4, 8), "bits": 2} | change
    with pytest.raises(error, match=text):
        quantize(**arguments)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiled_in_one_graph_with_dynamic_shapes() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return quantize(x, 2, seed=1).dequantize()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for shape in ((8, 64), (9, 64), (9, 300)):  # the second and third calls make the sizes symbols
        x = torch.randn(shape)
        assert torch.equal(compiled(x), run(x))
