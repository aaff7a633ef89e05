"""Byte-sorted ranges agree with looking through the table."""

import gzip
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.text import ByteOrder, Vocabulary, byte_order

TOKENS = st.lists(st.binary(max_size=4), max_size=12)
TOKENIZERS = (
    ("gpt2.tiktoken", "gpt2"), ("llama3.tiktoken", "llama3"), ("llama2.model", None),
    ("whisper_multilingual.tiktoken", "gpt2"),
)  # fmt: skip


@hypothesis.given(TOKENS, st.binary(max_size=3), st.sets(st.integers(0, 11)))
def test_a_range_holds_exactly_the_tokens_that_begin_so(tokens, prefix, hidden):
    order = ByteOrder(tokens, hidden)
    want = [i for i, t in enumerate(tokens) if t and i not in hidden]
    assert sorted(order.ids.tolist()) == want
    found = order.ids_of(prefix).tolist()
    assert found == sorted(
        (i for i in want if tokens[i].startswith(prefix)), key=lambda i: (tokens[i], i)
    )
    assert order.longest == max((len(tokens[i]) for i in want), default=0)


@hypothesis.given(TOKENS, st.binary(max_size=8))
def test_tokens_inside_a_text_are_those_that_stand_there(tokens, text):
    order = ByteOrder(tokens)
    for start in range(len(text)):
        want = {
            (i, start + len(t)) for i, t in enumerate(tokens)
            if t and text.startswith(t, start)
        }  # fmt: skip
        found = order.inside(text, start)
        assert set(found) == want
        assert [end for _, end in found] == sorted(end for _, end in found)


def test_first_bytes_and_columns_leave_out_gaps_and_special_tokens():
    order = ByteOrder([b"b", b"", b"ab", b"a"], {0})
    assert order.first_byte.tolist() == [256, 256, 97, 97]
    assert order.column(0).tolist() == [97, 97]
    assert order.column(1).tolist() == [-1, 98]
    assert order.lengths.tolist() == [1, 2]
    with pytest.raises(ArgumentError, match="depth"):
        order.column(-1)
    vocabulary = Vocabulary.train_bpe(["a b"], 257)
    assert byte_order(vocabulary) is byte_order(vocabulary)
    assert 0 not in byte_order(vocabulary).ids


@pytest.mark.slow
@pytest.mark.parametrize("name, pattern", TOKENIZERS, ids=[n for n, _ in TOKENIZERS])
def test_ranges_of_real_vocabularies_on_24_languages(data, name, pattern):
    vocabulary = Vocabulary.load(data(f"tokenizers/{name}"), pattern=pattern)
    order, table = byte_order(vocabulary), vocabulary.token_bytes
    with gzip.open(data("text/udhr.jsonl.gz"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    texts = [json.loads(line)["text"][:300] for line in lines]
    assert len(texts) == 24
    first = np.asarray([token[0] if token else -1 for token in table])
    for text in texts:
        ids = vocabulary.encode(text, specials=False)
        whole = vocabulary.decode_bytes(ids)
        assert whole.removeprefix(b" ") == text.encode().removeprefix(b" ")
        at = 0
        for id_ in ids.tolist():
            assert (id_, at + len(table[id_])) in order.inside(whole, at)
            at += len(table[id_])
        for start in range(0, len(whole), 37):
            prefix = whole[start : start + 2]
            near = np.flatnonzero(first == prefix[0])
            want = [i for i in near.tolist() if table[i].startswith(prefix)]
            got = set(order.ids_of(prefix).tolist())
            assert got == set(want) - vocabulary.special_ids
