"""`ExportableTable`: the same rows from plain operators, and through torch.export in a process without this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy.recsys import BagOf, IdError, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.export import ExportableTable, exportable, to_torch_quantized
from graphlossy.recsys.tables import KINDS

V, D = 130, 16
SIZES = torch.tensor([0, 1, 2, 4, 16])[torch.arange(V) % 5]
IDS = torch.arange(V)


def error(got: Tensor, want: Tensor) -> float:
    """Relative to the largest element."""
    assert got.dtype == want.dtype and got.shape == want.shape
    return float((got - want).detach().abs().max() / want.detach().abs().max().clamp(min=1e-30))


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=70),
    projection=st.sampled_from(["nested", "per_size"]),
    shared=st.sampled_from([0, 5]),
    bits=st.sampled_from([0, 1, 2, 4, 8]),
    trainable=st.booleans(),
)
def test_rows_of_any_table(sizes: list[int], projection: str, shared: int, bits: int, trainable: bool) -> None:
    table = MultiSizeEmbedding(len(sizes), 12, sizes=sizes, projection=projection, shared_rows=shared)
    if bits:
        table.quantize_(bits, group_size=16, trainable=trainable)
    ids = torch.arange(len(sizes)).repeat(2)
    assert error(ExportableTable(table)(ids), table(ids)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, dtype=dtype)
    bound = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)
    assert error(ExportableTable(table)(IDS), table(IDS)) < bound


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_folded(kind: str) -> None:
    table = KINDS[kind].for_budget(V, D, 4000, padding_idx=3)
    static = ExportableTable(table)
    assert error(static(IDS), table(IDS)) < 1e-6
    assert static.flat.shape == (V, D) and static.place is None  # one gather
    small = ExportableTable(table, bits=8)
    assert small.nbytes < 0.35 * static.nbytes
    assert error(small(IDS), table(IDS)) < 0.01


def test_bits_round_as_quantize_does() -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES)
    static = ExportableTable(table, bits=4)
    assert error(static(IDS), table.quantize_(4)(IDS)) < 1e-6
    packed = to_torch_quantized(table, 4)
    assert error(ExportableTable(packed)(IDS), packed(IDS)) == 0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_bags(mode: str, padding_idx: int | None) -> None:
    bags = torch.randint(0, V, (8, 5))
    bags[1, 2:], bags[2] = 4, 4
    for bag in (
        MultiSizeEmbeddingBag(V, D, mode=mode, padding_idx=padding_idx, sizes=SIZES),
        BagOf(MultiSizeEmbedding(V, D, padding_idx, sizes=SIZES), mode),
        nn.EmbeddingBag(V, D, mode=mode, padding_idx=padding_idx),
    ):
        static = ExportableTable(bag)
        assert error(static(bags), bag(bags)) < 1e-6
        if mode == "sum":
            weights = torch.rand(8, 5)
            assert error(static(bags, weights), bag(bags, None, weights)) < 1e-6
        else:
            with pytest.raises(ValueError, match="per_sample_weights need mode='sum'"):
                static(bags, torch.rand(8, 5))
        with pytest.raises(ValueError, match=r"must be \[bags, length\], got shape \(3,\); pad it"):
            static(IDS[:3])


def test_shape_weight_and_bytes() -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, max_norm=0.7)
    static = ExportableTable(table)
    assert static(IDS.view(2, 5, 13)).shape == (2, 5, 13, D) and static(IDS[:0]).shape == (0, D)
    assert torch.equal(static.weight, static(IDS.to(torch.int32)))
    assert error(static.weight, table(IDS)) < 1e-6
    assert static.nbytes == sum(t.nbytes for t in static.state_dict().values())
    # 4 bytes a token and the numbers of five buckets instead of the bits of the map
    assert static.nbytes <= table.nbytes + 4 * V + 5 * 7 * 8 + 4


@pytest.mark.parametrize("wrong", [V, V + 3, -1, -V, 2**40, -(2**40)])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("sizes", [4, SIZES])
def test_unknown_ids(wrong: int, bits: int | None, sizes: int | Tensor) -> None:
    table = MultiSizeEmbedding(V, D, sizes=sizes)
    ids = torch.tensor([5, wrong])
    static = ExportableTable(table, bits=bits)
    static.name = "item"
    with pytest.raises(IdError, match=rf"feature 'item': id {wrong} is not in the table of {V} tokens"):
        static(ids)
    replaced = ExportableTable(table, unknown=7, bits=bits)
    assert torch.equal(replaced(ids), static(torch.tensor([5, 7])))
    table = static.requires_grad_(False)
    program = torch.export.export(table, (IDS[:2],)).module()
    with pytest.raises(IndexError, match="index out of range"):
        program(ids)


def test_a_model_through_torch_export_in_a_fresh_process(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item = MultiSizeEmbedding(V, D, sizes=SIZES, shared_rows=5).quantize_(4)
            self.liked = MultiSizeEmbeddingBag(V, D, sizes=SIZES, padding_idx=1, projection="per_size")
            self.user = nn.Embedding(V, D)
            self.top = nn.Linear(D, 1)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            rows = self.item(batch["item"]) * self.user(batch["user"]) + self.liked(batch["liked"])
            return self.top(rows).squeeze(1)

    def batch(count: int) -> dict[str, Tensor]:
        return {
            "item": torch.randint(0, V, (count,)),
            "user": torch.randint(0, V, (count,)),
            "liked": torch.randint(0, V, (count, 4)),
        }

    model = Model().eval()
    static = exportable(model, unknown=0)
    assert {type(m) for name, m in static.named_children() if name != "top"} == {ExportableTable}
    assert isinstance(model.item, MultiSizeEmbedding)
    size = torch.export.Dim("batch")
    program = torch.export.export(static, (batch(3),), dynamic_shapes=(dict.fromkeys(batch(1), {0: size}),))
    torch.export.save(program, tmp_path / "model.pt2")
    given_batch = batch(50)
    with torch.no_grad():
        want = model(given_batch)
    torch.save({"batch": given_batch, "want": want}, tmp_path / "data.pt")
    code = """
import sys, torch
model, data = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])
with torch.no_grad():
    error = float((model(data["batch"]) - data["want"]).abs().max())
    data["batch"]["item"][0] = 10**12
    model(data["batch"])
print(error < 1e-5, "graphlossy" in sys.modules)
"""
    paths = [str(tmp_path / "model.pt2"), str(tmp_path / "data.pt")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_refusals() -> None:
    table = MultiSizeEmbedding(V, D, sizes=4)
    for unknown in (V, -1, True, 1.5, "zero"):
        with pytest.raises(ValueError, match=rf"unknown must be 'error' or a token from 0 to {V - 1}"):
            ExportableTable(table, unknown)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bits must be None .* or one of \(1, 2, 4, 8\), got 3"):
        ExportableTable(table, bits=3)
    with pytest.raises(ValueError, match="has no tokens"):
        ExportableTable(MultiSizeEmbedding(0, D))
    with pytest.raises(ValueError, match="no embedding table"):
        exportable(nn.Linear(2, 2))
