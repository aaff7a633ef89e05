"""What the experiment on n-grams compares: equal knowledge, planted truth."""

import jax.numpy as jnp
import numpy as np

from experiments import ernie_gram
from experiments.collocations import planted_text, words_of
from jtok.testing import assert_close, tiny_grams


def test_words_and_marks():
    assert words_of("It's 3.5, no?") == ["it", "'", "s", "3", ".", "5", ",", "no", "?"]


def test_planted_text_holds_what_it_says():
    docs, pairs, triples = planted_text(4000, 1)
    assert len(pairs) == 40 and len(triples) == 10
    tokens = np.concatenate(docs)
    assert 3000 < len(tokens) < 5000 and tokens.max() < 200
    seen = set(zip(tokens.tolist(), tokens[1:].tolist()))
    assert len(pairs & seen) > 30


def test_units_are_compared_among_those_of_their_length():
    _, batch = tiny_grams()
    lexicon = (jnp.zeros((4, 3), int), jnp.array([2, 3, 2, 3]))
    shape = batch.gram_ids.shape
    scores = jnp.broadcast_to(jnp.array([1.0, 50.0, 2.0, 60.0]), (*shape, 4))
    batch = batch._replace(gram_ids=np.full(shape, 96 + 2))
    found = ernie_gram._given(scores, batch, lexicon, 96)
    assert_close(found, np.full(shape, np.log1p(np.exp(-1.0))))
