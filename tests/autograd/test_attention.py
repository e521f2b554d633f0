"""Graph attention: values, gradients and kept bytes against the written-out form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import CSRGraph, _ops, attention_weights, gat_attention


def reference(
    edge_index: Tensor, h_src: Tensor, h_dst: Tensor, att_src: Tensor, att_dst: Tensor, edge: Tensor | None = None
) -> Tensor:
    src, dst = edge_index
    raw = (h_src * att_src).sum(-1)[src] + (h_dst * att_dst).sum(-1)[dst]
    score = F.leaky_relu(raw if edge is None else raw + edge, 0.2).exp()
    alpha = score / score.new_zeros(h_dst.size(0), score.size(1)).index_add(0, dst, score)[dst]
    return h_src.new_zeros(h_dst.shape).index_add(0, dst, alpha.unsqueeze(-1) * h_src[src])


@pytest.fixture
def case(edges: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {
        "edge_index": edges(40, 200),
        "h": torch.randn(40, 3, 16, requires_grad=True),
        "att_src": torch.randn(1, 3, 16, requires_grad=True),
        "att_dst": torch.randn(1, 3, 16, requires_grad=True),
        "edge": torch.randn(200, 3, requires_grad=True),
    }


def run(case: dict[str, Tensor], bits: int | None, edge: bool = False, **options: float) -> Tensor:
    graph = CSRGraph(case["edge_index"], None, 40)
    score = case["edge"] if edge else None
    return gat_attention(graph, case["h"], case["att_src"], case["att_dst"], edge_score=score, bits=bits, **options)


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("edge", [False, True])
def test_one_node_set(bits: int | None, edge: bool, case: dict[str, Tensor]) -> None:
    out = run(case, bits, edge)
    names = ("h", "att_src", "att_dst", *(("edge",) if edge else ()))
    inputs = [case[name] for name in names]
    expected = reference(
        case["edge_index"], case["h"], case["h"], case["att_src"], case["att_dst"], case["edge"] if edge else None
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    mine, exact = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for name, a, b in zip(names, mine, exact, strict=True):
        assert (a - b).norm() / b.norm() < (0.03 if bits else 1e-5), name


@pytest.mark.parametrize("bits", [8, None])
def test_two_node_sets(bits: int | None, edges: Callable[..., Tensor]) -> None:
    edge_index = edges(40, 200, 25)
    shapes = [(40, 2, 16), (25, 2, 16), (1, 2, 16), (1, 2, 16)]
    h_src, h_dst, att_src, att_dst = inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    out = gat_attention(CSRGraph(edge_index, None, 25, 40), h_src, att_src, att_dst, h_dst, bits=bits)
    expected = reference(edge_index, h_src, h_dst, att_src, att_dst)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    mine, exact = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(mine, exact, strict=True):
        assert (a - b).norm() / b.norm() < (0.03 if bits else 1e-5)


def test_only_what_is_wanted(case: dict[str, Tensor]) -> None:
    grad = torch.randn(40, 3, 16)
    everything = torch.autograd.grad(run(case, None), (case["h"], case["att_src"], case["att_dst"]), grad)
    frozen = dict(case, h=case["h"].detach(), att_dst=case["att_dst"].detach())
    torch.testing.assert_close(torch.autograd.grad(run(frozen, None), frozen["att_src"], grad)[0], everything[1])
    frozen = dict(case, att_src=case["att_src"].detach(), att_dst=case["att_dst"].detach())
    torch.testing.assert_close(torch.autograd.grad(run(frozen, None), frozen["h"], grad)[0], everything[0])


def test_dropout_of_the_weights(case: dict[str, Tensor]) -> None:
    """torch's own noise on the weights in edge order, and its exact gradient."""
    graph = CSRGraph(case["edge_index"], None, 40)
    inputs = (case["h"], case["att_src"], case["att_dst"])
    torch.manual_seed(9)
    out = run(case, None, p=0.4)
    torch.manual_seed(9)
    src, dst = case["edge_index"]
    raw = (case["h"] * case["att_src"]).sum(-1)[src] + (case["h"] * case["att_dst"]).sum(-1)[dst]
    score = F.leaky_relu(raw, 0.2).exp()
    alpha = score / score.new_zeros(40, 3).index_add(0, dst, score)[dst]
    dropped = F.dropout(alpha, 0.4)
    expected = case["h"].new_zeros(40, 3, 16).index_add(0, dst, dropped.unsqueeze(-1) * case["h"][src])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    mine, exact = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    weights = attention_weights(
        graph, (case["h"] * case["att_src"]).sum(-1), (case["h"] * case["att_dst"]).sum(-1), None, 0.2
    )
    torch.testing.assert_close(weights, alpha)


def test_feature_gradient_is_unbiased(case: dict[str, Tensor], bias_score: Callable[..., float]) -> None:
    grad = torch.rand(40, 3, 16)
    exact = torch.autograd.grad(run(case, None), case["h"], grad)[0]
    assert bias_score(lambda: torch.autograd.grad(run(case, 2), case["h"], grad)[0], exact) < 2


def test_a_biased_copy_is_rejected(
    case: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, bias_score: Callable[..., float]
) -> None:
    """A common shift of all h_j cancels in the softmax's gradient, so the planted error grows with h."""
    grad = torch.rand(40, 3, 16)
    exact = torch.autograd.grad(run(case, None), case["h"], grad)[0]
    unpack = _ops.unpack_rows
    monkeypatch.setattr(_ops, "unpack_rows", lambda kept, index: unpack(kept, index) * 1.2)
    assert bias_score(lambda: torch.autograd.grad(run(case, 2), case["h"], grad)[0], exact) > 4


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_kept_bytes(p: float, saved_bytes: Callable[..., int]) -> None:
    """h in 2 bits by rows, two scores per node and head, one bit per edge and head if dropped: nothing of E x H x C."""
    nodes, edges, heads, channels = 500, 4000, 4, 64
    graph = CSRGraph(torch.randint(nodes, (2, edges)), None, nodes)
    h = torch.randn(nodes, heads, channels, requires_grad=True) * 1.0
    att = [torch.randn(1, heads, channels, requires_grad=True) for _ in range(2)]
    kept = saved_bytes(lambda: gat_attention(graph, h, *att, p=p), *att)
    row = heads * channels * 2 / 8 + 4 * (heads * channels / 256)
    assert kept == nodes * (row + 2 * heads * 4) + (edges * heads / 8 if p else 0)


def test_no_edges_and_isolated_nodes() -> None:
    h = torch.randn(5, 2, 4, requires_grad=True)
    att = torch.randn(1, 2, 4, requires_grad=True)
    for edge_index in (torch.zeros(2, 0, dtype=torch.long), torch.tensor([[0], [1]])):
        out = gat_attention(CSRGraph(edge_index, None, 5), h, att, att, p=0.0)
        assert out[[0, 2, 3, 4]].eq(0).all()
        out.sum().backward()
        assert h.grad.isfinite().all()


def test_errors(case: dict[str, Tensor]) -> None:
    graph = CSRGraph(case["edge_index"], None, 40)
    with pytest.raises(ValueError, match=r"\[40, H, C\].*\(1, 3, 16\), got \(39, 3, 16\)"):
        gat_attention(graph, case["h"][:39], case["att_src"], case["att_dst"])
    with pytest.raises(ValueError, match="40 destinations, the destination features 7 rows"):
        gat_attention(graph, case["h"], case["att_src"], case["att_dst"], torch.zeros(7, 3, 16))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad,) = torch.autograd.grad(run(case, 2).square().sum(), case["h"], create_graph=True)
        grad.sum().backward()
