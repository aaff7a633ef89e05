"""Processors of pictures, sound and prompts: against transformers, and their files."""

import dataclasses
import json
import random
import wave

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from jtok import models
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    UnsupportedCheckpointError,
    VocabMismatchError,
)
from jtok.models import ImageProcessor, PromptProcessor, SoundProcessor, mel_filters
from jtok.models.image_resize import resize_on_device
from jtok.models.processor import load_processor
from jtok.testing import load_golden, tiny_model, tiny_vocabulary
from jtok.text import Vocabulary
from tests.models import fuzz

FILE, NESTED = "preprocessor_config.json", "processor_config.json"
CASES = load_golden("processors/images.json")
PICTURES = load_golden("processors/images.npz")
SOUND = load_golden("processors/sound.npz")


@dataclasses.dataclass(frozen=True)
class Config:
    family: str = "vit"
    source: str = "{}"


def folder_of(place, name=FILE, **fields):
    place.mkdir(exist_ok=True)
    (place / name).write_text(json.dumps(fields))
    return place


def read(place, family="vit", vocabulary=None, **model):
    return load_processor(place, Config(family, json.dumps(model)), vocabulary)


def case_of(name, place, **more):
    return read(folder_of(place / name, **{**CASES[name]["config"], **more}))


# ---- pictures


@pytest.mark.parametrize("name", sorted(CASES))
def test_pictures_of_transformers(name, tmp_path):
    processor = case_of(name, tmp_path)
    if name == "floats":  # there they are not scaled down twice; here never
        processor = dataclasses.replace(processor, do_rescale=True)
    pictures = [PICTURES[which] for which in CASES[name]["images"]]
    found = processor(pictures)
    assert found.dtype == np.float32
    for which, one in zip(CASES[name]["images"], found, strict=True):
        key = f"expected_{name}_{which}"
        if f"{key}_pil" in PICTURES:
            np.testing.assert_allclose(one, PICTURES[f"{key}_pil"], atol=1e-3)
        if f"{key}_torchvision" not in PICTURES:
            assert name in ("filter4", "filter5")  # torch has no such filters
            continue
        other = PICTURES[f"{key}_torchvision"].astype(np.float32)
        if name == "floats":
            np.testing.assert_allclose(one, other, atol=1e-3)
            continue
        if name == "small":
            fast = dataclasses.replace(processor, compat="torchvision")
            np.testing.assert_allclose(fast(PICTURES[which])[0], other, atol=1e-3)
            assert np.abs(one - other).max() > 1
            continue
        if name == "filter0":
            continue  # torch takes other neighbours where two are equally near
        # This backend rounds some pixels to the other side.
        one = dataclasses.replace(processor, compat="torchvision")(PICTURES[which])[0]
        step = 1.0 if not processor.do_rescale else 1 / 255
        step /= min(processor.image_std) if processor.do_normalize else 1.0
        off = np.abs(one - other)
        if which == "clear":  # it blends with white in whole numbers
            assert off.max() < 2.01 * step
            continue
        assert off.max() < 1.01 * step and (off > 1e-3).mean() < 0.02


def test_both_backends_of_transformers_are_told_by_name(tmp_path):
    slow = case_of("small", tmp_path)
    fast = case_of("small", tmp_path, image_processor_type="CLIPImageProcessorFast")
    assert (slow.compat, fast.compat) == ("pil", "torchvision")
    assert dataclasses.replace(fast, compat="pil") == slow


def test_pictures_of_different_sizes_and_kinds(tmp_path):
    processor = case_of("clip", tmp_path)
    wide, tall, grey = (PICTURES[name] for name in ("wide", "tall", "grey"))
    both = processor([wide, tall])
    np.testing.assert_array_equal(both[1], processor(tall)[0])
    PIL.Image.fromarray(wide).save(tmp_path / "wide.png")
    for same in (PIL.Image.fromarray(wide), tmp_path / "wide.png", wide[None]):
        np.testing.assert_array_equal(processor(same), both[:1])
    np.testing.assert_array_equal(processor(wide.astype(np.int64)), both[:1])
    # Grey in two axes or three, and in Pillow's mode.
    for same in (grey, grey[..., None], PIL.Image.fromarray(grey)):
        np.testing.assert_array_equal(processor(same), processor(grey))
    # A float picture is the same one but for what Pillow rounds.
    processor = dataclasses.replace(processor, resample=2)  # does not overshoot
    both = processor([wide, tall])
    near = processor((wide / 255).astype(np.float32))
    assert np.abs(near - both[:1]).max() < 0.02
    half = processor(jnp.asarray(wide / 255, jnp.bfloat16))
    assert np.abs(half - both[:1]).mean() < 0.02


def test_what_is_transparent_lets_white_through(tmp_path):
    processor = ImageProcessor(do_convert_rgb=True, do_resize=False, do_normalize=False)
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[0, :, 3] = 255
    for picture in (clear, PIL.Image.fromarray(clear), clear / np.float32(255)):
        found = processor(picture)[0]
        np.testing.assert_allclose(found[0], 0.0, atol=1e-6)
        np.testing.assert_allclose(found[1], 1.0, atol=1e-6)
    palette = PIL.Image.fromarray(np.full((2, 2), 200, np.uint8)).convert("P")
    np.testing.assert_allclose(processor(palette), 200 / 255, atol=0.01)


def test_a_file_is_turned_as_its_camera_says(tmp_path):
    picture = PIL.Image.fromarray(PICTURES["wide"])
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter to the right
    picture.save(tmp_path / "a.png", exif=exif)
    processor = ImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
    found = processor(tmp_path / "a.png")[0]
    np.testing.assert_array_equal(found, np.rot90(PICTURES["wide"], -1))


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("size", [(19, 15), (50, 61), (32, 13)])
def test_the_device_resizes_as_pillow(resample, size):
    picture = PICTURES["wide"]
    shape = (size[1], size[0])
    wanted = PIL.Image.fromarray(picture).resize(shape, PIL.Image.Resampling(resample))
    found = resize_on_device(jnp.asarray(picture)[None], size, resample)[0]
    np.testing.assert_array_equal(np.asarray(wanted), found)


@pytest.mark.parametrize("compat", ["pil", "torchvision"])
@pytest.mark.parametrize("name", ["clip", "small", "convnext", "deit"])
def test_a_batch_is_prepared_on_the_device(name, compat, tmp_path):
    processor = dataclasses.replace(case_of(name, tmp_path), compat=compat)
    batch = np.stack([PICTURES["wide"], PICTURES["wide"][::-1]])
    found = jax.jit(processor.on_device)(jnp.asarray(batch))
    np.testing.assert_allclose(found, processor(batch), atol=1e-5)


def test_the_device_resizes_the_width_first(tmp_path):
    pillow = case_of("deit", tmp_path)
    other = dataclasses.replace(pillow, compat="torchvision")
    found = np.asarray(pillow.on_device(jnp.asarray(PICTURES["tall"])[None]))
    np.testing.assert_allclose(found, other(PICTURES["tall"]), atol=1e-5)
    assert np.abs(found - pillow(PICTURES["tall"])).max() < 2.01 / 255


@pytest.mark.parametrize(
    "images, error, message",
    [
        ([], ArgumentError, "images: got 'none'"),
        (np.zeros((3, 8, 8), np.uint8), ArgumentError, "channels come last"),
        (np.zeros((0, 8, 3), np.uint8), ArgumentError, r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), ArgumentError, r"shape \(8, 8, 2\)"),
        (np.full((8, 8, 3), 256), ArgumentError, "integers from 256 to 256"),
        (np.full((8, 8, 3), -1), ArgumentError, "integers from -1 to -1"),
        (np.full((8, 8, 3), 2.0), ArgumentError, "floats from 2.0 .*divide by 255"),
        (np.full((8, 8, 3), np.nan), ArgumentError, "floats from nan"),
        (np.zeros((8, 8, 3), bool), ArgumentTypeError, "dtype bool"),
        ("nowhere.png", ArgumentError, "nowhere.png.*cannot be read"),
        (__file__, ArgumentError, "test_processors.py.*cannot be read"),
        (object(), ArgumentTypeError, "images: got object"),
        (np.zeros((8, 8), np.uint8), ArgumentError, "1 channels.*do_convert_rgb=True"),
        (np.zeros((8, 8, 4), np.uint8), ArgumentError, "4 channels"),
    ],
)
def test_what_is_no_picture_is_named(images, error, message):
    with pytest.raises(error, match=message):
        ImageProcessor()(images)


def test_results_of_different_sizes_are_refused():
    kept = ImageProcessor(do_resize=False)
    with pytest.raises(ArgumentError, match="results of shapes"):
        kept([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)])
    thin = ImageProcessor(size=(("max_height", 4), ("max_width", 4)))
    with pytest.raises(ArgumentError, match="1 x 40 pixels"):
        thin(np.zeros((1, 40, 3), np.uint8))
    with pytest.raises(ArgumentTypeError, match="dtype float32"):
        thin.on_device(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ArgumentError, match="do_pad"):
        dataclasses.replace(thin, do_pad=True).on_device(
            jnp.zeros((1, 4, 4, 3), jnp.uint8)
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "ViT"}, "kind: got 'ViT'"),
        ({"size": (("height", 4),)}, "size: got"),
        ({"size": (("shortest_edge", 0),)}, "size: got"),
        ({"resample": 6}, "resample: got 6"),
        ({"crop_size": (0, 4)}, "crop_size: got"),
        ({"crop_pct": 0.9}, "crop_pct: got 0.9"),
        ({"image_mean": (0.5, 0.5)}, "image_mean: got"),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std: got"),
    ],
)
def test_processors_that_cannot_be(change, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(ImageProcessor(), **change)


# ---- their files


VIT = {"image_processor_type": "ViTImageProcessor"}


def test_files_come_back_byte_for_byte_and_changes_alone_are_new(tmp_path):
    odd = '{"size": 20,\n "feature_extractor_type": "CLIPFeatureExtractor",'
    odd += ' "resample":   3, "_valid_processor_keys": ["a"], "do_reduce": false}'
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / FILE).write_text(odd)
    (folder / NESTED).write_text('{"processor_class":  "CLIPProcessor"}')
    processor = read(folder, "clip")
    assert processor.size == (("shortest_edge", 20),)  # CLIP's keep the ratio
    out = tmp_path / "out"
    out.mkdir()
    processor.save(out)
    for name in (FILE, NESTED):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    wider = dataclasses.replace(processor, size=(("height", 6), ("width", 8)))
    wider.save(out)
    written = json.loads((out / FILE).read_text())
    assert written == {**json.loads(odd), "size": {"height": 6, "width": 8}}
    assert read(out, "clip") == wider


def test_newer_folders_have_the_fields_within_others(tmp_path):
    inner = {**VIT, "size": {"height": 12, "width": 8}}
    folder = folder_of(tmp_path / "a", NESTED, image_processor=inner, x=None)
    processor = read(folder, "siglip")
    assert processor.size == (("height", 12), ("width", 8))
    dataclasses.replace(processor, resample=1).save(folder)
    written = json.loads((folder / NESTED).read_text())
    assert written == {"image_processor": {**inner, "resample": 1}, "x": None}


def test_a_made_processor_is_written_whole(tmp_path):
    size = (("longest_edge", 30), ("shortest_edge", 20))
    made = ImageProcessor(
        kind="LlavaImageProcessor", size=size, do_pad=True, image_mean=(0.1, 0.2, 0.3)
    )
    made.save(tmp_path)
    assert read(tmp_path) == made and hash(read(tmp_path)) == hash(made)
    fast = ImageProcessor(kind="DeiTImageProcessor", compat="torchvision")
    fast.save(tmp_path)
    assert read(tmp_path) == fast


def test_models_hold_and_save_their_processor(tmp_path):
    models.save(tiny_model(family="whisper"), tmp_path / "m")
    text = json.dumps({"feature_extractor_type": "WhisperFeatureExtractor"})
    (tmp_path / "m" / FILE).write_text(text)
    model = models.load(tmp_path / "m")
    assert model.processor == SoundProcessor()
    models.save(model, tmp_path / "out")
    assert (tmp_path / "out" / FILE).read_text() == text
    # Of models of text no file is looked at.
    models.save(tiny_model(), tmp_path / "text")
    (tmp_path / "text" / FILE).write_text("{")
    assert models.load(tmp_path / "text").processor is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": "large"}, "size is 'large'"),
        ({"size": {"edge": 3}}, r"size has the names \['edge'\]"),
        ({"size": {"longest_edge": 3}}, r"size has the names \['longest_edge'\]"),
        ({"size": {"height": 3.5, "width": 3}}, "height is 3.5"),
        ({"size": 0}, "height is 0, expected an integer from 1"),
        ({"crop_size": {"height": 3}}, r"crop_size has the names \['height'\]"),
        ({"crop_size": [3, "4"]}, "crop_size is '4'"),
        ({"resample": 6}, "resample: got 6"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"do_resize": "yes"}, "do_resize is 'yes', expected true or false"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]"),
        ({"image_std": [0.5, 0.5, None]}, "image_std is"),
        ({"image_std": 0}, "image_std: got"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"image_processor_type": 3}, "image_processor_type '3'"),
        ({"image_processor_type": None}, "no field 'image_processor_type'"),
        ({"image_processor_type": "VitImageProcessor"}, "mean .*ViTImageProcessor"),
        ({"do_pad": True}, "do_pad=True is not supported"),
        ({"crop_pct": 0.9}, "crop_pct=0.9 is not supported"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True is not"),
    ],
)
def test_damaged_fields_are_named_with_their_file(change, message, tmp_path):
    folder = folder_of(tmp_path / "a", **{**VIT, **change})
    with pytest.raises(CheckpointError, match=rf"{FILE}: .*{message}"):
        read(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": NaN'])
def test_damaged_files_are_named(text, tmp_path):
    for name in (FILE, NESTED):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=f"{name}: damaged"):
            read(tmp_path)
        (tmp_path / name).unlink()
    folder_of(tmp_path, NESTED, image_processor=3)
    with pytest.raises(CheckpointError, match="image_processor is 3"):
        read(tmp_path)
    (tmp_path / NESTED).unlink()
    assert read(tmp_path) is None


# ---- sound


def sound(*names):
    return [SOUND[name].astype(np.float32) for name in names]


@pytest.mark.parametrize(
    "name, bins, length, which",
    [("chunk", 80, "chunk", ("low",)), ("longest", 128, "longest", ("low", "high"))],
)
def test_frames_of_transformers(name, bins, length, which, tmp_path):
    fields = {**load_golden("processors/sound.json"), "feature_size": bins}
    processor = read(folder_of(tmp_path / "a", **fields), "whisper")
    made = processor(sound(*which), length=length, sampling_rate=16000)
    wanted = SOUND[f"{name}_frames"].swapaxes(1, 2)
    np.testing.assert_allclose(made.frames, wanted, atol=1e-3)
    np.testing.assert_array_equal(made.mask, SOUND[f"{name}_mask"] == 1)
    if bins == 128:
        np.testing.assert_allclose(
            mel_filters(128, 400, 16000), SOUND["filters"], atol=1e-7
        )


def test_rows_of_sound_do_not_mix_and_thirty_seconds_have_3000_frames():
    processor = SoundProcessor()
    both = processor(sound("low", "high")).frames
    assert both.shape == (2, 3000, 80)
    alone = processor(sound("high")[0]).frames
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
    listed = processor(sound("high")[0].tolist()).frames
    np.testing.assert_array_equal(listed, alone)


def test_files_of_sound(tmp_path):
    processor = SoundProcessor(chunk_length=1)
    samples = sound("low")[0]
    wanted = processor(samples).frames
    kinds = {1: (128, "u1"), 2: (2**15, "<i2"), 3: (2**23, "<i4"), 4: (2**31, "<i4")}
    for width, (scale, kind) in kinds.items():
        whole = np.round(samples.astype(np.float64) * (scale - 1))
        data = (whole + 128 * (width == 1)).astype(kind).tobytes()
        if width == 3:
            data = np.frombuffer(data, np.uint8).reshape(-1, 4)[:, :3].tobytes()
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setparams((1, width, 16000, 0, "NONE", ""))
            file.writeframes(data)
        found = processor(tmp_path / "a.wav").frames
        assert np.abs(found - wanted).mean() < (0.2 if width == 1 else 2e-3)
    for channels, rate, message in ((2, 16000, "2 channels"), (1, 8000, "got 8000")):
        with wave.open(str(tmp_path / "b.wav"), "wb") as file:
            file.setparams((channels, 2, rate, 0, "NONE", ""))
            file.writeframes(bytes(800))
        with pytest.raises(ArgumentError, match=message):
            processor(tmp_path / "b.wav")
    with pytest.raises(ArgumentError, match="c.wav.*cannot be read"):
        processor(tmp_path / "c.wav")


@pytest.mark.parametrize(
    "given, options, error, message",
    [
        (np.zeros(9, np.int16), {}, ArgumentTypeError, "dtype int16.*32768"),
        (np.zeros((1, 2, 900)), {}, ArgumentError, r"sound: got .shape \(1, 2, 900\)"),
        (np.zeros(0), {}, ArgumentError, r"shape \(0,\)"),
        (np.full(900, np.nan), {}, ArgumentError, "not finite"),
        (np.zeros(16001), {}, ArgumentError, "got '1.00 s', expected at most 1 s"),
        (np.zeros(100), {"length": "longest"}, ArgumentError, "201 and more"),
        (np.zeros(900), {"sampling_rate": 8000}, ArgumentError, "resample the sound"),
    ],
)
def test_what_is_no_sound_is_named(given, options, error, message):
    with pytest.raises(error, match=message):
        SoundProcessor(chunk_length=1)(given, **options)


def test_what_is_behind_a_chunk_is_cut_when_told():
    processor = SoundProcessor(chunk_length=1)
    samples = np.sin(np.arange(20000) / 5).astype(np.float32)
    found = processor(samples, cut=True)
    np.testing.assert_array_equal(found.frames, processor(samples[:16000]).frames)
    assert found.mask.all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "ClapFeatureExtractor"),
        ({"feature_extractor_type": None}, "no field 'feature_extractor_type'"),
        ({"dither": 0.1}, "dither='0.1' is not supported"),
        ({"padding_side": "left"}, "padding_side='left'"),
        ({"do_normalize": True}, "do_normalize=True is not supported"),
        ({"n_fft": 1}, "n_fft: got 1"),
        ({"hop_length": "160"}, "hop_length is '160'"),
        ({"padding_value": []}, r"padding_value is \[\]"),
    ],
)
def test_damaged_fields_of_sound_are_named(change, message, tmp_path):
    fields = {"feature_extractor_type": "WhisperFeatureExtractor", **change}
    with pytest.raises(CheckpointError, match=rf"{FILE}: .*{message}"):
        read(folder_of(tmp_path / "a", **fields), "whisper")


def test_a_changed_processor_of_sound_is_written(tmp_path):
    fields = {"feature_extractor_type": "WhisperFeatureExtractor", "mel_filters": [1]}
    folder = folder_of(tmp_path / "a", NESTED, feature_extractor=fields)
    processor = read(folder, "whisper")
    dataclasses.replace(processor, feature_size=128).save(folder)
    written = json.loads((folder / NESTED).read_text())
    assert written == {"feature_extractor": {**fields, "feature_size": 128}}


# ---- prompts with pictures

PROMPTS = load_golden("processors/prompts.json")


def prompts(place, name="default", model=None, **change):
    words = Vocabulary.from_json(json.dumps(PROMPTS["tokenizer"]))
    fields = {**PROMPTS[name]["processor_config"], **change}
    folder = folder_of(place / "llava", NESTED, **fields)
    return read(folder, "llava", words, **(model or {}))


def pictures():
    return [PICTURES[name] for name in ("wide", "tall", "wide")]


@pytest.mark.parametrize("name", ["default", "full"])
def test_prompts_of_transformers(name, tmp_path):
    processor = prompts(tmp_path, name)
    made = processor(PROMPTS["texts"], pictures())
    assert [row.tolist() for row in made.ids] == PROMPTS[name]["ids"]
    np.testing.assert_array_equal(made.images, processor.images(pictures()))
    assert made.counts == (16,) * 3 if name == "default" else (5,) * 3


def test_merged_tokens_take_fewer_places(tmp_path):
    processor = prompts(tmp_path)
    image = processor.image_token_id
    texts, whole = PROMPTS["texts"], processor(PROMPTS["texts"], pictures())
    made = processor(texts, pictures(), tokens_per_image=[3, 1, 4])
    assert [(row == image).sum() for row in made.ids] == [3, 5, 0]
    for row, other in zip(made.ids, whole.ids):
        np.testing.assert_array_equal(row[row != image], other[other != image])
    numbered = np.concatenate(made.numbered(1000))
    np.testing.assert_array_equal(numbered[numbered >= 1000], 1000 + np.arange(8))
    assert processor("what").images is None
    for count in (0, 17, [1, 2], [1, 2, 17]):
        with pytest.raises(ArgumentError, match="tokens_per_image: got"):
            processor(texts, pictures(), tokens_per_image=count)
    with pytest.raises(ArgumentError, match=r"2 pictures.*image tokens, \[1, 2, 0\]"):
        processor(texts, pictures()[:2])
    with pytest.raises(ArgumentError, match="0 pictures"):
        processor(texts)
    with pytest.raises(ArgumentTypeError, match="texts: got int"):
        processor([3])


def test_a_models_configuration_says_what_the_processors_leaves_out(tmp_path):
    model = {
        "vision_config": {"patch_size": 8, "model_type": "clip_vision_model"},
        "vision_feature_select_strategy": "full",
        "image_token_index": 1,
    }
    none = dict.fromkeys(
        ("patch_size", "vision_feature_select_strategy", "image_token",
         "num_additional_image_tokens")
    )  # fmt: skip
    processor = prompts(tmp_path, model=model, **none)
    assert processor.image_token == "<image>"
    assert (processor.patch_size, processor.strategy) == (8, "full")
    assert processor.num_image_tokens(16, 24) == 7
    model["vision_config"]["model_type"] = "siglip_vision_model"
    assert prompts(tmp_path, model=model, **none).num_image_tokens(16, 24) == 6


def test_prompts_files_come_back(tmp_path):
    processor = prompts(tmp_path)
    before = (tmp_path / "llava" / NESTED).read_bytes()
    processor.save(tmp_path / "llava")
    assert (tmp_path / "llava" / NESTED).read_bytes() == before
    wider = dataclasses.replace(
        processor,
        patch_size=2,
        images=dataclasses.replace(processor.images, resample=1),
    )
    wider.save(tmp_path / "llava")
    written = json.loads((tmp_path / "llava" / NESTED).read_text())
    was = PROMPTS["default"]["processor_config"]
    inner = {**was["image_processor"], "resample": 1}
    assert written == {**was, "patch_size": 2, "image_processor": inner}
    assert read(tmp_path / "llava", "llava").resample == 1  # without a tokenizer


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"vision_feature_select_strategy": "cls"}, "strategy: got 'cls'"),
        ({"vision_feature_select_strategy": [1]}, "select_strategy is"),
        ({"image_token": "two words"}, "image_token: got 'two words'"),
        ({"num_additional_image_tokens": -1}, "num_additional_image_tokens is -1"),
        ({"image_seq_length": 3}, "image_seq_length=3 is not supported"),
    ],
)
def test_damaged_fields_of_prompts_are_named(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=rf"{NESTED}: .*{message}"):
        prompts(tmp_path, **change)


def test_prompt_processors_that_cannot_be():
    usual = {"images": ImageProcessor(), "vocabulary": tiny_vocabulary()}
    with pytest.raises(VocabMismatchError, match="image_token: got '<image>'"):
        PromptProcessor(**usual, patch_size=4)
    small = PromptProcessor(**usual, patch_size=14, image_token="!")
    with pytest.raises(ArgumentError, match="8 x 8 pixels"):
        small.num_image_tokens(8, 8)


@pytest.mark.parametrize("kind", ["images", "sound", "prompts"])
def test_damage_is_read_or_refused_by_name(kind, tmp_path):
    family = {"images": "clip", "sound": "whisper", "prompts": "llava"}[kind]
    words = Vocabulary.from_json(json.dumps(PROMPTS["tokenizer"]))
    name = NESTED if kind == "prompts" else FILE
    fields = {
        "images": CASES["clip"]["config"],
        "sound": load_golden("processors/sound.json"),
        "prompts": PROMPTS["default"]["processor_config"],
    }[kind]
    refused = 0
    for seed in range(300):
        rng = random.Random(f"{kind} {seed}")
        (tmp_path / name).write_bytes(fuzz.change_json(rng, dict(fields)))
        try:
            hash(read(tmp_path, family, words))
        except CheckpointError as error:
            assert name in str(error)
            refused += 1
    assert 75 < refused < 300


def test_unsupported_is_told_from_damaged(tmp_path):
    folder = folder_of(tmp_path / "a", **VIT, do_flip_channel_order=True)
    with pytest.raises(UnsupportedCheckpointError):
        read(folder)
