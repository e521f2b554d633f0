"""The file of a plan: tensors and JSON in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphlossy.core import PackedMask, pack_mask, unpack_mask
from graphlossy.core._files import written

if TYPE_CHECKING:
    from graphlossy.recsys.plan import EmbeddingPlan

__all__ = ["read_plan", "write_plan"]

_FORMAT, _VERSION = "graphlossy.recsys.plan", 1


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        message = "plans are safetensors files: pip install safetensors, or pip install 'graphlossy[recsys]'"
        raise ImportError(message) from error
    return safetensors


def write_plan(plan: EmbeddingPlan, path: Path) -> None:
    """Writes to a file beside ``path`` that then takes its name, so that there is never half a plan."""
    from graphlossy.recsys.plan import plan_data

    tensors: dict[str, Tensor] = {}
    for at, table in enumerate(plan.tables):
        if table.sizes is not None:
            tensors[f"{at}.sizes"] = table.sizes.to(torch.uint8) if table.embedding_dim < 256 else table.sizes
        if table.mask is not None:
            tensors[f"{at}.mask"] = pack_mask(table.mask.cpu().contiguous()).bits
    # One entry: safetensors writes several in no fixed order, and equal plans are to be equal files.
    metadata = {_FORMAT: json.dumps({"version": _VERSION, **plan_data(plan)})}
    data = _safetensors().torch.save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        temporary.write_bytes(data)


def read_plan(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what `plan_data` gave, sizes and masks by "<table>.sizes" and "<table>.mask").

    Raises:
        FileNotFoundError, ValueError: there is no file, or it is no plan.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no plan {path}")
    library = _safetensors()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except library.SafetensorError as error:
        message = f"{path} is truncated, or no plan ({error}); copy it again, or search and save a plan"
        raise ValueError(message) from error
    if _FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but no plan of embedding tables; give one that a plan saved")
    try:
        data = json.loads(metadata[_FORMAT])
        version = data.pop("version")
        if version != _VERSION:
            raise ValueError(f"its version is {version}, this graphlossy reads {_VERSION}: update graphlossy")
        for at, entry in enumerate(data["tables"]):
            if f"{at}.mask" in tensors:
                shape = entry["num_embeddings"], entry["embedding_dim"]
                packed = PackedMask(tensors[f"{at}.mask"], shape)
                tensors[f"{at}.mask"] = unpack_mask(packed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); search again and save the plan") from error
    return data, tensors
