"""Merged batches: the official traces, and what holds for any batch."""

import collections
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.testing import load_golden, tiny_vocabulary
from jtok.text import (
    byte_converted,
    byte_tokenizer,
    bytes_of_spelled,
    merge_batch,
    merge_rule,
    train_word_bpe,
    training_words,
)
from jtok.text._specs import byte_text
from jtok.text.dynamic_merging import BOUNDARIES
from tests.text.dynamic_base import (
    FILE,
    golden_base,
    golden_sequences,
    spelled,
    wordpiece,
)

BY_BOUNDARY = pytest.mark.parametrize("boundary", BOUNDARIES)
BUDGETS = (0, 1, 3, 10, 25, 1000)
TEXTS = st.lists(
    st.text(st.sampled_from("aab. -'\n\té1"), max_size=12), min_size=1, max_size=4
)
BYTES = byte_tokenizer(tiny_vocabulary(258))
unchecked_rule = inspect.unwrap(merge_rule)


def rule_for(boundary, **options):
    return merge_rule(golden_base(), boundary, max_pieces=None, **options)


@BY_BOUNDARY
def test_every_budget_gives_the_official_tokens(boundary):
    file, rule = load_golden(FILE), rule_for(boundary, compat="official")
    for budget in BUDGETS:
        name = f"{boundary}_m{budget}"
        if name not in file:
            continue
        out = merge_batch(rule, golden_sequences(), budget)
        sizes = file[f"{name}_len"].tolist()
        assert list(out.lengths) == sizes
        rows = zip(file[name].tolist(), sizes, strict=True)
        assert spelled(out) == [row[:size] for row, size in rows]


@BY_BOUNDARY
def test_pairs_merge_in_the_official_order(boundary):
    file, rule = load_golden(FILE), rule_for(boundary, compat="official")
    most = 25 if boundary == "sentence" else None
    out = merge_batch(rule, golden_sequences(), most)
    trace = [[byte_text(left), byte_text(right)] for left, right in out.trace]
    assert trace == file[f"{boundary}_merge_trace"].tolist()


@BY_BOUNDARY
@pytest.mark.parametrize("compat", [None, "official"])
def test_single_pairs(boundary, compat):
    file, rule = load_golden(FILE), rule_for(boundary, compat=compat)
    specials = set(file["special_tokens"].tolist())
    pairs = zip(
        file["pair_left"].tolist(), file["pair_right"].tolist(),
        file[f"pair_valid_{boundary}"].tolist(), strict=True,
    )  # fmt: skip
    of = bytes_of_spelled
    for left, right, valid in pairs:
        if {left, right} & specials:
            assert not valid
            raw = [x.encode() if x in specials else of(x) for x in (left, right)]
            assert not rule.may_touch_specials(*raw)
            continue
        assert rule.allows(bytes_of_spelled(left), bytes_of_spelled(right)) == bool(
            valid
        )


def test_lengths_over_budgets_of_the_batch_and_of_each_text():
    file, rule = load_golden(FILE), rule_for("pretokens")
    for per_example, name in ((False, "whole_batch"), (True, "per_example")):
        found = [
            sum(
                merge_batch(
                    rule, golden_sequences(), m, per_example=per_example
                ).lengths
            )
            for m in file["curve_merges"].tolist()
        ]
        assert found == file[f"curve_total_len_{name}"].tolist()


def test_the_base_cuts_texts_as_the_golden_does():
    file, base = load_golden(FILE), byte_tokenizer(golden_base())
    for text, row in zip(file["batch_text"].tolist(), golden_sequences(), strict=True):
        assert base.encode(text).tolist() == row[1:-1]


def test_punctuation_is_known_beyond_the_vocabulary():
    # ".." is no item of the base, so the official rule takes it for a word.
    official = rule_for("word_hyphen", compat="official")
    assert official.allows(b"t", b"..") and not rule_for("word_hyphen").allows(
        b"t", b".."
    )
    assert rule_for("word_hyphen").allows(b"of", b"-")


@pytest.mark.parametrize("boundary", ["word", "word_hyphen"])
def test_the_official_rule_protects_no_special_from_pieces_of_characters(boundary):
    """There the bytes are decoded before specials are looked for."""
    official, ours = rule_for(boundary, compat="official"), rule_for(boundary)
    for left, right in ((b"\x82\xac", b"</s>"), (b"<s>", b"\xe2\x82")):
        assert official.may_touch_specials(left, right)
        assert not ours.may_touch_specials(left, right)
    for left, right in ((b"<s>", b"a"), (b"<s>", b" \xe2"), (b"</s>", b"<s>")):
        assert not official.may_touch_specials(left, right)
    sentence = rule_for("sentence", compat="official")
    assert not sentence.may_touch_specials(b"<s>", b"\xe2\x82")
    base = byte_tokenizer(golden_base())
    ids = [golden_base().id_of("<s>"), *base.pieces(b"\xe2\x82")]
    assert merge_batch(official, [ids], None).merged[-1] == b"<s>\xe2\x82"
    assert merge_batch(ours, [ids], None).ids[0][0] == ids[0]


def test_words_end_where_unicode_has_a_space():
    """U+001C is none, whatever Python's `str.split` says; U+0085 is one."""
    rule = rule_for("word")
    assert rule.allows(b"a", b"\x1cb")
    assert not rule.allows(b"a", "\x85b".encode())
    assert not rule.allows(b"a", "\u2009b".encode())


def test_official_digits_are_those_of_the_spelling():
    """The byte 0xB2 is written as a superscript two, which Python calls a digit."""
    words = training_words(["\u0432!"] * 3, "|")
    base = byte_tokenizer(train_word_bpe(words, 259))
    token = "\u0432!".encode()  # 0xD0 0xB2, and the sign
    assert token in base.token_bytes
    official = merge_rule(base, "word_hyphen", max_pieces=None, compat="official")
    assert official.allows(b"t", token)
    assert not merge_rule(base, "word_hyphen", max_pieces=None).allows(b"t", token)


def naive(rows, valid, budget):
    """The algorithm as it is written: count, merge, count anew."""
    for _ in range(budget):
        counts = collections.Counter()
        for row in rows:
            counts.update(p for p in itertools.pairwise(row) if valid(*p))
        if not counts:
            break
        best = max(counts.values())
        seen = [p for row in rows for p in itertools.pairwise(row)]
        pair = next(p for p in seen if counts.get(p) == best)
        rows = [_replaced(row, pair) for row in rows]
    return rows


def _replaced(row, pair):
    out, place = [], 0
    while place < len(row):
        if tuple(row[place : place + 2]) == pair:
            out.append(b"".join(pair))
            place += 2
        else:
            out.append(row[place])
            place += 1
    return out


@given(texts=TEXTS, budget=st.integers(0, 8), boundary=st.sampled_from(BOUNDARIES))
def test_a_batch_merges_as_a_naive_recount_does(texts, budget, boundary):
    rule = merge_rule(BYTES, boundary, max_pieces=None)
    rows = [BYTES.encode(text) for text in texts]
    out = merge_batch(rule, rows, budget)
    spell = lambda i: BYTES.token_bytes[i] if i < out.size else out.merged[i - out.size]
    got = [[spell(int(i)) for i in row] for row in out.ids]
    given_rows = [[BYTES.token_bytes[i] for i in row] for row in rows]
    assert got == naive(given_rows, rule.allows, budget)
    # The text stays, and each token begins where its first piece does.
    for text, tokens, starts, row in zip(texts, got, out.starts, rows, strict=True):
        assert b"".join(tokens) == text.encode()
        sizes = np.cumsum([0, *(len(BYTES.token_bytes[i]) for i in row)])
        assert [sizes[s] for s in starts] == np.cumsum([0, *map(len, tokens)])[
            :-1
        ].tolist()
    assert len(out.merged) <= budget and len(out.trace) <= budget


def test_more_merges_never_lengthen_and_the_limit_is_the_boundary():
    rule = merge_rule(BYTES, "pretokens", max_pieces=None)
    texts = ["the cat sat, the hat", "a cat's hat -- 12 cats"]
    rows = [BYTES.encode(text) for text in texts]
    totals = [sum(merge_batch(rule, rows, m).lengths) for m in range(0, 60, 6)]
    assert totals == sorted(totals, reverse=True)
    out = merge_batch(rule, rows, None)
    assert list(out.lengths) == [BYTES.units(text) for text in texts]


def test_copies_merge_as_one_and_specials_never():
    rule = merge_rule(golden_base(), max_pieces=None)
    row = golden_sequences()[0]
    one, two = merge_batch(rule, [row], 9), merge_batch(rule, [row, row], 9)
    assert one.trace == two.trace and one.merged == two.merged
    specials = [golden_base().token_bytes[i] for i in golden_base().special_ids]
    for boundary in BOUNDARIES:
        pad = golden_base().id_of("<pad>")
        out = merge_batch(rule_for(boundary), [[pad, pad, *row, pad]], None)
        assert not any(name in token for token in out.merged for name in specials)
        assert out.ids[0][:2].tolist() == [pad, pad]


def test_no_token_has_more_pieces_than_are_read():
    rule = merge_rule(golden_base(), max_pieces=3)
    out = merge_batch(rule, golden_sequences(), None)
    sizes = [len(rule.tokenizer.pieces(token)) for token in out.merged]
    assert max(sizes) == 3
    free = merge_batch(rule_for("pretokens"), golden_sequences(), None)
    assert max(len(rule.tokenizer.pieces(token)) for token in free.merged) > 3


def test_words_stay_with_their_first_piece():
    rule = rule_for("pretokens")
    rows = golden_sequences()[:1]
    words = [list(range(len(rows[0])))]
    out = merge_batch(rule, rows, 10)
    assert out.word_ids(words)[0].tolist() == out.starts[0].tolist()
    with pytest.raises(ArgumentError, match="of_pieces: got 2, expected"):
        out.word_ids([*words, *words])
    with pytest.raises(ArgumentError, match="a word for every piece"):
        out.word_ids([[0]])


def test_pieces_of_a_character_find_together():
    rule = merge_rule(BYTES, "word_hyphen", max_pieces=None)
    assert rule.allows(b"\xc3", b"\xa9") and rule.allows(b"a", b"\xc3")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: unchecked_rule(golden_base(), "words"), ArgumentError, "boundary"),
        (lambda: merge_rule(golden_base(), max_pieces=0), ArgumentError, "max_pieces"),
        (lambda: unchecked_rule(golden_base(), compat="old"), ArgumentError, "compat"),
        (lambda: merge_rule(wordpiece()), ArgumentError, "byte_converted"),
        (
            lambda: merge_batch(rule_for("word"), [[0]], -1), ArgumentError, "merges",
        ),
        (lambda: merge_batch(rule_for("word"), [[999]], 1), ArgumentError, "sequences"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_something_else_than_a_tokenizer():
    with pytest.raises(ArgumentTypeError, match="tokenizer: got str"):
        unchecked_rule("tokenizer.json")
    assert merge_rule(byte_converted(wordpiece())).boundary == "pretokens"
