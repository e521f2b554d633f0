"""torch.ops.quantized: rows within the bound that is stated, bags as torch's, and refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graphlossy.recsys import IdError, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.export import QuantizedBag, QuantizedTable, fold_dense, save_tables, to_torch_quantized

V, D = 60, 12
SIZES = torch.tensor([0, 1, 2, 4, 12])[torch.arange(V) % 5]


@given(
    bits=st.sampled_from([8, 4, 2]),
    dim=st.integers(1, 17),
    scale=st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 100.0, 9e3]),
    shift=st.sampled_from([0.0, 1.0, -700.0]),
)
def test_rows_are_within_the_bound(bits: int, dim: int, scale: float, shift: float) -> None:
    table = nn.Embedding.from_pretrained(torch.randn(20, dim) * scale + shift)
    packed = to_torch_quantized(table, bits)
    error = (packed.weight - table.weight).abs().amax(1)
    assert bool((error <= packed.error_bound).all())
    assert packed.nbytes == 20 * (-(-dim * bits // 8) + (8 if bits == 8 else 4))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_bound_is_half_a_step(bits: int) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES)
    packed, dense = to_torch_quantized(table, bits), table.weight.detach()
    step = (dense.amax(1) - dense.amin(1)) / (2**bits - 1)
    own = SIZES > 0
    assert bool((packed.error_bound[own] <= (0.5 + 0.01) * step[own] + 2.0**-11 * dense[own].abs().amax(1)).all())
    error = (packed(torch.arange(V)) - dense).abs().amax(1)
    assert bool((error <= packed.error_bound).all()) and float(error.max()) > 0.3 * float(step.max())
    assert not bool(packed.weight[~own].any())  # rows of zeros stay exactly that


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("bits", [8, 4])
def test_bags_pool_as_torch_does(mode: str, padding_idx: int | None, bits: int) -> None:
    table = MultiSizeEmbeddingBag(V, D, mode=mode, padding_idx=padding_idx, sizes=SIZES)
    packed = to_torch_quantized(table, bits)
    assert isinstance(packed, QuantizedBag)
    rows = nn.EmbeddingBag.from_pretrained(packed.weight, mode=mode, padding_idx=padding_idx)
    ids = torch.randint(0, V, (30,))
    ids[:8] = 3
    for offsets in (torch.tensor([0, 5, 5, 8, 30]), torch.tensor([0]), torch.empty(0, dtype=torch.int64)):
        given_ids = ids if offsets.numel() else ids[:0]
        assert torch.allclose(packed(given_ids, offsets), rows(given_ids, offsets), atol=1e-5)
    assert torch.allclose(packed(ids.view(5, 6)), rows(ids.view(5, 6)), atol=1e-5)
    if mode == "sum":
        weights = torch.rand(5, 6)
        want = rows(ids.view(5, 6), per_sample_weights=weights)
        assert torch.allclose(packed(ids.view(5, 6), None, weights), want, atol=1e-5)


def test_last_offset_and_lookups_of_any_shape() -> None:
    bag = to_torch_quantized(nn.EmbeddingBag(V, D, mode="sum", include_last_offset=True))
    ids = torch.tensor([1, 2, 3])
    want = torch.stack([bag.weight[1], bag.weight[2] + bag.weight[3]])
    assert torch.allclose(bag(ids, torch.tensor([0, 1, 3])), want, atol=1e-6)
    table = to_torch_quantized(nn.Embedding(V, D))
    assert table(ids.view(3, 1, 1)).shape == (3, 1, 1, D) and table(ids[:0]).shape == (0, D)
    assert not table(ids).requires_grad


def test_a_model_has_its_tables_replaced() -> None:
    model = nn.Sequential(MultiSizeEmbedding(V, D, sizes=SIZES, padding_idx=3), nn.Linear(D, 1))
    packed = to_torch_quantized(model, 8)
    assert isinstance(packed[0], QuantizedTable) and packed[0].padding_idx == 3
    assert isinstance(model[0], MultiSizeEmbedding)
    ids = torch.arange(V)
    bound = float(packed[0].error_bound.max() * model[1].weight.detach().abs().sum())
    assert float((packed(ids) - model(ids)).detach().abs().max()) <= bound + 1e-6


def test_max_norm_is_applied_before() -> None:
    for table in (nn.Embedding(V, D, max_norm=0.5), MultiSizeEmbedding(V, D, sizes=SIZES, max_norm=0.5)):
        before = table.weight.detach().clone()
        packed = to_torch_quantized(table, 8)
        assert torch.equal(table.weight, before)
        assert float(packed.weight.norm(dim=1).max()) < 0.51
        ids = torch.arange(V)
        error = (packed(ids) - table(ids).detach()).abs().amax(1)
        assert bool((error <= packed.error_bound).all())


def test_a_fresh_process_looks_up_the_same(tmp_path: Path) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES)
    tables = {f"{bits}": to_torch_quantized(table, bits) for bits in (8, 4, 2)}
    save_tables(tables, tmp_path / "tables")
    torch.save(table.weight.detach(), tmp_path / "rows.pt")
    code = """
import sys, torch
from graphlossy.recsys.export import load_tables
rows, ids = torch.load(sys.argv[2]), torch.arange(60)
for table in load_tables(sys.argv[1]).values():
    assert bool(((table(ids) - rows).abs().amax(1) <= table.error_bound).all())
    print(table.bits)
"""
    paths = [str(tmp_path / "tables"), str(tmp_path / "rows.pt")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout.split() == ["8", "4", "2"], done.stderr


def test_folds_back() -> None:
    packed = to_torch_quantized(MultiSizeEmbeddingBag(V, D, sizes=SIZES, mode="sum"), 4)
    dense = fold_dense(packed)
    assert isinstance(dense, nn.EmbeddingBag) and torch.equal(dense.weight, packed.weight)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"bits must be one of \(8, 4, 2\), got 3"):
        to_torch_quantized(nn.Embedding(V, D), 3)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got Tensor"):
        to_torch_quantized(torch.zeros(V, D))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no embedding table"):
        to_torch_quantized(nn.Linear(2, 2))
    table = nn.Embedding(V, D)
    for value, bits in ((float("nan"), 8), (float("inf"), 8), (1e5, 4), (-1e5, 2)):
        with torch.no_grad():
            table.weight[7, 2] = value
        with pytest.raises(ValueError, match="row 7 has values from"):
            to_torch_quantized(table, bits)
    packed = to_torch_quantized(MultiSizeEmbedding(V, D, sizes=4))
    packed.name = "item"
    for wrong in (V, -1, 2**40):
        with pytest.raises(IdError, match=f"feature 'item': id {wrong} is not in the table of {V} tokens"):
            packed(torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match="looked up on the CPU"):
        to_torch_quantized(nn.Embedding(V, D)).to("meta").rows(torch.tensor([1]))
