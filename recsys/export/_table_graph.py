"""The ONNX graph of a table, from its layout: gathers, one product for each projection, and selections."""

from __future__ import annotations

from typing import Any

import torch

from graphlossy.recsys.export._find import Pooling, core_of, pooling_of
from graphlossy.recsys.export._graph import Graph
from graphlossy.recsys.export._layout import Layout, layout_of
from graphlossy.recsys.export._serve import FAR, check_unknown

__all__ = ["table_model"]


def table_model(
    table: Any, unknown: Any, bits: Any, dims: Any, weights: bool, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Any:
    """An ONNX model of a table; the arguments are those of `graphlossy.recsys.export.export_onnx`."""
    pooling, core = pooling_of(table), core_of(table)
    dims = tuple(dims if dims is not None else ("batch",) if pooling is None else ("batch", "length"))
    if pooling is not None and len(dims) != 2:
        raise ValueError(f"dims of a bag must be two, bags and their length, got {dims}")
    if not dims:
        raise ValueError("dims must have at least one entry, such as ('batch',)")
    if weights and (pooling is None or pooling.mode != "sum"):
        raise ValueError(f"weights need a bag of mode 'sum', got {pooling.mode if pooling else type(table).__name__!r}")
    layout = layout_of(table, bits)
    graph = Graph()
    dtype = torch.float32 if layout.dtype == torch.bfloat16 else layout.dtype  # NumPy has no bfloat16
    wide = torch.promote_types(dtype, torch.float32)
    ids = graph.input(inputs[0], torch.int64, dims)
    flat = ids if len(dims) == 1 else graph("Reshape", ids, graph.constant("everything", [-1], torch.int64))
    rows = _rows(graph, layout, _known(graph, layout, flat, check_unknown(unknown, layout.num_embeddings)), wide)
    if len(dims) > 1:
        width = graph.constant("width", [layout.dim], torch.int64)
        rows = graph("Reshape", rows, graph("Concat", graph("Shape", ids), width, axis=0))
    if pooling is not None:
        factor = graph.input(inputs[1], torch.float32, dims) if weights else None
        rows = _pool(graph, rows, ids, factor, core.padding_idx, pooling, wide)
        dims = dims[:1]
    rows = rows if dtype == wide else graph.cast(rows, dtype)
    about = {"num_embeddings": str(layout.num_embeddings), "embedding_dim": str(layout.dim), "unknown": str(unknown)}
    about |= {"padding_idx": str(core.padding_idx), "feature": getattr(core, "name", "")}
    return graph.model(rows, outputs[0], dtype, (*dims, layout.dim), about)


def _known(graph: Graph, layout: Layout, ids: str, unknown: int | None) -> str:
    """``ids``, with another token or one that no gather finds for those that are not of the table."""
    positive = graph("GreaterOrEqual", ids, graph.constant("zero", 0, torch.int64))
    if unknown is None and (layout.place is not None or not layout.bits):
        # Gather counts a negative index from the end; one that is too large it refuses, and says which.
        return graph("Where", positive, ids, graph("Sub", graph.constant("far", FAR, torch.int64), ids))
    below = graph("Less", ids, graph.constant("num_embeddings", layout.num_embeddings, torch.int64))
    if unknown is None:
        other = graph("Add", graph("Abs", ids), graph.constant("far", FAR, torch.int64))
    else:
        other = graph.constant("unknown", unknown, torch.int64)
    return graph("Where", graph("And", positive, below), ids, other)


def _rows(graph: Graph, layout: Layout, ids: str, wide: torch.dtype) -> str:
    """[N, d] of ids [N]; the same steps as `ExportableTable.rows`."""
    if len(layout.sizes) == 1 and layout.place is None and not layout.bits:
        found = _widened(graph, graph("Gather", graph.constant("flat", layout.flat), ids), layout.flat.dtype, wide)
        return _project(graph, layout, found, None, wide)
    place = ids
    if layout.place is not None:
        place = graph.cast(graph("Gather", graph.constant("place", layout.place), ids), torch.int64)
    bucket = None
    if len(layout.sizes) > 1:
        reached = graph("GreaterOrEqual", graph.axis(place, 1), graph.constant("next_starts", layout.starts[1:]))
        axes = graph.constant("axis_1", [1], torch.int64)
        bucket = graph("ReduceSum", graph.cast(reached, torch.int64), axes, keepdims=0)

    def pick(name: str) -> str:
        values = graph.constant(name, getattr(layout, name))
        return values if bucket is None else graph("Gather", values, bucket)

    first = graph("Mul", graph("Sub", place, pick("starts")), pick("strides"))
    column = graph.constant("column", torch.arange(layout.width // layout.unit))
    inner = graph("Add", graph.axis(first, 1), graph("Min", column, graph.axis(pick("last"), 1)))
    at = graph("Add", inner, graph.axis(pick("bases"), 1))
    if layout.bits:
        group = graph("Div", inner, graph.axis(pick("group_sizes"), 1))
        found = _decode(graph, layout, at, graph("Add", group, graph.axis(pick("group_bases"), 1)), wide)
    else:
        found = graph("Gather", graph.constant("flat", layout.flat), at)
        found = graph("Reshape", found, graph.constant("row", [-1, layout.width], torch.int64))
        found = _widened(graph, found, layout.flat.dtype, wide)
    size = pick("sizes")
    if bucket is not None:
        beyond = graph("GreaterOrEqual", graph.constant("columns", torch.arange(layout.width)), graph.axis(size, 1))
        found = graph("Where", beyond, graph.constant("nothing", 0.0, wide), found)
    return _project(graph, layout, found, size, wide)


def _widened(graph: Graph, value: str, dtype: torch.dtype, wide: torch.dtype) -> str:
    return value if dtype == wide else graph.cast(value, wide)


def _decode(graph: Graph, layout: Layout, at: str, group: str, wide: torch.dtype) -> str:
    per = layout.powers.shape[0]
    each = graph.constant("codes_per_byte", per, torch.int64)
    byte = graph("Gather", graph.constant("flat", layout.flat), graph("Div", at, each) if per > 1 else at)
    if per > 1:
        powers = graph.constant("powers", layout.powers.to(torch.int32))
        shifted = graph("Div", graph.cast(byte, torch.int32), graph("Gather", powers, graph("Mod", at, each)))
        byte = graph("Mod", shifted, graph.constant("codes", 2**layout.bits, torch.int32))
    scale, offset = (
        graph.cast(graph("Gather", graph.constant(name, getattr(layout, name)), group), torch.float32)
        for name in ("scale", "offset")
    )
    value = graph("Add", graph("Mul", graph.cast(byte, torch.float32), scale), offset)
    return _widened(graph, value, torch.float32, wide)


def _project(graph: Graph, layout: Layout, found: str, size: str | None, wide: torch.dtype) -> str:
    out = found if layout.width == layout.dim else None
    for at, (own, matrix) in enumerate(layout.projections):
        narrow = found
        if matrix.shape[0] < layout.width:
            ends = [
                graph.constant(f"{name}_{at}", [end], torch.int64)
                for name, end in (("begin", 0), ("end", matrix.shape[0]))
            ]
            narrow = graph("Slice", found, *ends, graph.constant("axis_1", [1], torch.int64))
        product = graph("MatMul", narrow, graph.constant(f"projection_{at}", matrix.to(wide)))
        if out is None or size is None:
            out = product
            continue
        kind, bound = ("Equal", own) if own else ("Less", layout.dim)
        chosen = graph(kind, size, graph.constant(f"size_{at}", bound, torch.int64))
        out = graph("Where", graph.axis(chosen, 1), product, out)
    return found if out is None else out


def _pool(
    graph: Graph, rows: str, ids: str, factor: str | None, padding: int | None, pooling: Pooling, wide: torch.dtype
) -> str:
    """[B, d] of rows [B, L, d]; padding neither adds nor counts."""
    axes, zero = graph.constant("axis_1", [1], torch.int64), graph.constant("nothing", 0.0, wide)
    real = None
    if padding is not None:
        own = graph("Equal", ids, graph.constant("padding", padding, torch.int64))
        real = graph.axis(graph("Not", own), 2)
    if factor is not None:
        rows = graph("Mul", rows, graph.axis(_widened(graph, factor, torch.float32, wide), 2))
    if pooling.mode == "max":
        if real is None:
            return graph("ReduceMax", rows, axes=[1], keepdims=0)
        rows = graph("Where", real, rows, graph.constant("lowest", float("-inf"), wide))
        largest = graph("ReduceMax", rows, axes=[1], keepdims=0)
        found = graph("ReduceSum", graph.cast(real, torch.int64), axes, keepdims=0)
        return graph("Where", graph("Greater", found, graph.constant("zero", 0, torch.int64)), largest, zero)
    rows = rows if real is None else graph("Where", real, rows, zero)
    total = graph("ReduceSum", rows, axes, keepdims=0)
    if pooling.mode == "sum":
        return total
    if real is None:
        count = graph("Gather", graph("Shape", ids), graph.constant("one", 1, torch.int64))
    else:
        count = graph("ReduceSum", graph.cast(real, torch.int64), axes, keepdims=0)
    count = graph("Max", count, graph.constant("one", 1, torch.int64))
    return graph("Div", total, graph.cast(count, wide))
