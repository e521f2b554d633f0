"""The table of operations: every name is torch's, and what is not in the table keeps an exact gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import graphlossy
from graphlossy._compress import _rules

KINDS = ("exact", "two-valued", "linear", "smooth")


def gradient(fn, x, bits=None):
    """Gradient of a fixed random projection of ``fn(x * 1)``, which is no leaf; the ledger if ``bits`` are given."""
    leaf, ledger = x.clone().requires_grad_(), None
    torch.manual_seed(0)
    if bits is None:
        out = fn(leaf * 1)
    else:
        with graphlossy.compress(bits=bits) as ledger:
            out = fn(leaf * 1)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(99))
    (out * weights.to(out.dtype)).sum().backward()
    return leaf.grad, ledger


def torch_names():
    """The name, after ``op_name``, of every function, method and operator of torch."""
    functions = {f for each in torch.overrides.get_overridable_functions().values() for f in each}
    operators = {n.removeprefix("aten::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")}
    names = {_rules.op_name(f) for f in functions}
    return names | {_rules.op_name(getattr(torch.ops.aten, n.split(".")[0])) for n in operators}


def test_every_rule_is_well_formed():
    real = torch_names()
    for name, rule in _rules._RULES.items():
        assert "::" in name or name in real, name
        assert rule.kind in KINDS, name
        assert (rule.kind == "two-valued") == (rule.values is not None), name
        assert rule.high is None or rule.values is not None, name


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (F.relu_, "relu"),
        (torch.Tensor.__mul__, "mul"),
        (torch.Tensor.index_select, "index_select"),
        (torch.sparse.mm, "sparse_mm"),
        (torch.Tensor.shape.__get__, "get"),
        (torch.linalg.solve, "solve"),
        (torch.linalg.multi_dot, "multi_dot"),
        (torch.special.log_softmax, "log_softmax"),
        (torch.ops.aten._log_softmax.default, "log_softmax"),
        (torch.ops.aten._log_softmax, "log_softmax"),
        (torch.ops.aten.mul_.Tensor, "mul"),
        (torch.ops.aten.linalg_vector_norm.default, "vector_norm"),
        (torch.ops.prims.mul.default, "prims::mul"),
        (torch.ops.prims.mul, "prims::mul"),
    ],
)
def test_names(func, name):
    assert _rules.op_name(func) == name


SQUARE = torch.eye(64) * 20
# As functions of a [500, 64] tensor of normal numbers.
UNLISTED = {
    "special.log_softmax": lambda t: torch.special.log_softmax(t * 5, -1),
    "special.softmax": lambda t: torch.special.softmax(t * 5, -1),
    "aten overload": lambda t: torch.ops.aten._log_softmax.default(t * 5, -1, False),
    "aten packet": lambda t: torch.ops.aten._softmax(t * 5, -1, False),
    "vector_norm": lambda t: torch.linalg.vector_norm(t, float("inf"), -1),
    "linalg.norm": lambda t: torch.linalg.norm(t, dim=-1),
    "linalg.inv": lambda t: torch.linalg.inv(t[:448].view(7, 64, 64) + SQUARE),
    "linalg.solve": lambda t: torch.linalg.solve(t[:448].view(7, 64, 64) + SQUARE, t[:448].view(7, 64, 64)),
    "linalg.svdvals": lambda t: torch.linalg.svdvals(t[:448].view(7, 64, 64)),
    "addcdiv": lambda t: torch.addcdiv(t, t * 2, t.abs() + 0.1),
    "logit": lambda t: torch.logit(t.sigmoid().detach() * 0 + t.abs() / 6 + 0.01),
    "xlogy": lambda t: torch.xlogy(t, t.abs() + 0.01),
    "special.log_ndtr": lambda t: torch.special.log_ndtr(t),
    "special.entr": lambda t: torch.special.entr(t.abs() + 0.01),
    "cosh": torch.cosh,
    "sinh": torch.sinh,
    "erf": lambda t: torch.erf(t * 5),
    "softsign": lambda t: F.softsign(t * 5),
    "lp_pool2d": lambda t: F.lp_pool2d(t[None], 3, 2),
    "grid_sample": lambda t: F.grid_sample(t[:200].view(2, 4, 25, 64) * 1, t[:256].view(2, 64, 64, 2) / 3,
                                           align_corners=False),
    "copysign": lambda t: torch.copysign(t, t.flip(0)),
    "pdist": lambda t: F.pdist(t[:100]),
    "sin": lambda t: torch.sin(t * 100),
    "cos": lambda t: torch.cos(t * 100),
    "nan_to_num": lambda t: torch.nan_to_num(t.masked_fill(t > 3, float("nan"))),
    "power of a tensor": lambda t: (t.abs() + 0.5) ** torch.full((64,), 2.0),
    "fourth power": lambda t: t**4,
    "divisor": lambda t: torch.div(torch.ones(500, 64), other=t.abs() + 0.01),
    "sampled softmax": lambda t: F.gumbel_softmax(t, dim=-1),
    "hardsigmoid": lambda t: F.hardsigmoid(t * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLISTED)
def test_operations_that_are_not_in_the_table_keep_exact_gradients(name):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    exact, _ = gradient(UNLISTED[name], x)
    lossy, ledger = gradient(UNLISTED[name], x, bits=2)
    torch.testing.assert_close(lossy, exact, rtol=0, atol=0, equal_nan=True)
    assert any(r.plain_bytes for r in ledger.records)


@pytest.mark.parametrize(
    "divide", [torch.div, lambda a, b: torch.div(a, other=b), lambda a, b: torch.div(input=a, other=b)]
)
def test_a_divisor_is_exact_however_it_is_passed(divide):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    numerator = torch.randn(500, 64, generator=torch.Generator().manual_seed(2))
    # The gradient of the numerator only needs the divisor.
    exact, _ = gradient(lambda t: divide(t, numerator.abs() + 0.01), x)
    lossy, _ = gradient(lambda t: divide(t, numerator.abs() + 0.01), x, bits=2)
    assert torch.equal(exact, lossy)
    itself, ledger = gradient(lambda t: divide(t, t), x, bits=2)
    assert torch.isfinite(itself).all() and {r.how for r in ledger.records} <= {"exact", "shared"}


def test_a_numerator_is_rounded():
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    _, ledger = gradient(lambda t: (t * 2) / torch.full((500, 64), 3.0).requires_grad_(), x, bits=2)
    assert [r.how for r in ledger.records if r.op == "div"].count("quantized") == 1


def test_rules_find_keyword_arguments():
    query = torch.randn(4, 4, 64, 64, requires_grad=True) * 1
    rule = _rules.rule_for("scaled_dot_product_attention", ())
    assert rule.rounds(query, (), {"query": query, "key": query * 1, "value": query * 1})
    rule = _rules.rule_for("layer_norm", ())
    assert rule.rounds(query, (), {"input": query}) and not rule.rounds(query[..., 0], (), {"input": query})
    rule = _rules.rule_for("multi_head_attention_forward", ())
    sizes = {"query": query, "embed_dim_to_check": 128, "num_heads": 2}
    assert rule.rounds(query, (), sizes) and not rule.rounds(query[..., :7], (), sizes)
    rule = _rules.rule_for("div", ())
    assert rule.rounds(query, (query,), {"other": query * 1}) and not rule.rounds(query, (), {"other": query})


def test_operators_of_other_libraries_are_no_torch_operations_of_that_name():
    assert _rules.rule_for("prims::relu", ()) is _rules.EXACT
    assert _rules.rule_for("torch_sparse::spmm_sum", ()).kind == "linear"


BOUNDS = [(-0.7, 0.7), (-0.3, 1.7), (0.0, 1.0), (-1.0, 1.0), (0.1, 0.10001), (0.0, 6e4), (-float("inf"), 0.3),
          (0.3, float("inf")), (-1.003, 300.1)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_clipped_activations_in_every_type(dtype, bounds, inplace):
    x = (torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    x[0, :3] = torch.tensor([float("inf"), -float("inf"), 0.0], dtype=dtype)
    x[1, :2] = torch.tensor([b if abs(b) < 1e4 else 0.0 for b in bounds], dtype=dtype)  # the bounds, rounded
    for fn in (lambda t: F.hardtanh(t, *bounds, inplace=inplace), lambda t: F.relu6(t * 3, inplace=inplace)):
        exact, _ = gradient(fn, x)
        lossy, ledger = gradient(fn, x, bits=2)
        assert torch.equal(exact, lossy)
        assert any(r.how == "mask" for r in ledger.records)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_an_attention_mask_as_large_as_the_query_is_exact(backend, learned):
    """Its infinities would turn whole groups into NaN."""
    mask = torch.ones(4, 4, 64, 64, dtype=torch.bool).tril()
    x = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(1))

    def attend(t):
        float_mask = torch.zeros_like(t).masked_fill(~mask, -float("inf")) + 0 * t.detach().requires_grad_()
        return F.scaled_dot_product_attention(t * 0.5, t, t * 1, attn_mask=float_mask if learned else mask)

    with sdpa_kernel([backend, SDPBackend.MATH]):
        exact, _ = gradient(attend, x)
        lossy, _ = gradient(attend, x, bits=8)
    assert (lossy - exact).norm() < 0.1 * exact.norm()


def test_a_mask_of_multi_head_attention_is_exact():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(128, 2, batch_first=True)
    mask = torch.ones(64, 64, dtype=torch.bool).triu(1).expand(16, 64, 64)
    x = torch.randn(8, 64, 128)

    def attend(t):
        return layer(t * 0.5, t, t * 1, attn_mask=mask, need_weights=False)[0]

    exact, _ = gradient(attend, x)
    lossy, ledger = gradient(attend, x, bits=8)
    assert any(r.how == "quantized" for r in ledger.records)
    assert (lossy - exact).norm() < 0.1 * exact.norm()


def test_the_input_of_self_attention_is_rounded_without_a_gradient_too():
    layer = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    x = torch.randn(10, 32, 64)
    with graphlossy.compress(bits=2) as ledger:
        layer(x, x, x, need_weights=False)
    assert not any(r.how == "exact" and r.shape[-1] == 64 and r.plain_bytes for r in ledger.records)
