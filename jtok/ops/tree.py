"""Draft trees: the static template on the host, and its masks on the device.

A tree has `nodes` nodes in level order. Node 0 is the root (the newest emitted
token), every other node is a drafted token, and a node's parent comes before it.

Source: Cai et al. 2024, arXiv 2401.10774, section 2.3 (tree attention); Miao et al.
2023, arXiv 2305.09781 (token trees).
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jtok.errors import TreeError

__all__ = ["Tree", "ancestor_mask", "ancestor_path"]


@dataclass(frozen=True)
class Tree:
    """A static draft tree: hashable, validated, in level order.

    Attributes:
      parent: `parent[i]` is the node above node i, `parent[0] == -1`.
      rank: which candidate of its parent a node is (0-based), `rank[0] == -1`.

    Raises:
      TreeError: a parent that does not come before its child, siblings of equal
        rank, a negative rank, or nodes that are not in level order.

    Example:
      >>> tree = Tree.from_paths([[0], [1], [0, 0]])
      >>> tree.parent, tree.depth.tolist()
      ((-1, 0, 0, 1), [0, 1, 1, 2])
    """

    parent: tuple[int, ...]
    rank: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parent) != len(self.rank) or not self.parent:
            raise TreeError(
                f"parent, rank: got {len(self.parent)} and {len(self.rank)} nodes, "
                "expected the same number, at least the root."
            )
        if self.parent[0] != -1 or self.rank[0] != -1:
            raise TreeError(
                f"parent: node 0 is the root; got parent {self.parent[0]} and rank "
                f"{self.rank[0]} there, expected -1 and -1."
            )
        seen: dict[tuple[int, int], int] = {}
        depths = [0]
        for node in range(1, len(self.parent)):
            parent, rank = self.parent[node], self.rank[node]
            if not 0 <= parent < node:
                raise TreeError(
                    f"parent: node {node} has parent {parent}, expected an earlier "
                    f"node (0..{node - 1})."
                )
            if rank < 0:
                raise TreeError(f"rank: node {node} has rank {rank}, expected >= 0.")
            if (parent, rank) in seen:
                raise TreeError(
                    f"rank: nodes {seen[parent, rank]} and {node} are both candidate "
                    f"{rank} of node {parent}; expected no duplicates."
                )
            seen[parent, rank] = node
            depths.append(depths[parent] + 1)
            if depths[node] < depths[node - 1]:
                raise TreeError(
                    f"parent: node {node} (depth {depths[node]}) comes after a node of "
                    f"depth {depths[node - 1]}; expected level order."
                )

    @classmethod
    def from_paths(
        cls,
        paths: Iterable[Sequence[int]],
        *,
        num_candidates: int | None = None,
        sort: bool = False,
    ) -> "Tree":
        """Builds the tree whose node i + 1 is the i-th path of candidate ranks.

        Args:
          paths: `(0, 2)` means "candidate 2 of candidate 0 of the root". Every
            prefix of a path must be a path too, and come earlier.
          num_candidates: ranks must lie below it; None for no bound.
          sort: order the paths by (length, lexicographic) first, as Medusa does.

        Returns:
          The validated `Tree`.

        Raises:
          TreeError: an empty, duplicate or orphan path, a rank out of range, or
            paths that are not in level order.
        """
        listed = [tuple(int(rank) for rank in path) for path in paths]
        if sort:
            listed.sort(key=lambda path: (len(path), path))
        node_of: dict[tuple[int, ...], int] = {(): 0}
        parent, rank = [-1], [-1]
        for path in listed:
            if not path:
                raise TreeError("paths: got an empty path; the root is implied.")
            if path in node_of:
                raise TreeError(f"paths: {list(path)} is there twice (a duplicate).")
            bad = [r for r in path if r < 0 or (num_candidates or r + 1) <= r]
            if bad:
                bound = "" if num_candidates is None else f" and < {num_candidates}"
                raise TreeError(
                    f"paths: {list(path)} has rank {bad[0]}, expected >= 0{bound}."
                )
            if path[:-1] not in node_of:
                raise TreeError(
                    f"paths: {list(path)} is an orphan: its parent {list(path[:-1])} "
                    "must come before it."
                )
            node_of[path] = len(parent)
            parent.append(node_of[path[:-1]])
            rank.append(path[-1])
        return cls(tuple(parent), tuple(rank))

    @classmethod
    def chain(cls, depth: int) -> "Tree":
        """The tree with one child per node, `depth` drafts deep (0 = the root only)."""
        return cls.from_paths([(0,) * d for d in range(1, depth + 1)])

    @classmethod
    def star(cls, width: int) -> "Tree":
        """The tree with `width` candidates of the root and nothing below them."""
        return cls.from_paths([(rank,) for rank in range(width)])

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parent)

    @property
    def num_candidates(self) -> int:
        """Candidates per node that the ranks refer to (0 for the root alone)."""
        return max(self.rank) + 1

    @functools.cached_property
    def depth(self) -> np.ndarray:
        """`[nodes]` int32 depth of every node; the root has 0."""
        depth = np.zeros(self.num_nodes, np.int32)
        for node in range(1, self.num_nodes):
            depth[node] = depth[self.parent[node]] + 1
        return depth

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node: most drafts that one call can accept."""
        return int(self.depth[-1])

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """`[nodes, nodes]` bool: `[i, j]` where j is i or one of its ancestors."""
        mask = np.eye(self.num_nodes, dtype=bool)
        for node in range(1, self.num_nodes):
            mask[node] |= mask[self.parent[node]]
        return mask

    @functools.cached_property
    def level_start(self) -> np.ndarray:
        """`[max_depth + 2]` int32: first node of every level, then `num_nodes`."""
        levels = np.arange(self.max_depth + 2)
        return np.searchsorted(self.depth, levels).astype(np.int32)

    @functools.cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The candidate ranks that lead to nodes 1, 2, ... (`from_paths`' input)."""
        paths: list[tuple[int, ...]] = [()]
        for node in range(1, self.num_nodes):
            paths.append((*paths[self.parent[node]], self.rank[node]))
        return tuple(paths[1:])

    @functools.cached_property
    def leaf_paths(self) -> np.ndarray:
        """`[leaves, max_depth + 1]` int32 node ids from the root to every leaf, -1 pad.

        Leaves come in level order.
        """
        inner = set(self.parent)
        leaves = [node for node in range(self.num_nodes) if node not in inner]
        table = np.full((len(leaves), self.max_depth + 1), -1, np.int32)
        for row, leaf in enumerate(leaves):
            table[row, : self.depth[leaf] + 1] = np.flatnonzero(self.ancestors[leaf])
        return table

    @functools.cached_property
    def children(self) -> np.ndarray:
        """`[nodes, most children]` int32 node ids in order of rank, -1 pad."""
        lists: list[list[int]] = [[] for _ in self.parent]
        for node in sorted(range(1, self.num_nodes), key=lambda n: self.rank[n]):
            lists[self.parent[node]].append(node)
        table = np.full((self.num_nodes, max(map(len, lists))), -1, np.int32)
        for node, below in enumerate(lists):
            table[node, : len(below)] = below
        return table


def ancestor_mask(
    parent: Int[Array, "batch nodes"], *, max_depth: int
) -> Bool[Array, "batch nodes nodes"]:
    """Which nodes each node of a dynamic tree may see: itself and its ancestors.

    Args:
      parent: `[batch, nodes]` int32; -1 marks a root, parents precede children.
      max_depth: bound on the depth (static); deeper ancestors are not found.

    Returns:
      `[batch, nodes, nodes]` bool, row = query.

    Example:
      >>> ancestor_mask(jnp.array([[-1, 0, 1]]), max_depth=2)[0].astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    nodes = parent.shape[1]
    itself = jnp.broadcast_to(jnp.eye(nodes, dtype=bool), (*parent.shape, nodes))
    above = jnp.maximum(parent, 0)[..., None]
    has_parent = (parent >= 0)[..., None]

    def grow(_: int | jax.Array, mask: jax.Array) -> jax.Array:
        inherited = jnp.take_along_axis(mask, above, axis=1)
        return itself | (has_parent & inherited)

    return jax.lax.fori_loop(0, max_depth, grow, itself)


def ancestor_path(
    ancestors: Bool[Array, "batch nodes nodes"],
    depth: Int[Array, "batch nodes"],
    node: Int[Array, " batch"],
    *,
    max_depth: int,
) -> Int[Array, "batch path"]:
    """Node ids from the root down to `node`.

    Args:
      ancestors: `[batch, nodes, nodes]` bool, as `ancestor_mask` makes it.
      depth: `[batch, nodes]` int32.
      node: `[batch]` int32, where the path ends.
      max_depth: the path has `max_depth + 1` entries (static).

    Returns:
      `[batch, max_depth + 1]` int32, -1 below `node`.

    Example:
      >>> mask = ancestor_mask(jnp.array([[-1, 0, 0]]), max_depth=1)
      >>> end = jnp.array([2])
      >>> ancestor_path(mask, jnp.array([[0, 1, 1]]), end, max_depth=1).tolist()
      [[0, 2]]
    """
    above = jnp.take_along_axis(ancestors, node[:, None, None], axis=1)
    at_level = depth[:, None, :] == jnp.arange(max_depth + 1)[None, :, None]
    on_path = above & at_level
    found = jnp.argmax(on_path, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(on_path, axis=-1), found, -1)
