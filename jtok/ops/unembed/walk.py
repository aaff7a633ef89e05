"""Loops over chunks of tokens and blocks of the vocabulary, forward and backward.

The last chunk and the last block are moved back inside their axis. What a moved
block repeats is masked; what a moved chunk repeats is written twice, or masked where
it is summed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from jtok.errors import check
from jtok.ops.sharding import AnyMesh, partition_spec

__all__ = [
    "LOW",
    "Layout",
    "Needs",
    "Sizes",
    "asked",
    "block_logits",
    "block_size",
    "dense",
    "needs_of",
    "product",
    "pull_back",
    "repeat",
    "take",
    "values",
    "walk",
]

PyTree = Any
Axes = tuple[str, ...]
_LOGITS = 2**22  # of a chunk and a block together: 16 MB in float32
_BLOCK = 16384
# A finite stand-in for the maximum of nothing: differences with it are no NaN.
LOW = -1e30


class Sizes(NamedTuple):
    """How much is held at a time: `chunk` tokens, `block` vocabulary entries."""

    chunk: int
    block: int


class Layout(NamedTuple):
    """Where tokens and vocabulary lie: a mesh, and the mesh axes that split them."""

    mesh: AnyMesh | None = None
    tokens: Axes = ()
    vocab: Axes = ()

    @classmethod
    def of(cls, mesh: AnyMesh | None, tokens: int, vocab: int) -> "Layout":
        """The layout on a mesh by the rule table; empty without a mesh."""
        # Inside a shard_map arrays are local already.
        if mesh is None or AxisType.Manual in mesh.axis_types:
            return cls()
        spec = partition_spec(("batch", "vocab"), mesh, shape=(tokens, vocab))
        token_axes, vocab_axes = (_names(entry) for entry in spec)
        return cls(mesh, token_axes, vocab_axes)

    def parts(self, axes: Axes) -> int:
        """In how many parts these mesh axes split an axis."""
        sizes = {} if self.mesh is None else dict(self.mesh.shape)
        return math.prod(sizes[name] for name in axes)

    def sizes(
        self, tokens: int, vocab: int, chunk: int | None, block: int | None
    ) -> Sizes:
        """The caller's sizes, or those that hold about 16 MB of logits a shard."""
        check(chunk is None or chunk >= 1, "chunk", chunk, "None or at least 1")
        check(block is None or block >= 1, "block", block, "None or at least 1")
        tokens //= self.parts(self.tokens)
        block = block_size(vocab // self.parts(self.vocab), block)
        return Sizes(min(chunk or max(64, _LOGITS // block), tokens), block)

    def spec(self, *kinds: str | None) -> PartitionSpec:
        """Spec of an array whose axes are "tokens", "vocab" or None."""
        axes = {"tokens": self.tokens or None, "vocab": self.vocab or None, None: None}
        return PartitionSpec(*(axes[kind] for kind in kinds))

    def model_specs(self, bias: Any) -> tuple[Any, Any, Any]:
        """Specs of hidden states, weight and bias."""
        vector = None if bias is None else self.spec("vocab")
        return self.spec("tokens", None), self.spec("vocab", None), vector

    def gradient_specs(self, asked: Sequence[Any]) -> tuple[Any, ...]:
        """The same for gradients, None where one is not asked for."""
        specs = self.model_specs(())
        return tuple(s if flag is not None else None for s, flag in zip(specs, asked))

    def offset(self, local: int) -> Array | int:
        """First vocabulary id of this shard, which holds `local` of them."""
        return jax.lax.axis_index(self.vocab) * local if self.vocab else 0

    def run(self, local: Callable, in_specs: Any, out_specs: Any, *args: Any) -> Any:
        """Calls `local` on every shard, or plainly where nothing is split."""
        if not self.tokens and not self.vocab:
            return local(*args)
        return self.mapped(local, in_specs, out_specs)(*args)

    def mapped(self, local: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`local` as a function of whole arrays."""
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )


def _names(entry: Any) -> Axes:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def block_size(vocab: int, block: int | None = None) -> int:
    """Vocabulary entries at a time: even parts, so that few are repeated."""
    if block is not None:
        return min(block, vocab)
    parts = -(-vocab // _BLOCK)
    even = -(-vocab // parts)
    return min(vocab, -(-even // 128) * 128) if parts > 1 else vocab


def repeat(total: int, size: int, body: Callable, carry: PyTree) -> PyTree:
    """`carry = body(start, fresh_from, carry)` over the parts of an axis."""
    if total <= size:
        return body(0, 0, carry)

    def step(index: Array, carry: PyTree) -> PyTree:
        return body(jnp.minimum(index * size, total - size), index * size, carry)

    return jax.lax.fori_loop(0, -(-total // size), step, carry)


def take(x: Any, start: Array | int, size: int) -> Any:
    """Rows `start .. start + size - 1` of every array of a tree."""
    return jax.tree.map(
        lambda x: (
            x if x.shape[0] == size else jax.lax.dynamic_slice_in_dim(x, start, size)
        ),
        x,
    )


def put(x: Any, rows: Any, start: Array | int) -> Any:
    """Writes `rows` into every array of a tree from `start` on."""
    write = lambda x, rows: jax.lax.dynamic_update_slice_in_dim(x, rows, start, 0)
    return jax.tree.map(write, x, rows)


def block_logits(
    hidden: Array, weight: Array, bias: Array | None, softcap: float | None,
    start: Array | int, block: int,
) -> Array:  # fmt: skip
    """Float32 logits of some tokens over one block of the vocabulary."""
    logits = jnp.einsum(
        "td,vd->tv",
        hidden,
        take(weight, start, block),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits = logits + take(bias, start, block).astype(jnp.float32)[None]
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def walk(
    tokens: PyTree, vocab: int, sizes: Sizes, init: Callable, step: Callable
) -> PyTree:
    """Reduces over the vocabulary, for all tokens.

    Args:
      tokens: arrays with a leading axis of tokens.
      vocab: entries of the vocabulary, of this shard.
      sizes: parts to hold at a time.
      init: `(count) -> state` of `count` tokens, arrays with a leading axis.
      step: `(state, tokens of a chunk, start, fresh [1, block]) -> state`; entries
        that are not fresh were seen in the block before.

    Returns:
      The state after the last block, for all tokens.
    """
    count = jax.tree.leaves(tokens)[0].shape[0]
    chunk, block = sizes

    def one_chunk(some: PyTree) -> PyTree:
        def body(start: Array | int, fresh_from: Array | int, state: PyTree) -> PyTree:
            fresh = (start + jnp.arange(block) >= fresh_from)[None]
            return step(state, some, start, fresh)

        return repeat(vocab, block, body, init(chunk))

    if count <= chunk:
        return one_chunk(tokens)

    def body(start: Array | int, _: Array | int, out: PyTree) -> PyTree:
        return put(out, one_chunk(take(tokens, start, chunk)), start)

    return repeat(count, chunk, body, init(count))


class Needs(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool


def pull_back(
    hidden: Array, weight: Array, bias: Array | None, tokens: PyTree, sizes: Sizes,
    softcap: float | None, needs: Needs, layout: Layout, slope: Callable,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Gradients with respect to hidden states, weight and bias, of this shard.

    Sums are float32 and cast once. A block of the weight's gradient is summed over
    the token shards before it is cast.

    Args:
      hidden: `[tokens, dim]`.
      weight: `[vocab, dim]`.
      bias: `[vocab]` or None.
      tokens: arrays that `slope` needs of every token.
      sizes: parts to hold at a time.
      softcap: of the logits.
      needs: what to compute; the rest is None.
      layout: where the shards are.
      slope: `(logits [chunk, block], tokens of the chunk, start) -> [chunk, block]`
        derivative with respect to the (capped) logits.
    """
    count, dim = hidden.shape
    vocab = weight.shape[0]
    chunk, block = sizes

    def one_block(start: Any, fresh_from: Any, carry: PyTree) -> PyTree:
        fresh = (start + jnp.arange(block) >= fresh_from)[None]
        rows = take(weight, start, block)

        def one_chunk(at: Any, new_from: Any, inner: PyTree) -> PyTree:
            some = take(hidden, at, chunk)
            logits = block_logits(some, weight, bias, softcap, start, block)
            d_logits = slope(logits, take(tokens, at, chunk), start)
            if softcap is not None:
                d_logits = d_logits * (1 - jnp.square(logits / softcap))
            new = (at + jnp.arange(chunk) >= new_from)[:, None]
            d_logits = jnp.where(fresh & new, d_logits, 0.0)
            out = dict(inner)
            if needs.hidden:
                part = _dot("tv,vd->td", d_logits.astype(rows.dtype), rows)
                old = take(inner["hidden"], at, chunk)
                out["hidden"] = put(inner["hidden"], old + part, at)
            if needs.weight:
                narrow = d_logits.astype(some.dtype)
                out["weight"] = inner["weight"] + _dot("tv,td->vd", narrow, some)
            if needs.bias:
                out["bias"] = inner["bias"] + jnp.sum(d_logits, axis=0)
            return out

        inner = {"hidden": carry["hidden"]} if needs.hidden else {}
        if needs.weight:
            inner["weight"] = jnp.zeros((block, dim), jnp.float32)
        if needs.bias:
            inner["bias"] = jnp.zeros(block, jnp.float32)
        inner = repeat(count, chunk, one_chunk, inner)
        out = {"hidden": inner.pop("hidden")} if needs.hidden else {}
        for name, part in inner.items():
            part = jax.lax.psum(part, layout.tokens) if layout.tokens else part
            # Rows that a moved block repeats get a zero more.
            whole = take(carry[name], start, block) + part.astype(carry[name].dtype)
            out[name] = whole if block == vocab else put(carry[name], whole, start)
        return out

    carry = {"hidden": jnp.zeros((count, dim), jnp.float32)} if needs.hidden else {}
    if needs.weight:
        carry["weight"] = jnp.zeros(weight.shape, weight.dtype)
    if needs.bias and bias is not None:
        carry["bias"] = jnp.zeros(bias.shape, bias.dtype)
    carry = repeat(vocab, block, one_block, carry)
    d_hidden = carry.get("hidden")
    if d_hidden is not None:
        d_hidden = jax.lax.psum(d_hidden, layout.vocab) if layout.vocab else d_hidden
        d_hidden = d_hidden.astype(hidden.dtype)
    return d_hidden, carry.get("weight"), carry.get("bias")


def _dot(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


# ---- what reverse-mode rules share


def product(weights: Array, logits: Array) -> Array:
    """`weights * logits` with 0 where the weight is 0, also at a logit of -inf."""
    return jnp.where(weights > 0, weights * logits, 0.0)


def asked(*primals: Any) -> tuple[Any, ...]:
    """For each argument of a forward rule: () where its gradient is asked for, else
    None. Residuals keep the structure of trees and no Python bools."""
    return tuple(
        () if getattr(primal, "perturbed", False) else None for primal in primals
    )


def needs_of(asked: Sequence[Any]) -> Needs:
    """The flags that `asked` wrote down."""
    return Needs(*(flag is not None for flag in asked))


def values(primals: Any) -> Any:
    """The arrays of a forward rule's arguments (with `symbolic_zeros`)."""
    is_primal = lambda node: hasattr(node, "perturbed")
    return jax.tree.map(lambda primal: primal.value, primals, is_leaf=is_primal)


def dense(cotangent: Any) -> Any:
    """A cotangent as an array where it is a symbolic zero."""
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent
