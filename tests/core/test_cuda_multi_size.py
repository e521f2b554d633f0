"""Rows of several widths on CUDA: compiled for every architecture, launched in grids of any size, equal on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only

from graphlossy.core import _cuda, _cuda_multi_size, _nvrtc, multi_size, quantize
from graphlossy.core import _multi_size as reference
from graphlossy.core._cuda_multi_size import CudaOps
from graphlossy.core.multi_size import NO_BUCKET, Buckets

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TABLES = (*FLOATS, "codes")
ENTRIES = {
    *(f"rank_lookup_{ids}" for ids in ("int32", "int64")),
    *(f"multi_size_forward_{table}_{to}" for table in TABLES for to in FLOATS),
    *(f"multi_size_values_{grad}" for grad in FLOATS),
    *(f"multi_size_scores_{table}" for table in TABLES),
}
SIZES, DIM, TOKENS, POSITIONS = [0, 2, 5, 16], 16, 1000, 700


@pytest.fixture(autouse=True)
def _nothing_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_size, "_prepared", {})


class Recorder(_cuda.Kernels):
    """Computes nothing; notes which kernels would run, how each is defined, and its blocks."""

    def __init__(self) -> None:
        super().__init__(ctypes.CDLL(None), lambda definition: b"", lambda: 0, ctypes.c_void_p())
        self.definitions: dict[str, str] = {}
        self.blocks: list[int] = []

    def _launch(self, name: str, definition: str, blocks: int, *arguments: Any) -> None:
        self.definitions[name] = definition
        self.blocks.append(blocks)


def example(table: str, device: str = "cpu", bits: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Buckets]:
    """(ids, codes, planes, counts, buckets) of a random table; 1000 tokens of widths 0, 2, 5 and 16."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, len(SIZES), (TOKENS,), generator=generator)
    empty = torch.empty(0, dtype=torch.bfloat16)
    tables, scales, offsets, groups = [], [], [], []
    for k, size in enumerate(SIZES):
        values = torch.randn(int((codes == k).sum()), size, generator=generator)
        q = quantize(values, bits, 24, rounding="nearest", dim=None) if table == "codes" and size else None
        tables.append(values.to(FLOATS.get(table, torch.float32)) if q is None else q.packed)
        scales.append(empty if q is None else q.scale)
        offsets.append(empty if q is None else q.offset)
        groups.append(0 if q is None else q.group_size)
    projection = torch.randn(5, DIM, generator=generator).to(FLOATS.get(table, torch.float32))
    ids = torch.randint(0, TOKENS, (POSITIONS,), generator=generator)
    planes, counts = multi_size.rank_map(codes.to(torch.uint8), len(SIZES))
    tables, scales, offsets = ([t.to(device) for t in part] for part in (tables, scales, offsets))
    buckets = Buckets(tables, scales, offsets, [projection.to(device)], [-1, 0, 0, -1], SIZES, groups,
                      bits * (table == "codes"), DIM)  # fmt: skip
    return ids.to(device), codes.to(device), planes.to(device), counts.to(device), buckets


def every_call(table: str, device: str = "cpu") -> list[tuple[str, tuple[Any, ...]]]:
    ids, _, planes, counts, buckets = example(table, device)
    bucket, row = (x.to(device) for x in reference.lookup(ids.cpu(), planes.cpu(), counts.cpu(), TOKENS))
    ends = torch.tensor([0, 3, 3, 600, POSITIONS, POSITIONS], device=device)
    weights = torch.linspace(-1, 1, POSITIONS, device=device)
    found: list[tuple[str, tuple[Any, ...]]] = [("rank_lookup", (x, planes, counts, TOKENS)) for x in (ids, ids.int())]
    for to in FLOATS.values():
        for bags in ((None, None, False), (ends, weights, False), (ends, None, True)):
            found.append(("multi_size_forward", (bucket, row, *buckets, to, *bags)))
    masked, bag = bucket.clone(), torch.arange(POSITIONS, device=device) // 7
    masked[::5] = NO_BUCKET
    for grad in FLOATS.values():
        for place, outputs in (((None, None), POSITIONS), ((bag, weights), POSITIONS // 7)):
            g = torch.linspace(-2, 2, outputs * DIM, device=device).sin().view(outputs, DIM).to(grad)
            found.append(("multi_size_backward", (g, masked, row, *buckets, *place, [True])))
    queries = [torch.linspace(-1, 1, size * 11, device=device).view(size, 11) for size in SIZES]
    return [*found, ("multi_size_scores", (planes, counts, TOKENS, *buckets, queries))]


@pytest.fixture(scope="module")
def definitions() -> dict[str, str]:
    recorder = Recorder()
    for table in TABLES:
        for op, arguments in every_call(table):
            getattr(CudaOps(recorder), op)(*arguments)
    return recorder.definitions


def test_every_kernel_is_asked_for(definitions: dict[str, str]) -> None:
    assert set(definitions) == ENTRIES


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(f"sm_{n}", marks=pytest.mark.slow) for n in (75, 80, 86, 89, 100, 120))]
)
def test_every_kernel_compiles(
    arch: str, definitions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `CudaOps` asks for, word by word, and no kernel besides."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        _nvrtc.load_nvrtc()
    except _nvrtc.CompileError as error:
        pytest.skip(str(error))
    code = _nvrtc.compile_source(*_nvrtc.sources(), arch, f"LOSSY_KERNELS={' '.join(definitions.values())}")
    assert code[:4] == b"\x7fELF"
    assert {name.decode() for name in re.findall(rb"\.text\.(\w+)\0", code)} == ENTRIES


def test_no_product_and_sum_become_one(definitions: dict[str, str]) -> None:
    try:
        _nvrtc.load_nvrtc()
    except _nvrtc.CompileError as error:
        pytest.skip(str(error))
    for name in ("multi_size_forward_codes_float32", "multi_size_values_float32", "multi_size_scores_float32"):
        code = _nvrtc.compile_source(*_nvrtc.sources(), "compute_75", f"LOSSY_KERNELS={definitions[name]}").decode()
        body = code.split(f".entry {name}(")[1]
        assert "mul.rn.f32" in body and "add.rn.f32" in body and "fma.rn.f32" not in body


@pytest.mark.parametrize("positions", [2**31 - 1, 2**31, 2**33 + 5, 2**42])
def test_grids_of_huge_inputs(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that size exists here: tensors without memory."""
    recorder = Recorder()
    monkeypatch.setattr(_cuda_multi_size, "_is_capturing", lambda tensor: True)
    monkeypatch.setattr(torch, "_assert_async", lambda condition, message: None)
    monkeypatch.setattr(_cuda_multi_size, "_words", lambda held, buckets, like: torch.empty(0, device="meta"))
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
    ops, meta = CudaOps(recorder), torch.device("meta")
    planes, counts = (torch.empty(1, 1, dtype=torch.int64, device=meta) for _ in "ab")
    ids = torch.empty(positions, dtype=torch.int64, device=meta)
    bucket, row = ops.rank_lookup(ids, planes.view(-1), counts, 64)
    buckets = Buckets([torch.empty(3, 16, device=meta)], [], [], [], [-1], [16], [0], 0, 16)
    out = ops.multi_size_forward(bucket, row, *buckets, torch.float16, None, None, False)
    assert out.shape == (positions, 16) and row.shape == bucket.shape == (positions,)
    queries = [torch.empty(16, 17, device=meta)]
    monkeypatch.setattr(torch.Tensor, "view", lambda self, *shape: torch.empty((1, 9), device=self.device))
    assert ops.multi_size_scores(planes, counts, positions, *buckets, queries).shape == (17, positions)
    # A thread to an id, four to a position of 16 columns, one to a token and eight queries.
    assert recorder.blocks == [-(-positions // 256), -(-positions // 64), -(-positions * 3 // 256)]


def test_the_operators_have_cuda_kernels() -> None:
    for op in multi_size._OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"graphlossy::{op}", "CUDA"), op


@pytest.mark.parametrize("op", multi_size._OPS)
def test_without_kernels_the_reference_runs(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(_cuda.Kernels):
        def __init__(self) -> None: ...

        def _launch(self, *arguments: Any) -> None:
            raise _nvrtc.CompileError("unknown instruction")

    monkeypatch.setattr(_cuda, "_loaded", {0: Refuses()})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    arguments = next(a for name, a in every_call("float32") if name == op)
    run = _cuda.with_reference(_cuda_multi_size._kernel(op), multi_size._REFERENCES[op])
    expected = multi_size._REFERENCES[op](*arguments)
    with pytest.warns(RuntimeWarning, match="without its CUDA kernels.*unknown instruction"):
        found = run(*arguments)
    again = run(*arguments)  # and no second warning
    for a, b, c in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, again, expected)), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)


def test_shapes_without_a_gpu() -> None:
    """On fake CUDA tensors, as torch.compile sees them; the sizes of gradients depend on the data."""
    for op, arguments in every_call("float32"):
        real = getattr(CudaOps(Recorder()), op)(*arguments)
        with FakeTensorMode(shape_env=ShapeEnv()):
            fake = tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"), arguments)
            found = getattr(torch.ops.graphlossy, op)(*fake)
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, real)), strict=True):
            assert a.device.type == "cuda" and a.dtype == b.dtype and a.dim() == b.dim(), op
            assert op == "multi_size_backward" or a.shape == b.shape, op


def test_results_have_no_history() -> None:
    """As those of the CPU kernels: what is differentiated is said where the operators are called."""
    calls = dict(every_call("float32"))
    for op in ("multi_size_forward", "multi_size_backward", "multi_size_scores"):
        arguments = tree_map_only(Tensor, lambda t: t.requires_grad_() if t.is_floating_point() else t, calls[op])
        found = getattr(CudaOps(Recorder()), op)(*arguments)
        assert not any(x.requires_grad for x in (found if isinstance(found, tuple) else (found,)))


def test_doubles_are_left_to_the_reference() -> None:
    _, _, _, _, buckets = example("float32")
    buckets = buckets._replace(tables=[t.double() for t in buckets.tables])
    bucket, row = torch.tensor([1, 3], dtype=torch.uint8), torch.tensor([0, 1])
    found = CudaOps(Recorder()).multi_size_forward(bucket, row, *buckets, torch.float64, None, None, False)
    assert torch.equal(found, reference.forward(bucket, row, buckets, torch.float64, None, None, False))


def test_tables_of_another_device_are_refused() -> None:
    _, _, planes, counts, buckets = example("codes")
    bucket, row = torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    rest = torch.float32, None, None, False
    for name, wrong in (
        ("tables", buckets._replace(tables=[t.to("meta") for t in buckets.tables])),
        ("scales", buckets._replace(scales=[t.to("meta") for t in buckets.scales])),
        (r"projections\[0\]", buckets._replace(projections=[t.to("meta") for t in buckets.projections])),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=f"{name} must be on cpu.*got meta"):
            patch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
            patch.setattr(multi_size, "_prepared", {})
            CudaOps(Recorder()).multi_size_forward(bucket, row, *wrong, *rest)
    ends = torch.zeros(1, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="ends must be on cpu"):
        CudaOps(Recorder()).multi_size_forward(bucket, row, *buckets, torch.float32, ends, None, False)
    with pytest.raises(ValueError, match="ids and the table must be on one device"):
        CudaOps(Recorder()).rank_lookup(ends, planes, counts, TOKENS)


def test_a_description_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is gone with the one on the host that it is a copy of."""
    _, _, _, _, buckets = example("float32")
    held, like = multi_size._prepare(buckets), torch.zeros(1)
    assert held is not None and multi_size._prepare(buckets) is held
    words = _cuda_multi_size._words(held, buckets, like)
    assert _cuda_multi_size._words(held, buckets, like) is words
    assert words.tolist() == list(held.array) and words[1 * 9].item() == buckets.tables[1].data_ptr()
    before = len(_cuda_multi_size._on_device)
    del held
    multi_size._prepared.clear()
    assert len(_cuda_multi_size._on_device) == before - 1


def test_sorting_by_bucket() -> None:
    bucket = torch.tensor([3, 0, 255, 1, 3, 1, 0], dtype=torch.uint8)
    ordered, order, bounds = _cuda_multi_size._sort(bucket, [0, 2, 4, 16])
    assert order[:4].tolist() == [3, 5, 0, 4] and ordered[:4].tolist() == [1, 1, 3, 3]
    assert bounds.tolist() == [0, 0, 2, 2, 4] and bounds.dtype == order.dtype == torch.int64
    _, _, bounds = _cuda_multi_size._sort(torch.arange(256).to(torch.uint8), [1] * 255)
    assert bounds.tolist() == list(range(256))


# On a GPU.


def on_cpu(found: Any) -> tuple[Tensor, ...]:
    return tuple(x.cpu() for x in (found if isinstance(found, tuple) else (found,)))


@pytest.mark.cuda
@pytest.mark.parametrize("table", TABLES)
def test_parity_on_a_gpu(table: str) -> None:
    assert isinstance(_cuda.kernels_for(0), _cuda.Kernels)
    for (op, arguments), (_, here) in zip(every_call(table, "cuda"), every_call(table), strict=True):
        found = on_cpu(getattr(torch.ops.graphlossy, op)(*arguments))
        wanted = on_cpu(multi_size._REFERENCES[op](*here))
        exact = len(found) - (op == "multi_size_backward")  # its last result is a product of matrices
        assert all(map(torch.equal, found[:exact], wanted[:exact])), op
        for a, b in zip(found[exact:], wanted[exact:], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


@pytest.mark.cuda
def test_a_wrong_id_on_a_gpu() -> None:
    ids, _, planes, counts, _ = example("float32", "cuda")
    ids[77] = TOKENS
    with pytest.raises(IndexError, match=f"got {TOKENS}"):
        multi_size.lookup(ids, planes, counts, TOKENS)
    assert multi_size.lookup(ids[:77], planes, counts, TOKENS)[0].shape == (77,)


@pytest.mark.cuda
def test_in_a_cuda_graph() -> None:
    ids, _, planes, counts, buckets = example("float32", "cuda")

    def rows() -> Tensor:
        return multi_size.forward(*multi_size.lookup(ids, planes, counts, TOKENS), buckets, torch.float32)

    rows()  # compiled, loaded and described before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = rows()
    ids.copy_(ids.flip(0).clone())
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, rows())


@pytest.mark.cuda
def test_the_current_stream_is_used() -> None:
    ids, _, planes, counts, buckets = example("float32", "cuda")
    place = multi_size.lookup(ids, planes, counts, TOKENS)
    wanted = multi_size.forward(*place, buckets, torch.float32)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = multi_size.forward(place[0], place[1] + 0, buckets, torch.float32)
    stream.synchronize()
    assert torch.equal(found, wanted)
