"""How caches of keys and values are named; apart from them, since they need transformers and a help text does not."""

from __future__ import annotations

__all__ = ["GRAMMAR", "PLANNED"]

PLANNED = ("8bit", "4bit", "k4v2-r", "2bit")  # what a plan shows if nothing is asked for

GRAMMAR = """\
plain             the model's own cache
8bit 4bit 2bit    keys and values in few bits (also 1bit, 3bit)
k4v2              other bits for keys and for values; after a minus: r rotates values, wN the recent tokens that stay,
                  sN the first tokens that stay, gN the numbers that share a scale, vN those of values: k4v3-r-w16-g64
h2o:0.2:0.1       the share of the prompt that is kept for its scores, and of the most recent tokens (0.1 each if not
                  said; whole numbers are tokens); also tova, snapkv, expected, knorm, streaming; h2o-p drops tokens of
                  the prompt alone
h2o:0.2:0.1+4bit  both
"""
