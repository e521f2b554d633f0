"""Dense folds: ordinary modules with the same outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graphlossy.recsys import BagOf, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.export import fold_dense
from graphlossy.recsys.tables import KINDS

V, D = 60, 12
SIZES = torch.tensor([0, 1, 2, 4, 12])[torch.arange(V) % 5]
IDS = torch.arange(V)


class Model(nn.Module):
    """Two fields that share a table, a bag of it, a plain table and a layer on top."""

    def __init__(self) -> None:
        super().__init__()
        self.user = MultiSizeEmbedding(V, D, sizes=SIZES, padding_idx=2).quantize_(4)
        self.friend = self.user
        self.liked = BagOf(self.user, "mean")
        self.item = MultiSizeEmbeddingBag(V, D, sizes=SIZES, mode="sum", padding_idx=1)
        self.plain = nn.Embedding(V, D)
        self.top = nn.Linear(D, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.user(ids) + self.friend(ids.flip(0)) + self.plain(ids)
        return self.top(rows + self.liked(ids.view(-1, 1)) + self.item(ids.view(-1, 1)))


def test_a_model_has_the_same_outputs() -> None:
    model = Model().eval()
    dense = fold_dense(model)
    kinds = {name: type(module) for name, module in dense.named_children()}
    assert kinds == {
        "user": nn.Embedding,
        "liked": nn.EmbeddingBag,
        "item": nn.EmbeddingBag,
        "plain": nn.Embedding,
        "top": nn.Linear,
    }
    assert dense.friend is dense.user and dense.liked.weight is dense.user.weight
    assert isinstance(model.user, MultiSizeEmbedding) and dense.top.weight is not model.top.weight
    assert not dense.training and not dense.user.training
    with torch.no_grad():
        assert float((dense(IDS) - model(IDS)).abs().max()) < 1e-6
    assert dense.user.padding_idx == 2 and (dense.item.mode, dense.item.padding_idx) == ("sum", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_folds(kind: str) -> None:
    table = KINDS[kind].for_budget(V, D, 2000)
    dense = fold_dense(table)
    assert type(dense) is nn.Embedding and dense.weight.requires_grad
    with torch.no_grad():
        assert float((dense(IDS) - table(IDS)).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_the_same_bits(dtype: torch.dtype) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, shared_rows=5, dtype=dtype, sparse=True)
    dense = fold_dense(table)
    assert dense.weight.dtype == dtype and dense.sparse
    assert torch.equal(dense(IDS), table(IDS))


def test_settings_and_frozen_tables() -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, max_norm=0.5, norm_type=1.0, scale_grad_by_freq=True)
    dense = fold_dense(table.requires_grad_(False))
    assert (dense.max_norm, dense.norm_type, dense.scale_grad_by_freq) == (0.5, 1.0, True)
    assert not dense.weight.requires_grad
    with torch.no_grad():
        assert float((dense(IDS) - table(IDS)).abs().max()) < 1e-6


def test_more_rows_than_one_block() -> None:
    table = MultiSizeEmbedding(70_001, 64, sizes=torch.arange(70_001) % 3)
    assert torch.equal(fold_dense(table).weight, table(torch.arange(70_001)))


def test_a_fresh_process_without_this_package(tmp_path: Path) -> None:
    table = MultiSizeEmbeddingBag(V, D, sizes=SIZES, mode="sum", padding_idx=1).quantize_(4)
    bags = torch.randint(0, V, (9, 5))
    torch.save({"state": fold_dense(table).state_dict(), "bags": bags, "out": table(bags)}, tmp_path / "dense.pt")
    code = """
import sys, torch
data = torch.load(sys.argv[1])
bag = torch.nn.EmbeddingBag(60, 12, mode="sum", padding_idx=1)
bag.load_state_dict(data["state"])
print(float((bag(data["bags"]) - data["out"]).abs().max().detach()) < 1e-6, "graphlossy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "dense.pt")], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got dict"):
        fold_dense({"a": nn.Embedding(2, 2)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no embedding table"):
        fold_dense(nn.Linear(2, 2))
