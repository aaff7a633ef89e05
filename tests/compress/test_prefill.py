"""Tokens that leave inside a language model: laws, modes, decoding, and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.compress import (
    AimScore,
    FirstTokensScore,
    LastTokenScore,
    RandomScore,
    ReceivedScore,
    fastv_schedule,
    prefill,
    ramp_schedule,
    spans_mask,
    stage_schedule,
    vtw_schedule,
)
from jtok.decode import Session, generate, token_recycling
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.ops import Tree
from jtok.ops.sharding import mesh_from
from jtok.testing import tiny_config, tiny_model

LAYERS = 4
RAMP = ramp_schedule(LAYERS, 0, 3)
# Two images in the first prompt, one in the second, which is three tokens shorter.
SPANS = [[(1, 5), (7, 11)], [(2, 9)]]
LENGTHS = [14, 11]
SEQ = 14
REAL = np.arange(SEQ)[None] < np.array(LENGTHS)[:, None]
PRUNABLE = np.stack([spans_mask(SEQ, spans) for spans in SPANS])
IDS = np.random.default_rng(0).integers(1, 96, (2, SEQ)).astype(np.int32)


@functools.cache
def model_of(family="llama", dtype="float32"):
    """Four layers, whose attention is sharp enough to rank by."""
    config = dataclasses.replace(
        tiny_config(family=family), num_layers=LAYERS, dtype=dtype,
        windows=(6, None, 6, None) if family == "gemma2" else (),
    )  # fmt: skip
    model = models.init(config, jax.random.key(1))
    louder = lambda x: x * 6 if x.ndim > 1 else x
    return model.replace(params=jax.tree.map(louder, model.params))


@functools.cache
def run(mode="compact", family="llama", schedule=RAMP, score=None):
    return prefill(
        model_of(family), jnp.asarray(IDS), prunable=PRUNABLE, schedule=schedule,
        mask=REAL, mode=mode, score=score,
    )  # fmt: skip


def continued(out, family="llama", **options):
    options = {"max_new_tokens": 6, "stop_ids": ()} | options
    made = generate(
        out.target, out.prompts(), params=model_of(family).params,
        cache=Session(**out.session()), **options,
    )  # fmt: skip
    return [row.tolist() for row in made.tokens]


def same(got, expected, atol=1e-4):
    np.testing.assert_allclose(got, expected, atol=atol, rtol=1e-4)


# Without pruning ------------------------


@pytest.mark.parametrize(
    "family", ["llama", pytest.param("gpt2", marks=[pytest.mark.medium])]
)
def test_no_pruning_is_the_model(family):
    model = model_of(family)
    late = ramp_schedule(LAYERS, LAYERS, LAYERS + 1)
    out = run(family=family, schedule=late)
    last = jnp.asarray(LENGTHS)[:, None] - 1
    plain = jax.jit(lambda m, ids: m(ids, mask=jnp.asarray(REAL), logits=last).logits)
    same(out.logits, plain(model, jnp.asarray(IDS))[:, 0])
    assert out.scores == {} and bool(out.kept.all(where=REAL[None]))
    prompts = [row[:count] for row, count in zip(IDS, LENGTHS, strict=True)]
    options = {"max_new_tokens": 6, "stop_ids": (), "temperature": [0.0, 1.0]}
    expected = generate(model, prompts, **options).tokens
    got = continued(out, family, **options)
    assert got == [row.tolist() for row in expected]


# Both modes ------------------------


def test_modes_agree():
    short, masked = run(), run("mask")
    np.testing.assert_array_equal(short.kept, masked.kept)
    same(short.logits, masked.logits)
    at = jnp.maximum(short.index, 0)[..., None]
    there = (short.index >= 0)[..., None]
    picked = jnp.take_along_axis(masked.hidden, at, axis=1)
    same(jnp.where(there, short.hidden, 0), jnp.where(there, picked, 0))
    assert short.scores.keys() == masked.scores.keys()
    sizes = [key.shape[2] for key, _ in short.cache.layers]
    assert sizes == [14, 11, 8, 6] and masked.cache.layers[3][0].shape[2] == SEQ
    assert short.cache.num_bytes < masked.cache.num_bytes


def test_each_row_keeps_its_own_count():
    kept = np.asarray(run().kept)
    visual = [(kept[:, row] & PRUNABLE[row]).sum(1).tolist() for row in range(2)]
    assert visual == [[8, 5, 2, 0, 0], [7, 4, 2, 0, 0]]
    text = REAL & ~PRUNABLE
    assert (kept & text[None] == text[None]).all()
    assert not (kept & ~REAL[None]).any()
    assert (kept[1:] <= kept[:-1]).all()


@pytest.mark.medium
def test_decoding_agrees_in_both_modes_with_trees_and_sampling():
    short, masked = run(), run("mask")
    warm = {"temperature": [0.0, 0.8], "seed": 3}
    plain = continued(short, **warm)
    assert plain == continued(masked, **warm)
    drafter = token_recycling(2, Tree.from_paths([(0,), (1,), (0, 0)]))
    assert continued(short, drafter=drafter, **warm) == plain


@pytest.mark.medium
def test_decoding_is_the_prefill_of_a_longer_prompt():
    """A generated token sees in each layer what was kept there, and itself."""
    out = run()
    first = np.asarray(jnp.argmax(out.logits, axis=1))
    made = continued(out, max_new_tokens=2)
    assert [row[0] for row in made] == first.tolist()
    longer, real = np.zeros((2, SEQ + 1), np.int32), np.zeros((2, SEQ + 1), bool)
    may, keep = np.zeros((2, SEQ + 1), bool), np.zeros((LAYERS + 1, 2, SEQ + 1), bool)
    for row, count in enumerate(LENGTHS):
        longer[row, :count], longer[row, count] = IDS[row, :count], first[row]
        real[row, : count + 1] = True
        may[row, :SEQ] = PRUNABLE[row]
        keep[:, row, :SEQ], keep[:, row, count] = out.kept[:, row], True
    again = prefill(
        model_of(), jnp.asarray(longer), prunable=may, schedule=RAMP, mask=real,
        kept=jnp.asarray(keep),
    )  # fmt: skip
    assert jnp.argmax(again.logits, axis=1).tolist() == [row[1] for row in made]


@pytest.mark.medium
def test_windows_and_soft_caps():
    short, masked = run(family="gemma2"), run("mask", "gemma2")
    np.testing.assert_array_equal(short.kept, masked.kept)
    same(short.logits, masked.logits, 2e-4)
    assert continued(short, "gemma2") == continued(masked, "gemma2")
    prompts = [row[:count] for row, count in zip(IDS, LENGTHS, strict=True)]
    plain = generate(model_of("gemma2"), prompts, max_new_tokens=6, stop_ids=())
    whole = run(family="gemma2", schedule=ramp_schedule(LAYERS, 4, 5))
    assert continued(whole, "gemma2") == [row.tolist() for row in plain.tokens]


# Padding and batches ------------------------


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["compact", "mask"])
def test_padding_and_batch_mates_change_nothing(mode):
    count = LENGTHS[1]
    ids, seen = IDS[1:, :count], PRUNABLE[1:, :count]
    both = run(mode)
    left = lambda x: np.pad(x, ((0, 0), (3, 0)))
    for x, may, real in (
        (ids, seen, None),
        (left(ids), left(seen), left(np.ones_like(seen))),
    ):
        out = prefill(
            model_of(), jnp.asarray(x), prunable=may, schedule=RAMP, mask=real,
            mode=mode,
        )  # fmt: skip
        same(out.logits, both.logits[1:])
        kept = np.asarray(out.kept)[..., -count:]
        np.testing.assert_array_equal(kept, np.asarray(both.kept)[:, 1:, :count])
        assert continued(out)[0] == continued(both)[1]


def test_nothing_to_prune():
    out = prefill(
        model_of(), jnp.asarray(IDS), prunable=np.zeros_like(PRUNABLE), schedule=RAMP,
        mask=REAL,
    )  # fmt: skip
    same(out.logits, run(schedule=ramp_schedule(LAYERS, 4, 5)).logits)


@pytest.mark.medium
def test_vectors_in_place_of_ids():
    model = model_of()
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(7, 32)), jnp.float32)
    wide = models.with_vectors(model, rows)
    ids = IDS[1:, : LENGTHS[1]].copy()
    ids[0, 2:9] = 96 + np.arange(7)
    seen = PRUNABLE[1:, : LENGTHS[1]]
    vectors = model.params["embed"]["tokens"][np.minimum(ids, 95)]
    vectors = vectors.at[0, 2:9].set(rows)
    one = prefill(wide, jnp.asarray(ids), prunable=seen, schedule=RAMP)
    two = prefill(model, vectors, prunable=seen, schedule=RAMP, ids=jnp.asarray(ids))
    same(one.logits, two.logits)
    assert continued(one) == continued(two)
    with pytest.raises(ArgumentError, match="ids: got None"):
        prefill(model, vectors, prunable=seen, schedule=RAMP).session()


@pytest.mark.medium
def test_renumbered_positions():
    """A model that saw the kept tokens only, from the layer of the loss on."""
    schedule = stage_schedule(LAYERS, {1: 0.5})
    out = prefill(
        model_of(), jnp.asarray(IDS), prunable=PRUNABLE, schedule=schedule, mask=REAL,
        renumber=True,
    )  # fmt: skip
    places = np.asarray(out.cache.places[1])
    np.testing.assert_array_equal(places[0], np.arange(10))
    assert out.cache.offsets[:, 0].tolist() == [0, -4, -4, -4]
    masked = prefill(
        model_of(), jnp.asarray(IDS), prunable=PRUNABLE, schedule=schedule, mask=REAL,
        renumber=True, mode="mask",
    )  # fmt: skip
    same(out.logits, masked.logits)
    assert continued(out) == continued(masked)
    gathered = run(schedule=schedule)
    assert np.asarray(gathered.cache.places[1])[0].max() == 13
    assert float(jnp.max(jnp.abs(gathered.logits - out.logits))) > 1e-3


# Scores ------------------------


@pytest.mark.medium
def test_scores_rank():
    """Each score against a dense softmax of the layer's own queries and keys."""
    model, found = model_of(), {}

    def look(view):
        found[view.layer] = view
        return -view.index.astype(jnp.float32)

    with jax.disable_jit():
        prefill(
            model, jnp.asarray(IDS), prunable=PRUNABLE, mask=REAL, score=look,
            schedule=fastv_schedule(LAYERS, 1, 0.5),
        )  # fmt: skip
    view = found[0]
    key = np.repeat(np.asarray(view.key), 2, axis=1)
    dots = np.einsum("bqhd,bhkd->bhqk", view.query, key) * view.scale
    seen = np.tril(np.ones((SEQ, SEQ), bool))[None, None] & REAL[:, None, None]
    dots = np.where(seen, dots, -np.inf)
    weights = np.exp(dots - dots.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    rows = np.stack([weights[b, :, count - 1] for b, count in enumerate(LENGTHS)])
    same(LastTokenScore()(view), rows.mean(1))
    received = np.where(REAL[:, None, :, None], weights, 0).sum(2).mean(1)
    same(ReceivedScore()(view), received)
    watching = np.array(LENGTHS)[:, None] - np.arange(SEQ)[None]
    same(
        np.asarray(ReceivedScore(fair=True)(view))[REAL],
        (received / np.maximum(watching, 1))[REAL],
    )
    sharp = np.exp(10 * (dots - dots.max(-1, keepdims=True)))
    sharp = sharp / sharp.sum(-1, keepdims=True)
    flow = np.where(REAL, 1 / REAL.sum(1, keepdims=True), 0)[:, None]
    flow = np.repeat(flow, 4, axis=1)
    for _ in range(5):
        flow = np.einsum("bhq,bhqk->bhk", flow, sharp)
    same(AimScore()(view), np.sqrt((flow**2).mean(1)))


@pytest.mark.medium
def test_random_and_first_tokens():
    one = run(score=RandomScore(1)).kept
    np.testing.assert_array_equal(run("mask", score=RandomScore(1)).kept, one)
    kept = np.asarray(run(score=FirstTokensScore()).kept)
    assert np.flatnonzero(kept[2, 1] & PRUNABLE[1]).tolist() == [2, 3]
    assert not bool(jnp.array_equal(one, kept))


def test_ties_go_to_the_lower_index():
    alike = lambda view: jnp.zeros(view.valid.shape)
    kept = np.asarray(run(score=alike).kept)
    assert np.flatnonzero(kept[1, 0] & PRUNABLE[0]).tolist() == [1, 2, 3, 4, 7]


@pytest.mark.medium
def test_fastv_and_vtw():
    for schedule in (fastv_schedule(LAYERS, 2, 0.5), vtw_schedule(LAYERS, 2)):
        out = run(schedule=schedule, score=LastTokenScore())
        counts = (np.asarray(out.kept)[1:, 0] & PRUNABLE[0]).sum(1).tolist()
        assert counts == list(schedule.kept(8))
        assert set(out.scores) == ({1} if schedule.kept(8)[1] else set())


# Machines ------------------------


@pytest.mark.medium
def test_inside_jit_with_counts():
    @jax.jit
    def logits(model, ids, may, real):
        out = prefill(model, ids, prunable=may, schedule=RAMP, mask=real, counts=(8, 6))
        return out.logits

    args = (model_of(), jnp.asarray(IDS), jnp.asarray(PRUNABLE), jnp.asarray(REAL))
    same(logits(*args), run().logits)
    with pytest.raises(ArgumentError, match="counts"):
        jax.jit(
            lambda ids, may: prefill(args[0], ids, prunable=may, schedule=RAMP).logits
        )(*args[1:3])


@pytest.mark.medium
def test_bfloat16():
    model = model_of(dtype="bfloat16")
    out = prefill(model, jnp.asarray(IDS), prunable=PRUNABLE, schedule=RAMP, mask=REAL)
    assert out.hidden.dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32
    assert out.scores[0].dtype == jnp.float32
    np.testing.assert_array_equal(jnp.sum(out.kept, 2), jnp.sum(run().kept, 2))
    assert bool(jnp.all(jnp.isfinite(out.logits)))


@pytest.mark.slow
def test_on_a_mesh():
    with jax.set_mesh(mesh_from("data=2,model=2", devices=jax.devices()[:4])):
        model = model_of()
        placed = models.checkpoint.place_params(model.params, model.config)
        out = prefill(
            model.replace(params=placed), jnp.asarray(IDS), prunable=PRUNABLE,
            schedule=RAMP, mask=REAL,
        )  # fmt: skip
        tokens = continued(out)
    np.testing.assert_array_equal(out.kept, run().kept)
    same(out.logits, run().logits)
    assert tokens == continued(run())


# Bad input ------------------------


def test_bad_input():
    model, ids = model_of(), jnp.asarray(IDS)
    call = functools.partial(prefill, model, ids, prunable=PRUNABLE, mask=REAL)
    with pytest.raises(ArgumentError, match="schedule: got .3 layers"):
        call(schedule=ramp_schedule(3, 0, 2))
    with pytest.raises(ArgumentError, match="compat: got 'official'"):
        call(schedule=RAMP, compat="official")
    with pytest.raises(ArgumentError, match="counts: got"):
        call(schedule=RAMP, counts=(7, 6))
    with pytest.raises(ArgumentError, match=r"kept: got .shape \(4, 2, 14\)"):
        call(schedule=RAMP, kept=jnp.ones((4, 2, 14), bool))
    unchecked = getattr(prefill, "__wrapped__", prefill)  # types refuse these before
    with pytest.raises(ArgumentError, match="mode: got 'short'"):
        unchecked(model, ids, prunable=PRUNABLE, schedule=RAMP, mode="short")
    with pytest.raises(ArgumentError, match="prunable: got .shape"):
        unchecked(model, ids, prunable=PRUNABLE[:, :5], schedule=RAMP)
    with pytest.raises(ArgumentError, match="prunable: got .the last token"):
        prefill(model, ids, prunable=np.ones_like(PRUNABLE), schedule=RAMP)
    with pytest.raises(ArgumentError, match="mask: got .a row without a token"):
        prefill(model, ids, prunable=PRUNABLE, schedule=RAMP, mask=np.zeros_like(REAL))
    with pytest.raises(ArgumentTypeError, match="causal DecoderConfig"):
        prefill(tiny_model(family="bert"), ids, prunable=PRUNABLE, schedule=RAMP)
    with pytest.raises(ArgumentError, match="spans"):
        spans_mask(6, [(3, 2)])
    with pytest.raises(ArgumentError, match="spans"):
        spans_mask(6, [(3, 7)])
    out = run()
    other = [row.copy() for row in out.prompts()]
    other[0][2] += 1
    with pytest.raises(ArgumentError, match="cache: the prompt differs"):
        generate(out.target, other, params=model.params, cache=Session(**out.session()))
