"""The citation graphs Cora, CiteSeer and PubMed, from the Planetoid authors' raw files, read without running them.

The raw files are pickles. Only the few constructors that the published files use are allowed here, and scipy's sparse
matrix among them is taken apart instead of imported, so neither scipy nor trust in a file's origin is needed.
"""

from __future__ import annotations

import os
import pickle
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._npz import dense_from_csr

__all__ = ["PLANETOID", "default_root", "find_raw", "prepare", "read_planetoid"]

PLANETOID = ("CiteSeer", "Cora", "PubMed")
_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
_TIMEOUT = 20.0  # seconds without an answer


def prepare(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Path:
    """Finds the raw files of a Planetoid graph, downloads them if they are absent, and says where they are.

    They are looked for in ``root/NAME/raw`` (where PyTorch Geometric keeps them), ``root/NAME``, ``root/raw`` and
    ``root``, and downloaded into the first.

    Args:
        name: ``"Cora"``, ``"CiteSeer"`` or ``"PubMed"``, in any case.
        root: folder of the raw files; by default the environment variable ``GRAPHLOSSY_DATA`` or, without it,
            ``~/.cache/graphlossy``.
        download: False never uses the network.

    Returns:
        The folder with the eight files ``ind.NAME.{x,tx,allx,y,ty,ally,graph,test.index}``.

    Raises:
        DatasetError: the name is another; or the files are absent and were not to be, or could not be, downloaded.

    Example:
        >>> from graphlossy.datasets import prepare
        >>> prepare("cora", root="nowhere", download=False)
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: Cora: no file ind.cora.x in nowhere/Cora/raw, nowhere/Cora, ...
    """
    known = {value.lower(): value for value in PLANETOID}
    if name.lower() not in known:
        raise DatasetError(f"{name!r} is no Planetoid graph; they are {', '.join(PLANETOID)}")
    name = known[name.lower()]
    base = Path(root) if root is not None else default_root()
    places = [base / name / "raw", base / name, base / "raw", base]
    for folder in places:
        if find_raw(folder) == name:
            return folder
    by_hand = (
        f"download ind.{name.lower()}.{{{','.join(_PARTS)}}} from {_URL} into {places[0]}, or set "
        "GRAPHLOSSY_DATA (in Python, root=) to the folder that holds them"
    )
    if not download:
        where = ", ".join(map(str, places))
        raise DatasetError(f"{name}: no file ind.{name.lower()}.x in {where}; {by_hand}")
    try:
        _download(name, places[0])
    except OSError as error:  # URLError, HTTPError and timeouts are OSErrors, as is a folder that is read-only
        raise DatasetError(f"{name}: its files are not there and the download failed ({error}); {by_hand}") from None
    return places[0]


def find_raw(folder: Path) -> str | None:
    """Which Planetoid graph's raw files lie in a folder, if any."""
    return next((name for name in PLANETOID if (folder / f"ind.{name.lower()}.x").exists()), None)


def read_planetoid(folder: Path) -> Arrays:
    """Reads the raw files in ``folder``, with the public split of Yang, Cohen and Salakhutdinov (ICML 2016).

    Twenty training nodes a class, 500 validation and 1,000 test nodes. The nodes of CiteSeer's test range that the
    files leave out have features of zero, class 0 and no mask, as in PyTorch Geometric.

    Raises:
        DatasetError: a file is missing, damaged, or holds anything but arrays, sparse matrices and lists.
    """
    name = find_raw(folder)
    if name is None:
        raise DatasetError(f"{folder}: holds no raw files of {', '.join(PLANETOID)}")
    file = {part: folder / f"ind.{name.lower()}.{part}" for part in _PARTS}
    missing = [path.name for path in file.values() if not path.exists()]
    if missing:
        raise DatasetError(f"{folder}: {', '.join(missing)} missing; download them from {_URL}")
    tx, allx = (_dense(_unpickle(file[part]), file[part]) for part in ("tx", "allx"))
    y, ty, ally = (_dense(_unpickle(file[part]), file[part]) for part in ("y", "ty", "ally"))
    edges = _edges(_unpickle(file["graph"]), file["graph"])
    try:
        test = np.array(file["test.index"].read_text().split(), dtype=np.int64)
        first, last = int(test.min()), int(test.max())
    except (ValueError, OverflowError):
        raise DatasetError(f"{file['test.index']}: must hold one node number a line; download it again") from None
    fits = first == len(allx) and len(np.unique(test)) == len(test) == len(tx) == len(ty) and len(ally) == len(allx)
    fits = fits and last < 2 * (len(allx) + len(tx))  # a few numbers of the test range may be left out, not most
    if not fits or tx.shape[1] != allx.shape[1] or ty.shape[1] != ally.shape[1]:
        raise DatasetError(f"{folder}: its files do not fit together; download all of them again from {_URL}")
    x = np.zeros((last + 1, allx.shape[1]), np.float32)
    label = np.zeros(last + 1, np.int64)
    x[:first], x[test] = allx, tx
    label[:first], label[test] = ally.argmax(1), ty.argmax(1)
    masks = tuple(np.zeros(last + 1, np.bool_) for _ in range(3))
    masks[0][: len(y)] = True
    masks[1][len(y) : min(len(y) + 500, first)] = True
    masks[2][test] = True
    return Arrays(name, name, x, edges, label, masks, num_classes=ally.shape[1])


def default_root() -> Path:
    """Where downloaded data sets are kept."""
    return Path(os.environ.get("GRAPHLOSSY_DATA") or Path.home() / ".cache" / "graphlossy")


def _download(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(_PARTS, key="x".__eq__):  # x, by which the files are found, comes last
        file = folder / f"ind.{name.lower()}.{part}"
        half = file.with_name(file.name + ".part")
        with urllib.request.urlopen(f"{_URL}/{file.name}", timeout=_TIMEOUT) as response:
            half.write_bytes(response.read())
        half.replace(file)


class _Matrix:
    """Takes the place of ``scipy.sparse.csr_matrix``: keeps its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _new(cls: type, base: type, state: object) -> object:
    """``copyreg._reconstructor`` for the one class that needs it."""
    if cls is not _Matrix or base is not object:
        raise pickle.UnpicklingError("an object of another type")
    return _Matrix()


def _encode(text: str, encoding: str) -> bytes:
    """``codecs.encode`` as Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("collections", "defaultdict"): defaultdict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(module, "list"): list for module in ("__builtin__", "builtins")},
    **{(module, "object"): object for module in ("__builtin__", "builtins")},
    **{(module, "_reconstructor"): _new for module in ("copy_reg", "copyreg")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"scipy.sparse.{module}", "csr_matrix"): _Matrix for module in ("csr", "_csr")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None


def _unpickle(file: Path) -> Any:
    try:
        with open(file, "rb") as stream:
            return _Unpickler(stream, encoding="latin1").load()
    except Exception as error:  # damaged bytes raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{file}: cannot be read ({reason}); download it again from {_URL}") from None


def _dense(value: Any, file: Path) -> np.ndarray:
    if isinstance(value, _Matrix):
        parts = [vars(value).get(key) for key in ("data", "indices", "indptr", "_shape")]
        if all(part is not None for part in parts):
            return dense_from_csr([np.asarray(part) for part in parts], "matrix", str(file))
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "fiub":
        return value.astype(np.float32)
    raise DatasetError(f"{file}: holds a {type(value).__name__}; a matrix is expected: download it again from {_URL}")


def _edges(graph: Any, file: Path) -> np.ndarray:
    try:
        source = np.repeat(np.array(list(graph), np.int64), [len(targets) for targets in graph.values()])
        target = np.array([node for targets in graph.values() for node in targets], np.int64)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise DatasetError(f"{file}: must hold lists of neighbours by node; download it again from {_URL}") from None
    return np.stack([source, target])
