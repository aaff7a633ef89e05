"""Lists of words, files of vectors, buckets and batches."""

import gzip

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jtok.classify import WordList, bucket_rows, load_vectors, shuffled_batches
from jtok.errors import ArgumentError, CheckpointError, MissingFileError

WORDS = WordList(("the", "cat's", "mat"))


def test_words_are_counted_and_ordered():
    made = WordList.build(["b a b", "A c. b"], min_count=1)
    assert made.words == ("b", "a", "c")
    assert WordList.build(["b a b", "A c"], min_count=2).words == ("a", "b")
    assert WordList.build(["b a b", "A c"], most=1).words == ("a",)
    cased = WordList.build(["A a"], lowercase=False)
    assert cased.words == ("A", "a") and cased.split("A b") == ["A", "b"]


def test_rows_are_cut_and_padded():
    ids, mask = WORDS.encode(["The cat's on the mat", "", "mat"], length=3)
    assert ids.tolist() == [[2, 3, 1], [0, 0, 0], [4, 0, 0]]
    assert mask.sum(1).tolist() == [3, 0, 1] and ids.dtype == np.int32
    assert WORDS.split("It's -- 3rd, don't'") == ["it's", "3rd", "don't"]


def test_json_round_trip_and_damage():
    assert WordList.from_json(WORDS.to_json()) == WORDS
    for text in ("{", '{"words": [1], "lowercase": true}', "[]", '{"words": ["a"]}'):
        with pytest.raises(CheckpointError, match="words: damaged"):
            WordList.from_json(text)


def test_bad_lists_are_refused():
    with pytest.raises(ArgumentError, match="words: got 'a', expected each word once"):
        WordList(("a", "a"))
    with pytest.raises(ArgumentError, match="min_count: got 0"):
        WordList.build([], min_count=0)
    with pytest.raises(ArgumentError, match="most: got 0"):
        WordList.build([], most=0)
    with pytest.raises(ArgumentError, match="length: got 0"):
        WORDS.encode(["a"], length=0)


@pytest.mark.parametrize("packed", [False, True])
def test_vectors_of_a_file(tmp_path, packed):
    text = "mat 1 2.5\nthe -1 1e-1\n. . 7 7\nmat 9 9\ndog 5 x\n"
    path = tmp_path / ("v.txt.gz" if packed else "v.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows, found = load_vectors(path, WORDS)
    assert rows.dtype == np.float32 and rows.shape == (5, 2)
    np.testing.assert_array_equal(rows[[2, 4]], np.float32([[-1, 0.1], [1, 2.5]]))
    assert found.tolist() == [False, False, True, False, True]
    assert not rows[0].any() and rows[1].any() and rows[3].any()
    again, _ = load_vectors(path, WORDS)
    np.testing.assert_array_equal(rows, again)


def test_a_first_line_of_counts_is_stepped_over(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("2 3\nmat 1 2 3\nthe 1 1 1\n")
    assert load_vectors(path, WORDS)[0].shape == (5, 3)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"mat 1 2\nthe 1\n", "line 2: has 1 numbers, expected 2"),
        (b"mat 1 x\n", "line 1: could not convert string to float: 'x'"),
        (b"mat 1 nan\n", "line 1: a number is not finite"),
        (b"mat\n", "line 1: has 0 numbers"),
        (b"dog 1 2\n", "holds none of the 3 words"),
        (b"", "holds none of the 3 words"),
        (b"mat 1 \xff\n", "not UTF-8"),
    ],
)
def test_damaged_files_say_where(tmp_path, content, message):
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_vectors(path, WORDS)


def test_a_missing_or_cut_file(tmp_path):
    with pytest.raises(MissingFileError, match="there is no file"):
        load_vectors(tmp_path / "none.txt", WORDS)
    path = tmp_path / "v.txt.gz"
    path.write_bytes(gzip.compress(b"mat 1 2\n" * 999)[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        load_vectors(path, WORDS)


@hypothesis.given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 4))
def test_every_row_is_in_one_bucket(lengths, batch):
    rows = [np.arange(1, n + 1) for n in lengths]
    seen = []
    for bucket in bucket_rows(rows, batch=batch, sizes=(2, 5)):
        size = bucket.ids.shape[1]
        assert bucket.ids.shape == bucket.mask.shape == (batch, size)
        for at, index in enumerate(bucket.rows):
            kept = min(lengths[index], 5)
            assert kept <= size and (size == 2 or kept > 2)
            assert bucket.ids[at].tolist() == [*range(1, kept + 1)] + [0] * (
                size - kept
            )
            assert bucket.mask[at].sum() == kept
        assert not bucket.mask[len(bucket.rows) :].any()
        seen += bucket.rows.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_bad_buckets_are_refused():
    for options, message in (
        ({"batch": 0}, "batch: got 0"),
        ({"sizes": (4, 2)}, "sizes: got"),
        ({"sizes": ()}, "sizes: got"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bucket_rows([], **options)


def test_each_epoch_takes_each_row_once():
    data = shuffled_batches({"x": np.arange(7), "y": 2 * np.arange(7)}, batch=2, seed=3)
    epochs = [[data(3 * e + s) for s in range(3)] for e in range(2)]
    for epoch in epochs:
        seen = np.concatenate([b["x"] for b in epoch])
        assert len(set(seen.tolist())) == 6
        assert all((b["y"] == 2 * b["x"]).all() for b in epoch)
    first = [np.concatenate([b["x"] for b in epoch]).tolist() for epoch in epochs]
    assert first[0] != first[1]
    assert data(0)["x"].tolist() == epochs[0][0]["x"].tolist()
    with pytest.raises(ArgumentError, match="batch: got 8, expected 1 to 7"):
        shuffled_batches({"x": np.arange(7)}, batch=8, seed=0)
    with pytest.raises(ArgumentError, match="arrays: got"):
        shuffled_batches({"x": np.arange(7), "y": np.arange(6)}, batch=1, seed=0)
