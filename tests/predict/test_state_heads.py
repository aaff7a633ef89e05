"""Heads on one state, and the losses that all heads at several offsets share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import train
from jtok.errors import ArgumentError
from jtok.ops import Want
from jtok.predict import (
    IGNORE,
    Base,
    Objective,
    draft_loss,
    draft_losses,
    init_state_heads,
    offset_losses,
    residual_blocks,
    state_distance,
    state_draft_head,
)
from jtok.testing import assert_close, tiny_model

MODEL = tiny_model()
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 10)), jnp.int32)
VOCAB, WIDTH, STEPS, SEQ = 7, 5, 3, 9
RNG = np.random.default_rng(1)
KERNELS = jnp.asarray(RNG.normal(size=(STEPS, VOCAB, WIDTH)), jnp.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(2, SEQ, WIDTH)), jnp.float32)
BIASES = jnp.asarray(RNG.normal(size=(STEPS, VOCAB)), jnp.float32)
BASE = Base(KERNELS[0], 2 * KERNELS[0], jnp.arange(VOCAB, dtype=jnp.float32))


@functools.partial(jax.jit, static_argnames="objective")
def shared(hidden, labels, mask, objective):
    read = lambda head: (hidden, *head)
    return offset_losses(
        read,
        (KERNELS, BIASES),
        BASE,
        hidden,
        labels=labels,
        mask=mask,
        objective=objective,
    )


def brute(hidden, labels, mask, objective):
    """The same in loops."""
    teacher = hidden @ np.asarray(BASE.unembed).T + np.asarray(BASE.bias)
    nats, squares = [], []
    for k in range(STEPS):
        logits = hidden @ np.asarray(KERNELS[k]).T + np.asarray(BIASES[k])
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found, apart = [], []
        for row in range(2):
            for i in range(SEQ):
                later = i + k + 1
                if later < SEQ and mask[row, i] and mask[row, later]:
                    if i >= 2:
                        gap = logits[row, i] - teacher[row, later]
                        apart.append((gap**2).mean())
                    if objective.labels == "teacher" and i >= 1:
                        best = teacher[row, later].argmax()
                        found.append(-log_probs[row, i, best])
                if objective.labels == "teacher" or i < 1 or later + 1 >= SEQ:
                    continue
                label = labels[row, later + 1]
                if mask[row, i] and mask[row, later + 1] and label >= 0:
                    found.append(-log_probs[row, i, label])
        nats.append(np.mean(found) if found else 0.0)
        squares.append(np.mean(apart) if apart else 0.0)
    return np.float32(nats), np.float32(squares)


@given(
    st.lists(st.lists(st.integers(-1, VOCAB - 1), min_size=SEQ, max_size=SEQ),
             min_size=2, max_size=2),
    st.lists(st.integers(0, SEQ), min_size=2, max_size=2),
    st.sampled_from(["data", "teacher"]),
)  # fmt: skip
def test_losses_are_those_of_a_loop(labels, lengths, kind):
    labels = np.where(np.array(labels) < 0, IGNORE, labels).astype(np.int32)
    mask = np.arange(SEQ)[None] < np.array(lengths)[:, None]
    objective = Objective(labels=kind, logits=0.5)
    found = shared(HIDDEN, jnp.asarray(labels), jnp.asarray(mask), objective)
    nats, squares = brute(np.asarray(HIDDEN), labels, mask, objective)
    assert_close(found.cross_entropy, nats, rtol=1e-4, atol=1e-5)
    assert_close(found.logits, squares, rtol=1e-4, atol=1e-5)
    total = nats.sum() + 0.5 * squares.sum()
    assert_close(found.total(objective), np.float32(total), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", ["full", "light"])
def test_new_heads_say_what_the_target_says(heads):
    """And adds the bias of its readout once."""
    bias = np.linspace(-3.0, 3.0, 96, dtype=np.float32)
    rows = {**MODEL.params["unembed"], "bias": jnp.asarray(bias)}
    model = MODEL.replace(params={**MODEL.params, "unembed": rows})
    draft = init_state_heads(model, steps=2, heads=heads)
    head, context = state_draft_head(draft.config), jnp.ones((3, 32))
    state = head.init(draft, context)
    tokens = jnp.zeros((3, 2), jnp.int32)
    hidden, _ = head.step(draft, context, state, tokens, 1)
    read = head.readout(draft, hidden, Want(rows=True), 1)
    expected = np.asarray(context @ MODEL.unembedding()[0].T) + bias
    assert_close(read.rows[:, 1], expected, rtol=1e-4, atol=1e-4)


def test_blocks_are_applied_one_after_another():
    kernel = jnp.asarray(RNG.normal(size=(2, 4, 4)), jnp.float32)
    bias, x = jnp.ones((2, 4)), jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    expected = np.asarray(x)
    for weight in np.asarray(kernel):
        y = expected @ weight + 1
        expected = expected + y / (1 + np.exp(-y))
    assert_close(
        residual_blocks({"kernel": kernel, "bias": bias}, x), expected, rtol=1e-4
    )


def test_states_are_compared_one_position_ahead():
    states = jnp.zeros((1, 4, 2))
    hidden = jnp.arange(4.0)[None, :, None] * jnp.ones((1, 1, 2))
    mask = jnp.array([[True, True, True, False]])
    assert float(state_distance(states, hidden, mask)) == (1 + 4) / 2
    assert float(state_distance(states, hidden, ~mask)) == 0


@pytest.mark.medium
def test_training_lowers_the_loss():
    batch, draft = {"tokens": IDS}, init_state_heads(MODEL, heads="light")
    result = train.fit(
        draft_loss(MODEL, draft), draft.params, frozen=MODEL.params,
        optimizer=train.adamw(1e-2), data=lambda step: batch, steps=30,
        key=jax.random.key(0), progress=False,
    )  # fmt: skip
    assert result.metrics["loss"][-1] < 0.8 * result.metrics["loss"][0]


def test_bad_input_is_refused():
    with pytest.raises(ArgumentError, match="steps: got 0"):
        init_state_heads(MODEL, steps=0)
    with pytest.raises(ArgumentError, match="blocks: got 0"):
        init_state_heads(MODEL, blocks=0)
    with pytest.raises(ArgumentError, match="heads: got 'none'"):
        init_state_heads(MODEL, heads="none")
    draft = init_state_heads(MODEL)
    with pytest.raises(ArgumentError, match="ids: got 'shape"):
        draft_losses(draft, jnp.zeros((1, 2, 32)), jnp.zeros((1, 2), jnp.int32))
