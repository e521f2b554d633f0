"""The methods compared against, written anew from their papers.

Each is a torch-function mode entered around the forward pass of an unmodified model: it replaces the operations that
the method treats by autograd functions that keep what the method keeps. The forward values are the plain ones.

- :class:`Exact`: EXACT (Liu et al., ICLR 2022, sections 3.1 to 3.3).
- :class:`ColumnRowSampling`: CRS (Drineas et al. 2006; Adelman et al., NeurIPS 2021; Liu et al., NeurIPS 2023).
- :class:`SparseAutocast`: lets autocast to bfloat16 reach sparse products.
- :func:`random_subgraphs`: training on node-induced subgraphs (GraphSAINT's node sampler, Zeng et al., ICLR 2020,
  section 3.4, with uniform probabilities and without replacement).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from graphlossy.core import QuantizedTensor, mask_apply, pack_mask, quantize, unpack_mask

__all__ = ["ColumnRowSampling", "Exact", "SparseAutocast", "random_subgraphs"]


class Compressed(NamedTuple):
    """A matrix as EXACT keeps it: quantised row by row, after a random projection where ``projection`` is given."""

    codes: QuantizedTensor
    projection: Tensor | None  # [D, R]
    shape: torch.Size

    def restore(self) -> Tensor:
        rows = self.codes.dequantize()
        return (rows if self.projection is None else rows @ self.projection.t()).view(self.shape)


class Sampled(NamedTuple):
    """Rows of a matrix, scaled so that their sum of outer products is unbiased."""

    rows: Tensor
    index: Tensor


class _Operations(TorchFunctionMode):
    """Calls ``self.<name>(func, *args, **kwargs)`` for each torch function that has a method named ``op_<name>``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (getattr(func, "__name__", None) or "").strip("_")
        method = getattr(self, f"op_{name}", None)
        if method is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return method(func, *args, **(kwargs or {}))


# -- products with a weight: y = beta * z + alpha * x W --------------------------------------------------------------


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, added, alpha, beta, kept):
        """x [N, D], weight [D, O], added [O] or [N, O] or None; ``kept``: x for the gradient of W."""
        ctx.kept, ctx.alpha, ctx.beta = kept, alpha, beta
        ctx.added_shape = None if added is None else added.shape
        ctx.save_for_backward(weight)
        if added is None:
            return x @ weight
        return torch.addmm(added, x, weight, alpha=alpha, beta=beta)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        grad_x = grad_weight = grad_added = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight.t()).mul_(ctx.alpha)
        if ctx.needs_input_grad[1]:
            if isinstance(ctx.kept, Sampled):
                part = grad.index_select(0, ctx.kept.index)
                grad_weight = (ctx.kept.rows.t() @ part).mul_(ctx.alpha)
            else:
                kept = ctx.kept.restore() if isinstance(ctx.kept, Compressed) else ctx.kept
                grad_weight = (kept.t() @ grad).mul_(ctx.alpha)
        if ctx.needs_input_grad[2]:
            grad_added = grad if ctx.beta == 1 else grad * ctx.beta
            grad_added = grad_added.sum(0) if len(ctx.added_shape) == 1 else grad_added
        return grad_x, grad_weight, grad_added, None, None, None


class _WithWeights(_Operations):
    """Linear layers and GCNII's ``addmm``; :meth:`keep` says what of their input is kept.

    The noise comes from a generator of its own, so that dropout draws the same elements with and without the method.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def keep(self, x: Tensor) -> Any:
        raise TypeError(f"{type(self).__name__} does not say what it keeps")

    def op_linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dim() != 2 or not weight.requires_grad:
            return func(input, weight, bias)
        return _Product.apply(input, weight.t(), bias, 1.0, 1.0, self._kept(input))

    def op_addmm(self, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1):
        if not mat2.requires_grad:
            return func(input, mat1, mat2, beta=beta, alpha=alpha)
        return _Product.apply(mat1, mat2, input, alpha, beta, self._kept(mat1))

    def _kept(self, x: Tensor) -> Any:
        # The input features need no gradient and live anyway.
        return x if x.is_leaf else self.keep(x)


# -- EXACT -----------------------------------------------------------------------------------------------------------


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, adj, transposed, degree, reduce, kept):
        """``kept``, the compressed operand, is stored as EXACT's and torch_sparse's product do; nothing reads it."""
        ctx.kept, ctx.transposed, ctx.degree = kept, transposed, degree
        out = torch.sparse.mm(adj, x)
        return out.div_(degree) if reduce == "mean" else out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = grad if ctx.degree is None else grad / ctx.degree
        return torch.sparse.mm(ctx.transposed, grad), None, None, None, None, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, kept):
        out, mean, inv = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.kept, ctx.eps, ctx.statistics = kept, eps, (mean, inv)
        ctx.save_for_backward(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], *[weight is not None] * 2]
        statistics = (None, None, *ctx.statistics)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, ctx.kept.restore(), weight, *statistics, True, ctx.eps, mask
        )
        return *grads, None, None, None, None, None


class _Mask(torch.autograd.Function):
    """An elementwise operation whose gradient is ``high`` where the mask is set, else ``low``."""

    @staticmethod
    def forward(ctx, x, out, mask, low, high):
        ctx.mask, ctx.low, ctx.high = mask, low, high
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.low == 0:
            return mask_apply(grad, ctx.mask, ctx.high), None, None, None, None
        return torch.where(unpack_mask(ctx.mask), grad * ctx.high, grad * ctx.low), None, None, None, None


class Exact(_WithWeights):
    """EXACT: what linear layers, sparse products and batch norms keep is quantised to ``bits`` bits row by row.

    Scale and offset of a row take 16 bits each. With ``share`` below 1, what linear layers and sparse products keep is
    first projected at random to that share of its columns (section 3.1; batch norms keep all of them). ReLU, LeakyReLU
    and dropout keep an exact one-bit mask each. Softmax, messages of edges, sums and the loss are left to torch.

    One difference from the authors' code: values are encoded with the scale as it is stored, so that rounding stays
    unbiased.

    Args:
        bits: of an element.
        share: R / D, the columns kept by the random projection.
        seed: of projections and rounding.
    """

    def __init__(self, bits: int = 2, share: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.bits, self.share = bits, share
        self._recent: list[tuple[weakref.ref[Tensor], int, Compressed]] = []
        self._graphs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def keep(self, x: Tensor, project: bool = True) -> Compressed:
        """``x`` [N, D] in compressed form; a matrix that two operations keep (GraphSAGE's input) is stored once."""
        for ref, version, kept in self._recent:
            if project and ref() is x and version == x._version:
                return kept
        with torch.no_grad():
            projection, rows = None, x
            if project and self.share < 1:
                width = math.ceil(self.share * x.size(1))
                signs = torch.randint(2, (x.size(1), width), generator=self.generator).to(x.device)
                projection = (2 * signs - 1).to(x.dtype) / math.sqrt(width)
                rows = x @ projection
            group = -(-rows.size(1) // 8) * 8
            seed = int(torch.randint(2**63 - 1, (), generator=self.generator))
            kept = Compressed(quantize(rows, self.bits, group_size=group, seed=seed), projection, x.shape)
        if project:
            self._recent = [(weakref.ref(x), x._version, kept), *self._recent[:3]]
        return kept

    def __exit__(self, *exc: Any) -> None:
        self._recent.clear()
        super().__exit__(*exc)

    def op_sparse_mm(self, func: Any, mat1: Tensor, mat2: Tensor, reduce: str = "sum") -> Tensor:
        if not mat2.requires_grad or reduce not in ("sum", "mean"):
            return func(mat1, mat2) if reduce == "sum" else func(mat1, mat2, reduce)
        graph, transposed, degree = self._graph(mat1)
        return _SparseProduct.apply(
            mat2, graph, transposed, degree if reduce == "mean" else None, reduce, self.keep(mat2)
        )

    def _graph(self, adj: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, its transpose, in-degrees), made once: layers hand over views of one matrix."""
        key = adj.values().data_ptr()
        if key not in self._graphs:
            crow = adj.crow_indices()
            degree = (crow[1:] - crow[:-1]).clamp(min=1).to(adj.dtype).unsqueeze(1)
            self._graphs[key] = (adj, adj.t().to_sparse_csr(), degree)
        return self._graphs[key]

    def op_batch_norm(
        self, func: Any, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training or input.dim() != 2:
            return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        kept = self.keep(input, project=False)
        return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, kept)

    def op_relu(self, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
        out = torch.relu(input.detach())
        return _Mask.apply(input, out, pack_mask(out), 0.0, 1.0)

    def op_leaky_relu(self, func: Any, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        out = torch.nn.functional.leaky_relu(input.detach(), negative_slope)
        return _Mask.apply(input, out, pack_mask(input.detach() > 0), negative_slope, 1.0)

    def op_dropout(self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
        if not training or p == 0 or p == 1:
            return func(input, p, training)
        if input.is_cuda:
            out, noise = torch.native_dropout(input.detach(), p, True)
        else:  # torch's own noise, so that equal seeds drop the same elements
            noise = torch.empty_like(input).bernoulli_(1 - p)
            out = (input.detach() * noise).div_(1 - p)
        mask = pack_mask(noise)
        return _Mask.apply(input, out, mask, 0.0, 1 / (1 - p)) if input.requires_grad else out


# -- sampling --------------------------------------------------------------------------------------------------------


class ColumnRowSampling(_WithWeights):
    """The gradient of a weight, X^T G = sum_i x_i g_i^T, from k of the N rows: linear layers keep only those.

    Row i is drawn with probability p_i proportional to its norm, k times with replacement, and kept as x_i / (k p_i):
    unbiased, and of least variance among all p that know X only (Drineas et al. 2006, theorem 1). The other operations
    keep what they keep.

    Args:
        share: k / N.
        seed: of the draws.
    """

    def __init__(self, share: float = 1 / 8, seed: int = 0) -> None:
        super().__init__(seed)
        self.share = share

    def keep(self, x: Tensor) -> Sampled:
        with torch.no_grad():
            count = max(1, math.ceil(self.share * x.size(0)))
            norms = torch.linalg.vector_norm(x, dim=1).double()
            total = norms.cumsum(0)
            draws = torch.rand(count, dtype=torch.float64, generator=self.generator).to(x.device) * total[-1]
            index = torch.searchsorted(total, draws, right=True).clamp_(max=x.size(0) - 1)
            scale = total[-1] / (count * norms[index].clamp(min=torch.finfo(torch.float32).tiny))
            return Sampled(x[index] * scale.to(x.dtype).unsqueeze(1), index.to(torch.int32))


def random_subgraphs(
    edge_index: Tensor, nodes: int, parts: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """(nodes, edge_index among them, renumbered) of ``parts`` disjoint random sets that cover all nodes."""
    from torch_geometric.utils import subgraph

    order = torch.randperm(nodes, generator=generator).to(edge_index.device)
    for chosen in order.chunk(parts):
        chosen = chosen.sort().values
        yield chosen, subgraph(chosen, edge_index, relabel_nodes=True, num_nodes=nodes)[0]


# -- bfloat16 --------------------------------------------------------------------------------------------------------


class _CastSparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, adj, transposed, degree, reduce):
        ctx.transposed, ctx.degree = transposed, degree
        return torch.sparse.mm(adj, x) if x.is_cuda else torch.sparse.mm(adj, x, reduce)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad = (grad if ctx.degree is None else grad / ctx.degree).contiguous()
        product = torch.sparse.mm(ctx.transposed, grad, *(() if grad.is_cuda else ("sum",)))
        return product, None, None, None, None


class SparseAutocast(_Operations):
    """Sparse products of a bfloat16 operand, which autocast passes over, on a bfloat16 copy of the matrix.

    On the CPU torch's default CSR product has no bfloat16 either; the kernel behind ``torch.sparse.mm(A, x, reduce)``
    has it, and adds up in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._graphs: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def op_sparse_mm(self, func: Any, mat1: Tensor, mat2: Tensor, reduce: str = "sum") -> Tensor:
        if mat2.dtype != torch.bfloat16:
            return func(mat1, mat2) if reduce == "sum" else func(mat1, mat2, reduce)
        key = mat1.values().data_ptr()
        if key not in self._graphs:
            crow = mat1.crow_indices()
            degree = (crow[1:] - crow[:-1]).clamp(min=1).to(mat2.dtype).unsqueeze(1)
            half = (mat1.to(mat2.dtype), mat1.t().to_sparse_csr().to(mat2.dtype))
            self._graphs[key] = (mat1, *half, degree)
        _, half, transposed, degree = self._graphs[key]
        return _CastSparseProduct.apply(mat2, half, transposed, degree if reduce == "mean" else None, reduce)
