"""Models that predict several tokens: those of the goldens, and tiny ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jtok import nn
from jtok.predict import FutureConfig, FutureModel, init_future
from jtok.testing import load_golden, tiny_config, tiny_model

PROMPTS = [[1, 2, 3], [5] * 9, [7], [9, 8, 7, 6, 5, 9, 8]]


def _linear(file, name):
    kernel, bias = file[f"{name}.kernel"], file[f"{name}.bias"]
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def _norm(file, name):
    return {part: jnp.asarray(file[f"{name}.{part}"]) for part in ("scale", "bias")}


def _parts(file, name, names):
    """Maps that the file keeps side by side in one kernel."""
    kernels = np.split(file[f"{name}.kernel"], len(names), axis=1)
    biases = np.split(file[f"{name}.bias"], len(names))
    return {
        part: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        for part, kernel, bias in zip(names, kernels, biases, strict=True)
    }


def _block(file, name):
    block = {
        "attn_norm": _norm(file, f"{name}.ln1"),
        "mlp_norm": _norm(file, f"{name}.ln2"),
        **_parts(file, f"{name}.qkv", ("query", "key", "value")),
        "out": _linear(file, f"{name}.o"),
        "mlp": {part: _linear(file, f"{name}.{part}") for part in ("up", "down")},
    }
    if name.startswith("dec"):
        block["cross_norm"] = _norm(file, f"{name}.lnc")
        block["cross_query"] = _linear(file, f"{name}.cq")
        block.update(_parts(file, f"{name}.ckv", ("cross_key", "cross_value")))
        block["cross_out"] = _linear(file, f"{name}.co")
    return block


@functools.lru_cache
def golden_model(data, weights):
    """The model of one golden file, whose `meta` says its sizes."""
    vocab, width, heads, above, below, pseudo, horizon, places = (
        int(x) for x in load_golden(f"ftp/{data}.npz")["meta"]
    )
    encoder = nn.DecoderConfig(
        family="gpt2", vocab_size=vocab, width=width, num_layers=above,
        num_heads=heads, num_kv_heads=heads, head_dim=width // heads,
        mlp_width=4 * width, max_positions=places, norm="layer", norm_eps=1e-5,
        mlp="plain", activation="gelu_tanh", positions="learned", query_bias=True,
        out_bias=True, mlp_bias=True, tied=True,
    )  # fmt: skip
    file = load_golden(f"ftp/{weights}.npz")
    params = {
        "encoder": {
            "embed": {
                "tokens": jnp.asarray(file["wte"]),
                "positions": jnp.asarray(file["wpe"]),
            },
            "layers": tuple(_block(file, f"enc.{i}") for i in range(above)),
            "final_norm": _norm(file, "enc_ln"),
        },
        "expand": _linear(file, "expand"),
        "decoder": {
            "start": jnp.asarray(file["start"]),
            "positions": jnp.asarray(file["dpe"]),
            "layers": tuple(_block(file, f"dec.{i}") for i in range(below)),
            "final_norm": _norm(file, "dec_ln"),
        },
    }
    config = FutureConfig(
        encoder=encoder, decoder_layers=below, pseudo_tokens=pseudo, horizon=horizon
    )
    return FutureModel(params, config)


@functools.lru_cache
def tiny_future(*, family="gpt2", first_input="start", horizon=4, dtype="float32"):
    """Random weights, grown until the next token is far from uniform."""
    encoder = tiny_config(family=family)
    if dtype != "float32":
        encoder = nn.DecoderConfig(**{**vars(encoder), "dtype": dtype})
    config = FutureConfig(
        encoder=encoder, decoder_layers=2, pseudo_tokens=3, horizon=horizon,
        first_input=first_input,
    )  # fmt: skip
    model = init_future(config, jax.random.key(1))
    grow = lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf
    params = jax.tree.map(grow, model.params)
    if dtype == "float32":
        params["encoder"] = tiny_model(family=family).params
    return model.replace(params=params)
