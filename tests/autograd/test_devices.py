"""Every function on every device: values and gradients at 8 bits against torch's own on that device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy import autograd as ga

N, E, D = 96, 400, 64

# name -> (function of (x, w, graph), exact form); w is [D, D]
CASES: dict[str, tuple[Callable, Callable]] = {
    "linear": (lambda x, w, g: ga.linear(x, w, bits=8), lambda x, w, a: F.linear(x, w)),
    "relu": (lambda x, w, g: ga.relu(x), lambda x, w, a: F.relu(x)),
    "leaky_relu": (lambda x, w, g: ga.leaky_relu(x, 0.2), lambda x, w, a: F.leaky_relu(x, 0.2)),
    "batch_norm": (
        lambda x, w, g: ga.batch_norm(x, None, None, w[0], w[1], True, bits=8),
        lambda x, w, a: F.batch_norm(x, None, None, w[0], w[1], True),
    ),
    "layer_norm": (
        lambda x, w, g: ga.layer_norm(x, w[0], w[1], bits=8),
        lambda x, w, a: F.layer_norm(x, (D,), w[0], w[1]),
    ),
    "norm_act_dropout, linear": (
        lambda x, w, g: ga.linear(ga.norm_act_dropout(x, w[0], w[1], p=0.0, bits=8), w),
        lambda x, w, a: F.linear(F.relu(F.batch_norm(x, None, None, w[0], w[1], True)), w),
    ),
    "spmm": (lambda x, w, g: ga.spmm(g, x, "mean"), lambda x, w, a: mean(a) @ x),
    "spmm, trained weights": (
        lambda x, w, g: ga.spmm(g.with_weight(w.flatten()[:E]), x, bits=8),
        lambda x, w, a: scatter(a, w.flatten()[:E]) @ x,
    ),
    "spmm_linear": (
        lambda x, w, g: ga.spmm_linear(g, x * 1.0, w, reduce="mean", bits=8),
        lambda x, w, a: F.linear(mean(a) @ x, w),
    ),
    "gat_attention": (
        lambda x, w, g: ga.gat_attention(g, x.view(N, 4, 16), w[:1].view(1, 4, 16), w[1:2].view(1, 4, 16), bits=8),
        lambda x, w, a: attention(a, x.view(N, 4, 16), w[:1].view(1, 4, 16), w[1:2].view(1, 4, 16)),
    ),
    "identity_linear": (
        lambda x, w, g: ga.identity_linear(x * 1.0, w, 0.3, bits=8),
        lambda x, w, a: 0.7 * x + 0.3 * x @ w,
    ),
}


def scatter(edge_index: Tensor, weight: Tensor) -> Tensor:
    zeros = torch.zeros(N, N, device=weight.device)
    return zeros.index_put((edge_index[1], edge_index[0]), weight, accumulate=True)


def mean(edge_index: Tensor) -> Tensor:
    adj = scatter(edge_index, torch.ones(E, device=edge_index.device))
    return adj / adj.sum(1, keepdim=True).clamp(min=1)


def attention(edge_index: Tensor, h: Tensor, att_src: Tensor, att_dst: Tensor) -> Tensor:
    src, dst = edge_index
    score = F.leaky_relu((h * att_src).sum(-1)[src] + (h * att_dst).sum(-1)[dst], 0.2).exp()
    alpha = score / score.new_zeros(N, 4).index_add(0, dst, score)[dst]
    return torch.zeros_like(h).index_add(0, dst, alpha.unsqueeze(-1) * h[src])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(
    name: str, dtype: torch.dtype, device: torch.device, edges: Callable[..., Tensor]
) -> None:
    if dtype is torch.bfloat16 and name in ("gat_attention", "spmm, trained weights"):
        dtype = torch.float64  # the written-out form has no bfloat16
    edge_index = edges(N, E).to(device)
    graph = ga.CSRGraph(edge_index, None, N)
    inputs = [torch.randn(N, D), torch.randn(D, D) / 4]
    inputs = [t.to(device, dtype).requires_grad_() for t in inputs]
    exact_inputs = [t.detach().float().requires_grad_() for t in inputs]
    mine, exact = CASES[name]
    out, expected = mine(*inputs, graph), exact(*exact_inputs, edge_index)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-4
    assert out.dtype is dtype and out.device.type == device.type
    assert (out.float() - expected).norm() < tolerance * expected.norm()
    grad = torch.randn_like(expected)
    got = torch.autograd.grad(out, inputs, grad.to(dtype), allow_unused=True)
    wanted = torch.autograd.grad(expected, exact_inputs, grad, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a.float() - b).norm() < 0.06 * b.norm()


@pytest.mark.parametrize("keep", ["mask", "seed"])
def test_dropout(keep: str, device: torch.device) -> None:
    x = (torch.rand(1000, 20, device=device) + 1).requires_grad_()
    out = ga.dropout(x, 0.25, keep=keep)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad != 0, out != 0)
    torch.testing.assert_close(grad * x, out)
    assert abs((out == 0).float().mean().item() - 0.25) < 0.02
