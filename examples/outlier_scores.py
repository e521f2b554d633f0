"""Scores the nodes of your own graph for being outliers, and says how good the scores are where outliers are known.

``python examples/outlier_scores.py``                            a small graph, made below, with injected outliers
``python examples/outlier_scores.py --graph mine.pt``            a ``torch_geometric.data.Data`` saved by ``torch.save``
``python examples/outlier_scores.py --graph mine.npz#fraud``     arrays x, edge_index, and labels in the array ``fraud``

To use it for a graph in memory, give it to ``fit`` as it is: nothing but ``x`` and ``edge_index`` is read.
"""

import argparse
import csv

import torch
from torch_geometric.data import Data

from graphlossy.outliers import (
    DOMINANT,
    GCNAE,
    Degree,
    FeatureNorm,
    MaxRank,
    evaluate,
    inject,
    labels,
    load,
    types,
)


def my_graph(nodes=600, communities=4, features=32):
    """People who mostly know others of their own community, and whose features tell which one that is."""
    generator = torch.Generator().manual_seed(0)
    community = torch.randint(communities, (nodes,), generator=generator)
    ends = torch.randint(nodes, (2, 20 * nodes), generator=generator)
    kept = (community[ends[0]] == community[ends[1]]) | (torch.rand(ends.shape[1], generator=generator) < 0.05)
    edges = ends[:, kept]
    x = torch.randn(communities, features, generator=generator)[community]
    x = x + torch.randn(nodes, features, generator=generator)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), name="my graph")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", help="a file, a folder or a name; without it, a graph is made")
    parser.add_argument("--inject", choices=["published", "leakfree"], help="outliers to inject  [default: leakfree]")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--bits", type=int, help="saved activations in so many bits, for large graphs")
    parser.add_argument("--out", default="scores.csv")
    args = parser.parse_args()

    data = load(args.graph) if args.graph else my_graph()
    if args.inject or not args.graph:
        # "leakfree" keeps degrees and norms, so that a method has to look at a node and its neighbours together.
        data = inject(data, args.inject or "leakfree", seed=0)
    known = getattr(data, "y", None) is not None
    print(f"{data.name}: {data.num_nodes} nodes, {data.num_edges} edges, {data.num_features} features")
    print(data.note)

    deep = {"hid_dim": 32, "epoch": args.epochs, "bits": args.bits, "seed": 0}
    scores = {}
    # The last three look at no model at all: a method is worth its time where it beats them.
    for detector in (DOMINANT(**deep), GCNAE(**deep), Degree(), FeatureNorm(), MaxRank()):
        scores[detector.title] = detector.fit(data).decision_score_

    columns = ["all", *types(data)] if known else []
    print("\nROC-AUC".ljust(13) + "".join(kind.rjust(12) for kind in columns) + "   highest scores")
    for title, score in scores.items():
        figures = ""
        if known:
            found = evaluate(score, labels(data), types(data))
            figures = "".join(f"{part['auc']:12.3f}" for part in (found, *found["by_type"].values()))
        print(title.ljust(12) + figures + "   nodes " + ", ".join(map(str, score.topk(5).indices.tolist())))

    with open(args.out, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["node", *scores, *(["outlier"] if known else [])])
        rows = [*scores.values(), *([labels(data).long()] if known else [])]
        table.writerows(zip(range(data.num_nodes), *(column.tolist() for column in rows), strict=True))
    print(f"\n{args.out}: a score of each node by every method, higher is more outlying")


if __name__ == "__main__":
    main()
