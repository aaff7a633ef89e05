"""Texts under a masked language model, one masked token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.testing import assert_close, tiny_model
from jtok.text import Vocabulary

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    place = tmp_path_factory.mktemp("bert")
    (place / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    model = tiny_model(family="bert")
    return model.replace(vocabulary=Vocabulary.load(place))


def brute(model, ids, places, mask_id=4):
    total = 0.0
    run = jax.jit(lambda ids: model(ids).logits)
    for at in places:
        masked = jnp.asarray(ids).at[at].set(mask_id)[None]
        total += float(jax.nn.log_softmax(run(masked)[0, at])[ids[at]])
    return total


def test_every_token_is_masked_once(bert):
    texts = ["the cats sat", "cat"]
    found = models.pseudo_score(bert, texts, batch_size=3)
    ids = [2, 5, 6, 8, 7, 3]
    assert bert.vocabulary.encode(texts[0]).tolist() == ids
    assert found.num_tokens.tolist() == [4, 1]
    assert found.num_bytes.tolist() == [12, 3]
    assert_close(
        found.log_likelihood[0], brute(bert, ids, range(1, 5)), atol=1e-4, rtol=1e-5
    )
    one = models.pseudo_score(bert, texts, batch_size=1)
    assert_close(one.log_likelihood, found.log_likelihood, atol=1e-4, rtol=1e-5)
    by_ids = models.pseudo_score(bert, [ids])
    assert_close(by_ids.log_likelihood, found.log_likelihood[:1], atol=1e-4, rtol=1e-5)


def test_vectors_of_texts_do_not_change_with_padding(bert):
    texts = ["the cats sat", "cat"]
    found = models.encode(bert, texts, pool="mean")
    hidden = bert(jnp.asarray([[2, 6, 3]]), logits="none").hidden[0]
    assert_close(found[1], np.asarray(hidden).mean(0), atol=2e-5)
    first = models.encode(bert, texts, pool="first")
    assert_close(first[1], hidden[0], atol=2e-5)
    roberta = tiny_model(family="roberta")
    with pytest.raises(
        ArgumentError, match="text 0 of 65 tokens., expected at most 64"
    ):
        models.encode(roberta, [[5] * 65])
    long = models.encode(tiny_model(family="t5"), [[5] * 65, [7, 8]])
    assert long.shape == (2, 32)


def test_what_has_no_pseudo_likelihood(bert):
    with pytest.raises(ArgumentError, match="mask_id: got None"):
        models.pseudo_score(tiny_model(family="bert"), [[5]])
    with pytest.raises(ArgumentError, match="mask_id: got 96"):
        models.pseudo_score(bert, ["cat"], mask_id=96)
    with pytest.raises(ArgumentError, match="head=None.*masked-LM head"):
        models.pseudo_score(tiny_model(family="t5"), [[5]], mask_id=4)
    with pytest.raises(ArgumentTypeError, match="DecoderConfig, expected an encoder"):
        models.pseudo_score(tiny_model(), [[5]], mask_id=4)
    with pytest.raises(VocabMismatchError, match="ids in 97..97"):
        models.pseudo_score(bert, [[97]])
    with pytest.raises(ArgumentError, match="text 0 of 70 tokens"):
        models.pseudo_score(bert, [[5] * 70])
    empty = models.pseudo_score(bert, [[], [2, 3]])
    assert empty.num_tokens.tolist() == [0, 0]
    assert empty.log_likelihood.tolist() == [0.0, 0.0]
