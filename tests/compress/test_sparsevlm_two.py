"""SparseVLM 2.0's attention: against rotated vectors of ones, heads, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import sparsevlm_attention, sparsevlm_counts
from jtok.errors import ArgumentError


def ones_rotated(position, head_dim):
    """`[places, head_dim]` the halves of a vector of ones turned by each position."""
    power = np.arange(0, head_dim, 2) / head_dim
    angle = position[:, None] * 10000.0**-power
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([cos - sin, cos + sin], axis=1)


def some(seed=0):
    rng = np.random.default_rng(seed)
    attn = rng.random((2, 5, 3, 7)).astype(np.float32)
    raters = np.array([[True, False, True], [False, True, False]])
    words, places = np.array([[11, 12, 13]] * 2), np.array([[4, 5, 6, 7, 8, 9, 10]] * 2)
    places[1] = [1, 3, 4, 6, 7, 9, 10]
    return attn, raters, words, places


def call(attn, raters, words, places, **options):
    run = lambda *arrays: sparsevlm_attention(
        *arrays[:2], text_position=arrays[2], position=arrays[3],
        **{"head_dim": 8, "heads": 2} | options,
    )  # fmt: skip
    return jax.jit(run)(*map(jnp.asarray, (attn, raters, words, places)))


def test_weights_lose_what_rotation_alone_gives():
    attn, raters, words, places = some()
    # Other words prefer other heads: they have no say.
    other = np.arange(5)[None, :, None, None] * ~raters[:, None, :, None]
    attn = attn + other.astype(np.float32)
    got = call(attn, raters, words, places)
    for row in range(2):
        pull = ones_rotated(words[row], 8) @ ones_rotated(places[row], 8).T / 8**0.5
        wide = attn[row] / pull
        total = wide[:, raters[row]].sum((1, 2))
        best = np.argsort(-total, kind="stable")[:2]
        np.testing.assert_allclose(got[row], wide[best], rtol=1e-4, atol=1e-5)


def test_equal_heads_go_to_the_lower_one_and_bf16_comes_out_wide():
    attn, raters, words, places = some()
    same = np.repeat(attn[:, :1], 5, axis=1)
    got = call(same, raters, words, places, heads=3)
    np.testing.assert_array_equal(
        got, call(same[:, :3], raters, words, places, heads=3)
    )
    narrow = call(jnp.asarray(attn, jnp.bfloat16), raters, words, places)
    assert narrow.dtype == jnp.float32 and np.isfinite(narrow).all()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"heads": 6}, "^heads: got 6, expected 1 to 5"),
        ({"head_dim": 7}, "^head_dim"),
        ({"base": 1.0}, "^base"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, said):
    with pytest.raises(ArgumentError, match=said):
        call(*some(), **wrong)


def test_the_settings_of_version_2():
    counts = sparsevlm_counts(32, 576, mean=128, version="2.0", recycle=False)
    assert (counts[3], counts[7], counts[16]) == (238, 108, 60)
    assert sparsevlm_counts(32, 576, mean=128, recycle=False)[3] == 303
    with pytest.raises(ArgumentError, match="^version"):
        sparsevlm_counts(32, 576, version="3.0")
