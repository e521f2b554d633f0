"""Runs the outlier benchmark: a grid of data sets, methods and trials, in worker processes, with limits and resume."""

from __future__ import annotations

from graphlossy.outliers.runner.benchmark import Results, benchmark
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.observer import Observer

__all__ = ["BenchmarkError", "Observer", "Results", "Trial", "benchmark"]
