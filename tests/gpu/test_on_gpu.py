"""What only a GPU can show: the same tokens there, and no surprises in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok import models, nn, train
from jtok.decode import draft_model, generate, loop, prompt_lookup, token_recycling
from jtok.ops import Want, cached_attention, cross_entropy, readout
from jtok.ops.attention import shapes as attention_shapes
from jtok.testing import assert_close, assert_token_guarantee, load_golden
from tests.models.decoders import GOLDENS

pytestmark = pytest.mark.gpu

stacked = lambda model: model.replace(params=models.stack_layers(model.params))

PROMPTS = [[5, 6, 7, 5, 6] * 8, [9], [1, 2, 3] * 120, [44, 17] * 4]


def sizes(dtype):
    return nn.DecoderConfig(
        vocab_size=4096, width=256, num_layers=4, num_heads=8, num_kv_heads=4,
        head_dim=32, mlp_width=512, max_positions=4096, tied=True, dtype=dtype,
    )  # fmt: skip


@functools.lru_cache
def model(dtype):
    made = models.init(sizes(dtype), jax.random.key(0))
    # Larger weights give a less flat distribution than a fresh model has.
    return made.replace(params=jax.tree.map(lambda x: 2 * x, made.params))


@functools.lru_cache
def plain(dtype, temperature):
    return generate(
        model(dtype), PROMPTS, max_new_tokens=256, temperature=temperature, gaps=True,
        capacity=2048, stop_ids=(),
    )  # fmt: skip


DRAFTERS = {
    "recycling": token_recycling,
    "lookup": prompt_lookup,
    "model": lambda: draft_model(model("bfloat16"), depth=3),
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("dtype, near", [("float32", 1e-4), ("bfloat16", 1e-1)])
def test_drafts_change_nothing(dtype, near, name, temperature):
    """Rows outgrow the first part of the cache, so that several loops run."""
    assert len(loop._reaches(2048)) == 4
    out = generate(
        model(dtype), PROMPTS, max_new_tokens=256, temperature=temperature,
        drafter=DRAFTERS[name](), capacity=2048, stop_ids=(),
    )  # fmt: skip
    assert_token_guarantee(plain(dtype, temperature), out, tolerance=near)
    assert out.stats.tokens_per_call > 1.0


@pytest.mark.parametrize("folder", ["llama", "gemma2", "mamba", "qwen3_moe"])
def test_outputs_of_transformers(folder):
    expected = load_golden(f"hf_checkpoints/{folder}/expected.npz")
    ids = jnp.asarray(expected["in_input_ids"])
    mask = expected["in_attention_mask"] == 1
    found = models.load(GOLDENS / folder)(ids, mask=jnp.asarray(mask)).logits
    assert_close(np.asarray(found)[mask], expected["out_logits"][mask], atol=2e-4)


@pytest.mark.parametrize("name", ["tree-0.5b", "window-softcap"])
def test_attention_is_that_of_the_cpu(name):
    case = attention_shapes.cases()[name]
    arrays = attention_shapes.inputs(case, seed=0)
    run = jax.jit(lambda a: cached_attention(**a, **case["options"]))
    there = jax.device_put(arrays, jax.devices("cpu")[0])
    # Both read bfloat16; sums run in another order.
    assert_close(run(arrays), np.asarray(run(there)), rtol=2e-2, atol=2e-2)


def test_a_readout_in_one_block_is_one_in_many():
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (2, 9, 64))
    weight = jax.random.normal(keys[1], (50_000, 64))
    want = Want(top_k=8, log_sum_exp=True)
    one = jax.jit(lambda: readout(hidden, weight, want))()
    many = jax.jit(lambda: readout(hidden, weight, want, block=4096))()
    np.testing.assert_array_equal(one.choice, many.choice)
    np.testing.assert_array_equal(one.top_ids, many.top_ids)
    assert_close(one.log_sum_exp, many.log_sum_exp)


def test_a_loss_over_a_large_vocabulary_holds_a_part_of_it():
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (
            ((4096, 1024), jnp.bfloat16),
            ((131072, 1024), jnp.bfloat16),
            ((4096,), jnp.int32),
        )
    ]
    loss = lambda h, w, t: jnp.mean(cross_entropy(h, w, t))
    compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    # Dense logits would be 2 GB.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 2**30


def test_training_goes_as_on_the_cpu():
    small = stacked(models.init(dataclasses.replace(sizes("float32"), num_layers=2),
                                jax.random.key(1)))  # fmt: skip
    loss_fn, optimizer = train.lm_loss(small), optax.adam(1e-3)
    batch = {"tokens": jax.random.randint(jax.random.key(2), (8, 65), 0, 512)}

    @jax.jit
    def step(params, state):
        run = lambda p: loss_fn(p, None, None, batch, jax.random.key(0))[0]
        loss, grads = jax.value_and_grad(run)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    def losses(device):
        with jax.default_device(device):
            params = jax.device_put(small.params, device)
            state, found = optimizer.init(params), []
            for _ in range(8):
                params, state, loss = step(params, state)
                found.append(float(loss))
        return found

    here, there = losses(jax.devices()[0]), losses(jax.devices("cpu")[0])
    np.testing.assert_allclose(here, there, rtol=1e-4)
    assert here[-1] < here[0] - 0.5
