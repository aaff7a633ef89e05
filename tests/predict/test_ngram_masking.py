"""Masked n-grams on the host: goldens, the page's laws, overflow, bad input."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.predict import (
    GramLayout,
    choose_grams,
    cut_documents,
    gram_batches,
    lay_out_grams,
    mask_grams,
)
from jtok.text import Lexicon, match_grams

V = 24
LEXICON = Lexicon.of([(5, 6), (5, 6, 7), (8, 9), (10, 11, 12)], vocab_size=V)
LAYOUT = GramLayout(
    cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=24, fine=20, grams=16, rate=0.4
)
TEXTS = st.lists(st.integers(4, 13), max_size=10).map(lambda ids: np.array(ids, int))


def unmasked(made):
    """The tokens again, from one [MASK] a unit and the fine tokens."""
    spelled = {}
    for place, id_ in zip(made.fine_places[made.fine_mask], made.fine_ids):
        spelled.setdefault(int(place), []).append(int(id_))
    ids = made.left_ids[made.left_mask].tolist()
    return [x for at, id_ in enumerate(ids) for x in spelled.get(at, [id_])]


# Goldens ------------------------


def golden_example(golden, number):
    """An example of the golden, laid out anew, and what the golden holds of it."""
    file = golden("ernie_gram/comprehensive.npz")
    match = golden("ernie_gram/matching.npz")
    vocab, rows, cls_id, sep_id, mask_id, first, pad_id, left, fine = file["special"]
    lexicon = Lexicon(match["lex_tokens"], match["lex_len"], int(match["vocab_size"]))
    assert (lexicon.vocab_size, len(lexicon)) == (vocab, rows)
    layout = GramLayout(
        cls_id=int(cls_id), sep_id=int(sep_id), mask_id=int(mask_id),
        pad_id=int(pad_id), left=int(left), fine=int(fine), grams=int(left),
    )  # fmt: skip
    row = int(file["row"][number])
    text = match["seq"][row, : match["seq_len"][row]]
    tokens = np.concatenate([[cls_id], text, [sep_id]]).astype(np.int64)
    grams = match_grams(lexicon, tokens, specials=layout.specials)
    chosen = np.zeros(len(grams.ids), bool)
    chosen[1:-1] = file["selected"][number, : len(chosen) - 2].astype(bool)
    made = lay_out_grams(tokens, grams, chosen, layout)
    return layout, int(first), made


@pytest.mark.parametrize("number", range(18))
def test_inputs_and_targets_of_the_golden(golden, number):
    file = golden("ernie_gram/comprehensive.npz")
    layout, first, made = golden_example(golden, number)
    left, fine = layout.left, layout.fine
    wanted = file["ids"][number]
    left_ids = made.left_ids.copy()
    if file["mode"][number] == 1:  # sampled ids in place, here those of the golden
        given_ids = file["replacement"][number]
        left_ids[made.gram_places[made.gram_mask]] = given_ids[given_ids >= 0]
    np.testing.assert_array_equal(left_ids, wanted[:left])
    queries = np.where(made.fine_mask, first + made.fine_slots, layout.pad_id)
    np.testing.assert_array_equal(queries, wanted[left:])
    positions = np.where(made.left_mask, np.arange(left), 0)
    positions = np.concatenate(
        [positions, np.where(made.fine_mask, made.fine_places, 0)]
    )
    np.testing.assert_array_equal(positions, file["pos"][number])
    valid = np.concatenate([made.left_mask, made.fine_mask])
    np.testing.assert_array_equal(valid, file["valid"][number])
    coarse = np.full(left, -1)
    coarse[made.gram_places[made.gram_mask]] = made.gram_ids[made.gram_mask]
    np.testing.assert_array_equal(coarse, file["coarse_target"][number])
    spelled = np.where(made.fine_mask, made.fine_ids, -1)
    np.testing.assert_array_equal(spelled, file["fine_target"][number])
    allow = np.zeros((left + fine, left + fine), bool)
    allow[:, :left] = made.left_mask
    allow[left:, left:] = np.diag(made.fine_mask)
    allow &= valid[:, None]
    packed = file["allow"][number]
    want = np.unpackbits(packed, axis=-1, count=left + fine).astype(bool)
    np.testing.assert_array_equal(allow, want)


# Laws ------------------------


@given(TEXTS, TEXTS, st.integers(0, 2**31), st.booleans())
def test_what_is_masked_can_be_put_back(one, two, index, contiguous):
    texts = [one, two]
    made = mask_grams(
        texts, LEXICON, LAYOUT, seed=1, index=index, contiguous=contiguous
    )
    tokens = [0, *one.tolist(), 1, *two.tolist(), 1]
    assert unmasked(made) == tokens
    grams = match_grams(LEXICON, np.array(tokens), specials=LAYOUT.specials)
    assert grams.lengths.sum() == len(tokens)
    units = made.gram_ids[made.gram_mask].tolist()
    spelled = [x for unit in units for x in LEXICON.gram(unit)]
    assert made.fine_ids[made.fine_mask].tolist() == spelled
    lengths = [len(LEXICON.gram(unit)) for unit in units]
    owners = np.repeat(np.arange(len(units)), lengths)
    np.testing.assert_array_equal(made.fine_grams[made.fine_mask], owners)
    slots = [i for length in lengths for i in range(length)]
    np.testing.assert_array_equal(made.fine_slots[made.fine_mask], slots)
    masks = (made.left_ids == LAYOUT.mask_id).sum()
    assert masks == (sum(lengths) if contiguous else len(units))
    types = made.left_types[made.left_mask]
    assert types.sum() == (types == 1).sum() and np.all(np.diff(types) >= 0)


def test_the_length_of_a_masked_unit_is_not_given_away():
    made = []
    for middle in ([5, 6], [5, 6, 7], [4]):
        tokens = np.array([0, 13, *middle, 13, 1])
        grams = match_grams(LEXICON, tokens, specials=LAYOUT.specials)
        chosen = np.arange(len(grams.ids)) == 2
        made.append(lay_out_grams(tokens, grams, chosen, LAYOUT))
    for other in made[1:]:
        np.testing.assert_array_equal(other.left_ids, made[0].left_ids)
        np.testing.assert_array_equal(other.left_mask, made[0].left_mask)
        np.testing.assert_array_equal(other.gram_places, made[0].gram_places)
    assert [int(x.fine_mask.sum()) for x in made] == [2, 3, 1]


def test_examples_do_not_depend_on_their_order():
    texts = [np.arange(4, 12)] * 6
    make = lambda index: mask_grams(texts[index], LEXICON, LAYOUT, seed=7, index=index)
    forwards = [make(i) for i in range(6)]
    backwards = [make(i) for i in reversed(range(6))][::-1]
    jax.tree.map(np.testing.assert_array_equal, forwards, backwards)
    assert len({made.left_ids.tobytes() for made in forwards}) > 1
    other = mask_grams(texts[0], LEXICON, LAYOUT, seed=8, index=0)
    seeds = [mask_grams(texts[0], LEXICON, LAYOUT, seed=s, index=0) for s in range(8)]
    assert len({made.left_ids.tobytes() for made in [other, *seeds]}) > 1


def test_the_rate_counts_units_not_tokens():
    ids = np.tile([5, 6, 7, 4], 5)
    grams = match_grams(LEXICON, np.concatenate([[0], ids, [1]]), specials=(0, 1))
    rng = np.random.default_rng(0)
    counts = np.zeros(len(grams.ids))
    for _ in range(300):
        chosen = choose_grams(rng, grams, LAYOUT)
        assert chosen.sum() == 4  # 40 % of 10
        counts += chosen
    assert counts[0] == counts[-1] == 0
    assert np.all(np.abs(counts[1:-1] / 300 - 0.4) < 0.12)


def test_at_least_one_and_all_of_them():
    few = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=8, rate=0.01)
    made = mask_grams(np.array([4]), LEXICON, few, seed=0, index=0)
    assert made.left_ids[:3].tolist() == [0, 2, 1]
    every = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=8, rate=1.0)
    made = mask_grams(np.array([5, 6, 7, 4]), LEXICON, every, seed=0, index=0)
    assert made.left_ids[:4].tolist() == [0, 2, 2, 1]
    none = mask_grams(np.array([], int), LEXICON, few, seed=0, index=0)
    assert not none.gram_mask.any() and none.left_mask.sum() == 2


def test_what_does_not_fit_is_dropped_whole():
    tight = GramLayout(
        cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=24, fine=5, grams=3, rate=1.0
    )
    ids = np.tile([5, 6, 7], 6)
    sizes = set()
    for index in range(20):
        made = mask_grams(ids, LEXICON, tight, seed=0, index=index)
        units = made.gram_ids[made.gram_mask].tolist()
        assert units == [V + 1]  # a second one has no room for its third token
        assert unmasked(made) == [0, *ids.tolist(), 1]
        sizes.add(int(made.gram_places[0]))
    assert len(sizes) > 1
    singles = mask_grams(np.full(9, 4), LEXICON, tight, seed=0, index=0)
    assert singles.gram_mask.sum() == 3


# Data ------------------------


def test_batches_of_a_run():
    texts = cut_documents([np.arange(4, 14), np.zeros(0, int), np.full(50, 4)], LAYOUT)
    assert [len(text) for text in texts] == [10, 22, 22, 6]
    make = lambda **options: gram_batches(
        texts, LEXICON, LAYOUT, batch_size=4, seed=3, **options
    )
    whole, again = make(), make()
    for step in (5, 0):
        jax.tree.map(np.testing.assert_array_equal, whole[step], again[step])
        assert whole[step].left_ids.shape == (4, 24)
        parts = [make(process_index=i, process_count=2)[step] for i in range(2)]
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part.left_ids, whole[step].left_ids[i::2])
        spread = make(contiguous=True)[step]
        np.testing.assert_array_equal(spread.fine_ids, whole[step].fine_ids)
    epoch = [
        tuple(unmasked(jax.tree.map(lambda x, i=i: x[i], whole[0]))) for i in range(4)
    ]
    assert sorted(epoch) == sorted((0, *text.tolist(), 1) for text in texts)


# Bad input ------------------------


def test_bad_input_is_refused():
    ids = {"cls_id": 0, "sep_id": 1, "mask_id": 2, "pad_id": 3}
    for rate in (0.0, 1.1, -0.5, float("nan")):
        with pytest.raises(ArgumentError, match="rate: got"):
            GramLayout(**ids, rate=rate)
    for name in ("left", "fine", "grams"):
        with pytest.raises(ArgumentError, match=f"{name}: got 0"):
            GramLayout(**ids, **{name: 0})
    with pytest.raises(ArgumentError, match="four different ids"):
        GramLayout(**{**ids, "pad_id": 0})
    text = np.full(30, 4)
    with pytest.raises(ArgumentError, match="left: got 32, expected at most 24"):
        mask_grams(text, LEXICON, LAYOUT, seed=0, index=0)
    with pytest.raises(ValueError, match="fine: got 6, expected at most 5"):
        tight = GramLayout(**ids, fine=5)
        grams = match_grams(LEXICON, np.tile([5, 6, 7], 2))
        lay_out_grams(np.tile([5, 6, 7], 2), grams, np.ones(2, bool), tight)
    with pytest.raises(ArgumentError, match="texts: got 3, expected one or two"):
        mask_grams([text] * 3, LEXICON, LAYOUT, seed=0, index=0)
    with pytest.raises(ArgumentError, match=f"ids below {V}"):
        mask_grams(np.array([V]), LEXICON, LAYOUT, seed=0, index=0)
    with pytest.raises(ArgumentError, match=f"texts: example 0: .*ids below {V}"):
        gram_batches([np.array([V])], LEXICON, LAYOUT, batch_size=1, seed=0)[0]
    for options in ({"batch_size": 3, "process_count": 2}, {"batch_size": 0}):
        with pytest.raises(ArgumentError, match="batch_size: got"):
            gram_batches([text], LEXICON, LAYOUT, seed=0, **options)
    with pytest.raises(ArgumentError, match="texts: got 'none'"):
        gram_batches([], LEXICON, LAYOUT, batch_size=1, seed=0)
