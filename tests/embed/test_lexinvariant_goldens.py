"""Goldens of lexinvariant models: tables, a decoder by others, ciphers."""

import jax
import jax.numpy as jnp
import numpy as np

from jtok import nn
from jtok.embed import (
    LexinvariantConfig,
    LexinvariantModel,
    embed_by_tables,
    encipher,
    key_accuracy,
    lexinvariant_logits,
    logits_by_tables,
    mix_tables,
    read_keys,
)
from jtok.testing import assert_close


def test_tables(golden):
    """Embedding, logits and masked loss against each sequence's own table."""
    file = golden("lexinvariant/tables.npz")
    tables, ids = jnp.asarray(file["E"]), jnp.asarray(file["x"])
    assert_close(embed_by_tables(tables, ids), file["embedded"])
    logits = logits_by_tables(jnp.asarray(file["hidden"]), tables)
    assert_close(logits, file["logits"], atol=1e-5, rtol=1e-5)
    # The targets are the inputs, shifted; padding is no target.
    valid = file["valid"]
    shifted = np.roll(np.asarray(ids), -1, axis=1)
    counts = np.concatenate([valid[:, 1:] & valid[:, :-1], np.zeros((3, 1), bool)], 1)
    np.testing.assert_array_equal(counts, file["target_valid"])
    np.testing.assert_array_equal(shifted[counts], file["target"][counts])
    log_probs = jax.nn.log_softmax(logits)
    target = jnp.asarray(file["target"])
    nats = -jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
    nats = jnp.where(counts, nats, 0.0)
    assert_close(nats, np.where(counts, file["nll"], 0), atol=1e-5, rtol=1e-5)
    assert_close(jnp.sum(nats) / counts.sum(), file["loss"], atol=1e-5, rtol=1e-5)


def test_mixed_tables(golden):
    file = golden("lexinvariant/tables.npz")
    learned, chosen = jnp.asarray(file["fixed"]), jnp.asarray(file["random_rows"])
    mixed = mix_tables(jnp.asarray(file["E"]), learned, chosen)
    np.testing.assert_array_equal(mixed, file["mixed"])
    rows = embed_by_tables(mixed, jnp.asarray(file["x"]))
    np.testing.assert_array_equal(rows, file["embedded_mixed"])
    logits = logits_by_tables(jnp.asarray(file["hidden"]), mixed)
    assert_close(logits, file["logits_mixed"], atol=1e-5, rtol=1e-5)


def decoder_of(file):
    """The decoder of the golden in jtok's words; it gates the other way round."""
    vocab, width, layers, heads, context = file["cfg"].tolist()
    weight = lambda name: jnp.asarray(file[f"w_{name}"])
    dense = lambda name: {
        "kernel": weight(f"{name}.weight").T, "bias": weight(f"{name}.bias")
    }  # fmt: skip
    norm = lambda name: {
        "scale": weight(f"{name}.weight"), "bias": weight(f"{name}.bias")
    }  # fmt: skip

    def block(index):
        name = f"layers.{index}"
        kernels = jnp.split(weight(f"{name}.attention.in_proj_weight"), 3)
        biases = jnp.split(weight(f"{name}.attention.in_proj_bias"), 3)
        parts = zip(("query", "key", "value"), kernels, biases)
        return {
            **{part: {"kernel": k.T, "bias": b} for part, k, b in parts},
            "out": dense(f"{name}.attention.out_proj"),
            "attn_norm": norm(f"{name}.ln1"),
            "mlp_norm": norm(f"{name}.ln2"),
            "mlp": {
                "gate": dense(f"{name}.mlp.up_proj"),
                "up": dense(f"{name}.mlp.gate_proj"),
                "down": dense(f"{name}.mlp.down_proj"),
            },
        }

    config = nn.DecoderConfig(
        family="gpt2", vocab_size=vocab, width=width, num_layers=layers,
        num_heads=heads, num_kv_heads=heads, head_dim=width // heads,
        mlp_width=file["w_layers.0.mlp.up_proj.bias"].shape[0], max_positions=context,
        norm="layer", norm_eps=1e-5, mlp="gated", activation="gelu",
        positions="learned", query_bias=True, out_bias=True, mlp_bias=True, tied=True,
    )  # fmt: skip
    body = {
        "embed": {"positions": weight("pos_embedding.weight")},
        "layers": tuple(block(index) for index in range(layers)),
        "final_norm": norm("ln_final"),
    }
    options = LexinvariantConfig(model=config, logit_scale="none")
    return LexinvariantModel({"body": body}, options)


def test_decoder_of_others(golden):
    """Logits of a PyTorch decoder with captured tables, and of renamed symbols."""
    file = golden("lexinvariant/decoder.npz")
    model = decoder_of(file)
    run = jax.jit(lambda ids, tables: lexinvariant_logits(model, ids, tables=tables))
    ids, tables = jnp.asarray(file["x"]), jnp.asarray(file["E"])
    logits = run(ids, tables)
    assert_close(logits, file["logits"], atol=2e-5, rtol=2e-5)
    names = jnp.asarray(file["perm"])
    renamed = run(names[ids], jnp.zeros_like(tables).at[:, names].set(tables))
    assert_close(renamed[..., names], logits, atol=2e-6, rtol=2e-6)


def test_ciphers(golden):
    file = golden("lexinvariant/cipher.npz")
    found = jax.jit(read_keys)(jnp.asarray(file["posterior"]))
    np.testing.assert_array_equal(found.greedy, file["greedy"])
    np.testing.assert_array_equal(found.assigned, file["assign"])
    keys = jnp.asarray(file["key"])
    assert_close(key_accuracy(found.greedy, keys), file["acc_greedy"])
    assert_close(key_accuracy(found.assigned, keys), file["acc_assign"])
    # The keys are keys: a text goes there and back.
    plain = jnp.tile(jnp.arange(6)[None], (5, 1))
    there = encipher(plain, keys)
    np.testing.assert_array_equal(jnp.take_along_axis(keys, there, axis=1), plain)
