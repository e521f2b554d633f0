"""From a Debian package index to a graph: who depends on whom, what the descriptions say, which section it is in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphlossy.datasets._assemble import distinct
from graphlossy.datasets._debian_index import Package
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._splits import DRAWN_SPLITS, TEST, TRAIN, VALIDATION

__all__ = [
    "CLASS_SIZE",
    "OTHER",
    "dependency_edges",
    "description_features",
    "group_masks",
    "group_split",
    "section_labels",
]

CLASS_SIZE = 100  # packages that a section needs to be a class of its own
OTHER = "other"
_BINS, _WIDTH = 1 << 14, 128
_SHARES = (0.6, 0.8)  # ends of the training and of the validation part


def dependency_edges(packages: Sequence[Package]) -> np.ndarray:
    """An edge from a package to the first alternative of each clause of Depends, Pre-Depends and Recommends.

    A virtual package stands for the one of its providers that most clauses name first (of equals, the first by name).
    Clauses whose first alternative the index does not have are left out, as are dependencies of a package on itself.

    Returns:
        int64 array [2, E], each undirected edge once, smaller number first, sorted.

    Example:
        >>> package = lambda name, *needs, provides=(): Package(name, "1", name, "net", "", needs, provides)
        >>> exim = package("exim", ("libc",), provides=("mta",))
        >>> dependency_edges([exim, package("libc"), package("mutt", ("mta", "postfix"))]).tolist()
        [[0, 0], [1, 2]]
    """
    number = {package.name: node for node, package in enumerate(packages)}
    named = Counter(clause[0] for package in packages for clause in package.clauses)
    providers: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        for virtual in package.provides:
            providers[virtual].append(package.name)
    stands_for = {
        virtual: number[min(names, key=lambda name: (-named[name], name))] for virtual, names in providers.items()
    }
    target = stands_for | number  # a real package comes before a virtual one of its name
    found = [
        (node, target[clause[0]])
        for node, package in enumerate(packages)
        for clause in package.clauses
        if clause[0] in target
    ]
    ends = np.array(found, np.int64).reshape(-1, 2).T
    low, high = ends.min(0), ends.max(0)
    key = distinct((low * len(packages) + high)[low != high])
    return np.stack([key // len(packages), key % len(packages)])


def section_labels(sections: Sequence[str], least: int = CLASS_SIZE) -> tuple[np.ndarray, list[str]]:
    """Class numbers from sections, without the area before them: ``contrib/net`` is ``net``.

    Sections of fewer than ``least`` packages, and packages without a section, together make the last class, "other".

    Returns:
        int64 array [N], and the names of the classes.

    Example:
        >>> y, classes = section_labels(["net", "libs", "contrib/net", "libs", "news", ""], least=2)
        >>> y.tolist(), classes
        ([1, 0, 1, 0, 2, 2], ['libs', 'net', 'other'])
    """
    plain = [section.rpartition("/")[2].lower() for section in sections]
    count = Counter(plain)
    classes = sorted(section for section in count if section and section != OTHER and count[section] >= least)
    number = {section: label for label, section in enumerate(classes)}
    y = np.array([number.get(section, len(classes)) for section in plain], np.int64)
    return y, [*classes, OTHER] if (y == len(classes)).any() else classes


def description_features(descriptions: Sequence[str], width: int = _WIDTH) -> np.ndarray:
    """Latent semantic analysis (Deerwester et al. 1990) of one-line descriptions.

    Words hashed into 16,384 bins, TF-IDF, rows of length one, then a truncated singular value decomposition. All
    entries are divided by one number that makes their mean square 1. The decomposition's own draws have a fixed seed.

    Args:
        descriptions: N texts.
        width: features, at most N - 1 of them.

    Returns:
        float32 array [N, min(width, N - 1)].

    Raises:
        DatasetError: scikit-learn is not installed, or no text holds a word.
    """
    text, decomposition = _scikit_learn()
    bins = text.HashingVectorizer(n_features=_BINS, alternate_sign=False, norm=None).transform(descriptions)
    if bins.nnz == 0:
        raise DatasetError("no package has a description, from which the features are made")
    matrix = text.TfidfTransformer().fit_transform(bins)
    svd = decomposition.TruncatedSVD(min(width, len(descriptions) - 1), random_state=0)
    with np.errstate(invalid="ignore"):  # the share of a variance of zero, which nobody asks for
        x = svd.fit_transform(matrix)
    return (x / np.sqrt(np.mean(np.square(x)))).astype(np.float32)


def group_split(group: np.ndarray, seed: int, number: int) -> np.ndarray:
    """A random split of 60 %, 20 % and 20 % of the nodes that keeps every group in one part.

    Args:
        group: group numbers [N], from 0.
        seed: of the draw.
        number: which of the splits under this seed.

    Returns:
        int8 array [N]: 0 training, 1 validation, 2 test.

    Example:
        >>> group_split(np.repeat(np.arange(5), 2), seed=0, number=1).tolist()
        [0, 0, 0, 0, 1, 1, 0, 0, 2, 2]
    """
    size = np.bincount(group)
    order = np.random.RandomState([seed, number]).permutation(len(size))  # whose stream numpy keeps the same
    middle = np.cumsum(size[order]) - size[order] / 2
    part = np.empty(len(size), np.int8)
    part[order] = np.array([TRAIN, VALIDATION, TEST], np.int8)[
        np.searchsorted(np.array(_SHARES) * len(group), middle, side="right")
    ]
    return part[group]


def group_masks(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test masks [N, 10] of the ten splits of a seed."""
    part = np.stack([group_split(group, seed, number) for number in range(DRAWN_SPLITS)], axis=1)
    return part == TRAIN, part == VALIDATION, part == TEST


def _scikit_learn() -> tuple[Any, Any]:
    try:
        from sklearn import decomposition
        from sklearn.feature_extraction import text
    except ImportError:
        raise DatasetError(
            'the features of debian-packages need scikit-learn: pip install "graphlossy[debian]"'
        ) from None
    return text, decomposition
