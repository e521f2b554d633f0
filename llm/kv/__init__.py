"""Caches of keys and values in few bits for transformers' models."""

from graphlossy.llm.kv._kivi import KIVICache

__all__ = ["KIVICache"]
