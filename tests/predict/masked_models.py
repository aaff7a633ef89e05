"""The tiny masked models of the goldens, and models of a table for exact laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jtok import models, nn
from jtok.predict import Denoiser
from jtok.testing import load_golden

FOLDER = "diffusion_joint_sampling"
MASK, PAD, BOS = 28, 0, 1


def golden(name):
    return load_golden(f"{FOLDER}/{name}.npz")


@functools.cache
def base_model(*, shift=True, dtype="float32"):
    """The base of the goldens: with the shift, or without (LLaDA)."""
    file = golden("base_weights")
    width, heads, kv_heads, hidden, vocab, layers, mask, pad = file["meta"].tolist()
    assert (mask, pad) == (MASK, PAD)
    config = nn.DecoderConfig(
        family="Dream", vocab_size=vocab, width=width, num_layers=layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=width // heads,
        mlp_width=hidden, max_positions=64, query_bias=True, causal=False,
        logit_shift=shift, mask_token_id=mask, dtype=dtype,
    )  # fmt: skip
    read = lambda name: jnp.asarray(file[f"base.{name}"], dtype)
    params = {
        "embed": {"tokens": read("model.embed_tokens.weight")},
        "layers": tuple(
            block_params(lambda name, i=i: read(f"model.layers.{i}.{name}"))
            for i in range(layers)
        ),
        "final_norm": {"scale": read("model.norm.weight")},
        "unembed": {"kernel": read("lm_head.weight")},
    }
    generation = models.GenerationConfig((PAD,), BOS, PAD)
    return models.Model(params, config, generation_config=generation)


def block_params(read):
    """Weights of one layer, by what their file calls them, as a tree."""
    linear = lambda name: {"kernel": read(f"{name}.weight").T}
    biased = lambda name: {**linear(name), "bias": read(f"{name}.bias")}
    return {
        "attn_norm": {"scale": read("input_layernorm.weight")},
        "mlp_norm": {"scale": read("post_attention_layernorm.weight")},
        "query": biased("self_attn.q_proj"),
        "key": biased("self_attn.k_proj"),
        "value": biased("self_attn.v_proj"),
        "out": linear("self_attn.o_proj"),
        "mlp": {n: linear(f"mlp.{n}_proj") for n in ("gate", "up", "down")},
    }


def joint_params():
    """Weights of the golden layer."""
    file = golden("adjust_train")
    read = lambda name: jnp.asarray(file[f"drafter.{name}"])
    down = {
        "kernel": read("down_project.0.weight").T,
        "bias": read("down_project.0.bias"),
    }
    return {
        "embed_norm": {"scale": read("norm_embed.0.weight")},
        "hidden_norm": {"scale": read("norm_hidden.0.weight")},
        "out_norm": {"scale": read("norm_postattn.0.weight")},
        "down": down,
        "block": block_params(lambda name: read(f"layers.0.0.{name}")),
    }


@functools.cache
def table_denoiser(seq=3, vocab=3, seed=0):
    """A model whose logits at each position are random functions of the whole state.

    `vocab` real ids and MASK, the last one. Its hidden states are its logits.
    """
    states = (vocab + 1) ** seq
    rng = np.random.default_rng(seed)
    table = jnp.asarray(1.5 * rng.normal(size=(states, seq, vocab + 1)), jnp.float32)
    powers = jnp.asarray((vocab + 1) ** np.arange(seq), jnp.int32)

    def hidden(params, tokens, valid):
        del params, valid
        return table[tokens @ powers]

    def embed(params, tokens):
        del params
        return jax.nn.one_hot(tokens, vocab + 1)

    def unembed(params):
        del params
        return jnp.eye(vocab + 1), None

    return Denoiser(hidden, embed, unembed, vocab + 1, vocab)


@functools.cache
def constant_denoiser(*logits, seq=4):
    """A model that says the same everywhere; MASK is the last id."""
    model = table_denoiser(seq=seq, vocab=len(logits))
    row = jnp.asarray([*logits, 0.0], jnp.float32)

    def hidden(params, tokens, valid):
        del params, valid
        return jnp.broadcast_to(row, (*tokens.shape, len(row)))

    return model._replace(hidden=hidden)


def replayed(model, row, reveal, say=None):
    """States of greedy filling by plain arithmetic: what `reveal` names, step by step.

    `reveal(probs[seq, vocab], masked[seq])` gives positions; `say(state, step)` logits
    without MASK, by default the model's own.
    """
    state, states = np.array(row), []
    while (state == model.mask_id).any():
        logits = said_of(model, state) if say is None else say(state, len(states))
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        at = reveal(probs, state == model.mask_id)
        state = state.copy()
        state[at] = logits[at].argmax(-1)
        states.append(state)
    return np.stack(states)


def said_of(model, state):
    """Logits `[seq, vocab]` without MASK, float64."""
    hidden = model.hidden(None, jnp.asarray(state)[None], None)[0]
    return np.asarray(hidden, np.float64)[:, : model.mask_id]
