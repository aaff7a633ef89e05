"""The encoder of sound: against foreign outputs, padding, compression, its files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.compress import pitome
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    UnsupportedCheckpointError,
)
from jtok.models import FAMILIES, LayerView, config_from
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import GOLDENS

FOLDER = GOLDENS / "whisper_encoder"
WHOLE = "WhisperForConditionalGeneration"
run = jax.jit(lambda model, frames, **more: model(frames, taps=["resid_post"], **more))


@pytest.fixture(scope="module")
def model():
    return models.load(FOLDER)


@pytest.fixture(scope="module")
def frames():
    golden = load_golden("hf_checkpoints/whisper_encoder/expected.npz")
    return jnp.asarray(golden["in_input_features"]).swapaxes(1, 2)


@pytest.mark.parametrize("layers", ["split", "stacked"])
def test_outputs_of_transformers(model, frames, layers):
    golden = load_golden("hf_checkpoints/whisper_encoder/expected.npz")
    if layers == "stacked":
        model = model.replace(params=models.stack_layers(model.params))
    out = run(model, frames)
    assert out.logits is None
    assert_close(out.hidden, golden["out_last_hidden"], atol=2e-4)
    assert_close(out.taps["resid_post"][0], golden["out_mid_hidden"], atol=2e-4)


def test_convolutions_are_followed_by_gelu_whatever_the_layers_have(model, frames):
    first = jax.jit(lambda model: model(frames, taps=["resid_pre"]).taps["resid_pre"])
    config = dataclasses.replace(model.config, activation="relu")
    wanted, found = first(model), first(model.replace(config=config))
    assert_close(found[0], wanted[0])
    assert np.abs(found[1] - wanted[1]).max() > 1e-3


@pytest.mark.parametrize("count, tokens", [(17, 9), (18, 9)])
def test_padding_changes_nothing_whatever_it_holds(model, frames, count, tokens):
    alone = run(model, frames[:1, :count]).hidden
    assert alone.shape[1] == tokens
    mask = (jnp.arange(40)[None] < jnp.array([[count], [40]])).astype(jnp.int32)
    both = run(model, frames, mask=mask).hidden
    assert_close(both[0, :tokens], alone[0], atol=1e-5)
    assert_close(both[1], run(model, frames).hidden[1], atol=1e-5)
    # Without a mask the frames behind the end count.
    assert np.abs(run(model, frames).hidden[0, :tokens] - alone[0]).max() > 1e-3


def test_bfloat16_stays_close(model, frames):
    narrow = models.load(FOLDER, dtype="bfloat16")
    found, wanted = run(narrow, frames).hidden, run(model, frames).hidden
    assert found.dtype == jnp.bfloat16
    error = np.abs(found.astype(jnp.float32) - wanted)
    assert error.mean() < 0.05 * np.std(wanted)


def test_a_sharded_model_gives_the_same(model, frames):
    wanted = run(model, frames).hidden
    with jax.set_mesh(mesh_from("data=2,model=4")):
        placed = models.load(FOLDER)
        kernel = placed.params["layers"][1]["query"]["kernel"]
        assert 4 * np.prod(kernel.sharding.shard_shape(kernel.shape)) == kernel.size
        assert_close(run(placed, frames).hidden, wanted, atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Removes:
    where: str = "attention"
    how: str = "weighted"
    proportional: bool = True
    restart: bool = False

    def __call__(self, view: LayerView):
        assert view.prefix == 0
        return pitome(
            view.key.mean(axis=2), remove=3, valid=view.valid, size=view.size,
            position=view.position,
        )  # fmt: skip


def test_layers_keep_fewer_tokens(model, frames):
    mask = jnp.arange(40)[None] < jnp.array([[31], [40]])
    squeezed = jax.jit(lambda m, x, mask: m(x, mask=mask, compress=Removes()))
    out = squeezed(model, frames, mask)
    assert out.hidden.shape == (2, 14, 32)
    np.testing.assert_array_equal(out.plan.size.sum(1), [16, 20])
    assert (np.asarray(out.plan.assign)[0, 16:] == -1).all()
    assert models.load(FOLDER, compress=Removes()).compress == Removes()


def test_gradients_reach_every_parameter(model, frames):
    def loss(params):
        hidden = model.replace(params=params)(frames).hidden
        return jnp.sum(jnp.sin(hidden) * jnp.arange(32.0)[None, None])

    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(model.params))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in grads)


# ---- files


def test_the_golden_checkpoint_comes_back_byte_for_byte(model, tmp_path):
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (FOLDER / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    fields = json.loads((FOLDER / "config.json").read_text())
    for name, value in FAMILIES["whisper"].write(model.config).items():
        assert fields.get(name, value) == value


@pytest.mark.parametrize(
    "stem, named",
    [("model.encoder.", WHOLE), ("encoder.", "WhisperModel"), ("encoder.", None)],
)
def test_the_encoder_of_a_whole_model(model, tmp_path, stem, named):
    held = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    whole = {stem + name: value for name, value in held.items()}
    whole[stem.replace("en", "de") + "layer_norm.bias"] = np.ones(32, np.float32)
    whole["proj_out.weight"] = np.ones((96, 32), np.float32)
    (tmp_path / "whole").mkdir()
    fields = json.loads((FOLDER / "config.json").read_text())
    fields["architectures"] = None if named is None else [named]
    (tmp_path / "whole" / "config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(whole, tmp_path / "whole" / "model.safetensors")
    loaded = models.load(tmp_path / "whole")
    for got, wanted in zip(*map(jax.tree.leaves, (loaded.params, model.params))):
        np.testing.assert_array_equal(got, wanted)
    models.save(loaded, tmp_path / "out")
    kept = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert kept.keys() == {f"model.encoder.{name}" for name in held}


def test_what_is_written_is_read_back():
    config = tiny_config(family="whisper")
    fields = FAMILIES["whisper"].write(config)
    again = config_from(fields)
    assert FAMILIES["whisper"].write(again) == fields
    assert dataclasses.replace(again, source="{}") == config
    assert hash(again) == hash(config_from(fields))


def test_new_positions_are_waves():
    table = np.asarray(tiny_model(family="whisper").params["embed"]["positions"]) / 4
    at = np.arange(24)
    np.testing.assert_allclose(table[:, 0], np.sin(at), atol=1e-6)
    np.testing.assert_allclose(table[:, 15], np.sin(at * 1e-4), atol=1e-6)
    np.testing.assert_allclose(table[:, 16], np.cos(at), atol=1e-6)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"architectures": ["WhisperForAudio"]}, UnsupportedCheckpointError, "known"),
        ({"encoder_layers": 0}, CheckpointError, "encoder_layers is 0"),
        ({"num_mel_bins": "80"}, CheckpointError, "num_mel_bins is '80'"),
        ({"encoder_attention_heads": 5}, UnsupportedCheckpointError, "32"),
        ({"activation_function": "mish"}, UnsupportedCheckpointError, "'mish'"),
    ],
)
def test_configurations_that_cannot_be(change, error, message):
    fields = FAMILIES["whisper"].write(tiny_config(family="whisper"))
    with pytest.raises(error, match=f"(?i){message}"):
        config_from({**fields, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_mel_bins": 0}, "num_mel_bins: got 0"),
        ({"positions": "none"}, "positions: got 'none', expected 'learned'"),
        ({"head": "token"}, "head: got 'token', expected None"),
    ],
)
def test_sizes_that_cannot_be(change, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(tiny_config(family="whisper"), **change)


def test_bad_input_is_named(model, frames):
    wanted = r"inputs: .*expected '?\[batch, 1 to 40 frames, 16 mel bins\]"
    for bad in (frames.swapaxes(1, 2), frames[0], frames[:, :0], frames.repeat(2, 1)):
        with pytest.raises(ArgumentError, match=wanted):
            model(bad)
    with pytest.raises(ArgumentTypeError, match="inputs: got dtype int32"):
        model(jnp.ones((1, 4, 16), jnp.int32))
    with pytest.raises(ArgumentError, match=r"mask: got 'shape \(2, 20\)'.*\[2, 40\]"):
        model(frames, mask=jnp.ones((2, 20), bool))
    with pytest.raises(ArgumentError, match=r"positions: .*\[2, 20\]"):
        model(frames, positions=jnp.zeros((2, 40), jnp.int32))
    with pytest.raises(ArgumentError, match="cache: got one"):
        model(frames, cache=())
    with pytest.raises(ArgumentError, match="logits: got rows"):
        model(frames, logits=jnp.zeros((2, 1), jnp.int32))
    with pytest.raises(ArgumentError, match="taps"):
        model(frames, taps=["resid"])
    with pytest.raises(ArgumentTypeError, match="family 'whisper'"):
        model.target()
