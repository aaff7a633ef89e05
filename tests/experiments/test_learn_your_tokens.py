"""Which words are scored, from what: against models that see one unit or word back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import learn_your_tokens, word_models
from jtok import embed
from jtok.testing import assert_close

CONFIG = dataclasses.replace(
    learn_your_tokens.PRESETS["smoke"], words=8, units=4, scored=50
)
WORDS = ("some words are longer than others and are cut to pieces of four " * 6).split()


@pytest.fixture
def data(monkeypatch):
    texts = [" ".join(WORDS)], [" ".join(WORDS[3:70])]
    monkeypatch.setattr(word_models, "_texts", lambda config: (*texts, "0"))
    return word_models.read_data(CONFIG)


def short_sighted(params):
    """The main layers add nothing: a state knows its own unit or word alone."""
    layers = params["main"]["layers"]
    none = lambda name: jax.tree.map(jnp.zeros_like, layers[name])
    layers = {**layers, "proj": none("proj"), "down": none("down")}
    return {**params, "main": {**params["main"], "layers": layers}}


def model_of(data, name, init):
    config = word_models._model(CONFIG, data, name)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    return embed.WordModel(params=short_sighted(params), config=config)


def whole_words(data):
    """Those that stand whole in a scored half, first and last ones left out."""
    pieces = data.held_out.pieces
    end = (len(pieces.ids) - CONFIG.words) // 4 * 4 + CONFIG.words
    inner = np.arange(len(data.held_out.words))
    last = pieces.word[min(end, len(pieces.ids) - 1)]
    return (inner > pieces.word[4]) & (inner < last)


@pytest.mark.parametrize("context", [None, 6])
def test_units_are_scored_once_each(data, context):
    model = model_of(data, "units char", embed.init_units)
    scored = word_models.score_words(CONFIG, data, model, "units char", context)
    ids, owner = data.held_out.streams["char"]
    pairs = np.stack([ids[:-1], ids[1:]], axis=1)
    found = embed.unit_scores(model.params, model.config, jnp.asarray(pairs))
    nats, right = np.zeros(owner[-1] + 1), np.ones(owner[-1] + 1, bool)
    np.add.at(nats, owner[1:], np.asarray(found.nats)[:, 0])
    np.logical_and.at(right, owner[1:], np.asarray(found.right)[:, 0])
    whole = whole_words(data)
    assert whole.sum() > 40
    np.testing.assert_array_equal(np.isfinite(scored.nats), whole)
    assert_close(scored.nats[whole].astype(np.float32), nats[whole].astype(np.float32))
    np.testing.assert_array_equal(scored.right, right & whole)


@pytest.mark.medium
def test_words_are_scored_with_all_their_pieces(data):
    model = model_of(data, "pooled 1", embed.init_words)
    scored = word_models.score_words(CONFIG, data, model, "pooled 1", None)
    ids, lengths, owner = data.held_out.pieces
    assert len(ids) > owner[-1] + 1  # some words have several pieces
    at = np.arange(len(ids) - 1)[:, None] + np.arange(2)[None]
    found = embed.word_scores(
        model.params, model.config, jnp.asarray(ids[at]), jnp.asarray(lengths[at])
    )
    nats = np.zeros(owner[-1] + 1)
    np.add.at(nats, owner[1:], np.asarray(found.word_nats)[:, 0])
    whole = whole_words(data)
    np.testing.assert_array_equal(np.isfinite(scored.nats), whole)
    assert_close(scored.nats[whole].astype(np.float32), nats[whole].astype(np.float32))
