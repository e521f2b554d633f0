"""The methods of the memory and time tables: how each runs one forward pass of the same network."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks._graphs import Problem, csr, normalized_csr
from benchmarks._models import build

__all__ = ["VARIANTS", "Runner", "Shape"]

PARTS = 8

# name: what it is. "+ei" in a name: called with a plain edge_index, else with a sparse CSR adj_t.
VARIANTS = {
    "pyg-csr": "PyG in float32, given adj_t as a sparse CSR matrix (GCN's normalisation computed once)",
    "pyg-edge_index": "PyG in float32, given a plain edge_index",
    "bf16": "PyG under autocast to bfloat16",
    "checkpoint": "PyG, each layer checkpointed (torch.utils.checkpoint, non-reentrant)",
    "save_on_cpu": "PyG under torch.autograd.graph.save_on_cpu (on the CPU: nothing to move)",
    "exact-2bit": "EXACT, 2 bits by rows, without its projection",
    "exact-2bit-rp": "EXACT, 2 bits by rows, random projection to 1/8 of the columns",
    "crs-1/8": "norm-weighted column-row sampling: linear layers keep 1/8 of the rows",
    "subgraph-1/8": "training on random induced subgraphs of 1/8 of the nodes; one step is one epoch of 8 updates",
    "compress-8bit": "graphlossy.compress(bits=8) around the unmodified PyG model, adj_t",
    "compress-4bit": "graphlossy.compress(bits=4) around the unmodified PyG model, adj_t",
    "compress-2bit": "graphlossy.compress(bits=2) around the unmodified PyG model, adj_t",
    "compress-1bit": "graphlossy.compress(bits=1) around the unmodified PyG model, adj_t",
    "compress-2bit-edge_index": "graphlossy.compress(bits=2) around the unmodified PyG model, plain edge_index",
    "nn-2bit": "graphlossy.nn's layers at 2 bits, adj_t",
    "nn-2bit-edge_index": "graphlossy.nn's layers at 2 bits, plain edge_index",
}


@dataclass(frozen=True)
class Shape:
    """Of a network."""

    model: str
    features: int
    hidden: int
    classes: int
    layers: int
    dropout: float
    norm: bool = True
    input_dropout: bool = False


class Runner:
    """One method on one network: makes the model and runs forward passes of it.

    Args:
        name: key of :data:`VARIANTS`.
        shape: of the network.
        problem: the data.
        seed: of the weights and of the methods' noise.
    """

    def __init__(self, name: str, shape: Shape, problem: Problem, seed: int = 0) -> None:
        if name not in VARIANTS:
            raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
        self.name, self.shape, self.problem = name, shape, problem
        self.device = problem.x.device
        self.plain_edges = name.endswith("edge_index")
        normalized = shape.model in ("gcn", "gcn2") and not self.plain_edges
        self.graph = self._graph(problem.edge_index, problem.x.size(0))
        torch.manual_seed(seed)
        bits = re.fullmatch(r"(compress|nn)-(\d)bit(-edge_index)?", name)
        self.model: nn.Module = build(
            shape.model, features=shape.features, hidden=shape.hidden, classes=shape.classes, layers=shape.layers,
            dropout=shape.dropout, norm=shape.norm, input_dropout=shape.input_dropout, normalize=not normalized,
            bits=int(bits[2]) if bits and bits[1] == "nn" else None,
        ).to(self.device)  # fmt: skip
        self._call: Callable[..., Tensor] | None = None
        self.ledger: Any = None
        self._context = self._make_context(name, int(bits[2]) if bits else None, seed)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def updates(self) -> int:
        """Optimizer steps in one pass over the training nodes."""
        return PARTS if self.name.startswith("subgraph") else 1

    def _graph(self, edge_index: Tensor, nodes: int) -> Tensor:
        if self.plain_edges:
            return edge_index
        make = normalized_csr if self.shape.model in ("gcn", "gcn2") else csr
        # Sorting the edges needs no GPU, and leaves no scratch memory there.
        return make(edge_index.cpu(), nodes).to(self.device)

    def _make_context(self, name: str, bits: int | None, seed: int) -> Any:
        if name == "bf16":
            return _Both(baselines.SparseAutocast(), torch.autocast(self.device.type, torch.bfloat16))
        if name == "checkpoint":
            from torch.utils.checkpoint import checkpoint

            self._call = partial(checkpoint, use_reentrant=False)
        if name == "save_on_cpu":
            return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")
        if name.startswith("exact"):
            return baselines.Exact(2, 1 / 8 if name.endswith("rp") else 1.0, seed)
        if name.startswith("crs"):
            return baselines.ColumnRowSampling(1 / 8, seed)
        if name.startswith("compress"):
            import graphlossy

            return graphlossy.compress(bits=bits)
        return nullcontext()

    def loss(self, x: Tensor, graph: Tensor, y: Tensor, train: Tensor) -> Tensor:
        """The forward pass and the loss, under the method; what the method did with both is in :attr:`ledger`."""
        with self._context as entered:
            self.ledger = entered if self.name.startswith("compress") else None
            out = self.model(x, graph) if self._call is None else self.model(x, graph, self._call)
            return F.cross_entropy(out[train].float(), y[train])

    def losses(self) -> Any:
        """The losses of one pass over the training nodes, one by one."""
        problem = self.problem
        if self.updates == 1:
            yield self.loss(problem.x, self.graph, problem.y, problem.train)
            return
        nodes = problem.x.size(0)
        chosen = torch.zeros(nodes, dtype=torch.bool, device=self.device)
        chosen[problem.train] = True
        for part, edges in baselines.random_subgraphs(problem.edge_index, nodes, PARTS, self._generator):
            graph = self._graph(edges, part.numel())
            yield self.loss(problem.x[part], graph, problem.y[part], chosen[part].nonzero().squeeze(1))

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """One epoch: forward, backward and update, for each loss."""
        total = 0.0
        for loss in self.losses():
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / self.updates


class _Both:
    """Two contexts as one that can be entered again."""

    def __init__(self, *contexts: Any) -> None:
        self._contexts, self._entered = contexts, [ExitStack()]

    def __enter__(self) -> None:
        stack = ExitStack()
        for context in self._contexts:
            stack.enter_context(context)
        self._entered.append(stack)

    def __exit__(self, *exc: Any) -> None:
        self._entered.pop().__exit__(*exc)
