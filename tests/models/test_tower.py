"""Towers: against foreign outputs, and with fewer tokens than patches."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.compress import pitome, schedule
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    UnsupportedCheckpointError,
)
from jtok.models import FAMILIES, Taps, config_from
from jtok.models.tower_positions import resized_positions
from jtok.nn import SITES, TowerConfig
from jtok.ops.plan import join_plan
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import GOLDENS
from tests.models.towers import FAMILIES as TOWERS
from tests.models.towers import TOWERS as FOLDERS
from tests.models.towers import Twins, nhwc

OTHERS = GOLDENS.parent / "hf_towers"


@functools.lru_cache
def golden_model(folder, dtype=None):
    return models.load(GOLDENS / folder, dtype=dtype)


@functools.lru_cache
def golden_images(folder):
    expected = load_golden(f"hf_checkpoints/{folder}/expected.npz")
    return nhwc(expected["in_pixel_values"])


def tiny_images(seed=0, batch=2, size=32):
    return jax.random.normal(jax.random.key(seed), (batch, size, size, 3))


run = jax.jit(lambda model, x, **arrays: model(x, taps=["resid_post"], **arrays))
plain = jax.jit(lambda model, x, **arrays: model(x, **arrays))


# ---- foreign outputs


@pytest.mark.parametrize("folder", FOLDERS)
def test_outputs_of_transformers(folder):
    expected = load_golden(f"hf_checkpoints/{folder}/expected.npz")
    model, images = golden_model(folder), nhwc(expected["in_pixel_values"])
    stacked = model.replace(params=models.stack_layers(model.params))
    for held in (model, stacked):
        out = run(held, images)
        blocks = out.taps["resid_post"]
        found = {
            "out_logits": out.logits,
            "out_mid_hidden": blocks[0],
            "out_pooled": out.pooled,
            # With a head the file has the stream before the last norm.
            "out_last_hidden": out.hidden if out.logits is None else blocks[-1],
        }
        for name in expected:
            if name.startswith("out_"):
                # The README's tolerance: another framework, another order of sums.
                assert_close(found[name], expected[name], atol=2e-4, name=name)


@pytest.mark.parametrize(
    "folder",
    [
        "clip_vision_model",
        "deit_with_teacher",
        "dinov2_with_registers",
        "vit_with_pooler",
    ],
)
def test_outputs_of_other_options(folder, tmp_path):
    expected = load_golden(f"hf_towers/{folder}/expected.npz")
    model = models.load(OTHERS / folder)
    own = lambda name, found: assert_close(
        found, expected[name], atol=2e-5, rtol=1e-5, name=name
    )
    out = plain(model, nhwc(expected["in_pixel_values"]))
    for name, found in (("logits", out.logits), ("hidden", out.hidden)):
        if f"out_{name}" in expected:
            own(f"out_{name}", found)
    if "out_pooled" in expected:
        own("out_pooled", out.pooled)
    if folder == "dinov2_with_registers":
        wide = plain(model, nhwc(expected["in_wide"]))
        own("out_wide_hidden", wide.hidden)
        own("out_wide_logits", wide.logits)
        assert model.config.prefix == 4
    if folder == "vit_with_pooler":
        images = nhwc(expected["in_other"])
        with pytest.raises(ArgumentError, match="24 x 20 pixels., expected 16 x 16;"):
            model(images)
        config = dataclasses.replace(model.config, interpolate="cubic")
        own("out_other_pooled", plain(model.replace(config=config), images).pooled)
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (OTHERS / folder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted


@pytest.mark.parametrize("folder", FOLDERS)
def test_golden_checkpoints_come_back_byte_for_byte(folder, tmp_path):
    model = golden_model(folder)
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (GOLDENS / folder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    written = FAMILIES[model.config.family].write(model.config)
    fields = json.loads((GOLDENS / folder / "config.json").read_text())
    for name, value in written.items():
        if fields.get(name) is not None:
            assert fields[name] == value, name


# ---- the same model in other ways


@pytest.mark.parametrize("folder", ["vit", "siglip_vision"])
def test_bfloat16_stays_close(folder):
    narrow, wide = golden_model(folder, "bfloat16"), golden_model(folder)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(narrow.params)}
    assert kinds == {jnp.dtype("bfloat16")}
    images = golden_images(folder)
    found, wanted = plain(narrow, images), plain(wide, images)
    assert found.hidden.dtype == found.pooled.dtype == jnp.bfloat16
    error = np.abs(found.hidden.astype(jnp.float32) - wanted.hidden)
    assert error.mean() < 0.05 * np.std(wanted.hidden)
    if folder == "vit":
        assert found.logits.dtype == jnp.float32


def test_a_sharded_tower_gives_the_same():
    images = golden_images("dinov2")
    wanted = plain(golden_model("dinov2"), images)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        model = models.load(GOLDENS / "dinov2")
        layer = model.params["layers"][1]
        for leaf in (layer["query"], layer["out"], layer["mlp"]["down"]):
            kernel = leaf["kernel"]
            part = kernel.sharding.shard_shape(kernel.shape)
            assert 4 * np.prod(part) == kernel.size
        out = plain(model, images)
    assert_close(out.hidden, wanted.hidden, atol=2e-5)
    assert_close(out.pooled, wanted.pooled, atol=2e-5)


def test_vectors_stand_for_patches_in_any_order_and_masked_ones_do_not_count():
    model = tiny_model(family="siglip_vision_model")
    images = tiny_images()
    wanted = plain(model, images)
    patch = jax.tree.map(np.asarray, model.params["embed"]["patch"])
    cut = np.asarray(images).reshape(2, 4, 8, 4, 8, 3)
    vectors = np.einsum("brhcwk,whkd->brcd", cut, patch["kernel"]).reshape(2, 16, 32)
    vectors = vectors + patch["bias"]
    assert_close(plain(model, vectors).hidden, wanted.hidden, atol=2e-5)
    order = np.random.default_rng(0).permutation(16)
    places = np.broadcast_to(order[None], (2, 16))
    moved = plain(model, vectors[:, order], positions=places)
    assert_close(moved.hidden, wanted.hidden[:, order], atol=2e-5)
    assert_close(moved.pooled, wanted.pooled, atol=2e-5)
    some = plain(model, vectors[:, order][:, :9], positions=places[:, :9])
    padded = plain(
        model, vectors[:, order], positions=places,
        mask=np.broadcast_to(np.arange(16)[None] < 9, (2, 16)),
    )  # fmt: skip
    assert_close(padded.pooled, some.pooled, atol=2e-5)
    assert_close(padded.hidden[:, :9], some.hidden, atol=2e-5)


def test_taps_gates_and_biases_reach_every_block():
    model = tiny_model(family="clip_vision_model")
    images = tiny_images()
    read = jax.jit(lambda model: model(images, taps=SITES))(model)
    assert set(read.taps) == set(SITES)
    half = lambda layer, site, x: x / 2 if (layer, site) == (1, "mlp_out") else x
    edited = jax.jit(lambda model: model(images, taps=Taps(("mlp_out",), half)))(model)
    assert_close(edited.taps["mlp_out"][0], read.taps["mlp_out"][0])
    assert np.abs(edited.hidden - read.hidden).max() > 1e-3
    far = np.where(np.arange(17) < 9, 0.0, -1e9)[None, None, None]
    biased = plain(model, images, bias=far).hidden[:, :9]
    mask = np.arange(16)[None].repeat(2, 0) < 8
    masked = plain(model, images, mask=mask).hidden[:, :9]
    assert_close(biased, masked, atol=2e-5)
    with pytest.raises(ArgumentError, match=r"gates: got .shape \(2, 16\)"):
        model(images, gates=jnp.ones((2, 16)))


def test_positions_between_positions():
    table = jnp.arange(16.0).reshape(4, 4)
    lines = jnp.stack([table, table.T], -1).reshape(16, 2)
    np.testing.assert_array_equal(resized_positions(lines, (4, 4)), lines)
    for smooth in (False, True):
        made = resized_positions(lines, (8, 4), smooth=smooth).reshape(8, 4, 2)
        # A ramp rises all the way; the other side is as it was.
        assert (np.diff(made[:, :, 0], axis=0) > 0.4).all()
        assert_close(made[:, 1:, 0] - made[:, :-1, 0], jnp.ones((8, 3)), atol=1e-4)
        constant = resized_positions(jnp.ones((16, 2)), (3, 7), smooth=smooth)
        assert_close(constant, jnp.ones((21, 2)), atol=1e-5)


# ---- fewer tokens


@pytest.mark.parametrize(
    "family, last",
    [
        ("clip_vision_model", False),
        ("deit", True),
        ("dinov2_with_registers", False),
        ("siglip_vision_model", True),
    ],
)
def test_pairs_of_equal_patches_that_merge_change_nothing(family, last):
    """Equal patches at one place: merged they count twice, in attention and means."""
    model = tiny_model(family=family)
    vectors = jax.random.normal(jax.random.key(1), (2, 8, 32))
    twice = jnp.repeat(vectors, 2, axis=1)
    places = jnp.repeat(jnp.arange(8), 2)[None].repeat(2, 0)
    wanted = plain(model, twice, positions=places)
    merges = model.replace(compress=Twins(last=last, pairs=5))
    merged, first = plain(merges, twice, positions=places), model.config.prefix
    assert merged.hidden.shape[1] == first + 11
    assert_close(merged.pooled, wanted.pooled, atol=5e-5)
    if wanted.logits is not None:
        assert_close(merged.logits, wanted.logits, atol=5e-5)
    np.testing.assert_array_equal(merged.plan.size.sum(1), first + 16)
    back = jax.jit(lambda out: out.plan.unmerge(out.hidden))(merged)
    assert_close(back, wanted.hidden, atol=5e-5)


def test_means_count_patches_and_not_rows():
    config = TowerConfig(
        image_size=32, patch_size=8, width=32, num_layers=2, num_heads=4, mlp_width=64,
        class_token=False, pooling="mean", num_labels=3,
    )  # fmt: skip
    model = models.init(config, jax.random.key(0))
    images = tiny_images()

    @dataclasses.dataclass(frozen=True)
    class Corner(Twins):
        def __call__(self, view):
            if view.layer < 1:
                return None
            index = jnp.broadcast_to(jnp.arange(16)[None], (2, 16))
            return join_plan(jnp.where(index < 7, 0, index), index, 10)

    # After the last block only the mean is taken: merging rows there changes nothing.
    merged = plain(model.replace(compress=Corner()), images)
    assert merged.hidden.shape[1] == 10
    normed = model.params["final_norm"]["scale"]
    assert normed.shape == (32,)
    rows = merged.hidden.astype(jnp.float32)
    by_hand = (7 * rows[:, 0] + rows[:, 1:].sum(1)) / 16
    assert_close(merged.pooled, by_hand, atol=1e-5)
    assert merged.logits.shape == (2, 3) and merged.logits.dtype == jnp.float32
    with pytest.raises(
        UnsupportedCheckpointError, match="files of 'vit' have no place"
    ):
        models.save(model, "nowhere")


def test_a_tower_is_loaded_with_its_compressor_and_jitted():
    model = models.load(GOLDENS / "vit", compress=Twins())
    out = plain(model, golden_images("vit"))
    assert out.hidden.shape == (2, 9, 32) and out.plan.num_rows == 9
    assert isinstance(out, models.CompressedOutput)
    whole = plain(model.replace(compress=None), golden_images("vit"))
    assert whole.hidden.shape == (2, 17, 32) and isinstance(whole, models.TowerOutput)
    assert np.abs(out.logits - whole.logits).max() > 1e-4


@pytest.mark.parametrize("family", ["deit", "siglip_vision_model"])
def test_schedules_act_and_leave_what_is_no_patch(family):
    model = tiny_model(family=family)
    fewer = schedule(pitome, keep=0.7)
    out = plain(model.replace(compress=fewer), tiny_images())
    first = model.config.prefix
    counts = fewer.token_counts(first + 16, 2, prefix=first)
    assert first + 16 > counts[1] > counts[2] == out.hidden.shape[1]
    rows = np.asarray(out.plan.assign[:, :first])
    sizes = np.take_along_axis(np.asarray(out.plan.size), rows, axis=1)
    np.testing.assert_array_equal(sizes, np.ones((2, first)))
    np.testing.assert_array_equal(out.plan.size.sum(1), first + 16)


def test_gradients_reach_every_parameter():
    model = tiny_model(family="dinov2_with_registers")
    wide = dataclasses.replace(model.config, mask_token=False)
    params = models.init(wide, jax.random.key(0)).params

    @jax.jit
    @jax.grad
    def slope(params):
        held = model.replace(params=params, config=wide)
        out = held(tiny_images(), compress=Twins())
        return jnp.sum(out.hidden**3) + jnp.sum(out.pooled**3)

    for path, leaf in jax.tree_util.tree_leaves_with_path(slope(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


# ---- configurations and folders


@pytest.mark.parametrize("family", TOWERS)
def test_what_is_written_is_read_back(family):
    config = tiny_config(family=family)
    fields = FAMILIES[family].write(config)
    assert fields["model_type"] == family
    again = config_from(fields)
    assert dataclasses.replace(again, source="{}") == config
    assert hash(again) == hash(config_from(fields))


@pytest.fixture
def altered(tmp_path):
    def make(folder, rename=lambda tensors: None, **fields):
        place = tmp_path / "altered"
        place.mkdir()
        config = json.loads((GOLDENS / folder / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **fields}))
        held = safetensors.numpy.load_file(GOLDENS / folder / "model.safetensors")
        safetensors.numpy.save_file(rename(held) or held, place / "model.safetensors")
        return place

    return make


def test_older_names(altered):
    old = lambda held: {f"vision_model.{name}": held[name] for name in held}
    model = models.load(altered("siglip_vision", old))
    assert_close(
        plain(model, golden_images("siglip_vision")).pooled,
        plain(golden_model("siglip_vision"), golden_images("siglip_vision")).pooled,
    )


def test_a_pooler_that_is_not_in_use_is_left_out(altered):
    def change(held):
        held["pooler.dense.weight"] = np.ones((32, 32), np.float32)

    model = models.load(altered("vit", change))
    assert "pooler" not in model.params


def test_a_bare_tower_whose_files_have_no_pooler(altered):
    """As the files of DINO, which are ViTs."""

    def change(held):
        kept = {n: x for n, x in held.items() if not n.startswith("classifier")}
        return {name.removeprefix("vit."): x for name, x in kept.items()}

    model = models.load(altered("vit", change, architectures=["ViTModel"]))
    assert model.config.pooling == "cls" and "pooler" not in model.params
    images, other = golden_images("vit"), golden_model("vit")
    assert_close(plain(model, images).hidden, plain(other, images).hidden)


def test_a_pooler_that_the_fields_say_is_missed(altered):
    def change(held):
        kept = {n: x for n, x in held.items() if not n.startswith("classifier")}
        return {name.removeprefix("vit."): x for name, x in kept.items()}

    fields = {"architectures": ["ViTModel"], "add_pooling_layer": True}
    with pytest.raises(CheckpointError, match="missing pooler.dense.weight"):
        models.load(altered("vit", change, **fields))


def test_no_registers_are_an_empty_table(tmp_path):
    config = dataclasses.replace(
        tiny_config(family="dinov2_with_registers"), num_registers=0
    )
    model = models.init(config, jax.random.key(0))
    models.save(model, tmp_path / "none")
    file = tmp_path / "none" / "model.safetensors"
    held = safetensors.numpy.load_file(file)
    held["embeddings.register_tokens"] = np.zeros((1, 0, 32), np.float32)
    safetensors.numpy.save_file(held, file)
    again = models.load(tmp_path / "none")
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def test_every_tensor_has_its_place(altered):
    def change(held):
        del held["encoder.layer.1.layer_scale2.lambda1"]
        held["extra"] = np.zeros(2, np.float32)
        held["embeddings.cls_token"] = np.zeros((1, 32), np.float32)

    with pytest.raises(CheckpointError) as caught:
        models.load(altered("dinov2", change))
    message = str(caught.value)
    assert "missing encoder.layer.1.layer_scale2.lambda1 [32]" in message
    assert "unknown extra [2]" in message
    assert "embeddings.cls_token has shape [1, 32]" in message


def fields_of(folder, **changes):
    fields = json.loads((GOLDENS / folder / "config.json").read_text())
    return {k: v for k, v in {**fields, **changes}.items() if v != "absent"}


@pytest.mark.parametrize(
    "folder, changes, error, message",
    [
        ("vit", {"image_size": "absent"}, CheckpointError, "no field 'image_size'"),
        ("deit", {"patch_size": "absent"}, CheckpointError, "no field 'patch_size'"),
        ("vit", {"patch_size": 64}, ArgumentError, "image_size: got 32, expected 64"),
        ("vit", {"image_size": [32, 32]}, CheckpointError, "image_size is .32, 32."),
        ("vit", {"pooler_act": "relu"}, UnsupportedCheckpointError, "pooler_act="),
        ("dinov2", {"hidden_size": 30}, UnsupportedCheckpointError, "no multiple of 4"),
        ("vit", {"hidden_act": "mish"}, UnsupportedCheckpointError, "'mish'"),
        (
            "dinov2", {"architectures": ["Dinov2Backbone"]}, UnsupportedCheckpointError,
            "architecture 'Dinov2Backbone'.*Known: Dinov2ForImageClassification",
        ),
        ("dinov2", {"mlp_ratio": 2.5}, CheckpointError, "mlp_ratio is 2.5, expected"),
        ("dinov2", {"num_channels": 0}, ArgumentError, "channels: got 0"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(folder, changes, error, message):
    with pytest.raises(error, match=message):
        config_from(fields_of(folder, **changes))


def test_options_of_towers():
    bare = {"architectures": ["ViTModel"]}
    assert config_from(fields_of("vit", **bare)).pooling == "pooler"
    config = config_from(fields_of("vit", **bare, add_pooling_layer=False))
    assert (config.pooling, config.stem, config.num_labels) == ("cls", "", 0)
    headless = config_from(fields_of("siglip_vision", vision_use_head=False))
    assert headless.pooling is None
    model = models.init(headless, jax.random.key(0))
    assert jax.eval_shape(lambda x: model(x), tiny_images()).pooled is None
    small = config_from({"model_type": "siglip_vision_model"})
    assert (small.width, small.patch_size, small.num_patches) == (768, 16, 196)
    odd = config_from(fields_of("siglip_vision", image_size=30))
    assert odd.num_patches == 9


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 30}, "width: got 30, expected a multiple of 4 heads"),
        ({"class_token": False}, "pooling: got 'cls', expected 'mean' or"),
        ({"pooling": None, "num_labels": 2}, "pooling: got None"),
        ({"distill_labels": True}, "distill_token: got False"),
        ({"num_layers": 0}, "num_layers: got 0, expected at least 1"),
    ],
)
def test_configurations_that_contradict_themselves(changes, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(tiny_config(family="clip_vision_model"), **changes)


def test_bad_images_are_named():
    model, images = tiny_model(family="vit"), tiny_images()
    with pytest.raises(ArgumentTypeError, match="inputs: got dtype uint8, expected fl"):
        model((images * 10).astype(jnp.uint8))
    with pytest.raises(ArgumentError, match=r"shape \(2, 32, 32, 1\).*, 3\]"):
        model(images[..., :1])
    with pytest.raises(ArgumentError, match="32 x 24 pixels., expected 32 x 32"):
        model(images[:, :, :24])
    with pytest.raises(ArgumentError, match="multiples of 8, a patch"):
        tiny_model(family="dinov2")(images[:, :, :23])
    with pytest.raises(ArgumentError, match=r"vectors of|\[batch, patches, 32\]"):
        model(jnp.ones((2, 16, 31)))
    with pytest.raises(ArgumentError, match="12 vectors., expected 16, or positions"):
        model(jnp.ones((2, 12, 32)))
    with pytest.raises(ArgumentError, match=r"positions: got .shape \(2, 11\)"):
        model(jnp.ones((2, 12, 32)), positions=jnp.zeros((2, 11), int))
    with pytest.raises(ArgumentError, match=r"mask: got .shape \(2, 17\)"):
        model(images, mask=jnp.ones((2, 17), bool))
    with pytest.raises(ArgumentError, match="logits: got 'last'"):
        model(images, logits="last")
    with pytest.raises(ArgumentError, match="taps: got site 'resid'"):
        model(images, taps=["resid"])
    with pytest.raises(ArgumentError, match="cache: got one"):
        model(images, cache=())
    with pytest.raises(ArgumentTypeError, match="'vit', .* a model with a cache"):
        models.init_cache(model.config, 1, 4)
    with pytest.raises(ArgumentTypeError, match="'vit', .* does not decode"):
        model.target()


def test_a_folder_whose_sizes_no_file_has_is_refused(tmp_path):
    source = tmp_path / "big"
    shutil.copytree(GOLDENS / "vit", source)
    fields = fields_of("vit", num_hidden_layers=9000)
    (source / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="num_layers=9000"):
        models.load(source)
