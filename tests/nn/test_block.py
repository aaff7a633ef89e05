"""One block: its residual stream, its taps and what it hands to attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.nn import (
    SITES,
    Block,
    Experts,
    Linear,
    Mlp,
    Norm,
    rotary_frequencies,
    rotate,
)
from jtok.testing import assert_close, tiny_config, tiny_model

POSITIONS = jnp.array([[3, 9, 4]])


def run(family, edit=lambda site, value: value):
    """A block with an `attend` that mixes by reversing the sequence."""
    seen = {}
    x = jax.random.normal(jax.random.key(0), (1, 3, 32))

    def tap(site, value):
        assert site not in seen
        seen[site] = value
        return edit(site, value)

    def attend(query, key, value):
        seen["attend"] = (query, key, value)
        groups = query.shape[2] // value.shape[1]
        mixed = jnp.repeat(value.transpose(0, 2, 1, 3), groups, axis=2)[:, ::-1]
        return mixed, (key, value)

    params = tiny_model(family=family).params["layers"][0]
    config = tiny_config(family=family)
    block = Block(config, config.sparse(0))
    out, cache = block.apply({"params": params}, x, POSITIONS, attend, tap)
    return x, params, seen, out, cache


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2", "gpt2", "qwen3", "olmo2", "gemma2", "gpt_neox", "mixtral"],
)
def test_block_is_its_parts(family):
    x, params, seen, out, cache = run(family)
    config = tiny_config(family=family)
    size, kv_heads = config.head_dim, config.num_kv_heads
    assert tuple(site for site in seen if site != "attend") == SITES

    def apply(module, name, value):
        return module.apply({"params": params[name]}, value)

    def norm(name, value, there=True):
        assert (name in params) == there
        return apply(Norm(config), name, value) if there else value

    normed = norm("attn_norm", x, config.pre_norms)
    for name, heads in (("query", 4), ("key", kv_heads), ("value", kv_heads)):
        flat = apply(Linear(heads * size, config.query_bias), name, normed)
        over = None if name == "value" else config.qk_norm
        flat = norm(f"{name}_norm", flat) if over == "width" else flat
        split = flat.reshape(1, 3, heads, size)
        split = norm(f"{name}_norm", split) if over == "head" else split
        if config.positions == "rotary" and name != "value":
            rotated = int(size * config.rotary_fraction)
            frequencies = rotary_frequencies(rotated, config.rope_theta)
            split = rotate(split, POSITIONS, frequencies)
        assert_close(seen[name], split, name=name)
    np.testing.assert_array_equal(seen["attend"][0], seen["query"])
    for index, name in ((1, "key"), (2, "value")):
        swapped = seen[name].transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(seen["attend"][index], swapped)
        np.testing.assert_array_equal(cache[index - 1], swapped)

    groups = 4 // kv_heads
    mixed = jnp.repeat(seen["value"], groups, axis=2)[:, ::-1].reshape(1, 3, 4 * size)
    projected = apply(Linear(32, config.out_bias), "out", mixed)
    after = norm("attn_post_norm", projected, config.post_norms)
    assert_close(seen["attn_out"], after)
    assert_close(seen["resid_mid"], x + seen["attn_out"])
    read = x if family == "gpt_neox" else seen["resid_mid"]
    module = Experts(config) if family == "mixtral" else Mlp(config)
    hidden = apply(module, "mlp", norm("mlp_norm", read, config.pre_norms))
    assert_close(seen["mlp_out"], norm("mlp_post_norm", hidden, config.post_norms))
    assert_close(out, seen["resid_mid"] + seen["mlp_out"])
    np.testing.assert_array_equal(out, seen["resid_post"])


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_a_local_layer_has_its_own_frequencies(local, traced):
    config = tiny_config(family="gemma3_text")
    params = tiny_model(family="gemma3_text").params["layers"][0]
    x = jax.random.normal(jax.random.key(0), (1, 3, 32))

    def queries(local):
        def attend(query, key, value):
            return query, (query, key)

        run = Block(config).apply
        return run({"params": params}, x, POSITIONS, attend, lambda _, v: v, local)[1][
            0
        ]

    found = jax.jit(queries)(jnp.asarray(local)) if traced else queries(local)
    theta = config.local_rope_theta if local else config.rope_theta
    normed = Norm(config).apply({"params": params["attn_norm"]}, x)
    flat = Linear(32).apply({"params": params["query"]}, normed).reshape(1, 3, 4, 8)
    flat = Norm(config).apply({"params": params["query_norm"]}, flat)
    expected = rotate(flat, POSITIONS, rotary_frequencies(8, theta))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_what_a_tap_returns_goes_on(site):
    _, _, seen, out, _ = run("llama")
    _, _, edited, other, _ = run(
        "llama", lambda at, value: value + 1.0 if at == site else value
    )
    at = SITES.index(site)
    for earlier in SITES[: at + 1]:
        np.testing.assert_array_equal(edited[earlier], seen[earlier])
    if site in ("query", "key"):  # this `attend` reads only the values
        index = ("query", "key").index(site)
        assert not np.array_equal(edited["attend"][index], seen["attend"][index])
    else:
        assert not np.array_equal(other, out)
