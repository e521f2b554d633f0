"""What compression does to gradients: exact where it says exact, unbiased where it says unbiased, close elsewhere."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphlossy
from graphlossy._compress import _codecs


def plain_and_lossy(fn, *inputs, bits=2, seed=0):
    """Gradients of fn(*inputs).sum-like scalar, without and with compression."""
    results = []
    for lossy in (False, True):
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
        torch.manual_seed(seed)
        if lossy:
            with graphlossy.compress(bits=bits) as ledger:
                loss = fn(*leaves)
        else:
            loss = fn(*leaves)
        loss.backward()
        results.append([t.grad for t in leaves])
    return results[0], results[1], ledger


def weigh(t):
    """A fixed random projection to a scalar, so that no gradient entry is special."""
    generator = torch.Generator().manual_seed(99)
    return (t * torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t.dtype)).sum()


EXACT_OPS = {
    "relu": lambda x: F.relu(x * 1.0),
    "relu method": lambda x: (x * 1.0).relu(),
    "relu in place": lambda x: F.relu(x + 0, inplace=True),
    "relu_": lambda x: (x + 0).relu_(),
    "nn.ReLU": lambda x: nn.ReLU()(x + 0),
    "leaky_relu": lambda x: F.leaky_relu(x + 0, 0.2),
    "leaky_relu in place": lambda x: F.leaky_relu(x + 0, 0.2, inplace=True),
    "relu6": lambda x: F.relu6(x * 5),
    "hardtanh": lambda x: F.hardtanh(x * 2, -0.5, 1.5),
    "dropout": lambda x: F.dropout(x + 0, 0.37, True),
    "nn.Dropout": lambda x: nn.Dropout(0.3)(x + 0),
    "dropout of everything": lambda x: F.dropout(x + 0, 1.0, True),
    "dropout1d": lambda x: F.dropout1d(x + 0, 0.4, True),
    "log_softmax": lambda x: (x * 3).log_softmax(-1),
    "softmax": lambda x: (x * 3).softmax(-1),
    "logsumexp": lambda x: (x * 3).logsumexp(-1),
    "where": lambda x: torch.where(x > 0, x, x * 2),
    "masked_fill": lambda x: (x + 0).masked_fill(x > 1, 0.0),
    "max": lambda x: (x + 0).max(dim=1).values,
    "amax": lambda x: (x + 0).amax(1),
    "normalize": lambda x: F.normalize(x * 2, dim=-1),
    "sqrt": lambda x: (x.square() + 1e-3).sqrt(),
    "division": lambda x: x[:, :32] / (x[:, 32:].abs() + 0.1).detach(),
    "gather": lambda x: (x + 0).index_select(0, torch.arange(100).repeat(50) + 0),
    "cat": lambda x: torch.cat([x + 0, x * 2]),
}


@pytest.mark.parametrize("name", EXACT_OPS)
@pytest.mark.parametrize("bits", [1, 2])
def test_exact_operations_have_exact_gradients(name, bits):
    torch.manual_seed(1)
    x = torch.randn(300, 64)
    exact, lossy, _ = plain_and_lossy(lambda t: EXACT_OPS[name](t).sum() * 3, x, bits=bits)
    assert torch.equal(exact[0], lossy[0])


def test_small_positives_keep_their_gradient():
    """A ReLU output stored as a low-bit float would round most of these to 0."""
    x = torch.full((100, 64), 1e-6)
    x[:, 0] = 100.0
    exact, lossy, ledger = plain_and_lossy(lambda t: F.relu(t + 0).sum(), x, bits=1)
    assert torch.equal(exact[0], lossy[0]) and lossy[0].min() == 1
    assert {r.how for r in ledger.records} == {"mask"}


LINEAR_OPS = {
    "linear": lambda x, w: weigh(F.linear(x * 1.0, w)),
    "matmul": lambda x, w: weigh((x * 1.0) @ w),
    "mul": lambda x, w: weigh((x * 1.0) * w.repeat(4, 1)[:200]),
    "bmm": lambda x, w: weigh(torch.bmm((x * 1.0).view(4, -1, 64), w.expand(4, 64, 64))),
    "exp": lambda x, w: weigh((x * 0.5).exp() @ w.detach()),
    "addmm": lambda x, w: weigh(torch.addmm(x, x * 1.0, w, alpha=0.5)),
}


def z_score(samples, exact):
    """Mean squared z-score of the mean of ``samples`` against ``exact``, over 400 random sums of entries.

    About 1 without bias. Sums, because one entry may hang on a single rounded number, which is far from normal.
    """
    signs = torch.randint(0, 2, (exact.numel(), 400), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    errors = (samples - exact).flatten(1) @ signs
    mean, spread = errors.mean(0), errors.std(0) / samples.shape[0] ** 0.5
    return ((mean / spread) ** 2).mean().item()


@pytest.mark.parametrize("name", LINEAR_OPS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_linear_operations_are_unbiased(name, bits):
    torch.manual_seed(2)
    x, w = torch.randn(200, 64), torch.randn(64, 64)
    runs = 120
    grads = []
    for seed in range(runs):
        exact, lossy, ledger = plain_and_lossy(LINEAR_OPS[name], x, w, bits=bits, seed=seed)
        grads.append([g if g is not None else torch.zeros(1) for g in lossy])
    assert any(r.how == "quantized" for r in ledger.records)
    assert {r.gradient for r in ledger.records} <= {"unbiased", "exact"}
    for which, reference in enumerate(exact):
        if reference is None:
            continue
        samples = torch.stack([g[which] for g in grads])
        if torch.equal(samples[0], samples[1]):
            torch.testing.assert_close(samples[0], reference, rtol=1e-4, atol=1e-4)
        else:
            assert z_score(samples, reference) < 1.35


def test_the_unbiasedness_test_has_teeth(monkeypatch):
    """The same statistic must reject rounding to nearest, which is biased."""
    original = _codecs.quantize

    def nearest(x, bits, **options):
        options.pop("seed", None)
        # One in ten elements is rounded to nearest instead: a small bias, yet one that must be seen.
        exact = original(x, bits, rounding="stochastic", seed=int(torch.randint(2**31, ())), **options)
        biased = original(x, bits, rounding="nearest", **options)

        class Mixed:
            nbytes, device, offset, scale = exact.nbytes, exact.device, exact.offset, exact.scale

            @staticmethod
            def dequantize():
                every = torch.arange(x.numel()) % 10 == 0
                return torch.where(every, biased.dequantize(), exact.dequantize())

        return Mixed

    monkeypatch.setattr(_codecs, "quantize", nearest)
    torch.manual_seed(2)
    x, w = torch.randn(200, 64), torch.randn(64, 64)
    grads = []
    for seed in range(120):
        exact, lossy, _ = plain_and_lossy(LINEAR_OPS["linear"], x, w, bits=2, seed=seed)
        grads.append(lossy[1])
    assert z_score(torch.stack(grads), exact[1]) > 1.35


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, activation="gelu")

    def forward(self, x):
        return self.layer(x.view(10, -1, 64))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32)),
    "batch norm": lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ELU(), nn.Linear(64, 32)),
    "layer norm": lambda: nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 32)),
    "saturating": lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid()),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3)
    ),
    "transformer": Encoder,
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_at_8_bits_are_close_tensor_by_tensor(name):
    torch.manual_seed(3)
    model = MODELS[name]()
    x = torch.randn(320, 64)
    twin = copy.deepcopy(model)
    weigh(twin(x)).backward()
    ledger = graphlossy.compress(model, bits=8)
    weigh(model(x)).backward()
    assert any(r.how == "quantized" for r in ledger.records)
    for (key, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if b.grad.norm() < 1e-3:  # a bias before a batch norm
            continue
        error = (a.grad - b.grad).norm() / b.grad.norm()
        assert error < 0.02, (key, float(error))


def test_statistics_beside_the_input_of_a_norm_stay_exact():
    x = torch.randn(5000, 32, requires_grad=True)
    with graphlossy.compress(bits=1) as ledger:
        loss = F.layer_norm(x * 2, (32,)).sum()
    loss.backward()
    quantized = [r.shape for r in ledger.records if r.how == "quantized"]
    assert quantized == [(5000, 32)]


def test_user_autograd_functions_are_covered():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    x = torch.randn(500, 64)
    exact, lossy, ledger = plain_and_lossy(lambda t: Square.apply(t * 1.0).sum(), x, bits=8)
    record = next(r for r in ledger.records if r.op == "function")
    assert record.how == "quantized" and record.gradient == "approximate"
    assert (lossy[0] - exact[0]).abs().max() < 0.1


def test_a_users_own_relu_keeps_the_gradient_of_small_positives():
    class OwnReLU(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.clamp_min(0)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            (y,) = ctx.saved_tensors
            return grad * (y > 0)

    x = torch.randn(500, 64) * 1e-3
    x[:, 0] = 100.0
    exact, lossy, ledger = plain_and_lossy(lambda t: OwnReLU.apply(t * 1.0).sum(), x, bits=1)
    assert any(r.how == "quantized" for r in ledger.records)
    assert torch.equal(exact[0], lossy[0])
