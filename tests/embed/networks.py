"""The networks of the golden files."""

import functools

import jax.numpy as jnp
from flax import traverse_util

from jtok.embed import (
    Hypernetwork,
    HypernetworkConfig,
    PieceMixerConfig,
    ResidualNetwork,
)
from jtok.testing import load_golden

FILES = {
    "untied": "dynamic_tokenization/hypernet_untied_nolang.npz",
    "tied": "dynamic_tokenization/hypernet_tied_lang_bias.npz",
}
MIXERS = "dynamic_tokenization/tokenkit_hypernet.npz"
UNUSED = "inter_token_blocks"


def config_of(file, name):
    count, index = int(file["cfg_n_langs"]), int(file["cfg_lang_index"])
    languages = count if index >= 0 else 0
    return HypernetworkConfig(
        row_width=int(file["cfg_n_embd"]), source_size=int(file["cfg_vocab"]),
        pad_id=int(file["cfg_pad_id"]), hidden=int(file["cfg_hidden"]),
        intermediate=int(file["cfg_intermediate"]), heads=int(file["cfg_heads"]),
        layers=int(file["cfg_layers"]), extra=int(file["cfg_extra"]),
        tied=name == "tied", languages=languages, predict_bias=name == "tied",
        max_positions=16,
    )  # fmt: skip


def official_tree(name):
    """The golden's leaves by their official paths."""
    file = load_golden(FILES[name])
    return {k.removeprefix("param/"): file[k] for k in file if k.startswith("param/")}


@functools.lru_cache
def golden_network(name, *, rescaled=False):
    """The golden's network, its language, and its source rows."""
    file = load_golden(FILES[name])
    flat = {k: v for k, v in official_tree(name).items() if UNUSED not in k}
    if rescaled:
        scalers = [k for k in file if k.startswith("rescaled/")]
        flat |= {k.removeprefix("rescaled/"): file[k] for k in scalers}
    tree = traverse_util.unflatten_dict(
        {k: jnp.asarray(v) for k, v in flat.items()}, "/"
    )
    config = config_of(file, name)
    language = int(file["cfg_lang_index"]) if config.languages else None
    return Hypernetwork(tree, config), language, jnp.asarray(file["source_embeddings"])


def golden_mixer(name, prefix="param"):
    """One of the golden's networks that correct pooled rows."""
    file = load_golden(MIXERS)
    start = f"{name}/{prefix}/"
    flat = {k.removeprefix(start): jnp.asarray(file[k]) for k in file
            if k.startswith(start)}  # fmt: skip
    sizes = {"hidden": 24, "intermediate": 48, "layers": 2, "alpha": 8.0}
    if name == "mlp_mean":
        sizes = {"hidden": 12, "intermediate": 24, "layers": 1, "alpha": 1.0}
    pooling = "first" if name == "mlp_first" else "mean"
    config = PieceMixerConfig(
        row_width=12, kinds=2, max_pieces=5, pooling=pooling, **sizes
    )
    # One rescaler serves both kinds of rows there.
    for leaf in ("w", "b"):
        at = f"in_rescaler/{leaf}"
        flat[at] = jnp.broadcast_to(flat[at], (1, 2, 12))
        at = f"out_rescaler/{leaf}"
        flat[at] = jnp.broadcast_to(flat[at], (2, 12))
    return ResidualNetwork(traverse_util.unflatten_dict(flat, "/"), config)
