"""Plans: bytes predicted, modules built, files written whole and read back, and what is said of damaged ones."""

from __future__ import annotations

import builtins
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graphlossy.recsys import BagOf, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.plan import EmbeddingPlan, TablePlan
from graphlossy.recsys.tables import KINDS, PrunedEmbedding

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = torch.tensor([16, 8, 8, 4, 2, 1, 1, 0, 0, 0])


def table_plan(**rest: object) -> TablePlan:
    return TablePlan(
        **({"name": "user", "num_embeddings": 10, "embedding_dim": 16, "kind": "multi_size", "sizes": SIZES} | rest)
    )


def plan_of(*tables: TablePlan) -> EmbeddingPlan:
    settings = {"alpha": 0.5, "retrain": True, "keep_values": False}
    return EmbeddingPlan("frequency", "before", tables or (table_plan(),), 900, 3, 0.25, 12345, 7, settings)


@given(
    bits=st.sampled_from([0, 2, 4, 8]),
    when=st.sampled_from(["after", "training"]),
    group_size=st.sampled_from([8, 64]),
    projection=st.sampled_from(["nested", "per_size"]),
    shared=st.sampled_from([(0, 0), (2, 0), (3, 4)]),
    bag=st.booleans(),
    keep=st.booleans(),
)
def test_bytes_are_those_of_the_finished_module(
    bits: int, when: str, group_size: int, projection: str, shared: tuple[int, int], bag: bool, keep: bool
) -> None:
    plan = table_plan(
        bits=bits, bits_when=when, group_size=group_size, projection=projection, shared_rows=shared[0],
        shared_size=shared[1],
    )  # fmt: skip
    old = nn.EmbeddingBag(10, 16, mode="sum") if bag else nn.Embedding(10, 16)
    module = plan.finish(plan.build(old, keep))
    assert module.nbytes == plan.nbytes
    assert isinstance(module, MultiSizeEmbeddingBag if bag else MultiSizeEmbedding)
    assert torch.equal(module.sizes, SIZES)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("bag", [False, True])
def test_other_kinds_are_built_from_their_options(kind: str, bag: bool) -> None:
    mask = torch.rand(500, 16) < 0.1 if kind == "pruned" else None
    options = {} if kind == "pruned" else KINDS[kind].options_for_budget(500, 16, 8000)
    plan = TablePlan("t", 500, 16, kind, options=options, mask=mask)
    old = (
        nn.EmbeddingBag(500, 16, mode="mean", include_last_offset=True) if bag else nn.Embedding(500, 16, padding_idx=0)
    )
    new = plan.build(old)
    assert new.nbytes == plan.nbytes <= 8000 and plan.dense_nbytes == 32_000
    if bag:
        assert isinstance(new, BagOf) and (new.mode, new.include_last_offset) == ("mean", True)
    else:
        assert new.padding_idx == 0 and new(torch.tensor([[1, 2]])).shape == (1, 2, 16)
        assert not new(torch.tensor([0])).any()
    with pytest.raises(ValueError, match="max_norm"):
        plan.build(nn.Embedding(500, 16, max_norm=1.0))


def test_a_pruned_table_keeps_the_values_of_its_mask() -> None:
    mask, old = torch.rand(50, 8) < 0.3, nn.Embedding(50, 8)
    plan = TablePlan("t", 50, 8, "pruned", mask=mask)
    kept = plan.build(old, keep_values=True)
    assert isinstance(kept, PrunedEmbedding) and torch.equal(kept.weight, old.weight * mask)
    fresh = plan.build(old)
    assert torch.equal(fresh.mask, mask) and not torch.equal(fresh.weight, kept.weight)


def test_settings_of_the_old_table_are_kept() -> None:
    old = nn.Embedding(10, 16, padding_idx=2, max_norm=1.5, norm_type=1.0, scale_grad_by_freq=True, dtype=torch.float64)
    old.requires_grad_(False)
    old.eval()
    new = replace(table_plan(), dtype=torch.float64).build(old)
    for name in ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse", "training", "dtype"):
        assert getattr(new, name) == (torch.float64 if name == "dtype" else getattr(old, name))
    assert not any(p.requires_grad for p in new.parameters())
    bag = nn.EmbeddingBag(10, 16, mode="max", include_last_offset=True, padding_idx=1)
    built = table_plan().build(bag)
    assert (built.mode, built.include_last_offset, built.padding_idx, built.sparse) == ("max", True, 1, False)
    assert table_plan().build(nn.Embedding(10, 16, sparse=True)).sparse


def test_new_rows_are_as_large_as_the_old_ones() -> None:
    old = nn.Embedding(4000, 16)
    nn.init.normal_(old.weight, std=0.01)
    plan = TablePlan("t", 4000, 16, "multi_size", sizes=torch.full((4000,), 4))
    assert 0.008 < float(plan.build(old).weight.detach().std()) < 0.012
    nn.init.zeros_(old.weight)
    assert float(plan.build(old).weight.detach().std()) > 0.5  # torch's own deviation, where there is none to keep


def test_values_are_kept_where_sizes_allow_it() -> None:
    old = nn.Embedding(10, 16)
    plan = table_plan(sizes=torch.tensor([16] * 5 + [0] * 5))
    assert torch.equal(plan.build(old, keep_values=True).weight[:5], old.weight[:5])
    assert not torch.equal(plan.build(old).weight[:5], old.weight[:5])


def test_finish_rounds_and_forgets_the_norm() -> None:
    plan = table_plan(bits=8, sizes=torch.full((10,), 16))
    module = plan.build(nn.Embedding(10, 16, max_norm=1.0))
    module(torch.arange(10))
    before = module.weight.detach().clone()
    plan.finish(module)
    assert module.nbytes == plan.nbytes and module.max_norm is None
    assert 0 < float((module.weight - before).abs().max()) < 0.02


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"planned for \[V, d\] = \(10, 16\), the model's is \(11, 16\); search anew"):
        table_plan().build(nn.Embedding(11, 16))


def same(one: EmbeddingPlan, two: EmbeddingPlan) -> bool:
    tensors = all(
        (a is None) == (b is None) and (a is None or (torch.equal(a, b) and a.dtype == b.dtype))
        for s, t in zip(one.tables, two.tables, strict=True)
        for a, b in ((s.sizes, t.sizes), (s.mask, t.mask))
    )
    return (
        tensors
        and one.to_json() == two.to_json()
        and [t.aliases for t in one.tables] == [t.aliases for t in two.tables]
    )


def test_a_saved_plan_comes_back(tmp_path: Path) -> None:
    plan = plan_of(
        table_plan(aliases=("other.user", "x"), bits=4, shared_rows=3, shared_size=2, dtype=torch.float16),
        TablePlan("wide", 5, 300, "multi_size", sizes=torch.tensor([300, 256, 255, 1, 0])),
        TablePlan("hashed", 500, 16, "hash", options={"rows": 7, "num_hashes": 2}),
        TablePlan("pruned", 33, 5, "pruned", mask=torch.rand(33, 5) < 0.4),
    )
    plan.save(tmp_path / "new" / "plan.safetensors")
    again = EmbeddingPlan.load(tmp_path / "new" / "plan.safetensors")
    assert same(plan, again) and (again.budget, again.batches, again.settings) == (900, 7, plan.settings)
    assert again.nbytes == plan.nbytes and again.tables[0].dtype == torch.float16
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["plan.safetensors"]
    plan.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new" / "plan.safetensors").read_bytes()


def test_sizes_take_a_byte_a_token(tmp_path: Path) -> None:
    table = TablePlan("t", 100_000, 32, "multi_size", sizes=torch.full((100_000,), 4))
    plan_of(table).save(tmp_path / "plan")
    assert 100_000 < (tmp_path / "plan").stat().st_size < 102_000


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.99])
def test_truncated_files(part: float, tmp_path: Path) -> None:
    plan_of().save(tmp_path / "plan")
    data = (tmp_path / "plan").read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match="cut is truncated, or no plan.*search and save"):
        EmbeddingPlan.load(tmp_path / "cut")


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="there is no plan"):
        EmbeddingPlan.load(tmp_path / "absent")
    (tmp_path / "text").write_text("sizes: 4, 4, 8\n")
    with pytest.raises(ValueError, match="truncated, or no plan"):
        EmbeddingPlan.load(tmp_path / "text")
    save_file({"x": torch.zeros(3)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="a safetensors file, but no plan of embedding tables"):
        EmbeddingPlan.load(tmp_path / "weights")
    texts = "{", "{}", "[]", '{"version": 1}', '{"version": 1, "tables": [{}]}', '{"version": 1, "tables": 3}'
    for at, text in enumerate(texts):
        save_file({"0.sizes": torch.zeros(3)}, tmp_path / f"damaged{at}", {"graphlossy.recsys.plan": text})
        with pytest.raises(ValueError, match="cannot be read .*; search again and save the plan"):
            EmbeddingPlan.load(tmp_path / f"damaged{at}")
    save_file({}, tmp_path / "newer", {"graphlossy.recsys.plan": '{"version": 2}'})
    with pytest.raises(ValueError, match="its version is 2, this graphlossy reads 1: update graphlossy"):
        EmbeddingPlan.load(tmp_path / "newer")


def test_a_failed_save_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan"
    plan_of().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        plan_of(table_plan(bits=4)).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_json_says_everything_but_single_sizes() -> None:
    data = json.loads(plan_of(table_plan(bits=4)).to_json())
    assert data["method"] == "frequency" and data["dense_nbytes"] == 640 and data["settings"]["alpha"] == 0.5
    assert data["tables"][0]["sizes"] == {"0": 3, "1": 2, "2": 1, "4": 1, "8": 2, "16": 1}
    assert data["nbytes"] == data["tables"][0]["nbytes"] == table_plan(bits=4).nbytes


def test_the_description_names_every_table_and_its_bytes() -> None:
    text = str(plan_of(table_plan(), TablePlan("item", 500, 16, "hash", options={"rows": 7})))
    assert "user" in text and "1 of 16, 2 of 8, 1 of 4" in text and "hash: rows=7" in text and "456 B" in text


def test_a_plan_is_found_by_any_path() -> None:
    plan = plan_of(table_plan(aliases=("shared.user",)))
    assert plan.table("shared.user") is plan.table("user") is plan.tables[0]
    with pytest.raises(KeyError, match="no table 'item' in the plan; there are user"):
        plan.table("item")


def test_what_is_to_be_done_next_follows_from_the_stage() -> None:
    found = {s: (p.retrain, p.keep_values) for s in ("before", "after") for p in (EmbeddingPlan("m", s, ()),)}
    assert found == {"before": (True, False), "after": (False, True)}
    assert EmbeddingPlan("m", "after", (), settings={"retrain": True, "keep_values": False}).retrain


@pytest.mark.parametrize(
    ("rest", "error", "text"),
    [
        ({"kind": "magic"}, ValueError, "kind must be one of multi_size, hash"),
        ({"sizes": None}, ValueError, "sizes belong to kind 'multi_size'"),
        ({"mask": torch.ones(10, 16, dtype=torch.bool)}, ValueError, "a mask to 'pruned'"),
        ({"sizes": torch.full((10,), 17)}, ValueError, "sizes must be from 0 to embedding_dim = 16"),
        ({"sizes": torch.ones(9, dtype=torch.int64)}, ValueError, "one entry for each of 10 tokens"),
        ({"bits": 3}, ValueError, "bits of rows must be 0"),
        ({"projection": "none"}, ValueError, "projection must be one of"),
        ({"kind": "pruned", "sizes": None, "mask": torch.ones(3, 3, dtype=torch.bool)}, ValueError, "one shape"),
        ({"kind": "pruned", "sizes": None, "mask": torch.ones(10, 16)}, TypeError, "mask must be bool"),
    ],
)
def test_values_that_do_not_go_together(rest: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        table_plan(**rest)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tables = [replace(table_plan(), name=f"t{k}", aliases=()) for k in range(11)]
    tables.append(TablePlan("all", 40, 39, "multi_size", sizes=torch.arange(40) % 40))
    counts = {table.name: torch.arange(table.num_embeddings) for table in tables}
    path = tmp_path / "folder" / f"sizes{suffix}"
    plan_of(*tables).picture(path, counts)
    assert path.stat().st_size > 5000
    with pytest.raises(ValueError, match="counts are missing for all"):
        plan_of(*tables).picture(path, {k: v for k, v in counts.items() if k != "all"})
    with pytest.raises(ValueError, match=r"counts of 't0' must be \[10\], got \(3,\)"):
        plan_of(tables[0]).picture(path, {"t0": torch.ones(3)})
    with pytest.raises(ValueError, match=r"no table of this plan has any \(kinds: hash\)"):
        plan_of(TablePlan("h", 5, 4, "hash", options={"rows": 2})).picture(path, {})


def test_without_matplotlib_the_picture_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plan_of().picture(tmp_path / "x.png", {"user": torch.ones(10)})


@pytest.mark.parametrize("padding", [None, 0, 3, 9])
def test_new_rows_have_the_spread_of_the_old_ones_without_padding(padding: int | None) -> None:
    old = nn.Embedding(10, 4, padding_idx=padding)
    nn.init.normal_(old.weight, mean=2.0, std=0.3)
    kept = [token for token in range(10) if token != padding]
    new = TablePlan("user", 10, 4, "multi_size", sizes=torch.full((10,), 2)).build(old)
    assert new.init_std == pytest.approx(float(old.weight.detach()[kept].std(unbiased=False)), rel=1e-5)
