"""Merged batches as vectors: what a frozen model reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.embed import (
    HypernetworkConfig,
    PieceMixerConfig,
    RowTable,
    dynamic_inputs,
    init_hypernetwork,
    init_residual_network,
    last_piece_rows,
    network_rows,
    piece_mean_rows,
    predict_rows,
    residual_rows,
)
from jtok.errors import ArgumentError
from jtok.testing import tiny_model, tiny_vocabulary
from jtok.text import merge_batch, merge_rule, surface_forms

VOCABULARY = tiny_vocabulary(258)
RULE = merge_rule(VOCABULARY, max_pieces=7)
BASE = RULE.tokenizer
MODEL = tiny_model(vocab_size=258)
SOURCE = MODEL.params["embed"]["tokens"]
TEXTS = ["the cat sat on the mat", "a hat, the cat"]
ROWS = [[0, *BASE.encode(text).tolist()] for text in TEXTS]  # 0 is special
MEAN = piece_mean_rows(SOURCE, pad_id=0)
run = jax.jit(lambda x: MODEL(x.vectors, positions=x.positions, mask=x.mask).logits)


def inputs(merges, make=MEAN, **options):
    batch = merge_batch(RULE, ROWS, merges)
    return dynamic_inputs(batch, BASE, SOURCE, make, pad_id=0, **options)


def test_without_merges_the_model_says_what_it_always_does():
    made = inputs(0)
    ids = np.maximum(made.ids, 0)
    plain = MODEL(jnp.asarray(ids), mask=made.mask, positions=made.positions).logits
    through = MODEL(made.vectors, mask=made.mask, positions=made.positions).logits
    assert (np.asarray(plain)[made.mask] == np.asarray(through)[made.mask]).all()


def test_left_and_right_agree_on_real_tokens():
    left, right = inputs(5, side="left"), inputs(5)
    assert left.ids[1, 0] == -1 and left.ids[1, -1] >= 0 and right.ids[1, -1] == -1
    one, two = (np.asarray(run(x._replace(starts=None, ids=None, truncated=None)))
                [x.mask] for x in (left, right))  # fmt: skip
    np.testing.assert_allclose(one, two, atol=2e-5)
    for made in (left, right):
        assert made.positions[1][np.asarray(made.mask[1])].tolist() == list(
            range(int(made.mask[1].sum()))
        )


def test_few_shapes_are_compiled():
    shapes = {inputs(m).vectors.shape for m in (0, 1, 2, 8, 9)}
    assert shapes == {(2, 32, 32), (2, 16, 32)}
    seen = []

    def make(forms):
        seen.append(forms.shape)
        return MEAN(forms)

    for merges in (1, 3, 6):
        inputs(merges, make)
    assert set(seen) == {(64, 7)}


def test_mean_and_last_of_pieces():
    forms = np.array([[5, 0, 0], [5, 9, 0], [3, 4, 5], [0, 0, 0]], np.int32)
    mean, last = MEAN(forms), last_piece_rows(SOURCE, pad_id=0)(forms)
    assert (mean[0] == SOURCE[5]).all()  # one piece is that row
    np.testing.assert_allclose(mean[1], (SOURCE[5] + SOURCE[9]) / 2, atol=1e-6)
    np.testing.assert_allclose(mean[2], SOURCE[3:6].mean(0), atol=1e-6)
    assert (last[jnp.array([0, 1, 2])] == SOURCE[jnp.array([5, 9, 5])]).all()
    fallback = np.array([[5, 999, 0], [999, 0, 0]], np.int32)
    np.testing.assert_allclose(MEAN(fallback), [SOURCE[5], np.zeros(32)], atol=1e-6)


def test_merged_tokens_get_made_rows_and_others_their_own():
    batch = merge_batch(RULE, ROWS, 4)
    made = dynamic_inputs(batch, BASE, SOURCE, MEAN, pad_id=0)
    forms = surface_forms(BASE, list(batch.merged), maxlen=7, pad_id=0).ids
    rows = np.asarray(MEAN(forms))
    for row in range(2):
        for place, id_ in enumerate(made.ids[row]):
            got = np.asarray(made.vectors[row, place])
            if id_ < 0:
                assert (got == 0).all()
            elif id_ < 258:
                assert (got == np.asarray(SOURCE[id_])).all()
            else:
                np.testing.assert_allclose(got, rows[id_ - 258], atol=1e-6)


def test_networks_predict_all_but_special_tokens():
    config = HypernetworkConfig(
        row_width=32, source_size=258, pad_id=0, hidden=16, intermediate=16, heads=2,
        layers=1,
    )  # fmt: skip
    network = init_hypernetwork(config, jax.random.key(0))
    made = inputs(2, network_rows(network, SOURCE), originals="specials")
    assert (made.vectors[0, 0] == SOURCE[0]).all()
    second = int(made.ids[0, 1])
    token = BASE.token_bytes[second] if second < 258 else None
    token = token or merge_batch(RULE, ROWS, 2).merged[second - 258]
    forms = surface_forms(BASE, [token], maxlen=7, pad_id=0).ids
    expected = predict_rows(network, SOURCE, forms).input[0]
    np.testing.assert_allclose(made.vectors[0, 1], expected, atol=1e-5)


def test_corrected_rows_start_as_the_mean():
    config = PieceMixerConfig(row_width=32, hidden=32, intermediate=16, pooling="mean")
    network = init_residual_network(config, jax.random.key(0))
    make = residual_rows(network, SOURCE, pad_id=0)
    np.testing.assert_allclose(inputs(4, make).vectors, inputs(4).vectors, atol=1e-5)


def test_a_table_gives_the_same_bits_and_makes_rows_once():
    counts = []

    def make(forms):
        counts.append(int((forms[:, 0] != 0).sum()))
        return MEAN(forms)

    table = RowTable(64, 32)
    for _ in range(2):
        cached = inputs(6, make, table=table)
        assert (cached.vectors == inputs(6).vectors).all()
    assert len(counts) == 1
    with pytest.raises(ArgumentError, match="different ones"):
        inputs(6, make, table=RowTable(1, 32))


def test_cut_off_tokens_are_counted():
    batch = merge_batch(merge_rule(VOCABULARY, max_pieces=None), ROWS, None)
    made = dynamic_inputs(batch, BASE, SOURCE, MEAN, pad_id=0, maxlen=3)
    assert made.truncated == sum(len(BASE.pieces(t)) > 3 for t in batch.merged) > 0


@pytest.mark.parametrize("name", ["length_multiple", "row_multiple", "maxlen"])
def test_bad_numbers(name):
    with pytest.raises(ArgumentError, match=f"{name}: got 0"):
        inputs(2, **{name: 0})
