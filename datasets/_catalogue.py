"""Every data set that ``load`` knows by name: sizes, licence, where it comes from, and whether it is here."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from graphlossy.datasets._debian import NAME as DEBIAN
from graphlossy.datasets._debian import find_prepared
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._facts import FACTS, Entry
from graphlossy.datasets._generate import check_scale
from graphlossy.datasets._mark import read_mark
from graphlossy.datasets._models import MODELS, known_model, not_a_graph
from graphlossy.datasets._ogb import OGB, find_ogb
from graphlossy.datasets._ogb_raw import is_ogb_layout
from graphlossy.datasets._planetoid import PLANETOID, default_root, prepare
from graphlossy.datasets._pyg import PYG
from graphlossy.datasets._wordnet import FILE
from graphlossy.datasets._wordnet import NAME as WORDNET
from graphlossy.datasets._write_ogb import STAND_INS, stand_in_folder

__all__ = ["Entry", "catalogue", "catalogue_entry", "locate", "pyg_folder", "quick", "stand_in", "way"]

_UNKNOWN = "not stated"
_CITATIONS = "citations between papers (Sen et al. 2008), in the files and split of Yang et al. (ICML 2016)"
_AMAZON = "products often bought together, classes are categories (Shchur et al. 2018)"
_COAUTHOR = "authors who wrote a paper together, classes are fields of study (Shchur et al. 2018)"
_HETEROPHILOUS = "{} (Platonov et al., ICLR 2023)"
_LOCAL = (
    Entry(
        WORDNET, 13_767, 15_653, 512, 15, "accuracy", "WordNet 3.0 licence",
        "verbs of WordNet and the relations between them, classes are lexicographer files (Fellbaum 1998)",
        FILE.stat().st_size, split="random",
    ),
    Entry(
        DEBIAN, 63_436, 290_751, 128, 51, "accuracy", "descriptions: their packages'",
        "packages of Debian 12 and what they depend on, classes are sections; another release has other sizes",
        44_000_000, split="random, all packages of a source in one part",
    ),
)  # fmt: skip
_PUBLIC = "20 training nodes of each class, 500 and 1,000 for validation and test"
_PLANETOID_ENTRIES = tuple(
    Entry(name, *sizes, "accuracy", "MIT", _CITATIONS, size, split=_PUBLIC, sizes_of_split=split)
    for name, sizes, size, split in (
        ("CiteSeer", (3_327, 4_552, 3_703, 6), 1_036_168, (120, 500, 1_000)),
        ("Cora", (2_708, 5_278, 1_433, 7), 572_444, (140, 500, 1_000)),
        ("PubMed", (19_717, 44_324, 500, 3), 0, (60, 500, 1_000)),
    )
)
_DRAWN = "20 training and 30 validation nodes of each class, drawn"
_TEN = "ten of 50 %, 25 %, 25 %"
_QUICK = 10_000_000  # edges of a graph that is generated in a few seconds
_RAW_FILES = {"Actor": 12, "Flickr": 4, "Reddit": 2}  # of PyTorch Geometric's classes; the others have one
# name: nodes, edges, features, classes; licence; what it is; split
_PYG: dict[str, tuple[tuple[int, int, int, int], str, str, str]] = {
    "Actor": ((7_600, 30_019, 932, 5), _UNKNOWN, "actors on one Wikipedia page (Pei et al., ICLR 2020)", "ten"),
    "Amazon-Computers": ((13_752, 245_861, 767, 10), "MIT", _AMAZON, _DRAWN),
    "Amazon-Photo": ((7_650, 119_081, 745, 8), "MIT", _AMAZON, _DRAWN),
    "Amazon-ratings": (
        (24_492, 93_050, 300, 5), "MIT",
        _HETEROPHILOUS.format("products bought together, classes are ratings"), _TEN,
    ),
    "Coauthor-CS": ((18_333, 81_894, 6_805, 15), "MIT", _COAUTHOR, _DRAWN),
    "Coauthor-Physics": ((34_493, 247_962, 8_415, 5), "MIT", _COAUTHOR, _DRAWN),
    "Flickr": (
        (89_250, 449_878, 500, 7), _UNKNOWN, "pictures with common properties (Zeng et al., ICLR 2020)", "published",
    ),
    "Minesweeper": (
        (10_000, 39_402, 7, 2), "MIT", _HETEROPHILOUS.format("cells of a grid, classes are mines or not"), _TEN,
    ),
    "Questions": (
        (48_921, 153_540, 301, 2), "MIT",
        _HETEROPHILOUS.format("users who answered each other, classes are who stayed"), _TEN,
    ),
    "Reddit": (
        (232_965, 57_307_946, 602, 41), _UNKNOWN,
        "posts commented on by one user, classes are communities (Hamilton et al., NeurIPS 2017)", "published, by time",
    ),
    "Roman-empire": (
        (22_662, 32_927, 300, 18), "MIT",
        _HETEROPHILOUS.format("words of an article, classes are their syntactic roles"), _TEN,
    ),
    "Tolokers": (
        (11_758, 519_000, 10, 2), "MIT",
        _HETEROPHILOUS.format("workers who shared a task, classes are who was banned"), _TEN,
    ),
    "WikiCS": (
        (11_701, 216_123, 300, 10), "MIT", "articles on computer science and their links (Mernyei and Cangea 2020)",
        "twenty",
    ),
}  # fmt: skip


def catalogue() -> list[Entry]:
    """The data sets that :func:`graphlossy.datasets.load` knows by name, sorted as ``names()`` is.

    Example:
        >>> from graphlossy.datasets import catalogue
        >>> [entry.name for entry in catalogue() if entry.metric == "rocauc" and not entry.synthetic]
        ['Minesweeper', 'Questions', 'Tolokers', 'ogbn-proteins']
        >>> next(entry for entry in catalogue() if entry.name == "Cora").edges
        5278
    """
    found = [*_LOCAL, *_PLANETOID_ENTRIES, *FACTS.values()]
    for name, (sizes, licence, source, split) in _PYG.items():
        found.append(Entry(name, *sizes, PYG[name][2], licence, source, split=split))
    return sorted(found, key=lambda entry: entry.name)


def catalogue_entry(name: str) -> Entry:
    """The row of one data set; its name is matched in any case.

    Raises:
        DatasetError: there is no such name; close ones are suggested.

    Example:
        >>> catalogue_entry("cora").nodes
        2708
        >>> catalogue_entry("korra")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: there is no data set 'korra'; did you mean 'Cora'? ...
    """
    known = {entry.name.lower(): entry for entry in catalogue()}
    if name.lower() in known:
        return known[name.lower()]
    if known_model(name) is not None:
        raise not_a_graph(name)
    near = difflib.get_close_matches(name.lower(), [*known, *MODELS], n=2, cutoff=0.6)
    close = [known[word].name if word in known else word for word in near]
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    names = ", ".join(entry.name for entry in known.values())
    raise DatasetError(f"there is no data set {name!r}; {hint}the names are {names}")


def way(name: str) -> str:
    """How a data set gets here: ``"embedded"``, ``"index"`` (of Debian packages), ``"generated"`` or ``"download"``."""
    if name == WORDNET:
        return "embedded"
    if name == DEBIAN:
        return "index"
    return "generated" if name in FACTS and FACTS[name].synthetic else "download"


def quick(entry: Entry, scale: float | None = None) -> bool:
    """Whether a graph is generated in a few seconds, just to be looked at."""
    share = entry.default_scale if scale is None else scale
    return way(entry.name) == "generated" and entry.edges * share <= _QUICK


def pyg_folder(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Where PyTorch Geometric keeps a graph that it downloads."""
    base = Path(root) if root is not None else default_root()
    kind, options, _ = PYG[name]
    if "name" not in options:
        return base / name
    inner = str(options["name"])
    return base / (inner.lower().replace("-", "_") if kind == "HeterophilousGraphDataset" else inner)


def stand_in(entry: Entry, place: Path | None) -> str | None:
    """What lies in the place of a published graph though it is generated, such as ``"synth-arxiv x0.1"``; else None."""
    if place is None or entry.name not in OGB:
        return None
    try:
        mark = read_mark(place)
    except DatasetError:
        return "a damaged one"
    return None if mark is None else str(mark["name"])


def locate(
    name: str, root: str | os.PathLike[str] | None = None, scale: float | None = None, seed: int = 0
) -> Path | None:
    """The file or folder in which a data set is, None where it is not here; nothing is downloaded.

    Args:
        name: exactly as in the catalogue.
        root: folder of the data sets; by default ``$GRAPHLOSSY_DATA`` or ``~/.cache/graphlossy``.
        scale: of a generated data set; None is its default.
        seed: of a generated data set.

    Raises:
        ValueError: the scale is not allowed.
    """
    if name == WORDNET:
        return FILE
    if name == DEBIAN:
        return max(find_prepared(root), key=lambda folder: folder.stat().st_mtime, default=None)  # of the newest index
    if name in PLANETOID:
        try:
            return prepare(name, root, download=False)
        except DatasetError:
            return None
    if name in PYG:
        folder = pyg_folder(name, root)
        return folder if len(list((folder / "raw").glob("[!.]*"))) >= _RAW_FILES.get(name, 1) else None
    if name in OGB:
        return find_ogb(name, root if root is not None else default_root())
    if name in STAND_INS:
        folder = stand_in_folder(name, root, check_scale(name, scale), seed)
        return folder if is_ogb_layout(folder) else None
    return None
