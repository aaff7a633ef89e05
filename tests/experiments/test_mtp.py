"""What the experiment on mask tokens says where it has little to say it from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mtp
from jtok.predict import mask_init, merge
from jtok.testing import tiny_model
from tests.experiments.test_tasks import Chats, turn


class Claims:
    """A report that keeps claims, and data's names for their digests."""

    def __init__(self):
        self.claims = {}

    def claim(self, id, claim, **fields):
        self.claims[id] = fields

    def data(self, name, content=None, **more):
        return name


@pytest.fixture(scope="module")
def trained():
    made = mask_init(tiny_model(), 2, 2, jax.random.key(0))
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(7), x.shape)
    return jax.tree.map(noise, made)


def test_masks_in_the_input_would_show_an_open_gate(trained, monkeypatch):
    model, vocab = tiny_model(), 96
    ids = np.random.default_rng(0).integers(0, vocab, (2, 8)).astype(np.int32)
    batch = {
        "tokens": jnp.asarray(ids),
        "mask": jnp.ones((2, 8), bool).at[1, 6:].set(False),
    }
    assert abs(mtp._moved_by_masks(model, trained, batch, 2, 3)) < 1e-5
    real = mtp.with_masks

    def for_all(model, trained):
        """Adapters in the kernels, so that tokens have them, too."""
        params = merge(model.params, trained["adapters"])
        return real(model.replace(params=params), trained)

    monkeypatch.setattr(mtp, "with_masks", for_all)
    assert abs(mtp._moved_by_masks(model, trained, batch, 2, 3)) > 1e-2
    # Nor are the masks left out of what is measured.
    monkeypatch.setattr(mtp, "with_masks", real)
    sees_all = lambda block, offset, valid: jnp.ones(
        (*block.shape, block.shape[1]), bool
    )
    monkeypatch.setattr(mtp, "allow_blocks", sees_all)
    mtp._next_token.clear_cache()
    assert abs(mtp._moved_by_masks(model, trained, batch, 2, 3)) > 1e-2
    mtp._next_token.clear_cache()


def test_a_run_that_was_left_out_is_said_to_be_not_measured():
    report = Claims()
    mtp._report_consistency({}, {mtp.BOTH: {0: None}}, report)
    fields = report.claims["consistency_helps"]
    assert fields["n"] == 0 and fields["reason"].startswith("not measured")
    assert not fields["measured"] > fields["bound"]
    assert mtp._above_one({0: None}, {}, "short")["n"] == 0


def test_all_turns_are_learnt_and_none_of_what_is_kept(tmp_path, monkeypatch):
    talk = lambda i: [turn("user", "u"), turn("assistant", f"{i}"),
                      turn("user", "v"), turn("assistant", f"{i}")]  # fmt: skip
    file = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": talk(i)}) for i in range(5)]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(mtp.testing, "data", lambda name: file)
    config = mtp.Config(data="chats", held_out=1, prompts=2, batch=8, length=20)
    model = type("Model", (), {"vocabulary": Chats()})
    source = mtp._chats(model, config, Claims())
    assert source.kept == 3
    batch = source.batch(0, 0)
    for row in range(8):
        labels = batch["labels"][row]
        said = int(labels[labels >= 0][0])
        assert said in (ord("0"), ord("1"))  # of the other lines none is learnt
        assert labels[labels >= 0].tolist() == [said, 3, said, 3]
    assert source.held_out["labels"].max() == ord("2")
    # A prompt ends where the last answer begins.
    assert source.prompts[0][-2:] == [3, 2] and ord("3") in source.prompts[0]
