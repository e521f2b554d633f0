"""Tables with shared or flat storage trained by the optimizers of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW
from graphlossy.recsys.tables import KINDS
from graphlossy.recsys.train._optimizers import make_optimizers
from graphlossy.recsys.train.config import FitConfig

OPTIONS = {
    "hash": {"rows": 5}, "qr": {"buckets": 5}, "tt": {"ranks": 2}, "robe": {"size": 40}, "pruned": {"kept": 30},
    "dhe": {"num_hashes": 4, "width": 4},
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adamw", "rowwise_adagrad"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_table_trains_with_every_optimizer(kind: str, optimizer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind](20, 4, **OPTIONS[kind]), nn.Linear(4, 1))
    optimizers = make_optimizers(model, FitConfig(optimizer=optimizer, lr=0.05))
    before = [param.detach().clone() for param in model.parameters()]
    losses = []
    for _ in range(30):
        loss = (model(torch.arange(20)).squeeze(1) - torch.linspace(0, 1, 20)).square().mean()
        losses.append(float(loss.detach()))
        for one in optimizers:
            one.zero_grad()
        loss.backward()
        for one in optimizers:
            one.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model[0].sparse == (optimizer != "adam" and kind != "dhe")


@pytest.mark.parametrize("kind", [SparseAdamW, RowwiseAdagrad])
def test_sparse_steps_of_a_flat_parameter_are_the_dense_ones(kind: type[torch.optim.Optimizer]) -> None:
    flat, dense = (nn.Parameter(torch.arange(1.0, 7.0)) for _ in range(2))
    optimizers = [kind([param], lr=0.1, weight_decay=0.5) for param in (flat, dense)]
    for _ in range(3):
        grad = torch.randn(6)
        flat.grad, dense.grad = grad.to_sparse(), grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(flat, dense)


def test_elements_of_a_flat_parameter_wait_for_their_decay() -> None:
    flat = nn.Parameter(torch.ones(6))
    optimizer = SparseAdamW([flat], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        flat.grad = torch.sparse_coo_tensor([[1]], [1.0], (6,), check_invariants=False)
        optimizer.step()
    assert flat[0] == 1 and flat[1] < 1
    optimizer.catch_up()
    torch.testing.assert_close(flat.detach()[[0, 5]], torch.full((2,), 0.95**3))
