"""The n-gram lexicon: goldens, the law of the t-statistic, ties, shards, storage."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import text
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
    WriteError,
)
from jtok.text import (
    Lexicon,
    Vocabulary,
    build_lexicon,
    count_grams,
    gram_scores,
    load_lexicon,
    match_grams,
    merge_counts,
    save_lexicon,
)

DOCUMENTS = st.lists(
    st.lists(st.integers(0, 4), max_size=12).map(lambda ids: np.array(ids, np.int64)),
    max_size=6,
)


def documents_of(file):
    ends = np.cumsum(file["doc_len"])
    return np.split(file["tokens"], ends[:-1])


# Goldens ------------------------


@pytest.mark.parametrize("length", (2, 3))
def test_counts_and_scores_of_the_golden(golden, length):
    file = golden("ernie_gram/lexicon.npz")
    counts = count_grams(documents_of(file), vocab_size=int(file["vocab_size"]))
    np.testing.assert_array_equal(counts.grams(length), file[f"ng{length}"])
    np.testing.assert_array_equal(counts.counts[length], file[f"ng{length}_count"])
    assert counts.total(length) == file[f"ng{length}_total"]
    scores = gram_scores(counts, length)
    np.testing.assert_allclose(scores, file[f"ng{length}_t"], rtol=1e-9)
    top = file[f"ng{length}_top"]
    sizes = (len(top), 1) if length == 2 else (1, len(top))
    found = build_lexicon(counts, sizes)
    rows = found.tokens[found.lengths == length, :length]
    np.testing.assert_array_equal(rows, top)
    place = {tuple(gram): i for i, gram in enumerate(file[f"ng{length}"].tolist())}
    kept = [scores[place[tuple(gram)]] for gram in rows.tolist()]
    np.testing.assert_allclose(kept, file[f"ng{length}_top_t"], rtol=1e-9)


def test_lexicon_of_the_golden(golden):
    file = golden("ernie_gram/lexicon.npz")
    counts = count_grams(documents_of(file), vocab_size=int(file["vocab_size"]))
    lengths = file["lex_len"]
    sizes = [int((lengths == length).sum()) for length in (2, 3)]
    found = build_lexicon(counts, sizes)
    np.testing.assert_array_equal(found.tokens, file["lex_tokens"])
    np.testing.assert_array_equal(found.lengths, lengths)


def test_matching_of_the_golden(golden):
    file = golden("ernie_gram/matching.npz")
    lexicon = Lexicon(file["lex_tokens"], file["lex_len"], int(file["vocab_size"]))
    for row, size in enumerate(file["seq_len"].tolist()):
        found = match_grams(lexicon, file["seq"][row, :size])
        is_start = np.zeros(size, int)
        is_start[found.starts] = 1
        np.testing.assert_array_equal(is_start, file["is_start"][row, :size])
        count = int(file["n_grams"][row])
        assert len(found.starts) == count
        np.testing.assert_array_equal(found.ids, file["gram_ids"][row, :count])
        np.testing.assert_array_equal(found.lengths, file["gram_len"][row, :count])


# Counting ------------------------


@given(DOCUMENTS, st.integers(0, 6))
def test_shards_add_up_and_nothing_crosses_documents(documents, cut):
    whole = count_grams(documents, vocab_size=5)
    parts = [
        count_grams(some, vocab_size=5) for some in (documents[:cut], documents[cut:])
    ]
    merged = merge_counts(parts)
    for length in (2, 3):
        seen: dict[tuple, int] = {}
        for document in documents:
            ids = document.tolist()
            for at in range(len(ids) - length + 1):
                gram = tuple(ids[at : at + length])
                seen[gram] = seen.get(gram, 0) + 1
        for counts in (whole, merged):
            grams = map(tuple, counts.grams(length).tolist())
            assert dict(zip(grams, counts.counts[length].tolist())) == seen


def test_a_long_corpus_is_counted_in_shards(monkeypatch):
    rng = np.random.default_rng(0)
    documents = [rng.integers(9, size=size) for size in (40, 0, 1, 70, 5)]
    whole = count_grams(documents, vocab_size=9)
    monkeypatch.setattr(text.lexicon, "_SHARD", 30)
    shards = count_grams(documents, vocab_size=9)
    for length in (2, 3):
        np.testing.assert_array_equal(shards.keys[length], whole.keys[length])
        np.testing.assert_array_equal(shards.counts[length], whole.counts[length])


def test_ids_that_need_all_64_bits():
    size = 2**21  # 63 bits of three tokens
    ids = np.array([size - 1, 0, size - 1, size - 2])
    counts = count_grams([ids], vocab_size=size)
    assert counts.grams(3).tolist() == [
        [0, size - 1, size - 2],
        [size - 1, 0, size - 1],
    ]
    lexicon = build_lexicon(counts, (3, 2))
    assert match_grams(lexicon, ids).lengths.tolist() == [3, 1]


# The t-statistic ------------------------


def test_independent_tokens_score_as_a_normal_law():
    rng = np.random.default_rng(1)
    counts = count_grams([rng.integers(20, size=40_000)], vocab_size=20)
    scores = gram_scores(counts, 2)
    assert len(scores) == 400
    assert abs(scores.mean()) < 0.15 and 0.85 < scores.std() < 1.15


def test_planted_pairs_rank_first():
    rng = np.random.default_rng(2)
    ids = rng.integers(20, size=4000)
    for at in rng.choice(1999, 150, replace=False) * 2:
        ids[at : at + 2] = (20, 21) if at % 4 else (22, 23)
    lexicon = build_lexicon(count_grams([ids], vocab_size=24), (2, 1))
    assert {lexicon.gram(24), lexicon.gram(25)} == {(20, 21), (22, 23)}


def test_four_times_the_text_doubles_the_score():
    rng = np.random.default_rng(3)
    documents = [rng.integers(6, size=size) for size in (50, 3, 90)]
    once = count_grams(documents, vocab_size=6)
    again = count_grams(documents * 4, vocab_size=6)
    for length in (2, 3):
        np.testing.assert_allclose(
            gram_scores(again, length), 2 * gram_scores(once, length), rtol=1e-9
        )


def test_a_gram_at_every_position():
    same = count_grams([np.full(5, 2)], vocab_size=3)
    assert gram_scores(same, 2).tolist() == [0.0]  # p = p0: no evidence
    pair = count_grams([np.array([0, 1])] * 3, vocab_size=3)
    assert gram_scores(pair, 2).tolist() == [np.inf]
    assert len(gram_scores(pair, 3)) == 0


def test_ties_go_to_the_lower_ids():
    # Every pair occurs once, and every token as often.
    documents = [np.array(pair) for pair in ((5, 4), (0, 1), (3, 2))]
    lexicon = build_lexicon(count_grams(documents, vocab_size=6), (3, 1))
    assert [lexicon.gram(6 + row) for row in range(3)] == [(0, 1), (3, 2), (5, 4)]


# Options ------------------------


def test_options_of_the_lexicon():
    documents = [np.array([1, 2, 3] * 9 + [4, 5]), np.array([3, 1])]
    counts = count_grams(documents, vocab_size=6)
    every = build_lexicon(counts, (99, 99))
    assert (4, 5) in [every.gram(6 + row) for row in range(len(every))]
    often = build_lexicon(counts, (99, 99), min_count=2)
    kept = [often.gram(6 + row) for row in range(len(often))]
    assert kept and (4, 5) not in kept and (3, 4, 5) not in kept
    starts = np.array([True, True, False, True, True, True])
    for row in build_lexicon(counts, (99, 99), starts=starts).tokens:
        assert row[0] != 2
    for row in build_lexicon(counts, (99, 99), forbidden=[3]).tokens:
        assert 3 not in row
    fewer = build_lexicon(counts, (99, 99), subsume=True)
    scores = {
        tuple(gram): score
        for length in (2, 3)
        for gram, score in zip(
            counts.grams(length).tolist(), gram_scores(counts, length)
        )
    }
    wanted = {
        gram
        for gram, score in scores.items()
        if len(gram) == 2 or not max(scores[gram[:2]], scores[gram[1:]]) > score
    }
    assert {fewer.gram(6 + row) for row in range(len(fewer))} == wanted
    assert len(wanted) < len(scores)


def test_special_tokens_of_the_vocabulary_are_forbidden():
    vocabulary = Vocabulary.train_bpe(["a b"], 257)
    special = vocabulary.special["eos"]
    ids = np.array([special, 5, 6] * 8)
    counts = count_grams([ids], vocab_size=vocabulary.size)
    lexicon = build_lexicon(counts, (9, 9), vocabulary=vocabulary)
    assert [lexicon.gram(vocabulary.size + i) for i in range(len(lexicon))] == [(5, 6)]
    assert lexicon.vocabulary == vocabulary.hash
    starts = build_lexicon(counts, (9, 9), starts=vocabulary.word_starts)
    assert len(starts) == 0


def test_collocations_of_real_text(data):
    with gzip.open(data("text/brown.txt.gz"), "rt") as file:
        words = file.read(2_000_000).lower().split()
    names = {word: id_ for id_, word in enumerate(dict.fromkeys(words))}
    ids = np.array([names[word] for word in words])
    counts = count_grams([ids], vocab_size=len(names))
    lexicon = build_lexicon(counts, (200, 100), min_count=5)
    grams = [lexicon.gram(lexicon.vocab_size + row) for row in range(len(lexicon))]
    assert (names["united"], names["states"]) in grams


# Matching ------------------------


@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=3), max_size=8),
)
def test_matching_is_the_longest_first_from_the_left(ids, grams):
    grams = list(dict.fromkeys(map(tuple, grams)))
    lexicon = Lexicon.of(grams, vocab_size=4)
    found = match_grams(lexicon, np.array(ids, np.int64))
    at, wanted = 0, []
    while at < len(ids):
        for length in (3, 2, 1):
            gram = tuple(ids[at : at + length])
            if len(gram) == length and (length == 1 or gram in grams):
                wanted.append(gram)
                at += length
                break
    assert [lexicon.gram(id_) for id_ in found.ids.tolist()] == wanted
    assert found.lengths.sum() == len(ids)


def test_matching_stops_at_special_tokens_and_segments():
    lexicon = Lexicon.of([(1, 2), (2, 3), (1, 2, 3)], vocab_size=6)
    ids = np.array([9, 1, 2, 9, 3, 1, 2, 3])
    assert match_grams(lexicon, ids, specials=[9]).lengths.tolist() == [1, 2, 1, 1, 3]
    segments = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    found = match_grams(lexicon, ids, segments=segments, specials=[9])
    assert found.lengths.tolist() == [1, 2, 1, 1, 1, 2]
    inside = np.array([0, 5, 1, 2, 3])
    assert match_grams(lexicon, inside, specials=[2]).lengths.tolist() == [1] * 5
    # Id 0 is one like any other, and no special token is taken for it.
    zeros = Lexicon.of([(0, 1), (1, 0)], vocab_size=6)
    found = match_grams(zeros, np.array([9, 1, 9, 0, 1]), specials=[9])
    assert found.lengths.tolist() == [1, 1, 1, 2]


def test_an_empty_lexicon_gives_tokens():
    found = match_grams(Lexicon.of([], vocab_size=9), np.array([3, 1, 4]))
    assert found.ids.tolist() == [3, 1, 4] and found.lengths.tolist() == [1, 1, 1]


# Files ------------------------


def test_a_lexicon_comes_back_for_its_vocabulary_only(tmp_path):
    vocabulary = Vocabulary.train_bpe(["a b"], 257)
    other = Vocabulary.train_bpe(["a b, a c"], 259)
    lexicon = Lexicon.of(
        [(1, 2), (5, 6, 7)], vocab_size=257, vocabulary=vocabulary.hash
    )
    path = tmp_path / "lexicon.safetensors"
    save_lexicon(lexicon, path)
    found = load_lexicon(path, vocabulary)
    np.testing.assert_array_equal(found.tokens, lexicon.tokens)
    assert found.vocabulary == vocabulary.hash and found.vocab_size == 257
    with pytest.raises(VocabMismatchError) as error:
        load_lexicon(path, other)
    assert vocabulary.hash in str(error.value) and other.hash in str(error.value)
    save_lexicon(Lexicon.of([], vocab_size=257), path)
    with pytest.raises(VocabMismatchError, match="unknown hash"):
        load_lexicon(path, vocabulary)


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "lexicon.safetensors"
    with pytest.raises(MissingFileError, match=r"lexicon\.safetensors"):
        load_lexicon(path)
    save_lexicon(Lexicon.of([(1, 2)], vocab_size=4), path)
    whole = path.read_bytes()
    for cut in (0, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"lexicon\.safetensors is damaged"):
            load_lexicon(path)
    path.write_bytes(whole.replace(b"jtok.lexicon", b"jtok.another"))
    with pytest.raises(CheckpointError, match="holds no lexicon"):
        load_lexicon(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError):
        save_lexicon(Lexicon.of([(1, 2)], vocab_size=4), tmp_path / "folder")


# Bad input ------------------------


def test_bad_input_is_refused():
    ids = np.array([0, 1, 2])
    with pytest.raises(ArgumentError, match="longest: got 1"):
        count_grams([ids], vocab_size=3, longest=1)
    with pytest.raises(ArgumentError, match="64 bits"):
        count_grams([ids], vocab_size=2**22)
    for size in (0, 2):
        with pytest.raises(ArgumentError, match=r"vocab_size|documents: got \[2\]"):
            count_grams([ids], vocab_size=size)
    counts = count_grams([ids], vocab_size=3)
    for sizes in ((1,), (0, 1), (1, -1), (1, 1, 1)):
        with pytest.raises(ArgumentError, match="sizes: got"):
            build_lexicon(counts, sizes)
    with pytest.raises(ArgumentError, match="starts: got"):
        build_lexicon(counts, (1, 1), starts=np.ones(4, bool))
    with pytest.raises(ArgumentError, match="forbidden: got 3"):
        build_lexicon(counts, (1, 1), forbidden=[3])
    with pytest.raises(VocabMismatchError, match="got one of 257 ids, expected 3"):
        vocabulary = Vocabulary.train_bpe(["a b"], 257)
        build_lexicon(counts, (1, 1), vocabulary=vocabulary)
    with pytest.raises(ArgumentError, match="length: got 4"):
        gram_scores(counts, 4)
    with pytest.raises(ArgumentError, match="parts: got"):
        merge_counts([counts, count_grams([ids], vocab_size=4)])
    for gram in ((1,), (1, 2, 0, 1)):
        with pytest.raises(ArgumentError, match="2 to 3 tokens"):
            Lexicon.of([gram], vocab_size=3)
    with pytest.raises(ArgumentError, match="an entry of 2 twice"):
        Lexicon.of([(1, 2), (1, 2)], vocab_size=3)
    with pytest.raises(ArgumentError, match="ids below 3"):
        Lexicon.of([(1, 3)], vocab_size=3)
    lexicon = Lexicon.of([(1, 2)], vocab_size=3)
    with pytest.raises(ArgumentError, match=r"tokens: got \[3\]"):
        match_grams(lexicon, np.array([1, 3]))
    with pytest.raises(ArgumentError, match="segments: got"):
        match_grams(lexicon, ids, segments=np.zeros(2, int))
    with pytest.raises(ArgumentError, match="id_: got 4"):
        lexicon.gram(4)
