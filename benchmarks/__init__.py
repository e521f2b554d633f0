"""Benchmarks: one harness, committed results. See README.md in this folder; run all with ``python -m benchmarks``."""
