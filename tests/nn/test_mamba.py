"""Parts of the Mamba block: the convolution and what it remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.nn import MambaConfig, causal_conv, conv_history, rms_norm
from jtok.testing import assert_close

SIZES = {
    "vocab_size": 8,
    "width": 4,
    "num_layers": 1,
    "inner_width": 8,
    "dt_rank": 1,
}
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = draw(2, 9, 3)
KERNEL = draw(4, 3)
BIAS = draw(3)
HISTORY = draw(2, 3, 3)


def brute(x, history, bias=0.0):
    """One row: every output as a sum over the last four inputs."""
    x, whole = np.asarray(x), np.concatenate([history, x])
    rows = [(whole[t : t + 4] * np.asarray(KERNEL)).sum(0) for t in range(len(x))]
    return np.array(rows, np.float32).reshape(x.shape) + np.asarray(bias)


def test_conv_sees_itself_and_the_past():
    zeros = np.zeros((3, 3), np.float32)
    found = causal_conv(X, KERNEL)
    with_past = causal_conv(X, KERNEL, BIAS, history=HISTORY)
    for row in range(2):
        assert_close(found[row], brute(X[row], zeros))
        assert_close(with_past[row], brute(X[row], HISTORY[row], BIAS))


def test_conv_passes_over_masked_inputs():
    mask = np.array([[0, 1, 1, 0, 0, 1, 1, 1, 0], [0] * 9], bool)
    noisy = jnp.where(mask[..., None], X, np.nan)
    found = causal_conv(noisy, KERNEL, BIAS, history=HISTORY, mask=jnp.asarray(mask))
    assert_close(found[0][mask[0]], brute(X[0][mask[0]], HISTORY[0], BIAS))
    assert not found[~mask].any()


def test_history_is_what_the_next_inputs_see():
    for count in range(10):
        counts = jnp.array([count, 9 - count])
        kept = conv_history(HISTORY, X, counts)
        for row, n in enumerate((count, 9 - count)):
            whole = np.concatenate([HISTORY[row], X[row, :n]])
            np.testing.assert_array_equal(kept[row], whole[-3:])


def test_one_tap_needs_no_history():
    none = jnp.zeros((2, 0, 3))
    assert_close(causal_conv(X, KERNEL[:1]), np.asarray(X) * np.asarray(KERNEL)[0])
    assert conv_history(none, X, jnp.array([2, 0])).shape == (2, 0, 3)


def test_bfloat16_sums_in_float32():
    narrow = jnp.asarray(X, jnp.bfloat16)
    found = causal_conv(narrow, jnp.asarray(KERNEL, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    wide = jnp.asarray(KERNEL, jnp.bfloat16).astype(jnp.float32)
    wanted = causal_conv(narrow.astype(jnp.float32), wide)
    np.testing.assert_array_equal(found, wanted.astype(jnp.bfloat16))


def test_bad_history():
    with pytest.raises(ArgumentError, match="history: got '2 inputs', expected 3"):
        causal_conv(X, KERNEL, history=HISTORY[:, :2])


def test_norm_divides_by_the_root_mean_square():
    scale = BIAS + 3
    x = np.asarray(X)
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * np.asarray(scale)
    assert_close(rms_norm(X, scale, 0.1), wanted)
    assert rms_norm(jnp.ones((1, 3), jnp.bfloat16), scale, 0.0).dtype == jnp.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"state_size": 0}, "state_size: got 0, expected at least 1"),
        ({"conv_size": 0}, "conv_size: got 0"),
        ({"dt_min": 0.0}, "dt_min: got 0.0, expected above 0"),
        ({"dt_max": 1e-4}, "dt_max: got 0.0001, expected at least dt_min=0.001"),
    ],
)
def test_bad_sizes(changes, message):
    assert hash(MambaConfig(**SIZES)) == hash(MambaConfig(**SIZES))
    with pytest.raises(ArgumentError, match=message):
        MambaConfig(**SIZES, **changes)


def test_step_sizes_of_a_new_block_are_spread_between_their_bounds():
    from jtok.nn.mamba import _step_bias

    config = MambaConfig(**SIZES)
    bias = _step_bias(config)(jax.random.key(0), (4096,), "float32")
    sizes = np.log10(jax.nn.softplus(bias))
    assert -3.001 < sizes.min() < -2.98 and -1.02 < sizes.max() < -0.999
    assert abs(np.mean(sizes) + 2) < 0.05
