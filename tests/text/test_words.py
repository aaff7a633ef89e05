"""Words of text and of ids, and the units that spell them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    VocabMismatchError,
)
from jtok.text import (
    Alphabet,
    Vocabulary,
    byte_alphabet,
    char_alphabet,
    clean_words,
    frequency_groups,
    join_words,
    same_word,
    split_words,
    subword_alphabet,
    units,
    word_ids,
    words_of,
)
from tests.text import kinds

SPACED = st.text(st.sampled_from(["a", "b", " ", "\n", "\t", "\u00a0", "é", "."]))


def strings(file, name):
    rows = zip(file[name], file[f"{name}_len"], strict=True)
    return [bytes(row[:size]).decode() for row, size in rows]


# Words of text ------------------------


@given(st.one_of(SPACED, st.text()))
def test_joining_gives_the_text_back(text):
    words = split_words(text)
    assert join_words(words) == text
    assert all(words)
    assert all(w.isspace() or not any(c.isspace() for c in w) for w in words)


def test_one_space_is_no_word():
    assert split_words("a b\u00a0c\n d ") == ["a", "b", "\u00a0", "c", "\n ", "d", " "]
    assert split_words(" a") == [" ", "a"] and split_words("") == []


def test_cleaning_is_the_official_one(golden):
    file = golden("learn_your_tokens/metric.npz")
    for raw, clean in zip(strings(file, "raw"), strings(file, "clean"), strict=True):
        assert clean_words(raw) == clean
        assert split_words(raw, clean="etok") == clean.split()


def test_scores_of_words_are_the_official_ones(golden):
    file = golden("learn_your_tokens/metric.npz")
    pairs = zip(strings(file, "pred"), strings(file, "gold"), strict=True)
    right = [same_word(predicted, word) for predicted, word in pairs]
    np.testing.assert_array_equal(right, file["correct"] == 1)
    (text,), words = strings(file, "text"), strings(file, "word")
    groups = frequency_groups(text, words)
    names = np.array(["low", "mid", "high"])
    assert groups == names[file["bucket"]].tolist()
    assert max(file["count"]) == 46 and 45 in file["count"]


def test_words_refuse():
    with pytest.raises(ArgumentError, match="clean: got 'all'"):
        split_words.__wrapped__("a", clean="all")
    with pytest.raises(ArgumentError, match=r"ids: got the id 300"):
        word_ids(kinds.byte_bpe(), [300])


# Words of ids ------------------------


def grouped(vocabulary, ids):
    """The surface bytes of every word, and the special tokens between them."""
    found = word_ids(vocabulary, ids)
    words = {}
    for id_, word in zip(ids, found.tolist(), strict=True):
        if word >= 0:
            words[word] = words.get(word, b"") + vocabulary.token_bytes[id_]
    assert list(words) == list(range(len(words)))
    return list(words.values())


@pytest.mark.parametrize("make", [kinds.byte_bpe, kinds.metaspace_bpe])
def test_whitespace_belongs_to_the_word_behind_it(make):
    vocabulary = make()
    for text in ("the cat's hat", "a  b\n\nthe", " the cat ", "x=1;\ny"):
        ids = vocabulary.encode(text, specials=False)
        words = grouped(vocabulary, ids)
        whole = vocabulary.decode_bytes(ids)
        assert b"".join(words) == whole
        cut = [w.encode() for w in split_bytes(whole.decode())]
        assert words == cut


def split_bytes(text):
    """Cut where whitespace follows something else."""
    at = [i for i in range(1, len(text)) if text[i].isspace() > text[i - 1].isspace()]
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)])]


def test_a_token_may_hold_the_end_of_a_word():
    vocabulary = Vocabulary.train_bpe(["a"], 257)
    tokens = [vocabulary.id_of(b) for b in (b"a", b";", b"\n", b"b")]
    assert word_ids(vocabulary, tokens).tolist() == [0, 0, 1, 1]


def test_special_tokens_stand_between_words():
    vocabulary = kinds.byte_bpe()
    end = vocabulary.special["eos"]
    cat = vocabulary.encode("cat").tolist()
    found = word_ids(vocabulary, [end, *cat, end, end, *cat])
    n = len(cat)
    assert found.tolist() == [-1, *[0] * n, -1, -1, *[1] * n]
    assert word_ids(vocabulary, []).tolist() == []


def test_wordpiece_goes_by_its_marks():
    vocabulary = kinds.wordpiece()
    ids = vocabulary.encode("the cats cat", specials=False)
    assert word_ids(vocabulary, ids).tolist() == [0, 1, 1, 2]


def test_clip_goes_by_its_marks_of_an_end(data):
    file = data("tokenizers/clip_bpe_simple_vocab_16e6.txt.gz")
    vocabulary = Vocabulary.load(file)
    ids = vocabulary.encode("the cats, the hat")
    words = grouped(vocabulary, ids.tolist())
    stripped = [word.decode().strip() for word in words]
    assert stripped == ["the", "cats", ",", "the", "hat"]


# Units ------------------------


def alphabets():
    chars = char_alphabet(["héllo wörld, 東京"])
    return [byte_alphabet(), chars, subword_alphabet(kinds.byte_bpe())]


@pytest.mark.parametrize("alphabet", alphabets(), ids=lambda a: a.kind)
@given(st.lists(st.text(st.sampled_from("hélo東,"), min_size=1)), st.integers(2, 9))
def test_units_give_their_words_back(alphabet, words, size):
    found = units(words, alphabet, size)
    assert words_of(found.ids, alphabet) == words
    assert found.ids.shape == (len(found.lengths), size)
    filled = np.arange(size)[None] < found.lengths[:, None]
    np.testing.assert_array_equal(found.ids != 0, filled)
    assert (found.lengths >= 1).all() and found.ids.max(initial=0) < alphabet.size
    pieces = np.diff(found.word, prepend=-1)
    np.testing.assert_array_equal(pieces == 0, found.ids[:, 0] == 1)
    assert set(found.word) == set(range(len(words)))


def test_bytes_are_those_of_byt5():
    assert byte_alphabet().spell("a") == [ord("a") + 3]


def test_characters_beyond_the_corpus():
    known = char_alphabet(["abc"])
    with pytest.raises(ArgumentError, match="got 'cat' with 't'"):
        units(["ab", "cat"], known, 4)
    lenient = char_alphabet(["abc"], unknown="unit")
    found = units(["cat"], lenient, 4)
    assert found.ids.tolist() == [[5, 3, 2, 0]]
    assert words_of(found.ids, lenient) == ["ca\ufffd"]


def test_units_refuse():
    alphabet = byte_alphabet()
    with pytest.raises(ArgumentError, match=r"'pneumonia' of 9 units, .* size=8"):
        units(["a", "pneumonia"], alphabet, 8, longer="error")
    with pytest.raises(ArgumentError, match="size: got 1, expected at least 2"):
        units(["a"], alphabet, 1)
    with pytest.raises(ArgumentError, match="word: got '', expected at least one"):
        units(["a", ""], alphabet, 4)
    with pytest.raises(ArgumentError, match="expected valid UTF-8"):
        units(["\ud800"], alphabet, 4)
    with pytest.raises(ArgumentError, match=r"ids: got 259, expected 0 <= id < 259"):
        words_of(np.array([[259]]), alphabet)
    with pytest.raises(ArgumentTypeError, match="texts: got one string"):
        char_alphabet("abc")


def test_alphabets_are_saved_with_a_hash():
    for alphabet in alphabets():
        again = Alphabet.from_json(alphabet.to_json(), alphabet.vocabulary)
        assert again == alphabet and hash(again) == hash(alphabet)
        assert again.spell("hél") == alphabet.spell("hél")
    other = kinds.byte_bpe(290)
    with pytest.raises(VocabMismatchError, match="expected"):
        Alphabet.from_json(alphabet.to_json(), other)
    fields = json.loads(char_alphabet(["ab"]).to_json()) | {"characters": "ac"}
    with pytest.raises(VocabMismatchError, match="alphabet: got the hash"):
        Alphabet.from_json(json.dumps(fields))
    with pytest.raises(CheckpointError, match="alphabet: damaged"):
        Alphabet.from_json("[")
    assert char_alphabet(["ab"]) != char_alphabet(["ab"], unknown="unit")
