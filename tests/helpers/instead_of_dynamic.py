"""A plugin for pytest that runs the tests of transformers itself with our cache in the place of theirs.

Those tests are not in the wheel of transformers. With a clone of it, of the version that is installed:

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
    cd transformers
    PYTHONPATH=GRAPHLOSSY/tests/helpers pytest -p instead_of_dynamic tests/models/llama/test_modeling_llama.py \\
        -k "generate or cache or beam or assisted or left_padding or prompt_lookup or past_key"

Wherever ``generate``, or a model that was given no cache, makes a ``DynamicCache``, a ``KIVICache`` is made that packs
after 8 tokens in 8 bits. Models that have nothing to pack keep theirs; how often that was is said at the end.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers.cache_utils import DynamicCache
from transformers.generation import utils

from graphlossy.llm import KIVICache

FAMILIES = ("llama", "qwen2", "mistral", "gemma", "gpt2")
made = {"KIVICache": 0, "DynamicCache": 0}


def ours(*args: Any, **options: Any) -> Any:
    """What is made for ``DynamicCache(...)``."""
    try:
        cache: Any = KIVICache(options["config"], bits=8, group_size=8, residual_length=0, sinks=0)
    except (KeyError, ValueError):
        cache = DynamicCache(*args, **options)
    made[type(cache).__name__] += 1
    return cache


for module in (utils, *(importlib.import_module(f"transformers.models.{n}.modeling_{n}") for n in FAMILIES)):
    module.DynamicCache = ours


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"caches made: {made}")
