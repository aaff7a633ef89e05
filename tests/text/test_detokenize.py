"""Streams of ids give, piece by piece, the text that decoding gives at once."""

import itertools

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from jtok.errors import ArgumentError
from jtok.text import Detokenizer, Vocabulary
from tests.text import kinds
from tests.text.kinds import byte_bpe

_made: dict[str, Vocabulary] = {}


def letters(decoder, pieces=("a", "b", "ab", "</w>", "w>", "<", " ", "  ", "▁", "▁a")):
    """A word-level vocabulary with a decoder of choice."""
    model = models.WordLevel({piece: n for n, piece in enumerate(pieces)}, "a")
    tokenizer = tokenizers.Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    return Vocabulary.from_json(tokenizer.to_str())


DECODERS = {
    "none": lambda: None,
    "metaspace": decoders.Metaspace,
    "metaspace_never": lambda: decoders.Metaspace(prepend_scheme="never"),
    "wordpiece_plain": lambda: decoders.WordPiece(cleanup=False),
    "replace_joined": lambda: decoders.Sequence(
        [decoders.Fuse(), decoders.Replace("</w>", " ")]
    ),
    "strip_joined": lambda: decoders.Sequence(
        [decoders.Fuse(), decoders.Strip(" ", 2, 0), decoders.Replace("  ", "_")]
    ),
    "ctc": lambda: decoders.CTC("a"),
    "bpe": lambda: decoders.BPEDecoder("</w>"),
}
NAMES = [*kinds.KINDS, *DECODERS]


def vocabulary(name):
    if name not in _made:
        make = kinds.KINDS.get(name) or (lambda: letters(DECODERS[name]()))
        _made[name] = make()
    return _made[name]


def cut(ids, places):
    bounds = [0, *sorted(place % (len(ids) + 1) for place in places), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_pieces_join_to_what_decode_gives(name, skip, data):
    whole = vocabulary(name)
    ids = data.draw(st.lists(st.integers(0, whole.size - 1), max_size=12))
    places = data.draw(st.lists(st.integers(0, 12), max_size=4))
    stream = Detokenizer(whole, skip_special=skip)
    pieces = [stream.push(part) for part in cut(ids, places)] + [stream.finish()]
    assert "".join(pieces) == whole.decode(ids, skip_special=skip)
    assert stream.finish() == ""


@pytest.mark.parametrize("name", ["byte_bpe", "sentencepiece_bpe"])
@given(text=st.text(max_size=12))
def test_real_text_never_shows_half_a_character(name, text):
    whole = vocabulary(name)
    ids = whole.encode(text, specials=False)
    stream = Detokenizer(whole)
    pieces = [stream.push([id_]) for id_ in ids]
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)
    assert "".join(pieces) + stream.finish() == whole.decode(ids)


def test_text_comes_as_soon_as_it_is_settled():
    whole = byte_bpe(257)
    stream = Detokenizer(whole)
    ids = whole.encode("aé🚀")
    assert [stream.push([id_]) for id_ in ids] == ["a", "", "é", "", "", "", "🚀"]
    spaced = vocabulary("sentencepiece_bpe")
    stream = Detokenizer(spaced)
    ids = spaced.encode("the 東 a")
    pieces = [stream.push([id_]) for id_ in ids]
    # BOS, " the", " ", three bytes that wait for what follows, " ", "a".
    assert pieces == ["", "the", " ", "", "", "", "東 ", "a"]


def test_an_unfinished_character_becomes_a_replacement_character():
    whole = byte_bpe(257)
    ids = whole.encode("🚀")[:3]
    stream = Detokenizer(whole)
    assert stream.push(ids) == ""
    assert stream.finish() == whole.decode(ids) == "\ufffd"
    spaced = vocabulary("sentencepiece_bpe")
    ids = spaced.encode("🚀", specials=False)[1:4]
    stream = Detokenizer(spaced)
    assert stream.push(ids) == ""
    assert stream.finish() == spaced.decode(ids) == "\ufffd" * 3


def test_special_tokens_are_left_out_or_kept():
    whole = vocabulary("byte_bpe")
    ids = np.array([0, *whole.encode("ab"), 0])
    hidden, shown = (Detokenizer(whole, skip_special=skip) for skip in (True, False))
    assert hidden.push(ids) == "ab"
    assert shown.push(ids) == "<|endoftext|>ab<|endoftext|>"


def test_rows_are_independent():
    whole = vocabulary("byte_bpe")
    first, second = Detokenizer.rows(whole, 2)
    half = whole.encode("é")
    assert [first.push(half[:1]), second.push(half), first.push(half[1:])] == [
        "",
        "é",
        "é",
    ]
    assert Detokenizer.rows(whole, 0) == []
    with pytest.raises(ArgumentError, match="count: got -1"):
        Detokenizer.rows(whole, -1)


def test_bad_ids_are_refused_and_change_nothing():
    whole = vocabulary("byte_bpe")
    stream = Detokenizer(whole)
    half = whole.encode("é")
    stream.push(half[:1])
    with pytest.raises(ArgumentError, match="id 10000"):
        stream.push([1, 10_000])
    assert stream.push(half[1:]) == "é"
    stream.finish()
    with pytest.raises(ArgumentError, match=r"none after finish\(\)"):
        stream.push([1])


def test_no_token_is_read_twice(monkeypatch):
    """A stream that decoded its past again would be quadratic."""
    whole = vocabulary("sentencepiece_bpe")
    read = []
    plain = Vocabulary.surface_of
    monkeypatch.setattr(
        Vocabulary, "surface_of", lambda self, id_: read.append(id_) or plain(self, id_)
    )
    monkeypatch.setattr(Vocabulary, "decode", None)
    ids = [*whole.encode("the 東", specials=False), 3 + 0xFF] * 50
    stream = Detokenizer(whole)
    for id_ in ids:
        stream.push([id_])
    stream.finish()
    assert read == ids
