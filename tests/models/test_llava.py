"""LLaVA: images in prompts, against foreign outputs, and decoding with them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.decode import generate, prompt_lookup
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    UnsupportedCheckpointError,
)
from jtok.models import (
    FAMILIES,
    ImageText,
    config_from,
    image_features,
    with_images,
)
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import GOLDENS
from tests.models.towers import Twins, nhwc

FOLDER = GOLDENS / "llava"
IMAGE = 95


@functools.lru_cache
def golden_model(dtype=None):
    return models.load(FOLDER, dtype=dtype)


@functools.lru_cache
def golden_inputs():
    expected = load_golden("hf_checkpoints/llava/expected.npz")
    images = nhwc(expected["in_pixel_values"])
    return ImageText(jnp.asarray(expected["in_input_ids"]), images)


def tiny_images(batch=3):
    return jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))


def prompts_of(count, each=1):
    """Two prompts with three images of `each` tokens: two in the first."""
    first = [1, *[IMAGE] * each, 9, *[IMAGE] * each, 4, 9, 4, 9]
    second = [1, 9, 4, *[IMAGE] * each, 9, 4]
    return [first, second][:count]


run = jax.jit(lambda model, both, **arrays: model(both, **arrays))
decoded = jax.jit(lambda model, ids, **arrays: model(ids, **arrays))
features_of = jax.jit(image_features, static_argnames="compress")


def fields_of(**changes):
    fields = json.loads((FOLDER / "config.json").read_text())
    for name, change in changes.items():
        whole = isinstance(change, dict) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **change} if whole else change
    return {k: v for k, v in fields.items() if v != "absent"}


# ---- foreign outputs


def test_outputs_of_transformers():
    expected = load_golden("hf_checkpoints/llava/expected.npz")
    model, both = golden_model(), golden_inputs()
    # The README's tolerance: another framework, another order of sums.
    assert_close(run(model, both).logits, expected["out_logits"], atol=2e-4)
    decoder, ids = with_images(model, expected["in_input_ids"], both.images)
    out = decoded(decoder, jnp.asarray(ids))
    assert_close(out.logits, expected["out_logits"], atol=2e-4)


def test_a_golden_checkpoint_comes_back_byte_for_byte(tmp_path):
    model = golden_model()
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (FOLDER / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    written, fields = FAMILIES["llava"].write(model.config), fields_of()
    for name in ("text_config", "vision_config"):
        assert fields[name].items() <= written.pop(name).items()
        del fields[name]
    assert written.items() <= fields.items()


def test_older_names_of_the_tower(tmp_path):
    place = tmp_path / "older"
    place.mkdir()
    held = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    for name in list(held):
        if name.startswith("vision_tower."):
            older = name.replace("vision_tower.", "vision_tower.vision_model.")
            held[older] = held.pop(name)
    held["vision_tower.vision_model.embeddings.position_ids"] = np.arange(17)[None]
    safetensors.numpy.save_file(held, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(fields_of()))
    model = models.load(place)
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(golden_model().params)
    ):
        np.testing.assert_array_equal(one, other)


# ---- vectors of images


def test_vectors_are_those_of_the_layer_before_the_last_without_the_class():
    model, images = tiny_model(family="llava"), tiny_images()
    found = features_of(model, images)
    assert found.tokens.shape == (3, 16, 32) and found.plan is None
    tower = models.vision_tower(model)
    read = jax.jit(lambda tower: tower(images, taps=["resid_pre", "resid_post"]))(tower)
    inner = read.taps["resid_post"][0]
    assert_close(found.tokens, models.connect(model, inner[:, 1:]), atol=1e-5)
    whole = dataclasses.replace(model.config, select="full", feature_layers=(0,))
    found = features_of(model.replace(config=whole), images)
    wanted = models.connect(model, read.taps["resid_pre"][0])
    assert_close(found.tokens, wanted, atol=1e-5)
    assert whole.image_tokens == 17
    both = dataclasses.replace(model.config, feature_layers=(-2, -1))
    wide = models.init(both, jax.random.key(0))
    found = features_of(wide.replace(params={**wide.params, "vision": tower.params}),
                        images)  # fmt: skip
    beside = jnp.concatenate([inner, read.taps["resid_post"][1]], -1)[:, 1:]
    assert_close(found.tokens, models.connect(wide, beside), atol=1e-5)
    with pytest.raises(ArgumentError, match="compress: got .one with vectors of sev"):
        image_features(wide, images, compress=Twins())


def test_of_a_tower_with_a_norm_of_all_tokens_the_last_layer_has_none():
    """As `hidden_states` of `transformers` have it, whose last is before that norm."""
    vision = tiny_config(family="siglip_vision_model")
    config = dataclasses.replace(
        tiny_config(family="llava"), vision=vision, feature_layers=(-1,), select="full"
    )
    model, images = models.init(config, jax.random.key(0)), tiny_images()
    last = jax.jit(lambda tower: tower(images, taps=["resid_post"]).taps["resid_post"])
    hidden = last(models.vision_tower(model))[-1]
    found = features_of(model, images)
    assert_close(found.tokens, models.connect(model, hidden), atol=1e-5)
    assert config.image_tokens == 16


@pytest.mark.parametrize("last", [False, True])
def test_a_plan_leads_from_patches_to_vectors(last):
    """Pairs of patches merge; the class token leaves, wherever its row stands."""
    model, images = tiny_model(family="llava"), tiny_images()
    made = features_of(model, images, compress=Twins(last=last))
    assert made.tokens.shape == (3, 8, 32)
    pairs = np.broadcast_to(np.arange(16) // 2, (3, 16))
    np.testing.assert_array_equal(made.plan.assign, pairs)
    np.testing.assert_array_equal(made.plan.keep[0], np.arange(0, 16, 2))
    np.testing.assert_array_equal(made.plan.size, np.full((3, 8), 2.0))
    np.testing.assert_allclose(made.plan.position[0, :, 0], np.arange(8) * 2 + 0.5)
    assert made.plan.valid.all()
    other = features_of(model, images, compress=Twins())
    assert_close(made.tokens, other.tokens, atol=1e-5)


# ---- prompts


def test_images_stand_where_their_tokens_are_row_by_row():
    model, images = tiny_model(family="llava"), tiny_images()
    prompts = [np.array(ids) for ids in prompts_of(2, each=16)]
    longest = max(map(len, prompts))
    ids = np.stack([np.pad(row, (0, longest - len(row))) for row in prompts])
    mask = np.stack([np.arange(longest) < len(row) for row in prompts])
    out = run(model, ImageText(jnp.asarray(ids), images), mask=jnp.asarray(mask))
    for row, (first, last) in enumerate(((0, 2), (2, 3))):
        alone = run(
            model, ImageText(jnp.asarray(prompts[row])[None], images[first:last])
        )
        wanted = alone.logits[0]
        assert_close(out.logits[row, : len(prompts[row])], wanted, atol=2e-5)
    text = jnp.array([[1, 9, 4]])
    held = models.Model(model.params, model.config.text)
    assert_close(decoded(model, text).logits, decoded(held, text).logits, atol=1e-6)


def test_merged_images_make_shorter_prompts():
    model, images = tiny_model(family="llava"), tiny_images()
    fewer = model.replace(compress=Twins())
    both = ImageText(jnp.asarray(prompts_of(1, each=8)), images[:2])
    out = run(fewer, both)
    assert out.plan.num_rows == 8
    decoder, ids = with_images(fewer, prompts_of(1), images[:2])
    assert [len(row) for row in ids] == [len(prompts_of(1, each=8)[0])]
    assert_close(decoded(decoder, jnp.asarray(ids)).logits, out.logits, atol=2e-5)
    # Tokens as processors expand them, and features that were made before.
    made = features_of(model, images[:2], compress=Twins())
    _, again = with_images(model, prompts_of(1, each=16), made)
    np.testing.assert_array_equal(again[0], ids[0])


@pytest.mark.medium
def test_as_many_ids_of_images_as_there_are_vectors():
    fewer = tiny_model(family="llava").replace(compress=Twins())
    both = ImageText(jnp.asarray(prompts_of(1, each=16)), tiny_images(2))
    with pytest.raises(ArgumentError, match="32 ids of images., expected 16: 2 images"):
        fewer(both)


def test_rows_that_a_method_left_empty_stand_in_no_prompt():
    model, images = tiny_model(family="llava"), tiny_images(1)
    made = features_of(model, images, compress=Twins())
    valid = jnp.arange(8)[None] < 3
    some = dataclasses.replace(made, plan=dataclasses.replace(made.plan, valid=valid))
    decoder, ids = with_images(model, [[1, IMAGE, 4]], some)
    assert ids[0].tolist() == [1, 96, 97, 98, 4]
    assert decoder.params["embed"]["vectors"].shape == (8, 32)


# ---- decoding


def plainly(model, prompt, images, count):
    """The arg-max of whole passes, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.asarray(ids + [0] * (64 - len(ids)))[None]
        out = run(model, ImageText(padded, images))
        ids.append(int(np.argmax(out.logits[0, len(ids) - 1, :IMAGE])))
    return ids[len(prompt) :]


def test_decoding_with_images_is_that_of_whole_passes_with_any_drafter():
    model, images = tiny_model(family="llava"), tiny_images()
    decoder, ids = with_images(model, prompts_of(2), images)
    # Else a token of an image that is emitted would ask for another image.
    options = {"max_new_tokens": 8, "logit_bias": {IMAGE: -np.inf}}
    plain = generate(decoder, ids, **options)
    whole = prompts_of(2, each=16)
    assert plain.tokens[0].tolist() == plainly(model, whole[0], images[:2], 8)
    assert plain.tokens[1].tolist() == plainly(model, whole[1], images[2:], 8)
    drafted = generate(decoder, ids, **options, drafter=prompt_lookup())
    for one, other in zip(plain.tokens, drafted.tokens, strict=True):
        np.testing.assert_array_equal(one, other)


def test_penalties_count_texts_and_not_images():
    model, images = tiny_model(family="llava"), tiny_images(1)
    decoder, ids = with_images(model, [[1, IMAGE, 4, 9]], images)
    options = {"max_new_tokens": 6, "repetition_penalty": 5.0, "presence_penalty": 9.0}
    out = generate(decoder, ids[0], **options)
    assert len(set(out.tokens.tolist()) - {1, 4, 9}) == 6


def test_prompts_without_images_need_no_other_model():
    model = tiny_model(family="llava")
    decoder = models.Model(model.params, model.config.text)
    wanted = generate(decoder, [1, 9, 4], max_new_tokens=4).tokens
    np.testing.assert_array_equal(
        generate(model, [1, 9, 4], max_new_tokens=4).tokens, wanted
    )
    with pytest.raises(
        ArgumentError, match=r"prompts.0.: got 96, expected ids in 0..95"
    ):
        generate(model, [1, 96], max_new_tokens=1)


# ---- the same model in other ways


def test_bfloat16_and_shards():
    both = golden_inputs()
    wanted = run(golden_model(), both).logits
    narrow = run(golden_model("bfloat16"), both)
    assert narrow.hidden.dtype == jnp.bfloat16 and narrow.logits.dtype == jnp.float32
    assert np.abs(narrow.logits - wanted).mean() < 0.05 * np.std(wanted)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        model = models.load(FOLDER)
        for side in (model.params, model.params["vision"]):
            kernel = side["layers"][0]["query"]["kernel"]
            part = kernel.sharding.shard_shape(kernel.shape)
            assert 2 * np.prod(part) == kernel.size
        out = run(model, both)
    assert_close(out.logits, wanted, atol=1e-4)


def test_gradients_reach_tower_connector_and_decoder():
    model = tiny_model(family="llava")
    both = ImageText(jnp.asarray(prompts_of(1, each=8)), tiny_images(2))

    @jax.jit
    @jax.grad
    def slope(params):
        return jnp.mean(
            model.replace(params=params)(both, compress=Twins()).logits ** 2
        )

    found = slope(model.params)
    for part in (found["connector"], found["vision"]["embed"], found["layers"]):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part))


# ---- configurations


def test_what_is_written_is_read_back():
    config = tiny_config(family="llava")
    fields = FAMILIES["llava"].write(config)
    again = config_from(fields)
    assert dataclasses.replace(again, source="{}") == config
    assert hash(again) == hash(config_from(fields))


def test_files_that_say_little():
    text = {"model_type": "llama", "vocab_size": 32064}
    named = {"text_config": text, "vision_config": {}}
    config = config_from({"model_type": "llava", **named})
    assert (config.text.width, config.text.num_layers) == (4096, 32)
    assert (config.vision.width, config.image_tokens) == (1024, 576)
    assert config.image_token_id == 32000


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "phi3"])
def test_other_decoders_have_their_own_names(kind, tmp_path):
    text = tiny_config(family=kind)
    config = dataclasses.replace(tiny_config(family="llava"), text=text)
    model = models.init(config, jax.random.key(0))
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    for one, other in zip(
        jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {"text_config": {"model_type": "gemma"}}, UnsupportedCheckpointError,
            "text_config: model_type 'gemma'.*Known: llama, mistral",
        ),
        (
            {"vision_config": {"model_type": "vit"}}, UnsupportedCheckpointError,
            "vision_config: model_type 'vit'",
        ),
        (
            {"vision_feature_select_strategy": "cls"}, UnsupportedCheckpointError,
            "vision_feature_select_strategy='cls', expected 'default' or",
        ),
        ({"vision_feature_layer": -9}, ArgumentError, "feature_layers: got"),
        ({"vision_feature_layer": []}, UnsupportedCheckpointError, "an index or a"),
        ({"image_token_index": 96}, ArgumentError, "image_token_id: got 96"),
        (
            {"text_config": {"num_attention_heads": 0}}, CheckpointError,
            "text_config: num_attention_heads is 0",
        ),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config_from(fields_of(**changes))


def test_bad_input_is_named():
    model, images = tiny_model(family="llava"), tiny_images()
    with pytest.raises(ArgumentError, match=r"images: got .shape \(32, 32, 3\)"):
        model(ImageText(jnp.ones((1, 3), int), images[0]))
    with pytest.raises(ArgumentError, match="inputs: got .images of 32 x 24 pixels"):
        image_features(model, images[:, :, :24])
    with pytest.raises(
        ArgumentTypeError, match="a TowerConfig, expected a LLaVA model"
    ):
        image_features(tiny_model(family="vit"), images)
    with pytest.raises(ArgumentTypeError, match="compress: got str"):
        image_features(model, images, compress="tome")
    with pytest.raises(ArgumentError, match="ids: got .float32 of shape"):
        model(ImageText(jnp.ones((1, 3, 32)), images))
    with pytest.raises(ArgumentError, match="3 .one for each image., or 16 for each"):
        with_images(model, [[1, IMAGE, IMAGE]], images)
    with pytest.raises(
        ArgumentError, match="prompt 0 has 15 image tokens, expected a m"
    ):
        with_images(model, [[IMAGE] * 15, [IMAGE] * 17], images[:2])
    with pytest.raises(ArgumentError, match="prompts: got .other items., expected seq"):
        with_images(model, [[[1]]], images)
