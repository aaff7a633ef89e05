"""Models with what prepares their inputs: read, saved, and used from end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from jtok import models
from jtok.decode import generate
from jtok.errors import CheckpointError
from jtok.models import ImageProcessor, PromptProcessor, SoundProcessor
from jtok.models.processor import load_processor
from jtok.testing import load_golden, tiny_config, tiny_model
from jtok.text import Vocabulary

FILE, NESTED = "preprocessor_config.json", "processor_config.json"
PROMPTS = load_golden("processors/prompts.json")
# Not as jtok would write it: spaces, order, and a field that says nothing.
PICTURES = """{"size": {"width": 32,  "height": 32}, "do_convert_rgb": true,
 "image_processor_type": "%s", "_valid_processor_keys": ["images"]}"""
SOUND = """{"feature_extractor_type":  "WhisperFeatureExtractor",
 "feature_size": 16, "chunk_length": 1, "nb_max_frames": 100}"""
KINDS = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "llava": "CLIPImageProcessor",
    "whisper": None,
}


@pytest.mark.parametrize("family", sorted(KINDS))
def test_families_that_see_or_hear_have_a_processor(family, tmp_path):
    config = tiny_config(family=family)
    assert load_processor(tmp_path, config, None) is None
    text = PICTURES % KINDS[family] if KINDS[family] else SOUND
    (tmp_path / FILE).write_text(text)
    processor = load_processor(tmp_path, config, None)
    if family == "whisper":
        assert processor == SoundProcessor(feature_size=16, chunk_length=1)
    else:
        assert isinstance(processor, ImageProcessor)
        assert processor.kind == KINDS[family]
        assert dict(processor.size) == {"height": 32, "width": 32}
    out = tmp_path / "out"
    out.mkdir()
    processor.save(out)
    assert (out / FILE).read_bytes() == text.encode()
    assert not (out / NESTED).exists()


def test_a_model_is_saved_with_the_processor_it_was_loaded_with(tmp_path):
    models.save(tiny_model(family="vit"), tmp_path / "m")
    text = PICTURES % "ViTImageProcessor"
    (tmp_path / "m" / FILE).write_text(text)
    model = models.load(tmp_path / "m")
    grey = np.full((40, 50), 100, np.uint8)
    assert model.processor(grey).shape == (1, 32, 32, 3)
    models.save(model, tmp_path / "out")
    assert (tmp_path / "out" / FILE).read_bytes() == text.encode()
    assert models.load(tmp_path / "out").processor == model.processor


def llava_folder(place, **change):
    """A LLaVA with a tokenizer, and its processor in the older pair of files."""
    config = tiny_config(vocab_size=276, family="llava")
    config = dataclasses.replace(config, image_token_id=1)
    words = Vocabulary.from_json(json.dumps(PROMPTS["tokenizer"]))
    model = models.init(config, jax.random.key(0)).replace(vocabulary=words)
    models.save(model, place)
    fields = {**PROMPTS["default"]["processor_config"], "patch_size": 8, **change}
    own = {"size": {"shortest_edge": 32}, "crop_size": 32}
    pictures = {**fields.pop("image_processor"), **own}
    (place / FILE).write_text(json.dumps(pictures, indent=3))
    (place / NESTED).write_text(json.dumps(fields, indent=1))
    return place


def test_a_photograph_and_a_question_are_answered(tmp_path):
    model = models.load(llava_folder(tmp_path / "m"))
    assert isinstance(model.processor, PromptProcessor)
    photograph, text = load_sample_image("china.jpg"), "what is in <image>?"
    made = model.processor(text, photograph)
    assert made.images.shape == (1, 32, 32, 3)
    assert made.counts == (model.config.image_tokens,) == (16,)
    decoder, ids = models.with_images(model, made.ids, jnp.asarray(made.images))
    options = {"max_new_tokens": 4, "logit_bias": {1: -np.inf}}
    found = generate(decoder, ids[0], **options).tokens
    # Each is the arg-max of a whole pass over ids and images.
    rows = np.append(made.ids[0], found)[None]
    run = jax.jit(lambda images: model(models.ImageText(jnp.asarray(rows), images)))
    logits, start = run(jnp.asarray(made.images)).logits[0], len(made.ids[0]) - 1
    wanted = np.argmax(logits.at[:, 1].set(-jnp.inf)[:, :276], axis=-1)
    np.testing.assert_array_equal(found, wanted[start:-1])
    turned = run(jnp.asarray(made.images[:, ::-1])).logits[0]
    assert np.abs(turned - logits)[start].max() > 1e-4
    # One token for an image is enough where their number is open.
    short = model.processor(text, photograph, tokens_per_image=1)
    assert len(made.ids[0]) - len(short.ids[0]) == 15
    _, again = models.with_images(model, short.ids, jnp.asarray(made.images))
    np.testing.assert_array_equal(again[0], ids[0])
    np.testing.assert_array_equal(made.numbered(276)[0], ids[0])


def test_a_llavas_files_come_back_and_its_tower_has_what_prepares_pictures(tmp_path):
    folder = llava_folder(tmp_path / "m")
    model = models.load(folder)
    models.save(model, tmp_path / "out")
    for name in (FILE, NESTED):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    tower = models.vision_tower(model)
    assert tower.processor == model.processor.images
    models.save(tower, tmp_path / "tower")
    assert models.load(tmp_path / "tower").processor == tower.processor


def test_the_device_prepares_a_photograph_as_the_host(tmp_path):
    photograph = load_sample_image("flower.jpg")
    processor = ImageProcessor(
        kind="CLIPImageProcessor", size=(("shortest_edge", 64),), resample=3,
        do_center_crop=True, crop_size=(64, 64), compat="torchvision",
    )  # fmt: skip
    found = processor.on_device(jnp.asarray(photograph)[None])
    np.testing.assert_allclose(found, processor(photograph), atol=1e-5)


def test_image_tokens_that_contradict_the_model_are_refused(tmp_path):
    folder = llava_folder(tmp_path / "m", image_token="<|endoftext|>")
    with pytest.raises(CheckpointError, match=f"{NESTED}: .* has id 0, but 1 in conf"):
        models.load(folder)
