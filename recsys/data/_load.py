"""Data by name or path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from graphlossy.recsys.data._atomic import AtomicFiles, atomic_chunks, find_atomic
from graphlossy.recsys.data._build import build, check_tokens, splits
from graphlossy.recsys.data._cache import encoded
from graphlossy.recsys.data._ctr import CTRData
from graphlossy.recsys.data._encoder import Encoder
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._hashing import check_seed
from graphlossy.recsys.data._layouts import LAYOUTS
from graphlossy.recsys.data._packages import PACKAGES, find
from graphlossy.recsys.data._partition import check_split
from graphlossy.recsys.data._published import epinions, movielens
from graphlossy.recsys.data._root import cache_root
from graphlossy.recsys.data._schema import Schema, read_schema
from graphlossy.recsys.data._store import FolderStore, MemoryStore, Store
from graphlossy.recsys.data._tables import file_chunks
from graphlossy.recsys.data._zipf import zipf

__all__ = ["default_name", "load", "names"]

_DEFAULT = "movielens-100k"


def names() -> list[str]:
    """The data that :func:`load` knows by name.

    Example:
        >>> names()
        ['epinions', 'movielens-100k', 'movielens-100k-ids', 'zipf']
    """
    return sorted([*PACKAGES, "zipf"])


def default_name(root: str | os.PathLike[str] | None = None) -> str:
    """``"movielens-100k"`` where it is here, else ``"zipf"``; nothing is downloaded.

    Args:
        root: a folder, or the wheel itself; None is ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.

    Example:
        >>> default_name("nowhere") in names()
        True
    """
    return _DEFAULT if find(_DEFAULT, root) is not None else "zipf"


def load(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    schema: Schema | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    split: str = "random",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    min_count: int | None = None,
    root: str | os.PathLike[str] | None = None,
    cache: bool = True,
    **options: Any,
) -> CTRData:
    """Loads and encodes data for predicting a label of 0 or 1.

    =======================  =======================================================================================
    ``"movielens-100k"``     100,000 ratings with what is known of users and films; label: 4 stars or more
    ``"movielens-100k-ids"`` the same with user and item alone
    ``"epinions"``           346,035 pairs of user and item, and drawn negatives (option ``per_positive``)
    ``"zipf"``               generated; options of :func:`zipf`
    a ``.inter`` file        RecBole's atomic files, or a folder that holds them; the schema may be a part of one
    other files              CSV or TSV (also .gz, .bz2 or .xz) or parquet, one or several with the same columns
    =======================  =======================================================================================

    The first three are read from Python packages that bring them (see :func:`fetch`). Files are read in pieces, and
    their encoded columns are kept under ``root/recsys`` by the files' checksum, the schema and the split: they are
    encoded once, and memory grows with the distinct tokens, not with the rows. Vocabularies and scales are those of
    the training rows.

    Args:
        source: a name, a path, or several paths.
        schema: of a file: a :class:`Schema`, a mapping, the path of a JSON file, ``"criteo"`` or ``"avazu"``; None
            reads ``NAME.schema.json`` beside ``NAME.csv``.
        split: ``"random"``, or ``"time"``: by the schema's time column or, without one, in the file's order.
        fractions: of training, validation and test rows.
        seed: of a random split, of negatives and of generated data.
        min_count: in place of the schema's.
        root: a folder, or for a package's data its wheel; None is ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        cache: False keeps a file's encoded columns in memory and writes nothing.
        options: of the named data.

    Raises:
        DataError: the data are not here or damaged, or an argument is wrong; it names file, line and column.
        ImportError: pandas is not installed, which all but ``"zipf"`` needs.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("clicks.csv").write_text("user,ad,click\\n" + "ann,x,1\\nbob,y,0\\nann,y,1\\n" * 10)
        >>> data = load("clicks.csv", {"columns": ["user", "ad"], "label": "click"}, root="cache")
        >>> [(field.name, field.num_tokens) for field in data.fields]
        [('user', 3), ('ad', 3)]
        >>> batch = next(iter(data.train.batches(4)))
        >>> batch["user"].shape, batch["label"].dtype
        (torch.Size([4]), torch.float32)
    """
    shares, seed = check_split(split, fractions), check_seed(seed)
    if isinstance(source, str) and source in names():
        return _named(source, schema, split, shares, seed, min_count, root, options)
    if options:
        raise DataError(f"there is no option {next(iter(options))!r} for files")
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    paths = [Path(path) for path in given]
    if not paths:
        raise DataError("source must be a name or at least one path, got none")
    for path in paths:
        _check_path(path)
    atomic = find_atomic(paths[0])
    if atomic is not None:
        if len(paths) > 1:
            raise DataError(f"{paths[0]}: atomic files are given by one path, got {len(paths)}")
        made = atomic.schema(schema).with_min_count(min_count)
        files = [Path(entry.where) for entry in atomic.sources.values()]
    else:
        if paths[0].is_dir():
            raise DataError(f"{paths[0]}: is a folder without a .inter file; give the paths of its tables")
        made = _schema(schema, paths[0]).with_min_count(min_count)
        files = paths
    return _encode(files, atomic, made, split, shares, seed, root, cache)


def _named(
    name: str, schema: Any, split: str, fractions: tuple[float, float, float], seed: int, min_count: int | None,
    root: str | os.PathLike[str] | None, options: dict[str, Any],
) -> CTRData:  # fmt: skip
    if schema is not None:
        raise DataError(f"{name}: has a schema of its own; leave schema out")
    allowed = {"epinions": epinions, "zipf": zipf}.get(name)
    known = [word for word in allowed.__annotations__ if word != "return"] if allowed else []
    if unknown := [word for word in options if word not in known]:
        raise DataError(
            f"{name}: there is no option {unknown[0]!r}" + (f"; they are {', '.join(known)}" if known else "")
        )
    if name == "zipf":
        if min_count not in (None, 1):
            raise DataError(f"zipf: every token has an id; leave min_count = {min_count} out")
        return zipf(**options, split=split, fractions=fractions, seed=seed)
    if name == "epinions":
        return epinions(root, split, fractions, seed, min_count, **options)
    return movielens(name, root, split, fractions, seed, min_count)


def _encode(
    files: list[Path], atomic: AtomicFiles | None, schema: Schema, split: str, fractions: tuple[float, float, float],
    seed: int, root: str | os.PathLike[str] | None, cache: bool,
) -> CTRData:  # fmt: skip
    where = str(files[0])

    def make(store: Store) -> Encoder:
        chunks = atomic_chunks(atomic, schema) if atomic is not None else file_chunks(files, schema)
        encoder = build(chunks, schema, store, split, fractions, seed, where)
        check_tokens(encoder, where)
        return encoder

    name = files[0].name.partition(".")[0] or "table"
    if cache:
        settings = {
            "schema": schema.to_dict(), "split": split, "fractions": fractions, "seed": seed,
            "names": [file.suffixes for file in files],
        }  # fmt: skip
        encoder, parts = encoded(cache_root(root) / "recsys", name, files, settings, partial(_written, make))
    else:
        store = MemoryStore()
        encoder = make(store)
        parts = splits(schema, store)
    note = f"read from {', '.join(map(str, files))}"
    return CTRData(name, encoder.fields, *parts, note, encoder)


def _written(make: Any, store: FolderStore) -> Encoder:
    return make(store)


def _schema(value: Any, path: Path) -> Schema:
    if isinstance(value, str) and value in LAYOUTS:
        return LAYOUTS[value]()
    if value is None:
        beside = path.with_name(path.name.partition(".")[0] + ".schema.json")
        if not beside.exists():
            raise DataError(
                f"{path}: needs a schema: a mapping such as {{'columns': {{'user': 'token'}}, 'label': 'rating>=4'}}, "
                f"the path of a JSON file, 'criteo' or 'avazu'; or write it to {beside}"
            )
        value = beside
    return read_schema(value)


def _check_path(path: Path) -> None:
    if path.exists():
        return
    text = str(path)
    if not path.suffix and len(path.parts) == 1:
        close = difflib.get_close_matches(text.lower(), names(), n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise DataError(f"there are no data {text!r}; {hint}the names are {', '.join(names())}; else give a path")
    raise DataError(f"{path}: there is no such file or folder")
