"""Caches of keys and values in few bits, and of the tokens that matter, for transformers' models."""

from graphlossy.llm._versions import check_transformers

check_transformers()  # before anything is taken from it that an older one may not have

# ruff: noqa: E402
from graphlossy.llm.kv import _attention  # noqa: F401  registers it
from graphlossy.llm.kv._eviction import EvictionCache, H2OCache
from graphlossy.llm.kv._kivi import KIVICache
from graphlossy.llm.kv._plan import CachePlan, CacheRow, plan_cache

__all__ = ["CachePlan", "CacheRow", "EvictionCache", "H2OCache", "KIVICache", "plan_cache"]
