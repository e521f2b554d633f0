"""graphlossy::packed_attention on CUDA: csrc/packed_attention.cuh, launched as `_cuda` launches."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _cuda
from graphlossy.core._packed_attention import PackedTokens

__all__ = ["WIDEST", "Sizes", "run"]

# As in csrc/packed_attention.cuh: tokens of a split, and the widest key.
_SPLIT, WIDEST = _cuda.THREADS, 256
_LONG, _NULL = ctypes.c_int64, ctypes.c_void_p()
_FULL = {
    torch.float32: ("float32", "float"),
    torch.float16: ("float16", "half_bits"),
    torch.bfloat16: ("bfloat16", "bfloat16_bits"),
    torch.float64: ("float64", "double"),
}


class Sizes(ctypes.Structure):
    """`AttentionSizes` of the kernels."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "heads", "queries", "width", "out_width", "chunks", "chunk", "key_group", "value_group", "sinks", "window",
            "positions", "mask_tokens", "packed_splits", "full_splits",
        )),
        ("scaling", ctypes.c_float), ("softcap", ctypes.c_float),
    ]  # fmt: skip


def run(
    kernels: _cuda.Kernels,
    query: Tensor,
    tokens: PackedTokens,
    mask: Tensor | None,
    scaling: float,
    softcap: float,
    packed: Tensor,
    full: Tensor,
    sums: Tensor,
) -> None:
    """Writes the result to ``packed``, ``full`` [B, H, R, E] and ``sums`` [B, H, slots], which may be empty.

    Keys are at most `WIDEST` wide.
    """
    if not packed.numel():
        sums.zero_()
        return
    query = query.to(torch.float32).contiguous()
    keys, values = ([t.contiguous() for t in parts] for parts in (tokens.keys, tokens.values))
    dtype = tokens.window[0].dtype
    pairs = [t.to(dtype).contiguous() for t in (*tokens.sinks, *tokens.window)]
    rows = tokens.rows.contiguous()
    batch, heads, queries, width = query.shape
    chunks, chunk, sinks, window = keys[0].shape[2], tokens.chunk, pairs[0].shape[2], pairs[2].shape[2]
    positions, mask_tokens = (1, 0) if mask is None else mask.shape[1:]
    splits = -(-chunks * chunk // _SPLIT), -(-(sinks + window) // _SPLIT)
    sizes = Sizes(
        heads, queries, width, packed.shape[-1], chunks, chunk, tokens.key_group, tokens.value_group, sinks, window,
        positions, mask_tokens, *splits, scaling, softcap,
    )  # fmt: skip
    partial = query.new_empty(batch * heads * sum(splits) * queries * (2 + packed.shape[-1]))
    seen: Any = _NULL if mask is None else mask.contiguous()
    lines = batch * heads * queries
    weights: Any = query.new_empty((lines, sums.shape[2])) if sums.numel() else _NULL
    norms: Any = query.new_empty((lines, 2)) if sums.numel() else _NULL
    items = batch * heads * splits[0]
    if items:
        name = f"packed_attention_{tokens.key_bits}_{tokens.value_bits}"
        definition = f"LOSSY_PACKED_ATTENTION({name},{tokens.key_bits},{tokens.value_bits})"
        kernels._launch(name, definition, items, sizes, query, *keys, *values, rows, seen, weights, partial,
                        _LONG(items))  # fmt: skip
    items = batch * heads * splits[1]
    if items:
        kind, c_type = _FULL[dtype]
        name = f"full_attention_{kind}"
        definition = f"LOSSY_FULL_ATTENTION({c_type},{name})"
        kernels._launch(name, definition, items, sizes, query, *pairs, rows, seen, weights, partial, _LONG(items))
    blocks = -(-packed.numel() // _cuda.THREADS)
    arguments = sizes, partial, packed, full, norms, _LONG(packed.numel())
    kernels._launch("merge_attention", "LOSSY_MERGE_ATTENTION(merge_attention)", blocks, *arguments)
    if sums.numel():
        blocks = -(-sums.numel() // _cuda.THREADS)
        held = sizes, partial, weights, norms, rows, sums, _LONG(sums.numel())
        kernels._launch("sum_attention", "LOSSY_SUM_ATTENTION(sum_attention)", blocks, *held)
