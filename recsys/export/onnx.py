"""Tables and models as ONNX graphs: gathers, products and selections, without sequences, loops or branches."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphlossy.core._files import written
from graphlossy.recsys.export._find import TABLES
from graphlossy.recsys.export._graph import onnx_library, sequence_ops, strip, write_model
from graphlossy.recsys.export._serve import exportable
from graphlossy.recsys.export._table_graph import table_model

__all__ = ["OnnxFile", "export_onnx"]


class OnnxFile(NamedTuple):
    """What `export_onnx` wrote.

    Attributes:
        path: of the model.
        nbytes: its size, that of its external data included.
        inputs, outputs: names.
        operators: kinds of nodes.
    """

    path: Path
    nbytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[str, ...]


def export_onnx(
    table_or_model: nn.Module,
    path: str | Path,
    args: tuple[Any, ...] | None = None,
    *,
    unknown: int | str = "error",
    bits: int | None = None,
    dims: Sequence[int | str] | None = None,
    weights: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    external_data: bool | None = None,
) -> OnnxFile:
    """Writes a table, or a whole model with its tables, as an ONNX file that needs nothing of this package.

    Multi-size and low-bit tables stay compressed, codes are decoded for the rows of a batch; the map takes 4 bytes a
    token. Tables of other kinds are folded to dense rows, which ``bits`` rounds. Ids are int64. Rows equal the table's
    to 1e-6 of the largest element (float32), but for ``bits``. The file takes its name when it is complete.

    Args:
        table_or_model: a table or bag, written node by node (needs onnx), or any other module (needs onnxscript too,
            and ``args``).
        path: of the file.
        args: example arguments of a model's forward; the first dimension of every tensor is the batch, at least 2.
        unknown: what an id that is not of a table does: ``"error"``, which the runtime reports as an index out of
            bounds, or the token that stands for it.
        bits: round float rows to 8, 4, 2 or 1 bits, in groups of 64 elements.
        dims: of a table's ids, a name for each that may vary; None: ``("batch",)``, of a bag
            ``("batch", "length")``.
        weights: give the graph of a bag a second input, per_sample_weights.
        input_names, output_names: of the graph; None: ``"ids"`` (and ``"per_sample_weights"``) and ``"rows"``, or the
            keys of a model's batch, or its arguments, and ``"output"``.
        dynamic_shapes: as for `torch.export.export`; None: a first dimension that varies.
        external_data: put tensors into ``<path>.data``; None: where the file would be too large (2 GB) without.

    Raises:
        ImportError: a package is not installed.
        TypeError, ValueError: an argument is not as described, or the model needs sequence operators.

    Example:
        >>> from importlib.util import find_spec
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(1000, 32, sizes=[32] * 100 + [4] * 900)
        >>> if find_spec("onnx"):  # pip install onnx
        ...     file = export_onnx(table, "table.onnx", unknown=0)
        ...     assert file.inputs == ("ids",) and "MatMul" in file.operators and "Loop" not in file.operators
    """
    path, onnx = Path(path), onnx_library()
    if not isinstance(table_or_model, nn.Module):
        raise TypeError(f"table_or_model must be a torch.nn.Module, got {type(table_or_model).__name__}")
    if isinstance(table_or_model, TABLES):
        if args is not None or dynamic_shapes is not None:
            raise ValueError("args and dynamic_shapes are those of a model; for a table give dims, or nothing")
        names = tuple(input_names or ("ids", "per_sample_weights")), tuple(output_names or ("rows",))
        model = table_model(table_or_model, unknown, bits, dims, weights, *names)
        write_model(model, path, external_data)
    else:
        if dims is not None or weights:
            raise ValueError("dims and weights are those of a table; for a model give args and dynamic_shapes")
        static = exportable(table_or_model, unknown, bits)
        _export_model(static, path, args, input_names, output_names, dynamic_shapes, external_data)
    model = onnx.load(str(path), load_external_data=False)
    beside = path.with_name(f"{path.name}.data")
    used = any(tensor.external_data for tensor in model.graph.initializer)
    return OnnxFile(
        path,
        path.stat().st_size + (beside.stat().st_size if used else 0),
        tuple(value.name for value in model.graph.input),
        tuple(value.name for value in model.graph.output),
        tuple(sorted({node.op_type for node in model.graph.node})),
    )


def _export_model(
    static: nn.Module,
    path: Path,
    args: Any,
    input_names: Any,
    output_names: Any,
    dynamic_shapes: Any,
    external_data: Any,
) -> None:
    if not isinstance(args, tuple) or not args:
        raise ValueError("args must be a tuple of example arguments of the model, such as (ids,) or (batch,)")
    try:
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise ImportError("a model's graph needs onnxscript: pip install onnxscript; a table alone does not") from error
    if dynamic_shapes is None:
        batch = torch.export.Dim("batch")
        dynamic_shapes = pytree.tree_map(lambda leaf: _batch_dims(leaf, batch), args)
    if input_names is None and len(args) == 1 and isinstance(args[0], Mapping):
        input_names = [str(name) for name in args[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        # Exported in two steps: given a dict as the last argument, torch.onnx would take it for keyword arguments.
        program = torch.export.export(static, args, dynamic_shapes=dynamic_shapes)
        if output_names is None and len(program.graph_signature.user_outputs) == 1:
            output_names = ["output"]
        torch.onnx.export(
            program, f=str(temporary), dynamo=True, verbose=False, input_names=input_names, output_names=output_names,
            external_data=bool(external_data),
        )  # fmt: skip
        model = onnx_library().load(str(temporary), load_external_data=False)
        if found := sequence_ops(model):
            raise ValueError(
                f"the model's graph has {', '.join(found)}, which many runtimes lack; the tables have none"
            )
        strip(model)
        onnx_library().save_model(model, str(temporary))


def _batch_dims(leaf: Any, batch: Any) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.dim():
        return None
    if leaf.shape[0] < 2:
        raise ValueError(f"args must have a batch of at least 2, got a tensor of shape {tuple(leaf.shape)}")
    return {0: batch}
