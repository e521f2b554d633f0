"""The methods by name, under one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graphlossy.sparsify import degree, k_neighbor, local_degree, resistance, uniform
from graphlossy.sparsify._choice import Choice, graph_of
from graphlossy.sparsify._edges import read_edges

__all__ = ["METHODS", "Method", "sparsify"]


@dataclass(frozen=True)
class Method:
    """One way to choose edges.

    Attributes:
        choose: ``choose(edges, seed, **target)``.
        targets: names of the arguments that say how many edges are kept; exactly one is given.
        unbiased: whether its weights leave the expected adjacency matrix as it is.
        random: whether a seed makes a difference.
        about: what it does, in one line.
    """

    choose: Callable[..., Choice]
    targets: tuple[str, ...]
    unbiased: bool
    random: bool
    about: str


_DRAWS = ("ratio", "epsilon", "num_samples")
METHODS: dict[str, Method] = {
    "degree": Method(degree.choose, _DRAWS, True, True, "draws with probability ~ 1/d_u + 1/d_v (DSpar)"),
    "random": Method(uniform.choose, ("ratio",), True, True, "a uniformly random share of the edges"),
    "k-neighbor": Method(k_neighbor.choose, ("ratio", "k"), True, True, "every node chooses k of its edges"),
    "local-degree": Method(
        local_degree.choose, ("ratio", "alpha"), False, False, "every node keeps its neighbours of highest degree"
    ),
    "resistance": Method(
        resistance.choose, _DRAWS, True, True, "draws by exact effective resistance, small graphs only"
    ),
}


def check_targets(method: str, target: dict[str, Any]) -> Method:
    """The method of that name; raises unless it knows every argument of ``target``."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}")
    found = METHODS[method]
    for name, value in target.items():
        if name not in found.targets and value is not None:
            raise ValueError(f"method {method!r} takes {' or '.join(found.targets)}, got {name}={value!r}")
    return found


def sparsify(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    method: str = "degree",
    *,
    reweight: bool = True,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
    seed: int | None = None,
    **target: Any,
) -> tuple[Tensor, Tensor | None]:
    """Thin a graph by the method of a name.

    Args:
        edge_index: integers [2, E].
        num_nodes: N; None is the largest number + 1; a pair for a bipartite graph.
        method: a key of `METHODS`: degree, random, k-neighbor, local-degree or resistance.
        reweight: False keeps the weights of the input.
        edge_weight: [E] finite, at least 0.
        undirected: None finds out; see `degree_sparsify`.
        seed: None takes one from torch's global generator.
        target: ``ratio`` for every method; what else there is stands in ``METHODS[method].targets``.

    Returns:
        (edge_index [2, E'], edge_weight [E']), as `degree_sparsify`.

    Raises:
        ValueError: the method is unknown or does not take an argument; else as `degree_sparsify`.

    Example:
        >>> import torch
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> {name: sparsify(ring, 4, name, ratio=1)[0].shape[1] for name in METHODS}
        {'degree': 4, 'random': 4, 'k-neighbor': 4, 'local-degree': 4, 'resistance': 4}
    """
    chosen = check_targets(method, target)
    if "ratio" in target and chosen.targets == ("ratio",) and target["ratio"] is None:
        raise ValueError(f"method {method!r} needs ratio")
    if not any(value is not None for value in target.values()):
        raise ValueError(f"method {method!r} needs {' or '.join(chosen.targets)}")
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    given = {name: value for name, value in target.items() if value is not None}
    return graph_of(edges, chosen.choose(edges, seed, **given), reweight)
