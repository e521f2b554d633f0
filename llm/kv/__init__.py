"""Caches of keys and values in few bits for transformers' models."""

from graphlossy.llm.kv import _attention  # noqa: F401  registers it
from graphlossy.llm.kv._kivi import KIVICache
from graphlossy.llm.kv._plan import CachePlan, CacheRow, plan_cache

__all__ = ["CachePlan", "CacheRow", "KIVICache", "plan_cache"]
