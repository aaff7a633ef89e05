"""Read-only queries: equal to masked attention, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops import attention, query_attention
from jtok.ops.sharding import mesh_from, partition_spec
from jtok.testing import assert_close

LEFT, QUERIES, DIM = 7, 4, 8
SHAPES = ((4, 4), (4, 2), (4, 1))


def inputs(heads, kv_heads, batch=2, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    query = make(batch, QUERIES, heads, DIM)
    own = [make(batch, kv_heads, QUERIES, DIM) for _ in range(2)]
    left = [make(batch, kv_heads, LEFT, DIM) for _ in range(2)]
    return query, *own, *left


def masked(
    query, own_key, own_value, key, value, allow, bias=None, own_bias=None, **kw
):
    """The same through one mask over both parts."""
    keys = jnp.concatenate([key, own_key], axis=2)
    values = jnp.concatenate([value, own_value], axis=2)
    batch = query.shape[0]
    rows = jnp.broadcast_to(
        allow if allow.ndim == 3 else allow[:, None], (batch, QUERIES, LEFT)
    )
    itself = jnp.broadcast_to(jnp.eye(QUERIES, dtype=bool), (batch, QUERIES, QUERIES))
    if bias is not None:
        shape = (*bias.shape[:2], QUERIES, LEFT)
        own = jnp.broadcast_to(own_bias[..., None], (*shape[:3], QUERIES))
        bias = jnp.concatenate([jnp.broadcast_to(bias, shape), own], axis=-1)
    both = jnp.concatenate([rows, itself], axis=-1)
    return attention(query, keys, values, both, bias=bias, **kw)


def mask_of(batch=2):
    return jnp.arange(LEFT)[None, :] < jnp.array([LEFT, 4])[:batch, None]


@pytest.mark.parametrize("heads, kv_heads", SHAPES)
def test_equal_to_the_masked_form(heads, kv_heads):
    args = inputs(heads, kv_heads)
    rng = np.random.default_rng(1)
    bias = jnp.asarray(rng.normal(size=(2, heads, QUERIES, LEFT)), jnp.float32)
    own_bias = jnp.asarray(rng.normal(size=(1, heads, 1)), jnp.float32)
    some = jnp.asarray(rng.random((2, QUERIES, LEFT)) < 0.6)
    for allow in (mask_of(), some):
        assert_close(
            query_attention(*args, allow, scale=0.3),
            masked(*args, allow, scale=0.3),
        )
    own_wide = jnp.broadcast_to(own_bias, (2, heads, QUERIES))
    assert_close(
        query_attention(
            *args, some, scale=0.3, bias=bias, own_bias=own_bias, softcap=2.0
        ),
        masked(*args, some, scale=0.3, bias=bias, own_bias=own_wide, softcap=2.0),
    )


def test_gradients_are_those_of_the_masked_form():
    args = inputs(4, 2)
    bias = jnp.ones((1, 4, 1, LEFT)) * 0.1
    own_bias = jnp.ones((1, 4, QUERIES)) * 0.2

    def loss(form, args, bias, own_bias):
        out = form(*args, mask_of(), scale=0.5, bias=bias, own_bias=own_bias)
        return jnp.sum(jnp.sin(out))

    grads = [
        jax.jit(jax.grad(functools.partial(loss, form), argnums=(0, 1, 2)))(
            args, bias, own_bias
        )
        for form in (query_attention, masked)
    ]
    jax.tree.map(assert_close, *grads)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads[0]))


def test_queries_do_not_see_each_other_nor_what_is_masked():
    query, own_key, own_value, key, value = inputs(4, 2)
    full = query_attention(query, own_key, own_value, key, value, mask_of(), scale=0.5)
    one = query_attention(
        query[:, 2:3], own_key[:, :, 2:3], own_value[:, :, 2:3], key, value, mask_of(),
        scale=0.5,
    )  # fmt: skip
    assert_close(one, full[:, 2:3], rtol=1e-6)
    short = query_attention(
        query[1:], own_key[1:], own_value[1:], key[1:, :, :4], value[1:, :, :4],
        jnp.ones((1, 4), bool), scale=0.5,
    )  # fmt: skip
    assert_close(short, full[1:], rtol=1e-6)


def test_a_query_that_sees_nothing_else_gets_its_own_value():
    args = inputs(4, 2)
    none = jnp.zeros((2, LEFT), bool)
    form = functools.partial(query_attention, allow=none, scale=0.5)
    own = jnp.repeat(args[2].transpose(0, 2, 1, 3), 2, axis=2)
    np.testing.assert_array_equal(form(*args), own)
    grad = jax.grad(lambda args: jnp.sum(form(*args)))(args)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grad))


def test_bfloat16_keeps_the_softmax_in_float32():
    narrow = inputs(4, 2, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    out = query_attention(*narrow, mask_of(), scale=0.5)
    assert out.dtype == jnp.bfloat16
    want = query_attention(*wide, mask_of(), scale=0.5)
    assert_close(out.astype(jnp.float32), want, atol=2e-2, rtol=2e-2)


def test_no_square_of_both_parts():
    queries, left = 96, 512
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    args = (
        shape(1, queries, 1, DIM), shape(1, 1, queries, DIM), shape(1, 1, queries, DIM),
        shape(1, 1, left, DIM), shape(1, 1, left, DIM),
        jax.ShapeDtypeStruct((1, left), bool),
    )  # fmt: skip
    run = jax.jit(functools.partial(query_attention, scale=0.5))
    used = run.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * (left + queries) ** 2  # one square mask of float32


def test_on_a_mesh_as_without():
    args = inputs(4, 2, batch=4)
    allow = jnp.arange(LEFT)[None, :] < jnp.array([7, 4, 1, 0])[:, None]
    run = jax.jit(functools.partial(query_attention, scale=0.5))
    alone = run(*args, allow)
    mesh = mesh_from("data=4,model=2")
    with jax.set_mesh(mesh):
        axes = ("batch", "kv_heads", "seq", "head_dim")
        by_head = jax.NamedSharding(mesh, partition_spec(axes, mesh))
        own, left = (
            [jax.device_put(x, by_head) for x in part] for part in (args[1:3], args[3:])
        )
        assert_close(run(args[0], *own, *left, allow), alone)
