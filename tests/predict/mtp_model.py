"""The models of the goldens for mask tokens, in jtok's own tree."""

import jax.numpy as jnp
import numpy as np

from jtok import models, nn
from jtok.testing import load_golden

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def model_of(meta, weights):
    """The plain model and what was trained for it."""
    width, heads, kv_heads, hidden, vocab, layers, k, rank = (int(x) for x in meta)
    config = nn.DecoderConfig(
        vocab_size=vocab, width=width, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=width // heads, mlp_width=hidden,
        max_positions=512, norm_eps=1e-5, rope_theta=10000.0,
    )  # fmt: skip
    assert weights["mask_emb"].shape == (k, width)
    get = lambda name: jnp.asarray(weights[name])
    plain, adapters = [], []
    for index in range(layers):
        layer, adapted = {"mlp": {}}, {"mlp": {}}
        for names, path in ((ATTENTION, "self_attn"), (MLP, "mlp")):
            for ours, theirs in names.items():
                root = f"base.model.layers.{index}.{path}.{theirs}"
                some = (layer, adapted)
                if path == "mlp":
                    some = (layer["mlp"], adapted["mlp"])
                some[0][ours] = {"kernel": get(f"{root}.lin.weight").T}
                down, up = get(f"{root}.down").T, get(f"{root}.up").T
                assert down.shape[1] == rank
                some[1][ours] = {"lora_a": down, "lora_b": up}
        norms = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        for ours, theirs in norms.items():
            name = f"base.model.layers.{index}.{theirs}.weight"
            layer[ours] = {"scale": get(name)}
        plain.append(layer)
        adapters.append(adapted)
    params = {
        "embed": {"tokens": get("base.model.embed_tokens.weight")},
        "layers": tuple(plain),
        "final_norm": {"scale": get("base.model.norm.weight")},
        "unembed": {"kernel": get("base.lm_head.weight")},
    }
    trained = {
        "adapters": models.stack_layers({"layers": tuple(adapters)}),
        "masks": get("mask_emb"),
        "sampler": {
            name: {
                "kernel": get(f"samp.l{i}.weight").T,
                "bias": get(f"samp.l{i}.bias"),
                "norm": {
                    "scale": get(f"samp.n{i}.weight"),
                    "bias": get(f"samp.n{i}.bias"),
                },
            }
            for name, i in (("first", 1), ("second", 2))
        },
    }
    return models.Model(params, config), trained


def golden_model(name):
    """Model, what was trained, and the arrays of `train` or `decode`."""
    golden = load_golden(f"mtp/{name}.npz")
    made = model_of(np.asarray(golden["meta"]), load_golden(f"mtp/{name}_weights.npz"))
    return *made, golden
