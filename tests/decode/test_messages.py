"""Conversations in place of prompts: the vocabulary spells them."""

import functools

import pytest

from jtok.decode import generate, stream
from jtok.errors import ArgumentError
from jtok.testing import tiny_model, tiny_vocabulary
from jtok.text import Vocabulary

USER = [{"role": "user", "content": "the cat"}]
OTHER = [*USER, {"role": "assistant", "content": "sat"}]


class Chatting(Vocabulary):
    """Spells a conversation by its roles' first letters and its contents."""

    def encode_chat(self, messages):
        return self.encode("".join(m["role"][0] + m["content"] for m in messages))


@functools.lru_cache
def vocabulary():
    config = {"chat_template": "{{ messages }}"}
    return Chatting.from_json(tiny_vocabulary().tokenizer_json(), config)


def test_messages_are_prompts_that_the_vocabulary_spells():
    model = tiny_model(vocab_size=vocabulary().size)
    options = {"vocabulary": vocabulary(), "max_new_tokens": 4, "sync_every": 4}
    both = generate(model, messages=[USER, OTHER], **options)
    expected = generate(model, ["uthe cat", "uthe catasat"], **options)
    assert both.text == expected.text
    one = generate(model, messages=USER, **options)
    assert one.text == both.text[0]
    told = stream(model, messages=USER, **options)
    assert "".join(event.text for event in told) == one.text


def test_a_missing_template_is_named():
    model = tiny_model(vocab_size=280)
    with pytest.raises(ArgumentError, match="the vocabulary has no chat_template"):
        generate(model, messages=USER, vocabulary=tiny_vocabulary())
