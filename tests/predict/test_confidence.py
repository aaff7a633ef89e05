"""Cheap estimates of how sure an exit is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.errors import ArgumentError
from jtok.predict import (
    init_probe,
    part_confidence,
    probe_confidence,
    probe_loss,
)
from jtok.testing import assert_close
from tests.predict.nested import EXITS, HIDDEN, READS, nested_model

IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (4, 12)), jnp.int32)


def test_all_ids_give_the_largest_probability():
    model = nested_model()
    whole = part_confidence(model, range(96))
    hidden = HIDDEN(model, IDS, EXITS)
    reads = READS(model, IDS, EXITS)
    for index, states in enumerate(hidden):
        sure = whole.score(whole.params, states, index)
        assert_close(sure, reads.confidence[index])


def test_some_ids_give_the_largest_probability_among_them():
    model = nested_model()
    some = part_confidence(model, [3, 40, 7])
    states = HIDDEN(model, IDS, EXITS)[0]
    logits = states @ model.unembedding()[0][jnp.array([3, 40, 7])].T
    expected = jnp.max(jax.nn.softmax(logits), axis=-1)
    assert_close(some.score(some.params, states, 0), expected)
    assert some.rows == 3
    # The same kind of estimate is the same function: nothing is compiled again.
    assert part_confidence(model, [1]).score is some.score


def test_a_probe_learns_which_tokens_are_right():
    model = nested_model()
    hidden, reads = HIDDEN(model, IDS, EXITS), READS(model, IDS, EXITS)
    targets = reads.tokens[-1]
    mask = jnp.arange(12)[None] < jnp.array([[12], [5], [12], [9]])
    probe = init_probe(32, 3)
    loss = lambda probe: probe_loss(probe, hidden, reads.tokens, targets, mask)
    assert_close(loss(probe), np.float32(np.log(2)))
    adam = optax.adam(0.05)

    @jax.jit
    def step(carry, _):
        probe, state = carry
        value, grads = jax.value_and_grad(loss)(probe)
        updates, state = adam.update(grads, state)
        return (optax.apply_updates(probe, updates), state), value

    (probe, _), values = jax.lax.scan(step, (probe, adam.init(probe)), length=100)
    assert values[-1] < 0.3
    sure = probe_confidence(probe)
    score = sure.score(sure.params, hidden[0], 0)
    right = (reads.tokens[0] == targets) & mask
    assert score[right].mean() > score[~right & mask].mean() + 0.2
    assert bool(jnp.all(sure.score(sure.params, hidden[2], 2)[mask] > 0.6))


def test_hidden_states_get_no_gradient_from_a_probe():
    states, tokens = jnp.ones((1, 2, 4)), jnp.zeros((1, 1, 2), jnp.int32)
    probe = {"weight": jnp.ones((1, 4)), "bias": jnp.zeros(1)}
    grad = jax.grad(lambda s: probe_loss(probe, (s,), tokens, tokens[0]))(states)
    np.testing.assert_array_equal(grad, np.zeros_like(states))


def test_ids_outside_the_vocabulary_are_refused():
    for ids in ([], [96], [-1, 2]):
        with pytest.raises(ArgumentError, match="ids: got"):
            part_confidence(nested_model(), ids)
