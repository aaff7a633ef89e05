"""Data of the experiment on state vectors: what is measured on what."""

import dataclasses
import types

import numpy as np
import pytest

from experiments import ftp
from jtok.errors import ArgumentError

CONFIG = dataclasses.replace(ftp.Config(), prompt_tokens=6, labelled=180)


def data(held_out):
    encode = lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    held = np.asarray(held_out, np.int32)
    return ftp.Data(held[:0], held, 256, 0, encode, bytes, None, "")


def test_no_file_is_both_fitted_and_tried(monkeypatch):
    """Each of these files is written with a letter of its own."""
    files = [f"{c * 9}\n# {c * 20}\n{c} = '{c * 20}'\n" * 3 for c in "abcdefgh"]
    corpus = types.SimpleNamespace(held_out_code=files)
    monkeypatch.setattr(ftp, "standard_library", lambda: corpus)
    found = ftp._regions(CONFIG, data([]))
    half = len(found.rows) // 2
    assert half == 90 and found.labels.shape == (180,)
    letters = lambda rows: {chr(i) for row in rows for i in row} & set("abcdefgh")
    fitted, tried = letters(found.rows[:half]), letters(found.rows[half:])
    assert len(fitted) > 1 and len(tried) > 1 and not fitted & tried
    for labels in (found.labels[:half], found.labels[half:]):
        assert np.bincount(labels).tolist() == [30, 30, 30]


def test_code_comments_and_strings_are_told_apart():
    text = "x = 'ab'  # c\ny\n"
    expected = [0] * 4 + [2] * 4 + [0] * 2 + [1] * 3 + [0] * 3
    assert ftp._kinds(text).tolist() == expected


@pytest.mark.parametrize("count", [1, 4, 10])
def test_as_many_windows_as_asked_none_across_an_end(count):
    """Ten places fit: most texts are shorter than a window."""
    texts = [3, 2, 8, 1, 4, 10, 3]
    ids = [x for n, size in enumerate(texts) for x in [*[n + 1] * size, 0]]
    found = ftp._windows(data(ids), count, 5, seed=0)
    assert found.shape == (count, 5)
    for row in found:
        assert set(row.tolist()) in ({3}, {6})


def test_more_windows_than_there_are_is_an_error():
    with pytest.raises(ArgumentError, match="windows: got 4, expected at most 3"):
        ftp._windows(data([1] * 7 + [0, 1, 1]), 4, 5, seed=0)
