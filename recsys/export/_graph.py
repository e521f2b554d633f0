"""ONNX graphs, node by node."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._files import written

__all__ = ["Graph", "SEQUENCE_OPS", "onnx_library", "sequence_ops", "strip", "write_model"]

_OPSET = 17
_TYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.uint8: "UINT8",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.bool: "BOOL",
}
SEQUENCE_OPS = frozenset(
    ["ConcatFromSequence", "If", "Loop", "Scan", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
     "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"]
)  # fmt: skip
_LARGEST_FILE = 2**31 - 2**20  # bytes: what a protobuf message can hold, less its own overhead


def onnx_library() -> Any:
    """The onnx package."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError("ONNX files need the onnx package: pip install onnx") from error


class Graph:
    """Nodes, constants and their names; a value is the name of the edge that carries it."""

    def __init__(self) -> None:
        self.onnx = onnx_library()
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []

    def type_of(self, dtype: torch.dtype) -> int:
        """ONNX's number for a type."""
        return getattr(self.onnx.TensorProto, _TYPES[dtype])

    def input(self, name: str, dtype: torch.dtype, dims: Sequence[int | str]) -> str:
        """An input of the graph."""
        self.inputs.append(self.onnx.helper.make_tensor_value_info(name, self.type_of(dtype), list(dims)))
        return name

    def constant(self, name: str, value: Tensor | int | float | Sequence[int], dtype: torch.dtype | None = None) -> str:
        """A tensor that the graph holds, once under one name."""
        if name not in self.constants:
            tensor = torch.as_tensor(value, dtype=dtype).detach().cpu().contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            shape = list(tensor.shape)
            self.constants[name] = self.onnx.helper.make_tensor(name, self.type_of(tensor.dtype), shape, data, raw=True)
        return name

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def cast(self, value: str, dtype: torch.dtype) -> str:
        """``value`` in another type."""
        return self("Cast", value, to=self.type_of(dtype))

    def axis(self, value: str, at: int) -> str:
        """``value`` with one more dimension, of size 1, at ``at``."""
        return self("Unsqueeze", value, self.constant(f"axis_{at}", [at], torch.int64))

    def model(
        self, output: str, name: str, dtype: torch.dtype, dims: Sequence[int | str], about: dict[str, str]
    ) -> Any:
        """The graph as a checked ONNX model; ``about`` becomes its metadata."""
        helper = self.onnx.helper
        self.nodes.append(helper.make_node("Identity", [output], [name], name=name))
        outputs = [helper.make_tensor_value_info(name, self.type_of(dtype), list(dims))]
        graph = helper.make_graph(self.nodes, "graphlossy_table", self.inputs, outputs, list(self.constants.values()))
        model = helper.make_model(graph, producer_name="graphlossy", opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = 8  # of opset 17: readable by every runtime since 2022
        helper.set_model_props(model, about)
        return model


def sequence_ops(model: Any) -> list[str]:
    """Names of operators in a model, in its functions and branches, that make sequences or branch or loop."""
    graphs = [model.graph.node, *(function.node for function in model.functions)]
    return sorted({node.op_type for nodes in graphs for node in _nodes(nodes)} & SEQUENCE_OPS)


def _nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def strip(model: Any) -> None:
    """Takes out what an exporter notes about where a node came from: source lines, with paths of this machine."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _nodes(nodes):
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]


def write_model(model: Any, path: Path, external_data: bool | None) -> None:
    """Checks a model and writes it; its large tensors to ``<path>.data`` if asked, or if there is no other way."""
    onnx = onnx_library()
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if external_data is None:
        external_data = size > _LARGEST_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        if external_data:
            onnx.save_model(
                model, str(temporary), save_as_external_data=True, all_tensors_to_one_file=True,
                location=f"{path.name}.data", size_threshold=1024, convert_attribute=False,
            )  # fmt: skip
        else:
            onnx.save_model(model, str(temporary))
        onnx.checker.check_model(str(temporary))  # by its path, as a message of 2 GB cannot be passed
