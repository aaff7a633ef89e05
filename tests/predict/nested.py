"""Small models with several exits, and golden weights read as a checkpoint."""

import dataclasses
import functools
import json

import jax
import numpy as np
import safetensors.numpy

from jtok import models
from jtok.predict import early_exit, exit_hidden, read_exits
from jtok.testing import tiny_config

EXITS = (1, 3, 4)


@functools.lru_cache
def nested_model(seed=0, *, layers=4, vocab_size=96, scale=3.0, dtype="float32"):
    """A tiny decoder of four layers, far from uniform at every exit."""
    config = tiny_config(vocab_size=vocab_size)
    config = dataclasses.replace(config, num_layers=layers, dtype=dtype)
    model = models.init(config, jax.random.key(seed))
    grow = lambda x: x * scale if x.ndim > 1 else x
    params = jax.tree.map(grow, model.params)
    unembed = {"kernel": 10 * params["unembed"]["kernel"]}
    return model.replace(params={**params, "unembed": unembed})


HIDDEN = jax.jit(exit_hidden, static_argnums=2)
READS = jax.jit(read_exits, static_argnums=2)
EARLY = jax.jit(early_exit, static_argnums=(2, 3))
LOGITS = jax.jit(lambda model, ids: model(ids).logits)


@functools.lru_cache
def near(model_seed=0, size=0.1, seed=3):
    """A model that often agrees with `nested_model(model_seed)`."""
    model = nested_model(model_seed)
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x * (1 + size * jax.random.normal(key, x.shape, x.dtype))
        for x, key in zip(leaves, keys, strict=True)
    ]
    return model.replace(params=jax.tree.unflatten(tree, moved))


def llama_of(file, prefix, sizes, folder):
    """The model whose weights a golden file has under a prefix."""
    weights = {
        name[len(prefix) :]: np.ascontiguousarray(file[name])
        for name in file
        if name.startswith(prefix)
    }
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    vocab, width, inner, layers, heads, kv_heads = map(int, sizes)
    fields = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return models.load(folder)
