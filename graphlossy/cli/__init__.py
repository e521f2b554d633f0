"""The command line, ``graphlossy``: one file per command, loaded when it is called.

To add a command, write ``graphlossy/cli/<name>.py`` with a click command called ``command`` and add its line to
``COMMANDS``.
"""

from __future__ import annotations

from graphlossy.cli._group import LazyGroup

__all__ = ["COMMANDS", "main"]

# Name of the command (and of its file, "-" written "_"): what `graphlossy --help` says of it.
COMMANDS = {
    "plan": "Predict the memory of training, scheme by scheme, and say what fits.",
    "train": "Train a graph network, float32 and compressed side by side, and report what it saved.",
    "sparsify": "Thin a graph by degree or by a baseline, and say what that did to it.",
    "recsys": "Compare smaller embedding tables of a recommender at equal bytes, and report what they cost.",
    "llm": "Fine-tune language models on sampled and low-bit saved activations, and compare runs.",
    "outliers": "Benchmark detectors of outlying nodes, and score a graph of yours.",
    "datasets": "List, describe, get and verify the graphs and models that can be trained.",
}

main = LazyGroup(COMMANDS)
