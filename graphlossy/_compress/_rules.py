"""How each torch operation's saved tensors may be stored: the table behind ``graphlossy.compress``.

A rule answers two questions about the tensors that an operation saves for its backward pass: how may they be stored,
and what does that make of the gradient? The reasons, operation by operation:

- *two-valued*: the backward formula only asks which side of a threshold an element lies on, so one exact bit is enough.
  A low-bit float is wrong here: a small positive ReLU output rounded to 0 loses its gradient.
- *linear*: the gradient is linear in the saved tensor (products, sums of products), so unbiased rounding gives an
  unbiased gradient.
- *smooth*: the gradient is a smooth bounded function of the saved tensor (normalisation, GELU); close, not unbiased.
- *exact*: the formula divides by, or takes exponentials or ties of, the saved tensor. One example: two-bit
  log-softmax outputs took a GCN on tolokers from 71 to 47 ROC-AUC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPILED", "EXACT", "FUNCTION", "Rule", "op_name", "rule_for"]


@dataclass(frozen=True)
class Rule:
    """How an operation's saved tensors are stored.

    Attributes:
        kind: ``"exact"``, ``"two-valued"``, ``"linear"`` or ``"smooth"``.
        min_bits: fewest bits that this operation's tensors are rounded to.
        rounds: says which saved tensors are rounded, from the tensor and the arguments; the others (means, log-sums of
            exponentials) stay exact. None: all.
        exact_args: positions of arguments that are kept exact (the divisor of a division).
        values: for ``"two-valued"``: maps (arguments, keyword arguments, saved tensor) to the low and the high value
            that the backward formula is given back, and the predicate's threshold is between them.
        high: for ``"two-valued"``: maps (arguments, keyword arguments, saved tensor) to the mask of high elements.
            None: they are the nonzero ones.
    """

    kind: str
    min_bits: int = 1
    rounds: Callable[[Tensor, tuple[Any, ...]], bool] | None = None
    exact_args: tuple[int, ...] = ()
    values: Callable[[tuple[Any, ...], dict[str, Any], Tensor], tuple[float, float]] | None = None
    high: Callable[[tuple[Any, ...], dict[str, Any], Tensor], Tensor] | None = None

    @property
    def gradient(self) -> str:
        return {"linear": "unbiased", "smooth": "approximate"}.get(self.kind, "exact")


def _arg(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _dropout_values(args: tuple[Any, ...], kwargs: dict[str, Any], saved: Tensor) -> tuple[float, float]:
    # The noise is made as bernoulli_(1 - p).div_(1 - p); the same division gives the same rounded number.
    p = float(_arg(args, kwargs, 1, "p", 0.5))
    high = torch.ones((), dtype=saved.dtype).div_(1.0 - p).item() if p < 1.0 else 0.0
    return 0.0, high


def _hardtanh_bounds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    return float(_arg(args, kwargs, 1, "min_val", -1.0)), float(_arg(args, kwargs, 2, "max_val", 1.0))


def _like_inputs(saved: Tensor, args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, Tensor) and a.shape == saved.shape for a in args[:3])


def _heads_or_features(saved: Tensor, args: tuple[Any, ...]) -> bool:
    # multi_head_attention_forward(query, key, value, embed_dim, num_heads, ...) also saves log-sums of exponentials.
    embed_dim, num_heads = int(args[3]), int(args[4])
    return saved.shape[-1] in (embed_dim, embed_dim // num_heads, 3 * embed_dim)


EXACT = Rule("exact")
LINEAR = Rule("linear")
# Operations that are not in the table: nothing is promised but that they are close.
DEFAULT = Rule("smooth")
# Saved by a user's own autograd function: what its backward does with it is not known.
FUNCTION = Rule("smooth")
# Saved by compiled code: the compiler chose what to save, and it may take exponentials of it (a softmax). At 8 bits the
# error of an exponential is still small.
COMPILED = Rule("smooth", min_bits=8)

_RELU6 = Rule(
    "two-valued",
    # hardtanh's backward passes the gradient where min < x < max.
    values=lambda args, kwargs, saved: (6.0, 3.0),
    high=lambda args, kwargs, saved: (saved > 0) & (saved < 6),
)
_HARDTANH = Rule(
    "two-valued",
    values=lambda args, kwargs, saved: (
        _hardtanh_bounds(args, kwargs)[1],
        sum(_hardtanh_bounds(args, kwargs)) / 2,
    ),
    high=lambda args, kwargs, saved: (
        (saved > _hardtanh_bounds(args, kwargs)[0]) & (saved < _hardtanh_bounds(args, kwargs)[1])
    ),
)
# What is saved, the result, is not negative; NaN counts as positive, as in torch's backward.
_RELU = Rule("two-valued", values=lambda args, kwargs, saved: (0.0, 1.0))
_LEAKY_RELU = Rule(
    "two-valued", values=lambda args, kwargs, saved: (-1.0, 1.0), high=lambda args, kwargs, saved: saved > 0
)
_DROPOUT = Rule("two-valued", values=_dropout_values)
_SMOOTH = Rule("smooth")
_NORM = Rule("smooth", rounds=_like_inputs)
# exp(q.k - logsumexp) is recomputed in the backward, so errors in q and k are exponentiated: no fewer than 8 bits.
_ATTENTION = Rule("smooth", min_bits=8, rounds=_like_inputs)

_RULES: dict[str, Rule] = {
    "relu": _RELU,
    "leaky_relu": _LEAKY_RELU,
    "relu6": _RELU6,
    "hardtanh": _HARDTANH,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), _DROPOUT),
    **dict.fromkeys(("batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm"), _NORM),
    **dict.fromkeys(
        ("gelu", "silu", "elu", "celu", "selu", "mish", "softplus", "sigmoid", "tanh", "logsigmoid", "sin", "cos"),
        _SMOOTH,
    ),
    **dict.fromkeys(("glu", "hardswish", "hardsigmoid", "softsign", "tanhshrink", "erf"), _SMOOTH),
    "scaled_dot_product_attention": _ATTENTION,
    "multi_head_attention_forward": Rule("smooth", min_bits=8, rounds=_heads_or_features),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), Rule("linear", exact_args=(1,))),
    **dict.fromkeys(
        (
            "linear bilinear matmul rmatmul mm bmm mv dot vdot inner outer ger addmm addmv addr baddbmm addbmm einsum "
            "tensordot chain_matmul multi_dot sparse_mm sspmm smm spmm conv1d conv2d conv3d conv_transpose1d "
            "conv_transpose2d conv_transpose3d mul rmul imul multiply square exp exp2 expm1 addcmul"
        ).split(),
        LINEAR,
    ),
}

_EXACT_NAMES = frozenset(
    """
    softmax log_softmax softmin gumbel_softmax logsumexp logcumsumexp logaddexp logaddexp2 log log2 log10 log1p rdiv
    rtruediv reciprocal sqrt rsqrt pow rpow float_power norm vector_norm matrix_norm normalize renorm std var
    std_mean var_mean cosine_similarity pairwise_distance cdist dist acos asin acosh asinh atanh tan erfinv lgamma
    digamma prod cumprod max min amax amin aminmax maximum minimum fmax fmin median nanmedian mode kthvalue topk
    sort cummax cummin clamp clip clamp_min clamp_max prelu rrelu hardshrink softshrink threshold abs absolute sgn
    sign hypot atan2 alpha_dropout feature_alpha_dropout scatter_reduce index_reduce segment_reduce max_pool1d
    max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d cross_entropy nll_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div mse_loss l1_loss smooth_l1_loss huber_loss hinge_embedding_loss
    margin_ranking_loss soft_margin_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss
    cosine_embedding_loss triplet_margin_loss triplet_margin_with_distance_loss poisson_nll_loss gaussian_nll_loss
    ctc_loss inv inverse det logdet slogdet cholesky qr svd eigh solve lstsq matrix_exp solve_triangular pinverse
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell
    """.split()
)


def op_name(func: Any) -> str:
    """Plain name of a torch function: ``F.relu_``, ``Tensor.relu`` -> ``relu``; ``Tensor.__mul__`` -> ``mul``."""
    name = getattr(func, "__name__", None) or str(func)
    stripped: str = name.strip("_")
    return stripped or name


def rule_for(name: str, args: tuple[Any, ...]) -> Rule:
    """The rule of the operation called ``name``; operations not in the table are taken as smooth."""
    rule = _RULES.get(name)
    if rule is not None:
        return rule
    if name == "pow" and len(args) > 1 and args[1] == 2:
        return LINEAR
    return EXACT if name in _EXACT_NAMES else DEFAULT
