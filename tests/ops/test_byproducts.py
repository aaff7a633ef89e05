"""By-products of attention equal those of the whole matrix, which is never there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, UnsupportedImplementationError
from jtok.ops import attention_byproducts, attention_power
from jtok.ops.byproducts import power_from_logits
from jtok.ops.byproducts.reference import block_for
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, collectives

SCALE = 0.35
BATCH, SEQ, HEADS, KV_HEADS, DIM = 2, 11, 4, 2, 8


def draw(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def inputs(seed=0, seq=SEQ, keys=SEQ, kv_heads=KV_HEADS, dtype=jnp.float32):
    query = draw(seed, BATCH, seq, HEADS, DIM, dtype=dtype)
    key, value = (
        draw(seed + i, BATCH, keys, kv_heads, DIM, dtype=dtype) for i in (1, 2)
    )
    return query, key, value


def brute(query, key, value, *, valid=None, bias=None, causal=False, temperature=1.0):
    """Float64 NumPy: the whole softmax, and the attention."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, group, axis=2) for x in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) * SCALE / temperature
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64)[:, None, None]
    seq, keys = scores.shape[2:]
    allow = np.ones((len(query), 1, seq, keys), bool)
    if valid is not None:
        allow = allow & np.asarray(valid)[:, None, None]
    if causal:
        allow = allow & np.tri(seq, keys, keys - seq, dtype=bool)
    weights = np.where(allow, np.exp(scores), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1.0)
    with np.errstate(divide="ignore"):
        return weights, np.einsum("bhqk,bkhd->bqhd", weights, value), np.log(total)


def padded(lengths, seq=SEQ):
    return jnp.arange(seq)[None] < jnp.array(lengths)[:, None]


RUN = jax.jit(
    attention_byproducts,
    static_argnames=("scale", "causal", "columns", "block", "implementation"),
)
ROWS = jnp.array([[0, 10, 4], [-1, 3, 11]])
ON = jnp.arange(SEQ)[None] % 3 == jnp.array([[0], [1]])


@pytest.mark.parametrize(
    "block, kv_heads, causal",
    [(None, 2, False), (4, 2, True), (3, 1, False), (11, 4, True)],
)
def test_everything_at_once(block, kv_heads, causal):
    query, key, value = inputs(kv_heads=kv_heads)
    valid, bias = padded([11, 7]), draw(9, BATCH, SEQ)
    found = RUN(
        query, key, value, scale=SCALE, valid=valid, key_bias=bias, causal=causal,
        columns=True, rows=ROWS, on=ON, temperature=0.5, block=block,
    )  # fmt: skip
    weights, mixed, lse = brute(
        query, key, value, valid=valid, bias=bias, causal=causal, temperature=0.5
    )
    hears = np.asarray(valid)[:, None, :, None]
    assert_close(found.mixed, mixed.astype(np.float32))
    assert_close(found.lse, lse[..., 0].astype(np.float32))
    assert_close(found.columns, (weights * hears).sum(axis=2).astype(np.float32))
    on = np.asarray(ON)[:, None, None]
    assert_close(found.mass, (weights * on).sum(axis=-1).astype(np.float32))
    rows = np.zeros((BATCH, HEADS, 3, SEQ), np.float32)
    rows[0] = weights[0][:, [0, 10, 4]]
    rows[1, :, 1] = weights[1][:, 3]
    assert_close(found.rows, rows)


def test_nothing_comes_that_was_not_asked_for():
    query, key, value = inputs()
    found = attention_byproducts(query, key, scale=SCALE)
    assert found.lse.shape == (BATCH, HEADS, SEQ)
    assert found.mixed is found.columns is found.rows is found.mass is None
    assert attention_byproducts(query, key, value, scale=SCALE).mixed is not None


@pytest.mark.parametrize(
    "seq, keys, causal",
    [(5, 11, False), (5, 11, True), (1, 11, True), (11, 5, True)],
)
def test_other_queries_than_keys(seq, keys, causal):
    query, key, value = inputs(seq=seq, keys=keys)
    valid = padded([keys, 3], keys)
    found = RUN(
        query, key, value, scale=SCALE, valid=valid, causal=causal, columns=True,
        rows=jnp.zeros((BATCH, 1), jnp.int32), block=2,
    )  # fmt: skip
    weights, mixed, _ = brute(query, key, value, valid=valid, causal=causal)
    assert_close(found.mixed, mixed.astype(np.float32))
    assert_close(found.columns, weights.sum(axis=2).astype(np.float32))
    assert_close(found.rows, weights[:, :, :1].astype(np.float32))


def test_only_valid_queries_are_heard():
    query, key, value = inputs()
    hears = padded([4, 9])
    found = RUN(query, key, value, scale=SCALE, columns=True, valid_queries=hears)
    weights, _, _ = brute(query, key, value)
    expected = (weights * np.asarray(hears)[:, None, :, None]).sum(axis=2)
    assert_close(found.columns, expected.astype(np.float32))


@pytest.mark.parametrize("block", [None, 4])
def test_a_query_that_sees_nothing_gives_zeros(block):
    query, key, value = inputs()
    # Left padding under a causal mask: the first two queries see nothing.
    valid = jnp.arange(SEQ)[None] >= jnp.array([[2], [SEQ]])

    def loss(query, key, value):
        found = attention_byproducts(
            query, key, value, scale=SCALE, valid=valid, causal=True, columns=True,
            on=ON, rows=jnp.array([[1], [5]]), block=block,
        )  # fmt: skip
        wanted = (found.mixed, found.columns, found.mass, found.rows)
        return sum(jnp.sum(jnp.sin(x)) for x in wanted), found

    gradients, found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
        query, key, value
    )
    assert not np.asarray(found.mixed)[0, :2].any()
    assert not np.asarray(found.mixed)[1].any()
    assert np.asarray(found.lse)[1].max() == -np.inf
    assert not np.asarray(found.columns)[1].any()
    assert not np.asarray(found.rows).any() and not np.asarray(found.mass)[1].any()
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)
    assert np.asarray(gradients[0])[0, 2:].any()


def test_gradients_do_not_depend_on_blocks():
    query, key, value = inputs()
    valid = padded([11, 7])

    def loss(block, *args):
        found = attention_byproducts(
            *args, scale=SCALE, valid=valid, columns=True, on=ON, block=block
        )
        lse = jnp.where(valid[:, None], found.lse, 0.0)
        parts = (found.mixed, found.columns, found.mass, lse)
        return sum(jnp.sum(jnp.sin(x)) for x in parts)

    gradient = jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)
    whole = gradient(11, query, key, value)
    jax.tree.map(assert_close, gradient(4, query, key, value), whole)
    step = 1e-2 * draw(7, *query.shape)
    slope = loss(11, query + step, key, value) - loss(11, query - step, key, value)
    assert_close(slope / 2, jnp.vdot(whole[0], step), rtol=1e-2, atol=1e-4)


def test_bfloat16_stays_close_to_float32():
    narrow = inputs(dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in narrow]
    got = RUN(*narrow, scale=SCALE, columns=True, on=ON, rows=ROWS, block=4)
    expected = RUN(*wide, scale=SCALE, columns=True, on=ON, rows=ROWS, block=4)
    assert got.mixed.dtype == jnp.bfloat16
    assert_close(got.mixed.astype(jnp.float32), expected.mixed, rtol=2e-2, atol=2e-2)
    for name in ("lse", "columns", "rows", "mass"):
        assert getattr(got, name).dtype == jnp.float32
        # The products are exact in both; only the order of sums differs.
        assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**16), st.integers(1, SEQ), st.booleans())
def test_laws(seed, length, causal):
    """Columns add up to the queries; padding changes nothing; copies are sizes."""
    query, key, value = inputs(seed)
    valid = padded([length, SEQ])
    size = 1.0 + jax.random.randint(jax.random.key(seed), (BATCH, SEQ), 0, 3)
    options = {"scale": SCALE, "causal": causal, "columns": True, "block": 4}
    found = RUN(
        query, key, value, valid=valid, key_bias=jnp.log(size), on=valid, **options
    )
    assert_close(
        jnp.sum(found.columns, axis=-1),
        jnp.broadcast_to(jnp.sum(valid, axis=1)[:, None], (BATCH, HEADS)),
        rtol=1e-5,
    )
    assert_close(found.mass, jnp.ones_like(found.mass), rtol=1e-5)
    hide = lambda x: jnp.where(valid[:, :, None, None], x, 1e3)
    spoilt = RUN(
        hide(query), hide(key), hide(value), valid=valid, key_bias=jnp.log(size),
        on=valid, **options,
    )  # fmt: skip
    assert_close(spoilt.columns, found.columns)
    if not causal:
        more = np.repeat(np.arange(SEQ), np.asarray(size, int)[1])
        copied = brute(query[1:], key[1:, more], value[1:, more])
        assert_close(found.mixed[1], copied[1][0].astype(np.float32), atol=1e-5)
        received = np.zeros((HEADS, SEQ))
        np.add.at(received.T, more, copied[0][0].sum(axis=1).T)
        assert_close(found.columns[1], received.astype(np.float32), rtol=1e-4)


def test_memory_is_linear_in_the_tokens():
    seq, heads = 4096, 2
    shape = jax.ShapeDtypeStruct((1, seq, heads, 16), jnp.bfloat16)

    def loss(query, key, value):
        found = attention_byproducts(
            query, key, value, scale=SCALE, columns=True, on=jnp.ones((1, seq), bool),
            rows=jnp.zeros((1, 1), jnp.int32),
        )  # fmt: skip
        return jnp.sum(found.mixed) + jnp.sum(found.columns**2) + jnp.sum(found.mass)

    for function in (loss, jax.grad(loss, (0, 1, 2))):
        done = jax.jit(function).lower(shape, shape, shape).compile()
        used = done.memory_analysis().temp_size_in_bytes
        assert used < heads * seq * seq * 4 / 4
    power = lambda q, k: attention_power(q, k, scale=SCALE)
    done = jax.jit(power).lower(shape, shape).compile()
    assert done.memory_analysis().temp_size_in_bytes < heads * seq * seq * 4 / 4


@pytest.mark.parametrize("seq", [1, 7, 100, 4096])
def test_blocks_cover_the_queries_and_keep_to_the_budget(seq):
    block = block_for("cpu", 24, 4096, seq)
    assert 1 <= block <= min(seq, 16)
    assert block_for("gpu", 1, 16, seq) == seq
    assert block_for("cpu", 1, 1, seq) == seq


def test_shards_give_what_one_device_gives():
    query, key, value = (
        draw(i, 4, 16, heads, DIM) for i, heads in enumerate((8, 4, 4))
    )
    valid = padded([16, 9, 3, 16], 16)
    call = lambda *args: attention_byproducts(
        *args, scale=SCALE, valid=valid, columns=True, on=valid, block=8
    )
    expected = jax.jit(call)(query, key, value)
    mesh = mesh_from("data=2,model=4")
    with jax.set_mesh(mesh):
        by = NamedSharding(mesh, PartitionSpec("data", None, "model"))
        placed = jax.device_put((query, key, value), by)
        run = jax.jit(call).lower(*placed).compile()
        got = run(*placed)
    assert not collectives(run)
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), np.asarray(b)), got, expected)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"block": 0}, "block"),
        ({"implementation": "triton"}, "implementation"),
        ({"platform": "tpuv5"}, "platform"),
    ],
)
def test_what_cannot_be_is_refused(options, match):
    query, key, _ = inputs()
    with pytest.raises(ArgumentError, match=match):
        attention_byproducts(query, key, scale=SCALE, **options)


def test_heads_that_share_no_keys_evenly_are_refused():
    query, key, _ = inputs()
    for call in (attention_byproducts, attention_power):
        with pytest.raises(ArgumentError, match="4 query heads and 3 key heads"):
            call(query, key[:, :, :1].repeat(3, 2), scale=SCALE)
    with pytest.raises(ArgumentError, match="iterations"):
        attention_power(query, key, scale=SCALE, iterations=-1)


def test_a_kernel_that_cannot_run_says_why():
    query, key, _ = inputs()
    with pytest.raises(UnsupportedImplementationError, match="XLA is the GPU path"):
        attention_byproducts(query, key, scale=SCALE, implementation="pallas_gpu")


# ---- power iteration

POWER = jax.jit(
    attention_power, static_argnames=("scale", "iterations", "causal", "block")
)


def power_brute(matrix, start, iterations, damping):
    p = np.broadcast_to(start[:, None], matrix.shape[:3])
    for _ in range(iterations):
        p = np.einsum("bhq,bhqk->bhk", p, matrix) * (1 - damping)
        p = p + damping * start[:, None]
    return p.astype(np.float32)


@pytest.mark.parametrize(
    "block, causal, iterations, damping",
    [(None, False, 0, 0.3), (None, True, 1, 0.0), (4, True, 5, 0.15)],
)
def test_power_is_that_of_the_whole_matrix(block, causal, iterations, damping):
    query, key, value = inputs()
    valid = padded([11, 6])
    matrix, _, _ = brute(query, key, value, valid=valid, causal=causal, temperature=0.1)
    start = np.asarray(valid, np.float64)
    start = start / start.sum(axis=1, keepdims=True)
    expected = power_brute(matrix, start, iterations, damping)
    options = {
        "temperature": 0.1, "iterations": iterations, "damping": damping,
        "valid": valid, "causal": causal,
    }  # fmt: skip
    got = POWER(query, key, scale=SCALE, block=block, **options)
    assert_close(got, expected)
    assert_close(jnp.sum(got, axis=-1), jnp.ones((BATCH, HEADS)), rtol=1e-5)
    wide = jnp.repeat(key, HEADS // KV_HEADS, axis=2)
    logits = SCALE * jnp.einsum("bqhd,bkhd->bhqk", query, wide)
    assert_close(power_from_logits(logits, **options), expected)


def test_power_from_a_start_of_ones_own():
    query, key, value = inputs()
    start = jax.nn.softmax(draw(5, BATCH, SEQ))
    valid = padded([11, 6])  # what is hidden still sends its share
    matrix, _, _ = brute(query, key, value, valid=valid)
    expected = power_brute(matrix, np.asarray(start, np.float64), 3, 0.2)
    got = POWER(
        query, key, scale=SCALE, iterations=3, damping=0.2, valid=valid, start=start,
        block=4,
    )  # fmt: skip
    assert_close(got, expected)


def test_power_converges_to_the_eigenvector():
    query, key, value = inputs()
    matrix, _, _ = brute(query, key, value)
    google = 0.85 * matrix + 0.15 / SEQ
    got = POWER(query, key, scale=SCALE, iterations=200, damping=0.15)
    values, vectors = np.linalg.eig(google.swapaxes(-1, -2))
    best = np.argmax(values.real, axis=-1)
    found = np.take_along_axis(vectors.real, best[..., None, None], axis=-1)[..., 0]
    found = found / found.sum(axis=-1, keepdims=True)
    assert_close(got, found.astype(np.float32), rtol=1e-4)


def test_flat_attention_flows_to_the_first_tokens():
    x = jnp.zeros((1, 6, 1, 4))
    got = np.asarray(attention_power(x, x, scale=1.0, causal=True, block=2))[0, 0]
    assert (np.diff(got) < 0).all()
