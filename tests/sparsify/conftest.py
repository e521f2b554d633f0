import pytest
import torch


@pytest.fixture(autouse=True)
def _few_threads(one_thread: None) -> None:
    """Graphs of some hundred edges."""


def symmetric(edges: torch.Tensor) -> torch.Tensor:
    return torch.cat([edges, edges.flip(0)], dim=1)


def random_graph(nodes: int = 30, edges: int = 90, seed: int = 0, directed: bool = False) -> torch.Tensor:
    """Distinct edges without self-loops, of unequal degrees, in a mixed order; undirected ones in both directions."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.rand(2, 8 * edges, generator=generator) ** 2 * nodes).long()
    draws = draws[:, draws[0] != draws[1]]
    if not directed:
        draws = draws.sort(0).values
    distinct = draws.unique(dim=1)
    chosen = distinct[:, torch.randperm(distinct.shape[1], generator=generator)[:edges]]
    if directed:
        return chosen
    both = symmetric(chosen)
    return both[:, torch.randperm(both.shape[1], generator=generator)]


@pytest.fixture(scope="session")
def make_graph():
    return random_graph


@pytest.fixture(scope="session")
def dense():
    """The weighted adjacency matrix, float64."""

    def build(edge_index: torch.Tensor, weight: torch.Tensor | None, nodes: int, others: int | None = None):
        matrix = torch.zeros(nodes, others or nodes, dtype=torch.float64)
        values = torch.ones(edge_index.shape[1]) if weight is None else weight
        return matrix.index_put_(tuple(edge_index.long()), values.double(), accumulate=True)

    return build
