"""What is known of each data set before a file of it is read: sizes, metric, licence and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FACTS", "OGB_FACTS", "SYNTHETIC_FACTS", "Entry", "fact"]


@dataclass(frozen=True)
class Entry:
    """One data set, as the catalogue lists it.

    Attributes:
        name: as :func:`graphlossy.datasets.load` takes it.
        nodes: N.
        edges: as the source counts them: each undirected edge once, or each directed one.
        features: of a node; for ogbn-proteins those of an edge, whose mean over a node's edges is the node's.
        classes: classes, or tasks of yes or no.
        metric: ``"accuracy"`` or ``"rocauc"``.
        licence: as the publisher of the files states it; "not stated" where that is not known.
        source: what the nodes, edges and labels are, and who published them.
        disk_bytes: of the published archive, or of what is written; 0 for what is generated in memory.
        synthetic: whether it is generated.
        reference: name of the leaderboard it is on, or stands in for; None where there is none.
        split: how training, validation and test nodes were told apart.
        sizes_of_split: numbers of training, validation and test nodes; None where they are drawn.
        default_scale: of generated graphs, the share of the original's nodes that ``load`` makes unless told.
    """

    name: str
    nodes: int
    edges: int
    features: int
    classes: int
    metric: str
    licence: str
    source: str
    disk_bytes: int = 0
    synthetic: bool = False
    reference: str | None = None
    split: str = ""
    sizes_of_split: tuple[int, int, int] | None = None
    default_scale: float = 1.0


_OGB = "Open Graph Benchmark (Hu et al., NeurIPS 2020)"

OGB_FACTS = (
    Entry(
        "ogbn-arxiv", 169_343, 1_166_243, 128, 40, "accuracy", "ODC-BY",
        f"{_OGB}: computer science papers of arXiv, a directed edge a citation, classes are subject areas",
        81_000_000, reference="ogbn-arxiv", split="time", sizes_of_split=(90_941, 29_799, 48_603),
    ),
    Entry(
        "ogbn-papers100M", 111_059_956, 1_615_685_872, 128, 172, "accuracy", "ODC-BY",
        f"{_OGB}: papers of the Microsoft Academic Graph, a directed edge a citation; 1.4 % of them are labelled",
        60_300_000_000, reference="ogbn-papers100M", split="time", sizes_of_split=(1_207_179, 125_265, 214_338),
    ),
    Entry(
        "ogbn-products", 2_449_029, 61_859_140, 100, 47, "accuracy", "Amazon licence",
        f"{_OGB}: products of a shop, an edge joins what is bought together, classes are categories",
        1_480_000_000, reference="ogbn-products", split="sales_ranking", sizes_of_split=(196_615, 39_323, 2_213_091),
    ),
    Entry(
        "ogbn-proteins", 132_534, 39_561_252, 8, 112, "rocauc", "CC0-1.0",
        f"{_OGB}: proteins of eight species, an edge with eight scores an association, tasks are functions",
        225_000_000, reference="ogbn-proteins", split="species", sizes_of_split=(86_619, 21_236, 24_679),
    ),
)  # fmt: skip

_STAND_IN = "generated: a degree-corrected block model with the shape of {}, not its content"

SYNTHETIC_FACTS = (
    Entry(
        "synth-arxiv", 169_343, 1_157_799, 128, 40, "accuracy", "MIT", _STAND_IN.format("ogbn-arxiv"),
        synthetic=True, reference="ogbn-arxiv", split="time", sizes_of_split=(90_941, 29_799, 48_603),
    ),
    Entry(
        "synth-arxiv-tiny", 1_500, 10_000, 32, 10, "accuracy", "MIT",
        "generated: a degree-corrected block model, small enough for a test", synthetic=True, split="random",
    ),
    Entry(
        "synth-papers100M", 111_059_956, 1_615_685_872, 128, 172, "accuracy", "MIT",
        _STAND_IN.format("ogbn-papers100M"), synthetic=True, reference="ogbn-papers100M", split="time",
        sizes_of_split=(1_207_179, 125_265, 214_338), default_scale=0.001,
    ),
    Entry(
        "synth-products", 2_449_029, 61_859_140, 100, 47, "accuracy", "MIT", _STAND_IN.format("ogbn-products"),
        synthetic=True, reference="ogbn-products", split="sales_ranking", sizes_of_split=(196_615, 39_323, 2_213_091),
    ),
    Entry(
        "synth-proteins", 132_534, 39_561_252, 8, 112, "rocauc", "MIT", _STAND_IN.format("ogbn-proteins"),
        synthetic=True, reference="ogbn-proteins", split="species", sizes_of_split=(86_619, 21_236, 24_679),
    ),
)  # fmt: skip

FACTS = {entry.name: entry for entry in (*OGB_FACTS, *SYNTHETIC_FACTS)}


def fact(name: str) -> Entry:
    """The row of one data set.

    Example:
        >>> fact("ogbn-arxiv").nodes
        169343
    """
    return FACTS[name]
