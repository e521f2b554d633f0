"""Outlier labels: a bit field of kinds where they are known, else yes or no."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.datasets import DatasetError

__all__ = ["CONTEXTUAL", "LEFT_OUT", "STRUCTURAL", "labels", "left_out", "read_labels", "types"]

CONTEXTUAL, STRUCTURAL = 1, 2
_TYPES = {"contextual": CONTEXTUAL, "structural": STRUCTURAL}
_ALL = CONTEXTUAL | STRUCTURAL
LEFT_OUT = "its y holds class numbers and was left out"  # in the note of a graph, before what to do about it


def labels(data: Any) -> Tensor:
    """Which nodes are outliers, bool [N].

    Args:
        data: PyG ``Data`` with ``y`` [N]: as :func:`graphlossy.outliers.load` makes it, or 0 and 1 or bool.

    Raises:
        ValueError: there are no labels, they are class numbers, not one a node, or all equal.

    Example:
        >>> from torch_geometric.data import Data
        >>> labels(Data(x=torch.ones(3, 1), y=torch.tensor([0, 1, 0]))).tolist()
        [False, True, False]
    """
    outlier = _checked(data) != 0
    if not bool(outlier.any()) or bool(outlier.all()):
        which = "all of" if len(outlier) and bool(outlier.all()) else "none of"
        raise DatasetError(
            f"{_name(data)}: {which} its {len(outlier):,} nodes are labelled as outliers; no figure of merit is "
            "defined without both kinds"
        )
    return outlier


def types(data: Any) -> dict[str, Tensor]:
    """The outliers of each type that occurs, bool [N]; a node may be of both, and {} where types are not known.

    Args:
        data: as :func:`labels` takes it; ``data.typed`` says that ``y`` is a bit field, 1 contextual and 2 structural.

    Raises:
        ValueError: as :func:`labels`.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.ones(4, 1), y=torch.tensor([0, 1, 2, 3]), typed=True)
        >>> {name: mask.tolist() for name, mask in types(data).items()}
        {'contextual': [False, True, False, True], 'structural': [False, False, True, True]}
    """
    y = _checked(data)
    if not getattr(data, "typed", False):
        return {}
    found = {name: (y & bit) != 0 for name, bit in _TYPES.items()}
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def left_out(note: str | None) -> str:
    """What a graph's note says of labels that were left out, in parentheses; "" where it says nothing of them.

    Example:
        >>> left_out(f"mine.pt; {LEFT_OUT}"), left_out("mine.pt")
        (' (its y holds class numbers and was left out)', '')
    """
    _, found, advice = (note or "").partition(LEFT_OUT)
    return f" ({found}{advice})" if found else ""


def read_labels(values: Any, nodes: int, where: str) -> Tensor:
    """Labels as int64 [N], of 0 to 3.

    Args:
        values: anything numpy makes an array of; one number a node.
        nodes: N.
        where: what messages call them.

    Raises:
        DatasetError: another number of values, or values that are no labels of outliers.
    """
    y = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (nodes,):
        raise DatasetError(
            f"{where}: the labels have shape {list(y.shape)}; there must be one for each of {nodes:,} nodes"
        )
    if y.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: the labels are an array of {y.dtype}; they must be numbers, 1 for an outlier")
    wrong = ~np.isin(y, range(_ALL + 1))  # NaN is not among them
    if wrong.any():
        node = int(wrong.argmax())
        raise DatasetError(
            f"{where}: the label of node {node:,} is {y[node]}; labels of outliers are 0 and 1, or a bit field "
            f"({CONTEXTUAL} contextual, {STRUCTURAL} structural, {_ALL} both)"
        )
    return torch.from_numpy(y.astype(np.int64))


def _checked(data: Any) -> Tensor:
    y, where = getattr(data, "y", None), _name(data)
    if y is None:
        note = f" ({note})" if (note := getattr(data, "note", None)) else ""
        raise DatasetError(
            f"{where}: has no labels of outliers{note}; set data.y to 1 for outliers and 0 for the others, name them "
            "as PATH#LABELS, or inject outliers"
        )
    nodes = data.num_nodes if getattr(data, "x", None) is None else len(data.x)
    y = read_labels(y, nodes, where)
    if not getattr(data, "typed", False) and bool((y > 1).any()):
        raise DatasetError(
            f"{where}: y goes up to {int(y.max())}, as class numbers do; labels of outliers are 0 and 1, or set "
            f"data.typed = True where they are a bit field ({CONTEXTUAL} contextual, {STRUCTURAL} structural)"
        )
    return y


def _name(data: Any) -> str:
    return str(getattr(data, "name", None) or "the graph")
