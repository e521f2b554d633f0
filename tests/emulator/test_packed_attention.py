"""The CUDA kernels of attention over low-bit keys and values, run on the host; wrong ones are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_examples import example, length, off, straight
from torch import Tensor

from graphlossy.core import packed_attention as op
from graphlossy.core._cuda import Kernels
from graphlossy.core.packed_attention import PackedTokens

Call = tuple[str, tuple[Any, ...]]
BITS = (1, 2, 3, 4, 8)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PAIRS = [(b, 4) for b in BITS] + [(4, b) for b in BITS if b != 4]


def call(query: Tensor, tokens: PackedTokens, mask: Tensor | None = None, softcap: float = 0.0) -> Call:
    return "packed_attention", (query, *tokens, mask, query.shape[-1] ** -0.5, softcap, True)


@pytest.fixture(scope="module")
def kernels(emulate: Callable[[list[Call]], Kernels]) -> Kernels:
    calls = [call(*example(bits=pair)) for pair in PAIRS]
    return emulate([*calls, *(call(*example(dtype=dtype)) for dtype in FLOATS)])


def error(kernels: Kernels, query: Tensor, tokens: PackedTokens, mask: Tensor | None = None, cap: float = 0.0) -> float:
    found = op._on_cuda(kernels, *call(query, tokens, mask, cap)[1])
    return off(found, straight(query, tokens, mask, cap))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_width(kernels: Kernels, pair: tuple[int, int]) -> None:
    assert error(kernels, *example(bits=pair)) < 5e-6
    assert error(kernels, *example(bits=pair, chunk=40, group=24, out=70, width=9)) < 5e-6


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_type_of_sinks_and_window(kernels: Kernels, dtype: torch.dtype) -> None:
    assert error(kernels, *example(dtype=dtype, width=20, out=24)) < 5e-6


@pytest.mark.parametrize("queries", [1, 4, 5, 9])
def test_every_number_of_queries(kernels: Kernels, queries: int) -> None:
    assert error(kernels, *example(queries=queries)) < 5e-6


def test_more_than_one_split_of_either_kind(kernels: Kernels) -> None:
    assert error(kernels, *example(chunks=19, batch=3, window=300, sinks=9, heads=1)) < 5e-6
    assert error(kernels, *example(chunks=0, window=0, sinks=2)) < 5e-6
    assert error(kernels, *example(chunks=2, window=0, sinks=0, out=300, heads=1)) < 5e-6


def test_masks_and_capped_scores(kernels: Kernels) -> None:
    query, tokens = example(queries=6, window=270, chunks=9)
    total = length(tokens)
    causal = torch.ones(2, 3, total, dtype=torch.bool).tril(total - 3)
    random = torch.rand(2, 2, total, generator=torch.Generator().manual_seed(3)) < 0.5
    for mask in (causal, random, torch.zeros(2, 1, total, dtype=torch.bool)):
        assert error(kernels, query, tokens, mask) < 5e-6
    assert error(kernels, query * 20, tokens, causal, 3.0) < 5e-6


def test_slots_without_a_token_may_hold_anything(kernels: Kernels) -> None:
    query, tokens = example()
    tokens.sinks[0][1, :, 3:], tokens.sinks[1][1, :, 3:] = torch.nan, torch.inf
    tokens.window[0][1, :, :1], tokens.window[1][1, :, :1] = torch.inf, torch.nan
    tokens.keys[1][1, :, 2:], tokens.values[1][1, :, 2:] = torch.nan, torch.nan
    assert error(kernels, query, tokens) < 5e-6


def test_a_poisoned_group_is_not_hidden(kernels: Kernels) -> None:
    query, tokens = example()
    tokens.values[1][0, 0, 0, 0] = torch.nan
    packed, _, _ = op._on_cuda(kernels, *call(query, tokens)[1])
    assert packed[0, 0].isnan().all() and packed[0, 1].isfinite().all()


def test_keys_too_wide_for_the_kernel_are_decoded() -> None:
    query, tokens = example(width=300)
    found = op._on_cuda(None, *call(query, tokens)[1])  # type: ignore[arg-type]
    assert off(found, straight(query, tokens, None)) < 5e-6


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("const float key = fmaf(place.code(keys + row * bytes), scale, offset);",
         "const float key = place.code(keys + row * bytes) * scale;"),
        ("start + begin + t + (begin + t < sinks ? 0 : skipped)", "start + begin + t"),
        ("const float share = expf(part[r] - base);", "const float share = 1.0f;"),
        ("split = (slot - s.sinks) / kSplitTokens;", "split = 0;"),
        ("sums[other * lanes + lane]", "sums[lane]"),
        ("shift = p / plane * low;", "shift = 0;"),
    ],
)  # fmt: skip
def test_a_wrong_kernel_is_noticed(old: str, new: str, changed: Callable[..., Kernels]) -> None:
    query, tokens = example(queries=6, window=270, chunks=9)
    total = length(tokens)
    mask = torch.rand(2, 2, total, generator=torch.Generator().manual_seed(3)) < 0.5
    wrong = changed(old, new, [call(query, tokens, mask)])
    assert error(wrong, query, tokens, mask) > 1e-4
