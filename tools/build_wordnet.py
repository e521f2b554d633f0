"""Builds the embedded graph ``datasets/data/wordnet_verbs.npz`` from WordNet 3.0.

    apt-get download wordnet-base                                    # Debian, 6 MB; nothing is installed
    python tools/build_wordnet.py wordnet-base_1%3a3.0-37_all.deb    # or a folder that holds data.verb
    python tools/build_wordnet.py SOURCE --check                     # compares with the embedded file, writes nothing
    python tools/build_wordnet.py SOURCE --check --measure           # and prints its statistics

The same source gives the same bytes, every time (the compressed bytes depend on the zlib Python was built with;
``--check`` compares the arrays).

Nodes
    The 13,767 verb synsets, in the order of ``data.verb``. The file is ordered by lexicographer file in long runs, so a
    node's *number* tells its class: shuffle before taking contiguous blocks of nodes.
Edges
    Every pointer from a verb synset to a verb synset (hypernym, hyponym, verb group, antonym, entailment, cause, also
    see), whether it joins synsets or two words of them; direction and kind dropped, each pair once.
Labels
    The lexicographer file, 15 classes from verb.body to verb.weather. No feature is made from it, nor from the pointers
    or the synset's own words.
Features
    The definition alone: the gloss up to its first quotation, as the quotations use the synset's own words. Words are
    runs of letters a-z in lower case. A word counts in bin ``int(blake2b(word, digest_size=4)) % 512`` (little-endian),
    which no Python or platform changes. There is no stop list and no weighting: with either, linear models and graph
    networks do worse (GCN 71 % with normalised tf-idf, 74 % with counts).
Splits
    Not stored: ``graphlossy.datasets.load`` draws ten of 60 % / 20 % / 20 % from its seed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "datasets" / "data"
GRAPH, LICENSE = "wordnet_verbs.npz", "WORDNET_LICENSE"
BINS = 512
SHA256 = "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2"  # of data.verb in wordnet-base 1:3.0-37
MEMBER = "./usr/share/wordnet/data.verb"
CLASSES = (
    "body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation", "emotion",
    "motion", "perception", "possession", "social", "stative", "weather",
)  # fmt: skip
FIRST_FILE = 29  # lexicographer file number of verb.body


def read_source(source: Path) -> bytes:
    """``data.verb`` from a folder or from the Debian package."""
    if source.is_dir():
        return (source / "data.verb").read_bytes()
    for name, member in ar_members(source.read_bytes()):
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(member)) as archive:
                file = archive.extractfile(MEMBER)
                if file is not None:
                    return file.read()
    raise SystemExit(f"{source}: holds no {MEMBER}")


def ar_members(content: bytes):
    """Names and contents of the members of an ar archive, which a .deb file is."""
    if content[:8] != b"!<arch>\n":
        raise SystemExit("SOURCE must be a folder that holds data.verb, or a .deb file")
    start = 8
    while start < len(content):
        header = content[start : start + 60]
        size = int(header[48:58])
        yield header[:16].decode().rstrip(" /"), content[start + 60 : start + 60 + size]
        start += 60 + size + size % 2


def build(text: str) -> dict[str, np.ndarray]:
    """The arrays of the embedded file."""
    lines = [line for line in text.splitlines() if not line.startswith("  ")]  # the licence is indented
    number = {line[:8]: node for node, line in enumerate(lines)}
    labels, edges, counts = [], set(), []
    for node, line in enumerate(lines):
        head, _, gloss = line.partition("|")
        fields = head.split()
        labels.append(int(fields[1]) - FIRST_FILE)
        words = int(fields[3], 16)
        pointers = fields[5 + 2 * words :][: 4 * int(fields[4 + 2 * words])]
        for offset, part_of_speech in zip(pointers[1::4], pointers[2::4], strict=True):
            other = number[offset] if part_of_speech == "v" else node
            if other != node:
                edges.add((min(node, other), max(node, other)))
        counts.append(hashed(definition(gloss)))
    return {
        "edges": np.array(sorted(edges), np.uint16),
        "y": np.array(labels, np.int8),
        "class_names": np.array([f"verb.{name}" for name in CLASSES]),
        "x_indptr": np.cumsum([0, *map(len, counts)]).astype(np.int32),
        "x_indices": np.concatenate([np.array(list(row), np.uint16) for row in counts]),
        "x_data": np.concatenate([np.array(list(row.values()), np.uint8) for row in counts]),
        "x_shape": np.array([len(lines), BINS], np.int32),
    }


def definition(gloss: str) -> str:
    """The gloss up to its first quotation."""
    return gloss.partition('"')[0]


def hashed(definition: str) -> dict[int, int]:
    """How often each bin's words occur, by bin in rising order."""
    counts: dict[int, int] = {}
    for word in re.findall("[a-z]+", definition.lower()):
        digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
        key = int.from_bytes(digest, "little") % BINS
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def license_notice(text: str) -> str:
    """The licence that heads every file of WordNet, without the line numbers."""
    head = [line for line in text.splitlines() if line.startswith("  ")]
    lines = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in head]
    return "\n".join(lines).strip() + "\n"


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like ``numpy.savez_compressed``, with the strongest compression and a fixed date."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def check(arrays: dict[str, np.ndarray]) -> None:
    """Ends with an error unless the embedded file holds the same arrays."""
    with np.load(DATA / GRAPH) as stored:
        names = set(stored.files)
        same = names == set(arrays) and all(
            stored[name].dtype == array.dtype and np.array_equal(stored[name], array) for name, array in arrays.items()
        )
    if not same:
        raise SystemExit(f"{DATA / GRAPH} differs from what this source gives")
    print(f"{DATA / GRAPH}: the same arrays")


def measure(seeds: int = 3) -> None:
    """Prints the statistics that ``datasets/data/README.md`` records; takes about a minute."""
    import torch

    from graphlossy.datasets import load

    data = load("wordnet-verbs", split=None)
    source, target = data.edge_index
    degree = torch.bincount(source, minlength=data.num_nodes)
    sizes = torch.bincount(data.y)
    print(f"nodes {data.num_nodes:,}  edges {len(source) // 2:,}  isolated {int((degree == 0).sum())}", end="  ")
    print(f"degree mean {degree.double().mean():.2f} max {int(degree.max())}", end="  ")
    print(f"homophily {(data.y[source] == data.y[target]).double().mean():.3f}")
    print(f"classes {len(sizes)}: {sizes.tolist()}, largest {sizes.max() / data.num_nodes:.3f}", end="  ")
    print(f"non-zeros a row {(data.x != 0).sum() / data.num_nodes:.2f}")
    mean = torch.zeros_like(data.x).index_add_(0, target, data.x[source]) / degree.clamp(min=1)[:, None]
    for name, x in (("words", data.x), ("neighbours' words", mean), ("both", torch.cat([data.x, mean], 1))):
        scores = torch.tensor([100 * linear_accuracy(x, data, split) for split in range(seeds)])
        print(f"logistic regression on {name}: test accuracy {scores.mean():.1f} +- {scores.std():.1f} %")


def linear_accuracy(x, data, split: int) -> float:
    """Test accuracy of logistic regression after the step that validates best."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(split)
    train, valid, test = (mask[:, split] for mask in (data.train_mask, data.val_mask, data.test_mask))
    model = torch.nn.Linear(x.shape[1], data.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-4)
    best = (0.0, 0.0)
    for step in range(1, 101):
        optimizer.zero_grad()
        cross_entropy(model(x[train]), data.y[train]).backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                right = (model(x).argmax(1) == data.y).double()
            best = max(best, (right[valid].mean().item(), right[test].mean().item()))
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="wordnet-base_*.deb, or a folder that holds data.verb")
    parser.add_argument("--check", action="store_true", help="compare with the embedded file instead of writing it")
    parser.add_argument("--measure", action="store_true", help="print the graph's statistics")
    parser.add_argument("--any-version", action="store_true", help="accept a data.verb of another WordNet")
    args = parser.parse_args()
    content = read_source(args.source)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256 and not args.any_version:
        sys.exit(f"data.verb has SHA-256 {digest}, not WordNet 3.0's {SHA256}; --any-version accepts it all the same")
    text = content.decode("latin-1")
    arrays = build(text)
    if args.check:
        check(arrays)
    else:
        write_npz(DATA / GRAPH, arrays)
        (DATA / LICENSE).write_text(license_notice(text))
        print(f"{DATA / GRAPH}: {(DATA / GRAPH).stat().st_size:,} bytes")
    if args.measure:
        measure()


if __name__ == "__main__":
    main()
