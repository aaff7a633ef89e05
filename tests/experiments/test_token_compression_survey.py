"""The survey's experiment: what acts inside a decoder, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import survey_claims, survey_models, token_compression_survey
from jtok import models, nn

COUNT, WORDS = 9, 2


@pytest.fixture(scope="module")
def decoder():
    config = nn.DecoderConfig(
        vocab_size=11, width=16, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=8,
        mlp_width=16, max_positions=64,
    )  # fmt: skip
    return models.init(config, jax.random.key(0))


@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_methods_inside_a_decoder_remove_rows_physically(decoder, name):
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.normal(keys[0], (2, COUNT, 16))
    asked = jax.random.normal(keys[1], (2, WORDS, 16))
    x = jnp.concatenate([jax.random.normal(keys[2], (2, 1, 16)), tokens, asked], axis=1)
    at = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    act = lambda budget: survey_models.inside(
        decoder, x, at, tokens, asked, first=1, layer=2, name=name, budget=budget
    )
    # With all tokens nothing changes.
    logits, found = jax.jit(act, static_argnums=0)(COUNT)
    whole = decoder(x, positions=at, logits="last").logits[:, 0]
    np.testing.assert_allclose(logits, whole, atol=1e-4)
    # Positions stay: the rows that are left equal a masked pass from that layer on.
    logits, found = jax.jit(act, static_argnums=0)(4)
    assert found.valid.shape == (2, 4) and np.isfinite(np.asarray(logits)).all()
    assert not np.allclose(logits, whole, atol=1e-4)


def test_flops_count_what_enters_each_layer():
    lm = nn.DecoderConfig(
        vocab_size=11, width=16, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_width=32, max_positions=64,
    )  # fmt: skip
    results = survey_claims.Results(2, [], lm, [], {}, 20)
    layer = lambda n: 2 * n * (2 * 16**2 + 2 * 16 * 8 + 3 * 16 * 32) + 4 * n * n * 16
    assert survey_claims._cost(results, 5).flops == 4 * layer(8)
    inside = survey_claims._cost(results, 5, inside=True)
    assert inside.flops == 2 * layer(23) + 2 * layer(8)


def test_every_method_for_images_is_compared_or_listed():
    named = {case.method.name for case in token_compression_survey.cases()}
    free = {
        name
        for name, method in token_compression_survey.methods(modality="image").items()
        if not method.trained
    }
    assert named == free
