"""Attention over low-bit keys and values: definition and CPU kernel against decoded tokens, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_examples import example, length, off, straight
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graphlossy.core import _cpu
from graphlossy.core import packed_attention as op
from graphlossy.core._packed_attention import attend
from graphlossy.core.packed_attention import PackedTokens, packed_attention

LEVELS = range(0 if _cpu.kernels is None else _cpu.kernels.highest + 1)


def kernel(level: int, query: Tensor, tokens: PackedTokens, mask: Tensor | None, softcap: float = 0.0) -> Any:
    run = op._on_cpu(_cpu.Kernels(_cpu.LIBRARY_FILE, level))
    return run(query, *tokens, mask, query.shape[-1] ** -0.5, softcap, True)


def check(query: Tensor, tokens: PackedTokens, mask: Tensor | None = None, softcap: float = 0.0) -> None:
    expected = straight(query, tokens, mask, softcap)
    assert off(attend(query, tokens, mask, query.shape[-1] ** -0.5, softcap, True), expected) < 5e-6
    for level in LEVELS:
        assert off(kernel(level, query, tokens, mask, softcap), expected) < 5e-6, level


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [8, 32, 64])
def test_every_width(bits: int, group: int) -> None:
    check(*example(bits=(bits, 4), chunk=group))
    check(*example(bits=(4, bits), group=group, out=64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_type_of_sinks_and_window(dtype: torch.dtype) -> None:
    check(*example(dtype=dtype, width=20, out=24))


@pytest.mark.parametrize("queries", [1, 2, 4, 5, 9])
def test_every_number_of_queries(queries: int) -> None:
    check(*example(queries=queries))


def test_more_than_one_split() -> None:
    check(*example(chunks=40, batch=3))
    check(*example(chunks=9, chunk=200, batch=1))


@given(
    batch=st.integers(1, 3), heads=st.integers(1, 3), queries=st.integers(1, 6), width=st.integers(1, 40),
    out=st.integers(1, 70), chunks=st.integers(0, 4), chunk=st.sampled_from([8, 16, 32, 40]), sinks=st.integers(0, 5),
    window=st.integers(0, 12), bits=st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 2),
    group=st.sampled_from([8, 24, 32, 64]), masked=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(masked: bool, queries: int, **shape: Any) -> None:
    query, tokens = example(queries=queries, **shape)
    mask = None
    if masked:
        positions = next(n for n in (3, 2, 1) if queries % n == 0)
        draw = torch.Generator().manual_seed(shape["seed"])
        mask = torch.rand(shape["batch"], positions, length(tokens), generator=draw) < 0.6
    check(query, tokens, mask)


def test_causal_mask_and_capped_scores() -> None:
    query, tokens = example(queries=6)
    total = length(tokens)
    mask = torch.ones(2, 3, total, dtype=torch.bool).tril(total - 3)
    check(query, tokens, mask)
    check(query * 20, tokens, mask, softcap=3.0)


def test_a_query_that_sees_nothing_gets_zero() -> None:
    query, tokens = example()
    mask = torch.zeros(2, 1, length(tokens), dtype=torch.bool)
    check(query, tokens, mask)
    assert off(packed_attention(query, tokens, mask, sums=True), [torch.zeros(())] * 3) == 0


def test_scores_may_be_huge() -> None:
    query, tokens = example()
    for found in packed_attention(query * 1e4, tokens, sums=True):
        assert found.isfinite().all()
    check(query * 10, tokens)


def test_slots_without_a_token_may_hold_anything() -> None:
    query, tokens = example()
    expected = packed_attention(query, tokens)
    tokens.sinks[0][1, :, 3:], tokens.sinks[1][1, :, 3:] = torch.nan, torch.inf
    tokens.window[0][1, :, :1], tokens.window[1][1, :, :1] = torch.inf, torch.nan
    tokens.keys[1][1, :, 2:], tokens.values[1][1, :, 2:] = torch.nan, torch.nan
    assert off(packed_attention(query, tokens), expected) == 0
    assert off(attend(query, tokens, None, 0.25, 0.0), expected) < 5e-6


def test_a_poisoned_group_is_not_hidden() -> None:
    query, tokens = example()
    tokens.keys[1][0, 0, 0, 0] = torch.nan  # as quantize marks a group with an infinity
    for found in (packed_attention(query, tokens), attend(query, tokens, None, 0.25, 0.0)):
        assert found[0][0, 0].isnan().all() and found[1][0, 0].isnan().all()
        assert found[0][0, 1].isfinite().all() and found[0][1].isfinite().all()
        assert found[2].shape == (2, 2, 0)


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    query, tokens = example(chunks=40, batch=3)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(packed_attention(query, tokens))
    finally:
        torch.set_num_threads(before)
    assert off(found[0], found[1]) == 0 and off(found[0], found[2]) == 0


def test_the_tolerance_rejects_offsets_that_are_left_out() -> None:
    query, tokens = example()
    expected = attend(query, tokens, None, 0.25, 0.0)
    for part in ("keys", "values"):
        codes, scale, offset = getattr(tokens, part)
        wrong = tokens._replace(**{part: (codes, scale, offset + 2**-7 * offset.abs().mean())})
        assert off(attend(query, wrong, None, 0.25, 0.0), expected) > 1e-4


def test_operator() -> None:
    query, tokens = example()
    mask = torch.rand(2, 3, length(tokens)) < 0.5
    for chosen in (None, mask):
        for sums in (False, True):
            arguments = (query, *tokens, chosen, 0.25, 0.0, sums)
            torch.library.opcheck(torch.ops.graphlossy.packed_attention.default, arguments)
    with FakeTensorMode() as mode:
        tensors = {name: [mode.from_tensor(t) for t in getattr(tokens, name)] for name in ("keys", "values", "sinks")}
        window, rows = [mode.from_tensor(t) for t in tokens.window], mode.from_tensor(tokens.rows)
        found = packed_attention(mode.from_tensor(query), tokens._replace(**tensors, window=window, rows=rows))
    assert [(f.shape, f.dtype) for f in found] == [((2, 2, 3, 16), torch.float32)] * 2 + [((2, 2, 0), torch.float32)]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"key_bits": 5}, ValueError, "bits must be one of"),
        ({"value_group": 12}, ValueError, "group_size must be a multiple of 8"),
        ({"key_bits": 8}, ValueError, "keys must have the shapes"),
        ({"rows": torch.zeros(2, 4)}, ValueError, "rows must be int32"),
        ({"rows": torch.tensor([[0, 0, 9, 0]] * 2, dtype=torch.int32)}, ValueError, r"rows\[0\] = \[0, 0, 9, 0\]"),
        ({"rows": torch.tensor([[0, 4, 3, 0], [0, 0, 0, 99]], dtype=torch.int32)}, ValueError, r"rows\[1\]"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    if text.startswith(r"rows\[") and _cpu.kernels is None:
        pytest.skip("checked by the kernel")
    query, tokens = example()
    with pytest.raises(error, match=text):
        packed_attention(query, tokens._replace(**change))


def test_wrong_tensors() -> None:
    query, tokens = example()
    with pytest.raises(ValueError, match="query must be"):
        packed_attention(query[0], tokens)
    with pytest.raises(ValueError, match="sinks must have the shapes"):
        packed_attention(query, tokens._replace(sinks=(tokens.sinks[0][:1], tokens.sinks[1])))
    with pytest.raises(TypeError, match="values must be uint8"):
        packed_attention(query, tokens._replace(values=[t.float() for t in tokens.values]))
    with pytest.raises(TypeError, match="sinks and window must be keys and values"):
        packed_attention(query, tokens._replace(window=[t.long() for t in tokens.window]))
    with pytest.raises(TypeError, match="sinks and window must be keys and values"):
        packed_attention(query, tokens._replace(sinks=tokens.sinks[:1]))
    with pytest.raises(ValueError, match="query must be"):
        packed_attention(query, tokens._replace(keys=()))
    nothing = [t[:, :, :, :0] for t in tokens.values]
    with pytest.raises(ValueError, match="at least one token"):
        packed_attention(query, tokens._replace(values=nothing))
    assert not packed_attention(query[:, :, :0], tokens, sums=True)[2].any()
    with pytest.raises(TypeError, match="mask must be bool"):
        packed_attention(query, tokens, torch.zeros(2, 1, 200))
    with pytest.raises(ValueError, match="positions that divide 3"):
        packed_attention(query, tokens, torch.zeros(2, 2, 200, dtype=torch.bool))
    for elsewhere in (
        tokens._replace(rows=tokens.rows.to("meta")),
        tokens._replace(keys=[t.to("meta") for t in tokens.keys]),
    ):
        with pytest.raises(ValueError, match="must be on cpu, the query's, got .*meta"):
            packed_attention(query, elsewhere)
    if _cpu.kernels is not None:
        with pytest.raises(ValueError, match="a mask of 5 tokens"):
            packed_attention(query, tokens, torch.zeros(2, 1, 5, dtype=torch.bool))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [(4, 4), (4, 2), (2, 2), (8, 8), (3, 1)])
def test_on_a_gpu(bits: tuple[int, int], dtype: torch.dtype) -> None:
    query, tokens = example(chunks=40, batch=3, queries=6, width=128, out=128, bits=bits, dtype=dtype)
    total = length(tokens)
    mask = torch.ones(3, 3, total, dtype=torch.bool).tril(total - 3)

    def moved(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [moved(t) for t in value]
        return value.cuda() if isinstance(value, Tensor) else value

    for chosen in (None, mask):
        found = packed_attention(query.cuda(), PackedTokens(*moved(tuple(tokens))), moved(chosen), sums=True)
        assert off([t.cpu() for t in found], straight(query, tokens, chosen)) < 2e-5
