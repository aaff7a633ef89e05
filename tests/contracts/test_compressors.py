"""The one contract of all methods that make tokens fewer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.compress import Budget, compress, methods
from jtok.errors import ArgumentError, ArgumentTypeError
from tests.compress.compiled import whole
from tests.contracts.compressors import (
    BUDGET,
    CASES,
    PADDED,
    SEQ,
    arrays,
    choosing,
    inputs_of,
)

EACH = pytest.mark.parametrize("name", choosing())
ALL = pytest.mark.parametrize("name", list(methods()))
# Wrong types are refused by jtok itself, too, not only by the suite's type checker.
UNCHECKED = compress.__wrapped__


@functools.cache
def compiled(name, budget=None, **options):
    """The method, compiled once for all tests of a shape."""
    case, method = CASES[name], methods()[name]
    wanted = case.budget if budget is None else budget

    def run(x, valid, grid, given):
        return compress(
            x, method, budget=wanted, valid=valid, grid=grid,
            **given, **case.options, **options,
        )  # fmt: skip

    return jax.jit(run, static_argnums=2)


def call(name, given, valid=None, **options):
    some = inputs_of(methods()[name], given)
    grid = some.pop("grid")
    if valid is None:
        valid = jnp.ones(given["x"].shape[:2], bool)
    return compiled(name, **options)(given["x"], valid, grid, some)


def test_every_method_has_a_case():
    assert set(CASES) == set(choosing())


@EACH
def test_rows_budget_and_order(name):
    given = arrays(1)
    found = call(name, given)
    case = CASES[name]
    assert found.keep.shape == (2, case.budget) == found.valid.shape
    assert found.tokens.shape[:2] == (2, case.budget)
    assert found.keep.dtype == jnp.int32 and found.size.dtype == jnp.float32
    assert found.tokens.dtype == jnp.float32
    assert np.asarray(found.valid).all()  # the budget is reached exactly
    keep = np.asarray(found.keep)
    for row in keep:
        there = row[row >= 0]
        assert (np.diff(there) > 0).all()  # ascending, each once
    assign = np.asarray(found.assign)
    for row in range(2):
        counts = np.bincount(assign[row][assign[row] >= 0], minlength=case.budget)
        np.testing.assert_array_equal(counts, found.size[row])
        real = keep[row] >= 0
        own = assign[row][keep[row][real]]
        np.testing.assert_array_equal(own, np.flatnonzero(real))
    if found.score is not None:
        assert found.score.shape == (2, SEQ) and found.score.dtype == jnp.float32


@EACH
def test_what_becomes_of_the_tokens(name):
    given = arrays(1)
    found = call(name, given)
    x = np.asarray(given["x"])
    assign, keep = np.asarray(found.assign), np.asarray(found.keep)
    size, position = np.asarray(found.size), np.asarray(found.position)
    if CASES[name].merges:
        if name != "sparsevlm" and CASES[name].whole:  # what it drops is gone
            assert (assign >= 0).all() and size.sum(1).tolist() == [SEQ, SEQ]
    else:
        assert ((assign >= 0).sum(1) == CASES[name].budget).all()
        np.testing.assert_array_equal(found.tokens, x[np.arange(2)[:, None], keep])
    for row in range(2):
        for at in range(keep.shape[1]):
            members = np.flatnonzero(assign[row] == at)
            np.testing.assert_allclose(
                position[row, at, 0], 2 * members.mean(), rtol=1e-5
            )
            if "prumerge" not in name and name != "aim":  # means of means
                mean = x[row, members].mean(0)
                np.testing.assert_allclose(found.tokens[row, at], mean, atol=1e-5)


@EACH
def test_padding_changes_nothing(name):
    whole = call(name, arrays(2))
    wide = arrays(2, seq=PADDED)
    real = jnp.broadcast_to(jnp.arange(PADDED)[None] < SEQ, (2, PADDED))
    padded = call(name, wide, real)
    np.testing.assert_array_equal(padded.keep, whole.keep)
    np.testing.assert_array_equal(padded.assign[:, :SEQ], whole.assign)
    assert (np.asarray(padded.assign)[:, SEQ:] == -1).all()
    np.testing.assert_array_equal(padded.valid, whole.valid)
    np.testing.assert_allclose(padded.tokens, whole.tokens, atol=1e-5)
    np.testing.assert_allclose(padded.position, whole.position, atol=1e-5)


@EACH
def test_rows_with_fewer_tokens_than_the_budget(name):
    few = BUDGET - 6
    real = jnp.stack([jnp.arange(SEQ) < few, jnp.zeros(SEQ, bool)])
    found = call(name, arrays(3), real)
    assign = np.asarray(found.assign)
    assert (assign[0, :few] >= 0).all() and (assign[0, few:] == -1).all()
    assert found.valid.sum(1).tolist() == [few, 0]
    np.testing.assert_array_equal(found.keep[0, :few], np.arange(few))
    np.testing.assert_array_equal(found.tokens[1], 0)
    assert np.isfinite(np.asarray(found.tokens)).all()


@EACH
def test_a_batch_is_its_rows(name):
    given = arrays(4)
    both = call(name, given)
    for row in range(2):
        one = {key: value[row : row + 1] for key, value in given.items()}
        # Twice the same row: no other program is compiled.
        twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), one)
        found = call(name, twice)
        np.testing.assert_array_equal(found.keep[0], both.keep[row])
        np.testing.assert_array_equal(found.assign[1], both.assign[row])
        np.testing.assert_allclose(found.tokens[0], both.tokens[row], atol=1e-6)


@EACH
def test_bfloat16(name):
    given = arrays(5)
    low = given | {"x": given["x"].astype(jnp.bfloat16)}
    found = call(name, low)
    assert found.tokens.dtype == jnp.bfloat16
    rounded = call(name, given | {"x": low["x"].astype(jnp.float32)})
    np.testing.assert_array_equal(found.keep, rounded.keep)
    np.testing.assert_array_equal(found.assign, rounded.assign)
    np.testing.assert_allclose(
        found.tokens.astype(jnp.float32), rounded.tokens, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("name", [n for n in choosing() if CASES[n].whole])
def test_a_budget_of_all_changes_nothing(name):
    given = arrays(6)
    some = inputs_of(methods()[name], given)
    found = whole(compress)(given["x"], method=name, budget=SEQ, **some)
    np.testing.assert_array_equal(found.keep, np.arange(SEQ) + np.zeros((2, 1), int))
    np.testing.assert_array_equal(found.tokens, given["x"])


@EACH
def test_gradients_reach_the_tokens(name):
    given = arrays(7)
    loss = lambda x: jnp.sum(jnp.square(call(name, given | {"x": x}).tokens))
    grad = np.asarray(jax.grad(loss)(given["x"]))
    kept = np.asarray(call(name, given).assign) >= 0
    assert np.isfinite(grad).all()
    assert (np.abs(grad).sum(-1) > 0)[kept].all()


@pytest.mark.parametrize("name", ["divprune", "visionzip", "tome"])
def test_over_eight_devices(name):
    given = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 4), arrays(8))
    alone = call(name, given)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    spread = call(name, jax.device_put(given, over))
    assert len(spread.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(spread.keep, alone.keep)
    np.testing.assert_allclose(spread.tokens, alone.tokens, atol=1e-6)


@ALL
def test_what_is_needed_and_missing_is_named(name):
    method, given = methods()[name], arrays(9)
    for need in method.needs:
        # What is there is not looked at before what is missing is refused.
        others = dict.fromkeys(method.needs, 1)
        some = others | inputs_of(method, given) | {need: None}
        with pytest.raises(ArgumentError, match=f"^{need}.*{name} needs it"):
            compress(given["x"], name, budget=BUDGET, **some)


@ALL
@pytest.mark.parametrize("budget", [0, SEQ + 1, -1, 2.5, True])
def test_budgets_out_of_range(name, budget):
    given = arrays(9)
    some = inputs_of(methods()[name], given)
    with pytest.raises(ArgumentError, match="^budget"):
        UNCHECKED(given["x"], name, budget=budget, **some)


BAD = {
    "grid": ({"grid": (3, 3, 3)}, "^grid"),
    "valid": ({"valid": jnp.ones((2, 5), bool)}, "^valid"),
    "keys": ({"keys": jnp.ones((2, 5, 4))}, "^keys"),
    "position": ({"position": jnp.ones((2, 5, 1))}, "^position"),
    "order": ({"order": "random"}, "^order"),
    "compat": ({"compat": "paper"}, "^compat"),
    "budget": ({"budget": None}, "^budget"),
}


@pytest.mark.parametrize("what", BAD)
def test_shapes_and_words_that_do_not_fit(what):
    change, match = BAD[what]
    with pytest.raises(ArgumentError, match=match):
        UNCHECKED(jnp.ones((2, 8, 3)), "uniform", **({"budget": 4} | change))


def test_a_budget_is_a_count_or_a_share():
    assert Budget(keep=0.1).of(64, "half_even") == 6
    assert Budget(keep=0.5).of(25, "half_even") == 12  # 12.5 goes to the even one
    assert Budget(keep=0.5).of(27, "half_even") == 14
    assert Budget(keep=0.5).of(27) == 13
    assert Budget(count=7).of(28) == 7 and Budget(count=7).ratio(28) == 0.25
    x = jnp.ones((1, 27, 2))
    attn = jnp.ones((1, 27))
    half = functools.partial(whole(compress), x, budget=Budget(keep=0.5))
    assert half(method="fastv", attn=attn).keep.shape[1] == 14
    assert half(method="uniform").keep.shape[1] == 13
    for wrong in ({}, {"count": 3, "keep": 0.5}, {"keep": 0.0}, {"keep": 1.5},
                  {"keep": float("nan")}):  # fmt: skip
        with pytest.raises(ArgumentError, match="keep"):
            Budget(**wrong)
    with pytest.raises(ArgumentError, match="^budget"):
        Budget(keep=0.1).of(4)
    with pytest.raises(ArgumentError, match="^rounding"):
        Budget.of.__wrapped__(Budget(keep=0.5), 4, "up")


def test_the_menu():
    assert list(methods()) == sorted(methods())
    assert {row.family for row in methods().values()} >= {
        "similarity", "attention", "query", "baseline",
    }  # fmt: skip
    assert "dycoke" in methods("similarity", "video")
    assert "dycoke" not in methods("similarity", "image")
    for wrong in ({"family": "magic"}, {"modality": "smell"}):
        with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}"):
            methods(**wrong)
    x = jnp.ones((1, 8, 2))
    with pytest.raises(ArgumentError, match="did you mean tome"):
        compress(x, "tomme", budget=4)
    with pytest.raises(ArgumentTypeError, match="^treshold.*did you mean threshold"):
        compress(x, "adjacent", budget=4, treshold=0.5)
    with pytest.raises(ArgumentTypeError, match="^method"):
        compress(x, len, budget=4)


def test_positions_by_policy():
    x = jnp.ones((1, 8, 2))
    found = whole(compress)(x, method="uniform", budget=4)
    assert found.placed()[0, :, 0].tolist() == [0, 2, 4, 6]
    assert found.placed("renumbered")[0, :, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ArgumentError, match="^policy"):
        type(found).placed.__wrapped__(found, "sorted")
