"""The structure error without the N x N matrix: against its definition, its gradient, its bytes and its bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import graphlossy
from graphlossy.outliers import _structure_sampled
from graphlossy.outliers._checks import Graph, coalesced
from graphlossy.outliers._structure_exact import EdgeProducts
from graphlossy.outliers.structure import (
    attribute_error,
    check_structure,
    dense_structure_error,
    root,
    sampled_structure_error,
    structure_error,
    weight_pair,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def random_graph(n: int, edges: int, device: torch.device | str = "cpu") -> Graph:
    return Graph(torch.rand(n, 2), coalesced(torch.randint(n, (2, edges)), n), n).to(device)


def with_gradients(function: Any, z: Tensor, columns: Tensor | None, upstream: Tensor, **options: Any) -> list[Tensor]:
    z = z.clone().requires_grad_()
    given = None if columns is None else columns.clone().requires_grad_()
    out = function(z, columns=given, **options)
    (out * upstream).sum().backward()
    return [out.detach(), z.grad] + ([] if given is None else [given.grad])


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


WEIGHTS = [(1.0, 1.0), (0.9, 0.1), (0.2, 0.7), (1.0, 0.0)]


@given(
    n=st.integers(1, 24),
    edges=st.integers(0, 120),
    width=st.integers(1, 20),
    weights=st.sampled_from(WEIGHTS),
    rooted=st.booleans(),
    two_sided=st.booleans(),
    uniform=st.booleans(),
)
def test_exact_is_the_definition(
    n: int, edges: int, width: int, weights: tuple[float, float], rooted: bool, two_sided: bool, uniform: bool
) -> None:
    torch.manual_seed(n * 1000 + edges)
    graph = random_graph(n, edges)
    z = 0.5 * torch.randn(n, width)
    columns = 0.5 * torch.randn(n, width) if two_sided else None
    upstream = torch.ones(n) if uniform else torch.rand(n)
    options = {"graph": graph, "weights": weights, "rooted": rooted}
    expected = with_gradients(dense_structure_error, z, columns, upstream, **options)
    assert_close(with_gradients(structure_error, z, columns, upstream, **options), expected)


@given(
    n=st.integers(1, 24),
    edges=st.integers(0, 120),
    decoder=st.sampled_from(["product", "sigmoid"]),
    weights=st.sampled_from(WEIGHTS),
    rooted=st.booleans(),
    two_sided=st.booleans(),
    uniform=st.booleans(),
)
def test_a_sample_of_all_columns_is_the_definition(
    n: int,
    edges: int,
    decoder: str,
    weights: tuple[float, float],
    rooted: bool,
    two_sided: bool,
    uniform: bool,
) -> None:
    torch.manual_seed(n * 1000 + edges)
    graph = random_graph(n, edges)
    z = torch.randn(n, 5)
    columns = torch.randn(n, 5) if two_sided else None
    upstream = torch.ones(n) if uniform else torch.rand(n)
    options = {"graph": graph, "weights": weights, "rooted": rooted, "decoder": decoder}
    expected = with_gradients(dense_structure_error, z, columns, upstream, **options)
    assert_close(with_gradients(sampled_structure_error, z, columns, upstream, samples=n + 3, **options), expected)


def test_every_device_gives_the_same(device: torch.device) -> None:
    graph = random_graph(50, 300)
    z = torch.randn(50, 8)
    for function in (structure_error, sampled_structure_error):
        here = with_gradients(function, z, None, torch.ones(50), graph=graph, rooted=True)
        there = with_gradients(function, z.to(device), None, torch.ones(50, device=device), graph=graph.to(device),
                               rooted=True)  # fmt: skip
        assert_close([t.cpu() for t in there], here)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, z = random_graph(40, 300), torch.randn(40, 6)
    runs = []
    for block in (1 << 20, 16):
        monkeypatch.setattr("graphlossy.outliers._structure_exact._BLOCK", {"cpu": block})
        runs.append(with_gradients(structure_error, z, None, torch.rand(40, generator=torch.Generator().manual_seed(0)),
                                   graph=graph, weights=(0.8, 0.2)))  # fmt: skip
        runs.append(with_gradients(sampled_structure_error, z, None, torch.ones(40), graph=graph, samples=9, seed=3))
    assert_close(runs[2], runs[0])
    assert_close(runs[3], runs[1])


def test_a_perfect_reconstruction_has_error_zero_and_no_direction() -> None:
    # Two cliques with self loops: A = Z Z^T. The formula subtracts equal numbers here.
    z = torch.nn.functional.one_hot(torch.arange(60) % 2, 2).float().requires_grad_()
    graph = Graph(z.detach(), (z @ z.t()).detach().nonzero().t().contiguous(), 60)
    error = structure_error(z, graph, rooted=True)
    assert float(error.detach().abs().max()) < 1e-6
    error.mean().backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_cancellation_costs_less_than_in_float32() -> None:
    """Rows of 1,000 nearly equal entries: deg + ||s||^2 is 2,000, the error some 1e-3."""
    n = 1000
    z = (1 + 1e-3 * torch.randn(n, 1)).float()
    graph = Graph(z, torch.cartesian_prod(torch.arange(n), torch.arange(n)).t().contiguous(), n)
    exact = (1 - z.double() @ z.double().t()).square().sum(1)
    ours = structure_error(z, graph)
    assert float(((ours - exact) / exact).abs().max()) < 1e-6
    plain = n - 2 * (z * z.sum()).sum(1) + (z.square() * z.square().sum()).sum(1)  # the same formula in float32
    assert float(((plain - exact) / exact).abs().max()) > 1e-2


def is_unbiased(estimates: Tensor, truth: Tensor) -> bool:
    """Whether the mean of [S, N] estimates is within 5 standard errors of [N] in every row."""
    error = estimates.double().std(0) / estimates.size(0) ** 0.5
    return bool(((estimates.double().mean(0) - truth).abs() < 5 * error + 1e-6).all())


class WrongScale(_structure_sampled._Sample):
    """Divides by the share of columns that are drawn among those without an edge on average: it sounds right."""

    def __init__(self, graph: Graph, drawn: Tensor) -> None:
        super().__init__(graph, drawn)
        self.scale = (graph.num_nodes - graph.num_edges / graph.num_nodes) / drawn.numel()


class EdgesToo(_structure_sampled._Sample):
    """Forgets that some of the drawn entries are edges."""

    def __init__(self, graph: Graph, drawn: Tensor) -> None:
        super().__init__(graph, drawn)
        self.row, self.at = self.row[:0], self.at[:0]


@pytest.mark.parametrize("decoder", ["product", "sigmoid"])
@pytest.mark.parametrize("variant", [None, WrongScale, EdgesToo])
def test_a_sample_is_unbiased_and_two_plausible_ones_are_not(
    decoder: str, variant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, z = random_graph(60, 900), torch.randn(60, 3)
    truth = dense_structure_error(z, graph, weights=(0.7, 0.3), decoder=decoder)
    if variant is not None:
        monkeypatch.setattr(_structure_sampled, "_Sample", variant)
    estimates = torch.stack(
        [
            sampled_structure_error(z, graph, samples=15, weights=(0.7, 0.3), decoder=decoder, seed=seed)
            for seed in range(600)
        ]
    )
    assert is_unbiased(estimates, truth) is (variant is None)


def test_the_gradient_of_a_sample_is_unbiased() -> None:
    graph, z = random_graph(40, 300), torch.randn(40, 3)
    expected = with_gradients(dense_structure_error, z, None, torch.ones(40), graph=graph, decoder="sigmoid")[1]
    found = torch.stack(
        [
            with_gradients(sampled_structure_error, z, None, torch.ones(40), graph=graph, samples=10, seed=seed)[1]
            for seed in range(400)
        ]
    )
    assert is_unbiased(found, expected)


def test_two_bit_copies_leave_the_gradient_unbiased_where_rows_weigh_the_same() -> None:
    graph, z = random_graph(300, 1500), 0.3 * torch.randn(300, 16)

    def gradient(seed: int, upstream: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_()
        with graphlossy.compress(bits=2, seed=seed) as ledger:
            error = structure_error(leaf * 1.0, graph, rooted=True)
        assert any(record.how == "quantized" for record in ledger.records)
        (error * upstream).sum().backward()
        return leaf.grad

    def excess(upstream: Tensor) -> float:
        """The mean squared distance from the exact gradient in standard errors: 1 if there is no bias."""
        exact = with_gradients(structure_error, z, None, upstream, graph=graph, rooted=True)[1]
        found = torch.stack([gradient(7919 * seed, upstream) for seed in range(100)]).double()
        return float(((found.mean(0) - exact) / (found.std(0) / 10)).square().mean())

    assert excess(torch.ones(300)) < 1.2
    # Else the term H is made of rounded rows, and the variance of the rounding is left in its diagonal.
    assert excess(torch.linspace(0, 4, 300)) > 5


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor) and item.layout is torch.strided:
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.parametrize("structure", ["exact", "sampled", "dense"])
def test_only_the_definition_makes_a_matrix_of_all_pairs(structure: str) -> None:
    n = 3000
    graph, z = random_graph(n, 4 * n), torch.randn(n, 4, requires_grad=True)
    function = {"exact": structure_error, "sampled": sampled_structure_error, "dense": dense_structure_error}[structure]
    options = {"samples": 50} if structure == "sampled" else {}
    with Largest() as largest:
        function(z, graph, rooted=True, **options).mean().backward()
    assert (largest.elements >= n * n) is (structure == "dense")
    assert structure == "dense" or largest.elements <= 50 * n


def test_one_seed_gives_one_sample_bit_for_bit() -> None:
    graph, z = random_graph(50, 200), torch.randn(50, 4)
    first, again, other = (sampled_structure_error(z, graph, samples=7, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    drawn = sampled_structure_error(z, graph, samples=7)
    torch.manual_seed(3)
    assert torch.equal(drawn, sampled_structure_error(z, graph, samples=7))


def test_products_on_edges() -> None:
    graph, z = random_graph(30, 100), torch.randn(30, 4, requires_grad=True)
    weight = torch.rand(graph.num_edges)
    row, col = graph.edge_index
    expected = (z[row] * z[col]).sum(1)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), z)
    found = EdgeProducts.apply(z, graph)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), z)[0], gradient)


def test_the_derivative_of_the_root_at_zero_is_zero() -> None:
    x = torch.tensor([0.0, 9.0], requires_grad=True)
    root(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([0, 1 / 6])
    rows = torch.zeros(2, 3, requires_grad=True)
    attribute_error(torch.zeros(2, 3), rows).sum().backward()
    assert torch.equal(rows.grad, torch.zeros(2, 3))


def test_attribute_error_weighs_positive_features() -> None:
    x, rebuilt = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    assert float(attribute_error(x, rebuilt, weight_pair(0.75))) == pytest.approx((0.75 * 4 + 0.25 * 10) ** 0.5)


def test_second_derivatives_are_refused() -> None:
    graph, z = random_graph(10, 30), torch.randn(10, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(structure_error(z, graph).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()


def test_arguments_that_do_not_fit() -> None:
    graph, z = random_graph(5, 10), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"z must have shape \[N, d\] with N = 5 nodes, got \[4, 2\]"):
        structure_error(z[:4], graph)
    with pytest.raises(ValueError, match="columns must have the shape of z"):
        dense_structure_error(z, graph, columns=torch.randn(5, 3))
    with pytest.raises(ValueError, match="weights must be two numbers"):
        structure_error(z, graph, weights=(1.0, -1.0))
    with pytest.raises(ValueError, match="decoder must be"):
        sampled_structure_error(z, graph, decoder="relu")
    with pytest.raises(ValueError, match="samples must be at least 1"):
        sampled_structure_error(z, graph, samples=0)
    with pytest.raises(ValueError, match="no exact form"):
        check_structure("exact", ("sampled", "dense"), "AnomalyDAE")
    with pytest.raises(ValueError, match="pos_weight must be"):
        weight_pair(2)
