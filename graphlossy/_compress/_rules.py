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

The table is a whitelist: an operation that is not in it keeps what it saves exactly. Torch has some thousand
differentiable operations, many of which divide by what they saved (``linalg.solve``, ``xlogy``), compare it (``max``,
``copysign``), or vary fast with it (``sin`` of a time encoding, ``grid_sample``), and a composite one does all of that
under one name (``lp_pool2d``). What is in the table is what holds the memory of GNNs, CNNs and transformers:

- products: linear layers, matrix, sparse and elementwise products, convolutions, ``einsum``, ``lerp``, ``cross``;
- results that are their own derivative: ``exp``, ``exp2``, ``expm1``;
- pooling by averages, which saves its input and asks only for its shape;
- normalisations (their input alone; means and deviations stay exact), attention, and smooth activations.

Operations that save nothing but indices, masks or shapes need no entry: ``cat``, ``stack``, ``where``, ``sum``,
``cumsum``, ``gather``, ``index_select``, ``index_add``, ``scatter_add``, ``embedding``, ``pad``, ``interpolate``. Masks
and 64-bit indices are stored in fewer bits without loss whatever the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPILED", "EXACT", "FUNCTION", "Rule", "op_name", "rule_for"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Rule:
    """How an operation's saved tensors are stored.

    Attributes:
        kind: ``"exact"``, ``"two-valued"``, ``"linear"`` or ``"smooth"``.
        min_bits: fewest bits that this operation's tensors are rounded to.
        rounds: says which saved tensors are rounded, from the tensor, the arguments and the keyword arguments; the
            others (means, log-sums of exponentials, divisors) stay exact. None: all.
        values: for ``"two-valued"``: maps (arguments, keyword arguments, saved tensor) to the low and the high value
            that the backward formula is given back, and the predicate's threshold is between them.
        high: for ``"two-valued"``: maps (arguments, keyword arguments, saved tensor) to the mask of high elements.
            None: they are the nonzero ones.
    """

    kind: str
    min_bits: int = 1
    rounds: Callable[..., bool] | None = None
    values: Callable[[tuple[Any, ...], dict[str, Any], Tensor], tuple[float, float]] | None = None
    high: Callable[[tuple[Any, ...], dict[str, Any], Tensor], Tensor] | None = None

    @property
    def gradient(self) -> str:
        return {"linear": "unbiased", "smooth": "approximate"}.get(self.kind, "exact")


def _arg(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _dropout_values(args: tuple[Any, ...], kwargs: dict[str, Any], saved: Tensor) -> tuple[float, float]:
    # The noise is made as bernoulli_(1 - p).div_(1 - p); the same division gives the same rounded number.
    p = float(_arg(args, kwargs, 1, "p", 0.5))
    high = torch.ones((), dtype=saved.dtype).div_(1.0 - p).item() if p < 1.0 else 0.0
    return 0.0, high


def _hardtanh_bounds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    return float(_arg(args, kwargs, 1, "min_val", -1.0)), float(_arg(args, kwargs, 2, "max_val", 1.0))


def _between_bounds(args: tuple[Any, ...], kwargs: dict[str, Any], saved: Tensor) -> Tensor:
    # The backward compares 16-bit numbers with float32 bounds. What becomes of NaN depends on torch's kernel.
    low, high = _hardtanh_bounds(args, kwargs)
    wide = saved if saved.dtype == torch.float64 else saved.float()
    return (wide > low) & (wide < high)


def _hardtanh_values(args: tuple[Any, ...], kwargs: dict[str, Any], saved: Tensor) -> tuple[float, float]:
    # Infinity is blocked whatever the bounds: a bound itself may round to a number between the bounds. If any number of
    # this type lies between them, the one nearest to the middle does.
    low, high = _hardtanh_bounds(args, kwargs)
    limits = torch.finfo(saved.dtype)
    return math.inf, max(low, limits.min) / 2 + min(high, limits.max) / 2


def _made_by(saved: Tensor) -> str:
    return "" if saved.grad_fn is None else saved.grad_fn.name()


def _like_inputs(saved: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NOTHING) -> bool:
    inputs = (*args[:3], kwargs.get("input"))
    return any(isinstance(a, Tensor) and a.shape == saved.shape for a in inputs)


def _attended(saved: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NOTHING) -> bool:
    # Query, key, value and the result. A mask, with its infinities, or a softmax may have the same shape.
    named = (_arg(args, kwargs, i, name, None) for i, name in enumerate(("query", "key", "value")))
    inputs = [a for a in named if isinstance(a, Tensor)]
    if any(a.data_ptr() == saved.data_ptr() for a in inputs):
        return True
    if saved.grad_fn is not None and saved.grad_fn.name() == "ToCopyBackward0":  # of autocast
        original = saved.grad_fn.next_functions[0][0]
        return any(a.grad_fn is original and a.shape == saved.shape for a in inputs)
    return _made_by(saved).startswith("ScaledDotProduct") and saved.dim() > 3


def _heads_or_features(saved: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NOTHING) -> bool:
    # It also saves log-sums of exponentials, softmaxes and, from nowhere and with a dimension for the heads, masks;
    # those of a sequence as long as a head is wide have the features' shape.
    made_by = _made_by(saved)
    if made_by in ("SoftmaxBackward0", "SafeSoftmaxBackward0") or (not made_by and saved.dim() > 3):
        return False
    embed_dim, num_heads = _arg(args, kwargs, 3, "embed_dim_to_check", 0), _arg(args, kwargs, 4, "num_heads", 1)
    return saved.shape[-1] in (embed_dim, embed_dim // num_heads, 3 * embed_dim)


def _is_numerator(saved: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NOTHING) -> bool:
    numerator, divisor = _arg(args, kwargs, 0, "input", None), _arg(args, kwargs, 1, "other", None)
    if not isinstance(numerator, Tensor) or not isinstance(divisor, Tensor):
        return False
    return saved.data_ptr() == numerator.data_ptr() != divisor.data_ptr()


EXACT = Rule("exact")
LINEAR = Rule("linear")
# Saved by a user's own autograd function: what its backward does with it is not known.
FUNCTION = Rule("smooth")
# Saved by compiled code: the compiler chose what to save, and it may take exponentials of it (a softmax). At 8 bits the
# error of an exponential is still small.
COMPILED = Rule("smooth", min_bits=8)

_HARDTANH = Rule("two-valued", values=_hardtanh_values, high=_between_bounds)
_RELU6 = Rule(
    "two-valued",
    values=lambda args, kwargs, saved: _hardtanh_values((None, 0.0, 6.0), {}, saved),
    high=lambda args, kwargs, saved: _between_bounds((None, 0.0, 6.0), {}, saved),
)
_HARDSIGMOID = Rule(
    "two-valued",
    # Its backward passes a sixth of the gradient where -3 < x < 3, and nothing for NaN.
    values=lambda args, kwargs, saved: (math.inf, 0.0),
    high=lambda args, kwargs, saved: (saved > -3) & (saved < 3),
)
# What is saved, the result, is not negative; NaN counts as positive, as in torch's backward.
_RELU = Rule("two-valued", values=lambda args, kwargs, saved: (0.0, 1.0))
_LEAKY_RELU = Rule(
    "two-valued", values=lambda args, kwargs, saved: (-1.0, 1.0), high=lambda args, kwargs, saved: saved > 0
)
_DROPOUT = Rule("two-valued", values=_dropout_values)
_SMOOTH = Rule("smooth")
_DIVISION = Rule("linear", rounds=_is_numerator)
_NORM = Rule("smooth", rounds=_like_inputs)
# exp(q.k - logsumexp) is recomputed in the backward, so errors in q and k are exponentiated: no fewer than 8 bits.
_ATTENTION = Rule("smooth", min_bits=8, rounds=_attended)

_RULES: dict[str, Rule] = {
    "relu": _RELU,
    "leaky_relu": _LEAKY_RELU,
    "relu6": _RELU6,
    "hardtanh": _HARDTANH,
    "hardsigmoid": _HARDSIGMOID,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), _DROPOUT),
    **dict.fromkeys(("batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm"), _NORM),
    **dict.fromkeys(("native_batch_norm", "native_layer_norm", "native_group_norm"), _NORM),
    **dict.fromkeys(("gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "hardswish", "glu"), _SMOOTH),
    **dict.fromkeys(("sigmoid", "expit", "log_sigmoid", "log_sigmoid_forward", "tanh", "tanhshrink"), _SMOOTH),
    "scaled_dot_product_attention": _ATTENTION,
    "multi_head_attention_forward": Rule("smooth", min_bits=8, rounds=_heads_or_features),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _DIVISION),
    **dict.fromkeys(
        (
            "linear bilinear matmul rmatmul mm bmm mv dot vdot vecdot inner outer ger kron cross addmm addmv addr "
            "baddbmm addbmm einsum tensordot chain_matmul multi_dot sparse_mm smm conv1d conv2d conv3d conv_tbc "
            "conv_transpose1d conv_transpose2d conv_transpose3d convolution mul rmul imul multiply square exp exp2 "
            "expm1 addcmul lerp avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
            "adaptive_avg_pool3d"
        ).split(),
        LINEAR,
    ),
    # PyG's compiled companions. A minimum or a maximum is a product too, with the edges that won.
    **{f"torch_sparse::spmm_{reduce}": LINEAR for reduce in ("sum", "mean", "min", "max")},
    "pyg::segment_matmul": LINEAR,
}


def op_name(func: Any) -> str:
    """Plain name of a torch function.

    ``F.relu_``, ``Tensor.relu``, ``torch.ops.aten.relu.default`` -> ``relu``; ``Tensor.__mul__`` -> ``mul``;
    ``torch.linalg.solve`` -> ``solve``; ``torch.special.softmax`` -> ``softmax``. An operator of another library keeps
    its namespace: one that is called ``relu`` there need not save what torch's does.
    """
    name = getattr(func, "__name__", None) or str(func)
    stripped: str = name.split(".")[0].strip("_").removeprefix("linalg_").removeprefix("special_") or name
    namespace = _namespace(func)
    return stripped if namespace == "aten" else f"{namespace}::{stripped}"


def _namespace(func: Any) -> str:
    if isinstance(func, torch._ops.OpOverloadPacket):
        return str(func._qualified_op_name.split("::")[0])
    return func.namespace if isinstance(func, torch._ops.OpOverload) else "aten"


def rule_for(name: str, args: tuple[Any, ...]) -> Rule:
    """The rule of the operation called ``name``; an operation that is not in the table is kept exactly."""
    if name == "pow" and len(args) > 1 and isinstance(args[1], (int, float)) and args[1] in (2, 3):
        return LINEAR if args[1] == 2 else _SMOOTH  # the cube is part of GPT-2's GELU
    return _RULES.get(name, EXACT)
