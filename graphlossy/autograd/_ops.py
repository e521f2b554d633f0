"""The autograd layers' own operators, registered with torch.library so that ``torch.compile`` keeps them whole.

Each is a definition in plain torch over the core's kernels. Inside a compiled graph an operator is opaque: its
blockwise loops are not unrolled, and what crosses from the forward to the backward graph is its packed output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd._packed import Meta, Packed, pack_tensor, unpack_rows
from graphlossy.autograd.graph import sparse_csr

__all__ = ["define", "sampled_dot", "spmm"]

_LIBRARY = torch.library.Library("graphlossy", "FRAGMENT")
# Elements gathered at a time by sampled_dot: two such float32 chunks fit a CPU's cache.
_CHUNK = {"cpu": 1 << 20}
_DEVICE_CHUNK = 1 << 24


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], random: bool = False) -> Any:
    """Register ``graphlossy::NAME`` for all devices and return the callable operator."""
    name = schema.split("(", 1)[0]
    tags = [torch.Tag.pt2_compliant_tag] + ([torch.Tag.nondeterministic_seeded] if random else [])
    _LIBRARY.define(schema, tags=tuple(tags))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"graphlossy::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.graphlossy, name).default


def _pack(x: Tensor, bits: int, group_size: int, rows: bool, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pack_tensor(x, bits, group_size, rows, int(seed))


def _pack_fake(x: Tensor, bits: int, group_size: int, rows: bool, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pack_tensor(x, bits, group_size, rows, 0)


define(
    "pack(Tensor x, int bits, int group_size, bool rows, Tensor seed) -> (Tensor, Tensor, Tensor)", _pack, _pack_fake
)


def _spmm(crow: Tensor, col: Tensor, values: Tensor, x: Tensor, mean: bool) -> Tensor:
    if values.numel() == 0:
        return x.new_zeros(crow.numel() - 1, x.size(1))
    if x.device.type == "cpu":
        # Row-parallel, with a float32 accumulator for 16-bit types; about half the time of A @ x (MKL) on 2 cores.
        adj = sparse_csr(crow, col, values, (crow.numel() - 1, x.size(0)))
        return torch.sparse.mm(adj, x, "mean" if mean else "sum")
    exact = x
    if x.dtype is torch.bfloat16 and x.is_cuda and torch.cuda.get_device_capability(x.device)[0] < 8:
        exact, values = x.float(), values.float()  # no bfloat16 SpMM before compute capability 8.0
    out = sparse_csr(crow, col, values, (crow.numel() - 1, x.size(0))) @ exact
    if mean:
        out /= (crow[1:] - crow[:-1]).clamp_(min=1).to(out.dtype).unsqueeze(1)
    return out.to(x.dtype)


def _spmm_fake(crow: Tensor, col: Tensor, values: Tensor, x: Tensor, mean: bool) -> Tensor:
    return x.new_empty(crow.numel() - 1, x.size(1))


spmm = define("spmm(Tensor crow, Tensor col, Tensor values, Tensor x, bool mean) -> Tensor", _spmm, _spmm_fake)


def _sampled_dot(
    row: Tensor,
    col: Tensor,
    grad: Tensor,
    operand: list[Tensor],
    bits: int,
    group_size: int,
    width: int,
    dtype: torch.dtype,
    heads: int,
) -> Tensor:
    kept = Packed(tuple(operand), Meta(bits, group_size, True, (operand[0].size(0), width), dtype))
    out = grad.new_empty(heads, row.numel(), dtype=torch.promote_types(dtype, torch.float32))
    step = max(1, _CHUNK.get(grad.device.type, _DEVICE_CHUNK) // max(1, width))
    for start in range(0, row.numel(), step):
        end = min(start + step, row.numel())
        product = grad.index_select(0, row[start:end]).to(out.dtype)
        product *= unpack_rows(kept, col[start:end])
        out[:, start:end] = product.unflatten(1, (heads, width // heads)).sum(-1).t()
    return out


def _sampled_dot_fake(row, col, grad, operand, bits, group_size, width, dtype, heads):  # type: ignore[no-untyped-def]
    return grad.new_empty(heads, row.numel(), dtype=torch.promote_types(dtype, torch.float32))


_sampled_dot_op = define(
    "sampled_dot(Tensor row, Tensor col, Tensor grad, Tensor[] operand, int bits, int group_size, int width, "
    "ScalarType dtype, int heads) -> Tensor",
    _sampled_dot,
    _sampled_dot_fake,
)


def sampled_dot(row: Tensor, col: Tensor, grad: Tensor, kept: Packed, heads: int) -> Tensor:
    """<grad[row_e], x[col_e]> of each edge e and head: [heads, E], from a copy of x packed by rows."""
    meta = kept.meta
    arguments = (list(kept.tensors), meta.bits, meta.group_size, meta.shape[-1], meta.dtype, heads)
    return _sampled_dot_op(row, col, grad, *arguments)
