"""The Perceiver resampler: the golden, masks, permutations, training, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, CheckpointError
from jtok.nn import PerceiverConfig, PerceiverResampler, perceiver_from_tensors
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden

KEY = jax.random.key(0)


def read_golden():
    golden = load_golden("token_compression_survey/perceiver_a.npz")
    tensors = {n.removeprefix("w."): golden[n] for n in golden if n.startswith("w.")}
    return golden, tensors


@pytest.fixture(scope="module")
def golden():
    return read_golden()


@pytest.fixture(scope="module")
def model(golden):
    """Parameters without tables of places, and one compiled call."""
    file, tensors = golden
    tables = ("frame_embs", "media_time_embs")
    own = {name: leaf for name, leaf in tensors.items() if name not in tables}
    config, params = perceiver_from_tensors(own, heads=int(file["cfg"][3]))
    run = jax.jit(
        lambda p, x, valid: PerceiverResampler(config).apply({"params": p}, x, valid)
    )
    return config, params, run


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def everything(x):
    return jnp.ones(x.shape[:-1], bool)


def test_outputs_of_open_flamingo(golden):
    file, tensors = golden
    width, layers, head_dim, heads, latents, ratio = file["cfg"].tolist()
    config, params = perceiver_from_tensors(tensors, heads=heads)
    assert config == PerceiverConfig(
        width=width, layers=layers, head_dim=head_dim, heads=heads, latents=latents,
        mlp_ratio=ratio, frames=4, times=3,
    )  # fmt: skip
    x = jnp.asarray(file["x"])
    run = jax.jit(PerceiverResampler(config).apply)
    got, seen = run({"params": params}, x)
    assert_close(got, file["out"], atol=1e-5)  # stated with the goldens
    assert seen.shape == (2, 2, latents, *x.shape[2:4])
    total = np.asarray(seen.sum((-2, -1)))
    assert (total > 0).all() and (total < 1).all()


def test_the_tree_is_that_of_init(golden):
    file, tensors = golden
    config, params = perceiver_from_tensors(tensors, heads=int(file["cfg"][3]))
    x = jnp.asarray(file["x"])
    made = jax.eval_shape(PerceiverResampler(config).init, KEY, x)["params"]
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(made) == shapes(params)


def test_masked_tokens_are_as_if_they_were_not_there(model):
    config, params, run = model
    x = noise(0, 2, 1, 2, 6, config.width)
    valid = everything(x).at[:, :, :, 4:].set(False)
    got, seen = run(params, x.at[:, :, :, 4:].set(jnp.nan), valid)
    short, looked = run(params, x[:, :, :, :4], everything(x[:, :, :, :4]))
    assert_close(got, short, atol=1e-6)
    assert_close(seen[..., :4], looked, atol=1e-6)
    assert float(jnp.abs(seen[..., 4:]).max()) == 0
    # A video without any frame says what one without tokens would.
    none, seen = run(params, x, everything(x).at[1].set(False))
    assert np.isfinite(none).all() and float(seen[1].max()) == 0
    other, _ = run(params, x + 1.0, everything(x).at[1].set(False))
    np.testing.assert_array_equal(none[1], other[1])


def test_the_order_of_tokens_does_not_matter_without_places(model):
    config, params, run = model
    x = noise(1, 2, 1, 2, 6, config.width)
    turn = np.random.default_rng(2).permutation(6)
    got, seen = run(params, x, everything(x))
    moved, looked = run(params, x[:, :, :, turn], everything(x))
    assert_close(moved, got, atol=1e-5)
    assert_close(looked, seen[..., turn], atol=1e-6)


def test_frames_and_times_have_places(golden):
    file, tensors = golden
    config, params = perceiver_from_tensors(tensors, heads=int(file["cfg"][3]))
    run = jax.jit(PerceiverResampler(config).apply)
    x = jnp.asarray(file["x"])
    got, _ = run({"params": params}, x)
    turned, _ = run({"params": params}, x[:, :, ::-1])
    assert np.abs(turned - got).max() > 1e-3
    later, _ = run({"params": params}, x[:, ::-1])
    assert np.abs(later[:, ::-1] - got).max() > 1e-3


def test_narrow_tokens_come_out_narrow(model):
    config, params, run = model
    x = noise(3, 2, 1, 2, 6, config.width)
    got, seen = run(params, x.astype(jnp.bfloat16), everything(x))
    assert got.dtype == jnp.bfloat16 and seen.dtype == jnp.float32
    wide, _ = run(params, x, everything(x))
    assert np.abs(got - wide).mean() < 0.03 * np.abs(wide).mean() + 0.02


def test_gradients_reach_every_parameter_and_fit():
    config = PerceiverConfig(
        width=8, layers=1, heads=2, head_dim=4, latents=3, mlp_ratio=2, frames=2,
        times=1,
    )  # fmt: skip
    module, x = PerceiverResampler(config), noise(4, 3, 1, 2, 5, 8)
    aim = noise(5, 3, 1, 3, 8)
    optimizer = optax.adam(0.03)
    loss = lambda p: jnp.mean((module.apply({"params": p}, x)[0] - aim) ** 2)

    @jax.jit
    def fit(key):
        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            change, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, change), state), (value, grad)

        params = module.init(key, x)["params"]
        start = params, optimizer.init(params)
        _, (values, grads) = jax.lax.scan(step, start, None, length=120)
        return values, jax.tree.map(lambda g: jnp.abs(g).max(), grads)

    values, grads = fit(KEY)
    assert all(float(leaf) > 0 for leaf in jax.tree.leaves(grads))
    assert values[-1] < 0.3 * values[0]


def test_media_are_shared_by_devices(model):
    config, params, run = model
    x = noise(6, 8, 1, 2, 6, config.width)
    want, _ = run(params, x, everything(x))
    rows = NamedSharding(mesh_from("data=8"), PartitionSpec("data"))
    got, _ = run(params, *(jax.device_put(y, rows) for y in (x, everything(x))))
    assert_close(got, want, atol=1e-6)


def test_damaged_weights_are_refused(golden):
    _, tensors = golden
    less = {n: t for n, t in tensors.items() if n != "layers.1.0.to_q.weight"}
    with pytest.raises(CheckpointError, match=r"missing layers\.1\.0\.to_q\.weight"):
        perceiver_from_tensors(less, heads=3)
    with pytest.raises(CheckpointError, match="no place for spare"):
        perceiver_from_tensors({**tensors, "spare": tensors["latents"]}, heads=3)
    with pytest.raises(ArgumentError, match="heads: got 5, expected a divisor of 12"):
        perceiver_from_tensors(tensors, heads=5)


@pytest.mark.parametrize(
    "shape, said",
    [((1, 1, 1, 4, 7), "x: got 'width 7'"), ((1, 1, 3, 4, 8), "x: got '3 of axis 2'")],
)
def test_what_does_not_fit_is_refused(shape, said):
    config = PerceiverConfig(width=8, heads=2, head_dim=4, layers=1, frames=2)
    with pytest.raises(ArgumentError, match=said):
        jax.eval_shape(PerceiverResampler(config).init, KEY, jnp.ones(shape))
    with pytest.raises(ArgumentError, match="layers: got 0"):
        PerceiverConfig(width=8, layers=0)
