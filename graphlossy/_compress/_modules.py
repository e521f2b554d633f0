"""Which module's forward is running, by torch's global module hooks; convolutions are prepared on the way in."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from graphlossy._compress._route import Router

__all__ = ["ModuleStack", "is_compiled"]


class ModuleStack:
    """Follows module calls while it is entered.

    Args:
        root: the model whose names are used; None takes the first module that is called.
        router: sends PyG's convolutions to their sparse product; None leaves them alone.
        is_over: whether the pass has ended without anybody saying so; nothing is done from then on.
    """

    def __init__(
        self, root: nn.Module | None = None, router: Router | None = None, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._root, self._names = root, _names_of(root) if root is not None else None
        self._router, self._is_over = router, is_over
        self._stack: list[tuple[nn.Module, str, Any]] = []
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        # Set by the session.
        self.hooks_in_force: Callable[[], bool] = lambda: True
        self.pause: Callable[[], None] = lambda: None
        self.resume: Callable[[], None] = lambda: None

    def __enter__(self) -> ModuleStack:
        self._thread = threading.get_ident()
        self._set_hooks()
        if self._root is not None:  # its own call is under way already
            self._push(self._root, ())
        return self

    def _set_hooks(self) -> None:
        self._handles = [
            register_module_forward_pre_hook(self._push),
            register_module_forward_hook(self._pop, always_call=True),
        ]

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __exit__(self, *exc: Any) -> None:
        self._remove_hooks()
        while self._stack:
            self._leave()

    @property
    def name(self) -> str:
        """Dotted name of the module whose forward is running; "" for the outermost."""
        return self._stack[-1][1] if self._stack else ""

    def replace(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a torch call that is carried out in another way here, or None."""
        # Inside a checkpointed region the recomputation, which is not seen here, must save the same tensors.
        if self._router is None or not self.hooks_in_force():
            return None
        return self._router.replace(self._stack[-1][0] if self._stack else None, name, args, kwargs)

    def _push(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread or self._is_over():
            return
        if is_compiled(module):
            self._step_aside(module)
            return
        if self._names is None:
            self._names = _names_of(module)
        name = self._names.get(id(module))
        if name is None:
            outer = self._stack[-1][1] if self._stack else ""
            name = f"{outer}.{type(module).__name__}" if outer else type(module).__name__
        undo = self._router.enter(module, self.hooks_in_force) if self._router is not None else None
        self._stack.append((module, name, undo))

    def _pop(self, module: nn.Module, args: Any, out: Any) -> None:
        if threading.get_ident() == self._thread and self._stack and self._stack[-1][0] is module:
            self._leave()
            if self._router is not None:
                self._router.finished(module, out)

    def _step_aside(self, module: nn.Module) -> None:
        """Global hooks and modes would be compiled into the model: they are taken down until it has run."""
        self._remove_hooks()
        self.pause()

        def resume(*_: Any) -> None:
            handle.remove()
            self.resume()
            self._set_hooks()

        handle = module.register_forward_hook(resume, always_call=True)

    def _leave(self) -> None:
        undo = self._stack.pop()[2]
        if undo is not None:
            undo()


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(model)`` returns."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    return eval_frame is not None and isinstance(module, eval_frame.OptimizedModule)


def _names_of(root: nn.Module) -> dict[int, str]:
    return {id(module): name for name, module in root.named_modules()}
