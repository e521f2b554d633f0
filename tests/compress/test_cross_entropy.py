"""The loss of a large vocabulary in pieces: the same number, the same gradients, and never all logits at once."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import graphlossy
from graphlossy._compress import _cross_entropy

D, V, N = 16, 1024, 40
Loss = Callable[[nn.Linear, Tensor], Tensor]


def targets(n: int = N, classes: int = V) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(3))


def step(loss_of: Loss, layer: nn.Linear, x: Tensor, lossy: bool, amp: bool = False):
    """Loss, gradients of the input and of the layer, ledger."""
    layer = copy.deepcopy(layer)
    x = x.detach().clone().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with graphlossy.compress(bits=None, recompute=lossy) as ledger:
            loss = loss_of(layer, x * 1.0)
    loss.backward()
    return loss.detach(), [t.grad for t in (x, *layer.parameters())], ledger


def compare(loss_of: Loss, x: Tensor | None = None, layer: nn.Linear | None = None, tolerance: float = 1e-6,
            amp: bool = False, pieces: int = 1):  # fmt: skip
    """Checks the loss bit for bit and the gradients of torch's and ours; returns the ledger."""
    layer = nn.Linear(D, V) if layer is None else layer
    x = torch.randn(N, D, requires_grad=True) if x is None else x
    (expected, theirs, _), (loss, ours, ledger) = (step(loss_of, layer, x, lossy, amp) for lossy in (False, True))
    assert torch.equal(loss.nan_to_num(7e7), expected.nan_to_num(7e7))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and bool(a.isfinite().all()) == bool(b.isfinite().all())
            assert (a - b).norm() <= tolerance * b.norm()
    assert len(in_pieces(ledger)) == pieces
    return ledger


def in_pieces(ledger) -> list:
    return [r for r in ledger.records if r.op == "cross_entropy" and r.how == "recomputed"]


@pytest.fixture
def seven_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_cross_entropy._BLOCK, "cpu", 7 * V + 3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_loss_and_gradients(reduction: str, bias: bool, dtype: torch.dtype, tolerance: float, seven_rows: None) -> None:
    layer = nn.Linear(D, V, bias=bias, dtype=dtype)
    x = torch.randn(N, D, dtype=dtype, requires_grad=True)
    compare(lambda layer, x: F.cross_entropy(layer(x), targets(), reduction=reduction), x, layer, tolerance)


@given(
    n=st.integers(1, 30),
    rows=st.integers(1, 40),
    ignored=st.sampled_from([-100, 0, 5, V - 1]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_rows_pieces_and_ignored_classes(n: int, rows: int, ignored: int, share: float, reduction: str) -> None:
    y = targets(n)
    y[torch.rand(n, generator=torch.Generator().manual_seed(n)) < share] = ignored
    x = torch.randn(n, D, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_cross_entropy._BLOCK, "cpu", rows * V)
        compare(lambda m, x: F.cross_entropy(m(x), y, ignore_index=ignored, reduction=reduction), x)


def test_no_row_at_all() -> None:
    compare(lambda m, x: F.cross_entropy(m(x[:0]), targets(0), reduction="sum"), pieces=0)


@pytest.mark.parametrize("first", [-3.0e6, -torch.inf])
def test_logits_of_any_size(first: float) -> None:
    """Of rows whose target is as unlikely as can be, and of classes that are ruled out."""
    layer = nn.Linear(D, V)
    with torch.no_grad():
        layer.bias[0] = first
    y = targets().clamp_min(1)
    y[::3] = -100 if first == -torch.inf else 0
    compare(lambda m, x: F.cross_entropy(m(x), y), layer=layer)


def test_sequences_in_the_shape_of_language_models() -> None:
    y = targets(4 * 10).view(4, 10)

    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        logits = layer(x.view(4, 10, D)).float()
        shifted = F.pad(y, (0, 1), value=-100)[:, 1:].contiguous()
        return F.cross_entropy(logits.view(-1, V), shifted.view(-1), ignore_index=-100, reduction="sum") / 7

    compare(loss_of)


def test_loss_module_and_a_wider_type() -> None:
    compare(lambda m, x: nn.CrossEntropyLoss()(m(x).double(), targets()))


def test_two_losses_of_the_same_logits() -> None:
    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        logits = layer(x)
        z_loss = logits.logsumexp(-1).square().mean()
        return F.cross_entropy(logits, targets()) + 0.1 * z_loss + F.cross_entropy(logits, targets().flip(0))

    compare(loss_of, pieces=2)


def test_tied_embeddings() -> None:
    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.cross_entropy(layer(x + F.embedding(targets(), layer.weight)), targets())

    compare(loss_of)


def test_a_weight_that_is_computed() -> None:
    compare(lambda m, x: F.cross_entropy(F.linear(x, m.weight * 2, m.bias.exp()), targets()))


def test_autocast() -> None:
    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        return F.cross_entropy(logits.float(), targets())

    compare(loss_of, tolerance=0.01, amp=True)


def test_16_bit_model() -> None:
    x, layer = torch.randn(N, D, dtype=torch.bfloat16, requires_grad=True), nn.Linear(D, V, dtype=torch.bfloat16)
    compare(lambda m, x: F.cross_entropy(m(x).float(), targets()), x, layer, tolerance=0.01)


def test_backward_under_autocast_computes_the_logits_of_the_forward() -> None:
    layer, x = nn.Linear(D, V), torch.randn(N, D)
    expected = step(lambda m, x: F.cross_entropy(m(x), targets()), layer, x, lossy=False)[1][1]
    with graphlossy.compress(bits=None, recompute=True) as ledger:
        loss = F.cross_entropy(layer(x), targets())
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    assert in_pieces(ledger) and (layer.weight.grad - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_what_is_frozen(trained: str) -> None:
    layer, x = nn.Linear(D, V), torch.randn(N, D, requires_grad=trained == "x")
    layer.weight.requires_grad_(trained == "weight")
    layer.bias.requires_grad_(trained == "bias")
    ledger = compare(lambda m, x: F.cross_entropy(m(x), targets()), x, layer)
    assert ledger.saved_bytes < 2 * N * D * 4  # neither a frozen weight nor features that were handed in


# -- the graph -----------------------------------------------------------------------------------------------------


def plain_loss(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.cross_entropy(layer(x), targets())


def test_second_derivative_and_gradient_of_the_logits_are_refused() -> None:
    layer, x = nn.Linear(D, V), torch.randn(N, D, requires_grad=True)
    with graphlossy.compress(bits=None, recompute=True):
        logits = layer(x)
        loss = F.cross_entropy(logits, targets())
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.square().sum().backward()
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad(loss, logits, retain_graph=True)


def test_backward_twice_and_inside_the_block() -> None:
    layer, x = nn.Linear(D, V), torch.randn(N, D)
    _, (_, expected, _), _ = step(plain_loss, layer, x, lossy=False)
    for inside in (False, True):
        layer.zero_grad()
        with graphlossy.compress(bits=None, recompute=True) as ledger:
            loss = plain_loss(layer, x)
            if inside:
                loss.backward(retain_graph=True)
        if not inside:
            loss.backward(retain_graph=True)
        loss.backward()
        assert in_pieces(ledger)
        torch.testing.assert_close(layer.weight.grad, 2 * expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_checkpointed_layer(reentrant: bool, inside: bool) -> None:
    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        if inside:
            return checkpoint(plain_loss, layer, x, use_reentrant=reentrant)
        return F.cross_entropy(checkpoint(layer, x, use_reentrant=reentrant), targets())

    # What is not seen to come from a layer (or would be computed again in another way) is torch's.
    compare(loss_of, pieces=int(not inside and not reentrant))


def test_a_block_around_many_steps_holds_nothing() -> None:
    layer, gone = nn.Linear(D, V), []
    with graphlossy.compress(bits=None, recompute=True) as ledger:
        for n in (50, 60, 70, 80):
            hidden = torch.randn(n, D, requires_grad=True).sin()
            gone.append(weakref.ref(hidden))
            F.cross_entropy(layer(hidden), targets(n)).backward()
            del hidden
            torch.zeros(1).add(1)
            assert ledger.live_bytes == 0 and gone[-1]() is None
        assert len(in_pieces(ledger)) == 4


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


def test_the_backward_never_has_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    n, piece = 20 * D, 8 * V
    monkeypatch.setitem(_cross_entropy._BLOCK, "cpu", piece)
    largest = []
    for lossy in (False, True):
        layer, x = nn.Linear(D, V), torch.randn(n, D, requires_grad=True)
        with graphlossy.compress(bits=None, recompute=lossy):
            loss = F.cross_entropy(layer(x), targets(n))
        with Largest() as seen:
            loss.backward()
        largest.append(seen.elements)
    assert largest == [n * V, D * V]  # the gradient of the weight is larger than a piece here


def test_ledger() -> None:
    """The log-softmax counts among the bytes of plain autograd, and is not kept."""
    layer, x = nn.Linear(D, V), torch.randn(N, D, requires_grad=True)
    plain, lossy = (step(plain_loss, layer, x, lossy)[2] for lossy in (False, True))
    (record,) = in_pieces(lossy)
    assert (record.plain_bytes, record.saved_bytes, record.gradient) == (4 * N * V, 0, "exact")
    assert record.shape == (N, V)
    # Beside the log-sum of each row.
    assert 0 <= lossy.plain_bytes - plain.plain_bytes <= 4 * N
    assert plain.saved_bytes - lossy.saved_bytes >= 4 * N * V - 4 * N


def test_low_bits_leave_the_loss_exact() -> None:
    layer, x = nn.Linear(D, V), torch.randn(2000, D, requires_grad=True)
    y = targets(2000)
    expected = step(lambda m, x: F.cross_entropy(m(x), y), layer, x, lossy=False)[1]
    with graphlossy.compress(bits=2, recompute=True) as ledger:
        loss = F.cross_entropy(layer(x * 1.0), y)
    grads = torch.autograd.grad(loss, (x, *layer.parameters()))
    assert in_pieces(ledger)
    for a, b in zip(grads, expected, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_a_budget_measures_and_is_met() -> None:
    """Its own hooks, which only look at gradients, are no reason to keep all logits."""
    model = nn.Sequential(nn.Linear(D, 64), nn.GELU(), nn.Linear(64, V))
    x, y = torch.randn(512, D), targets(512)

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return F.cross_entropy(self.model(x), y)

    whole = WithLoss().train()
    ledger = graphlossy.compress(whole, budget="400KiB", recompute=True)
    for _ in range(3):
        whole(x).backward()
        assert in_pieces(ledger) and ledger.saved_bytes < 400 * 1024 < 512 * V * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("items", [None, 100])
def test_a_language_model(items: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, **sizes, tie_word_embeddings=True))
    model.train()
    twin = copy.deepcopy(model)
    ids = torch.randint(V, (3, 20))
    labels = ids.masked_fill(torch.rand(3, 20) < 0.2, -100)
    arguments = {"input_ids": ids, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    expected = twin(**arguments)
    expected.loss.backward()
    ledger = graphlossy.compress(model, bits=None, recompute=True)
    out = model(**arguments)
    out.loss.backward()
    assert in_pieces(ledger) and torch.equal(out.loss, expected.loss) and torch.equal(out.logits, expected.logits)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm()
