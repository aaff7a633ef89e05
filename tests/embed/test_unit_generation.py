"""Units that are written: greedy ones, drawn ones, rows of other lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.errors import ArgumentError
from tests.embed.word_models import perturbed

TINY = embed.UnitConfig(
    vocab_size=12, width=8, length=10, layers=2, heads=2, dropout=0.0
)
LOGITS = jax.jit(embed.unit_logits, static_argnums=1)
CONTEXT = np.random.default_rng(0).integers(0, 12, (3, 5))
COUNTS = np.array([5, 2, 1])


def model(config=TINY):
    return perturbed(embed.init_units(config, jax.random.key(0)))


PARAMS = {config: model(config) for config in (TINY, dataclasses.replace(TINY, positions=False))}  # noqa: E501  # fmt: skip


@pytest.mark.parametrize("config", PARAMS, ids=["positions", "none"])
def test_greedy_units_are_the_most_likely_ones(config):
    """Scored from the outside, each in its row without padding."""
    made = embed.generate_units(PARAMS[config], config, CONTEXT, 4, counts=COUNTS)
    assert made.dtype == jnp.int32
    for row, count in enumerate(COUNTS):
        whole = np.concatenate([CONTEXT[row, :count], made[row]])
        logits = LOGITS(PARAMS[config], config, np.pad(whole, (0, 9 - len(whole)))[None])  # noqa: E501  # fmt: skip
        best = np.asarray(logits[0, count - 1 : count + 3]).argmax(-1)
        np.testing.assert_array_equal(made[row], best)
    assert len(set(np.asarray(made).ravel().tolist())) > 1


def test_rows_do_not_depend_on_their_mates():
    run = lambda rows, seeds: embed.generate_units(
        PARAMS[TINY], TINY, CONTEXT[rows], 4, counts=COUNTS[rows], seeds=seeds,
        temperature=2.0,
    )  # fmt: skip
    together = run(slice(None), [5, 6, 7])
    np.testing.assert_array_equal(together[1:2], run(slice(1, 2), [6]))
    again = run(slice(None), [5, 8, 7])
    assert (np.asarray(again[1]) != np.asarray(together[1])).any()
    np.testing.assert_array_equal(again[2], together[2])


def test_drawn_units_follow_the_model():
    """The next unit over many seeds: chi-square, false alarm 1e-4."""
    rows = 1000
    made = embed.generate_units(
        PARAMS[TINY], TINY, np.repeat(CONTEXT[:1], rows, 0), 2, temperature=1.0
    )
    logits = LOGITS(PARAMS[TINY], TINY, CONTEXT[:1])[0, -1]
    expected = rows * np.asarray(jax.nn.softmax(logits))
    seen = np.bincount(np.asarray(made[:, 0]), minlength=12)
    assert np.sum((seen - expected) ** 2 / expected) < 39.2  # 11 degrees of freedom


def test_half_precision():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = embed.init_units(config, jax.random.key(0))
    made = embed.generate_units(params, config, CONTEXT, 2)
    assert made.shape == (3, 2) and (made >= 0).all() and (made < 12).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_units": 0}, "num_units: got 0, expected at least 1"),
        ({"num_units": 6}, "num_units: got 6, expected at most 5 after 5"),
        ({"counts": [5, 0, 1]}, r"counts: got \[5, 0, 1\], expected 1 to 5"),
        ({"counts": [5]}, "counts: got"),
        ({"seeds": [1]}, "seeds: got"),
        ({"temperature": -1.0}, "temperature: got"),
        ({"context": CONTEXT + 9}, "units: got the id"),
    ],
)
def test_bad_input_is_refused(options, message):
    given = {"context": CONTEXT, "num_units": 1} | options
    with pytest.raises(ArgumentError, match=message):
        embed.generate_units(PARAMS[TINY], TINY, **given)
