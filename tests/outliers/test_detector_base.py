"""The checked graph, and the interface that every detector shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_dense_adj

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number, coalesced, prepare
from graphlossy.outliers.methods import METHODS, make_method


class Given(Detector):
    """Scores that a test gives, or the degree."""

    name, title, paper, seeded, memory = "given", "Given", "", False, "O(n)"

    def __init__(self, *, scores: Any = None, **base: Any) -> None:
        super().__init__(**base)
        self.scores = scores

    def _score(self, graph: Graph) -> Tensor:
        return graph.degrees if self.scores is None else torch.as_tensor(self.scores)


def ring(n: int = 10, f: int = 3) -> Data:
    nodes = torch.arange(n)
    return Data(x=torch.rand(n, f), edge_index=torch.stack([nodes, (nodes + 1) % n]))


@given(n=st.integers(1, 12), edges=st.integers(0, 60), seed=st.integers(0, 99))
def test_the_graph_is_the_adjacency_matrix(n: int, edges: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n, (2, edges), generator=generator)
    graph = prepare(Data(x=torch.rand(n, 2, generator=generator), edge_index=edge_index))
    dense = to_dense_adj(edge_index, max_num_nodes=n)[0].clamp(max=1) if edges else torch.zeros(n, n)
    assert torch.equal(graph.dense_adjacency(), dense)
    assert torch.equal(graph.adjacency.adj.to_dense(), dense)
    assert torch.equal(graph.degrees, dense.sum(1).long())
    crow, col = graph.csr
    assert [col[crow[i] : crow[i + 1]].tolist() for i in range(n)] == [row.nonzero()[:, 0].tolist() for row in dense]
    assert torch.equal(graph.undirected.dense_adjacency(), (dense + dense.t()).clamp(max=1))
    off = dense - torch.diag(dense.diag())
    assert torch.equal(graph.without_self_loops.dense_adjacency(), off)
    expected, weight = gcn_norm(graph.edge_index, None, n, add_self_loops=True)
    by_target = torch.zeros(n, n).index_put((expected[1], expected[0]), weight)
    torch.testing.assert_close(graph.gcn_adjacency.adj.to_dense(), by_target)


def test_what_was_brought_is_left_as_it_was() -> None:
    data = Data(x=torch.ones(3, 2, dtype=torch.int64), edge_index=torch.tensor([[1, 0, 1], [2, 1, 2]]))
    x, edges = data.x.clone(), data.edge_index.clone()
    graph = prepare(data)
    assert graph.num_edges == 2 and graph.x.dtype is torch.float32
    assert torch.equal(data.x, x) and torch.equal(data.edge_index, edges)
    assert prepare(graph) is graph


def test_what_is_not_needed_may_be_missing() -> None:
    edges = torch.tensor([[0], [1]])
    assert prepare(Data(edge_index=edges, num_nodes=4), needs=("edges",)).x.shape == (4, 0)
    assert prepare(Data(x=torch.ones(4, 0), edge_index=edges), needs=("edges",)).x.shape == (4, 0)
    assert prepare(Data(x=torch.ones(4, 1)), needs=("x",)).num_edges == 0
    assert prepare(Data(x=torch.ones(4, 1), edge_index=torch.empty(2, 0, dtype=torch.long))).degrees.tolist() == [0] * 4


NAN = torch.tensor([[0.0], [float("nan")], [float("inf")]])
EDGE = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.ones(3), TypeError, "data must be a torch_geometric.data.Data.*got Tensor"),
        (HeteroData(), TypeError, "one graph of one node type, got HeteroData"),
        (Batch.from_data_list([ring(), ring()]), TypeError, "one graph of one node type, got DataBatch"),
        (Data(edge_index=EDGE, num_nodes=2), TypeError, "data.x is missing"),
        (Data(x=torch.ones(2, 1)), TypeError, "data.edge_index is missing"),
        (Data(x=np.ones((2, 1)), edge_index=EDGE), TypeError, "data.x must be a tensor.*ndarray"),
        (Data(x=torch.ones(2), edge_index=EDGE), ValueError, r"data.x must have shape \[N, F\].*\[2\]"),
        (Data(x=torch.ones(2, 0), edge_index=EDGE), ValueError, "at least one feature"),
        (Data(x=torch.empty(0, 3), edge_index=EDGE[:, :0]), ValueError, "no nodes"),
        (Data(x=NAN, edge_index=EDGE), ValueError, "in 2 of 3 nodes, the first is node 1"),
        (Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [2]])), ValueError, r"0 to 2.*\[0, 1\]"),
        (Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [-1]])), ValueError, "-1 to 0"),
        (Data(x=torch.ones(2, 1), edge_index=EDGE.float()), TypeError, r"use edge_index.long\(\)"),
        (Data(x=torch.ones(2, 1), edge_index=EDGE[0]), ValueError, r"shape \[2, E\], got \[1\]"),
        (Data(x=torch.ones(2, 1, dtype=torch.complex64), edge_index=EDGE), TypeError, "real numbers"),
    ],
)
def test_a_graph_that_cannot_be_used(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(data)


def test_nodes_and_rows_must_agree() -> None:
    data = Data(x=torch.ones(2, 1), edge_index=EDGE)
    data.num_nodes = 3
    with pytest.raises(ValueError, match="num_nodes is 3, but data.x has 2 rows"):
        prepare(data)
    with pytest.raises(ValueError, match="needs may name"):
        prepare(data, needs=("labels",))


def test_coalesced_are_the_distinct_edges_in_order() -> None:
    edges = torch.tensor([[2, 0, 2, 1], [0, 1, 0, 2]])
    assert coalesced(edges, 3).tolist() == [[0, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize("value", [True, "3", None, 2.5])
def test_a_whole_number_is_asked_for(value: object) -> None:
    with pytest.raises(TypeError, match="k must be a whole number"):
        check_number("k", value, 1, integer=True)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="p must be at least 0 and at most 1, got 2"):
        check_number("p", 2, 0, 1)
    with pytest.raises(ValueError, match="p must be more than 0, got 0"):
        check_number("p", 0, 0, open_low=True)
    with pytest.raises(ValueError, match="got nan"):
        check_number("p", float("nan"), 0, 1)


def test_threshold_and_labels_follow_the_scores() -> None:
    scores = torch.rand(10)
    detector = Given(scores=scores, contamination=0.2).fit(ring())
    assert detector.threshold_ == pytest.approx(np.percentile(scores.numpy().astype(float), 80), rel=1e-12)
    assert torch.equal(detector.label_, (scores > detector.threshold_).long()) and int(detector.label_.sum()) == 2
    assert torch.equal(detector.predict(), detector.label_)
    assert torch.equal(detector.decision_score_, scores) and detector.label_.dtype is torch.int64


def test_predict_gives_what_is_asked_for_in_order() -> None:
    detector = Given(scores=torch.arange(10.0)).fit(ring())
    label, score, prob, conf = detector.predict(return_score=True, return_prob=True, return_conf=True)
    assert torch.equal(label, detector.label_) and torch.equal(score, torch.arange(10.0))
    torch.testing.assert_close(prob, torch.arange(10.0) / 9)
    # The top node: 10 of 10 scores are below or equal, so p = 11/12 each; its label stays if more than 9 of 10 do.
    p = 11 / 12
    assert float(conf[-1]) == pytest.approx(p**10, rel=1e-5)
    assert bool((conf >= 0).all()) and bool((conf <= 1).all())
    unify = detector.predict(return_pred=False, return_prob=True, prob_method="unify")
    z = (torch.arange(10.0) - 4.5) / (torch.arange(10.0).std() * 2**0.5)
    torch.testing.assert_close(unify, torch.erf(z).clamp(min=0))


def test_equal_scores_have_no_outliers_and_no_division_by_zero() -> None:
    detector = Given(scores=torch.ones(10)).fit(ring())
    assert int(detector.label_.sum()) == 0
    for method in ("linear", "unify"):
        assert torch.equal(detector.predict(return_pred=False, return_prob=True, prob_method=method), torch.zeros(10))


def test_misuse_of_predict() -> None:
    with pytest.raises(RuntimeError, match="not fitted yet"):
        Given().predict()
    detector = Given().fit(ring())
    with pytest.raises(ValueError, match="prob_method must be 'linear' or 'unify', got 'log'"):
        detector.predict(return_prob=True, prob_method="log")
    with pytest.raises(ValueError, match="ask for at least one"):
        detector.predict(return_pred=False)


def test_a_transductive_detector_fits_a_copy_and_says_so() -> None:
    detector = Given().fit(ring())
    before = detector.decision_score_
    star = Data(x=torch.ones(4, 3), edge_index=torch.tensor([[0, 0, 0], [1, 2, 3]]))
    with pytest.warns(UserWarning, match="Given is transductive"):
        assert detector.decision_function(star).tolist() == [3, 0, 0, 0]
    assert detector.decision_score_ is before


@pytest.mark.parametrize("name", ["done", "radar"])
def test_labels_of_another_graph_are_those_of_a_fit_to_it(name: str) -> None:
    """The second graph's features are larger: by the first one's threshold all its nodes would be outliers."""
    first, second = ring(40), ring(30)
    second.x = 100 * second.x
    options: dict[str, Any] = {"seed": 0, "epoch": 2} if name == "done" else {"seed": 0}
    detector, wanted = make_method(name, **options).fit(first), make_method(name, **options).fit(second)
    everything = {"return_score": True, "return_prob": True, "return_conf": True}
    with pytest.warns(UserWarning, match="is transductive"):
        found = detector.predict(second, **everything)
    for mine, theirs in zip(found, wanted.predict(**everything), strict=True):
        assert torch.equal(mine, theirs)
    assert int(found[0].sum()) == 3 and len(detector.decision_score_) == 40


@pytest.mark.parametrize("name", ["scan", "degree", "random"])
def test_methods_that_read_no_features_take_none(name: str) -> None:
    assert "x" not in METHODS[name].needs
    data = Data(x=torch.empty(4, 0), edge_index=EDGE)
    assert make_method(name, seed=0).fit(data).decision_score_.shape == (4,)


def test_scores_must_be_finite_and_one_a_node() -> None:
    with pytest.raises(FloatingPointError, match="gave 1 of 10 nodes.*node 3"):
        Given(scores=torch.ones(10).index_fill(0, torch.tensor(3), float("inf"))).fit(ring())
    with pytest.raises(ValueError, match=r"shape \[9\] for 10 nodes"):
        Given(scores=torch.ones(9)).fit(ring())


@pytest.mark.parametrize("contamination", [0, 0.6, -1, "0.1", float("nan")])
def test_contamination_is_checked(contamination: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="contamination must be"):
        Given(contamination=contamination)


def test_the_seed_is_drawn_from_torch_unless_given() -> None:
    torch.manual_seed(5)
    first = Given().fit(ring()).seed_
    torch.manual_seed(5)
    assert Given().fit(ring()).seed_ == first
    state = torch.get_rng_state()
    assert Given(seed=7).fit(Data(x=torch.ones(2, 1), edge_index=EDGE)).seed_ == 7
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="seed"):
        Given(seed=-1)


def test_parameters_are_known_by_name() -> None:
    detector = Given(contamination=0.3, seed=1)
    assert Given.parameter_names() == ("contamination", "scores", "seed")
    assert repr(detector) == "Given(contamination=0.3, scores=None, seed=1)"
    assert type(detector)(**detector.get_params()).get_params() == detector.get_params()
