"""Rotary positions against complex numbers, and the scalings by their definition."""

import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.nn import rotary_frequencies, rotary_gain, rotate
from jtok.testing import assert_close

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def vectors(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(x, positions, frequencies):
    """Pairs (i, i + half) as complex numbers, turned in float64."""
    half = len(frequencies)
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half : 2 * half]
    angles = positions[..., None, None] * frequencies.astype(np.float64)
    pairs = pairs * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag, x[..., 2 * half :]], axis=-1)


@pytest.mark.parametrize("rotated", [8, 4])
def test_rotation_multiplies_complex_numbers(rotated):
    x = vectors(0, 2, 5, 3, 8)
    positions = np.array([[0, 1, 2, 3, 4], [7, 7, 100, 0, 31]], np.int32)
    frequencies = rotary_frequencies(rotated, 10000.0)
    out = rotate(jnp.asarray(x), jnp.asarray(positions), frequencies)
    expected = turned(x, positions, frequencies).astype(np.float32)
    assert_close(out, expected, rtol=1e-5, atol=2e-5)  # float32 angles up to 100
    np.testing.assert_array_equal(np.asarray(out)[0, 0], x[0, 0])
    np.testing.assert_array_equal(np.asarray(out)[..., rotated:], x[..., rotated:])


@hypothesis.given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 500))
def test_scores_depend_on_the_distance_only(a, b, shift):
    frequencies = rotary_frequencies(8, 10000.0)
    query, key = (jnp.asarray(vectors(i, 1, 1, 1, 8)) for i in (1, 2))

    def score(a, b):
        left, right = (
            rotate(x, jnp.array([[p]]), frequencies) for x, p in [(query, a), (key, b)]
        )
        return float(jnp.sum(left * right))

    assert score(a + shift, b + shift) == pytest.approx(score(a, b), abs=2e-3)


def test_rotation_keeps_the_dtype_and_computes_in_float32():
    x, positions = vectors(3, 1, 4, 2, 8), jnp.array([[1000, 1001, 1002, 1003]])
    frequencies = rotary_frequencies(8, 10000.0)
    narrow = jnp.asarray(x, jnp.bfloat16)
    out = rotate(narrow, positions, frequencies)
    assert out.dtype == jnp.bfloat16
    wide = rotate(narrow.astype(jnp.float32), positions, frequencies)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(wide, out.dtype))


def test_default_and_linear_frequencies():
    expected = [1000.0 ** (-2 * i / 8) for i in range(4)]
    assert_close(rotary_frequencies(8, 1000.0), np.float32(expected))
    linear = rotary_frequencies(8, 1000.0, {"rope_type": "linear", "factor": 4.0})
    assert_close(linear, np.float32(expected) / 4)
    assert linear.dtype == np.float32


def test_llama3_frequencies_follow_their_definition():
    plain = rotary_frequencies(64, 500000.0).astype(np.float64)
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4.0:
            expected.append(frequency)
        elif wavelength > 64 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    kinds = set(np.round(plain / expected, 3))
    assert {1.0, 8.0} < kinds  # short waves, long waves, and some between
    assert_close(rotary_frequencies(64, 500000.0, LLAMA3), np.float32(expected))


YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 256,
}


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (8.0, 2.0)])
def test_yarn_frequencies_follow_their_definition(truncate, betas):
    plain = 1e4 ** (-np.arange(0, 64, 2) / 64)
    # The index at which a wave makes exactly so many turns over the first length.
    bounds = [
        64 * math.log(256 / (2 * math.pi * turns)) / (2 * math.log(1e4))
        for turns in betas
    ]
    if truncate:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], 63)
    expected = []
    for index, frequency in enumerate(plain):
        if index <= low:
            expected.append(frequency)
        elif index >= high:
            expected.append(frequency / 4.0)
        else:
            share = (index - low) / (high - low)
            expected.append((1 - share) * frequency + share * frequency / 4.0)
    scaling = {**YARN, "beta_fast": betas[0], "beta_slow": betas[1]}
    found = rotary_frequencies(64, 1e4, {**scaling, "truncate": truncate})
    assert_close(found, np.float32(expected))
    if betas == (32.0, 1.0) and truncate:  # the defaults
        np.testing.assert_array_equal(found, rotary_frequencies(64, 1e4, YARN))


@pytest.mark.parametrize(
    "items, expected",
    [
        (None, 1.0),
        ({"rope_type": "linear", "factor": 4.0}, 1.0),
        (YARN, 0.1 * math.log(4.0) + 1),
        ({**YARN, "factor": 0.5}, 1.0),
        ({**YARN, "attention_factor": 1.25}, 1.25),
        (
            {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(4.0) + 1) / (0.05 * math.log(4.0) + 1),
        ),
        ({**YARN, "mscale": 2.0}, 0.1 * math.log(4.0) + 1),
    ],
)
def test_gain_of_the_scalings(items, expected):
    assert rotary_gain(items) == pytest.approx(expected)


def test_the_gain_scales_what_turns_and_nothing_else():
    x, positions = jnp.asarray(vectors(5, 1, 3, 2, 8)), jnp.array([[0, 1, 2]])
    frequencies = rotary_frequencies(4, 10000.0)
    plain = rotate(x, positions, frequencies)
    scaled = rotate(x, positions, frequencies, gain=1.5)
    assert_close(scaled[..., :4], 1.5 * plain[..., :4])
    np.testing.assert_array_equal(scaled[..., 4:], x[..., 4:])


def test_an_unknown_scaling_is_refused():
    with pytest.raises(
        ArgumentError, match="rope_type: got 'longrope', expected one of 'default'"
    ):
        rotary_frequencies(8, 10000.0, {"rope_type": "longrope"})
