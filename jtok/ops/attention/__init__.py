"""Attention of new tokens over a cache and over each other."""

from jtok.ops.attention.api import attention, cached_attention, write_rows

__all__ = ["attention", "cached_attention", "write_rows"]
