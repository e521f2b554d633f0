"""The training loop: seeds, scores, bytes, failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphlossy.outliers._checks import Graph
from graphlossy.outliers._deep import DeepDetector, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Autoencoder(DeepDetector):
    """Linear, with dropout; scores are the squared errors."""

    name, title, paper, memory = "autoencoder", "Autoencoder", "", "O(n)"
    inductive = True

    def _build(self, graph: Graph) -> nn.Module:
        module = nn.Sequential(
            nn.Linear(graph.num_features, self.hid_dim), nn.ReLU(), nn.Dropout(self.dropout),
            nn.Linear(self.hid_dim, graph.num_features),
        )  # fmt: skip
        module.num_features = graph.num_features
        return module

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        score = (graph.x - module(graph.x)).square().sum(1)
        return score, score.mean()


def data(n: int = 200, f: int = 20) -> Data:
    generator = torch.Generator().manual_seed(1)
    return Data(x=torch.randn(n, f, generator=generator), edge_index=torch.empty(2, 0, dtype=torch.long))


def test_scores_are_those_of_the_last_training_pass() -> None:
    detector = Autoencoder(hid_dim=8, epoch=4, dropout=0.3, weight_decay=0.01, lr=0.05, seed=3).fit(data())
    x = data().x
    with seeded(3):
        module = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 20))
        adam = torch.optim.Adam(module.parameters(), lr=0.05, weight_decay=0.01)
        losses = []
        for _ in range(4):
            score = (x - module(x)).square().sum(1)
            adam.zero_grad()
            score.mean().backward()
            adam.step()
            losses.append(float(score.detach().mean()))
    assert torch.equal(detector.decision_score_, score.detach())
    assert detector.losses_ == losses and len(detector.epoch_seconds_) == 4
    assert not detector.model_.training


def test_one_seed_gives_the_same_bits_and_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (Autoencoder(epoch=3, dropout=0.5, seed=s).fit(data()).decision_score_ for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(4)
    drawn = Autoencoder(epoch=1).fit(data()).decision_score_
    torch.manual_seed(4)
    assert torch.equal(drawn, Autoencoder(epoch=1).fit(data()).decision_score_)


def test_labels_are_never_read() -> None:
    class Trap(Data):
        @property
        def y(self) -> Tensor:
            raise AssertionError("a detector read the labels")

    Autoencoder(epoch=1, seed=0).fit(Trap(x=data().x, edge_index=data().edge_index), label=torch.ones(200))


def test_bits_save_bytes_and_hardly_change_the_scores() -> None:
    plain = Autoencoder(epoch=30, seed=0, hid_dim=32).fit(data(400))
    low = Autoencoder(epoch=30, seed=0, hid_dim=32, bits=2).fit(data(400))
    assert plain.saved_bytes_ == plain.plain_bytes_ == low.plain_bytes_
    assert low.saved_bytes_ * 8 < low.plain_bytes_
    assert low.losses_[0] == plain.losses_[0]  # the forward pass is exact
    assert low.losses_[-1] == pytest.approx(plain.losses_[-1], rel=0.1)
    assert not torch.equal(low.decision_score_, plain.decision_score_)
    again = Autoencoder(epoch=30, seed=0, hid_dim=32, bits=2).fit(data(400))
    assert torch.equal(low.decision_score_, again.decision_score_)


def test_bytes_are_counted_without_changing_a_number() -> None:
    """The first epoch is counted; counting must not touch the numbers that follow."""

    class Uncounted(Autoencoder):
        def _score(self, graph: Graph) -> Tensor:
            self.count = False
            return super()._score(graph)

        @property
        def _counted(self) -> bool:
            return True

        @_counted.setter
        def _counted(self, value: bool) -> None:
            pass

    counted = Autoencoder(epoch=3, dropout=0.5, seed=0).fit(data())
    plain = Uncounted(epoch=3, dropout=0.5, seed=0).fit(data())
    assert not hasattr(plain, "saved_bytes_") and counted.saved_bytes_ > 0
    assert torch.equal(counted.decision_score_, plain.decision_score_)


def test_a_loss_that_is_not_finite_names_its_epoch() -> None:
    with pytest.raises(FloatingPointError, match=r"loss of Autoencoder is (inf|nan) in epoch 2 of 5 \(lr 1e\+30"):
        Autoencoder(epoch=5, lr=1e30, seed=0).fit(data())


def test_features_that_are_too_large_are_to_be_scaled() -> None:
    large = data()
    large.x[3, 2] = -1e20
    with pytest.raises(FloatingPointError, match=r"in epoch 1 of 5 .*: the features reach 1e\+20; scale them"):
        Autoencoder(epoch=5, seed=0).fit(large)


def test_every_epoch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, float]] = []
    detector = Autoencoder(epoch=3, seed=0, verbose=1)
    detector.on_epoch = lambda epoch, loss: seen.append((epoch, loss))
    detector.fit(data())
    assert seen == list(enumerate(detector.losses_))
    assert capsys.readouterr().out.splitlines()[2] == f"Autoencoder epoch 3/3 loss {detector.losses_[2]:.6f}"


def test_another_graph_is_scored_in_evaluation_mode() -> None:
    detector = Autoencoder(epoch=3, dropout=0.5, seed=0).fit(data())
    fitted = detector.decision_score_
    new = data(50)
    score = detector.decision_function(new)
    with torch.no_grad():
        assert torch.equal(score, (new.x - detector.model_(new.x)).square().sum(1))
    assert detector.decision_score_ is fitted
    with pytest.raises(ValueError, match="fitted to 20 features a node, this graph has 7"):
        detector.decision_function(data(50, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hid_dim": 0}, "hid_dim must be at least 1"),
        ({"num_layers": 1.5}, "num_layers must be a whole number"),
        ({"dropout": 1.1}, "dropout must be at least 0 and at most 1"),
        ({"lr": 0}, "lr must be more than 0"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"epoch": 0}, "epoch must be at least 1"),
        ({"bits": 5}, "bits must be one of"),
        ({"device": "quantum"}, "device must be"),
        ({"device": "mps"}, "device must be 'cpu', 'cuda' or 'cuda:0', got 'mps'"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Autoencoder(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        Autoencoder(device="cuda")


def test_a_number_of_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Autoencoder(device="cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match="device is 'cuda:7', but the last that torch sees is cuda:1"):
        Autoencoder(device="cuda:7")


def test_the_search_space_is_the_papers() -> None:
    assert Autoencoder.search_space("inj_cora")["hid_dim"] == (32, 64, 128, 256)
    assert Autoencoder.search_space("reddit")["hid_dim"] == (32, 48, 64)
    space = Autoencoder.search_space("books")
    assert space == {"hid_dim": (8, 12, 16), "dropout": (0.0, 0.1, 0.3), "lr": (0.1, 0.05, 0.01),
                     "weight_decay": (0.01,), "epoch": (300,)}  # fmt: skip
    assert set(space) <= set(Autoencoder.parameter_names())
