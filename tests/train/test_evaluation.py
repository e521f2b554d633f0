import pytest
import torch

from graphlossy.train import build_model
from graphlossy.train._adjacency import in_degree, model_graph
from graphlossy.train._evaluation import layerwise


@pytest.mark.parametrize("chunk", [1, 7, 300, 1000])
@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gcn2", "gin"])
def test_layer_by_layer_gives_the_scores_of_one_forward_pass(name, chunk, toy, one_thread):
    if chunk == 1:  # a graph convolution for every node and layer: fewer of them
        toy = toy.subgraph(torch.arange(40))
    nodes = toy.num_nodes
    model = build_model(name, 24, 16, 3, layers=3, dropout=0.5, normalize=False).eval()
    adj = model_graph(name, toy.edge_index, nodes, "csr", normalized_outside=True)
    with torch.no_grad():
        expected = model(toy.x, adj)
    torch.testing.assert_close(layerwise(model, toy.x, adj, chunk, toy.x.device), expected, atol=1e-5, rtol=1e-5)


def test_nodes_without_edges_are_scored_too():
    model = build_model("sage", 4, 8, 3, layers=2, dropout=0.0).eval()
    adj = torch.zeros(5, 5).to_sparse_csr()
    x = torch.randn(5, 4)
    torch.testing.assert_close(layerwise(model, x, adj, 2, x.device), model(x, adj))


def test_weighted_edges_keep_their_weights(toy):
    weight = torch.rand(toy.num_edges)
    adj = model_graph("sage", toy.edge_index, 300, "csr", weight, in_degree(toy.edge_index, 300))
    model = build_model("sage", 24, 16, 3, layers=2, dropout=0.0).eval()
    torch.testing.assert_close(layerwise(model, toy.x, adj, 50, toy.x.device), model(toy.x, adj), atol=1e-5, rtol=1e-5)
