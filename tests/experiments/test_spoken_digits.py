"""Spoken digits: the parts are the whole, and every arm leaves what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import spoken_claims, spoken_librispeech, spoken_models
from experiments.spoken_models import ARMS
from jtok import compress, models

WIDTH, LONGEST, SHARE = 8, 16, 1 / 4
CONFIG = spoken_models.encoder(WIDTH, 2, 2, LONGEST)


@pytest.fixture(scope="module")
def params():
    return spoken_models.new_model(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def heard(params):
    frames = jax.random.normal(jax.random.key(1), (3, LONGEST, 64))
    length = jnp.array([8, 16, 12])
    real = jnp.arange(LONGEST)[None] < length[:, None]
    return frames, length, real


def test_first_block_and_the_others_are_the_whole_encoder(params, heard):
    frames, _, real = heard
    seen = spoken_models.front(CONFIG, params, frames, real)
    parts = spoken_models.answers(CONFIG, params, seen.x, jnp.ones(real.shape), real)
    whole = spoken_models._logits(params, CONFIG, frames, real)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.medium
def test_parts_do_what_the_hook_of_the_layers_does(params, heard):
    frames = heard[0]
    real = jnp.ones(frames.shape[:2], bool)
    seen = spoken_models.front(CONFIG, params, frames, real)
    keys = jax.random.split(jax.random.key(0), len(frames))
    arm = next(arm for arm in ARMS if arm.method == "adjacent")
    out = spoken_models.choose(arm, seen, 4, keys)
    args = (CONFIG, params, out.tokens, out.size, out.valid, True)
    merged = compress.schedule(
        compress.adjacent, counts=(4,), layers=(0,), where="layer", proportional=True
    )
    model = models.init(CONFIG, jax.random.key(0)).replace(params=params["encoder"])
    hook = model(
        spoken_models._heard(params, frames), mask=real, compress=merged, logits="none"
    )
    np.testing.assert_array_equal(hook.plan.assign, out.assign)
    read = spoken_models._read_off(params, hook.hidden, hook.plan.size, hook.plan.valid)
    np.testing.assert_allclose(spoken_models.answers(*args), read, atol=1e-5)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.in_windows], ids=str)
def test_padding_changes_nothing(arm, params, heard):
    frames, length, real = heard
    seen = spoken_models.front(CONFIG, params, frames, real)
    new = spoken_models.connector(CONFIG, arm, SHARE, 3, jax.random.key(2))
    run = lambda x, n: spoken_models.padded(CONFIG, arm, SHARE, 3, new, x, n)
    rows, size, valid = run(seen.x, length)
    left = [3, 3, 3] if arm.method == "perceiver" else [2, 4, 3]
    assert jnp.sum(valid, axis=1).tolist() == left
    assert size.shape == valid.shape
    alone, _, there = run(seen.x[:1, :8], length[:1])
    assert bool(there.all())
    np.testing.assert_allclose(rows[:1, : left[0]], alone, atol=1e-5)


def test_claims_say_what_was_left_out():
    row = {"accuracy": 80.0, "rows": 4.0, "odd": 0.0, "MFLOPs": 1.0, "choosing": 0.0}
    arms = [arm for arm in ARMS if arm.label in ("random", "adjacent merging")]
    low = row | {"accuracy": 70.0, "ms": 1.0}
    found = {(arms[0].label, 1 / 8): [row | {"ms": 1.0}], (arms[1].label, 1 / 8): [low]}
    results = spoken_claims.Results(arms, (1 / 8,), [row | {"ms": 2.0}], found, ("a",))
    made = {}

    class Report:
        def claim(self, name, what, **fields):
            made[name] = fields | {"what": what}

    spoken_claims.claim_all(results, Report())
    assert made["random"]["measured"] == 10.0
    assert made["neighbours"]["measured"] == 0.0
    assert made["stacking"]["what"].startswith("not measured")
    assert made["faster"]["measured"] == 0.5


def test_words_and_spread_rows():
    errors = spoken_librispeech.word_errors
    assert errors(["a", "b", "c"], ["a", "c"]) == 1
    assert errors([], ["a", "b"]) == 2
    assert errors(["a", "b"], ["b", "a"]) == 2
    x = jnp.arange(6.0).reshape(1, 6, 1)
    plan = compress.compress(x, "uniform", budget=3).plan
    spread = spoken_librispeech.spread(plan, plan.prune(x))
    assert spread[0, :, 0].tolist() == [0, 0, 2, 2, 4, 4]
