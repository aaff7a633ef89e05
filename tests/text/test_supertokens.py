"""Chunks, supertokens and their compression: goldens, laws, bad input."""

import itertools
import pathlib
import random
from collections import Counter

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.testing import load_golden
from jtok.text import (
    PUBLISHED_BINS,
    ChunkLaw,
    Vocabulary,
    chunk_lengths,
    compression,
    insert_separators,
    spans_words,
    train_supertokens,
    train_word_bpe,
    training_words,
    unused_separator,
)

SEPARATOR = "#$T@&"
LAW = ChunkLaw.normalised()


@pytest.fixture(scope="module")
def golden():
    return load_golden("tokenadapt/supertokens.npz")


def published(golden):
    columns = ("bins_lo", "bins_hi", "probs_as_published")
    return list(zip(*(golden[name].tolist() for name in columns)))


def trained(golden, name):
    """The golden's two trainers, with its options."""
    lines = golden["augmented_lines" if name == "super" else "plain_lines"].tolist()
    separator = SEPARATOR if name == "super" else None
    words = training_words(lines, separator, compat="official")
    split = "none" if name == "super" else "gpt2"
    return words, {"split": split, "compat": "official"}


# ---- the law of lengths


def test_published_bins_raise_and_are_normalised_on_demand(golden):
    bins = published(golden)
    with pytest.raises(ArgumentError, match=r"sum to 1\.1.*normalised"):
        ChunkLaw(tuple(bins))
    with pytest.raises(ArgumentError, match=r"sum to 1\.1"):
        ChunkLaw(PUBLISHED_BINS)
    law = ChunkLaw.normalised(bins)
    got = [probability for _, _, probability in law.bins]
    np.testing.assert_allclose(got, golden["probs_normalised"], rtol=1e-6)
    np.testing.assert_allclose(np.array(law.bins), np.array(LAW.bins), rtol=1e-6)


def test_lengths_of_the_official_code(golden):
    """Drawn by CPython's generator, whose seeds the golden tells."""
    law = ChunkLaw.normalised(published(golden))
    text, length = str(golden["text"]), int(golden["text_len"])
    assert len(text) == length
    for seed in range(3):
        draws = random.Random(int(golden["python_seed_offset"]) + seed)
        expected = golden[f"lengths_seed{seed}"]
        np.testing.assert_array_equal(chunk_lengths(length, law, draws), expected)
    for length in (1, 2, 3, 4, 7):
        got = chunk_lengths(length, law, random.Random(5))
        np.testing.assert_array_equal(got, golden[f"short_text_len{length}"])


def expected_law(law):
    law_of = np.zeros(law.longest + 1)
    for low, high, probability in law.bins:
        law_of[low : high + 1] += probability / (high - low + 1)
    return law_of


def chi_square(counts, law):
    expected = expected_law(law) * counts.sum()
    kept = expected > 0
    assert counts[: len(expected)][~kept].sum() == counts[len(expected) :].sum() == 0
    left = counts[: len(expected)][kept]
    return ((left - expected[kept]) ** 2 / expected[kept]).sum()


def test_lengths_follow_the_law(golden):
    """20 lengths: chi-square of 19 degrees passes 43.8 one time in 1000."""
    drawn = chunk_lengths(400_000, LAW, np.random.default_rng(3))
    assert chi_square(np.bincount(drawn[:-2], minlength=25), LAW) < 43.8
    assert chi_square(golden["length_histogram_400k"], LAW) < 43.8


@given(st.integers(0, 200), st.integers(0, 5), st.booleans())
def test_lengths_tile_the_text(length, seed, python):
    draws = random.Random(seed) if python else np.random.default_rng(seed)
    lengths = chunk_lengths(length, LAW, draws)
    assert lengths.sum() == length
    assert all(LAW.shortest <= n <= LAW.longest for n in lengths[:-1])
    assert all(1 <= n <= LAW.longest for n in lengths)


def test_lengths_depend_on_the_seed_only():
    first, again = (chunk_lengths(999, LAW, np.random.default_rng(1)) for _ in "ab")
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "bins, what",
    [
        ((), "at least one"),
        (((4, 5),), "highest, probability"),
        ((("4", 5, 1.0),), "highest, probability"),
        (((0, 5, 1.0),), "1 <= lowest"),
        (((6, 5, 1.0),), "lowest <= highest"),
        (((1.5, 5, 1.0),), "whole"),
        (((4, 5, -1.0), (6, 7, 2.0)), "probability of 0"),
        (((4, 5, float("nan")),), "probability of 0"),
        (((4, 5, 0.5),), "sum to 0.5"),
    ],
)
def test_bins_that_are_none(bins, what):
    with pytest.raises(ArgumentError, match=rf"^bins: .*{what}"):
        ChunkLaw(bins) if "sum" in what else ChunkLaw.normalised(bins)


def test_no_weight_at_all():
    with pytest.raises(ArgumentError, match="above zero"):
        ChunkLaw.normalised([(1, 2, 0.0)])


# ---- separators and words


@given(st.text(max_size=60), st.integers(0, 3))
def test_chunks_join_to_the_text(text, seed):
    separator = unused_separator([text])
    lengths = chunk_lengths(len(text), LAW, np.random.default_rng(seed))
    augmented = insert_separators(text, lengths, separator)
    assert augmented.replace(separator, "") == text
    assert augmented.count(separator) == max(0, len(lengths) - 1)


def test_an_unused_separator_is_found():
    assert unused_separator(["a", "b"]) == SEPARATOR
    assert unused_separator(["a", f"b{SEPARATOR} #$T0@&"]) == "#$T1@&"
    assert unused_separator(["a"], preferred="||") == "#$T0@&"  # "a|||" is ambiguous


def test_separators_that_do_not_do():
    with pytest.raises(ArgumentError, match=r"^separator: got ''"):
        insert_separators("ab", [1, 1], "")
    with pytest.raises(ArgumentError, match=r"^separator: got 'a'"):
        insert_separators("ab", [1, 1], "a")
    with pytest.raises(ArgumentError, match=r"^preferred: got ''"):
        unused_separator(["a"], preferred="")
    with pytest.raises(ArgumentError, match=r"^separator: got ''"):
        training_words(["ab"], "")
    with pytest.raises(ArgumentError, match=r"^lengths: got 3, expected the sum 2"):
        insert_separators("ab", [1, 2], "|")


def test_words_are_chunks_and_official_ones_lose_runs():
    line = "x" + 9 * " " + "e\u0301|aaaaaaaab"
    assert training_words([line], "|") == Counter(
        {"x" + 9 * "Ġ" + "Ã©": 1, "aaaaaaaab": 1}
    )
    assert training_words([line], "|", compat="official") == Counter(
        {"x": 1, "ĠĠÃ©": 1, "ab": 1}
    )
    assert training_words(["\n" * 9], "|", compat="official") == {"Ċ" * 9: 1}
    assert training_words(["it is", ""], None) == {"it": 1, "Ġis": 1}
    # The pattern is read from the left, so a run takes a separator's beginning.
    line = f"######{SEPARATOR}a"
    assert training_words([line], SEPARATOR) == {"######": 1, "a": 1}
    assert training_words([line], SEPARATOR, compat="official") == {"$T@&a": 1}


# ---- training


@pytest.mark.parametrize("trainer", ["jtok", "tokenizers"])
@pytest.mark.parametrize("name", ["super", "plain"])
def test_merges_and_vocabulary_of_the_golden(golden, name, trainer):
    words, options = trained(golden, name)
    vocabulary = train_word_bpe(words, 340, trainer=trainer, **options)
    expected = golden[f"{name}_vocab"].tolist()
    ids = range(vocabulary.size)
    assert [vocabulary.surface_of(id_) for id_ in ids] == expected
    merges = [pair.split(" ") for pair in golden[f"{name}_merges"].tolist()]
    assert [list(pair) for pair in vocabulary._spec["model"]["merges"]] == merges
    lines = golden["plain_lines"].tolist()
    first = vocabulary.encode(lines[0])
    np.testing.assert_array_equal(first, golden[f"encoded_{name}_first"])
    encoded = vocabulary.encode_batch(lines[:7])
    assert sum(map(len, encoded)) == int(golden[f"n_tokens_{name}"])


def source_text():
    code = pathlib.Path(np.__file__).read_text(encoding="utf-8")
    return [code[:6000], "ein Haus, ein Häuschen. " * 30]


@pytest.mark.parametrize("compat", [None, "official"])
def test_both_trainers_find_the_same_merges(compat):
    pair = [
        train_supertokens(
            source_text(), 700, 4, max_token_length=9, trainer=trainer, compat=compat
        )
        for trainer in ("jtok", "tokenizers")
    ]
    assert pair[0] == pair[1]
    longest = max(map(len, pair[0].token_bytes[1:]))
    assert longest == (9 if compat is None else 8)


@pytest.fixture(scope="module")
def supertokens():
    return train_supertokens(source_text(), 600, 0)


def test_a_run_is_learnt_unless_the_official_code_drops_it():
    texts = ["x =" + 16 * " " + "1\n"] * 20
    law = ChunkLaw(((20, 20, 1.0),))
    assert b" " * 8 in train_supertokens(texts, 300, 0, law=law).token_bytes
    official = train_supertokens(texts, 300, 0, law=law, compat="official")
    assert b" " * 3 not in official.token_bytes


@given(st.binary(max_size=40))
def test_any_bytes_come_back(supertokens, data):
    text = data.decode("latin-1")
    assert supertokens.decode(supertokens.encode(text)) == text
    pieces = [supertokens.id_of(bytes([byte])) for byte in data]
    assert supertokens.decode_bytes(pieces) == data


def test_tokens_span_words_and_the_seed_decides(supertokens):
    assert supertokens.pretokenizer == "none"
    assert supertokens.round_trips
    assert any(spans_words(token) for token in supertokens.token_bytes)
    assert supertokens == train_supertokens(source_text(), 600, 0)
    assert supertokens != train_supertokens(source_text(), 600, 1)
    assert dict(supertokens.special) == {"bos": 0, "eos": 0, "pad": 0}


def merged(row, left, right):
    out = []
    for item in row:
        if out and item == right and out[-1] == left:
            out[-1] = left + right
        else:
            out.append(item)
    return out


def test_every_merge_had_the_count_at_its_time():
    words = training_words(source_text(), None)
    vocabulary = train_word_bpe(words, 400, min_count=5, max_token_length=None)
    rows = {word: [letter.encode() for letter in word] for word in words}
    for merge in vocabulary._spec["model"]["merges"]:
        left, right = (side.encode() for side in merge)
        pairs = Counter()
        for word, row in rows.items():
            for pair in itertools.pairwise(row):
                pairs[pair] += words[word]
            rows[word] = merged(row, left, right)
        assert pairs[left, right] == max(pairs.values()) >= 5


def test_a_folder_that_tokenizers_loads(supertokens, tmp_path):
    supertokens.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = source_text()[0]
    np.testing.assert_array_equal(other.encode(text).ids, supertokens.encode(text))
    assert Vocabulary.load(tmp_path) == supertokens


@pytest.mark.parametrize(
    "change, name",
    [
        ({"size": 256}, "size"),
        ({"specials": ["a", "a"]}, "specials"),
        ({"specials": [""]}, "specials"),
        ({"specials": ["!"]}, "specials"),
        ({"words": {"a b": 1}}, "words"),
        ({"words": {"ab": 0}}, "words"),
        ({"min_count": 0}, "min_count"),
        ({"max_token_length": 1}, "max_token_length"),
    ],
)
def test_bad_training_is_named(change, name):
    options = {"words": {"ab": 2}, "size": 300, **change}
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        train_word_bpe(**options)


def test_one_string_is_no_corpus():
    for call in (
        lambda: train_supertokens("abc", 300, 0),
        lambda: training_words("abc", "|"),
        lambda: compression({"a": Vocabulary.train_bpe(["a"], 257)}, {"en": "text"}),
    ):
        with pytest.raises(ArgumentTypeError, match="got one string"):
            call()


# ---- compression


@pytest.mark.parametrize(
    "token, expected",
    [
        (b"of the", True),
        (b"d. B", True),
        (b"a\n  b", True),
        ("की ओर".encode(), True),
        (b" the ", False),
        (b". ", False),
        (b") (", False),
        ("时间".encode(), False),
        (b"\x80 a", False),
    ],
)
def test_what_spans_words(token, expected):
    assert spans_words(token) == expected


def test_compression_counts_bytes_and_tokens(golden):
    both = {}
    for name in ("super", "plain"):
        words, options = trained(golden, name)
        both[name] = train_word_bpe(words, 340, **options)
    texts = {"en": golden["plain_lines"].tolist()[:7], "ru": ["дом"], "none": []}
    rows = compression(both, texts)
    assert [(row.language, row.vocabulary) for row in rows[:3]] == [
        ("en", "super"), ("en", "plain"), ("ru", "super"),
    ]  # fmt: skip
    assert [row.tokens for row in rows] == [29, 52, 6, 6, 0, 0]
    assert rows[2].text_bytes == 6 and rows[2].bytes_per_token == 1
    assert rows[0].bytes_per_token == rows[0].text_bytes / 29
    assert rows[0].multiword_share > 0 == rows[1].multiword_share
    assert rows[5].bytes_per_token == 0


def test_compression_needs_something_to_compare():
    with pytest.raises(ArgumentError, match=r"^vocabularies: "):
        compression({}, {"en": ["a"]})
    with pytest.raises(ArgumentError, match=r"^texts: "):
        compression({"a": Vocabulary.train_bpe(["a"], 257)}, {})
