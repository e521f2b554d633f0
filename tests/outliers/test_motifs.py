"""Motif counts against enumeration of all triples and quadruples."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.outliers import motifs
from graphlossy.outliers._checks import Graph, coalesced
from graphlossy.outliers.motifs import MOTIFS, motif_degrees

pytestmark = pytest.mark.usefixtures("one_thread")


def enumerated(graph: Graph) -> Tensor:
    """Every induced subgraph on three and four nodes, told by its sorted degrees."""
    dense = graph.dense_adjacency()
    joined = ((dense + dense.t()) > 0).float().fill_diagonal_(0)
    kinds = {
        (2, 2, 2): "triangle",
        (1, 1, 2): "open triangle",
        (3, 3, 3, 3): "4-clique",
        (2, 2, 3, 3): "diamond",
        (2, 2, 2, 2): "4-cycle",
    }
    out = torch.zeros(graph.num_nodes, len(MOTIFS), dtype=torch.int64)
    out[:, MOTIFS.index("degree")] = joined.sum(1).long()
    for size in (3, 4):
        for nodes in map(list, itertools.combinations(range(graph.num_nodes), size)):
            inside = joined[nodes][:, nodes].sum(1).long().sort().values
            kind = kinds.get(tuple(inside.tolist()))
            if kind:
                out[nodes, MOTIFS.index(kind)] += 1
    return out


@given(n=st.integers(1, 10), share=st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), seed=st.integers(0, 999))
def test_counts_are_those_of_enumeration(n: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(n, n, generator=generator) < share).nonzero().t()  # directed, with self loops
    graph = Graph(torch.zeros(n, 1), coalesced(edges, n), n)
    assert torch.equal(motif_degrees(graph), enumerated(graph))


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_do_not_change_the_counts(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(torch.zeros(12, 1), coalesced(torch.randint(12, (2, 80)), 12), 12)
    whole = motif_degrees(graph)
    monkeypatch.setattr(motifs, "_BLOCK", block)
    assert torch.equal(motif_degrees(graph), whole)
    assert bool((whole > 0).any(0).all())


def test_a_hub_costs_no_square_of_its_degree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A star of 5,000 leaves has 12 million pairs of neighbours and no four-cycle; none of them is looked at."""
    looked_at = 0
    spread = motifs._spread

    def counted(lengths: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal looked_at
        looked_at += int(lengths.sum())
        return spread(lengths)

    monkeypatch.setattr(motifs, "_spread", counted)
    n = 5001
    edges = torch.stack([torch.zeros(n - 1, dtype=torch.int64), torch.arange(1, n)])
    counts = motif_degrees(Graph(torch.zeros(n, 1), edges, n))
    assert counts[0].tolist() == [0, 5000 * 4999 // 2, 0, 0, 0, 5000]
    assert counts[1].tolist() == [0, 4999, 0, 0, 0, 1]
    assert looked_at < 10 * n
