"""Masking, losses, likelihoods, trajectories and training of masked models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedImplementationError,
)
from jtok.predict import (
    Trajectories,
    bound_loss,
    collect_trajectories,
    context_matrix,
    crop_length,
    depth_law,
    diffusion_loss,
    exact_bound,
    joint_divergence,
    joint_layer,
    joint_loss,
    joint_loss_at,
    load_joint,
    log_likelihood,
    mask_exactly,
    mask_tokens,
    masked_token_losses,
    mauve_score,
    oracle_layer,
    perturbed_argmax,
    save_joint,
    share_trailing,
    stratified_counts,
    time_weights,
    trajectory_windows,
    weighted_loss,
    window_starts,
)
from jtok.testing import assert_close, tiny_config
from tests.predict.masked_models import BOS, MASK, PAD, base_model, table_denoiser

CLEAN = jnp.array([[0, 2, 1]])
ALL = jnp.ones((1, 3), bool)


# ---- masking


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1), st.sampled_from([0.0, 1e-3, 0.5]))
def test_masks_stand_where_they_may(seed, time, eps):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, 5, (3, 8)), jnp.int32)
    maskable = jnp.asarray(rng.random((3, 8)) > 0.3)
    draws = jnp.asarray(rng.random((3, 8)), jnp.float32)
    times = jnp.full(3, time, jnp.float32)
    made = mask_tokens(tokens, maskable, times, draws, mask_id=9, eps=eps)
    rate = (1 - eps) * np.float32(time) + eps
    assert_close(made.rate, np.full(3, rate, np.float32), rtol=1e-6, atol=1e-7)
    assert not (made.masked & ~maskable).any()
    np.testing.assert_array_equal(made.tokens == 9, made.masked)
    np.testing.assert_array_equal(made.tokens[~made.masked], tokens[~made.masked])


def test_at_time_one_all_are_masked():
    draws = jax.random.uniform(jax.random.key(0), (2, 50))
    tokens = jnp.zeros((2, 50), jnp.int32)
    made = mask_tokens(tokens, tokens == 0, jnp.ones(2), draws, mask_id=9)
    assert made.masked.all() and made.rate.tolist() == [1.0, 1.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_counts_are_spread_evenly(batch, length, seed):
    counts = np.asarray(stratified_counts(jax.random.key(seed), batch, length))
    assert ((counts >= 1) & (counts <= length)).all()
    if batch % length == 0:  # each number as often as the others
        assert set(np.bincount(counts, minlength=length + 1)[1:]) == {batch // length}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8), st.integers(0, 99))
def test_exactly_so_many_are_masked(count, seed):
    key = jax.random.key(seed)
    maskable = jnp.arange(8)[None] >= jnp.array([[0], [3]])
    made = mask_exactly(key, jnp.zeros((2, 8), int), maskable,
                        jnp.full(2, count), mask_id=9)  # fmt: skip
    assert made.masked.sum(1).tolist() == [count, min(count, 5)]
    assert not (made.masked & ~maskable).any()


def test_cropping_is_of_a_share_of_batches_to_any_length():
    keys = jax.random.split(jax.random.key(1), 4000)
    crop = lambda share: jax.vmap(lambda k: crop_length(k, 2, 4, share=share))(keys)
    kept = np.asarray(crop(1.0))
    assert (kept[:, 0] == kept[:, 1]).all()
    assert (np.diff(kept[:, 0].astype(int)) <= 0).all()  # what is cut is the end
    lengths = np.bincount(kept[:, 0].sum(1), minlength=5) / 4000
    np.testing.assert_allclose(lengths, [0, 0.25, 0.25, 0.25, 0.25], atol=0.03)
    some = np.bincount(np.asarray(crop(0.4))[:, 0].sum(1), minlength=5) / 4000
    np.testing.assert_allclose(some, [0, 0.1, 0.1, 0.1, 0.7], atol=0.03)


def test_a_cropped_batch_is_one_of_shorter_rows():
    """Nearly surely all is masked, so the rest of a row is not seen either."""
    model = base_model(shift=False)
    cut = lambda key: crop_length(jax.random.split(key, 3)[2], 4, 10, share=1.0)
    some = map(jax.random.key, range(99))
    key, length = next((k, n) for k in some if 1 < (n := int(cut(k)[0].sum())) < 10)
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, 27, (4, 10)), jnp.int32)
    run = lambda crop: jax.jit(
        lambda params, ids: diffusion_loss(model, eps=1 - 1e-6, crop=crop)(
            params, None, None, {"tokens": ids}, key
        )
    )
    loss, (metrics, _) = run(1.0)(model.params, tokens)
    short, _ = run(0.0)(model.params, tokens[:, :length])
    assert int(metrics["tokens"]) == 4 * length
    assert_close(loss, short, rtol=1e-5)


def test_trailing_ends():
    masked = jnp.array([[True, False, True, False]] * 3)
    tokens = jnp.array([[5, 0, 0, 0], [0, 0, 0, 0], [0, 5, 0, 5]])
    got = share_trailing(masked, tokens, eos_id=0)
    assert got.tolist() == [
        [True, False, False, False], [True] * 4, [True, False, True, False],
    ]  # fmt: skip


# ---- losses


def test_the_loss_is_an_unbiased_bound():
    """Its mean over times and masks is the mean over orders, to the quadrature."""
    model = table_denoiser()
    exact = exact_bound(model, CLEAN[0], ALL[0])
    sets = [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
    masked = jnp.asarray([[i in s for i in range(3)] for s in sets])
    clean = jnp.broadcast_to(CLEAN, masked.shape)
    noisy = jnp.where(masked, 3, clean)
    losses = masked_token_losses(model, None, noisy, clean, masked)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = 0.0
    for time, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for loss, mask in zip(losses, masked, strict=True):
            count = int(mask.sum())
            chance = time**count * (1 - time) ** (3 - count)
            row = bound_loss(loss[None], mask[None], jnp.full(1, time, jnp.float32),
                             lengths=jnp.ones(1))  # fmt: skip
            total += weight * chance * float(row)
    assert total == pytest.approx(-exact, rel=1e-5)


def test_the_average_over_draws_goes_to_the_bound():
    model = table_denoiser()
    exact = -exact_bound(model, CLEAN[0], ALL[0]) / 3
    loss_fn = jax.jit(diffusion_loss(model, eps=0.0))
    batch = {"tokens": jnp.broadcast_to(CLEAN, (20_000, 3))}
    loss, (metrics, _) = loss_fn(None, None, None, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(exact, rel=0.05)
    assert int(metrics["tokens"]) == pytest.approx(30_000, rel=0.02)


@pytest.mark.parametrize("weighting", ["bound", "original", "linear", "none", "cart"])
def test_losses_of_a_model_have_gradients_and_leave_the_prompt(weighting):
    model = base_model()
    loss_fn = diffusion_loss(model, weighting=weighting, eos_id=PAD, crop=0.2)
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, 27, (4, 10)), jnp.int32)
    maskable = jnp.arange(10)[None] >= jnp.array([[1], [2], [5], [10]])
    valid = jnp.arange(10)[None] >= jnp.array([[0], [1], [0], [0]])
    batch = {"tokens": tokens, "maskable": maskable, "valid": valid}
    both = jax.value_and_grad(lambda p, b: loss_fn(p, 0, 0, b, jax.random.key(2))[0])
    loss, grads = jax.jit(both)(model.params, batch)
    assert loss > 0
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
    none = {**batch, "maskable": maskable & False}
    loss, grads = jax.jit(both)(model.params, none)
    assert loss == 0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_weights_and_normalisations():
    losses = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    masked = jnp.array([[True, False], [True, True]])
    time = jnp.array([0.5, 0.0])
    weights = time_weights("original", time, masked, min_time=0.25)
    assert weights.tolist() == [[2.0, 0.0], [4.0, 4.0]]
    total = 2 * 1 + 4 * 3 + 4 * 4
    assert weighted_loss(losses, masked, weights) == pytest.approx(total / 3)
    assert weighted_loss(losses, masked, weights, per="token") == pytest.approx(
        total / 4
    )
    focal = weighted_loss(losses, masked, weights, focal=(0.25, 2.0))
    parts = [2 * 1 * (1 - np.exp(-1)) ** 2, 4 * 3 * (1 - np.exp(-3)) ** 2,
             4 * 4 * (1 - np.exp(-4)) ** 2]  # fmt: skip
    assert focal == pytest.approx(0.25 * sum(parts) / 3, rel=1e-5)
    assert weighted_loss(losses, masked & False, weights) == 0.0
    matrix = context_matrix(200, 0.3)
    assert matrix[100].sum() == pytest.approx(1.0, abs=1e-5)


# ---- likelihood


def test_likelihood_of_some_tokens():
    model = table_denoiser()
    exact = exact_bound(model, CLEAN[0], ALL[0])
    rows, maskable = jnp.concatenate([CLEAN, CLEAN]), jnp.concatenate([ALL, ALL])
    maskable = maskable.at[1, :2].set(False)
    got = log_likelihood(
        model, rows, maskable, jax.random.key(0), draws=2000, chunk=300
    )
    assert float(got[0]) == pytest.approx(exact, rel=0.03)
    # A single token needs a single draw.
    logits = model.hidden(None, jnp.array([[0, 2, 3]]), None)
    once = log_likelihood(model, rows[1:], maskable[1:], jax.random.key(3), draws=1)
    expected = jax.nn.log_softmax(logits[0, 2])[1]
    assert_close(once[0], expected, rtol=1e-5)
    assert_close(got[1], expected, rtol=1e-4)
    guided = log_likelihood(model, rows[1:], maskable[1:], jax.random.key(3), draws=1,
                            guidance=0.7)  # fmt: skip
    blind = model.hidden(None, jnp.array([[3, 3, 3]]), None)
    mixed = jax.nn.log_softmax(blind + 1.7 * (logits - blind))[0, 2, 1]
    assert_close(guided[0], mixed, rtol=1e-4)


def test_divergence_of_samples():
    fills, probs = np.array([[0, 1], [1, 0]]), np.array([0.25, 0.75])
    samples = np.array([[0, 1]] + [[1, 0]] * 3)
    assert joint_divergence(samples, fills, probs) == 0.0
    assert joint_divergence(samples[:1], fills, probs) == pytest.approx(np.log(4))
    assert joint_divergence(np.array([[0, 0]]), fills, probs) == float("inf")


def test_mauve_without_its_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(UnsupportedImplementationError, match="mauve-text is not inst"):
        mauve_score(["a"], ["b"], least=1)
    with pytest.raises(ArgumentError, match="references: got '1 texts'"):
        mauve_score(["a"] * 500, ["b"])


# ---- trajectories and training


def trajectories(**how):
    rows = np.full((4, 8), MASK, np.int32)
    rows[:, :2] = [[BOS, 5], [BOS, 6], [BOS, 7], [BOS, 8]]
    return rows, collect_trajectories(base_model(), rows, batch=3, **how)


def test_windows_reveal_one_token_at_a_time():
    rows, made = trajectories()
    assert made.length.tolist() == [6] * 4
    starts = window_starts(made, 3)
    # States 0 to 5; the last one, without masks, is in no window.
    assert starts.tolist() == [[r, s] for r in range(4) for s in range(3)]
    states = trajectory_windows(made, starts, 3, mask_id=MASK)
    changed = (states[:, 1:] != states[:, :-1]).sum(-1)
    assert (changed == 1).all()
    assert ((states == MASK).sum(-1) == (6 - starts[:, 1:] - np.arange(4))).all()
    first = trajectory_windows(made, starts[:1], 3, mask_id=MASK)[0, 0]
    np.testing.assert_array_equal(first, rows[0])


def test_a_trajectory_ends_before_its_cut():
    rows, made = trajectories(cut_id=None)
    token = int(made.tokens[0][made.turn[0] == 3][0])
    cut = trajectories(cut_id=token)[1]
    assert cut.length[0] <= 3
    starts = window_starts(cut, 1)
    states = trajectory_windows(cut, starts, 1, mask_id=MASK)
    shown = np.asarray(states) != rows[starts[:, 0]][:, None]
    assert not (np.where(shown, states, -1) == token).any()


def test_two_tokens_at_once_are_no_window():
    tokens, turn = np.array([[5, 6, 7]]), np.array([[0, 0, 1]])
    with pytest.raises(ArgumentError, match="made: got 'row 0 with .2, 1.'"):
        window_starts(Trajectories(tokens, turn, np.array([2])), 1)
    with pytest.raises(ArgumentError, match="width: got 5"):
        window_starts(Trajectories(tokens, np.array([[0, 1, 2]]), np.array([3])), 5)


def test_the_loss_is_zero_for_the_model_itself_and_where_nothing_is_left():
    model = table_denoiser()
    states = jnp.array([[[3, 3, 3], [3, 1, 3], [0, 1, 3], [0, 1, 2]]])

    def loss(layer, depth, **how):
        run = jax.jit(lambda states: joint_loss_at(
            layer, (), model, None, states, depth, **how
        ))  # fmt: skip
        return float(run(states))

    still = oracle_layer(model)._replace(step=lambda p, q, t, h, v, i: h)
    for depth in (1, 2):
        assert abs(loss(oracle_layer(model), depth)) < 1e-6
        assert loss(still, depth) > 0.01
    assert loss(still, 3) == 0.0
    some = jnp.array([[True, False, False]])  # only what counts is compared
    assert loss(still, 2, learnt=some) == 0.0
    assert loss(still, 1, valid=ALL) == pytest.approx(loss(still, 1))


def test_gradients_reach_the_layer_alone():
    model = base_model()
    layer = joint_layer(model.config)
    _, made = trajectories()
    states = jnp.asarray(
        trajectory_windows(made, window_starts(made, 2), 2, mask_id=MASK)
    )
    loss_fn = joint_loss(model, layer, max_depth=2)

    @jax.jit
    def both(params, base):
        total = lambda p, b: loss_fn(p, b, None, {"states": states}, jax.random.key(1))
        return jax.grad(lambda p, b: total(p, b)[0], argnums=(0, 1))(params, base)

    own, base = both(layer.init(jax.random.key(0)), model.params)
    assert np.asarray(own["out_norm"]["scale"]).any()
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(base))
    with pytest.raises(ArgumentError, match="states: got .*at least 4 states"):
        joint_loss(model, layer)(None, None, None, {"states": states}, None)


@given(st.integers(1, 12))
def test_depths_are_a_law_that_falls(most):
    law = depth_law(most)
    assert law.sum() == pytest.approx(1.0, abs=1e-6)
    assert (np.diff(law) < 0).all()


# ---- on disk


def test_a_layer_is_saved_and_loaded(tmp_path):
    config = base_model().config
    for options in ({}, {"steps": 2, "zero_init": False}, {"attention": False}):
        layer = joint_layer(config, **options)
        params = layer.init(jax.random.key(1))
        save_joint(layer, params, tmp_path / "layer")  # in place of the one before
        again, read = load_joint(config, tmp_path / "layer")
        assert again is layer
        assert jax.tree.structure(read) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, read, params)


def test_what_is_no_layer_is_refused(tmp_path):
    config = base_model().config
    layer = joint_layer(config)
    params = layer.init(jax.random.key(1))
    folder = tmp_path / "layer"
    with pytest.raises(MissingFileError, match=r"joint_layer\.json: not there"):
        load_joint(config, folder)
    with pytest.raises(ArgumentError, match="layer: got"):
        save_joint(oracle_layer(table_denoiser()), (), folder)
    with pytest.raises(ArgumentError, match="params: got"):
        save_joint(joint_layer(config, steps=2), params, folder)
    save_joint(layer, params, folder)
    with pytest.raises(CheckpointError, match=r"of another model; .*block\.key\.bias"):
        load_joint(tiny_config(family="llada"), folder)
    (folder / "joint_layer.json").write_text('{"steps": 0}')
    with pytest.raises(CheckpointError, match="damaged .steps: got 0"):
        load_joint(config, folder)
    (folder / "joint_layer.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_joint(config, folder)
    (folder / "model.safetensors").unlink()
    save_joint(layer, params, folder)
    assert load_joint(config, folder)[0] is layer


@pytest.mark.parametrize("call, name", [
    (lambda: mask_tokens(CLEAN, ALL, jnp.ones(1), jnp.ones((1, 3)), mask_id=9, eps=1.0),
     "eps: got 1.0"),
    (lambda: crop_length(jax.random.key(0), 1, 3, share=2.0), "share: got 2.0"),
    (lambda: stratified_counts(jax.random.key(0), 0, 3), "batch: got 0"),
    (lambda: stratified_counts(jax.random.key(0), 1, 0), "length: got 0"),
    (lambda: context_matrix(3, 0.0), "p: got 0.0"),
    (lambda: time_weights("carts", jnp.ones(1), ALL), "did you mean cart"),
    (lambda: weighted_loss(ALL * 1.0, ALL, ALL * 1.0, per="row"), "per"),
    (lambda: diffusion_loss(base_model(), weighting="elbo"), "weighting: got 'elbo'"),
    (lambda: diffusion_loss(base_model(), focal=(0.25, 2.0)), "focal: got"),
    (lambda: log_likelihood(base_model(), CLEAN, ALL, jax.random.key(0), draws=0),
     "draws: got 0"),
    (lambda: exact_bound(base_model(), CLEAN[0], ~ALL[0]), "maskable: got '0 tokens'"),
    (lambda: depth_law(0), "max_depth: got 0"),
    (lambda: perturbed_argmax(jnp.ones(3), jnp.ones(3), -1.0), "temperature: got -1.0"),
    (lambda: joint_loss_at(oracle_layer(table_denoiser()), (), table_denoiser(), None,
                           CLEAN[None], 1), "states: got"),
])  # fmt: skip
def test_bad_input(call, name):
    with pytest.raises((ArgumentError, TypeError), match=name):
        call()
