"""Graphs saved with ``torch.save``, as PyGOD publishes them, read with ``weights_only``: no code in them runs."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._files import allowed_globals
from graphlossy.datasets import DatasetError

__all__ = ["is_pt", "read_pt"]

_AGAIN = "it is damaged or incomplete, so download or save it again"


def is_pt(path: Path) -> bool:
    """Whether a file's name is one that :func:`read_pt` reads."""
    return path.name.lower().endswith((".pt", ".pth", ".pt.zip"))


def read_pt(path: Path) -> dict[str, Any]:
    """The attributes of the one graph in a ``.pt`` file, or in a ``.pt.zip`` archive that holds one such file.

    The file holds a ``torch_geometric.data.Data``, a dictionary of tensors, or what ``InMemoryDataset`` keeps as
    ``processed/data.pt`` for a single graph. Nothing but tensors, plain values and PyG's own containers is accepted,
    whatever the file asks for.

    Args:
        path: of the file.

    Returns:
        Name and value of each attribute, such as ``x``, ``edge_index`` and ``y``; ``edge_index`` is made from a sparse
        ``adj_t`` where the file has that instead.

    Raises:
        DatasetError: the file is absent, damaged or truncated, asks for anything else, or holds no single graph.

    Example:
        >>> import tempfile
        >>> from torch_geometric.data import Data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "graph.pt"
        ...     torch.save(Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0], [1]])), file)
        ...     sorted(read_pt(file))
        ['edge_index', 'x']
    """
    content = _content(path)
    if isinstance(content, (tuple, list)) and content:  # (data, slices, class): an InMemoryDataset
        if len(content) > 1 and isinstance(content[1], Mapping) and _graphs(content[1]) != 1:
            raise DatasetError(f"{path}: holds {_graphs(content[1])} graphs; save the one that is meant by itself")
        content = content[0]
    if hasattr(content, "to_dict"):
        try:
            content = content.to_dict()
        except Exception:  # an object of an old version lacks what the present class reads
            raise DatasetError(
                f"{path}: its {type(content).__name__} was saved by an incompatible version of torch_geometric; "
                "save x, edge_index and y as a dictionary of tensors"
            ) from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise DatasetError(
            f"{path}: holds a {type(content).__name__}; it must hold a torch_geometric.data.Data or a dictionary of "
            "tensors x, edge_index and, where there are labels, y"
        )
    found = {key: value for key, value in content.items() if value is not None}
    if "edge_index" not in found and isinstance(found.get("adj_t"), Tensor):
        found["edge_index"] = _edges_of(found["adj_t"], path)
    return found


def _content(path: Path) -> Any:
    try:
        stream = _stream(path)
        with allowed_globals(_containers()):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened ({error.strerror or error})") from None
    except Exception as error:  # damaged bytes raise whatever zip, zlib, pickle or torch stumbles over
        refused = re.search(r"unsupported (?:global: )?GLOBAL ([\w.]+)", str(error), re.IGNORECASE)
        if refused:
            raise DatasetError(
                f"{path}: holds a {refused[1]}, which could run code and is not read; save x, edge_index and y as "
                "plain tensors"
            ) from None
        raise DatasetError(f"{path}: no readable .pt file ({_line(error)}); {_AGAIN}") from None


def _stream(path: Path) -> Path | io.BytesIO:
    """What torch is to read: the file itself, or the one member of an archive around it."""
    if path.suffix.lower() != ".zip":
        with open(path, "rb"):  # an absent file is the system's error, not torch's
            return path
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        if any(name.endswith("/data.pkl") for name in names):
            return path  # torch's own format is a zip archive, whatever it is called
        inside = [name for name in names if name.endswith((".pt", ".pth")) and not name.startswith("__MACOSX/")]
        if len(inside) != 1:
            found = ", ".join(names[:5]) or "nothing"
            raise DatasetError(f"{path}: must hold one .pt file, it holds {found}; {_AGAIN}")
        return io.BytesIO(archive.read(inside[0]))


def _containers() -> list[Any]:
    """The classes a saved ``Data`` consists of; their constructors keep values and do nothing else."""
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    return [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]


def _graphs(slices: Mapping[str, Any]) -> int:
    return max((len(bounds) - 1 for bounds in slices.values() if hasattr(bounds, "__len__")), default=1)


def _edges_of(adj_t: Tensor, path: Path) -> Tensor:
    """``edge_index`` of PyG's transposed adjacency matrix: entry (i, j) is the edge from j to i."""
    if adj_t.dim() != 2 or adj_t.size(0) != adj_t.size(1):
        raise DatasetError(f"{path}: adj_t has shape {list(adj_t.shape)}; an adjacency matrix must be square")
    coordinates = adj_t.to_sparse_coo() if adj_t.layout is not torch.strided else adj_t.to_sparse()
    return coordinates.coalesce().indices().flip(0)


def _line(error: Exception) -> str:
    """What was wrong, in one line, without torch's advice to read the file unsafely."""
    reason = re.search(r"WeightsUnpickler error: *([^\n]+)", str(error))
    line = (reason[1] if reason else (str(error).splitlines() or [""])[0]).strip().rstrip(".")
    return line if " " in line else "torch.save did not write it"  # a byte or a name that the unpickler stumbled over
