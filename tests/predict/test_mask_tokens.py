"""What is trained for mask tokens: nothing of the base model changes, and it learns."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok import models
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    VocabMismatchError,
)
from jtok.models import storage
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.predict import (
    block_latents,
    load_adapters,
    load_masks,
    mask_init,
    mask_loss,
    mask_losses,
    merge,
    pack_blocks,
    sampler_hidden,
    save_masks,
    with_masks,
)
from jtok.testing import assert_close, tiny_config, tiny_model
from jtok.train import fit

K = 2
TOKENS = jnp.array([[5, 6, 7, 8, 9, 4], [3, 2, 1, 5, 8, 8]])
REAL = jnp.array([[True] * 6, [True] * 4 + [False] * 2])


def trained_for(model, seed=0, size=0.3):
    made = mask_init(model, K, 2, jax.random.key(seed))
    noise = lambda x: x + size * jax.random.normal(jax.random.key(7), x.shape)
    return jax.tree.map(noise, made)


def packed_of(k=K, **options):
    return pack_blocks(TOKENS, k, vocab_size=96, mask=REAL, **options)


latents_of = jax.jit(block_latents, static_argnames=("scale", "gated"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3_moe"])
def test_latents_are_those_of_every_prompt_on_its_own(family):
    """Also where layers have windows, norms of queries, or scaled embeddings."""
    model = tiny_model(family=family)
    trained = trained_for(model)
    packed = packed_of()
    rows, blocks = latents_of(model, trained, packed)
    base = jax.jit(lambda ids: model(ids, mask=REAL, logits="none").hidden)(TOKENS)
    # Two programs: bits are compared where only the adapters differ, below.
    assert_close(rows[REAL], base[REAL], rtol=1e-6, atol=1e-6)
    masked = with_masks(model, trained)
    run = jax.jit(lambda ids, real: masked(ids, mask=real, logits="none").hidden)
    for row in range(2):
        for index in range(6):
            if packed.block[row, 6 + K * index] < 0:
                continue
            # [x_0 .. x_i, m_1 .. m_k], at one shape: padding stands behind.
            ids = jnp.full(6 + K, 1).at[: index + 1].set(TOKENS[row, : index + 1])
            ids = ids.at[index + 1 : index + 1 + K].set(96 + jnp.arange(K))
            real = jnp.arange(6 + K) < index + 1 + K
            alone = run(ids[None], real[None])[0]
            got = blocks[row, K * index : K * index + K]
            assert_close(got, alone[index + 1 : index + 1 + K], rtol=1e-4, atol=1e-4)


def test_adapters_of_any_weights_leave_every_bit_of_the_tokens():
    model = tiny_model()
    seen = [
        latents_of(model, trained_for(model, seed, 5.0), packed_of()) for seed in (0, 1)
    ]
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert jnp.abs(seen[0][1] - seen[1][1]).max() > 0.01
    # Ordinary adapters change them: the model is the merged one.
    trained = trained_for(model)
    rows, _ = latents_of(model, trained, packed_of(), gated=False)
    assert jnp.abs(rows - seen[0][0])[REAL].max() > 0.1
    merged = model.replace(params=merge(model.params, trained["adapters"]))
    want = merged(TOKENS, mask=REAL, logits="none").hidden
    assert_close(rows[REAL], want[REAL], rtol=1e-4, atol=1e-4)


def test_without_a_change_masks_are_vectors_of_the_base_model():
    model = tiny_model()
    fresh = mask_init(model, K, 2, jax.random.key(0))
    _, blocks = latents_of(model, fresh, packed_of())
    index = 3
    vectors = model.params["embed"]["tokens"][TOKENS[:1, : index + 1]]
    vectors = jnp.concatenate([vectors, fresh["masks"][None]], axis=1)
    alone = model(vectors, logits="none").hidden[0, index + 1 :]
    assert_close(blocks[0, K * index : K * index + K], alone, rtol=1e-4, atol=1e-5)


def test_stacked_layers_and_documents_in_a_row():
    model = tiny_model(family="gemma3_text")
    stacked = model.replace(params=models.stack_layers(model.params))
    trained = trained_for(model)
    segments = jnp.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    places = jnp.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1]])
    packed = packed_of(segments=segments, positions=places)
    ours, theirs = (latents_of(m, trained, packed) for m in (model, stacked))
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x, y, rtol=1e-4, atol=1e-5)
    # The second document of row 0 is as if it stood alone.
    alone = pack_blocks(TOKENS[:1, 3:], K, vocab_size=96)
    rows, blocks = latents_of(model, trained, alone)
    assert_close(ours[0][0, 3:], rows[0], rtol=1e-4, atol=1e-4)
    kept = np.asarray(alone.valid[0, 3:])
    assert_close(ours[1][0, 6:][kept], blocks[0][kept], rtol=1e-4, atol=1e-4)


def test_fewer_masks_are_the_first_ones():
    model = tiny_model()
    trained = trained_for(model)
    _, two = latents_of(model, trained, packed_of(2))
    _, one = latents_of(model, trained, packed_of(1))
    assert_close(one, two[:, ::2], rtol=1e-4, atol=1e-5)
    assert with_masks(model, trained, k=1).params["embed"]["extra"].shape == (1, 32)


# ---- losses


@functools.cache
def loss_and_gradients(**options):
    model = tiny_model()

    def total(trained):
        found = mask_losses(model, trained, packed_of(), **options)
        return found.consistency, found

    trained = trained_for(model)
    return jax.jit(jax.value_and_grad(total, has_aux=True))(trained)


def test_consistency_teaches_masks_and_nothing_else():
    (value, _), grads = loss_and_gradients()
    assert value > 0
    assert not any(g.any() for g in jax.tree.leaves(grads["sampler"]))
    assert all(g.any() for g in jax.tree.leaves((grads["masks"], grads["adapters"])))


def test_losses_of_nothing_are_zero():
    model, trained = tiny_model(), trained_for(tiny_model())
    nothing = packed_of(labels=jnp.full_like(TOKENS, -100))
    found = jax.jit(mask_losses)(model, trained, nothing)
    assert [float(x) for x in found] == [0.0] * 4
    without = jax.jit(mask_losses)(model, trained, packed_of(0))
    assert without.consistency == 0 and without.base == without.next_token


def test_the_sampler_reads_both_of_its_inputs_and_keeps_its_dtype():
    params = trained_for(tiny_model())["sampler"]
    x, y = jax.random.normal(jax.random.key(1), (2, 3, 32))
    out = sampler_hidden(params, x, y)
    assert jnp.abs(out - sampler_hidden(params, y, x)).max() > 0.01
    half = sampler_hidden(params, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert_close(np.asarray(half, np.float32), out, rtol=0.05, atol=0.05)


def batch_of(**more):
    return {"tokens": TOKENS, "mask": REAL, **more}


def test_the_mean_over_all_draws_of_a_block_is_the_loss_of_all_blocks():
    """Exactly: the rows have 5 and 3 tokens with a block, so there are 15 draws."""
    model, trained = tiny_model(), trained_for(tiny_model())
    whole = jax.jit(mask_losses)(model, trained, packed_of())
    run = jax.jit(lambda blocks: mask_losses(model, trained, packed_of(blocks=blocks)))
    pairs = itertools.product(range(5), range(3))
    drawn = [run(jnp.array([[one], [two]])) for one, two in pairs]
    for name in ("base", "sampler", "consistency"):
        values = np.array([getattr(d, name) for d in drawn], np.float64)
        assert values.std() > 0.01 * values.mean()
        assert values.mean() == pytest.approx(float(getattr(whole, name)), rel=1e-5)
    for d in drawn:
        assert_close(d.next_token, whole.next_token)


def test_each_step_draws_blocks_of_its_own():
    model, trained = tiny_model(), trained_for(tiny_model())
    loss_fn = mask_loss(model, K, num_blocks=1)
    run = jax.jit(lambda key: loss_fn(trained, model.params, None, batch_of(), key)[0])
    assert len({float(run(jax.random.key(seed))) for seed in range(4)}) > 1


def test_weights_of_the_losses():
    model, trained = tiny_model(), trained_for(tiny_model())
    loss_fn = mask_loss(model, K, weights=(1, 0, 0.5))

    def loss(trained):
        return loss_fn(trained, model.params, None, batch_of(), jax.random.key(0))

    (value, (metrics, _)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        trained
    )
    assert_close(value, metrics["base"] + 0.5 * metrics["consistency"])
    assert not any(g.any() for g in jax.tree.leaves(grads["sampler"]))


def test_training_makes_the_loss_small_and_leaves_the_model():
    model = tiny_model()
    stacked = models.stack_layers(model.params)
    made = mask_init(model, K, 4, jax.random.key(0))
    periodic = jnp.tile(jnp.array([[1, 2, 3, 4]]), (4, 4))
    result = fit(
        mask_loss(model, K, num_blocks=4, weights=(1, 1, 0)), made, frozen=stacked,
        optimizer=optax.adam(1e-2), data=lambda step: {"tokens": periodic}, steps=80,
        key=jax.random.key(1), progress=False,
    )  # fmt: skip
    sampler = result.metrics["sampler"]
    assert sampler[-1] < 0.3 * sampler[0]
    tokens = result.metrics["next_token"]
    np.testing.assert_array_equal(tokens, tokens[0])


@pytest.mark.medium
def test_in_bfloat16_and_on_a_mesh():
    model = tiny_model()
    trained = trained_for(model, size=0.05)
    run = lambda model: jax.jit(mask_losses)(model, trained, packed_of())
    want = run(model)
    fields = models.FAMILIES["llama"].write(model.config)
    half = models.Model(
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params),
        models.config_from(fields, dtype="bfloat16"),
    )
    for got, full in zip(run(half), want, strict=True):
        assert got.dtype == jnp.float32
        assert_close(got, full, rtol=0.1, atol=0.05)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        axes = models.checkpoint.param_axes(model.params)
        spread = model.replace(params=shard_tree(model.params, axes))
        grad = jax.jit(jax.grad(lambda t, m: mask_losses(m, t, packed_of()).sampler))
        found = run(spread)
        there = grad(trained, spread)
    for got, full in zip(found, want, strict=True):
        assert_close(got, full, rtol=1e-4, atol=1e-5)
    here = grad(trained, model)
    close = lambda a, b: assert_close(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, there, here)


def test_memory_is_that_of_the_blocks():
    """The gradient of all three losses, over rows that would make huge masks."""
    seq, k = 256, 4
    model = tiny_model()
    stacked = model.replace(params=models.stack_layers(model.params))
    trained = mask_init(model, k, 2, jax.random.key(0))
    loss_fn = mask_loss(model, k)
    grad = jax.grad(lambda t, f, b: loss_fn(t, f, None, b, jax.random.key(0))[0])
    batch = {"tokens": jax.ShapeDtypeStruct((1, seq), jnp.int32)}
    compiled = jax.jit(grad).lower(trained, stacked.params, batch).compile()
    taken = compiled.memory_analysis().temp_size_in_bytes
    # Scores of all slots by all slots, of all four heads of one layer, in float32.
    assert taken < (seq * (k + 1)) ** 2 * 4 * 4


# ---- files


def test_a_round_trip_through_files(tmp_path):
    model = tiny_model()
    trained = trained_for(model)
    save_masks(trained, tmp_path / "a", model, scale=2.0)
    back, scale = load_masks(tmp_path / "a", model)
    assert scale == 2.0
    jax.tree.map(np.testing.assert_array_equal, back, trained)
    # Other libraries read the adapters alone.
    adapters, _ = load_adapters(tmp_path / "a", model)
    jax.tree.map(np.testing.assert_array_equal, adapters, trained["adapters"])
    (tmp_path / "a" / "mask_tokens.safetensors").unlink()
    with pytest.raises(CheckpointError, match="mask_tokens"):
        load_masks(tmp_path / "a", model)
    for odd in ((), (0, 32), (K, 8), (2, K, 32), (10**9, 0)):
        file = tmp_path / "a" / "mask_tokens.safetensors"
        named = {"masks": np.zeros(odd, np.float32)}
        storage.write_tensors(file.parent, named, stem="mask_tokens")
        with pytest.raises(CheckpointError, match="masks has shape"):
            load_masks(file.parent, model)
    bad = {**trained, "masks": jnp.zeros((K, 8))}
    with pytest.raises(ArgumentError, match=r"trained: got 'masks of shape"):
        save_masks(bad, tmp_path / "b", model)
    assert not (tmp_path / "b").exists()


def test_bad_input_is_refused_by_name():
    model, key = tiny_model(), jax.random.key(0)
    with pytest.raises(ArgumentError, match=r"k: got 0"):
        mask_init(model, 0, 2, key)
    with pytest.raises(ArgumentTypeError, match=r"model: got DecoderConfig"):
        mask_init(tiny_config(), 1, 2, key)
    with pytest.raises(ArgumentTypeError, match=r"model: got MambaConfig"):
        mask_init(tiny_model(family="mamba"), 1, 2, key)
    trained = trained_for(model)
    with pytest.raises(ArgumentError, match=r"k: got 3, expected 1 to 2"):
        with_masks(model, trained, k=3)
    with pytest.raises(ArgumentError, match=r"params: got 'an adapter"):
        with_masks(with_masks(model, trained), trained)
    with pytest.raises(ArgumentError, match=r"packed: got 'k=3'"):
        block_latents(model, trained, packed_of(3))
    with pytest.raises(VocabMismatchError, match=r"packed: got '10 ids', expected 96"):
        few = pack_blocks(TOKENS, K, vocab_size=10)
        block_latents(model, trained, few)
    with pytest.raises(ArgumentError, match=r"packed: got 'slots in another order'"):
        block_latents(model, trained, packed_of().replace(seq=0))
    with pytest.raises(ArgumentError, match=r"k: got 0"):
        mask_loss(model, 0)
    with pytest.raises(ArgumentError, match=r"num_blocks: got 0"):
        mask_loss(model, 1, num_blocks=0)
    with pytest.raises(ArgumentError, match=r"weights: got \(1, -1, 0\)"):
        mask_loss(model, 1, weights=(1, -1, 0))
    learned = tiny_model(family="gpt2")
    long = {"tokens": jnp.ones((1, 511), jnp.int32)}
    with pytest.raises(ArgumentError, match=r"tokens: got '511 tokens and k=2'"):
        mask_loss(learned, 2)(None, learned.params, None, long, key)
    with pytest.raises(ArgumentError, match=r"labels: got 'shape \(2, 5\)'"):
        mask_loss(model, 2)(
            trained, model.params, None, batch_of(labels=TOKENS[:, :5]), key
        )
