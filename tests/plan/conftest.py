"""A graph of three thousand nodes, and what training steps on it really keep."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_csr_tensor

import graphlossy

NODES, EDGES, FEATURES, CLASSES = 2111, 9470, 48, 7


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture(scope="session")
def live() -> ModuleType:
    """The benchmarks' own count of live tensors: it shares nothing with the plan's and believes no ledger."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "_live.py"
    spec = importlib.util.spec_from_file_location("plan_live", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data() -> Data:
    """Random edges with hubs and isolated nodes, so that nothing about degrees is as in the plan's own probes."""
    return make_data(NODES, EDGES)


def make_data(nodes: int, edges: int) -> Data:
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(nodes, (edges,), generator=generator)
    target = (nodes * torch.rand(edges, generator=generator) ** 3).long()
    pairs = (source * nodes + target).unique()
    return Data(
        x=torch.randn(nodes, FEATURES, generator=generator),
        edge_index=torch.stack([pairs // nodes, pairs % nodes]),
        y=torch.randint(CLASSES, (nodes,), generator=generator).index_fill_(0, torch.tensor([0]), CLASSES - 1),
        train_mask=torch.rand(nodes, generator=generator) < 0.4,
    )


class Measured(NamedTuple):
    """Of the second training step; ``live`` and ``peak`` by :mod:`benchmarks._live`."""

    saved: int
    live: int
    peak: int


@pytest.fixture
def measured(live: ModuleType) -> Callable[..., Measured]:
    """Runs training steps on real data: ``measured(model, data, "csr", bits=2)``; plain without an option."""

    def run(model: nn.Module, data: Data, kind: str = "edge_index", **options: Any) -> Measured:
        rows = data.train_mask.nonzero().squeeze(1)
        adj = adjacency(data) if kind == "csr" else data.edge_index
        saving = graphlossy.compress(**options) if options else contextlib.nullcontext()
        model.train()

        with live.LiveBytes() as counter:
            for _ in range(2):  # the first step may fill caches, and teaches a budget
                model.zero_grad(set_to_none=True)
                before = counter.bytes
                with saving as ledger:
                    loss = F.cross_entropy(model(data.x, adj)[rows], data.y[rows])
                gc.collect(1)
                held = counter.bytes - before
                loss.backward()
                del loss
        return Measured(held if ledger is None else ledger.saved_bytes, held, counter.peak)

    return run


def adjacency(data: Data) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_torch_csr_tensor(data.edge_index.flip(0), size=(data.num_nodes, data.num_nodes))


@pytest.fixture(scope="session")
def larger() -> Data:
    """Larger than any probe, so that nothing of its size is run."""
    return make_data(10_000, 40_000)
