"""Tokens of one vocabulary cut by another."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jtok.text import Vocabulary, decompose, spelled_bytes
from tests.text.kinds import KINDS, byte_bpe, metaspace_bpe, unigram, wordpiece

WHOLE = pytest.mark.parametrize("whole", [False, True], ids=["text", "whole"])


def joined(pieces, source, row):
    table = spelled_bytes(source)
    return b"".join(table[id_] for id_ in pieces.ids[row].tolist() if id_ >= 0)


@WHOLE
@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
@given(tokens=st.lists(st.binary(max_size=12), max_size=6))
def test_pieces_of_any_bytes_are_those_bytes(kind, whole, tokens):
    source = CUTTERS[kind]
    pieces = decompose(tokens, source, whole=whole)
    assert pieces.ids.dtype == pieces.lengths.dtype == np.int32
    for row, token in enumerate(tokens):
        assert joined(pieces, source, row) == token
        assert pieces.lengths[row].sum() == len(token)
    np.testing.assert_array_equal(pieces.ids < 0, pieces.lengths == 0)


CUTTERS = {"byte_bpe": byte_bpe(), "sentencepiece_bpe": metaspace_bpe()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_source_has_is_one_piece(kind):
    source = KINDS[kind]()
    plain = [
        id_
        for id_, text in enumerate(spelled_bytes(source))
        if text and id_ not in source.special_ids and id_ != source.special.get("unk")
        and not (source.surface_of(id_) or "").startswith("<0x")
    ]  # fmt: skip
    pieces = decompose([spelled_bytes(source)[id_] for id_ in plain], source)
    if kind in ("byte_bpe", "sentencepiece_bpe"):
        assert pieces.ids.shape[1] == 1
    assert pieces.ids[:, 0].tolist() == plain


def test_text_is_split_as_the_tokenizer_does_and_whole_is_not():
    spaces = Vocabulary.train_bpe(["  ", "a"], 258)
    text, whole = (
        decompose([b"  a"], spaces, whole=whole).lengths[0].tolist()
        for whole in (False, True)
    )
    assert text == [1, 1, 1] and whole == [2, 1]


def test_nothing_is_put_before_a_token():
    source = metaspace_bpe()
    pieces = decompose([b"the", b" the", b"<s>"], source)
    surfaces = [
        [source.surface_of(i) for i in row if i >= 0] for row in pieces.ids.tolist()
    ]
    assert surfaces[0] == ["t", "h", "e"] and surfaces[1] == ["▁the"]
    assert surfaces[2] == ["<0x3C>", "<0x73>", "<0x3E>"]  # text, not the token


def test_what_cannot_be_written_is_empty():
    pieces = decompose([b"the", "東".encode(), b"\xff", b""], unigram())
    assert (pieces.ids[1:] == -1).all() and (pieces.lengths[1:] == 0).all()


def test_wordpiece_cuts_words_and_what_continues_them():
    source = wordpiece()
    pieces = decompose([b" cats", b"s", b"sing", b"x", b" thecat"], source)
    names = [[source.surface_of(i) for i in r if i >= 0] for r in pieces.ids.tolist()]
    assert names == [["cat", "##s"], ["##s"], ["##s", "##ing"], [], []]


def test_most_limits_the_columns_and_rows_end_with_nothing():
    source = byte_bpe()
    pieces = decompose([b"zzzz", b"z"], source, most=2)
    assert pieces.ids.shape == (2, 2) and pieces.ids[1, 1] == -1
    assert decompose([], source).ids.shape == (0, 1)
    with pytest.raises(ValueError, match="most: got 0"):
        decompose([b"a"], source, most=0)


def test_real_vocabularies(data):
    """Every new token of GPT-2 is made of Llama 2's pieces, byte for byte."""
    llama = Vocabulary.load(data("tokenizers/llama2.model"))
    gpt2 = Vocabulary.load(data("tokenizers/gpt2.tiktoken"), pattern="gpt2")
    tokens = spelled_bytes(gpt2)[::40]
    pieces = decompose(tokens, llama)
    assert [joined(pieces, llama, row) for row in range(len(tokens))] == list(tokens)
