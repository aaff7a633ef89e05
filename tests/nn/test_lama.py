"""Low-rank attention pooling: goldens of the third-party code, and the laws."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError
from jtok.nn import LamaPooler, StructuredPooler, attention_penalty, fold_context
from jtok.testing import assert_close, load_golden

CASES = ("tanh_mask", "tanh_nomask", "linear_mask", "one_head")
HEADS, WIDTH, SEQ = 3, 4, 5
SEEDS = st.integers(0, 2**31 - 1)


@jax.jit
def pooled(params, x, mask, scored):
    return LamaPooler(WIDTH, heads=HEADS)(params, x, mask, scored=scored)


def drawn(seed):
    """Parameters, values, a mask with at least one real token, scored vectors."""
    rng = np.random.default_rng(seed)
    params = {
        "context_map": rng.normal(size=(WIDTH, HEADS)),
        "word_map": rng.normal(size=(WIDTH, HEADS)),
        "context": rng.normal(size=WIDTH),
    }
    x, scored = rng.normal(size=(2, 2, SEQ, WIDTH))
    mask = np.arange(SEQ) < rng.integers(1, SEQ + 1, size=2)[:, None]
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
    return params, jnp.float32(x), mask, jnp.float32(scored)


def naive(params, x, mask, scored):
    """Head by head and word by word, as the figure says."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    made = np.zeros((len(x), HEADS, WIDTH))
    weights = np.zeros((len(x), HEADS, SEQ))
    for b, row in enumerate(np.asarray(scored, np.float64)):
        scores = np.zeros((HEADS, SEQ))
        for t, word in enumerate(row):
            z = [
                np.tanh((p["context"] @ p["context_map"][:, i]) * (word @ p["word_map"][:, i]))  # noqa: E501
                for i in range(HEADS)
            ]  # fmt: skip
            scores[:, t] = z / np.sqrt(np.sum(np.square(z)) + 1e-12)
        for i in range(HEADS):
            power = np.exp(scores[i]) * mask[b]
            weights[b, i] = power / power.sum()
            made[b, i] = weights[b, i] @ np.asarray(x[b], np.float64)
    return made.astype(np.float32), weights.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_third_party_code(case):
    file = load_golden("lama/lama_thirdparty_a.npz")
    x, mask, heads = file[f"{case}.x"], file[f"{case}.mask"], file[f"{case}.P"].shape[1]
    pooler = LamaPooler(
        x.shape[-1], heads=heads, context="mean",
        activation="tanh" if int(file[f"{case}.tanh"]) else "linear",
    )  # fmt: skip
    params = {"context_map": file[f"{case}.P"], "word_map": file[f"{case}.Q"]}
    params, x = jax.tree.map(jnp.asarray, (params, x))
    assert_close(pooler.scores(params, x, mask), file[f"{case}.scores"])
    made = pooler(params, x, mask)
    assert_close(made.attention, file[f"{case}.attention"])
    assert_close(made.vectors, file[f"{case}.structured"])
    if case == "tanh_mask":
        flat = made.vectors.reshape(len(x), -1)
        bias = jnp.asarray(file[f"{case}.proj_b"])[None]
        out = flat @ jnp.asarray(file[f"{case}.proj_w"]).T + bias
        assert_close(out, file[f"{case}.out"])
    if case == "one_head":
        assert set(np.round(np.unique(file["one_head.scores"]))) <= {-1.0, 1.0}


@hypothesis.given(SEEDS)
def test_a_naive_double_loop(seed):
    params, x, mask, scored = drawn(seed)
    made = pooled(params, x, mask, scored)
    vectors, weights = naive(params, x, mask, scored)
    assert_close(made.attention, weights)
    assert_close(made.vectors, vectors)


@hypothesis.given(SEEDS)
def test_linear_scores_sum_to_the_bilinear_form(seed):
    params, _, _, u = drawn(seed)
    pooler = LamaPooler(WIDTH, heads=HEADS, activation="linear", normalize=False)
    low_rank = params["context_map"] @ params["word_map"].T
    expected = jnp.einsum("c,cd,btd->bt", params["context"], low_rank, u)
    assert_close(pooler.scores(params, u).sum(1), expected, atol=1e-5)


@hypothesis.given(SEEDS, st.permutations(range(HEADS)))
def test_permuted_columns_permute_heads(seed, order):
    params, x, mask, scored = drawn(seed)
    order = jnp.array(order)
    turned = params | {k: params[k][:, order] for k in ("context_map", "word_map")}
    made, other = pooled(params, x, mask, scored), pooled(turned, x, mask, scored)
    assert_close(other.vectors, made.vectors[:, order])


@hypothesis.given(SEEDS, st.integers(0, HEADS - 1))
def test_joint_sign_flip_changes_nothing(seed, head):
    params, x, mask, scored = drawn(seed)
    sign = jnp.ones(HEADS).at[head].set(-1)[None]
    turned = params | {k: params[k] * sign for k in ("context_map", "word_map")}
    made, other = pooled(params, x, mask, scored), pooled(turned, x, mask, scored)
    assert_close(other.vectors, made.vectors)
    one = params | {"context_map": params["context_map"] * sign}
    changed = pooled(one, x, np.ones_like(mask), scored).attention[:, head]
    kept = pooled(params, x, np.ones_like(mask), scored).attention[:, head]
    assert np.abs(changed - kept).max() > 1e-3


@hypothesis.given(SEEDS)
def test_scores_have_length_one_and_weights_a_bounded_ratio(seed):
    params, x, _, u = drawn(seed)
    scores = np.asarray(LamaPooler(WIDTH, heads=HEADS).scores(params, u))
    assert_close(np.linalg.norm(scores, axis=1), np.ones((2, SEQ), np.float32))
    assert (np.abs(scores) <= 1 + 1e-6).all()
    weights = np.asarray(pooled(params, x, np.ones((2, SEQ), bool), u).attention)
    ratio = weights.max(-1) / weights.min(-1)
    assert (ratio <= np.e**2 * (1 + 1e-5)).all()


def test_zero_scores_give_the_mean_and_finite_gradients():
    params, x, mask, u = drawn(3)
    params = params | {"context_map": jnp.zeros((WIDTH, HEADS))}
    made = pooled(params, x, mask, u)
    mean = (np.where(mask[..., None], x, 0).sum(1) / mask.sum(1)[:, None])[:, None]
    assert_close(made.vectors, np.broadcast_to(mean, made.vectors.shape))
    loss = lambda params: jnp.sum(pooled(params, x, mask, u).vectors ** 2)
    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert np.isfinite(np.asarray(leaf)).all()


@hypothesis.given(SEEDS)
def test_a_folded_context_is_the_same_pooler(seed):
    params, x, mask, scored = drawn(seed)
    made = pooled(params, x, mask, scored)
    other = pooled(fold_context(params), x, mask, scored)
    assert_close(other.vectors, made.vectors)


def test_context_given_or_averaged_of_any_width():
    params, x, mask, scored = drawn(5)
    rng = np.random.default_rng(0)
    outer = jnp.float32(rng.normal(size=(2, SEQ, 7)))
    params = {"word_map": params["word_map"], "context_map": jnp.float32(rng.normal(size=(7, HEADS)))}  # noqa: E501  # fmt: skip
    given = LamaPooler(WIDTH, heads=HEADS, context="given", context_width=7)
    mean = dataclasses.replace(given, context="mean")
    kept = np.where(mask[..., None], outer, 0).sum(1) / mask.sum(1)[:, None]
    made = mean(params, x, mask, scored=scored, context=outer)
    other = given(params, x, mask, scored=scored, context=jnp.float32(kept))
    assert_close(made.vectors, other.vectors)
    assert jax.tree.map(jnp.shape, given.init(jax.random.key(0))) == {
        "context_map": (7, HEADS), "word_map": (WIDTH, HEADS),
    }  # fmt: skip
    with pytest.raises(ArgumentError, match="context: got 'a mean of width 4'"):
        mean(params, x, mask)
    with pytest.raises(ArgumentError, match="context: got None, expected"):
        given(params, x, mask)
    with pytest.raises(ArgumentError, match=r"context: .*expected \[2, 7\]"):
        given(params, x, mask, context=x[:, 0])


def test_a_learnt_context_takes_no_other():
    params, x, mask, _ = drawn(6)
    with pytest.raises(ArgumentError, match="context: got 'a vector', expected None"):
        LamaPooler(WIDTH, heads=HEADS)(params, x, mask, context=x[:, 0])
    with pytest.raises(ArgumentError, match="params: got"):
        fold_context({"word_map": params["word_map"]})


def test_the_scale_lifts_the_ceiling():
    params, x, mask, u = drawn(7)
    pooler = LamaPooler(WIDTH, heads=HEADS, learn_scale=True, score_scale=3.0)
    started = pooler.init(jax.random.key(0))["score_scale"]
    assert started == 3.0 and started.dtype == jnp.float32
    sharp = pooler(params | {"score_scale": jnp.float32(8.0)}, x, mask, scored=u)
    fixed = dataclasses.replace(pooler, learn_scale=False, score_scale=8.0)
    assert_close(sharp.attention, fixed(params, x, mask, scored=u).attention)
    flat = pooled(params, x, mask, u).attention
    assert np.asarray(sharp.attention).max() > np.asarray(flat).max()
    scale = lambda s: jnp.sum(pooler(params | {"score_scale": s}, x, mask).vectors ** 2)
    assert abs(float(jax.grad(scale)(jnp.float32(1.0)))) > 1e-4


def test_initial_values():
    key = jax.random.key(0)
    lecun = LamaPooler(400, heads=25).init(key)
    assert 0.045 < float(jnp.std(lecun["word_map"])) < 0.055
    assert 0.4 < float(jnp.std(lecun["context"])) < 0.6
    wide = LamaPooler(400, heads=25, start="kaiming").init(key)["word_map"]
    assert 0.19 < float(jnp.abs(wide).max()) <= 0.2
    low = LamaPooler(4, heads=2, dtype="bfloat16").init(key)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.bfloat16.dtype}


@pytest.mark.parametrize(
    "pooler, count",
    [
        (LamaPooler(200, heads=15), 6_200),
        (StructuredPooler(200, heads=15, hidden=350), 75_250),
    ],
)
def test_parameter_counts_of_the_page(pooler, count):
    shapes = jax.eval_shape(pooler.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_structured_attention_against_its_equations():
    _, x, mask, _ = drawn(8)
    pooler = StructuredPooler(WIDTH, heads=2, hidden=3)
    params = pooler.init(jax.random.key(1))
    scores = np.tanh(x @ params["first"]) @ params["second"]
    power = np.exp(np.swapaxes(scores, 1, 2)) * mask[:, None]
    expected = power / power.sum(-1, keepdims=True)
    made = pooler(params, x, mask)
    assert_close(made.attention, expected)
    gram = expected @ np.swapaxes(expected, 1, 2) - np.eye(2)
    penalty = np.mean(np.sum(gram**2, axis=(1, 2)))
    assert_close(attention_penalty(made.attention), penalty)
    more = jnp.concatenate([made.attention, jnp.zeros((1, 2, SEQ))])
    assert_close(attention_penalty(more), penalty)


def test_rows_may_lie_on_eight_devices():
    params, _, _, _ = drawn(9)
    x = jax.random.normal(jax.random.key(3), (8, SEQ, WIDTH))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apart = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    mask = np.ones((8, SEQ), bool)
    made = pooled(params, apart, mask, apart)
    assert len(made.vectors.sharding.device_set) == 8
    assert_close(made.vectors, pooled(params, x, mask, x).vectors)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 0}, "heads: got 0, expected a whole number of at least 1"),
        ({"context": "none"}, "context: got 'none', expected one of"),
        ({"context_width": 0}, "context_width: got 0"),
        ({"activation": "relu"}, "activation: got 'relu'"),
        ({"start": "zeros"}, "start: got 'zeros'"),
        ({"score_scale": 0.0}, "score_scale: got 0.0"),
        ({"score_scale": float("nan")}, "score_scale: got nan"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        LamaPooler(WIDTH, **options)


def test_scored_vectors_of_another_shape_are_refused():
    params, x, mask, u = drawn(10)
    with pytest.raises(ArgumentError, match="scored: got"):
        LamaPooler(WIDTH, heads=HEADS)(params, x, mask, scored=u[:, 1:])
