"""The operators with torch.library: schemas, fake tensors, tracing, full-graph compilation that keeps the saving."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import default_partition, make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from graphlossy.core import _reference, _schemas

OPS = torch.ops.graphlossy
BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def samples(device: torch.device | str) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every operator: every width, every type, ragged, not contiguous, empty."""
    quantize: list[tuple[Any, ...]] = []
    dequantize: list[tuple[Any, ...]] = []
    shapes = [(5, 70), (3, 8), (1, 1), (0, 9), (4, 0)]
    for i, (bits, dtype) in enumerate((b, d) for b in BITS for d in DTYPES):
        x = torch.randn(shapes[i % 5], device=device).to(dtype)
        quantize += [(x, bits, 24, i % 2 == 0, 2**62 + i)]
        stored = _reference.quantize(x, bits, 24, False, 0)
        dequantize += [(*stored, bits, 24, x.shape[1], DTYPES[i // 2 % 4])]
    quantize.append((torch.randn(16, 6, device=device).t(), 2, 8, True, -1))
    masks = [(torch.randn(7, 5, device=device) > 0,), (torch.randint(-1, 2, (40,), device=device),)]
    masks += [(torch.randn(9, device=device).to(dtype),) for dtype in DTYPES]
    masks += [(torch.empty(0, device=device),), (torch.tensor(3.0, device=device),)]
    packed = [(_reference.pack_mask(mask[0]), mask[0].numel()) for mask in masks]
    packed += [(*packed[0], -0.5, 1 / 0.9, dtype) for dtype in (*DTYPES, torch.bool)]
    grads = [torch.randn(6, 4, device=device).to(dtype) for dtype in DTYPES] + [torch.randn(4, 3, device=device).t()]
    return {
        "quantize": quantize,
        "dequantize": dequantize,
        "pack_mask": masks,
        "unpack_mask": packed,
        "mask_apply": [(g, _reference.pack_mask(g > 0), 1.25) for g in grads],
    }


def test_every_operator_has_a_definition_a_fake_and_samples() -> None:
    # graphlossy.autograd adds operators of its own to the namespace.
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("graphlossy::")}
    assert names >= set(_schemas.OPS) == set(_schemas.FAKES) == set(_reference.__all__) == set(samples("cpu"))


@pytest.mark.parametrize("name", _schemas.OPS)
def test_opcheck(name: str, device) -> None:
    for arguments in samples(device)[name]:
        torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("name", _schemas.OPS)
def test_arguments_are_not_changed(name: str, device) -> None:
    for arguments in samples(device)[name]:
        before = copy.deepcopy(arguments)
        getattr(OPS, name)(*arguments)
        for a, b in zip(arguments, before, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _without_numbers(x: torch.Tensor, place: str) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=place)


@pytest.mark.parametrize("place", ["cuda", "meta"])
@pytest.mark.parametrize("name", _schemas.OPS)
def test_shapes_types_and_devices_without_numbers(name: str, place: str) -> None:
    """As torch.compile sees a model on a GPU, on a machine that has none."""
    for arguments in samples("cpu")[name]:
        real = getattr(OPS, name)(*arguments)
        with FakeTensorMode():
            moved = [_without_numbers(a, place) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = getattr(OPS, name)(*moved)
        for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (real, fake)), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()) and b.device.type == place


def test_symbolic_shapes_are_traced_once() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        packed, scale, offset = OPS.quantize(x, 2, 64, True, 3)
        return OPS.dequantize(packed, scale, offset, 2, 64, x.shape[1], torch.float32) + OPS.unpack_mask(
            OPS.pack_mask(x), x.numel()
        ).view(x.shape)

    graph = make_fx(run, tracing_mode="symbolic")(torch.randn(6, 100))
    for shape in ((6, 100), (9, 257), (3, 33)):
        x = torch.randn(shape)
        assert torch.equal(graph(x), run(x))


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return OPS.mask_apply(x, OPS.pack_mask(x), 0.5).sum() + OPS.quantize(x, 4, 8, True, 7)[0].sum()

    x = torch.randn(8, 40)
    exported = torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2, max=4096)}})
    for rows in (8, 21):
        x = torch.randn(rows, 40)
        assert torch.equal(exported.module()(x), Model()(x))


class LowBitGelu(torch.autograd.Function):
    """What a user would write: GELU of what exceeds -1, which keeps its input at 2 bits and the choice at 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seed: int) -> torch.Tensor:
        ctx.save_for_backward(*OPS.quantize(x, 2, 256, True, seed), OPS.pack_mask(x > -1))
        ctx.width = x.shape[1]
        return torch.nn.functional.gelu(x) * (x > -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        packed, scale, offset, mask = ctx.saved_tensors
        x = OPS.dequantize(packed, scale, offset, 2, 256, ctx.width, torch.float32)
        derivative = torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return OPS.mask_apply(grad * derivative, mask, 1.0), None


def low_bit(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return LowBitGelu.apply(x @ w, 7).mean(1)


def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    h = x @ w
    return (torch.nn.functional.gelu(h) * (h > -1)).mean(1)


def kept_bytes(out: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> int:
    """Bytes that a compiled forward keeps for its backward beyond its inputs."""
    lives = {t.untyped_storage().data_ptr() for t in (*inputs, out)}
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in out.grad_fn.saved_tensors}
    return sum(size for at, size in kept.items() if at not in lives)


def backend(partition: Callable[..., Any]) -> Callable[..., Any]:
    def compiler(graph: torch.fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition)


BACKENDS = {
    "every intermediate": lambda: backend(default_partition),
    "least cut": lambda: backend(min_cut_rematerialization_partition),
    "inductor": lambda: "inductor",
}


# torch deprecates what its own compiler does: it makes an instance of every autograd function that it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*list(BACKENDS)[:2], pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_function_keeps_the_saving_and_the_values(name: str) -> None:
    rows, width = 256, 512
    x, w = torch.randn(rows, width), torch.randn(width, width).div_(width**0.5).requires_grad_()
    eager = low_bit(x, w)
    eager.sum().backward()
    expected, w.grad = w.grad, None
    torch._dynamo.reset()
    out = torch.compile(low_bit, backend=BACKENDS[name](), fullgraph=True)(x, w)
    kept = kept_bytes(out, (x, w))
    out.sum().backward()
    torch.testing.assert_close(out, eager)
    torch.testing.assert_close(w.grad, expected)
    torch._dynamo.reset()
    plainly = kept_bytes(torch.compile(plain, backend=BACKENDS[name](), fullgraph=True)(x, w), (x, w))
    assert kept == rows * (width * (2 + 1) // 8 + 4 * width // 256)  # codes, mask, scales and offsets: no more
    assert plainly >= 4 * rows * width and plainly > 10 * kept


@pytest.mark.parametrize(
    ("name", "change", "error", "text"),
    [
        ("quantize", {0: torch.ones(8)}, ValueError, r"x must have 2 dimensions \[rows, width\], got shape \(8,\)"),
        ("quantize", {0: torch.ones(2, 8, dtype=torch.int8)}, TypeError, "x must be one of float32.* got int8"),
        ("quantize", {1: 7}, ValueError, "bits must be one of .*got 7"),
        ("quantize", {2: 20}, ValueError, "group_size must be a multiple of 8 .*got 20"),
        ("dequantize", {3: 4}, ValueError, r"a width of 70 at 4 bits in groups of 24 needs packed \[rows, 36\]"),
        ("dequantize", {5: 73}, ValueError, "a width of 73"),
        ("dequantize", {5: -3}, ValueError, "a width of -3"),
        ("dequantize", {6: torch.int32}, TypeError, "dtype must be one of float32.* got int32"),
        ("unpack_mask", {1: 99}, ValueError, r"a mask of 99 elements needs 13 packed bytes, got shape \(5,\)"),
        ("unpack_mask", {1: -1}, ValueError, "a mask of -1 elements"),
        ("mask_apply", {1: torch.zeros(2, dtype=torch.uint8)}, ValueError, "a mask of 24 elements needs 3"),
        ("mask_apply", {0: torch.ones(24, dtype=torch.int32)}, TypeError, "grad must be one of float32"),
    ],
)
def test_errors_of_the_operators(name: str, change: dict[int, Any], error: type[Exception], text: str) -> None:
    arguments = list(samples("cpu")[name][0])
    for place, value in change.items():
        arguments[place] = value
    for op in (getattr(OPS, name), getattr(_reference, name)):
        with pytest.raises(error, match=text):
            op(*arguments)
