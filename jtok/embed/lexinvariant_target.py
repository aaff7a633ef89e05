"""A lexinvariant model as what decoding runs: one table a row, kept with its cache.

Source: Huang et al. 2023, arXiv 2305.16349. Differs: the paper does not decode.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.embed.dense_tables import dense_tables, embed_by_tables
from jtok.embed.lexinvariant import lexinvariant_inputs, read_logits, scaled_states
from jtok.embed.random_tables import LexinvariantModel, example_keys, lexinvariant_table
from jtok.models import Info, StepInput, StepOutput, Target, model_target

__all__ = ["lexinvariant_target"]

PyTree = Any


@struct.dataclass
class _Cache:
    """The decoder's cache, the rows' keys, the last token, and the nodes of a call."""

    inner: PyTree
    keys: Array
    last: Array  # [batch] int32, -1 before the first
    pending: Array | None = None


def lexinvariant_target(model: LexinvariantModel, key: jax.Array) -> Target:
    """Makes the `Target` of `jtok.decode.generate` of a lexinvariant model.

    Row i of a batch has the table of example i under `key`. Logits of a step's nodes
    are written whole: for vocabularies of characters. What is `rewind`ed forgets
    nothing of the table.

    Args:
      model: a lexinvariant model; only its configuration is kept, `params` are given
        to the target's functions as `model.params`.
      key: typed key of the tables.

    Returns:
      `Target`; without `rewind` where there is a map of the previous token.

    Raises:
      ArgumentError: the decoder is not causal.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> from jtok.embed import lexinvariant_from
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> lexinvariant_target(model, jax.random.key(1)).info.vocab_size
      96
    """
    shell = dataclasses.replace(model, params=None)
    body = model_target(model.config.model)

    def init_cache(params: PyTree, batch: int, capacity: int) -> _Cache:
        inner = body.init_cache(params["body"], batch, capacity)
        keys = example_keys(key, jnp.arange(batch))
        return _Cache(inner, keys, jnp.full(batch, -1, jnp.int32))

    def step(
        params: PyTree, cache: _Cache, nodes: StepInput
    ) -> tuple[StepOutput, _Cache]:
        learner = dataclasses.replace(shell, params=params)
        table = dense_tables(lexinvariant_table(learner, cache.keys))
        ids = jnp.asarray(nodes.ids)
        rows = embed_by_tables(table, ids)
        before = _before(cache.last, nodes, ids)
        previous = embed_by_tables(table, before)
        previous = jnp.where((before >= 0)[..., None], previous, 0)
        vectors = lexinvariant_inputs(learner, rows, previous)
        inner_nodes = dataclasses.replace(nodes, ids=None, vectors=vectors)
        out, inner = body.step(params["body"], cache.inner, inner_nodes)
        logits = read_logits(learner, scaled_states(learner, out.hidden), table)
        return StepOutput(logits), dataclasses.replace(cache, inner=inner, pending=ids)

    def commit(cache: _Cache, path: Array, count: Array) -> _Cache:
        inner = body.commit(cache.inner, path, count)
        at = jnp.take_along_axis(path, jnp.maximum(count - 1, 0)[:, None], axis=1)
        newest = jnp.take_along_axis(jnp.asarray(cache.pending), at, axis=1)[:, 0]
        last = jnp.where(count > 0, newest, cache.last)
        return dataclasses.replace(cache, inner=inner, last=last, pending=None)

    def rewind(cache: _Cache, length: Array) -> _Cache:
        return dataclasses.replace(cache, inner=body.rewind(cache.inner, length))  # type: ignore

    info = Info(body.info.vocab_size, body.info.max_len, body.info.trees)
    can_rewind = body.rewind is not None and not model.config.previous_token
    return Target(init_cache, step, commit, info, rewind=rewind if can_rewind else None)


def _before(last: Array, nodes: StepInput, ids: Array) -> Array:
    """The token before each node: its parent, or the last that was committed."""
    positions = nodes.positions
    one_less = positions[:, None, :] == positions[:, :, None] - 1
    parents = one_less & nodes.allow & nodes.valid[:, None, :]
    parent = jnp.argmax(parents, axis=-1)
    found = jnp.take_along_axis(ids, parent, axis=1)
    return jnp.where(jnp.any(parents, axis=-1), found, last[:, None])
