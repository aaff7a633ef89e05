"""The word-pooled model against the official code, and its corrected form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.embed import word_pooled as parts
from jtok.testing import assert_close
from tests.embed.word_models import golden_model

PREFIXES = (1, 2, 4)
TOLERANCE = 2e-5  # the goldens' own: another order of summation
close = functools.partial(assert_close, rtol=TOLERANCE, atol=TOLERANCE)
LOGITS = jax.jit(embed.word_logits, static_argnums=1)
VECTORS = jax.jit(embed.word_vectors, static_argnums=1)
SCORES = jax.jit(embed.word_scores, static_argnums=1)
STATES = jax.jit(parts.word_states, static_argnums=(1, 3))


def words_of(file):
    return jnp.asarray(file["x"]), jnp.asarray(file["x_len"])


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_official_arrays(golden, prefixes):
    """Every intermediate of the official code, quirks included."""
    file = golden(f"learn_your_tokens/official_p{prefixes}.npz")
    params, config = golden_model(prefixes, "official")
    units, lengths = words_of(file)
    before = np.array(lengths)
    flat = lambda x: np.asarray(x).reshape(-1, *x.shape[2:])
    close(flat(parts.embed_words(params, config, units)), file["enc_in"])
    allow = parts.encoder_mask(config, lengths, config.row)
    np.testing.assert_array_equal(~flat(allow), file["enc_blocked"])
    vectors = VECTORS(params, config, units, lengths)
    close(flat(vectors), file["enc_out_cls"])
    close(parts.main_input(params, vectors), file["main_in"])
    states = STATES(params, config, vectors, None)
    close(np.asarray(states).reshape(file["net"].shape), file["net"])
    canvas = parts.spelling_input(params, config, states[:, :-1], units[:, 1:])
    close(flat(canvas), file["dec_in"])
    close(LOGITS(params, config, units, lengths), file["logits"])
    # The code adds p to the caller's lengths; here they stay.
    np.testing.assert_array_equal(before, lengths)
    np.testing.assert_array_equal(before + prefixes, file["len_after_call"])


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_the_official_loss_counts_padding(golden, prefixes):
    file = golden(f"learn_your_tokens/official_p{prefixes}.npz")
    params, config = golden_model(prefixes, "official")
    units, lengths = words_of(file)
    np.testing.assert_array_equal(file["y"][:, :-1], units[:, 1:])
    np.testing.assert_array_equal(file["y_len"][:, :-1], lengths[:, 1:])
    loss = jax.jit(embed.word_loss(dataclasses.replace(config, dropout=0.0)))
    batch = {"units": units, "lengths": lengths}
    value, (metrics, _) = loss(params, None, None, batch, jax.random.key(0))
    close(value, file["loss"])
    assert int(metrics["tokens"]) == file["logits"][..., 0].size


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_corrected_arrays(golden, prefixes):
    """The default: prefixes of their own, no padding seen, positions added once."""
    official = golden(f"learn_your_tokens/official_p{prefixes}.npz")
    file = golden(f"learn_your_tokens/clean_p{prefixes}.npz")
    params, config = golden_model(prefixes, None)
    units, lengths = words_of(official)
    allow = parts.encoder_mask(config, lengths, config.row)
    allow = np.broadcast_to(allow, (*allow.shape[:2], config.row, config.row))
    blocked = ~allow.reshape(file["enc_blocked"].shape)
    np.testing.assert_array_equal(blocked, file["enc_blocked"])
    vectors = VECTORS(params, config, units, lengths)
    close(vectors.reshape(file["enc_out_cls"].shape), file["enc_out_cls"])
    states = STATES(params, config, vectors, None)
    close(np.asarray(states).reshape(file["net"].shape), file["net"])
    logits = LOGITS(params, config, units, lengths)
    close(logits, file["logits"])
    nats = -jax.nn.log_softmax(logits)
    nats = jnp.take_along_axis(nats, units[:, 1:, :, None], axis=-1)[..., 0]
    close(nats, file["nll_char"])
    scores = SCORES(params, config, units, lengths)
    np.testing.assert_array_equal(scores.counted, file["char_mask"])
    close(scores.unit_nats, np.where(file["char_mask"], file["nll_char"], 0))
    close(scores.word_nats, file["nll_word"])
    np.testing.assert_array_equal(scores.right, file["word_correct_teacher_forced"])


def test_the_unit_level_baseline(golden):
    """No positions: the code's table is there and never read."""
    file = golden("learn_your_tokens/official_base.npz")
    _, vocab, width, length, layers, heads = (int(n) for n in file["cfg"])
    config = embed.UnitConfig(
        vocab_size=vocab, width=width, length=length, layers=layers, heads=heads,
        positions=False,
    )  # fmt: skip
    tensors = {n[2:]: file[n] for n in file if n.startswith("w_")}
    params = embed.words_from_tensors(tensors, config)
    units = jnp.asarray(file["x"])
    run = jax.jit(embed.unit_logits, static_argnums=1)
    close(run(params, config, units), file["logits"])
    with_positions = embed.UnitConfig(
        vocab_size=vocab, width=width, length=length, layers=layers, heads=heads
    )
    moved = embed.words_from_tensors(tensors, with_positions)
    moved_logits = run(moved, with_positions, units)
    assert float(jnp.abs(moved_logits - file["logits"]).max()) > 1e-2
