"""Adapters: attached, merged and taken out again, and the files of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import models
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
)
from jtok.models import storage
from jtok.predict import (
    TARGETS,
    attach,
    detach,
    load_adapters,
    lora_init,
    merge,
    save_adapters,
    unmerge,
)
from jtok.testing import assert_close, tiny_config, tiny_model

IDS = jnp.array([[4, 9, 2, 7, 1]])
FAMILIES = ["llama", "gpt2", "gpt_neox", "phi3", "qwen3_moe"]


def grown(model, rank=3, seed=0, **options):
    """Adapters that change something."""
    keys = jax.random.split(jax.random.key(seed), 2)
    made = lora_init(model, rank, keys[0], **options)
    noise = lambda x: x + 0.2 * jax.random.normal(keys[1], x.shape)
    return jax.tree.map(noise, made)


def logits(model, params, **options):
    return model.replace(params=params)(IDS, **options).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_nothing_and_others_what_merging_changes(family):
    model = tiny_model(family=family)
    fresh = attach(model.params, lora_init(model, 3, jax.random.key(0)))
    np.testing.assert_array_equal(logits(model, fresh), model(IDS).logits)
    adapters = grown(model)
    attached = logits(model, attach(model.params, adapters, 0.5))
    merged = logits(model, merge(model.params, adapters, 0.5))
    assert_close(attached, merged, rtol=1e-4, atol=1e-5)
    assert jnp.abs(attached - model(IDS).logits).max() > 1e-2


def test_split_and_stacked_parameters_take_the_same_adapters():
    model = tiny_model()
    adapters = grown(model)
    stacked = models.stack_layers(model.params)
    assert_close(
        logits(model, attach(stacked, adapters, 0.5)),
        logits(model, attach(model.params, models.split_layers(adapters), 0.5)),
    )


@given(st.sampled_from([1, 4]), st.floats(-2, 2), st.integers(0, 6))
def test_unmerging_undoes_merging(rank, scale, first):
    model = tiny_model()
    adapters = grown(model, rank, targets=TARGETS[first:])
    back = unmerge(merge(model.params, adapters, scale), adapters, scale)
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(model.params)):
        assert_close(got, want)


def test_detaching_undoes_attaching_and_a_checkpoint_refuses_what_it_cannot_hold(
    tmp_path,
):
    model = tiny_model()
    attached = model.replace(params=attach(model.params, grown(model)))
    with pytest.raises(ArgumentError, match=r"lora_a.*merge adapters"):
        models.save(attached, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    embed = {**model.params["embed"], "extra": jnp.zeros((2, 32))}
    extra = {**attached.params, "embed": embed}
    with pytest.raises(ArgumentError, match=r"model: got .*embed/extra"):
        models.save(model.replace(params={**model.params, "embed": embed}), tmp_path)
    back = detach(extra)
    jax.tree.map(np.testing.assert_array_equal, back, model.params)
    models.save(model.replace(params=back), tmp_path / "out")


def test_gradients_reach_both_factors_and_the_scale():
    model = tiny_model()
    adapters = grown(model)

    def loss(adapters, scale):
        return jnp.mean(
            jnp.square(logits(model, attach(model.params, adapters, scale)))
        )

    found, slope = jax.jit(jax.grad(loss, argnums=(0, 1)))(adapters, jnp.float32(0.5))
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves((found, slope)))


def test_bfloat16_models_keep_float32_adapters():
    model = tiny_model()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    adapters = grown(model)
    merged = merge(half, adapters, 0.5)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert attach(half, adapters)["layers"][0]["query"]["lora_a"].dtype == jnp.float32


def test_bad_input_is_refused_by_name():
    model, key = tiny_model(), jax.random.key(0)
    with pytest.raises(ArgumentError, match=r"rank: got 0, expected 1 to 16"):
        lora_init(model, 0, key)
    with pytest.raises(ArgumentError, match=r"rank: got 17"):
        lora_init(model, 17, key)
    with pytest.raises(ArgumentError, match=r"targets: got 'q'"):
        lora_init(model, 1, key, targets=["q"])
    with pytest.raises(ArgumentError, match=r"targets: got \('gate',\)"):
        lora_init(tiny_config(family="gpt2"), 1, key, targets=["gate"])
    with pytest.raises(ArgumentTypeError, match=r"model: got MambaConfig"):
        lora_init(tiny_config(family="mamba"), 1, key)
    with pytest.raises(ArgumentTypeError, match=r"adapters: got list"):
        attach(model.params, [])
    adapters = grown(model)
    with pytest.raises(ArgumentError, match=r"params: got 'an adapter at"):
        attach(attach(model.params, adapters), adapters)
    with pytest.raises(ArgumentError, match=r"adapters: got 'layers/0/mlp/gate'"):
        attach(tiny_model(family="gpt2").params, grown(model, targets=["gate"]))
    with pytest.raises(ArgumentError, match=r"layers/0/key of shapes"):
        attach(tiny_model(family="gpt2").params, grown(model, targets=["key"]))
    one = {"layers": models.split_layers(adapters)["layers"][:1]}
    with pytest.raises(ArgumentError, match=r"adapters: got '1 layers'"):
        merge(model.params, one)


# ---- files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_through_files(family, tmp_path):
    model = tiny_model(family=family)
    adapters = grown(model)
    save_adapters(adapters, tmp_path / "a", model, scale=0.5, base="org/name")
    back, scale = load_adapters(tmp_path / "a", model)
    assert scale == 0.5
    jax.tree.map(np.testing.assert_array_equal, back, adapters)
    # What fused families read is common to their maps; it is written as it came.
    save_adapters(back, tmp_path / "b", model, scale=0.5, base="org/name")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()


def test_the_files_are_those_of_peft(tmp_path):
    model = tiny_model()
    adapters = grown(model, targets=["query", "down"])
    save_adapters(adapters, tmp_path / "a", model, scale=2.0)
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA" and fields["task_type"] == "CAUSAL_LM"
    assert (fields["r"], fields["lora_alpha"]) == (3, 6.0)
    assert fields["target_modules"] == ["down_proj", "q_proj"]
    with storage.TensorFiles.open(tmp_path / "a", stem="adapter_model") as tensors:
        names = tensors.names()
        root = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
        down, up = (tensors.read(f"{root}{x}.weight") for x in "AB")
    assert len(names) == 8
    np.testing.assert_array_equal(down, adapters["layers"]["query"]["lora_a"][1].T)
    np.testing.assert_array_equal(up, adapters["layers"]["query"]["lora_b"][1].T)


def write_peft(folder, tensors, **fields):
    folder.mkdir(exist_ok=True)
    base = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**base, **fields}))
    storage.write_tensors(folder, tensors, stem="adapter_model")


def by_peft(rows, columns, rank=2, name="model.layers.1.self_attn.q_proj"):
    random = np.random.default_rng(0)
    root = f"base_model.model.{name}.lora_"
    return {
        f"{root}A.weight": random.normal(size=(rank, rows)).astype(np.float32),
        f"{root}B.weight": random.normal(size=(columns, rank)).astype(np.float32),
    }


def test_adapters_of_one_layer_with_a_rank_and_an_alpha_of_their_own(tmp_path):
    model = tiny_model()
    options = {
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"1.self_attn.q_proj": 9},
    }
    tensors = by_peft(32, 32, rank=3)
    write_peft(tmp_path, tensors, **options)
    adapters, scale = load_adapters(tmp_path, model)
    down, up = tensors.values()
    kernels = merge(model.params, adapters, scale)["layers"]
    change = (
        kernels[1]["query"]["kernel"] - model.params["layers"][1]["query"]["kernel"]
    )
    assert_close(change, 9 / 3 * (up @ down).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        kernels[0]["query"]["kernel"], model.params["layers"][0]["query"]["kernel"]
    )


def test_the_other_scaling_and_a_fused_map(tmp_path):
    model = tiny_model(family="gpt_neox")
    name = "gpt_neox.layers.0.attention.query_key_value"
    tensors = by_peft(32, 96, name=name)
    write_peft(tmp_path, tensors, use_rslora=True)
    adapters, scale = load_adapters(tmp_path, model)
    assert scale == pytest.approx(4 / 2**0.5)
    down, up = tensors.values()
    whole = (up @ down).T.reshape(32, 4, 3, 8)  # head by head: query, key, value
    layer = merge(model.params, adapters, 1.0)["layers"][0]
    for place, path in enumerate(("query", "key", "value")):
        change = layer[path]["kernel"] - model.params["layers"][0][path]["kernel"]
        assert_close(change, whole[:, :, place].reshape(32, 32), rtol=1e-4, atol=1e-5)


def test_files_of_another_architecture_or_rank_are_refused(tmp_path):
    model = tiny_model()
    save_adapters(grown(model), tmp_path / "a", model)
    with pytest.raises(CheckpointError, match=r"not of this gpt2.*unknown base_model"):
        load_adapters(tmp_path / "a", tiny_config(family="gpt2"))
    with pytest.raises(CheckpointError, match=r"r=3, expected rank 8"):
        load_adapters(tmp_path / "a", model, rank=8)
    write_peft(tmp_path / "b", by_peft(32, 32), r=4)
    with pytest.raises(CheckpointError, match=r"shape \[2, 32\], expected \[4, 32\]"):
        load_adapters(tmp_path / "b", model)
    write_peft(tmp_path / "c", dict([*by_peft(32, 32).items()][:1]))
    with pytest.raises(CheckpointError, match=r"missing .*lora_B"):
        load_adapters(tmp_path / "c", model)
    write_peft(tmp_path / "d", by_peft(32, 32), use_dora=True)
    with pytest.raises(UnsupportedCheckpointError, match=r"use_dora=True"):
        load_adapters(tmp_path / "d", model)
    write_peft(tmp_path / "e", by_peft(32, 32), lora_alpha=0)
    with pytest.raises(CheckpointError, match=r"lora_alpha=0"):
        load_adapters(tmp_path / "e", model)
    (tmp_path / "e" / "adapter_config.json").unlink()
    with pytest.raises(MissingFileError):
        load_adapters(tmp_path / "e", model)
    with pytest.raises(ArgumentError, match=r"scale: got 0"):
        save_adapters(grown(model), tmp_path / "f", model, scale=0)
    with pytest.raises(ArgumentError, match=r"adapters: got .*layers/0"):
        save_adapters(grown(model), tmp_path / "f", tiny_model(family="gpt2"))
    assert not (tmp_path / "f").exists()
