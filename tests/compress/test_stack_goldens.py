"""Whole encoders that merge, against the official blocks of ViT and of BERT."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import nn
from jtok.compress import pitome_preset, schedule, tome
from jtok.models import LayerView, Taps
from jtok.models.compression import Tokens
from jtok.models.encoder_layers import run_layers
from jtok.testing import load_golden

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A schedule that also notes what enters its layers."""

    made: Any
    views: list[LayerView] = dataclasses.field(compare=False, hash=False)

    where = property(lambda self: self.made.where)
    how = property(lambda self: self.made.how)
    proportional = property(lambda self: self.made.proportional)
    restart = property(lambda self: self.made.restart)

    def __call__(self, view):
        self.views.append(view)
        return self.made(view)


def run(config, layers, x, mask, made):
    """Of every layer its output, and sizes and mask behind it; and the plan."""

    @jax.jit
    def program(layers, x, mask):
        at = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        taps = Taps(tuple(("resid_post", i) for i in range(config.num_layers)))
        tokens = Tokens(at, mask)
        if made is None:
            return run_layers(layers, config, x, tokens, Taps())[0]
        views: list[LayerView] = []
        _, tokens, read = run_layers(layers, config, x, tokens, taps, Seen(made, views))
        out = [read["resid_post", i] for i in range(config.num_layers)]
        sizes = [view.size for view in views[1:]] + [tokens.size]
        masks = [view.valid for view in views[1:]] + [tokens.mask]
        return out, sizes, masks, tokens.plan.source()

    return program(layers, jnp.asarray(x), mask)


# ViT ------------------------


def vit():
    golden = load_golden("pitome/vit_a.npz")
    _, _, width, heads, depth = golden["shape"].tolist()
    config = nn.EncoderConfig(
        vocab_size=1, width=width, num_layers=depth, num_heads=heads,
        head_dim=width // heads, mlp_width=2 * width, max_positions=64,
        positions="none", norm_first=True, norm_eps=1e-6, embed_norm=False,
    )  # fmt: skip

    def layer(index):
        get = lambda name: jnp.asarray(golden[f"w.{index}.{name}"])
        linear = lambda name: {
            "kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias"),
        }  # fmt: skip
        norm = lambda name: {
            "scale": get(f"{name}.weight"), "bias": get(f"{name}.bias"),
        }  # fmt: skip
        kernels = jnp.split(get("attn.qkv.weight").T, 3, axis=1)
        biases = jnp.split(get("attn.qkv.bias"), 3)
        parts = zip(("query", "key", "value"), kernels, biases, strict=True)
        made = {name: {"kernel": k, "bias": b} for name, k, b in parts}
        return made | {
            "attn_norm": norm("norm1"), "out": linear("attn.proj"),
            "mlp_norm": norm("norm2"),
            "mlp": {"up": linear("mlp.fc1"), "down": linear("mlp.fc2")},
        }  # fmt: skip

    return golden, config, tuple(layer(index) for index in range(depth))


@pytest.mark.parametrize("case", ["pitome", "pitome_prop", "tome_prop", "tome_noprop"])
def test_vit(case):
    golden, config, layers = vit()
    proportional = case.endswith("_prop")
    if case.startswith("pitome"):
        keep = round(float(golden["pitome.ratio"]), 4)
        made = pitome_preset(
            "deit", config.num_layers, keep=keep, proportional=proportional
        )
        options = dict(made.options)
        np.testing.assert_allclose(options["margin"], golden["pitome.margins"])
        bsm = [rule == "bsm" for rule in options["rule"]]
        assert bsm == golden["pitome.use_bsm"].astype(bool).tolist()
    else:
        removed = golden["tome.r"].tolist()
        made = schedule(tome, remove=removed, proportional=proportional)
    out, sizes, _, source = run(config, layers, golden["x"], None, made)
    for layer, (x, size) in enumerate(zip(out, sizes, strict=True)):
        np.testing.assert_allclose(x, golden[f"{case}.out{layer}"], **TOLERANCE)
        np.testing.assert_array_equal(size, golden[f"{case}.size{layer}"][..., 0])
    if f"{case}.source" in golden:
        np.testing.assert_array_equal(source, golden[f"{case}.source"])
    counts = made.token_counts(golden["x"].shape[1], config.num_layers, prefix=1)
    assert list(counts[1:]) == [x.shape[1] for x in out]


def test_vit_without_merging():
    golden, config, layers = vit()
    out = run(config, layers, golden["x"], None, None)
    np.testing.assert_allclose(out, golden["out_dense"], **TOLERANCE)


# BERT ------------------------


def bert():
    golden = load_golden("pitome/bert_a.npz")
    width, depth, heads, mlp = golden["cfg"].tolist()
    config = nn.EncoderConfig(
        vocab_size=1, width=width, num_layers=depth, num_heads=heads,
        head_dim=width // heads, mlp_width=mlp, max_positions=64, positions="none",
    )  # fmt: skip
    names = {
        "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "out": "attention.output.dense",
    }  # fmt: skip

    def layer(index):
        get = lambda name: jnp.asarray(golden[f"w.layer.{index}.{name}"])
        linear = lambda name: {
            "kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias"),
        }  # fmt: skip
        norm = lambda name: {
            "scale": get(f"{name}.weight"), "bias": get(f"{name}.bias"),
        }  # fmt: skip
        return {name: linear(there) for name, there in names.items()} | {
            "attn_norm": norm("attention.output.LayerNorm"),
            "mlp_norm": norm("output.LayerNorm"),
            "mlp": {"up": linear("intermediate.dense"), "down": linear("output.dense")},
        }  # fmt: skip

    return golden, config, tuple(layer(index) for index in range(depth))


def test_bert_with_padding_as_in_the_code():
    golden, config, layers = bert()
    keep = round(float(golden["ratio"]), 4)
    made = pitome_preset("bert", config.num_layers, keep=keep, compat="official")
    margins = dict(made.options)["margin"]
    np.testing.assert_allclose(margins, golden["margins"][: len(margins)])
    mask = jnp.asarray(golden["attention_mask"] > 0)
    out, _, masks, _ = run(config, layers, golden["x"], mask, made)
    for layer, (x, real) in enumerate(zip(out, masks, strict=True)):
        np.testing.assert_allclose(x, golden[f"out{layer}"], **TOLERANCE)
        np.testing.assert_array_equal(real, golden[f"mask{layer}"] > 0)
    np.testing.assert_allclose(out[-1], golden["out"], **TOLERANCE)


def test_bert_without_merging():
    golden, config, layers = bert()
    mask = jnp.asarray(golden["attention_mask"] > 0)
    out = run(config, layers, golden["x"], mask, None)
    np.testing.assert_allclose(out, golden["out_dense"], **TOLERANCE)


def test_bert_with_padding_is_bert_without_it():
    """By default pads neither rank nor merge: a short text is what it is alone."""
    golden, config, layers = bert()
    made = pitome_preset("bert", config.num_layers, keep=0.7, order="source")
    mask = jnp.asarray(golden["attention_mask"] > 0)
    short = int(mask[0].sum())
    assert short < mask.shape[1]
    out, _, masks, _ = run(config, layers, golden["x"], mask, made)
    alone, _, _, _ = run(config, layers, golden["x"][:1, :short], None, made)
    real = np.asarray(masks[-1][0])
    np.testing.assert_allclose(out[-1][0][real], alone[-1][0], **TOLERANCE)
    official, _, _, _ = run(
        config, layers, golden["x"], mask,
        pitome_preset("bert", config.num_layers, keep=0.7, compat="official"),
    )  # fmt: skip
    # A row without pads is the same either way, but for the order of its tokens.
    first = lambda hidden: hidden[-1][1, 0]
    np.testing.assert_allclose(first(official), first(out), **TOLERANCE)
