"""Models, graphs and measures shared by the tests of the layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # importing torch_geometric
    import torch_geometric.nn as pyg

import graphlossy.nn as lossy


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture
def edges() -> Callable[..., Tensor]:
    """Random edges [2, E] with isolated nodes (the last), self-loops and parallel edges."""

    def make(num_src: int, num_edges: int, num_dst: int | None = None) -> Tensor:
        num_dst = num_src if num_dst is None else num_dst
        generator = torch.Generator().manual_seed(0)
        src = torch.randint(0, num_src - 1, (num_edges,), generator=generator)
        dst = torch.randint(0, num_dst - 1, (num_edges,), generator=generator)
        src[1], dst[1] = src[0], dst[0]
        dst[2] = src[2] = 0
        return torch.stack([src, dst])

    return make


@pytest.fixture
def adjacency(edges: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The transposed adjacency as a CSR tensor, as PyG's layers take it."""

    def make(num_nodes: int, num_edges: int) -> Tensor:
        index = edges(num_nodes, num_edges).flip(0)
        return torch.sparse_coo_tensor(index, torch.rand(num_edges), (num_nodes, num_nodes)).coalesce().to_sparse_csr()

    return make


class PlainNet(nn.Module):
    """conv, batch norm, ReLU, dropout, ..., conv from PyG's layers and functional calls."""

    def __init__(self, convs: list[nn.Module], widths: list[int], p: float = 0.5) -> None:
        super().__init__()
        self.convs, self.p = nn.ModuleList(convs), p
        self.norms = nn.ModuleList(pyg.BatchNorm(width) for width in widths)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.dropout(F.relu(norm(conv(x, graph))), self.p, self.training)
        return self.convs[-1](x, graph)


class LossyNet(nn.Module):
    """The same from this package's layers."""

    def __init__(self, convs: list[nn.Module], widths: list[int], p: float = 0.5, bits: int | None = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.acts = nn.ModuleList(lossy.NormActDropout(width, p=p, bits=bits) for width in widths)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        for conv, act in zip(self.convs, self.acts, strict=False):
            x = act(conv(x, graph))
        return self.convs[-1](x, graph)


@pytest.fixture
def nets() -> Callable[..., tuple[nn.Module, nn.Module]]:
    """(PyG's network, ours) with the same layers and weights: conv -> [norm, ReLU, dropout, conv]*."""

    def make(kind: str, widths: list[int], p: float = 0.5, bits: int | None = 2, **options: object) -> tuple:
        heads = int(options.get("heads", 1))

        def convs(module: object, extra: dict[str, object]) -> list[nn.Module]:
            torch.manual_seed(0)
            layers = []
            for number, (into, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
                layers.append(getattr(module, kind)(into * (heads if number else 1), out, **options, **extra))
            return layers

        hidden = [width * heads for width in widths[1:-1]]
        return PlainNet(convs(pyg, {}), hidden, p), LossyNet(convs(lossy, {"bits": bits}), hidden, p, bits)

    return make


@pytest.fixture
def saved_bytes() -> Callable[..., int]:
    """Bytes of all distinct strided storages that a function's autograd graph keeps, beyond those of ``known``."""

    def measure(function: Callable[[], Tensor], *known: Tensor | None) -> int:
        ignored = {t.untyped_storage().data_ptr() for t in known if t is not None}
        held: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() not in ignored:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = function()
        total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
        del out
        return total

    return measure
