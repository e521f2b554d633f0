"""Graphs that PyTorch Geometric downloads and reads: the benchmarks of its own examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._planetoid import default_root

__all__ = ["PYG", "read_pyg"]

# name: class in torch_geometric.datasets, its arguments, metric
PYG: dict[str, tuple[str, dict[str, Any], str]] = {
    "Actor": ("Actor", {}, "accuracy"),
    "Amazon-Computers": ("Amazon", {"name": "Computers"}, "accuracy"),
    "Amazon-Photo": ("Amazon", {"name": "Photo"}, "accuracy"),
    "Amazon-ratings": ("HeterophilousGraphDataset", {"name": "Amazon-ratings"}, "accuracy"),
    "Coauthor-CS": ("Coauthor", {"name": "CS"}, "accuracy"),
    "Coauthor-Physics": ("Coauthor", {"name": "Physics"}, "accuracy"),
    "Flickr": ("Flickr", {}, "accuracy"),
    "Minesweeper": ("HeterophilousGraphDataset", {"name": "Minesweeper"}, "rocauc"),
    "Questions": ("HeterophilousGraphDataset", {"name": "Questions"}, "rocauc"),
    "Reddit": ("Reddit", {}, "accuracy"),
    "Roman-empire": ("HeterophilousGraphDataset", {"name": "Roman-empire"}, "accuracy"),
    "Tolokers": ("HeterophilousGraphDataset", {"name": "Tolokers"}, "rocauc"),
    "WikiCS": ("WikiCS", {"is_undirected": True}, "accuracy"),
}


def read_pyg(name: str, root: str | os.PathLike[str] | None) -> Arrays:
    """Reads a graph through its class in ``torch_geometric.datasets``, which downloads it to ``root`` if it is absent.

    Graphs without a split of their own (Amazon, Coauthor) have 20 training and 30 validation nodes of each class, as in
    Shchur et al. 2018.

    Raises:
        DatasetError: the download failed or the files are damaged.
    """
    from torch_geometric import datasets

    kind, options, metric = PYG[name]
    base = Path(root) if root is not None else default_root()
    # Classes that hold several graphs make a folder for each; the others get one here.
    folder = base if "name" in options else base / name
    try:
        found = getattr(datasets, kind)(str(folder), **options)
        data = found[0]
    except Exception as error:  # no network, no space, a damaged file: whatever the readers stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"{name}: torch_geometric.datasets.{kind} could not download or read it ({reason}); look into {folder}, "
            "or set GRAPHLOSSY_DATA (in Python, root=) to the folder that PyTorch Geometric keeps it in"
        ) from None
    masks = [getattr(data, f"{which}_mask", None) for which in ("train", "val", "test")]
    arrays = Arrays(name, name, data.x.numpy(), data.edge_index.numpy(), data.y.numpy(), metric=metric)
    if all(mask is not None for mask in masks):
        splits = max(mask.numel() // len(mask) for mask in masks)
        a, b, c = (_columns(mask.numpy().astype(np.bool_), splits) for mask in masks)
        arrays.masks = a, b, c
    else:
        arrays.shares = None
    arrays.num_classes = int(found.num_classes)
    return arrays


def _columns(mask: np.ndarray, splits: int) -> np.ndarray:
    """A mask for each split; WikiCS has one test mask for all of them."""
    mask = mask.reshape(len(mask), -1)
    return np.repeat(mask, splits, axis=1) if mask.shape[1] == 1 else mask
