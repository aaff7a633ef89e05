"""What the low-rank attention experiment masks, counts and compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lama
from experiments.lama_encoder import _by_frequency, _gaps, _windows
from experiments.lama_models import accuracy_rows, gap_of
from experiments.lama_poolings import POOLINGS, SHARP, poolings


def test_gaps_are_real_words_and_say_what_stood_there():
    rows = jnp.array([[5, 6, 7, 8, 9, 4, 3, 2], [5, 6, 7, 0, 0, 0, 0, 0]])
    noisy, at, labels = _gaps(rows, jax.random.key(0))
    assert at.shape == (2, 2)  # a quarter of 8 places
    for row in range(2):
        assert set(at[row].tolist()) <= set(np.flatnonzero(rows[row]).tolist())
        assert labels[row].tolist() == rows[row, at[row]].tolist()
        assert np.asarray(noisy[row, at[row]]).tolist() == [1, 1]
        kept = np.setdiff1d(np.arange(8), at[row])
        assert noisy[row, kept].tolist() == rows[row, kept].tolist()


def test_nats_by_frequency_count_known_words_only():
    seen = np.array([[2, 2, 3, 1, 0, 0]])
    ids = np.array([[2, 3, 1, 0]])
    # Counts with one more each: 3 of word 2, 2 of word 3.
    expected = -(np.log(3 / 5) + np.log(2 / 5)) / 2
    assert _by_frequency(seen, ids) == pytest.approx(expected)


def test_windows_drop_what_does_not_fill_one():
    assert _windows(np.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert _windows(np.arange(2), 3).shape == (0, 3)


def test_gaps_of_accuracies_are_paired_by_seed():
    found = {"a": {"accuracy": [0.5, 0.7]}, "b": {"accuracy": [0.4, 0.6]}}
    gap, (low, high) = gap_of(found, "a", "b")
    assert gap == pytest.approx(10) and low == pytest.approx(10) == high


def test_tables_have_the_parameters_of_each_head():
    config = lama.PRESETS["small"]
    found = {name: {"accuracy": [0.5], "seconds": [1.0]} for name in POOLINGS}
    counts = {
        row["pooling"]: row["head parameters"]
        for row in accuracy_rows(config, found, 96)
    }
    assert counts["mean"] == counts["max"] == counts["last"] == 0
    assert counts["structured"] == 96 * 96 + 96 * 8
    assert counts["lama, no word MLP"] == 2 * 96 * 8 + 96
    assert counts["lama"] == counts["lama, no word MLP"] + 96 * 96 + 96
    assert counts["lama, learnt scale"] == counts["lama"] + 1


def test_every_pooling_of_a_preset_is_known():
    for config in lama.PRESETS.values():
        known = poolings(config, 8)
        lists = (config.poolings, config.long_poolings, config.head_poolings)
        assert {name for names in lists for name in names} <= set(known)
        assert SHARP in config.long_poolings
