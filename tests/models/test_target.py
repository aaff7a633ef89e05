"""A decoder as a Target: what a step may move, and what a step may not copy."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.models import Info, StepInput, Target, model_target
from jtok.ops import Tree, Want
from jtok.testing import assert_close, tiny_config, tiny_model

TREE = Tree.from_paths([[0], [1], [0, 0]])


def nodes_of(ids, start, *, vectors=None):
    """The nodes of `TREE` for every row, from absolute position `start` on."""
    batch, count = ids.shape
    return StepInput(
        ids=None if vectors is not None else ids,
        positions=start[:, None] + jnp.asarray(TREE.depth)[None],
        allow=jnp.broadcast_to(jnp.asarray(TREE.ancestors)[None], (batch, 4, 4)),
        valid=jnp.ones((batch, count), bool),
        vectors=vectors,
    )


IDS = jnp.array([[5, 6, 7, 8], [40, 41, 42, 43]])


def test_equal_configs_give_the_same_functions():
    assert model_target(tiny_config()) is model_target(tiny_config())
    assert tiny_model().target() is model_target(tiny_config())
    assert model_target(tiny_config(), (("resid_mid", 0),)) is not model_target(
        tiny_config()
    )


@pytest.mark.parametrize("family, max_len", [("llama", None), ("gpt2", 512)])
def test_info(family, max_len):
    target = model_target(tiny_config(vocab_size=50, family=family))
    assert target.info == Info(vocab_size=50, max_len=max_len, trees=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steps_wait_until_they_are_committed(family):
    model = tiny_model(family=family)
    target = model_target(model.config, (("resid_post", 1), ("attn_out", 0)))
    cache = target.init_cache(model.params, 2, 12)
    step = jax.jit(target.step)
    first, pending = step(model.params, cache, nodes_of(IDS, cache.length))
    assert pending.length.tolist() == [0, 0]
    jax.tree.map(np.testing.assert_array_equal, pending.layers, cache.layers)
    # Another step before the commit sees nothing of the one before.
    second, _ = step(model.params, pending, nodes_of(IDS, cache.length))
    np.testing.assert_array_equal(second.hidden, first.hidden)

    kept = target.commit(pending, jnp.array([[0, 1, 3], [0, 2, -1]]), jnp.array([3, 2]))
    assert kept.length.tolist() == [3, 2] and kept.pending is None
    third, _ = step(model.params, kept, nodes_of(IDS + 1, kept.length))
    # The kept nodes, then the new root; the last id of row 1 is padding.
    texts = jnp.array([[5, 6, 8, 6], [40, 42, 41, 0]])
    read = tuple(third.taps)
    plain = jax.jit(lambda model, ids: model(ids, taps=read))(model, texts)
    for row, last in ((0, 3), (1, 2)):
        assert_close(third.hidden[row, 0], plain.hidden[row, last])
        for key, tap in third.taps.items():
            wanted = plain.taps[key][row, last]
            assert_close(tap[row, 0], wanted, atol=1e-4, rtol=1e-5)


def test_vectors_stand_for_ids():
    model = tiny_model(family="gpt2")
    target = model.target()
    cache = target.init_cache(model.params, 2, 8)
    step = jax.jit(target.step)
    by_ids, _ = step(model.params, cache, nodes_of(IDS, cache.length))
    vectors = model.params["embed"]["tokens"][IDS]
    given = nodes_of(IDS, cache.length, vectors=vectors)
    by_vectors, _ = step(model.params, cache, given)
    assert_close(by_ids.hidden, by_vectors.hidden)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_readout_is_the_model_s_own(family):
    model = tiny_model(family=family)
    out = model(IDS)
    read = model.target().readout(model.params, out.hidden, Want(rows=True, top_k=2))
    assert_close(read.rows, out.logits)
    np.testing.assert_array_equal(read.choice, jnp.argmax(out.logits, -1))


def test_without_a_readout_hidden_states_are_logits():
    def missing(*_):
        raise AssertionError("not called")

    target = Target(missing, missing, missing, Info(3))
    read = target.readout({}, jnp.array([[[0.0, 4.0, 4.0]]]), Want(top_k=2))
    assert read.choice.tolist() == [[1]] and read.top_ids.tolist() == [[[1, 2]]]


# ---- what a decode loop costs


@functools.lru_cache
def compiled_loop(capacity, batch):
    """A loop of steps and commits on device, with a constant path of one node.

    Nothing but the step orders such a commit after the reads of the cache, so this is
    where XLA would copy it. Every weight has a shape of its own.
    """
    config = dataclasses.replace(
        tiny_config(vocab_size=104), num_layers=2, mlp_width=72, width=40
    )
    target = model_target(config)
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)).params)
    cache = jax.eval_shape(lambda: target.init_cache(params, batch, capacity))

    def decode(params, cache, token, steps):
        one = jnp.ones((batch, 1, 1), bool)

        def body(state):
            step, token, cache = state
            nodes = StepInput(token, cache.length[:, None], one, one[..., 0])
            out, cache = target.step(params, cache, nodes)
            token = target.readout(params, out.hidden, Want()).choice
            path = jnp.zeros((batch, 1), jnp.int32)
            return step + 1, token, target.commit(cache, path, jnp.ones(batch, int))

        start = (jnp.int32(0), token, cache)
        return jax.lax.while_loop(lambda state: state[0] < steps, body, start)

    token = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = jax.jit(decode, donate_argnums=1).lower(params, cache, token, steps)
    return params, cache, lowered.compile()


@pytest.mark.parametrize("batch", [1, 3])
def test_temporaries_do_not_grow_with_the_capacity(batch):
    # 512 and 4096 are both read in blocks of 256.
    small, large = (
        compiled_loop(capacity, batch)[2].memory_analysis().temp_size_in_bytes
        for capacity in (512, 4096)
    )
    assert large <= 1.02 * small


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_copies_neither_the_cache_nor_the_weights(batch):
    params, cache, compiled = compiled_loop(4096, batch)
    shapes = {leaf.shape for leaf in jax.tree.leaves((params, cache.layers))}
    large = {",".join(map(str, shape)) for shape in shapes if len(shape) > 1}
    large |= {",".join(map(str, shape[::-1])) for shape in shapes if len(shape) == 2}
    text = compiled.as_text()
    copied = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose|copy-start)\(", text)
    assert copied  # small arrays are copied, so the pattern does find copies
    assert not large & set(copied)
