"""One block: its residual stream, its taps and what it hands to attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.nn import SITES, Block, Linear, Mlp, Norm, rotary_frequencies, rotate
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
    block = Block(tiny_config(family=family))
    out, cache = block.apply({"params": params}, x, POSITIONS, attend, tap)
    return x, params, seen, out, cache


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_block_is_its_parts(family):
    x, params, seen, out, cache = run(family)
    config = tiny_config(family=family)
    assert tuple(site for site in seen if site != "attend") == SITES

    def apply(module, name, value):
        part = params
        for key in name.split("/"):
            part = part[key]
        return module.apply({"params": part}, value)

    normed = apply(Norm(config), "attn_norm", x)
    for name, heads in (("query", 4), ("key", config.num_kv_heads)):
        flat = apply(Linear(heads * 8, config.query_bias), name, normed)
        split = flat.reshape(1, 3, heads, 8)
        if config.positions == "rotary":
            split = rotate(split, POSITIONS, rotary_frequencies(8, config.rope_theta))
        assert_close(seen[name], split, name=name)
    np.testing.assert_array_equal(seen["attend"][0], seen["query"])
    for index, name in ((1, "key"), (2, "value")):
        swapped = seen[name].transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(seen["attend"][index], swapped)
        np.testing.assert_array_equal(cache[index - 1], swapped)

    groups = 4 // config.num_kv_heads
    mixed = jnp.repeat(seen["value"], groups, axis=2)[:, ::-1].reshape(1, 3, 32)
    assert_close(seen["attn_out"], apply(Linear(32, config.out_bias), "out", mixed))
    assert_close(seen["resid_mid"], x + seen["attn_out"])
    hidden = apply(Norm(config), "mlp_norm", seen["resid_mid"])
    assert_close(seen["mlp_out"], apply(Mlp(config), "mlp", hidden))
    assert_close(out, seen["resid_mid"] + seen["mlp_out"])
    np.testing.assert_array_equal(out, seen["resid_post"])


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
