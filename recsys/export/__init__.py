"""Tables and models for serving: files of tables, torch's quantised tables, dense tables, torch.export and ONNX."""

from __future__ import annotations

from graphlossy.recsys.export._serve import ExportableTable, exportable
from graphlossy.recsys.export.dense import fold_dense
from graphlossy.recsys.export.onnx import OnnxFile, export_onnx
from graphlossy.recsys.export.quantized import QuantizedBag, QuantizedTable, to_torch_quantized
from graphlossy.recsys.export.tables_file import TablesFile, load_tables, load_vocabulary, save_tables

__all__ = ["ExportableTable", "OnnxFile", "QuantizedBag", "QuantizedTable", "TablesFile", "export_onnx", "exportable",
           "fold_dense", "load_tables", "load_vocabulary", "save_tables", "to_torch_quantized"]  # fmt: skip
