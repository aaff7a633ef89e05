"""Packed training against an independent reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.predict import (
    allow_blocks,
    block_latents,
    interleave,
    latent_consistency,
    mask_losses,
    pack_blocks,
    sampler_hidden,
    with_masks,
)
from jtok.testing import assert_close
from tests.predict.mtp_model import golden_model

K = 3


@functools.cache
def made():
    model, trained, golden = golden_model("train")
    lengths = [len(golden[f"seq{b}"]) for b in range(3)]
    width = max(lengths)
    tokens, labels = np.zeros((3, width), np.int32), np.full((3, width), -100, np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = golden[f"seq{row}"]
        labels[row, :length] = golden[f"seq{row}_labels"]
    mask = np.arange(width)[None] < np.array(lengths)[:, None]
    packed = pack_blocks(
        jnp.asarray(tokens), K, vocab_size=model.config.vocab_size,
        labels=jnp.asarray(labels), mask=jnp.asarray(mask),
    )  # fmt: skip
    return model, trained, golden, packed


@functools.cache
def losses():
    model, trained, _, packed = made()

    def total(trained):
        found = mask_losses(model, trained, packed)
        return found.base + found.sampler + found.consistency, found

    (value, found), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(trained)
    return value, found, grads


def assert_near(got, want, *, name="arrays"):
    """Within what float32 leaves of the largest entry: gradients are small here."""
    assert_close(got, want, atol=1e-5 * float(np.abs(want).max()), name=name)


def in_their_order():
    golden, packed = made()[2:]
    return interleave(packed, golden["input_ids"].shape[1])


def test_the_layout_is_that_of_the_reference():
    golden, theirs = made()[2], in_their_order()
    valid = golden["valid"]
    np.testing.assert_array_equal(theirs.valid, valid)
    for ours, name in (
        ("ids", "input_ids"), ("positions", "position_ids"), ("labels", "labels"),
        ("block", "block"), ("offset", "offset"), ("prev_tokens", "prev_token"),
    ):  # fmt: skip
        empty = {"labels": -100, "block": -1, "offset": -1}.get(ours, 0)
        got = np.where(valid, getattr(theirs, ours), empty)
        np.testing.assert_array_equal(got, golden[name], err_msg=name)
    allow = allow_blocks(theirs.block, theirs.offset, theirs.valid)
    np.testing.assert_array_equal(allow, golden["allow"])
    for row in range(3):
        inserted = np.zeros(len(golden[f"seq{row}"]), bool)
        masks = np.asarray(theirs.offset[row]) == 1
        inserted[np.asarray(theirs.block[row])[masks]] = True
        np.testing.assert_array_equal(inserted, golden[f"seq{row}_insert"])


def test_latents_and_logits_in_their_order():
    """Any order of slots is a dense mask away."""
    model, trained, golden, _ = made()
    theirs, valid = in_their_order(), golden["valid"]
    allow = allow_blocks(theirs.block, theirs.offset, theirs.valid)
    adapted = with_masks(model, trained)
    out = adapted(theirs.ids, positions=theirs.positions, mask=allow)
    latents = golden["latents"]
    assert_close(np.asarray(out.hidden)[valid], latents[valid], atol=1e-5)
    assert_close(np.asarray(out.logits)[valid], golden["base_logits"][valid], atol=1e-5)
    before = model.params["embed"]["tokens"][theirs.prev_tokens]
    hidden = sampler_hidden(trained["sampler"], before, jnp.asarray(latents))
    logits = hidden @ model.unembedding()[0].T
    known = valid & ((theirs.offset == 0) | (golden["labels"] >= 0))
    got, want = np.asarray(logits)[known], golden["sampler_logits"][known]
    assert_close(got, want, atol=1e-5)


def test_latents_of_two_passes():
    model, trained, golden, packed = made()
    parts = jnp.concatenate(block_latents(model, trained, packed), axis=1)
    slots = jnp.broadcast_to(jnp.arange(parts.shape[1]), packed.ids.shape)
    moved = interleave(packed.replace(ids=slots), golden["valid"].shape[1])
    place = np.asarray(moved.ids)[..., None]
    got, valid = np.take_along_axis(np.asarray(parts), place, 1), golden["valid"]
    assert_close(got[valid], golden["latents"][valid], atol=1e-5)


def test_losses_and_their_gradients():
    golden, (value, found, grads) = made()[2], losses()
    model, trained, _, packed = made()
    assert_close(found.base, golden["base_ce"], rtol=1e-5)
    assert_close(found.sampler, golden["sampler_ce"], rtol=1e-5)
    assert_close(found.consistency, golden["lcm_mean"], rtol=1e-5)
    assert_close(value, golden["total"], rtol=1e-5)
    summed = latent_consistency(
        *block_latents(model, trained, packed), packed, reduction="sum"
    )
    assert_close(summed, golden["lcm_sum"], rtol=1e-5)
    query = grads["adapters"]["layers"]["query"]
    for got, name in (
        (query["lora_a"][0].T, "grad_q_down"),
        (query["lora_b"][0].T, "grad_q_up"),
        (grads["masks"], "grad_mask_emb"),
        (grads["sampler"]["first"]["kernel"].T, "grad_samp_l1"),
    ):
        assert_near(got, golden[name], name=name)


def test_the_consistency_of_given_latents():
    golden, packed = made()[2:]
    theirs, latents = in_their_order(), golden["latents"]
    seq, masks = packed.seq, packed.ids.shape[1] - packed.seq
    place = {}
    for row in range(3):
        for slot in range(latents.shape[1]):
            if golden["valid"][row, slot]:
                key = (row, int(theirs.block[row, slot]), int(theirs.offset[row, slot]))
                place[key] = slot
    ours = np.zeros((3, seq + masks), np.int32)
    for row in range(3):
        for slot in range(seq + masks):
            key = (row, int(packed.block[row, slot]), int(packed.offset[row, slot]))
            ours[row, slot] = place.get(key, 0)
    mine = np.take_along_axis(latents, ours[..., None], axis=1)

    def loss(latents):
        return latent_consistency(latents[:, :seq], latents[:, seq:], packed)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(mine))
    assert_close(value, golden["lcm_mean"], rtol=1e-5)
    assert not grad[:, :seq].any()
    back = np.zeros_like(latents)
    for row in range(3):
        for slot in range(seq, seq + masks):
            if packed.valid[row, slot]:
                back[row, ours[row, slot]] = grad[row, slot]
    assert_near(back, golden["lcm_grad_latents"])
    # Who is compared with whom.
    pairs = set()
    for row in range(3):
        for slot in range(seq, seq + masks):
            if packed.labels[row, slot] >= 0:
                at = int(packed.block[row, slot] + packed.offset[row, slot])
                pairs.add((row, place[row, at, 0], ours[row, slot]))
    assert pairs == {tuple(map(int, pair)) for pair in golden["lcm_pairs"]}
    assert len({pair[:2] for pair in pairs}) == golden["lcm_anchors"]


def test_everything_of_the_model_was_read():
    model, trained, golden, _ = made()
    assert golden["meta"][6] == K and trained["masks"].shape[0] == K
    with pytest.raises(KeyError):
        golden["nothing"]
    assert model.config.num_layers == golden["meta"][5]
