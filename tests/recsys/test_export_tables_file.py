"""Files of tables: what is read is what was written, in another process too, and a bad file is one clear message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphlossy.recsys import BagOf, CompressedEmbedding, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.export import load_tables, load_vocabulary, save_tables, to_torch_quantized
from graphlossy.recsys.export import tables_file as module
from graphlossy.recsys.tables import KINDS

safetensors = pytest.importorskip("safetensors.torch")

V, D = 200, 16
IDS = torch.arange(V)


def sizes(count: int = V) -> Tensor:
    return torch.tensor([0, 1, 2, 4, 16])[torch.arange(count) % 5]


def multi_size(bits: int = 0, trainable: bool = False, **options: Any) -> MultiSizeEmbedding:
    table = MultiSizeEmbedding(V, D, sizes=sizes(), **options)
    return table.quantize_(bits, trainable=trainable) if bits else table


def every_table() -> dict[str, nn.Module]:
    shared = multi_size(shared_rows=7, padding_idx=3)
    shared.name = "item"
    pruned = KINDS["pruned"].from_mask(torch.randn(V, D), torch.rand(V, D) < 0.2)
    bag = MultiSizeEmbeddingBag(V, D, sizes=sizes(), mode="sum", include_last_offset=True, padding_idx=1)
    return {
        "nested": multi_size(),
        "per_size": multi_size(projection="per_size", sparse=True),
        "shared": shared,
        "int4": multi_size(4, shared_rows=7),
        "int2": multi_size(2, projection="per_size"),
        "low precision": multi_size(8, True),
        "half": multi_size().half(),
        "norm": multi_size(max_norm=0.5, norm_type=1.0),
        "one size": MultiSizeEmbedding(V, D, sizes=4),
        "zeros": MultiSizeEmbedding(V, D, sizes=0),
        "bag": bag,
        "pooled": BagOf(shared, "max", True),
        "torch": nn.Embedding(V, D, padding_idx=2, dtype=torch.float64),
        "torch bag": nn.EmbeddingBag(V, D, mode="max"),
        "torch int4": to_torch_quantized(shared, 4),
        "torch bag int8": to_torch_quantized(bag, 8),
        "chosen entries": pruned,
        **{kind: table.for_budget(V, D, 8000, padding_idx=3) for kind, table in KINDS.items()},
    }


@torch.no_grad()
def look_up(table: nn.Module) -> Tensor:
    return table(IDS.view(-1, 5)[:, :4]) if hasattr(table, "include_last_offset") else table(IDS)


def test_every_kind_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tables = every_table()
    file = save_tables(tables, tmp_path / "tables.safetensors")
    state = torch.get_rng_state()
    found = load_tables(file.path)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found) == list(tables)
    for name, table in tables.items():
        again = found[name]
        assert type(again) is type(table), name
        assert repr(again) == repr(table)  # the settings and, in compressed tables, the bytes
        assert torch.equal(look_up(again), look_up(table)), name
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in table.named_parameters()}
    assert found["shared"].name == "item"
    assert found["norm"].max_norm == 0.5 and found["norm"].norm_type == 1.0
    assert found["per_size"].sparse


def test_a_fresh_process_looks_up_the_same(tmp_path: Path) -> None:
    tables = every_table()
    save_tables(tables, tmp_path / "tables.safetensors")
    torch.save({name: look_up(table) for name, table in tables.items()}, tmp_path / "rows.pt")
    code = """
import sys, torch
from graphlossy.recsys.export import load_tables
rows, found = torch.load(sys.argv[2]), load_tables(sys.argv[1])
ids = torch.arange(200)
assert list(rows) == list(found)
for name, table in found.items():
    with torch.no_grad():
        got = table(ids.view(-1, 5)[:, :4]) if hasattr(table, "include_last_offset") else table(ids)
    assert torch.equal(got, rows[name]), name
print(len(rows))
"""
    paths = [str(tmp_path / "tables.safetensors"), str(tmp_path / "rows.pt")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout.strip() == str(len(tables)), done.stderr


def test_the_file_is_as_large_as_the_tables_say(tmp_path: Path) -> None:
    count = 200_000
    for bits in (0, 4):
        table = MultiSizeEmbedding(count, 32, sizes=torch.tensor([0, 1, 2, 4, 32])[torch.arange(count) % 5])
        table = table.quantize_(bits) if bits else table
        file = save_tables(table, tmp_path / "table.safetensors")
        assert file.nbytes == os.stat(file.path).st_size == file.table_bytes + file.header_bytes
        assert file.table_bytes == table.nbytes
        assert file.nbytes < 1.01 * table.nbytes


def test_a_model_keeps_paths_and_sharing(tmp_path: Path) -> None:
    model = nn.Module()
    model.fields = nn.ModuleDict({"user": multi_size(4), "other": nn.Linear(2, 2), "plain": nn.Embedding(9, 4)})
    model.again = model.fields["user"]
    model.bag = BagOf(model.fields["user"], "sum")
    model.tied = nn.EmbeddingBag(9, 4, mode="sum")
    model.tied.weight = model.fields["plain"].weight
    model.fields["plain"].weight.requires_grad_(False)
    file = save_tables(model, tmp_path / "model.safetensors")
    found = load_tables(file.path)
    assert list(found) == ["fields.user", "fields.plain", "again", "bag", "tied"]
    assert found["again"] is found["fields.user"] is found["bag"].embedding
    assert found["tied"].weight is found["fields.plain"].weight
    assert not found["tied"].weight.requires_grad
    assert file.table_bytes == model.again.nbytes + 9 * 4 * 4
    assert list(load_tables(save_tables(multi_size(), tmp_path / "one").path)) == ["table"]


def test_what_was_loaded_trains_and_the_file_stays(tmp_path: Path) -> None:
    path = save_tables({"a": multi_size()}, tmp_path / "tables.safetensors").path
    before = path.read_bytes()
    table = load_tables(path)["a"]
    storage = table.tables["16"].weight.untyped_storage()
    assert storage.nbytes() <= os.stat(path).st_size
    table(IDS).sum().backward()
    torch.optim.SGD(table.parameters(), 1.0).step()
    assert path.read_bytes() == before
    assert not torch.equal(look_up(load_tables(path)["a"]), look_up(table))


def test_the_vocabulary_is_beside_the_tables(tmp_path: Path) -> None:
    words = {"user": ["ä", "ü" * 1000, "\ud83d\ude00"], "counts": [1, 2.5, None]}
    file = save_tables({"a": multi_size()}, tmp_path / "with", vocabulary=words)
    assert load_vocabulary(file.path) == words
    assert file.vocabulary_bytes > 2000 and "a" in load_tables(file.path)
    assert load_vocabulary(save_tables({"a": multi_size()}, tmp_path / "without").path) is None
    with pytest.raises(TypeError, match="vocabulary must be JSON"):
        save_tables({"a": multi_size()}, tmp_path / "with", vocabulary={"a": {1, 2}})
    assert load_vocabulary(file.path) == words


class Doubled(CompressedEmbedding):
    """A table of a user's own."""

    def __init__(self, num_embeddings: int, embedding_dim: int, factor: float = 2.0) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.factor = factor
        self.row = nn.Parameter(torch.randn(embedding_dim))

    def rows(self, ids: Tensor) -> Tensor:
        return self.factor * ids.unsqueeze(1) * self.row


class Forgetful(Doubled):
    def __init__(self, num_embeddings: int, embedding_dim: int, secret: int = 1) -> None:
        super().__init__(num_embeddings, embedding_dim)


def test_own_classes(tmp_path: Path) -> None:
    table = Doubled(V, D, 3.0)
    path = save_tables({"own": table}, tmp_path / "own").path
    again = load_tables(path, classes=[Doubled])["own"]
    assert again.factor == 3.0 and torch.equal(look_up(again), look_up(table))
    with pytest.raises(ValueError, match="class 'Doubled' is known; pass it in classes="):
        load_tables(path)
    with pytest.raises(TypeError, match="Forgetful keeps no attribute 'secret'"):
        save_tables({"own": Forgetful(V, D)}, path)
    assert torch.equal(look_up(load_tables(path, classes=[Doubled])["own"]), look_up(table))  # nothing was lost


def test_truncated_at_any_point(tmp_path: Path) -> None:
    data = save_tables({"a": multi_size(4)}, tmp_path / "whole").path.read_bytes()
    path = tmp_path / "part"
    for length in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="part is truncated, or no file of tables"):
            load_tables(path)
    path.write_bytes(os.urandom(1000))
    with pytest.raises(ValueError, match="truncated, or no file of tables"):
        load_vocabulary(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_tables(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not one that save_tables wrote"),
        ({"format": "pt"}, "not one that save_tables wrote"),
        ({"version": "2"}, "has version '2' of the format; this graphlossy reads 1: update it"),
        ({"about": "{"}, "is damaged"),
        ({"about": json.dumps({"tables": []})}, "is damaged"),
        ({"about": "[]"}, "is damaged"),
    ],
)
def test_foreign_and_newer_files(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    path = save_tables({"a": multi_size()}, tmp_path / "tables").path
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        full = file.metadata()
    safetensors.save_file(tensors, path, None if metadata is None else full | metadata)
    with pytest.raises(ValueError, match=message):
        load_tables(path)


def changed(about: dict[str, Any], tensors: dict[str, Tensor], what: str) -> None:
    entry = about["tables"][0]
    if what == "class":
        entry["class"] = "os.system"
    elif what == "settings":
        entry["settings"]["num_embeddings"] = V + 64
    elif what == "argument":
        entry["settings"]["surprise"] = 1
    elif what == "dtype":
        entry["settings"]["dtype"] = "int8"
    elif what == "tensor":
        del tensors["0.planes"]
    elif what == "shape":
        tensors["0.tables.4.weight"] = torch.zeros(3)
    elif what == "index":
        about["modules"] = [[5, None]]
    elif what == "list":
        about["tables"] = {}


@pytest.mark.parametrize("what", ["class", "settings", "argument", "dtype", "tensor", "shape", "index", "list"])
def test_metadata_that_does_not_fit(tmp_path: Path, what: str) -> None:
    path = save_tables({"a": multi_size()}, tmp_path / "tables").path
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    changed(about, tensors, what)
    safetensors.save_file(tensors, path, metadata | {"about": json.dumps(about)})
    with pytest.raises(ValueError, match="does not hold the tables that it says it does"):
        load_tables(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = multi_size()
    path = save_tables({"a": table}, tmp_path / "tables").path

    def fail(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    library = module.safetensors_library()
    monkeypatch.setattr(library.torch, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_tables({"a": multi_size(4)}, path)
    assert os.listdir(tmp_path) == ["tables"]
    assert torch.equal(look_up(load_tables(path)["a"]), look_up(table))


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no embedding table"):
        save_tables(nn.Linear(2, 2), tmp_path / "tables")
    with pytest.raises(TypeError, match="must be embedding tables by names"):
        save_tables({"a": nn.Linear(2, 2)}, tmp_path / "tables")
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module or tables by names, got list"):
        save_tables([nn.Embedding(2, 2)], tmp_path / "tables")  # type: ignore[arg-type]
    assert not (tmp_path / "tables").exists()
