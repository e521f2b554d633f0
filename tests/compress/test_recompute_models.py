"""Recomputation in whole models and beside what else there is: autocast, checkpoints, budgets, copies."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from recompute_steps import D, N, compare, recomputed, rms_norm, step, swiglu, weigh, x_and
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import graphlossy

SQUARE = (D, D)


def block(x: Tensor, g: Tensor, w: Tensor) -> Tensor:
    return swiglu(rms_norm(x + 0, g), w, w.t(), w)


def test_autocast_keeps_no_cast_copies() -> None:
    """q, k and v each keep a copy in 16 bits of one input, and one of their weight."""
    assert compare(lambda x, g, q, k, v: (lambda h: h @ q + (h @ k) * (h @ v))(rms_norm(x + 0, g)),
                   *x_and((D,), SQUARE, SQUARE, SQUARE), amp=True) == ["mul", *["matmul"] * 6]  # fmt: skip


def test_autocast_keeps_no_cast_copies_of_batches() -> None:
    """A linear layer saves the rows of all samples as one matrix."""

    def fn(x: Tensor, g: Tensor, w: Tensor) -> Tensor:
        h = rms_norm(x.view(4, -1, D) + 0, g)
        return F.linear(h, w) * F.linear(h, w.t())

    assert compare(fn, *x_and((D,), SQUARE), amp=True).count("linear") == 4  # two inputs, two copies of one weight


def test_autocast_of_two_arguments_of_one_size() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        return (x * 1.5).sigmoid() @ (y * 1.5).tanh() + F.silu(y * 2).tanh() @ (x * 2).sigmoid()

    assert compare(fn, torch.randn(D, D), torch.randn(D, D), amp=True).count("matmul") == 4


def test_layer_norm_of_16_bits_with_32_bit_weights() -> None:
    def fn(x: Tensor, g: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return F.layer_norm(x.bfloat16() * 1, (D,), g, b) @ w.bfloat16()

    assert "matmul" in compare(fn, *x_and((D,), (D,), SQUARE))
    out, grads, ledger = step(fn, *x_and((D,), (D,), SQUARE), bits=4)
    assert "matmul" in recomputed(ledger) and all(g.isfinite().all() for g in grads)


def test_recomputation_runs_under_the_autocast_of_the_forward() -> None:
    """On a GPU powers and norms are of another type under it."""
    seen = []

    def gelu(x: Tensor) -> Tensor:  # passes for the operation of this name
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(gelu, (x,), x)
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return x.tanh()

    w = torch.randn(D, D)
    for amp in (True, False):
        seen.clear()
        x = torch.randn(N, D, requires_grad=True)
        with torch.autocast("cpu", torch.float16, enabled=amp), graphlossy.compress(bits=None, recompute=True):
            out = gelu(F.silu(x + 0)).square() @ w
        with torch.autocast("cpu", torch.bfloat16, enabled=not amp):
            out.sum().backward()
        assert len(seen) > 1 and len(set(seen)) == 1 and seen[0][0] == amp


def test_backward_twice_inside_the_block_and_accumulation() -> None:
    inputs = x_and((D,), SQUARE)
    _, expected, _ = step(block, *inputs, recompute=False)
    leaves = [t.clone().requires_grad_() for t in inputs]
    with graphlossy.compress(bits=None, recompute=True) as ledger:
        out = weigh(block(*leaves))
        out.backward(retain_graph=True)
        again = weigh(block(*leaves))
    out.backward()
    again.backward()
    assert recomputed(ledger)
    for leaf, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * grad)


def test_second_derivative() -> None:
    results = []
    for recompute in (False, True):
        leaves = [
            t.requires_grad_() for t in (torch.linspace(-1, 1, N * D).view(N, D), torch.ones(D), torch.eye(D) + 0.1)
        ]
        with graphlossy.compress(bits=None, recompute=recompute):
            out = weigh(block(*leaves))
        grads = torch.autograd.grad(out, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_gradient_checkpointing(reentrant: bool, inside: bool) -> None:
    inputs = x_and((D,), SQUARE)
    grads = []
    for recompute in (False, True):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with graphlossy.compress(bits=None, recompute=recompute):
            h = F.silu(leaves[0] + 0)
            h = checkpoint(block, h, *leaves[1:], use_reentrant=reentrant)
            out = weigh(block(h + F.silu(h), *leaves[1:]))
            if inside:
                out.backward()
        if not inside:
            out.backward()
        grads.append([leaf.grad for leaf in leaves])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


# -- models --------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 64, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(transformers) -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=128, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config)


def gpt2(transformers) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_embd=D, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def bert(transformers) -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, intermediate_size=128))


MODELS = {llama: 1.6, gpt2: 1.5, bert: 1.2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen norms"])
@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_transformers(build, frozen: bool) -> None:
    """Dropout included: the random numbers of the forward pass are those of the plain model."""
    model = build(pytest.importorskip("transformers")).train()
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" not in name.lower() and "ln_" not in name)
    twin = copy.deepcopy(model)
    ids = torch.randint(64, (4, 32))
    torch.manual_seed(1)
    expected = twin(input_ids=ids, labels=ids)
    expected.loss.backward()
    ledger = graphlossy.compress(model, bits=None, recompute=True)
    for _ in range(2):  # gradients of two passes add up
        torch.manual_seed(1)
        out = model(input_ids=ids, labels=ids)
        assert torch.equal(out.logits, expected.logits) and torch.equal(out.loss, expected.loss)
        out.loss.backward()
    assert ledger.plain_bytes > MODELS[build] * ledger.saved_bytes
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if b.grad is not None:
            torch.testing.assert_close(a.grad, 2 * b.grad, rtol=1e-5, atol=1e-8, msg=name)


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.after = nn.RMSNorm(D), nn.LayerNorm(D)
        self.gate, self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.after(x + self.down(F.silu(self.gate(h)) * self.up(h)))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), SwiGLU(), SwiGLU()).train()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    weigh(model(x)).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "copier",
    [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["switch", "deepcopy", "pickle"],
)
def test_switch_and_copies(copier: Callable[[nn.Module], nn.Module]) -> None:
    model, x = mlp(), torch.randn(N, D)
    expected = gradients(model, x)
    graphlossy.compress(model, bits=None, recompute=True)
    model = copier(model)
    ledger = next(iter(model._forward_pre_hooks.values())).__self__.ledger
    assert all(map(torch.equal, gradients(model, x), expected))
    assert Counter(recomputed(ledger))["linear"] == 6  # gate, up and down of both
    graphlossy.restore(model)
    assert all(map(torch.equal, gradients(model, x), expected)) and not model._forward_pre_hooks


def test_budget() -> None:
    model, x = mlp(), torch.randn(N, D)
    expected = gradients(model, x)
    ledger = graphlossy.compress(model, budget="150KiB", recompute=True)
    for _ in range(3):
        grads = gradients(model, x)
        assert ledger.saved_bytes <= 150 * 1024 and recomputed(ledger)
    for a, b in zip(grads, expected, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()
