"""Runs the probes that a forecast needs, each once, and checks the first forecast against one more probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from graphlossy._compress._bits import WIDTHS
from graphlossy._plan._batch import BatchInputs
from graphlossy._plan._budget import BudgetForecast
from graphlossy._plan._fit import Forecast, fit
from graphlossy._plan._measure import Trace, step_trace
from graphlossy._plan._probe import Forward, GraphInputs
from graphlossy._plan._schemes import FLOAT32, Scheme
from graphlossy._plan._sizes import Design

__all__ = ["Predictor"]

TOLERANCE = 0.05  # what a forecast may be off on the checking probe


class Predictor:
    """Forecasts for one model.

    Args:
        model: left as it is.
        inputs: makes inputs of any size.
        forward: (model, probe) -> loss; None for the inputs' own.
        route: as in ``graphlossy.compress``.
        seed: of the model's own randomness.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, inputs: GraphInputs | BatchInputs, forward: Forward | None, route: bool,
                 seed: int, device: torch.device) -> None:  # fmt: skip
        self._model, self._inputs, self._forward = model, inputs, forward or inputs.loss
        self._route, self._seed, self._device = route, seed, device
        self._traces: dict[tuple[Any, ...], Trace] = {}
        self._checked: set[tuple[Any, ...]] = set()

    def forecast(self, scheme: Scheme, sizes: Mapping[str, int]) -> Forecast | BudgetForecast:
        """Bytes of ``scheme`` as functions of the sizes, good for ``sizes`` and their like.

        Raises:
            ValueError: the model fails on a probe, or its memory is not affine in the sizes.
        """
        design = self._inputs.design(sizes, self._pilot_bytes)
        traces = [self._trace(scheme, probe) for probe in design.probes]
        if scheme.budget is not None:
            uniform = {bits: self._fit(replace(scheme, bits=bits, budget=None), design) for bits in WIDTHS}
            return BudgetForecast(scheme.budget, uniform, traces, design.probes, design.varied)
        return self._fit(scheme, design)

    def _fit(self, scheme: Scheme, design: Design) -> Forecast:
        found = fit([self._trace(scheme, probe) for probe in design.probes], design.probes, design.varied)
        if design.check is not None and scheme == FLOAT32:
            self._check(found, design.check)
        return found

    @cached_property
    def _pilot_bytes(self) -> int:
        return self._trace(FLOAT32, self._inputs.pilot()).peak_bytes

    def _trace(self, scheme: Scheme, sizes: Mapping[str, int]) -> Trace:
        # Under a budget the probes keep 8 bits, whatever the budget.
        scheme = scheme if scheme.budget is None else replace(scheme, budget=1)
        key = (scheme, *sorted(sizes.items()))
        if key not in self._traces:
            probe = self._inputs.make(sizes)
            try:
                self._traces[key] = step_trace(
                    self._model, probe, self._forward, scheme, self._route, self._seed, self._device
                )
            except Exception as error:
                if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                    raise
                said = " ".join(str(error).split())
                raise ValueError(
                    f"the model failed on a probe of {_text(sizes)} ({scheme.name}): {type(error).__name__}: {said}; "
                    "if it needs other arguments or another loss, give forward=, called with (model, probe)"
                ) from error
        return self._traces[key]

    def _check(self, forecast: Forecast, sizes: Mapping[str, int]) -> None:
        key = tuple(sorted(sizes.items()))
        if key in self._checked:
            return
        trace = self._trace(FLOAT32, sizes)
        for what, got, said in (
            ("saves", trace.saved_bytes, forecast.saved_bytes(sizes)),
            ("needs at its peak", trace.peak_bytes, forecast.peak_bytes(sizes)),
        ):
            if abs(got - said) > TOLERANCE * max(got, 1):
                raise ValueError(
                    f"plan cannot extrapolate this model: on a probe of {_text(sizes)} it {what} {got} bytes, where "
                    f"growth in proportion to {', '.join(forecast.varied)} gives {said}; attention between all nodes "
                    "and dense adjacency matrices are such cases. Measure it with graphlossy.compress instead"
                )
        self._checked.add(key)


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in sizes.items())
