"""Models without a graph: their memory grows with the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphlossy


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(1))


def saved(model: nn.Module, loss: Any, bits: int | None, live: Any) -> int:
    """By the ledger; without compression by the tensors alive."""
    model.train()
    if bits is not None:
        with graphlossy.compress(bits=bits) as ledger:
            loss()
        return ledger.saved_bytes
    with live.LiveBytes() as counter:
        out = loss()
        return counter.bytes - out.element_size()


@pytest.mark.parametrize("bits", [None, 8, 2])
@pytest.mark.parametrize(("make", "shape"), [(mlp, (9000, 64)), (Encoder, (900, 12, 32))])
def test_batches(make: Any, shape: tuple[int, ...], bits: int | None, live: Any) -> None:
    scheme = "float32" if bits is None else f"compress {bits} bits"
    model, x, y = make(), torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
    found = graphlossy.plan(model, inputs=shape, schemes=[scheme])
    real = saved(model, lambda: F.cross_entropy(model(x), y), bits, live)
    assert found[scheme].saved_bytes == pytest.approx(real, rel=0.05)
    assert found.fixed["inputs"] == x.nbytes and found.sizes == {"batch": shape[0]}


@pytest.mark.parametrize("bits", [None, 4])
def test_a_transformers_model_with_keyword_inputs(bits: int | None, live: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(100, (600, 24)), "labels": torch.randint(3, (600,))}
    scheme = "float32" if bits is None else f"compress {bits} bits"
    row = graphlossy.plan(model, inputs=batch, schemes=[scheme])[scheme]
    real = saved(model, lambda: model(**batch).loss, bits, live)
    assert row.saved_bytes == pytest.approx(real, rel=0.05)


def test_several_arguments_and_a_loss_of_ones_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * self.scale + b

    found = graphlossy.plan(
        Two(), inputs=[(5000, 8), torch.randn(5000, 8)], schemes=[],
        forward=lambda model, probe: model(*probe.args).square().sum(),
    )  # fmt: skip
    assert found["float32"].saved_bytes == 5000 * 8 * 4  # square's input; `a` lives anyway
    assert found.fixed["inputs"] == 2 * 5000 * 8 * 4


def test_checkpointing_keeps_the_inputs_of_the_pieces() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(9)))
    plain, low = graphlossy.plan(model, inputs=(50_000, 64), schemes=["checkpoint"]).rows
    # nine ReLUs and the loss's log-softmax; two inputs of pieces, the last piece's three ReLUs and the log-softmax
    assert plain.saved_bytes == pytest.approx(10 * 50_000 * 64 * 4, rel=0.001)
    assert low.saved_bytes == pytest.approx(6 * 50_000 * 64 * 4, rel=0.001)
    assert low.gradient == "exact"


def test_a_batch_of_one_example_and_the_largest_batch() -> None:
    found = graphlossy.plan(mlp(), inputs=(1, 64), schemes=["compress 2 bits"])
    assert found["float32"].saved_bytes > 0
    needed = graphlossy.plan(mlp(), inputs=(100_000, 64), schemes=[])["float32"].total_bytes
    assert found.largest(needed, "float32")["batch"] == pytest.approx(100_000, rel=0.01)
    assert found.largest(1, "float32") == {"batch": 0}


def test_memory_that_is_enough_and_memory_that_is_not() -> None:
    found = graphlossy.plan(mlp(), inputs=(100_000, 64), schemes=["compress 2 bits"])
    needed = {row.scheme: row.total_bytes for row in found.rows}
    assert found.fits(needed["float32"]) == ["float32", "compress 2 bits"]
    assert found.fits(needed["float32"] - 1) == ["compress 2 bits"]
    assert found.fits(needed["compress 2 bits"] - 1) == []


@pytest.mark.parametrize(("optimizer", "states"), [("adam", 2), ("momentum", 1), ("sgd", 0)])
def test_what_is_always_there(optimizer: str, states: int) -> None:
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    model[0].bias.requires_grad_(False)
    fixed = graphlossy.plan(model, inputs=(100, 64), schemes=[], optimizer=optimizer).fixed
    weights, trained = (64 * 10 + 10 + 20) * 4, (64 * 10 + 20) * 4
    assert fixed == {
        "weights": weights + 20 * 4 + 8,
        "gradients": trained,
        f"{optimizer} state": states * trained,
        "inputs": 100 * 64 * 4,
    }
