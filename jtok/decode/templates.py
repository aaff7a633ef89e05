"""Draft-tree templates that papers published."""

import functools

from jtok.errors import check
from jtok.ops import Tree

__all__ = ["chimera_template", "recycling_template"]

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


# The tree of Chimera and EAGLE-1, level by level.
_CHIMERA = """
0 1 2 3
00 01 02 10 11 20 21 30
000 001 002 010 011 020 021 100
0000 0001 0002
00000 00001
"""


@functools.lru_cache(maxsize=8)
def chimera_template(steps: int = 5) -> Tree:
    """The tree of Chimera: 25 drafts and the root, 5 levels, cut to what heads reach.

    Args:
      steps: levels to keep, 1 or more; 4 keep 23 drafts.

    Returns:
      `Tree`.

    Raises:
      ArgumentError: no level.

    Source: Zeng et al. 2024, arXiv 2402.15758, released code.

    Example:
      >>> chimera_template().num_nodes, chimera_template(4).num_nodes
      (26, 24)
    """
    check(steps >= 1, "steps", steps, "at least 1")
    paths = [tuple(map(int, path)) for path in _CHIMERA.split()]
    return Tree.from_paths([path for path in paths if len(path) <= steps])
