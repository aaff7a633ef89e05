"""The encoder that was released in Paddle's layout: goldens, both forms, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.errors import ArgumentError, CheckpointError
from jtok.models import Segments, from_paddle
from jtok.predict import encode_with_queries
from jtok.testing import assert_close

FILES = ("official_encoder_rel", "official_encoder_norel")
CLOSE = 2e-5  # stated with the goldens, and so are the others


def tensors_of(file):
    return {name[2:]: file[name] for name in file if name.startswith("w_")}


@functools.lru_cache
def model_of(golden, name):
    return from_paddle(tensors_of(golden(f"ernie_gram/{name}.npz")), num_heads=4)


RUN = jax.jit(
    lambda model, inputs, mask, positions=None: (
        model(inputs, mask=mask, positions=positions, logits="none").hidden
    )
)


@functools.partial(jax.jit, static_argnums=1)
def apart(params, config, left, queries, places, order):
    mask = jnp.ones(left.shape[:2], bool)
    return encode_with_queries(
        params, config, left, mask, queries=queries, places=places, order=order
    )


def pooled_of(model, hidden):
    dense = model.params["pooler"]["dense"]
    return np.tanh(hidden[:, 0] @ dense["kernel"] + dense["bias"][None])


@pytest.mark.parametrize("name", FILES)
def test_a_plain_call_of_the_official_encoder(golden, name):
    file, model = golden(f"ernie_gram/{name}.npz"), model_of(golden, name)
    assert (model.config.relative is None) == (name == FILES[1])
    ids, types = jnp.asarray(file["ids"]), jnp.asarray(file["sent"])
    real = file["ids"] != 0
    # There a padded row has the same large number on all of its keys.
    allow = jnp.asarray(real[:, None, :] | ~real[:, :, None])
    hidden = RUN(model, Segments(ids, types), allow)
    assert_close(np.asarray(hidden)[real], file["encoded"][real], atol=CLOSE)
    assert_close(np.asarray(hidden)[~real], file["encoded"][~real], atol=5e-3)
    assert_close(pooled_of(model, hidden), file["pooled"], atol=CLOSE)
    plain = RUN(model, Segments(ids, types), jnp.asarray(real))
    assert_close(np.asarray(plain)[real], file["encoded"][real], atol=CLOSE)


@pytest.mark.parametrize("name", FILES)
def test_queries_at_the_end_of_the_official_encoder(golden, name):
    file, model = golden(f"ernie_gram/{name}.npz"), model_of(golden, name)
    ids, positions = jnp.asarray(file["ids"]), jnp.asarray(file["pos"])
    allow = jnp.asarray(file["allow"]).astype(bool)
    order = jnp.broadcast_to(jnp.arange(12)[None], (3, 12))
    masked = RUN(model, Segments(ids, None, None, order), allow, positions)
    assert_close(masked, file["encoded_allow"], atol=CLOSE)
    assert_close(pooled_of(model, masked), file["pooled_allow"], atol=CLOSE)
    # Rows 0 and 1 again, their queries apart from the 7 and 9 tokens that they read.
    rows = model.params["embed"]["tokens"]
    for row, size in enumerate((7, 9)):
        found = apart(
            model.params, model.config, rows[ids[row : row + 1, :size]],
            rows[ids[row : row + 1, size:]], positions[row : row + 1, size:],
            order[:1, size:],
        )  # fmt: skip
        assert_close(found.left[0], file["encoded_allow"][row, :size], atol=CLOSE)
        assert_close(found.fine[0], file["encoded_allow"][row, size:], atol=CLOSE)


def test_it_is_saved_as_others_save_it(golden, tmp_path):
    model = model_of(golden, FILES[0])
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert again.config.relative == "ernie"
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def test_bad_input_is_refused(golden):
    whole = tensors_of(golden("ernie_gram/official_encoder_rel.npz"))
    with pytest.raises(ArgumentError, match="num_heads: got 3"):
        from_paddle(whole, num_heads=3)
    with pytest.raises(CheckpointError, match="unknown extra, other"):
        from_paddle({**whole, "other": whole["ln.bias"], "extra": whole["ln.bias"]},
                    num_heads=4)  # fmt: skip
    name = "encoder_stack.block.1.attn.k.bias"
    some = {key: value for key, value in whole.items() if key != name}
    with pytest.raises(CheckpointError, match="layers/1/key/bias missing"):
        from_paddle(some, num_heads=4)
    bent = {**whole, name: whole[name][:-1], "ln.weight": whole["ln.weight"][:3]}
    wrong = r"key/bias has shape \(15,\), expected \(16,\)|norm/scale has shape \(3,\)"
    with pytest.raises(CheckpointError, match=wrong):
        from_paddle(bent, num_heads=4)
    gap = {key.replace("block.1.", "block.2."): value for key, value in whole.items()}
    with pytest.raises(CheckpointError, match=r"layers \[0, 2\]"):
        from_paddle(gap, num_heads=4)
