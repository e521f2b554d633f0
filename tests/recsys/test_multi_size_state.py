"""`MultiSizeEmbedding`: what is saved and loaded, copies and conversions, low-bit rows, dense tables in and out."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from graphlossy.recsys import MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.rows import LowBitRows, low_bit_rows_of

TOKENS, WIDTH = 700, 16
SIZES = torch.tensor([16, 6, 6, 3, 0])[torch.randint(0, 5, (TOKENS,), generator=torch.Generator().manual_seed(3))]
FORMS: dict[str, dict[str, Any]] = {
    "nested": {"sizes": SIZES},
    "per_size": {"sizes": SIZES, "projection": "per_size"},
    "shared": {"sizes": SIZES, "shared_rows": 13, "shared_size": 5},
    "other sizes": {"sizes": SIZES.flip(0).clamp(max=7)},
    "narrow": {"sizes": 4},
    "full": {"sizes": None},
    "nothing": {"sizes": 0},
}
BITS: list[dict[str, Any] | None] = [
    None, {"bits": 4}, {"bits": 2, "group_size": 32}, {"bits": 8, "trainable": True}, {"bits": 4, "trainable": True},
]  # fmt: skip
IDS = torch.arange(TOKENS)


def make(form: str, bits: dict[str, Any] | None = None, **options: Any) -> MultiSizeEmbedding:
    table = MultiSizeEmbedding(TOKENS, WIDTH, **(FORMS[form] | options))
    return table if bits is None else table.quantize_(**bits)


def through_a_file(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("into", ["nested", "per_size", "full"])
def test_state_loads_into_a_module_of_another_form(form: str, bits: dict[str, Any] | None, into: str) -> None:
    table = make(form, bits)
    model = torch.nn.ModuleDict({"user": make(into)})
    model["user"](IDS)  # whatever it keeps of its form must go
    model.load_state_dict({f"user.{name}": t for name, t in through_a_file(table.state_dict()).items()})
    fresh = model["user"]
    assert torch.equal(fresh(IDS), table(IDS)) and torch.equal(fresh.sizes, table.sizes)
    torch.testing.assert_close(fresh.weight, table.weight)
    queries = torch.randn(3, WIDTH)
    assert torch.equal(fresh.scores(queries), table.scores(queries))
    assert fresh.nbytes == table.nbytes and fresh.state_dict().keys() == table.state_dict().keys()
    if fresh(IDS).requires_grad:
        fresh(IDS).sum().backward()
        table(IDS).sum().backward()
        for (name, a), (_, b) in zip(sorted(fresh.named_parameters()), sorted(table.named_parameters()), strict=True):
            torch.testing.assert_close(a.grad.to_dense(), b.grad.to_dense(), msg=lambda m, name=name: f"{name}: {m}")


def test_low_bit_rows_become_float_again() -> None:
    table, fresh = make("nested"), make("nested", {"bits": 4})
    fresh(IDS)
    fresh.load_state_dict(table.state_dict())
    assert torch.equal(fresh(IDS), table(IDS))


def test_state_of_another_table_is_refused() -> None:
    state = make("nested").state_dict()
    for options in ({"num_embeddings": TOKENS + 64}, {"num_embeddings": TOKENS - 64}, {"embedding_dim": WIDTH + 1}):
        shape = {"num_embeddings": TOKENS, "embedding_dim": WIDTH} | options
        other = MultiSizeEmbedding(**shape, sizes=3)
        with pytest.raises(RuntimeError, match="size mismatch|tokens|width"):
            other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key|missing"):
        make("nested").load_state_dict({name: t for name, t in state.items() if name != "planes"})


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("form", ["nested", "shared"])
def test_nbytes_is_the_size_of_the_file(form: str, bits: dict[str, Any] | None, tmp_path: Path) -> None:
    options = {name: value for name, value in FORMS[form].items() if name != "sizes"}
    tokens = TOKENS * 400
    table = MultiSizeEmbedding(tokens, WIDTH, sizes=SIZES.repeat(400), **options)
    if bits is not None:
        table.quantize_(**bits)
    torch.save(table.state_dict(), tmp_path / "table.pt")
    save_file(table.state_dict(), tmp_path / "table.safetensors")
    for file in tmp_path.iterdir():
        assert file.stat().st_size == pytest.approx(table.nbytes, rel=0.01), file.suffix
    fresh = MultiSizeEmbedding(tokens, WIDTH, sizes=1)
    fresh.load_state_dict(load_file(tmp_path / "table.safetensors"))
    assert torch.equal(fresh(IDS), table(IDS))


def memory_of(module: torch.nn.Module) -> int:
    """Bytes of all storages that the module's tensors are in."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("form", ["nested", "shared", "full"])
@pytest.mark.parametrize("how", ["deepcopy twice", "pickle"])
def test_copies(form: str, bits: dict[str, Any] | None, how: str) -> None:
    table = make(form, bits)
    expected = table(IDS).detach().clone()
    if how == "pickle":
        file = io.BytesIO()
        torch.save(table, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(copy.deepcopy(table))
    assert torch.equal(other(IDS), expected)
    assert memory_of(other) <= memory_of(table) + 64
    with torch.no_grad():
        for t in (*other.parameters(), *other.buffers()):
            if not t.is_floating_point():
                t.zero_()
            elif t.numel() and t.untyped_storage().nbytes() >= t.numel() * t.element_size():
                t.add_(1.0)
    assert torch.equal(table(IDS), expected)
    for rows in other.tables.values():
        if isinstance(rows, LowBitRows) and rows.trainable is not None:
            assert low_bit_rows_of(rows.trainable) is rows


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("form", ["nested", "per_size", "shared", "full"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_conversion(form: str, bits: dict[str, Any] | None, dtype: torch.dtype) -> None:
    table = make(form, bits)
    expected = table.weight.detach()
    other = copy.deepcopy(table)
    other = other.half() if dtype == torch.float16 else other.to(dtype)
    found = other(IDS)
    assert other.dtype == found.dtype == dtype and torch.equal(other.sizes, SIZES if form != "full" else table.sizes)
    eps = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    bound = eps * 16 * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=bound)
    queries = torch.randn(3, WIDTH).to(dtype)
    found = other.scores(queries)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), queries.float() @ expected.T, rtol=0, atol=bound * 16)
    if other(IDS).requires_grad:
        other(IDS).sum().backward()
    if bits is None:
        assert all(p.dtype == dtype for p in other.parameters())


@pytest.mark.parametrize("bits", [b for b in BITS if b], ids=str)
@pytest.mark.parametrize("form", list(FORMS))
def test_low_bit_rows_are_the_dequantised_table(form: str, bits: dict[str, Any]) -> None:
    table = make(form, bits)
    plain = make(form)
    state = {name: t for name, t in table.state_dict().items() if not name.startswith("tables")}
    rows = {f"tables.{key}.weight": rows.dense() for key, rows in table.tables.items()}
    plain.load_state_dict(state | rows)
    torch.testing.assert_close(table(IDS), plain(IDS))
    queries = torch.randn(4, WIDTH)
    torch.testing.assert_close(table.scores(queries), plain.scores(queries))
    if bits.get("trainable"):
        for rows in table.tables.values():
            assert torch.equal(rows.read(torch.arange(rows.shape[0])), rows.dense())


@pytest.mark.parametrize("form", ["nested", "shared", "full"])
def test_gradients_of_trainable_low_bit_rows(form: str) -> None:
    table, plain = make(form, {"bits": 8, "trainable": True}), make(form, sparse=True)
    state = {name: t for name, t in table.state_dict().items() if not name.startswith("tables")}
    plain.load_state_dict(state | {f"tables.{key}.weight": rows.dense() for key, rows in table.tables.items()})
    ids, upstream = torch.randint(0, TOKENS, (200,)), torch.randn(200, WIDTH)
    table(ids).backward(upstream)
    plain(ids).backward(upstream)
    for key in table.tables:
        found = table.tables[key].handle.grad
        assert found.is_sparse
        torch.testing.assert_close(found.to_dense(), plain.tables[key].weight.grad.to_dense())
    for key in table.projections:
        torch.testing.assert_close(table.projections[key].grad, plain.projections[key].grad)


def test_stochastic_rounding_is_right_on_average() -> None:
    table = make("full")
    before = table.weight.detach()
    found = [copy.deepcopy(table).quantize_(2, rounding="stochastic", seed=seed).weight for seed in range(200)]
    step = 2 * float(before.abs().max()) / 3  # at most, of two codes
    assert (torch.stack(found).mean(0) - before).abs().max() < 6 * step / 2 / 200**0.5
    assert (found[0] - before).abs().max() > 0.3 * step


def test_moving_keeps_what_an_optimizer_has() -> None:
    table = make("nested", {"bits": 8, "trainable": True})
    handles = [rows.trainable for rows in table.tables.values()]
    table(IDS).sum().backward()
    for moved in (table.to("cpu"), table.float(), table.half()):
        for rows, handle in zip(moved.tables.values(), handles, strict=True):
            assert rows.trainable is handle and handle.grad is not None
    table.requires_grad_(False)
    assert not any(p.requires_grad for p in copy.deepcopy(table.double()).parameters())


def test_full_rows_of_a_dense_table_are_exact() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        dense = torch.randn(TOKENS, WIDTH, dtype=dtype)
        table = MultiSizeEmbedding.from_pretrained(dense, sizes=WIDTH)
        assert torch.equal(table.weight, dense) and not table.tables["16"].weight.requires_grad
        assert torch.equal(table.to_dense().weight, dense)


@pytest.mark.parametrize("projection", ["nested", "per_size"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_narrow_rows_are_the_closest(projection: str, dtype: torch.dtype) -> None:
    dense = torch.randn(300, WIDTH, dtype=dtype) * torch.arange(1, WIDTH + 1)
    table = MultiSizeEmbedding.from_pretrained(dense, sizes=5, projection=projection, freeze=False)
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    error = (table.weight.detach() - dense).square().sum()
    torch.testing.assert_close(error, s[5:].square().sum(), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)
    low = (u[:, :3] * s[:3]) @ v[:3] if projection == "nested" else None
    if low is not None:  # a table that can be had exactly is had exactly
        again = MultiSizeEmbedding.from_pretrained(low, sizes=3)
        torch.testing.assert_close(again.weight, low, rtol=1e-3, atol=1e-3)


def test_bag_keeps_its_settings() -> None:
    bag = MultiSizeEmbeddingBag(TOKENS, WIDTH, mode="sum", padding_idx=3, include_last_offset=True, sizes=SIZES)
    dense = bag.to_dense()
    assert (dense.mode, dense.padding_idx, dense.include_last_offset) == ("sum", 3, True)
    fresh = MultiSizeEmbeddingBag(TOKENS, WIDTH, mode="sum", padding_idx=3, include_last_offset=True)
    fresh.load_state_dict(bag.state_dict())
    offsets = torch.tensor([0, 3, 9])
    assert torch.equal(fresh(IDS[:9], offsets), bag(IDS[:9], offsets))
