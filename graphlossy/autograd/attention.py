"""Graph attention without any tensor of edges x heads x channels.

GAT (Velickovic et al., ICLR 2018): with node scores s_j = <h_j, a_src>, t_i = <h_i, a_dst> per head,

    z_ij = LeakyReLU(s_j + t_i),   alpha_ij = softmax_j(z_ij),   out_i = sum_j alpha_ij h_j.

PyG gathers the E x H x C messages and keeps them. Here the sum is one sparse product per head, and the backward pass
recomputes alpha exactly from the N x H scores. What needs h itself,

    d alpha_ij = <d out_i, h_j>   and   d a_src = sum_j d s_j h_j,

reads a copy of h in low bits, packed by rows, unpacked by chunks of edges. d alpha, and with it the scores' gradient,
is linear in h and so unbiased; d a multiplies two values that hold the same rounding error, so it is close but not
unbiased.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import _ops
from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._packed import Packed, check_bits, pack, row_blocks
from graphlossy.autograd.dropout import bernoulli, check_probability, keep_scale
from graphlossy.autograd.graph import CSRGraph

__all__ = ["attention_weights", "gat_attention"]


class _Options(NamedTuple):
    slope: float
    p: float
    bits: int | None
    group_size: int


def _positions(graph: CSRGraph) -> Tensor:
    return torch.arange(graph.num_edges, dtype=graph.col.dtype, device=graph.device)


def _segment_sum(graph: CSRGraph, values: Tensor) -> Tensor:
    """Sum [E, H] values in CSR order over the edges into each destination: [num_dst, H]."""
    return _ops.spmm(graph.crow, _positions(graph), values.new_ones(values.size(0)), values, False)


def _source_sum(graph: CSRGraph, values: Tensor) -> Tensor:
    """Sum [E, H] values in CSR order over the edges out of each source: [num_src, H]."""
    crow_t, _, perm = graph.transpose()
    perm = _positions(graph) if perm is None else perm
    return _ops.spmm(crow_t, perm, values.new_ones(values.size(0)), values, False)


def _in_csr_order(graph: CSRGraph, edges: Tensor) -> Tensor:
    return edges if graph.perm is None else edges.index_select(0, graph.perm)


def _in_edge_order(graph: CSRGraph, edges: Tensor) -> Tensor:
    return edges if graph.perm is None else torch.empty_like(edges).index_copy_(0, graph.perm.long(), edges)


def _raw_scores(graph: CSRGraph, source: Tensor, target: Tensor | None, edge: Tensor | None) -> Tensor:
    raw = source.index_select(0, graph.col)
    if target is not None:
        raw += target.index_select(0, graph.row)
    if edge is not None:
        raw += _in_csr_order(graph, edge)
    return raw


def _softmax(graph: CSRGraph, scores: Tensor) -> Tensor:
    """Softmax of [E, H] scores in CSR order over the edges into each destination."""
    if scores.size(0) == 0:
        return scores
    lengths = graph.crow.long()
    highest = torch.segment_reduce(scores, "max", offsets=lengths, axis=0, initial=float("-inf"))
    alpha = (scores - highest.index_select(0, graph.row)).exp_()
    total = _segment_sum(graph, alpha).add_(1e-16)  # as PyG's softmax
    return alpha.div_(total.index_select(0, graph.row))


def attention_weights(
    graph: CSRGraph, source: Tensor, target: Tensor | None, edge: Tensor | None, negative_slope: float
) -> Tensor:
    """alpha [E, H] in the order of the edge list, from node scores [num_src, H] and [num_dst, H]."""
    scores = F.leaky_relu(_raw_scores(graph, source, target, edge), negative_slope)
    return _in_edge_order(graph, _softmax(graph, scores))


def _head_scores(h: Tensor, att: Tensor) -> Tensor:
    """<h[n, k], att[k]>: [N, H], over blocks of rows."""
    count, heads, channels = h.shape
    out = h.new_empty(count, heads, dtype=torch.promote_types(h.dtype, att.dtype))
    step = max(1, (1 << 20) // max(1, heads * channels))
    for start in range(0, count, step):
        out[start : start + step] = (h[start : start + step] * att).sum(-1)
    return out


def _aggregate(graph: CSRGraph, alpha: Tensor, h: Tensor) -> Tensor:
    """sum_j alpha_ij h_j, one sparse product per head: [num_dst, H, C]."""
    heads = h.size(1)
    out = h.new_empty(graph.num_dst, *h.shape[1:])
    for head in range(heads):
        values = alpha[:, head].contiguous().to(h.dtype)
        out[:, head] = _ops.spmm(graph.crow, graph.col, values, h[:, head].contiguous(), False)
    return out


def _aggregate_back(graph: CSRGraph, alpha: Tensor, grad: Tensor) -> Tensor:
    crow_t, col_t, perm = graph.transpose()
    alpha = alpha if perm is None else alpha.index_select(0, perm)
    out = grad.new_empty(graph.num_src, *grad.shape[1:])
    for head in range(grad.size(1)):
        values = alpha[:, head].contiguous().to(grad.dtype)
        out[:, head] = _ops.spmm(crow_t, col_t, values, grad[:, head].contiguous(), False)
    return out


def _add_scores(grad_h: Tensor, grad_score: Tensor, att: Tensor) -> None:
    """grad_h[n, k] += grad_score[n, k] att[k], in place and by head."""
    for head in range(grad_h.size(1)):
        grad_h[:, head].addr_(grad_score[:, head].to(grad_h.dtype), att[0, head].to(grad_h.dtype))


def _att_grad(kept: Packed, grad_score: Tensor, shape: torch.Size) -> Tensor:
    """sum_n grad_score[n, k] h[n, k]: [1, H, C]."""
    total = grad_score.new_zeros(shape)
    for start, end, block in row_blocks(kept):
        block = block.view(end - start, *shape[1:]).to(total.dtype)
        total += torch.einsum("nk,nkc->kc", grad_score[start:end], block)
    return total


class _GATAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_src, h_dst, att_src, att_dst, edge, graph, options):
        source = _head_scores(h_src, att_src)
        shared = h_dst is None
        target = _head_scores(h_src if shared else h_dst, att_dst) if att_dst is not None else None
        raw = _raw_scores(graph, source, target, edge)
        alpha = _softmax(graph, F.leaky_relu(raw, options.slope))
        mask = None
        if options.p > 0.0:
            noise = bernoulli(alpha.shape, options.p, alpha.device)  # in edge order: PyG's own noise
            noise = _in_csr_order(graph, noise)
            alpha = alpha.mul_(noise).mul_(keep_scale(options.p, alpha.dtype))
            mask = torch.ops.graphlossy.pack_mask(noise.reshape(-1))
        out = _aggregate(graph, alpha, h_src)
        kept_src = pack(h_src.flatten(1), options.bits, options.group_size, rows=True)
        kept_dst = None
        if not shared and att_dst is not None and att_dst.requires_grad:
            kept_dst = pack(h_dst.flatten(1), options.bits, options.group_size, rows=True)
        ctx.graph, ctx.options, ctx.shared = graph, options, shared
        ctx.metas = (kept_src.meta, None if kept_dst is None else kept_dst.meta)
        ctx.dst_shape = None if shared else h_dst.shape
        tensors = (*kept_src.tensors, *(() if kept_dst is None else kept_dst.tensors))
        ctx.save_for_backward(source, target, att_src, att_dst, edge, mask, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        graph, options = ctx.graph, ctx.options
        source, target, att_src, att_dst, edge, mask, *tensors = ctx.saved_tensors
        count = 1 if ctx.metas[0].bits == 0 else 3
        kept_src = Packed(tuple(tensors[:count]), ctx.metas[0])
        kept_dst = None if ctx.metas[1] is None else Packed(tuple(tensors[count:]), ctx.metas[1])
        heads = grad.size(1)
        grad = grad.contiguous()
        raw = _raw_scores(graph, source, target, edge)
        positive = raw > 0
        alpha = _softmax(graph, F.leaky_relu(raw, options.slope, inplace=True))
        flat = grad.flatten(1)
        grad_alpha = _ops.sampled_dot(graph.row, graph.col, flat, kept_src, heads).t().contiguous().to(alpha.dtype)
        dropped = alpha
        if mask is not None:
            scale = keep_scale(options.p, alpha.dtype)
            grad_alpha = torch.ops.graphlossy.mask_apply(grad_alpha, mask, scale)
            dropped = torch.ops.graphlossy.mask_apply(alpha, mask, scale)
        grad_h = _aggregate_back(graph, dropped, grad) if ctx.needs_input_grad[0] else None
        del dropped
        # softmax: dz = alpha (dalpha - sum_j alpha dalpha)
        mean = _segment_sum(graph, alpha * grad_alpha)
        grad_raw = grad_alpha.sub_(mean.index_select(0, graph.row)).mul_(alpha)
        grad_raw = torch.where(positive, grad_raw, grad_raw * options.slope)
        grad_source = _source_sum(graph, grad_raw)
        grad_target = None if target is None else _segment_sum(graph, grad_raw)
        grad_dst = grad_att_src = grad_att_dst = grad_edge = None
        if grad_h is not None:
            _add_scores(grad_h, grad_source, att_src)
            if ctx.shared and grad_target is not None:
                _add_scores(grad_h, grad_target, att_dst)
        if ctx.needs_input_grad[1] and grad_target is not None:
            grad_dst = grad.new_zeros(ctx.dst_shape)
            _add_scores(grad_dst, grad_target, att_dst)
        if ctx.needs_input_grad[2]:
            grad_att_src = _att_grad(kept_src, grad_source, att_src.shape).to(att_src.dtype)
        if ctx.needs_input_grad[3]:
            grad_att_dst = _att_grad(kept_src if ctx.shared else kept_dst, grad_target, att_dst.shape).to(att_dst.dtype)
        if ctx.needs_input_grad[4]:
            grad_edge = _in_edge_order(graph, grad_raw).to(edge.dtype)
        return grad_h, grad_dst, grad_att_src, grad_att_dst, grad_edge, None, None


def gat_attention(
    graph: CSRGraph,
    h_src: Tensor,
    att_src: Tensor,
    att_dst: Tensor | None,
    h_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    p: float = 0.0,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """Attention-weighted sums of the in-neighbours' features, per head, as PyG's ``GATConv`` computes them.

    Kept: h_src in ``bits`` bits (bits + 32 G / (H C) per element with G groups a row), two scores per node and head,
    one bit per edge and head if p > 0; recomputed: everything per edge. Velickovic et al., ICLR 2018, equations 1 to 4.

    Args:
        graph: the edges, self-loops included, [num_dst, num_src].
        h_src: [num_src, H, C] transformed features.
        att_src: [1, H, C].
        att_dst: [1, H, C], or None without destination features.
        h_dst: [num_dst, H, C]; None: the same nodes and features as ``h_src``.
        edge_score: [E, H] added to the raw scores, in the order of the edge list, or None.
        negative_slope: of the LeakyReLU.
        p: dropout of the attention weights.
        bits: 1, 2, 3, 4, 8 or None (exact).
        group_size: elements that share a scale and an offset.

    Returns:
        [num_dst, H, C].

    Raises:
        ValueError: if bits, p or the shapes are not supported.

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1], [2, 2]]))
        >>> attention_weights(graph, torch.zeros(3, 1), torch.zeros(3, 1), None, 0.2).flatten()
        tensor([0.5000, 0.5000])
    """
    check_bits(bits)
    check_probability(p)
    if h_src.dim() != 3 or h_src.size(0) != graph.num_src or h_src.shape[1:] != att_src.shape[1:]:
        raise ValueError(
            f"h_src must have shape [{graph.num_src}, H, C] with H, C of att_src {tuple(att_src.shape)}, "
            f"got {tuple(h_src.shape)}"
        )
    rows = h_src.size(0) if h_dst is None else h_dst.size(0)
    if att_dst is not None and rows != graph.num_dst:
        raise ValueError(f"the graph has {graph.num_dst} destinations, the destination features {rows} rows")
    options = _Options(float(negative_slope), float(p), bits, group_size)
    return _GATAttention.apply(h_src, h_dst, att_src, att_dst, edge_score, graph, options)
