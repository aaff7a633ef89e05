"""The table of recent rows: the official trace, and a dictionary that agrees."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.embed import RowTable
from jtok.errors import ArgumentError
from jtok.testing import load_golden

VALUES = dict(zip("abcdef", range(1, 7), strict=True))


def rows(keys, values):
    return jnp.asarray([[values[key]] * 2 for key in keys], jnp.float32)


def test_the_official_trace():
    file = load_golden("dynamic_tokenization/dynamic_bpe.npz")
    table, values = RowTable(4, 2), dict(VALUES)
    lines = zip(file["lru_ops"].tolist(), file["lru_order"].tolist(),
                file["lru_slots"].tolist(), strict=True)  # fmt: skip
    for line, order, slots in lines:
        words = line.split()
        if words[0] == "get":
            table.get(words[1:])
        elif words[0] == "evict":
            table.evict(int(words[1]), keep=words[3:])
        elif "error" in words:
            with pytest.raises(ArgumentError, match="evict some first"):
                table.put(words[1:2], rows(words[1:2], values))
        elif words[-1] == "again":
            table.put(["a"], rows(["a"], {"a": 9}))
        else:
            table.put(words[1:], rows(words[1:], values))
        assert list(table.keys) == order.split()
        assert [table.slots()[k] for k in table.keys] == [int(s) for s in slots.split()]
    assert (np.asarray(table.values) == file["lru_final_values"]).all()


@given(
    batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=8)
)
def test_batches_get_their_own_rows_and_the_oldest_go(batches):
    table, recent = RowTable(5, 2), collections.OrderedDict()
    for batch in batches:
        made = []

        def make(new, made=made):
            made += new
            return jnp.asarray([[key, -key] for key in new], jnp.float32)

        try:
            slots = table.rows_for(batch, make)
        except ArgumentError as error:
            pytest.fail(f"a key of the batch was evicted: {error}")
        values = np.asarray(table.values)
        assert values[slots].tolist() == [[key, -key] for key in batch]
        unique = list(dict.fromkeys(batch))
        assert made == [key for key in unique if key not in recent]
        free = 5 - len(recent)
        for key in [k for k in recent if k not in unique][: max(0, len(made) - free)]:
            del recent[key]
        for key in unique:
            recent.pop(key, None)
            recent[key] = True
        assert list(table.keys) == list(recent)


def test_a_batch_that_does_not_fit_changes_nothing():
    table = RowTable(2, 1)
    table.put(["a", "b"], jnp.ones((2, 1)))
    before = (table.keys, np.asarray(table.values).tolist())
    with pytest.raises(ArgumentError, match="got 3 different"):
        table.rows_for(["c", "d", "e"], lambda new: jnp.zeros((len(new), 1)))
    with pytest.raises(ArgumentError, match="got 1 new"):
        table.put(["a", "c"], jnp.zeros((2, 1)))
    with pytest.raises(ArgumentError, match="keys of the table"):
        table.get(["a", "z"])
    with pytest.raises(ArgumentError, match="count: got 2"):
        table.evict(2, keep=["a"])
    with pytest.raises(ArgumentError, match="make: got"):
        table.rows_for(["c"], lambda new: jnp.zeros((1, 2)))
    assert (table.keys, np.asarray(table.values).tolist()) == before
    assert len(table) == 2 and "a" in table


@pytest.mark.parametrize("size, name", [((0, 1), "capacity"), ((1, 0), "width")])
def test_bad_sizes(size, name):
    with pytest.raises(ArgumentError, match=f"{name}: got 0"):
        RowTable(*size)
    table = RowTable(2, 1, jnp.bfloat16)
    table.put(["a"], jnp.ones((1, 1)))
    assert table.values.dtype == jnp.bfloat16
