"""Any tokenizer as one over bytes, and what networks read of a token."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.testing import data, load_golden, tiny_vocabulary
from jtok.text import (
    LongestPrefix,
    Vocabulary,
    byte_converted,
    byte_tokenizer,
    bytes_of_spelled,
    grow_vocabulary,
    surface_forms,
)
from tests.text.dynamic_base import FILE, golden_base, golden_ids, unigram, wordpiece

KINDS = {
    "byte_bpe": tiny_vocabulary(),
    "unigram": unigram(),
    "wordpiece": wordpiece(),
}
CONVERTED = {name: byte_converted(kind) for name, kind in KINDS.items()}


@given(text=st.text(max_size=20), name=st.sampled_from(sorted(CONVERTED)))
def test_pieces_spell_any_text_of_any_kind(text, name):
    base = CONVERTED[name]
    expected = text if not text or text.startswith(" ") else f" {text}"
    assert base.decode_bytes(base.encode(text)) == expected.encode()


@given(token=st.binary(max_size=8), name=st.sampled_from(sorted(CONVERTED)))
def test_pieces_spell_any_bytes(token, name):
    assert CONVERTED[name].decode_bytes(CONVERTED[name].pieces(token)) == token


def test_words_begin_with_their_space():
    pieces = CONVERTED["wordpiece"]
    assert [pieces.token_bytes[i] for i in (2, 3, 5)] == [b" the", b"m", b" hat"]
    assert pieces.pieces(b" thems") == [2, 3, 6]  # from " the"
    assert CONVERTED["unigram"].pieces(b" the") == [2]
    assert CONVERTED["unigram"].pieces("é".encode()) == [8]
    assert pieces.encode("hat").tolist() == [5]


def test_missing_bytes_come_behind_the_vocabulary():
    base = CONVERTED["unigram"]
    assert base.fallback[0] == base.vocabulary.size
    assert base.size == base.vocabulary.size + len(base.fallback)
    assert base.pieces(b"z") == [base.fallback[ord("z")]]
    assert not CONVERTED["byte_bpe"].fallback


def test_marks_stay_with_their_letters():
    split = CONVERTED["unigram"].split
    assert split("a\u0301b c") == ["a\u0301b", " c"]
    # A mark behind a sign stays there, as emoji are written; alone it is a letter.
    assert split("\u2764\ufe0f!\u0301a \u0301b") == [
        "\u2764\ufe0f!\u0301",
        "a",
        " \u0301b",
    ]


def test_a_byte_level_vocabulary_keeps_its_own_rule():
    vocabulary = tiny_vocabulary()
    base = byte_tokenizer(vocabulary)
    for text in ("the cat, the hat", "  x\n\ny", "ébc 12"):
        assert base.encode(text).tolist() == vocabulary.encode(text).tolist()


def test_byte_tokens_of_sentencepiece_are_those_bytes():
    base = byte_converted(Vocabulary.load(data("tokenizers/llama2.model")))
    assert base.pieces(b"\xff") == [258] and not base.fallback
    text = "Hello, naïve wörld: 日本語 🙂"
    assert base.decode_bytes(base.encode(text)) == f" {text}".encode()


@pytest.mark.parametrize("maxlen", [4, 7])
def test_surface_forms_of_the_golden(maxlen):
    file, base = load_golden(FILE), byte_tokenizer(golden_base())
    tokens = [golden_ids(token) for token in file["surface_tokens"].tolist()]
    found = surface_forms(base, tokens, maxlen=maxlen, pad_id=int(file["pad_id"]))
    assert (found.ids == file[f"surface_forms_maxlen{maxlen}"]).all()
    assert found.truncated.sum() == file[f"surface_truncated_maxlen{maxlen}"]


def test_long_tokens_are_flagged_and_share_a_form():
    base = byte_tokenizer(tiny_vocabulary(257))
    found = surface_forms(base, [b"abcd", b"abce", b"ab"], maxlen=3, pad_id=0)
    assert found.truncated.tolist() == [True, True, False]
    assert (found.ids[0] == found.ids[1]).all() and found.lengths.tolist() == [4, 4, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"maxlen": 0, "pad_id": 0}, "maxlen: got 0"),
        ({"pad_id": None}, "pad_id: got None"),
        ({"pad_id": 9999}, "pad_id: got 9999"),
    ],
)
def test_bad_forms(options, message):
    base = byte_tokenizer(tiny_vocabulary(257))
    with pytest.raises(ArgumentError, match=message):
        inspect.unwrap(surface_forms)(base, [b"a"], **options)


def test_bad_tokens():
    base = byte_tokenizer(tiny_vocabulary(257))
    with pytest.raises(ArgumentError, match="bytes, at least one"):
        surface_forms(base, [b""], pad_id=0)
    with pytest.raises(ArgumentError, match="the 256 characters"):
        bytes_of_spelled("日")
    with pytest.raises(ArgumentError, match="ids 0 <= id <"):
        base.decode_bytes([257])
    clip = Vocabulary.load(data("tokenizers/clip_bpe_simple_vocab_16e6.txt.gz"))
    with pytest.raises(ArgumentError, match="where words end"):
        byte_converted(clip)


def test_the_longest_prefix_is_taken_greedily():
    search = LongestPrefix([b"", b"a", b"ab", b"abc", b"c", b"d"])
    assert search.match(b"abcd") == [3, 5]
    assert search.match(b"abd") == [2, 5]  # though "abc" begins alike
    with pytest.raises(ArgumentError, match="no token begins like"):
        search.match(b"x")
    with pytest.raises(ArgumentError, match="tokens: got"):
        LongestPrefix([b""])
    split = LongestPrefix([b"a", b" ", b" a", b"aa"], CONVERTED["unigram"].split)
    assert split.encode("aa a").tolist() == [3, 2]


def test_growing_goes_on_with_the_training_of_bpe():
    texts = ["the cat sat on the mat and the hat", "that cat, that hat"] * 3
    small, large = (Vocabulary.train_bpe(texts, size) for size in (262, 275))
    grown = grow_vocabulary(small, texts, 275)
    assert grown.token_bytes == large.token_bytes and grown.merges == large.merges
    assert grown.encode(texts[0]).tolist() == large.encode(texts[0]).tolist()
    with pytest.raises(ArgumentError, match="size: got 10"):
        grow_vocabulary(small, texts, 10)
    with pytest.raises((ArgumentError, TypeError)):
        grow_vocabulary(small, "one", 300)
