"""Tokens that two vocabularies share, and how they cut numbers."""

import json

import numpy as np
import pytest

from jtok.text import (
    Vocabulary,
    numeric_scheme,
    numeric_warning,
    overlap,
    prefix_matches,
    spelled_bytes,
    token_keys,
)
from jtok.text.overlap import ROLES
from tests.text.kinds import KINDS, byte_bpe, metaspace_bpe, unigram, wordpiece


def pairs(source, target, **options):
    """Printed forms of the shared tokens, by target."""
    found = overlap(source, target, **options)
    return {
        target.surface_of(int(new)): source.surface_of(int(old))
        for old, new in zip(found.source_ids, found.target_ids, strict=True)
    }


def with_specials(texts, roles, size=262):
    """A byte-level vocabulary with these control tokens and roles."""
    trained = Vocabulary.train_bpe(["ab ab"], size, texts)
    return Vocabulary.from_json(
        trained.tokenizer_json(),
        {f"{role}_token": text for role, text in roles.items()},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_shares_all_with_itself(kind):
    vocabulary = KINDS[kind]()
    found = overlap(vocabulary, vocabulary)
    present = sorted(set(range(vocabulary.size)) - vocabulary.missing_ids)
    assert found.target_ids.tolist() == found.source_ids.tolist() == present
    assert found.target_ids.dtype == found.source_ids.dtype == np.int32
    assert not found.new_ids.size and found.first.all()
    keys = [key for key in token_keys(vocabulary) if key is not None]
    assert len(set(keys)) == len(keys) == len(present)


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_pairs_have_equal_bytes_and_partition_the_target(source, target):
    old, new = KINDS[source](), KINDS[target]()
    found = overlap(old, new)
    together = np.concatenate([found.target_ids, found.new_ids])
    present = set(range(new.size)) - new.missing_ids
    assert sorted(together.tolist()) == sorted(present)
    roles = {pair[1] for pair in found.roles.values()}
    for one, other in zip(found.source_ids, found.target_ids, strict=True):
        if other not in roles:
            assert spelled_bytes(old)[one] == spelled_bytes(new)[other]
    assert len(set(found.source_ids[found.first].tolist())) == found.first.sum()


def test_non_ascii_tokens_match_across_families():
    """Byte-level `Ã©` and metaspace `é` are the same two bytes."""
    source = Vocabulary.train_bpe(["été été"], 258)
    entry = {"id": 3, "content": "▁t", "special": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec = json.loads(unigram().tokenizer_json())
    spec["model"]["vocab"][3] = ["é", -2.5]
    target = Vocabulary.from_json(json.dumps(spec))
    assert pairs(source, target)["é"] == "Ã©"
    wrong = pairs(source, target, compat="official")["é"]
    assert source.token_bytes[source._tokenizer.token_to_id(wrong)] == b"\xe9"
    spec["model"]["vocab"][3] = ["▁t", -2.5]
    spec["added_tokens"] = [{**entry, **flags}]
    added = Vocabulary.from_json(json.dumps(spec))
    assert spelled_bytes(added)[3] == b" t"


def test_a_byte_matches_its_other_spelling_where_only_one_is_there():
    llama, level = metaspace_bpe(), byte_bpe()
    found = pairs(llama, level)
    assert found["t"] == "t"  # both spellings are there: each takes its own kind
    assert found["q"] == "<0x71>" and found["Ã"] == "<0xC3>"
    back = overlap(level, llama)
    spelled = pairs(level, llama)
    assert spelled["<0x74>"] == "t" and spelled["t"] == "t"
    twice = back.source_ids == level.id_of(b"t")
    assert twice.sum() == 2
    assert llama.surface_of(int(back.target_ids[twice & back.first][0])) == "t"
    assert "<0xC3>" not in pairs(level, llama, byte_match=False)


def test_specials_match_by_role_then_by_text():
    source = with_specials(("<s>", "</s>", "<x>", "<y>"), {"bos": "<s>", "eos": "</s>"})
    names = ("<a>", "<b>", "<pad>", "<y>", "<x>")
    target = with_specials(names, {"bos": "<a>", "eos": "<b>", "pad": "<pad>"})
    found = pairs(source, target)
    assert found["<a>"] == "<s>" and found["<b>"] == "</s>"
    assert found["<x>"] == "<x>" and found["<y>"] == "<y>"
    assert "<pad>" not in found
    roles = overlap(source, target).roles
    assert roles == {"bos": (0, 0), "eos": (1, 1)}


def test_one_token_of_many_roles_takes_the_first_that_both_have():
    source = with_specials(("<s>", "</s>"), {"bos": "<s>", "eos": "</s>"})
    target = with_specials(("<|end|>",), dict.fromkeys(ROLES[:3], "<|end|>"))
    assert pairs(source, target)["<|end|>"] == "<s>"
    back = overlap(target, source)
    assert back.source_ids[:2].tolist() == [0, 0]
    assert back.first[:2].tolist() == [True, False]


def test_additional_specials_stay_apart():
    names = ("<a>", "<b>", "<c>")
    source = with_specials(names, {"bos": "<a>"})
    spec = {"additional_special_tokens": ["<b>", "<c>"], "bos_token": "<a>"}
    target = Vocabulary.from_json(source.tokenizer_json(), spec)
    assert [pairs(source, target)[name] for name in names] == list(names)


def test_a_special_is_no_text():
    """Text that reads like a control token does not get its row."""
    source = with_specials(("ab", "</s>"), {"eos": "</s>"})
    target = with_specials(("</s>",), {"eos": "</s>"})
    assert target.id_of(b"ab") in overlap(source, target).new_ids


def test_words_begin_with_a_space():
    """BERT's `the` is a word, GPT-2's is its end; `##s` is one, too."""
    found = pairs(wordpiece(), Vocabulary.train_bpe(["the the s ing ings"], 272))
    assert found["Ġthe"] == "the" and found["s"] == "##s" and found["Ġs"] == "s"
    assert "the" not in found


def test_the_official_rules_compare_printed_forms():
    source, target = metaspace_bpe(), byte_bpe()
    found = pairs(source, target, compat="official")
    assert found["Ġthe"] == "▁the" and found["q"] == "<0x71>"
    plain = pairs(source, target, compat="official", byte_match=False)
    assert "q" not in plain and plain["t"] == "t"


def test_prefixes():
    source = Vocabulary.train_bpe(["  ab ab"], 262)
    target = Vocabulary.train_bpe(["  abc abcd abcd  "], 270, ("<|ab|>",))
    ids = np.arange(target.size, dtype=np.int32)
    found = prefix_matches(source, target, ids)
    table = [None if id_ < 0 else source.token_bytes[id_] for id_ in found.tolist()]
    by_token = dict(zip(target.token_bytes, table, strict=True))
    assert by_token[b" abcd"] == by_token[b" abc"] == b" ab"
    assert by_token[b"<|ab|>"] is None  # a special token has no prefix
    assert by_token[b"  "] is None  # only white space is left
    assert by_token[b"a"] is None


def test_keep_moves_pairs_to_the_new():
    source = with_specials(("<s>",), {"bos": "<s>"})
    found = overlap(source, source)
    kept = found.keep(found.source_ids % 2 == 1)
    assert kept.new_ids.tolist() == [i for i in range(source.size) if i % 2 == 0]
    assert not kept.roles and found.roles == {"bos": (0, 0)}


def test_numbers():
    single = Vocabulary.train_bpe(["ab"], 258)
    several = Vocabulary.train_bpe(["123 42 123 42"], 262)
    assert numeric_scheme(single)["12345"] == (1, 1, 1, 1, 1)
    assert numeric_scheme(several)["42"] == (2,)
    assert numeric_scheme(wordpiece())["42"] == ()  # it has no token for digits
    assert numeric_warning(single, single) is None
    assert "42 as 4 2, now 42" in numeric_warning(single, several)


def test_real_vocabularies(data):
    """Overlaps by bytes, known from another count."""
    llama = Vocabulary.load(data("tokenizers/llama2.model"))
    gpt2 = Vocabulary.load(data("tokenizers/gpt2.tiktoken"), pattern="gpt2")
    found = overlap(llama, gpt2)
    plain = {b for i, b in enumerate(llama.token_bytes) if i > 2 and len(b) > 1}
    wanted = sum(b in plain for b in gpt2.token_bytes if len(b) > 1)
    singles = sum(len(gpt2.token_bytes[i]) == 1 for i in found.target_ids)
    assert singles == 256 and len(found.target_ids) == wanted + 256
    assert len(found.target_ids) > 18_000
