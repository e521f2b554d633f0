"""Graphs of two thousand nodes and the same numbers measured on them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_csr_tensor

import graphlossy

NODES, EDGES, FEATURES, CLASSES = 2111, 9470, 48, 7


@pytest.fixture(scope="session")
def data() -> Data:
    """Random edges with hubs, so that nothing about degrees is as in the plan's own probes."""
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(NODES, (EDGES,), generator=generator)
    target = (NODES * torch.rand(EDGES, generator=generator) ** 3).long()
    keep = (source * NODES + target).unique()
    train = torch.rand(NODES, generator=generator) < 0.4
    return Data(
        x=torch.randn(NODES, FEATURES, generator=generator),
        edge_index=torch.stack([keep // NODES, keep % NODES]),
        y=torch.randint(CLASSES, (NODES,), generator=generator).index_fill_(0, torch.tensor([0]), CLASSES - 1),
        train_mask=train,
    )


def adjacency(data: Data, kind: str) -> Tensor:
    if kind == "edge_index":
        return data.edge_index
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_torch_csr_tensor(data.edge_index.flip(0), size=(NODES, NODES))


@pytest.fixture
def measured(data: Data) -> Callable[[nn.Module, str, int | None], int]:
    """Saved bytes of a training step that really runs, from the ledger."""

    def run(model: nn.Module, kind: str, bits: int | None) -> int:
        model.train()
        rows = data.train_mask.nonzero().squeeze(1)
        adj = adjacency(data, kind)
        for _ in range(2):  # the first pass may fill caches
            with graphlossy.compress(bits=bits) as ledger:
                loss = F.cross_entropy(model(data.x, adj)[rows], data.y[rows])
            loss.backward()
        del loss
        gc.collect()
        return ledger.saved_bytes

    return run
