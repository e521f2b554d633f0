"""Training of click models, and the study that compares methods at equal bytes.

>>> from graphlossy.recsys.train import FitConfig
>>> FitConfig(epochs=3).lr
0.003
"""

from __future__ import annotations

from graphlossy.core._files import write_json, write_text
from graphlossy.core._peak import PeakMeter
from graphlossy.recsys.train._chart import Series, chart
from graphlossy.recsys.train._summary import HEAD, SHORT_HEAD, notes, summarize, table_rows
from graphlossy.recsys.train._tables import largest_table, lookup_ms, table_bytes, tables_of
from graphlossy.recsys.train.cells import (
    FIXED,
    REFERENCES,
    default_config,
    full_table_bytes,
    method_names,
    parse_method,
    run_cell,
    takes_bits,
)
from graphlossy.recsys.train.config import OPTIMIZERS, FitConfig, TrainingError, resolve_device
from graphlossy.recsys.train.fit import FitResult, evaluate, fit, loss_fn
from graphlossy.recsys.train.metrics import auc, logloss, spearman
from graphlossy.recsys.train.report import render_report
from graphlossy.recsys.train.study import Cell, Observer, Study, budget_bytes

__all__ = [
    "Cell",
    "FIXED",
    "FitConfig",
    "FitResult",
    "HEAD",
    "OPTIMIZERS",
    "Observer",
    "PeakMeter",
    "REFERENCES",
    "SHORT_HEAD",
    "Series",
    "Study",
    "TrainingError",
    "auc",
    "budget_bytes",
    "chart",
    "default_config",
    "evaluate",
    "fit",
    "full_table_bytes",
    "largest_table",
    "logloss",
    "lookup_ms",
    "loss_fn",
    "method_names",
    "notes",
    "parse_method",
    "render_report",
    "resolve_device",
    "run_cell",
    "spearman",
    "summarize",
    "table_bytes",
    "table_rows",
    "tables_of",
    "takes_bits",
    "write_json",
    "write_text",
]
