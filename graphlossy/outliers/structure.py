"""How badly a graph is rebuilt from node embeddings, row by row: ||a_i - s_i||^2 without the N x N matrices.

a_i is row i of the adjacency matrix A and s_i the same row of its reconstruction. DOMINANT (Ding et al., SDM 2019)
rebuilds S = Z Z^T in PyGOD and in BOND's figures, its paper writes a sigmoid around that; every library makes both
N x N matrices for it: 80 GB for 100,000 nodes. The row's squared error of the plain product needs neither,

    ||a_i - Z z_i||^2 = deg_i - 2 z_i . (A Z)_i + z_i^T (Z^T Z) z_i,                     O(E d + N d^2),

and with a weight w1 on edges and w0 elsewhere

    w0 ||a_i - Z z_i||^2 + (w1 - w0) sum over the edges (i, j) of (1 - z_i . z_j)^2.

Three forms of one number, for one argument ``structure`` of the detectors:

- ``"exact"``: :func:`structure_error`, the formula above, for a decoder that is a plain product;
- ``"dense"``: :func:`dense_structure_error`, the definition, O(N^2), for any decoder;
- ``"sampled"``: :func:`sampled_structure_error`, all edges and a sample of columns, unbiased, for any decoder that acts
  on the products entry by entry, such as sigmoid(Z Z^T).

The formula subtracts numbers that are nearly equal where the reconstruction is good. Its three terms are therefore
summed in float64, of float32 embeddings: that leaves a relative error near 1e-15 of deg_i + ||s_i||^2, less than the
dense float32 sum has. The gradient is a sum of products of float32 embeddings, as it is in the dense form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._random import permutation
from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._structure_exact import ExactStructure
from graphlossy.outliers._structure_sampled import SampledStructure

__all__ = [
    "STRUCTURES",
    "attribute_error",
    "check_structure",
    "dense_structure_error",
    "root",
    "sampled_structure_error",
    "structure_error",
    "weight_pair",
]

STRUCTURES = ("exact", "dense", "sampled")


def structure_error(
    z: Tensor,
    graph: Graph,
    *,
    columns: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    rooted: bool = False,
) -> Tensor:
    """Row errors of A against Z C^T: sum_j w_ij (A_ij - z_i . c_j)^2, exact, without an N x N matrix.

    O(E d + N d^2) time and O(N d) memory. Differentiable once. It keeps Z (and C) for the backward pass and nothing
    else of their size; the gradient is linear in what it keeps if all rows get the same incoming gradient, as in a mean
    of errors, so under ``graphlossy.compress`` it stays unbiased. For other incoming gradients one term is cubic.

    Args:
        z: [N, d] float32, one row a node.
        graph: A, row i holding the edges that leave node i.
        columns: C [N, d]; None for Z itself. A decoder with a bias b is ``cat([z, ones], 1)`` and ``cat([c, b], 1)``.
        weights: (on the edges, elsewhere), not negative.
        rooted: return the square root; its derivative where the error is 0 is taken as 0.

    Returns:
        [N] float32.

    Raises:
        ValueError: shapes or weights that do not fit.

    Example:
        >>> graph = Graph(torch.eye(2), torch.tensor([[0, 1], [1, 0]]), 2)
        >>> structure_error(torch.tensor([[1.0], [1.0]]), graph)  # rebuilt as all ones: one wrong entry a row
        tensor([1., 1.])
        >>> structure_error(torch.tensor([[1.0], [1.0]]), graph, weights=(1.0, 0.25))
        tensor([0.2500, 0.2500])
    """
    columns = _check(z, graph, columns, weights)
    return ExactStructure.apply(z, columns, graph, weights, rooted)


def dense_structure_error(
    z: Tensor,
    graph: Graph,
    *,
    columns: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    decoder: str = "product",
    rooted: bool = False,
) -> Tensor:
    """The definition: sum_j w_ij (A_ij - f(z_i . c_j))^2 over the full rows, O(N^2) time and memory.

    Args:
        z, graph, columns, weights, rooted: as :func:`structure_error`.
        decoder: f, ``"product"`` (itself) or ``"sigmoid"``.

    Returns:
        [N] float32.

    Example:
        >>> graph = Graph(torch.eye(2), torch.tensor([[0, 1], [1, 0]]), 2)
        >>> dense_structure_error(torch.tensor([[1.0], [1.0]]), graph)
        tensor([1., 1.])
    """
    columns = z if columns is None else _check(z, graph, columns, weights)
    _check(z, graph, columns, weights)
    _check_decoder(decoder)
    rebuilt = z @ columns.t()
    if decoder == "sigmoid":
        rebuilt = rebuilt.sigmoid()
    target = graph.dense_adjacency()
    error = (target - rebuilt).square()
    on, off = weights
    if on != 1 or off != 1:
        error = error * (target * (on - off) + off)
    return root(error.sum(1)) if rooted else error.sum(1)


def sampled_structure_error(
    z: Tensor,
    graph: Graph,
    *,
    samples: int = 256,
    columns: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    decoder: str = "sigmoid",
    rooted: bool = False,
    seed: int | None = None,
) -> Tensor:
    """An unbiased estimate of :func:`dense_structure_error` from all edges and a sample of the other entries.

    One set J of K = ``samples`` columns is drawn without replacement and used for every row, so that all nodes are
    measured against the same columns:

        w1 sum_{(i,j) in E} (1 - f(z_i . c_j))^2 + w0 (N / K) sum_{j in J, (i,j) not in E} f(z_i . c_j)^2.

    Column j is in J with probability K / N, so the mean over J is the dense error, whatever the degrees (Horvitz and
    Thompson, 1952). With K >= N it is the dense error itself. O(E d + N K d) time, O(E + N d) memory. The square root
    of the estimate is not unbiased; its error falls with 1 / sqrt(K).

    Differentiable once, with the gradient of the estimate; as for :func:`structure_error` it is linear in what is kept
    for the backward pass if all rows get the same incoming gradient.

    Args:
        z, graph, columns, weights, rooted: as :func:`structure_error`.
        samples: K, columns drawn.
        decoder: ``"product"`` or ``"sigmoid"``.
        seed: of the draw; None: from torch's generator.

    Returns:
        [N] float32.

    Example:
        >>> graph = Graph(torch.eye(2), torch.tensor([[0, 1], [1, 0]]), 2)
        >>> z = torch.tensor([[1.0], [1.0]])
        >>> sampled_structure_error(z, graph, samples=2, decoder="product")
        tensor([1., 1.])
    """
    columns = _check(z, graph, columns, weights)
    _check_decoder(decoder)
    check_number("samples", samples, 1, integer=True)
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    drawn = permutation(seed, graph.num_nodes, device=z.device)[:samples].sort().values
    return SampledStructure.apply(z, columns, graph, drawn, weights, decoder, rooted)


def attribute_error(x: Tensor, rebuilt: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """||sqrt(w) (x_i - x'_i)||_2 of each node, [N]; w is the first weight where x > 0, the second elsewhere.

    Args:
        x: [N, F].
        rebuilt: [N, F].
        weights: (on positive entries, elsewhere).

    Example:
        >>> attribute_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item()
        5.0
    """
    error = (x - rebuilt).square()
    if tuple(weights) != (1.0, 1.0):
        error = error * torch.where(x > 0, weights[0], weights[1])
    return root(error.sum(1))


def check_structure(structure: str, allowed: tuple[str, ...], title: str) -> str:
    """``structure`` if this method can do it.

    Raises:
        ValueError: it cannot; the message says which it can, and why not the exact one.
    """
    if structure in allowed:
        return structure
    why = ""
    if structure == "exact":
        why = f"; {title} decodes by more than a product, for which there is no exact form without the N x N matrix"
    raise ValueError(f"structure must be one of {allowed}, got {structure!r}{why}")


def weight_pair(pos_weight: float) -> tuple[float, float]:
    """PyGOD's one number p for non-zero entries as (on them, elsewhere): (p, 1 - p), and (1, 1) for p = 1/2.

    Example:
        >>> weight_pair(0.75), weight_pair(0.5)
        ((0.75, 0.25), (1.0, 1.0))
    """
    check_number("pos_weight", pos_weight, 0, 1)
    return (1.0, 1.0) if pos_weight == 0.5 else (float(pos_weight), 1.0 - float(pos_weight))


def root(squared: Tensor) -> Tensor:
    """The square root with derivative 0 at 0, where torch's is infinite and makes NaN of a node without any error.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> root(x).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    positive = squared > 0
    return torch.where(positive, squared, 1.0).sqrt() * positive


def _check(z: Tensor, graph: Graph, columns: Tensor | None, weights: tuple[float, float]) -> Tensor:
    if z.dim() != 2 or z.size(0) != graph.num_nodes:
        raise ValueError(f"z must have shape [N, d] with N = {graph.num_nodes} nodes, got {list(z.shape)}")
    if columns is not None and columns.shape != z.shape:
        raise ValueError(f"columns must have the shape of z, {list(z.shape)}, got {list(columns.shape)}")
    if len(weights) != 2 or min(weights) < 0:
        raise ValueError(f"weights must be two numbers that are not negative, (on edges, elsewhere), got {weights}")
    return z if columns is None else columns


def _check_decoder(decoder: str) -> None:
    if decoder not in ("product", "sigmoid"):
        raise ValueError(f"decoder must be 'product' or 'sigmoid', got {decoder!r}")
