"""Heads, losses, gradients and metrics against the official implementation."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.models import storage
from jtok.predict import (
    AuxiliaryHeads,
    AuxiliaryLosses,
    HeadsConfig,
    auxiliary_hidden,
    auxiliary_losses,
    combine_losses,
    eval_losses,
    heads_from_tensors,
    init_heads,
    real_eval_loss,
    schedule_weight,
)
from jtok.testing import assert_close, load_golden

FILES = ("transformer", "transformer_onlyheads", "linear", "linear_sepunembed")
SCHEDULE_OF = {"sine_0.25": ("sine_r", 0.25)}


@functools.lru_cache
def base_model(folder):
    """The golden's Llama, read as any checkpoint is."""
    file = load_golden("caft/base_weights.npz")
    width, heads, kv_heads, mlp, vocab, layers, count = file["meta"].tolist()
    assert count == 4
    names = [name for name in file if name.startswith("base.")]
    storage.write_tensors(folder, {n.removeprefix("base."): file[n] for n in names})
    fields = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": mlp, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": False,
        "hidden_act": "silu", "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    return models.load(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base_model(tmp_path_factory.mktemp("base"))


def heads_of(file, model):
    """The golden's heads, in the layout of the published ones."""
    tensors = {name: file[name] for name in file if name.startswith("aux.")}
    return heads_from_tensors(tensors, model)


def input_of(name):
    return "pre_last" if name == "transformer_onlyheads" else "final_norm"


def batch_of(file):
    ids, labels = jnp.asarray(file["input_ids"]), jnp.asarray(file["labels"])
    return ids, labels, jnp.asarray(file["attention_mask"]).astype(bool)


@pytest.mark.parametrize("name", FILES)
def test_logits_of_every_head(model, name):
    file = load_golden(f"caft/{name}.npz")
    ids, _, mask = batch_of(file)
    real = np.asarray(mask)
    heads = heads_of(file, model)
    site = ("resid_pre", model.config.num_layers - 1)
    out = model(ids, mask=mask, taps=[site])
    for got, wanted in (
        (out.hidden, file["hidden_final_norm"]),
        (out.taps[site], file["hidden_pre_last_layer"]),
        (out.logits, file["logits"][0]),
    ):
        assert_close(got[real], wanted[real], atol=2e-5)  # stated with the goldens
    hidden = auxiliary_hidden(model, heads, ids, mask=mask, head_input=input_of(name))
    weight = model.unembedding()[0]
    if "unembed" in heads.params:
        logits = jnp.einsum("nbtd,nvd->nbtv", hidden, heads.params["unembed"]["kernel"])
    else:
        logits = jnp.einsum("nbtd,vd->nbtv", hidden, weight)
    assert_close(logits[:, real], file["logits"][1:, real], atol=2e-5)


@pytest.mark.parametrize("name", FILES)
def test_losses_counts_and_schedules(model, name):
    file = load_golden(f"caft/{name}.npz")
    ids, labels, mask = batch_of(file)
    found = auxiliary_losses(
        model, heads_of(file, model), ids, labels, mask=mask, head_input=input_of(name)
    )
    np.testing.assert_array_equal(found.counts, file["valid_per_head"])
    assert_close(found.means, file["loss_per_head"], atol=1e-5)
    steps, total = file["loss_steps"].tolist(), int(file["loss_max_steps"])
    for entry in [n for n in file if n.startswith("loss_") and "_h" in n]:
        if entry == "loss_per_head":
            continue
        kind, weight, decay = entry.removeprefix("loss_").rsplit("_", 2)
        schedule, ratio = SCHEDULE_OF.get(kind, (kind, 1.0))
        got = [
            combine_losses(
                found.means, decay=float(decay[1:]), base=name != FILES[1],
                weight=float(weight[1:])
                * schedule_weight(schedule, step, total, ratio=ratio),
            )
            for step in steps
        ]  # fmt: skip
        assert_close(np.array(got), file[entry], atol=1e-5, rtol=1e-6)


def gradients(model, heads, batch, *, weight, head_input, base):
    ids, labels, mask = batch

    def loss(params, own):
        found = auxiliary_losses(
            model.replace(params=params), heads.replace(params=own), ids, labels,
            mask=mask, head_input=head_input,
        )  # fmt: skip
        return combine_losses(found.means, decay=0.8, weight=weight, base=base)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(model.params, heads.params)


@pytest.mark.parametrize("name", FILES)
def test_gradients(model, name):
    file = load_golden(f"caft/{name}.npz")
    heads, linear = heads_of(file, model), "linear" in name
    alone = name == "transformer_onlyheads"
    last = model.config.num_layers - 1
    for prefix, weight in (
        ("g_rsine10", 0.01 * schedule_weight("rsine", 10, 40)),
        ("g_const", 1.0),
    ):
        base, own = gradients(
            model, heads, batch_of(file), weight=weight, base=not alone,
            head_input=input_of(name),
        )  # fmt: skip
        first = own["layers"][0]
        first = first["linear"]["kernel"] if linear else first["query"]["kernel"]
        got = {
            "lm_head": base["unembed"]["kernel"],
            "l0_q": base["layers"][0]["query"]["kernel"].T,
            "last_down": base["layers"][last]["mlp"]["down"]["kernel"].T,
            "norm": base["final_norm"]["scale"],
            "aux0": first[0].T,
            "auxlast": first[-1].T,
        }
        for part, value in got.items():
            wanted = file[f"{prefix}_{part}"]
            if wanted.shape == (1,):
                # Frozen there; here such parameters are not among the trainable ones.
                assert alone and wanted == 0
                continue
            scale = float(np.abs(wanted).max())
            assert_close(value, wanted, atol=1e-4 * scale, name=f"{prefix}_{part}")


@pytest.mark.parametrize("name", FILES)
def test_metrics(name):
    file = load_golden(f"caft/{name}.npz")
    counts = jnp.asarray(file["valid_per_head"])
    some = AuxiliaryLosses(jnp.asarray(file["loss_per_head"]) * counts, counts)
    by_head = eval_losses([some], compat="official")
    assert_close(by_head, file["metric_loss_by_head"], rtol=1e-6)
    wanted = float(file["metric_real_eval_loss"])
    assert real_eval_loss(by_head) == pytest.approx(wanted, rel=1e-6)


def test_official_heads_start_as_the_layer_before_the_last(model):
    assert load_golden("caft/transformer_onlyheads.npz")[
        "init_heads_equal_layer_minus2"
    ]
    made = init_heads(model, HeadsConfig.official())
    layer = model.params["layers"][model.config.num_layers - 2]
    for copy, leaf in zip(
        jax.tree.leaves(made.params["layers"][0]), jax.tree.leaves(layer), strict=True
    ):
        for head in copy:
            np.testing.assert_array_equal(head, leaf)
    assert isinstance(made, AuxiliaryHeads)
    assert (made.config.head_input, made.config.tuning_input) == (
        "pre_last", "final_norm",
    )  # fmt: skip


def test_schedules():
    file = load_golden("caft/schedules.npz")
    total = int(file["max_steps"])
    for name in ("sine", "rsine", "linear"):
        got = [schedule_weight(name, step, total) for step in file["steps"].tolist()]
        assert_close(np.array(got), file[name], atol=1e-6)
