"""Attention of a few queries over keys and values in low bits, none of which is decoded.

One operator, graphlossy::packed_attention, with a reference on every device and kernels on the CPU and on CUDA;
`graphlossy.core._packed_attention` defines it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _cpu, _cuda, _cuda_packed_attention, _packed_attention
from graphlossy.core._packed_attention import PackedTokens
from graphlossy.core._schemas import FLOAT_DTYPES, LIBRARY, check_bits, check_group_size, groups_per_row, row_bytes

__all__ = ["PackedTokens", "packed_attention"]

_SCHEMA = (
    "(Tensor query, Tensor[] keys, Tensor[] values, int key_bits, int value_bits, int key_group, int value_group,"
    " Tensor[] sinks, Tensor[] window, Tensor rows, Tensor? mask, float scaling, float softcap,"
    " bool sums) -> (Tensor, Tensor, Tensor)"
)
_PARTS = len(PackedTokens._fields)


def packed_attention(
    query: Tensor,
    tokens: PackedTokens,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float = 0.0,
    sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled dot-product attention over tokens of which most are in low bits, by one softmax over all.

    The values of packed tokens and of the others are summed apart, so that a rotation of the packed ones can be undone
    on their sum.

    Args:
        query: [B, H, R, D] float: the queries of the heads that share a head of keys, each with Q positions, R = heads
            * Q, the positions of a head together.
        tokens: keys and values of the B rows and H heads.
        mask: bool [B, Q, T] of all tokens from the first pad on, False where a query does not see one; None: all seen.
        scaling: factor of the products; None: 1 / sqrt(D).
        softcap: c of c tanh(x / c), applied to the products (Gemma 2); 0: none.
        sums: whether the third result is wanted.

    Returns:
        (packed, full, sums): float32 [B, H, R, E] twice, whose sum is the result; where nothing is seen it is zero. The
        weights of each slot (sinks, packed tokens with the room for more, window), summed over the queries: float32
        [B, H, slots], or [B, H, 0].

    Raises:
        TypeError: a tensor is of another type.
        ValueError: shapes do not fit together, tensors are on several devices, or ``tokens.rows`` tells of tokens that
            are not there (on the CPU).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.graphlossy.packed_attention(query, *tokens, mask, scaling, softcap, sums)


def _check(query: Tensor, tokens: PackedTokens, mask: Tensor | None) -> None:
    for bits, group in ((tokens.key_bits, tokens.key_group), (tokens.value_bits, tokens.value_group)):
        check_bits(bits)
        check_group_size(group)
    packed = (*tokens.keys, *tokens.values)
    if query.dim() != 4 or len(packed) != 6 or any(t.dim() != 5 for t in packed):
        raise ValueError(
            "query must be [rows, heads, queries, width] and codes, scales and offsets [rows, heads, chunks, ., .], "
            f"got {tuple(query.shape)} and {[tuple(t.shape) for t in packed]}"
        )
    if tokens.chunk < 1:
        raise ValueError(f"a chunk must hold at least one token, got values {tuple(tokens.values[0].shape)}")
    full_states = (*tokens.sinks, *tokens.window)
    if len(full_states) != 4 or any(t.dim() != 4 or t.dtype not in FLOAT_DTYPES for t in full_states):
        held = [(t.dtype, tuple(t.shape)) for t in full_states]
        raise TypeError(f"sinks and window must be keys and values [rows, heads, tokens, width] of floats, got {held}")
    batch, heads, queries, width = query.shape
    count, chunk, out = tokens.keys[0].shape[2], tokens.chunk, tokens.sinks[1].shape[-1]
    for name, parts, bits, group, rows, columns in (
        ("keys", tokens.keys, tokens.key_bits, tokens.key_group, width, chunk),
        ("values", tokens.values, tokens.value_bits, tokens.value_group, chunk, out),
    ):
        if parts[0].dtype != torch.uint8 or any(t.dtype != torch.bfloat16 for t in parts[1:]):
            found = [t.dtype for t in parts]
            raise TypeError(f"{name} must be uint8 codes and bfloat16 scales and offsets, got {found}")
        groups = groups_per_row(columns, group)
        wanted = [(batch, heads, count, rows, size) for size in (row_bytes(columns, bits), groups, groups)]
        if [tuple(t.shape) for t in parts] != wanted:
            raise ValueError(f"{name} must have the shapes {wanted}, got {[tuple(t.shape) for t in parts]}")
    for name, pair in (("sinks", tokens.sinks), ("window", tokens.window)):
        full = [(batch, heads, pair[0].shape[2], size) for size in (width, out)]
        if [tuple(t.shape) for t in pair] != full:
            raise ValueError(f"{name} must have the shapes {full}, got {[tuple(t.shape) for t in pair]}")
    if tokens.rows.dtype != torch.int32 or tuple(tokens.rows.shape) != (batch, 4):
        raise ValueError(f"rows must be int32 [{batch}, 4], got {tokens.rows.dtype} {tuple(tokens.rows.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.dim() != 3 or mask.shape[0] != batch or queries % max(1, mask.shape[1]) or not mask.shape[1]:
            raise ValueError(
                f"mask must be [{batch}, positions, tokens] of positions that divide {queries}, got {tuple(mask.shape)}"
            )
    # A kernel that is given an address of another device would end the process's use of CUDA.
    others = {t.device for t in (*packed, *full_states, tokens.rows, *(() if mask is None else (mask,)))}
    if others - {query.device}:
        places = ", ".join(sorted(map(str, others)))
        raise ValueError(f"keys, values, rows and mask must be on {query.device}, the query's, got {places}")


def _reference(query: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    tokens, others = PackedTokens(*rest[:_PARTS]), rest[_PARTS:]
    _check(query, tokens, others[0])
    return _packed_attention.attend(query, tokens, *others)


def _fake(query: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    tokens, mask, sums = PackedTokens(*rest[:_PARTS]), rest[_PARTS], rest[-1]
    _check(query, tokens, mask)
    shape = (*query.shape[:3], tokens.sinks[1].shape[-1])
    slots = tokens.sinks[0].shape[2] + tokens.keys[0].shape[2] * tokens.chunk + tokens.window[0].shape[2]
    shapes = shape, shape, (*query.shape[:2], slots if sums else 0)
    return tuple(query.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _on_cuda(kernels: _cuda.Kernels, query: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if query.shape[-1] > _cuda_packed_attention.WIDEST:
        return _reference(query, *rest)
    results = _fake(query, *rest)
    _cuda_packed_attention.run(kernels, query, PackedTokens(*rest[:_PARTS]), *rest[_PARTS:-1], *results)
    return results


def _on_cpu(kernels: _cpu.Kernels) -> Any:
    def run(query: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        packed, full, sums = _fake(query, *rest)
        if not packed.numel():
            return packed, full, sums.zero_()
        tokens, (mask, scaling, softcap, _) = PackedTokens(*rest[:_PARTS]), rest[_PARTS:]
        query, dtype = query.to(torch.float32).contiguous(), tokens.window[0].dtype
        keys, values = ([t.contiguous() for t in parts] for parts in (tokens.keys, tokens.values))
        pairs = [t.to(dtype).contiguous() for t in (*tokens.sinks, *tokens.window)]
        rows, mask = tokens.rows.contiguous(), None if mask is None else mask.contiguous()
        sizes = (
            *query.shape, packed.shape[-1], keys[0].shape[2], tokens.chunk, pairs[0].shape[2], pairs[2].shape[2],
            *((1, 0) if mask is None else mask.shape[1:]),
        )  # fmt: skip
        wrong = kernels._library.lossy_packed_attention(
            query.data_ptr(), _pointers(keys), _pointers(values), tokens.key_bits, tokens.value_bits, tokens.key_group,
            tokens.value_group, _pointers(pairs), _cpu._FLOATS[dtype], rows.data_ptr(),
            None if mask is None else mask.data_ptr(), (ctypes.c_int64 * len(sizes))(*sizes), scaling, softcap,
            packed.data_ptr(), full.data_ptr(), sums.data_ptr() if rest[-1] else None, torch.get_num_threads(),
            kernels.level,
        )  # fmt: skip
        if wrong:
            held = f"{pairs[0].shape[2]} sinks, {keys[0].shape[2]} chunks and a window of {pairs[2].shape[2]}"
            raise ValueError(
                f"rows[{wrong - 1}] = {rows[wrong - 1].tolist()} tells of tokens that are not there: {held}"
                + ("" if mask is None else f", a mask of {mask.shape[2]} tokens")
            )
        return packed, full, sums

    return run


LIBRARY.define(f"packed_attention{_SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.register_fake("graphlossy::packed_attention", _fake, lib=LIBRARY)
LIBRARY.impl("packed_attention", _reference, "CompositeExplicitAutograd")
if _cpu.kernels is not None:
    LIBRARY.impl("packed_attention", _on_cpu(_cpu.kernels), "CPU")
LIBRARY.impl("packed_attention", _cuda.with_reference(_on_cuda, _reference), "CUDA")
