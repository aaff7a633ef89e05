"""CLIP: both towers and their scores, against foreign outputs and with fewer tokens."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.decode import generate
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
    image_embeddings,
    text_embeddings,
)
from jtok.ops.plan import join_plan
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import GOLDENS
from tests.models.towers import Twins, nhwc

FOLDER = GOLDENS / "clip"
IDS = jnp.array([[1, 9, 8, 7, 95, 0, 0], [1, 5, 95, 3, 3, 3, 95]])


@functools.lru_cache
def golden_model(dtype=None):
    return models.load(FOLDER, dtype=dtype)


@functools.lru_cache
def golden_inputs():
    expected = load_golden("hf_checkpoints/clip/expected.npz")
    mask = jnp.asarray(expected["in_attention_mask"]) == 1
    images = nhwc(expected["in_pixel_values"])
    return ImageText(jnp.asarray(expected["in_input_ids"]), images), mask


def tiny_images(batch=3):
    return jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))


run = jax.jit(lambda model, both, **arrays: model(both, **arrays))
of_texts = jax.jit(text_embeddings, static_argnames="compress")


def fields_of(**changes):
    fields = json.loads((FOLDER / "config.json").read_text())
    for name, change in changes.items():
        whole = isinstance(change, dict) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **change} if whole else change
    return fields


def test_outputs_of_transformers():
    expected = load_golden("hf_checkpoints/clip/expected.npz")
    model, (both, mask) = golden_model(), golden_inputs()
    stacked = model.replace(params=models.stack_layers(model.params))
    real = np.asarray(mask)
    for held in (model, stacked):
        out = run(held, both, mask=mask)
        found = {
            "out_image_embeds": out.image_vectors,
            "out_text_embeds": out.text_vectors,
            "out_logits_per_image": out.logits,
            "out_vision_hidden": out.image_hidden,
        }
        for name, value in found.items():
            # The README's tolerance: another framework, another order of sums.
            assert_close(value, expected[name], atol=2e-4, name=name)
        wanted = expected["out_text_hidden"][real]
        assert_close(np.asarray(out.hidden)[real], wanted, atol=2e-4)


def test_a_golden_checkpoint_comes_back_byte_for_byte(tmp_path):
    model = golden_model()
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (FOLDER / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    written = FAMILIES["clip"].write(model.config)
    fields = fields_of()
    for name in ("text_config", "vision_config"):
        assert written.pop(name) == fields.pop(name)
    assert written.items() <= fields.items()


def test_outputs_of_siglip(tmp_path):
    expected = load_golden("hf_towers/siglip/expected.npz")
    folder = GOLDENS.parent / "hf_towers" / "siglip"
    model, images = models.load(folder), nhwc(expected["in_pixel_values"])
    out = run(model, ImageText(jnp.asarray(expected["in_input_ids"]), images))
    found = {
        "out_image_embeds": out.image_vectors,
        "out_text_embeds": out.text_vectors,
        "out_logits_per_image": out.logits,
        "out_text_hidden": out.hidden,
    }
    for name, value in found.items():
        assert_close(value, expected[name], atol=2e-5, rtol=1e-5, name=name)
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (folder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    small = config_from({"model_type": "siglip"})
    assert (small.projection, small.text.causal, small.text_last) == (768, False, True)
    assert small.text.activation == small.vision.activation == "gelu_tanh"


def test_a_changed_configuration_keeps_what_it_does_not_know(tmp_path):
    model = golden_model()
    longer = dataclasses.replace(model.config.text, norm_eps=1e-6)
    config = dataclasses.replace(model.config, text=longer)
    models.save(model.replace(config=config), tmp_path / "out", dtype="bfloat16")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["text_config"]["layer_norm_eps"] == 1e-6
    assert fields["text_config"]["bos_token_id"] == 1
    again = models.load(tmp_path / "out")
    assert again.config.text.dtype == again.config.vision.dtype == "bfloat16"


def test_sides_alone_give_the_same_vectors_of_unit_length():
    model, images = tiny_model(family="clip"), tiny_images()
    out = run(model, ImageText(IDS, images))
    seen = jax.jit(image_embeddings)(model, images)
    read = of_texts(model, IDS)
    assert_close(seen, out.image_vectors, atol=1e-6)
    assert_close(read, out.text_vectors, atol=1e-6)
    for vectors in (seen, read):
        assert vectors.dtype == jnp.float32
        assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(vectors)), atol=1e-5)
    scale = np.exp(np.asarray(model.params["logit_scale"])[0])
    assert_close(out.logits, scale * np.asarray(seen) @ np.asarray(read).T, atol=1e-4)
    assert out.logits.shape == (3, 2)
    bare = jax.eval_shape(lambda x: model(x, logits="none"), ImageText(IDS, images))
    assert bare.logits is None and bare.text_vectors.shape == (2, 16)


def test_a_text_is_read_off_at_its_first_end():
    model = tiny_model(family="clip")
    read = of_texts(model, IDS)
    # What follows the end does not matter, what comes before does.
    assert_close(of_texts(model, IDS.at[:, 5:].set(4)), read, atol=1e-6)
    assert np.abs(of_texts(model, IDS.at[:, 1].set(4)) - read).max() > 1e-3
    mask = jnp.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]]) == 1
    assert_close(of_texts(model, IDS, mask=mask), read, atol=1e-6)
    # The first release's rule: the highest id.
    config = dataclasses.replace(model.config, eos_token_id=None)
    highest = of_texts(model.replace(config=config), IDS.at[1, 2].set(6))
    last = of_texts(model, IDS.at[1, 2].set(6))
    assert_close(highest, last, atol=1e-6)
    old = config_from(fields_of(text_config={"eos_token_id": 2}))
    assert old.eos_token_id is None
    assert FAMILIES["clip"].write(old)["text_config"]["eos_token_id"] == 2


@dataclasses.dataclass(frozen=True)
class Turned(Twins):
    """After the last block rows stand in the reverse order, and two are one."""

    def __call__(self, view):
        if view.layer != view.num_layers - 1:
            return None
        batch, seq, _ = view.x.shape
        index = jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq))
        return join_plan(jnp.where(index == seq - 1, 0, index), -index, seq - 1)


def test_compressors_act_in_either_tower():
    model, images = tiny_model(family="clip"), tiny_images()
    wanted = of_texts(model, IDS[:, :6])
    assert_close(of_texts(model, IDS[:, :6], compress=Turned()), wanted, atol=2e-5)
    fewer = models.load(FOLDER, compress=Twins())
    out = run(fewer, ImageText(IDS, images))
    assert out.image_hidden.shape == (3, 9, 32) and out.plan.num_rows == 9
    whole = run(golden_model(), ImageText(IDS, images))
    assert whole.plan is None
    assert_close(out.text_vectors, whole.text_vectors, atol=1e-6)
    assert np.abs(out.image_vectors - whole.image_vectors).max() > 1e-4
    tower = models.vision_tower(fewer)
    seen = jax.jit(lambda tower: tower(images))(tower)
    assert_close(seen.hidden, out.image_hidden, atol=2e-5)


def test_bfloat16_and_shards():
    (both, mask), wide = golden_inputs(), golden_model()
    wanted = run(wide, both, mask=mask)
    narrow = run(golden_model("bfloat16"), both, mask=mask)
    assert narrow.image_hidden.dtype == narrow.hidden.dtype == jnp.bfloat16
    assert narrow.logits.dtype == narrow.image_vectors.dtype == jnp.float32
    assert np.abs(narrow.image_vectors - wanted.image_vectors).mean() < 0.02
    with jax.set_mesh(mesh_from("data=2,model=4")):
        model = models.load(FOLDER)
        for side in (model.params, model.params["vision"]):
            kernel = side["layers"][1]["query"]["kernel"]
            part = kernel.sharding.shard_shape(kernel.shape)
            assert 4 * np.prod(part) == kernel.size
        out = run(model, both, mask=mask)
    assert_close(out.logits, wanted.logits, atol=1e-4)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_what_is_written_is_read_back(family):
    config = tiny_config(family=family)
    fields = FAMILIES[family].write(config)
    again = config_from(fields)
    assert dataclasses.replace(again, source="{}") == config
    assert hash(again) == hash(config_from(fields))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {"architectures": ["CLIPTextModel"]}, UnsupportedCheckpointError,
            "architecture 'CLIPTextModel'",
        ),
        (
            {"text_config": {"hidden_size": 30}}, UnsupportedCheckpointError,
            "hidden_size=30 is no multiple",
        ),
        (
            {"vision_config": {"patch_size": 64}}, UnsupportedCheckpointError,
            "config.json: vision_config: image_size: got 32",
        ),
        (
            {"vision_config": {"image_size": "32"}}, CheckpointError,
            "vision_config: image_size is '32'",
        ),
        ({"projection_dim": 0}, ArgumentError, "projection: got 0"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config_from(fields_of(**changes))


def test_files_that_say_little_or_say_it_twice():
    config = config_from({"model_type": "clip"})
    assert (config.text.width, config.vision.width) == (512, 768)
    assert (config.projection, config.eos_token_id) == (512, 49407)
    older = fields_of(text_config_dict={"max_position_embeddings": 20})
    config = config_from(older)
    assert config.text.max_positions == 20
    assert FAMILIES["clip"].write(config)["text_config_dict"] is None


def test_every_tensor_has_its_place(tmp_path):
    place = tmp_path / "altered"
    place.mkdir()
    held = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    held["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    held["logit_scale"] = np.zeros(1, np.float32)
    del held["vision_model.pre_layrnorm.bias"]
    safetensors.numpy.save_file(held, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(fields_of()))
    with pytest.raises(CheckpointError) as caught:
        models.load(place)
    message = str(caught.value)
    assert "missing vision_model.pre_layrnorm.bias [32]" in message
    assert "logit_scale has shape [1]" in message
    assert "position_ids" not in message


def test_bad_input_is_named():
    model, images = tiny_model(family="clip"), tiny_images()
    both = ImageText(IDS, images)
    with pytest.raises(ArgumentTypeError, match="expected ImageText; of one side"):
        model(IDS)
    with pytest.raises(ArgumentError, match="cache: got an array, expected None"):
        model(both, cache=())
    with pytest.raises(ArgumentError, match="logits: got 'last'"):
        model(both, logits="last")
    with pytest.raises(ArgumentError, match=r"mask: got .shape \(2, 6\)"):
        model(both, mask=jnp.ones((2, 6), bool))
    with pytest.raises(ArgumentTypeError, match="compress: got str"):
        image_embeddings(model, images, compress="tome")
    with pytest.raises(ArgumentTypeError, match="a TowerConfig, expected a CLIP model"):
        text_embeddings(tiny_model(family="vit"), IDS)
    with pytest.raises(
        ArgumentTypeError, match="a TowerConfig, expected LLaVA or CLIP"
    ):
        models.vision_tower(tiny_model(family="vit"))
    with pytest.raises(ArgumentError, match="ids: got .dtype float32"):
        model(ImageText(jnp.ones((1, 3, 32)), images))
    with pytest.raises(ArgumentTypeError, match="'clip', .* a model with a cache"):
        models.init_cache(model.config, 1, 2)
    with pytest.raises(ArgumentTypeError, match="'clip', .* does not decode"):
        generate(model, [1, 2])
