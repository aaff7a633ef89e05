"""Draft-tree templates that papers published."""

import functools

from jtok.ops import Tree

__all__ = ["recycling_template"]

# Candidate ranks along every path of the "2.2.2" tree, level by level.
_RECYCLING = """
0 1 2 3 4 5 6 7
00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70
000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200
300 400 500
0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000
00000 00001 00002 00010 00020 00100 01000 10000
000000 000001 000100
"""


@functools.lru_cache(maxsize=1)
def recycling_template() -> Tree:
    """The tree of Token Recycling: 80 drafts and the root, 6 levels, 8 candidates.

    Returns:
      `Tree` of 81 nodes.

    Source: Luo et al. 2024, arXiv 2408.08696, template "2.2.2".

    Example:
      >>> recycling_template().num_nodes
      81
    """
    return Tree.from_paths([tuple(map(int, path)) for path in _RECYCLING.split()])
