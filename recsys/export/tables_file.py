"""The file of compressed tables: tensors as they are in memory, and JSON about how to build the tables around them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphlossy.core._files import written
from graphlossy.recsys.base import BagOf
from graphlossy.recsys.export._find import core_of, tables_of
from graphlossy.recsys.export._settings import build, known_classes, settings_of
from graphlossy.recsys.export._write import safetensors_library

__all__ = ["TablesFile", "load_tables", "load_vocabulary", "save_tables"]

_FORMAT, _VERSION = "graphlossy.recsys.tables", 1
_VOCABULARY = "vocabulary"
_DAMAGED = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)


class TablesFile(NamedTuple):
    """What `save_tables` wrote.

    Attributes:
        path: of the file.
        nbytes: its size.
        table_bytes: of the tables' tensors: the sum of their ``nbytes``, a shared tensor counted once.
        vocabulary_bytes: of the vocabulary.
        header_bytes: the rest: names, shapes and constructor settings.
    """

    path: Path
    nbytes: int
    table_bytes: int
    vocabulary_bytes: int
    header_bytes: int


def save_tables(
    model_or_tables: nn.Module | Mapping[str, nn.Module], path: str | Path, vocabulary: Any = None
) -> TablesFile:
    """Writes every embedding table to one safetensors file: maps, projections, codes, scales and how to build them.

    The file takes its name when it is complete; until then a file of that name stays what it was.

    Args:
        model_or_tables: a model (all its tables, by their paths), one table, or tables by names: those of
            `graphlossy.recsys`, `graphlossy.recsys.tables`, and torch's.
        path: of the file.
        vocabulary: anything that JSON can hold, such as an encoder's; `load_vocabulary` gives it back.

    Raises:
        TypeError, ValueError: there is no table, one cannot be built again from its attributes, or ``vocabulary`` is
            not JSON.
        ImportError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(10_000, 32, sizes=[32] * 1000 + [4] * 9000).quantize_(4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_tables({"item": table}, f"{folder}/tables.safetensors", vocabulary={"item": ["a", "b"]})
        ...     again = load_tables(file.path)["item"]
        ...     vocabulary = load_vocabulary(file.path)
        >>> ids = torch.arange(10_000)
        >>> torch.equal(again(ids), table(ids)), file.table_bytes == table.nbytes, file.nbytes < 1.05 * table.nbytes
        (True, True, True)
    """
    tables, path = tables_of(model_or_tables), Path(path)
    classes = known_classes(type(core_of(table)) for table in tables.values())
    cores: dict[int, int] = {}
    modules: dict[int, int] = {}
    about: dict[str, Any] = {"tables": [], "modules": [], "paths": {}, "same": {}}
    tensors: dict[str, Tensor] = {}
    stored: dict[tuple[Any, ...], str] = {}
    for name, module in tables.items():
        core = core_of(module)
        if id(core) not in cores:
            cores[id(core)] = at = len(cores)
            about["tables"].append(_entry(core, classes))
            for key, tensor in core.state_dict().items():
                _add(f"{at}.{key}", tensor.detach(), tensors, stored, about["same"])
        if id(module) not in modules:
            modules[id(module)] = len(modules)
            bag = [module.mode, module.include_last_offset] if module is not core else None
            about["modules"].append([cores[id(core)], bag])
        about["paths"][name] = modules[id(module)]
    table_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if vocabulary is not None:
        tensors[_VOCABULARY] = _as_bytes(vocabulary)
    words = tensors[_VOCABULARY].nbytes if vocabulary is not None else 0
    metadata = {"format": _FORMAT, "version": str(_VERSION), "about": json.dumps(about, separators=(",", ":"))}
    library = safetensors_library()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        library.torch.save_file(tensors, temporary, metadata)
    size = path.stat().st_size
    return TablesFile(path, size, table_bytes, words, size - table_bytes - words)


def _entry(core: Any, classes: dict[str, type]) -> dict[str, Any]:
    kind = type(core)
    if classes.get(kind.__name__) is not kind:
        raise TypeError(f"{kind.__module__}.{kind.__name__} has the name of a table of graphlossy.recsys; rename it")
    frozen = [name for name, parameter in core.named_parameters() if not parameter.requires_grad]
    entry = {"class": kind.__name__, "settings": settings_of(core), "training": core.training}
    if getattr(core, "name", ""):
        entry["name"] = core.name
    return entry | ({"frozen": frozen} if frozen else {})


def _add(
    key: str, tensor: Tensor, tensors: dict[str, Tensor], stored: dict[tuple[Any, ...], str], same: dict[str, str]
) -> None:
    """Stores a tensor, or that it is one that was stored."""
    place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if tensor.numel() and place in stored:
        same[key] = stored[place]
        return
    stored[place] = key
    # A view of something larger is stored for itself.
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    tensors[key] = tensor.cpu() if whole else tensor.cpu().contiguous().clone()


def _as_bytes(vocabulary: Any) -> Tensor:
    try:
        text = json.dumps(vocabulary, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"vocabulary must be JSON (dicts, lists, texts and numbers): {error}") from error
    # A tensor, as the header of such a file may have no more than 100 MB.
    return torch.frombuffer(bytearray(text.encode("utf-8", "surrogatepass")), dtype=torch.uint8)


def load_tables(path: str | Path, device: torch.device | str = "cpu", classes: Iterable[type] = ()) -> dict[str, Any]:
    """The tables of a file, by their names or paths; what was shared is shared again.

    On the CPU the tensors are the mapped file: memory is taken for the pages that are read, writing to a tensor does
    not reach the file, and replacing the file by another does not reach the tensors. Put them into a model with
    ``model.set_submodule(path, table)``.

    Args:
        path: of a file that `save_tables` wrote.
        device: where to.
        classes: your own subclasses of `graphlossy.recsys.CompressedEmbedding` that the file may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, is of another kind, or of a newer version.
        ImportError: safetensors is not installed.
    """
    path, known = Path(path), known_classes(classes)
    about, tensors = _read(path)
    try:
        tensors |= {key: tensors[other] for key, other in about["same"].items()}
        cores = [_table(entry, at, tensors, known) for at, entry in enumerate(about["tables"])]
        _tie(about["same"], cores)
        for core in cores:
            core.to(device)
        modules = [cores[at] if bag is None else BagOf(cores[at], *bag) for at, bag in about["modules"]]
        return {str(name): modules[at] for name, at in about["paths"].items()}
    except _DAMAGED as error:
        message = str(error).strip().replace("\n", " ")
        raise ValueError(f"{path} does not hold the tables that it says it does: {message}") from error


def load_vocabulary(path: str | Path) -> Any:
    """The vocabulary that was saved with the tables, None if there was none; raises as `load_tables` does."""
    _, tensors = _read(Path(path))
    if _VOCABULARY not in tensors:
        return None
    try:
        return json.loads(tensors[_VOCABULARY].numpy().tobytes())
    except _DAMAGED as error:
        raise ValueError(f"the vocabulary of {path} is damaged ({error}); save the tables again") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    library = safetensors_library()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (library.SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is truncated, or no file of tables ({error}); copy it or save it again") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not one that save_tables wrote")
    version = metadata.get("version", "")
    if version != str(_VERSION):
        raise ValueError(f"{path} has version {version!r} of the format; this graphlossy reads {_VERSION}: update it")
    try:
        about = json.loads(metadata["about"])
        for name in ("tables", "modules", "paths", "same"):
            about[name]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the tables again") from error
    return about, tensors


def _table(entry: dict[str, Any], at: int, tensors: dict[str, Tensor], known: dict[str, type]) -> Any:
    kind = known.get(entry["class"])
    if kind is None:
        raise ValueError(
            f"no table of the class {entry['class']!r} is known; pass it in classes=, or update graphlossy"
        )
    prefix = f"{at}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    core: Any = build(kind, entry["settings"], state)
    core.train(bool(entry["training"]))
    if "name" in entry:
        core.name = str(entry["name"])
    parameters = dict(core.named_parameters())
    for name in entry.get("frozen", ()):
        parameters[name].requires_grad_(False)
    return core


def _tie(same: dict[str, str], cores: list[Any]) -> None:
    """Makes parameters that were one tensor one parameter."""
    for key, other in same.items():
        (at, name), (of, source) = key.split(".", 1), other.split(".", 1)
        owner, _, leaf = name.rpartition(".")
        module = cores[int(at)].get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = cores[int(of)].get_parameter(source)
