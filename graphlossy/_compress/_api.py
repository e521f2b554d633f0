"""The one verb: ``compress`` as a context manager around a forward pass, or as a switch on a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, overload

import torch
from torch import Tensor, nn

from graphlossy._compress._bits import GROUP_SIZE, BitPolicy, BudgetPolicy, UniformPolicy
from graphlossy._compress._cross_entropy import LossRouter
from graphlossy._compress._intercept import Interceptor, RowSampler
from graphlossy._compress._modules import ModuleStack, is_compiled
from graphlossy._compress._route import EdgeCache, Router
from graphlossy._compress._session import Session
from graphlossy.core._peak import PeakMeter
from graphlossy.core._schemas import check_group_size
from graphlossy.core.budget import parse_bytes
from graphlossy.core.ledger import Ledger

__all__ = ["Settings", "compress", "load_switch_state", "restore", "switch_on", "switch_state"]

_BITS = (1, 2, 3, 4, 8)


class Settings:
    """What one call of ``compress`` asked for; shared by all its forward passes. Copies start afresh."""

    def __init__(
        self,
        bits: int | None,
        budget: int | str | None,
        route: bool,
        seed: int | None,
        recompute: bool,
        rows: RowSampler | None = None,
        takes_ids: bool = False,
        group_size: int = GROUP_SIZE,
    ) -> None:
        check_group_size(group_size)
        if budget is not None and bits is not None and bits != 2:
            raise ValueError(f"give bits or budget, not both (got bits={bits!r}, budget={budget!r})")
        if bits is not None and (isinstance(bits, bool) or bits not in _BITS):
            raise ValueError(f"bits must be one of {_BITS}, or None to count without compressing; got {bits!r}")
        given_bits = None if budget is not None else bits
        self._given = (given_bits, budget, route, seed, recompute, rows, takes_ids, group_size)
        self.policy: BitPolicy | None
        if budget is not None:
            size = parse_bytes(budget)
            if size <= 0:
                raise ValueError(f"budget must be a positive number of bytes, got {budget!r}")
            self.policy = BudgetPolicy(size, group_size)
        else:
            self.policy = None if bits is None else UniformPolicy(bits, group_size)
        self.router = Router(EdgeCache()) if route and self.policy is not None else None
        self.seed, self.recompute, self.rows, self.takes_ids = seed, recompute, rows, takes_ids
        self.passes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, self._given

    def session(
        self, ledger: Ledger, root: nn.Module | None, is_over: Callable[[], bool], ids: Tensor | None = None
    ) -> tuple[ModuleStack, Session]:
        modules = ModuleStack(root, self.router, is_over)
        seed = _peek_seed() if self.seed is None else self.seed + self.passes
        self.passes += 1
        interceptors: list[Interceptor] = [LossRouter()] if self.recompute else []
        if self.rows is not None:
            interceptors.append(self.rows.begin_pass(ids))
        return modules, Session(self.policy, ledger, modules, seed, is_over, self.recompute, interceptors)


def _peek_seed() -> int:
    """A seed that follows from torch's generator without moving it: dropout draws the same masks as without us."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.randint(2**63 - 1, (), generator=generator))


class _Call:
    """A model's call under way, by its Python frame; None for a ``with`` block, whose end is never missed."""

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame

    def is_over(self) -> bool:
        """Whether the call has ended without running its forward hooks, as torch lets a KeyboardInterrupt do."""
        if self.frame is None:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self.frame:
                return False
            frame = frame.f_back
        return True


class _Pass:
    """One entered forward pass.

    Args:
        settings: of the call of ``compress``.
        ledger: to fill.
        root: the model whose call this is; None for a ``with`` block.
        caller: the Python frame of that call.
        ids: numbers of the samples, where they were given.
    """

    def __init__(self, settings: Settings, ledger: Ledger, root: nn.Module | None, caller: FrameType | None,
                 ids: Tensor | None = None) -> None:  # fmt: skip
        self._settings, self.call = settings, _Call(caller)
        self._modules, self._session = settings.session(ledger, root, self.call.is_over, ids)
        self._compiled = root is not None and is_compiled(root)

    def __enter__(self) -> None:
        if self._compiled:
            self._session.enter_compiled()
        self._session.__enter__()
        if not self._compiled:
            self._modules.__enter__()

    def __exit__(self, *exc: Any) -> None:
        try:
            self._session.__exit__(*exc)
        finally:
            self._modules.__exit__(*exc)
            self.call.frame = None  # it holds the arguments
            if self._settings.seed is None:
                # One draw, so that the next pass rounds differently even if nothing else draws.
                torch.randint(2, ())


class _Context:
    """``with compress(...) as ledger``; can be entered again for the next pass."""

    def __init__(self, settings: Settings, measure_peak: bool) -> None:
        self._settings = settings
        self._measure_peak = measure_peak
        self._entered: list[_Pass | None] = []

    def __enter__(self) -> Ledger:
        ledger = Ledger()
        if self._measure_peak:
            ledger.start_peak(PeakMeter())
        # Without gradients nothing is saved, so there is nothing to do.
        forward = _Pass(self._settings, ledger, None, None) if torch.is_grad_enabled() else None
        if forward is not None:
            forward.__enter__()
        self._entered.append(forward)
        return ledger

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        forward = self._entered.pop()
        if forward is not None:
            forward.__exit__(kind, error, trace)


class _Switch:
    """Forward hooks of one model: every training forward with gradients runs as a compressed pass."""

    def __init__(self, settings: Settings, measure_peak: bool) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self._measure_peak = measure_peak
        self._local = threading.local()

    @property
    def _entered(self) -> list[_Pass | None]:
        """The calls under way in this thread; None for those that are not compressed."""
        entered: list[_Pass | None] = self._local.__dict__.setdefault("entered", [])
        return entered

    def attach(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before, prepend=True)
        model.register_forward_hook(self.after, always_call=True)
        if self.settings.takes_ids:
            model.register_forward_pre_hook(self.take_ids, prepend=True, with_kwargs=True)

    def take_ids(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Takes ``sample_ids`` from the arguments: the model knows no such thing."""
        rows, ids = self.settings.rows, kwargs.pop("sample_ids", None)
        self._local.ids = ids
        if rows is not None and model.training and torch.is_grad_enabled() and not self._entered:
            rows.check_ids(ids)
            first = next(
                (v for v in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if v is not None), ids
            )
            if isinstance(ids, Tensor) and isinstance(first, Tensor) and len(ids) != len(first):
                raise ValueError(f"sample_ids has {len(ids)} numbers for a batch of {len(first)} samples")
        return args, kwargs

    def before(self, model: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.drop_interrupted()
        if not model.training or not torch.is_grad_enabled() or self._entered:
            self._entered.append(None)
            return
        self.ledger.clear()
        if self._measure_peak:
            self.ledger.start_peak(PeakMeter())
        ids = self._local.__dict__.pop("ids", None)
        forward = _Pass(self.settings, self.ledger, model, sys._getframe(1), ids)
        forward.__enter__()
        self._entered.append(forward)

    def after(self, model: nn.Module, args: Any, out: Any) -> None:
        if torch.compiler.is_compiling():
            return
        forward = self._entered.pop() if self._entered else None
        if forward is not None:
            forward.__exit__(None, None, None)

    def drop_interrupted(self) -> None:
        """Ends calls that were interrupted (Ctrl-C), whose forward hooks torch did not run."""
        entered = self._entered
        over = next((i for i, forward in enumerate(entered) if forward is not None and forward.call.is_over()), None)
        if over is not None:
            for forward in reversed(entered[over:]):
                if forward is not None:
                    forward.__exit__(KeyboardInterrupt, None, None)
            del entered[over:]

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or pickled model is switched too, with a ledger and a cache of its own.
        return _Switch, (self.settings, self._measure_peak)


@overload
def compress(*, bits: int | None = 2, budget: int | str | None = None, route: bool = True, seed: int | None = None,
             recompute: bool = False, measure_peak: bool = False,
             group_size: int = GROUP_SIZE) -> _Context: ...  # fmt: skip
@overload
def compress(model: nn.Module, *, bits: int | None = 2, budget: int | str | None = None, route: bool = True,
             seed: int | None = None, recompute: bool = False, measure_peak: bool = False,
             group_size: int = GROUP_SIZE) -> Ledger: ...  # fmt: skip
def compress(
    model: nn.Module | None = None,
    *,
    bits: int | None = 2,
    budget: int | str | None = None,
    route: bool = True,
    seed: int | None = None,
    recompute: bool = False,
    measure_peak: bool = False,
    group_size: int = GROUP_SIZE,
) -> _Context | Ledger:
    """Stores what a forward pass keeps for its backward pass in low-bit form. The forward values do not change.

    Without a model: a context manager to put around any forward pass. With a model: a switch that stays on, for
    training forwards only (evaluation and ``no_grad`` run as without it), until :func:`restore`. Weights, state_dict
    keys, module types and ``repr`` stay as they are.

    Floating-point tensors are rounded stochastically to ``bits`` bits in groups (unbiased); ReLU, LeakyReLU and
    dropout keep exact 1-bit masks; 64-bit indices made on the way keep 32 bits. Parameters, inputs, adjacencies, small
    tensors and whatever a softmax or a loss saves stay exact. After EXACT (Liu et al., ICLR 2022) and GACT (Liu et
    al., ICML 2022), by saved-tensor hooks on torch's own operations.

    Switch a compiled model on after ``torch.compile``, not before: what compiled code saves keeps at least 8 bits,
    because only the compiler knows what it is for.

    Args:
        model: the module to switch on.
        bits: width of the rounded tensors: 1, 2, 3, 4 or 8. None counts the bytes and compresses nothing.
        budget: most bytes to save, as a number or a text such as ``"1.5GiB"``, instead of ``bits``: widths of 1, 2, 4
            or 8 bits are chosen tensor by tensor so that the variance added to the gradient is least.
        route: send PyG's sum and mean convolutions, called with a plain ``edge_index``, to their own sparse product
            (no E x C messages; same numbers up to the order of summation). False leaves every forward value bitwise.
        seed: start of the rounding noise. None follows torch's generator: ``torch.manual_seed`` governs it.
        recompute: store no result of an elementwise operation, a norm or an activation that follows from what is stored
            anyway: it is computed again in the backward pass. With ``bits=None`` nothing is rounded, and the gradients
            are those of the plain model.
        measure_peak: also measure the peak memory of the step; resets the process's peak counter on every pass.
        group_size: elements that share one scale and offset of 2 bytes each, a multiple of 8: smaller groups round
            more finely and cost 32 / ``group_size`` bits an element.

    Returns:
        The context manager (its value is the :class:`~graphlossy.Ledger` of the pass), or the model's ledger, which
        always describes the last training forward.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``bits``, ``budget`` or ``group_size`` is not allowed, or the model was compiled in place; during
            training, when the budget cannot be met.

    Example:
        >>> import graphlossy
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> x = torch.randn(1000, 64)
        >>> with graphlossy.compress(bits=2) as ledger:
        ...     loss = model(x).square().mean()
        >>> loss.backward()
        >>> ledger.plain_bytes > 10 * ledger.saved_bytes
        True
        >>> ledger = graphlossy.compress(model, bits=4)
        >>> model(x).square().mean().backward()
        >>> ledger.plain_bytes > 6 * ledger.saved_bytes
        True
        >>> graphlossy.restore(model) is model
        True
    """
    settings = Settings(bits, budget, route, seed, recompute, group_size=group_size)
    return _Context(settings, measure_peak) if model is None else switch_on(model, settings, measure_peak)


def switch_on(model: nn.Module, settings: Settings, measure_peak: bool) -> Ledger:
    """Switches a model on; an earlier switch is taken off."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress takes a torch.nn.Module, or keyword arguments only; got {type(model).__name__}")
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "model was compiled in place by model.compile(), which compiles the hooks that compress needs too; use "
            "model = torch.compile(model), then graphlossy.compress(model)"
        )
    if _switch_of(model) is not None:
        restore(model)
    switch = _Switch(settings, measure_peak)
    switch.attach(model)
    return switch.ledger


def restore(model: nn.Module) -> nn.Module:
    """Switches compression off again; returns the model. Nothing happens to a model that is not switched on."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore takes a torch.nn.Module; got {type(model).__name__}")
    switch = _switch_of(model)
    if switch is not None:
        switch.drop_interrupted()
    for hooks, options in (
        (model._forward_pre_hooks, [model._forward_pre_hooks_with_kwargs]),
        (model._forward_hooks, [model._forward_hooks_with_kwargs, model._forward_hooks_always_called]),
    ):
        for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Switch)]:
            del hooks[key]
            for option in options:
                option.pop(key, None)
    return model


def switch_state(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint needs besides the model's and torch's own state to go on with the same numbers."""
    switch = _switch_of(model)
    if switch is None:
        return {}
    policy = switch.settings.policy
    state = {"passes": switch.settings.passes, "policy": {} if policy is None else policy.state_dict()}
    return state if switch.settings.rows is None else {**state, "rows": switch.settings.rows.state_dict()}


def load_switch_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Gives :func:`switch_state` back to a model that was switched on with the same arguments."""
    switch = _switch_of(model)
    if switch is not None and state:
        switch.settings.passes = state["passes"]
        if switch.settings.policy is not None:
            switch.settings.policy.load_state_dict(state["policy"])
        if (switch.settings.rows is None) != ("rows" not in state):
            raise ValueError("this state is of a switch with other arguments: rows are sampled in one of the two only")
        if switch.settings.rows is not None:
            switch.settings.rows.load_state_dict(state["rows"])


def _switch_of(model: nn.Module) -> _Switch | None:
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, _Switch):
            return owner
    return None
