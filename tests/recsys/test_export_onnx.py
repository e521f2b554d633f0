"""ONNX graphs in another runtime: equal rows, no sequences or branches, unknown ids, and files that are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphlossy.recsys import BagOf, MultiSizeEmbedding, MultiSizeEmbeddingBag
from graphlossy.recsys.export import ExportableTable, export_onnx, fold_dense
from graphlossy.recsys.export._graph import SEQUENCE_OPS, sequence_ops, strip
from graphlossy.recsys.tables import KINDS

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
V, D = 130, 16
SIZES = torch.tensor([0, 1, 2, 4, 16])[torch.arange(V) % 5]
IDS = torch.arange(V)


def session(path: Path) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, *inputs: Tensor) -> Tensor:
    model = session(path)
    names = [value.name for value in model.get_inputs()]
    (out,) = model.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return torch.from_numpy(out)


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).detach().abs().max() / want.detach().abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("projection", ["nested", "per_size"])
@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize(("bits", "trainable"), [(0, False), (1, False), (2, False), (4, False), (8, True), (4, True)])
def test_multi_size_tables(tmp_path: Path, projection: str, shared: int, bits: int, trainable: bool) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, projection=projection, shared_rows=shared)
    if bits:
        table.quantize_(bits, group_size=16, trainable=trainable)
    file = export_onnx(table, tmp_path / "table.onnx")
    assert error(run(file.path, IDS), table(IDS)) < 1e-6
    assert not SEQUENCE_OPS & set(file.operators)
    assert file.nbytes == os.stat(file.path).st_size
    assert file.nbytes < ExportableTable(table).nbytes + 10_000  # what the nodes take
    assert (file.inputs, file.outputs) == (("ids",), ("rows",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, dtype=dtype)
    out = run(export_onnx(table, tmp_path / "table.onnx").path, IDS)
    assert out.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    want = table(IDS).to(out.dtype)
    assert error(out, want) < {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-14}[dtype]


@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_other_kinds(tmp_path: Path, kind: str) -> None:
    table = nn.Embedding(V, D) if kind == "dense" else KINDS[kind].for_budget(V, D, 4000)
    file = export_onnx(table, tmp_path / "table.onnx")
    assert error(run(file.path, IDS), table(IDS)) < 1e-6
    assert "MatMul" not in file.operators
    small = export_onnx(table, tmp_path / "small.onnx", bits=4)
    assert error(run(small.path, IDS), ExportableTable(table, bits=4)(IDS)) < 1e-6


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_bags(tmp_path: Path, mode: str, padding_idx: int | None) -> None:
    bag = MultiSizeEmbeddingBag(V, D, mode=mode, padding_idx=padding_idx, sizes=SIZES)
    bags = torch.randint(0, V, (8, 5))
    bags[1, 2:], bags[2] = 4, 4
    path = export_onnx(bag, tmp_path / "bag.onnx").path
    for given_bags in (bags, bags[:, :2], bags[:1]):
        assert error(run(path, given_bags), bag(given_bags)) < 1e-6
    if mode == "sum":
        weights, pooled = torch.rand(8, 5), BagOf(MultiSizeEmbedding(V, D, padding_idx, sizes=SIZES), "sum")
        file = export_onnx(pooled, tmp_path / "weighted.onnx", weights=True)
        assert file.inputs == ("ids", "per_sample_weights")
        assert error(run(file.path, bags, weights), pooled(bags, None, weights)) < 1e-6


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("sizes", [4, D, SIZES])
def test_unknown_ids(tmp_path: Path, bits: int | None, sizes: int | Tensor) -> None:
    table = MultiSizeEmbedding(V, D, sizes=sizes)
    strict = session(export_onnx(table, tmp_path / "strict.onnx", bits=bits).path)
    loose = export_onnx(table, tmp_path / "loose.onnx", bits=bits, unknown=7).path
    for wrong in (V, V + 3, -1, -V, 2**40, -(2**40)):
        ids = torch.tensor([5, wrong])
        with pytest.raises(Exception, match="out of data bounds"):
            strict.run(None, {"ids": ids.numpy()})
        assert torch.equal(run(loose, ids), run(loose, torch.tensor([5, 7])))


def test_shapes_names_and_metadata(tmp_path: Path) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, padding_idx=2)
    table.name = "item"
    file = export_onnx(
        table, tmp_path / "t.onnx", dims=("batch", 13), unknown=1, input_names=["items"], output_names=["vectors"]
    )
    assert (file.inputs, file.outputs) == (("items",), ("vectors",))
    assert error(run(file.path, IDS.view(10, 13)), table(IDS.view(10, 13))) < 1e-6
    model = session(file.path)
    assert model.get_inputs()[0].shape == ["batch", 13] and model.get_outputs()[0].shape == ["batch", 13, D]
    about = model.get_modelmeta().custom_metadata_map
    assert about == {
        "num_embeddings": "130",
        "embedding_dim": "16",
        "padding_idx": "2",
        "feature": "item",
        "unknown": "1",
    }
    assert run(export_onnx(table, tmp_path / "u.onnx").path, IDS[:0]).shape == (0, D)


def test_external_data_and_failures_leave_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MultiSizeEmbedding(V, D, sizes=D)
    file = export_onnx(table, tmp_path / "table.onnx", external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["table.onnx", "table.onnx.data"]
    assert file.nbytes == sum(os.stat(tmp_path / name).st_size for name in os.listdir(tmp_path))
    assert error(run(file.path, IDS), table(IDS)) < 1e-6
    before = file.path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(table, file.path)
    assert sorted(os.listdir(tmp_path)) == ["table.onnx", "table.onnx.data"] and file.path.read_bytes() == before


def test_a_fresh_process_with_the_runtime_alone(tmp_path: Path) -> None:
    table = MultiSizeEmbedding(V, D, sizes=SIZES, shared_rows=5).quantize_(4)
    file = export_onnx(table, tmp_path / "table.onnx")
    (tmp_path / "rows.f32").write_bytes(table(IDS).detach().numpy().tobytes())
    code = """
import sys, numpy, onnxruntime
model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(rows,) = model.run(None, {"ids": numpy.arange(130)})
want = numpy.fromfile(sys.argv[2], dtype=numpy.float32).reshape(130, 16)
print(abs(rows - want).max() < 1e-6 * abs(want).max(), "torch" in sys.modules, "graphlossy" in sys.modules)
"""
    paths = [str(file.path), str(tmp_path / "rows.f32")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


class Model(nn.Module):
    """Two fields and a layer, called with a dict as the click models are."""

    def __init__(self) -> None:
        super().__init__()
        self.item = MultiSizeEmbedding(V, D, sizes=SIZES).quantize_(4)
        self.liked = MultiSizeEmbeddingBag(V, D, sizes=SIZES, padding_idx=1)
        self.top = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.top(self.item(batch["item"]) * self.liked(batch["liked"])).squeeze(1)


def test_a_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = Model().eval()
    example = {"item": torch.randint(0, V, (3,)), "liked": torch.randint(0, V, (3, 4))}
    file = export_onnx(model, tmp_path / "model.onnx", (example,), unknown=0)
    assert (file.inputs, file.outputs) == (("item", "liked"), ("output",))
    assert not SEQUENCE_OPS & set(file.operators)
    assert str(ROOT).encode() not in file.path.read_bytes()
    batch = {"item": torch.randint(0, V, (50,)), "liked": torch.randint(0, V, (50, 4))}
    assert error(run(file.path, *batch.values()), model(batch)) < 1e-5
    assert error(run(file.path, *batch.values()), fold_dense(model)(batch)) < 1e-5
    run(file.path, torch.full((2,), 10**12), batch["liked"][:2])
    for args in (None, (), ({"item": IDS[:1], "liked": IDS[:1].view(1, 1)},)):
        with pytest.raises(ValueError, match="args must"):
            export_onnx(model, file.path, args)


def test_sequence_ops_are_found_in_branches_and_functions() -> None:
    make = onnx.helper
    inner = make.make_graph([make.make_node("SequenceEmpty", [], ["s"])], "inner", [], [])
    branch = make.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    function = make.make_function(
        "local", "f", [], ["s"], [make.make_node("SplitToSequence", ["x"], ["s"])], [make.make_opsetid("", 17)]
    )
    branch.doc_string = "somewhere"
    model = make.make_model(make.make_graph([branch], "g", [], []), functions=[function])
    assert sequence_ops(model) == ["If", "SequenceEmpty", "SplitToSequence"]
    strip(model)
    assert not model.graph.node[0].doc_string and sequence_ops(model)


def test_refusals(tmp_path: Path) -> None:
    table, bag, path = MultiSizeEmbedding(V, D, sizes=4), nn.EmbeddingBag(V, D), tmp_path / "x.onnx"
    for message, arguments in (
        ("args and dynamic_shapes are those of a model", dict(args=(IDS,))),
        ("dims must have at least one entry", dict(dims=())),
        ("weights need a bag of mode 'sum'", dict(weights=True)),
        ("unknown must be", dict(unknown=V)),
        ("bits must be", dict(bits=5)),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(table, path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dims of a bag must be two"):
        export_onnx(bag, path, dims=("batch",))
    with pytest.raises(ValueError, match="weights need a bag of mode 'sum', got 'mean'"):
        export_onnx(bag, path, weights=True)
    with pytest.raises(ValueError, match="dims and weights are those of a table"):
        export_onnx(nn.Sequential(table), path, (IDS,), weights=True)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got Tensor"):
        export_onnx(IDS, path)  # type: ignore[arg-type]
    assert not os.listdir(tmp_path)


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```$", (ROOT / "docs" / "recsys_export.md").read_text(), re.M | re.S)
    assert any("export_onnx" in block for block in blocks)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
