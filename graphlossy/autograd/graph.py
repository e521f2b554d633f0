"""A graph as a sparse matrix in compressed-sparse-row (CSR) form, with the transpose that the backward pass needs.

Row i of the matrix A holds the edges that point to node i, so ``A @ x`` sums the features of the neighbours. The
gradient of ``A @ x`` is the product with the transpose, which is kept in CSR form too: sorting the edges again in every
backward pass would cost more than the product.
"""

from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor

__all__ = ["CSRGraph", "check_edge_index", "compress_index", "plain_tensor", "sparse_csr"]

_INT32_MAX = 2**31 - 1
_FLOWS = ("source_to_target", "target_to_source")
_LOCK = threading.Lock()


def plain_tensor(edge_index: Tensor) -> Tensor:
    """The tensor inside a wrapper subclass such as PyG's EdgeIndex, which would intercept the operations used here."""
    unwrap = getattr(edge_index, "as_tensor", None)
    return edge_index if unwrap is None else unwrap()


def sparse_csr(crow: Tensor, col: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's sparse CSR tensor over these arrays, without copies and without torch's once-a-process beta warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_edge_index(edge_index: Tensor) -> None:
    """Raise unless ``edge_index`` is an integer tensor of shape [2, E]."""
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index must be a tensor of shape [2, E], got {_describe(edge_index)}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index must have shape [2, E] (row 0 sources), got {_describe(edge_index)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"edge_index must be int64 or int32, got {_describe(edge_index)}: use edge_index.long()")


def _check_weight(weight: Tensor, num_edges: int) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"edge_weight must be a floating-point tensor of shape [E], got {_describe(weight)}")
    if weight.numel() != num_edges or weight.dim() > 2 or (weight.dim() == 2 and weight.size(1) != 1):
        raise ValueError(f"edge_weight must have shape [E] with E = {num_edges}, got {_describe(weight)}")


def _check_range(index: Tensor, size: int, what: str, argument: str) -> None:
    if index.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(index))
    if low < 0 or high >= size:
        raise ValueError(
            f"edge_index holds {what} indices from {low} to {high}, but {argument} is {size}: "
            f"they must lie in [0, {size - 1}]"
        )


def compress_index(index: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Row pointers of the stably sorted ``index`` and the permutation that sorts it (None if it is sorted)."""
    perm = None
    if index.numel() > 1 and not bool((index[1:] >= index[:-1]).all()):
        index, perm = torch.sort(index, stable=True)
    bounds = torch.arange(size + 1, device=index.device, dtype=index.dtype)
    crow = torch.searchsorted(index, bounds, out_int32=dtype is torch.int32)
    return crow, perm


class _Pattern:
    """Where the non-zeros are: shared by all graphs that differ in their weights only."""

    def __init__(self, crow: Tensor, col: Tensor, num_src: int, perm: Tensor | None):
        fits = max(col.numel(), num_src, crow.numel()) <= _INT32_MAX
        self.index_dtype = torch.int32 if fits else torch.int64
        self.crow, self.col = crow.to(self.index_dtype), col.to(self.index_dtype)
        self.perm = None if perm is None else perm.to(self.index_dtype)
        self.num_dst, self.num_src = crow.numel() - 1, num_src
        self._transpose: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._has_perm = False
        self._row: Tensor | None = None

    @property
    def row(self) -> Tensor:
        if self._row is None:
            self._row = self._rows()
        return self._row

    def _rows(self) -> Tensor:
        nodes = torch.arange(self.num_dst, dtype=self.index_dtype, device=self.col.device)
        return torch.repeat_interleave(nodes, self.crow.diff(), output_size=self.col.numel())

    def transpose(self, with_perm: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """Row pointers, columns and the position in A of each non-zero of the transpose; kept for the next call.

        Without ``with_perm`` the positions, which only weights need, may be left out (None) and take no memory.
        """
        if self._transpose is None or (with_perm and not self._has_perm):
            with _LOCK:  # a CUDA backward runs in another thread than the forward
                if self._transpose is None or (with_perm and not self._has_perm):
                    crow, perm = compress_index(self.col, self.num_src, self.index_dtype)
                    row = self._rows()
                    col = row if perm is None else row.index_select(0, perm)
                    perm = perm.to(self.index_dtype) if with_perm and perm is not None else None
                    if torch.equal(crow, self.crow) and torch.equal(col, self.col):  # an undirected graph
                        crow, col = self.crow, self.col
                    self._transpose, self._has_perm = (crow, col, perm), with_perm
        return self._transpose


class CSRGraph:
    """A graph's sparse matrix A [num_dst, num_src] and its transpose in CSR form, built once and reused.

    The object is a snapshot: later in-place edits of the tensors it was built from do not change it. The one exception
    is an edge weight that requires a gradient, which stays attached. Indices are int32 where they fit. The transpose is
    built when it is first needed.

    Args:
        edge_index: [2, E] int64 or int32 edges, or a torch sparse CSR, COO or CSC tensor [num_dst, num_src] whose rows
            are destinations (what PyG calls ``adj_t``).
        edge_weight: [E] weights, or None for ones. Not allowed with a sparse tensor, which brings its own.
        num_dst: number of destination nodes. Default: the largest destination plus one (without ``num_src``: the
            largest index of both rows plus one).
        num_src: number of source nodes. Default: ``num_dst``.
        flow: ``"source_to_target"`` (row 0 of ``edge_index`` holds the sources) or ``"target_to_source"``.

    Raises:
        TypeError, ValueError: on malformed edges, weights or sizes, with the values received.

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1, 2], [1, 2, 1]]), num_dst=3)
        >>> graph.adj.to_dense()
        tensor([[0., 0., 0.],
                [1., 0., 1.],
                [0., 1., 0.]])
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        num_dst: int | None = None,
        num_src: int | None = None,
        flow: str = "source_to_target",
    ):
        if flow not in _FLOWS:
            raise ValueError(f"flow must be one of {_FLOWS}, got {flow!r}")
        if isinstance(edge_index, Tensor) and edge_index.layout is not torch.strided:
            if edge_weight is not None:
                raise ValueError("edge_weight must be None with a sparse matrix: put the weights in its values")
            for name, size, got in (("num_dst", num_dst, 0), ("num_src", num_src, 1)):
                if size is not None and size != edge_index.size(got):
                    raise ValueError(f"{name} is {size}, but the sparse matrix is {tuple(edge_index.shape)}")
            pattern, edge_weight = _from_sparse(edge_index)
        else:
            pattern = _from_edges(edge_index, edge_weight, num_dst, num_src, flow)
        self._pattern = pattern
        self._values: Tensor | None = None  # in CSR order, as given
        self._edge_weight: Tensor | None = None  # attached, in the order given
        self._cast: dict[tuple[torch.dtype, bool, bool], Tensor] = {}
        self._set_weight(edge_weight)

    def _set_weight(self, weight: Tensor | None) -> None:
        if weight is None:
            return
        weight = weight.view(-1)
        if weight.requires_grad:
            self._edge_weight = weight
        elif self.perm is None:
            self._values = weight.clone()
        else:
            self._values = weight.index_select(0, self.perm)

    def with_weight(self, edge_weight: Tensor | None) -> CSRGraph:
        """The same edges under other weights [E], in the order of the ``edge_index`` that the graph was built from."""
        if edge_weight is not None:
            _check_weight(edge_weight, self.num_edges)
        graph = object.__new__(type(self))
        graph._pattern, graph._values, graph._edge_weight, graph._cast = self._pattern, None, None, {}
        graph._set_weight(edge_weight)
        return graph

    @property
    def num_dst(self) -> int:
        return self._pattern.num_dst

    @property
    def num_src(self) -> int:
        return self._pattern.num_src

    @property
    def num_edges(self) -> int:
        return self._pattern.col.numel()

    @property
    def device(self) -> torch.device:
        return self._pattern.col.device

    @property
    def crow(self) -> Tensor:
        """Row pointers [num_dst + 1]."""
        return self._pattern.crow

    @property
    def col(self) -> Tensor:
        """Source of each edge [E], in CSR order."""
        return self._pattern.col

    @property
    def row(self) -> Tensor:
        """Destination of each edge [E], in CSR order."""
        return self._pattern.row

    @property
    def perm(self) -> Tensor | None:
        """Edge number, as given, of each CSR position; None if the edges were given in CSR order."""
        return self._pattern.perm

    @property
    def edge_weight(self) -> Tensor | None:
        """The weights that require a gradient, in the order given; None if there are none."""
        return self._edge_weight

    @property
    def weighted(self) -> bool:
        return self._values is not None or self._edge_weight is not None

    def transpose(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The transpose's row pointers, columns, and CSR position in A of each of its non-zeros (None: the same)."""
        return self._pattern.transpose()

    def transpose_pattern(self) -> tuple[Tensor, Tensor]:
        """The transpose's row pointers and columns."""
        crow, col, _ = self._pattern.transpose(with_perm=self.weighted)
        return crow, col

    def in_degree(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Number of edges into each destination [num_dst], at least 1: what PyG's mean divides by."""
        return (self.crow[1:] - self.crow[:-1]).clamp_(min=1).to(dtype)

    def values(self, dtype: torch.dtype = torch.float32, transposed: bool = False, mean: bool = False) -> Tensor:
        """Weights [E] (ones if there are none) in the CSR order of A or of its transpose; detached and cached.

        Args:
            dtype: floating-point type of the result.
            transposed: order of the transpose instead of A's.
            mean: divide by the destination's in-degree.
        """
        key = (dtype, transposed and (mean or self.weighted), mean)
        cached = self._cast.get(key)
        if cached is None:
            cached = self.order_values(self._source_values(), dtype, transposed, mean)
            if self._edge_weight is None:  # an attached weight may change at any time
                self._cast[key] = cached
        return cached

    def order_values(self, values: Tensor | None, dtype: torch.dtype, transposed: bool, mean: bool) -> Tensor:
        """Like :meth:`values`, for ``values`` in A's CSR order (None: ones)."""
        if values is None:
            if mean and transposed:
                # The columns of the transpose are the destinations: no permutation is needed.
                exact = torch.promote_types(dtype, torch.float32)
                return (1 / self.in_degree(exact)).to(dtype).index_select(0, self.transpose_pattern()[1])
            values = torch.ones(self.num_edges, dtype=dtype, device=self.device)
            if not mean:
                return values
        if mean:
            exact = torch.promote_types(values.dtype, torch.float32)
            values = values.to(exact) / self.in_degree(exact).index_select(0, self.row)
        perm = self.transpose()[2] if transposed else None
        values = values if perm is None else values.index_select(0, perm)
        return values.to(dtype)

    def _source_values(self) -> Tensor | None:
        if self._edge_weight is None:
            return self._values
        weight = self._edge_weight.detach()
        return weight if self.perm is None else weight.index_select(0, self.perm)

    @property
    def adj(self) -> Tensor:
        """A as a torch sparse CSR tensor [num_dst, num_src]."""
        return sparse_csr(self.crow, self.col, self.values(), (self.num_dst, self.num_src))

    @property
    def adj_t_csr(self) -> Tensor:
        """The transpose of A as a torch sparse CSR tensor [num_src, num_dst]."""
        crow, col = self.transpose_pattern()
        return sparse_csr(crow, col, self.values(transposed=True), (self.num_src, self.num_dst))

    @property
    def nbytes(self) -> int:
        """Bytes of everything built so far."""
        p = self._pattern
        held = [p.crow, p.col, p.perm, p._row, *(p._transpose or ()), self._values, *self._cast.values()]
        sizes = {t.data_ptr(): t.numel() * t.element_size() for t in held if t is not None}
        return sum(sizes.values())

    def __repr__(self) -> str:
        weighted = ", weighted" if self.weighted else ""
        return f"CSRGraph({self.num_dst} x {self.num_src}, {self.num_edges} edges{weighted}, {self.device})"


def _from_edges(
    edge_index: Tensor, edge_weight: Tensor | None, num_dst: int | None, num_src: int | None, flow: str
) -> _Pattern:
    check_edge_index(edge_index)
    edge_index = plain_tensor(edge_index).detach()
    if edge_weight is not None:
        _check_weight(edge_weight, edge_index.size(1))
    src, dst = edge_index if flow == "source_to_target" else edge_index.flip(0)
    if num_dst is None:
        known = edge_index if num_src is None else dst
        num_dst = int(known.max()) + 1 if known.numel() else 0
    num_src = num_dst if num_src is None else num_src
    _check_range(dst, num_dst, "destination", "num_dst")
    _check_range(src, num_src, "source", "num_src")
    fits = max(src.numel(), num_dst + 1, num_src) <= _INT32_MAX
    crow, perm = compress_index(dst.contiguous(), num_dst, torch.int32 if fits else torch.int64)
    return _Pattern(crow, src.clone() if perm is None else src.index_select(0, perm), num_src, perm)


def _from_sparse(adj: Tensor) -> tuple[_Pattern, Tensor]:
    if adj.dim() != 2:
        raise ValueError(f"a sparse adjacency must be a matrix [num_dst, num_src], got shape {tuple(adj.shape)}")
    if adj.layout is torch.sparse_csr:
        crow, col = adj.crow_indices().clone(), adj.col_indices().clone()
        return _Pattern(crow, col, adj.size(1), None), adj.values()
    if adj.layout is torch.sparse_csc:
        counts = adj.ccol_indices().diff()
        nodes = torch.arange(adj.size(1), device=counts.device)
        src = torch.repeat_interleave(nodes, counts, output_size=adj.row_indices().numel())
        edges, values = torch.stack([src, adj.row_indices()]), adj.values()
    elif adj.layout is torch.sparse_coo:
        adj = adj.coalesce()
        edges, values = adj.indices().flip(0), adj.values()
    else:
        raise TypeError(f"a sparse adjacency must be in CSR, CSC or COO layout, got {adj.layout}: use .to_sparse_csr()")
    return _from_edges(edges, values, adj.size(0), adj.size(1), "source_to_target"), values
