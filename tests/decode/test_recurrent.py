"""Decoding a recurrent model: chains save calls and change nothing else."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.decode import generate, prompt_lookup, token_recycling
from jtok.errors import ArgumentError
from jtok.ops import Tree
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    compare,
    extra_slots_drafter,
    oracle_drafter,
    steps,
    tiny_model,
)

PROMPTS = [[5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3] * 6, [4, 7] * 4]
BUDGET = 32
MODES = {"greedy": 0.0, "sampled": 1.0, "mixed": [1.0, 0.0, 0.7, 1.3]}
LOOKUP = prompt_lookup(5)
# A small vocabulary repeats itself; large weights make the past count.
MODEL = functools.partial(tiny_model, family="mamba", vocab_size=12, scale=7.0)


@functools.lru_cache
def decode(mode, drafter=None):
    return generate(
        MODEL(), PROMPTS, max_new_tokens=BUDGET, temperature=MODES[mode], gaps=True,
        drafter=drafter,
    )  # fmt: skip


def lists(out):
    return [row.tolist() for row in out.tokens]


def plain_by_hand(prompt, count):
    """Arg-max of a whole forward pass for every token."""
    forward = jax.jit(lambda params, ids: MODEL().replace(params=params)(ids).logits)
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 48), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(forward(MODEL().params, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_plain_decoding_takes_the_best_token():
    for row in (0, 1):
        assert decode("greedy").tokens[row].tolist() == plain_by_hand(
            PROMPTS[row], BUDGET
        )


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_drafts_change_nothing_but_the_calls(mode):
    plain, out = decode(mode), decode(mode, LOOKUP)
    assert_token_guarantee(plain, out)
    assert compare(plain, out) == []  # no near-ties with this model and these seeds
    assert out.guarantee == "token" and plain.stats.tokens_per_call == 1
    assert out.stats.calls < plain.stats.calls


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_a_row_alone_gives_the_same(mode):
    together = decode(mode)
    for row in (0, 2):
        alone = generate(
            MODEL(), PROMPTS[row], max_new_tokens=BUDGET, seed=row, drafter=LOOKUP,
            temperature=MODES[mode],
        )  # fmt: skip
        assert alone.tokens.tolist() == together.tokens[row].tolist()


def test_right_drafts_are_all_accepted():
    truth = [row.tolist() for row in decode("mixed").tokens]
    out = decode.__wrapped__("mixed", oracle_drafter(truth, 3))
    assert lists(out) == truth
    assert out.stats.row_calls.tolist() == [BUDGET // 4] * len(PROMPTS)


@jax.jit
def memory_after(model, ids, count):
    """What a single pass over the ids leaves, per layer."""
    cache = models.init_cache(model.config, *ids.shape)
    path = jnp.arange(ids.shape[1])[None]
    return models.commit(model(ids, cache=cache).cache, path, count).layers


def fresh_memory(ids):
    padded = jnp.asarray([[*ids, *[0] * (128 - len(ids))]])
    return memory_after(MODEL(), padded, jnp.array([len(ids)]))


def test_after_every_step_the_state_is_that_of_a_fresh_prefill():
    """Two chunks of prompt in one row, none in another, and a row that ends early."""
    states = list(
        steps(
            MODEL().target(), MODEL().params, PROMPTS, drafter=LOOKUP,
            max_new_tokens=[20, 20, 3, 20], temperature=MODES["mixed"],
        )
    )  # fmt: skip
    assert max(np.diff([s.tokens.count for s in states], axis=0).max(0)) > 1
    for state, row in itertools.product(states, range(len(PROMPTS))):
        length = state.cache.length[row]
        assert length == state.tokens.count[row] - 1
        if length == 0:
            assert not any(x[row].any() for x in jax.tree.leaves(state.cache.layers))
            continue
        wanted = fresh_memory(state.tokens.ids[row, :length])
        for layer, fresh in zip(state.cache.layers, wanted, strict=True):
            for held, new in zip(layer, fresh, strict=True):
                # Entries are sums that cancel: their rounding is that of the largest.
                size = max(1.0, float(np.abs(new).max()))
                assert_close(held[row], new[0], atol=1e-5 * size)


def test_a_finished_row_keeps_its_state_bit_by_bit():
    states = list(
        steps(
            MODEL().target(), MODEL().params, PROMPTS, drafter=LOOKUP,
            max_new_tokens=[1, 12, 3, 12], temperature=MODES["mixed"],
        )
    )  # fmt: skip
    finished = 0
    for before, after in itertools.pairwise(states):
        for row in np.flatnonzero(~before.live):
            finished += 1
            old, new = (jax.tree.leaves(s.cache.layers) for s in (before, after))
            for was, now in zip(old, new, strict=True):
                assert was[row].tobytes() == now[row].tobytes()
    assert finished


@pytest.mark.parametrize(
    "drafter", [token_recycling(), token_recycling(2, Tree.star(2))]
)
def test_trees_are_refused_with_what_to_use(drafter):
    with pytest.raises(ArgumentError, match=r"expected chains.* prompt_lookup\(\)"):
        generate(MODEL(), PROMPTS, max_new_tokens=4, drafter=drafter)


def test_a_conversation_goes_on_and_nothing_is_forgotten():
    """A kept state serves a longer text, and no other: it cannot be rewound."""
    first = generate(MODEL(), [1, 2, 3], max_new_tokens=6, keep_cache=True)
    text = [1, 2, 3, *first.tokens.tolist(), 4]
    options = {"max_new_tokens": 6, "drafter": LOOKUP}
    again = generate(MODEL(), text, cache=first.cache, **options)
    fresh = generate(MODEL(), text, **options)
    assert again.tokens.tolist() == fresh.tokens.tolist()
    with pytest.raises(ArgumentError, match="this target cannot forget tokens"):
        generate(MODEL(), [1, 2, 5, 6, 7], cache=first.cache, **options)


def test_extra_slots_are_refused():
    """A mask token after the root sees the root; a state would have seen the drafts."""
    drafter = extra_slots_drafter(token_recycling(2, Tree.chain(2)))
    with pytest.raises(ArgumentError, match="or extra slots, expected chains"):
        generate(MODEL(), PROMPTS, max_new_tokens=4, drafter=drafter)


@pytest.mark.medium
def test_a_chain_of_recycled_candidates():
    out = decode("mixed", token_recycling(template=Tree.chain(4)))
    assert lists(out) == lists(decode("mixed"))
    assert out.stats.calls < decode("mixed").stats.calls


@pytest.mark.medium
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_bfloat16_only_near_ties_differ(temperature):
    config = dataclasses.replace(MODEL().config, dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL().params)
    model = dataclasses.replace(MODEL(), params=params, config=config)
    options = {"max_new_tokens": BUDGET, "temperature": temperature, "gaps": True}
    plain = generate(model, PROMPTS, **options)
    out = generate(model, PROMPTS, drafter=LOOKUP, **options)
    assert_token_guarantee(plain, out, tolerance=1e-1)
    assert out.stats.calls < plain.stats.calls


@pytest.mark.medium
def test_on_a_mesh_the_tokens_are_the_same():
    """Rows over two devices, channels over four."""
    with jax.set_mesh(mesh_from("data=2,model=4")):
        axes = models.checkpoint.param_axes(MODEL().params)
        params = shard_tree(MODEL().params, axes)
        model = dataclasses.replace(MODEL(), params=params)
        kernel = params["layers"][0]["mixer"]["in_proj"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (32, 16)
        out = generate(
            model, PROMPTS, max_new_tokens=BUDGET, temperature=MODES["mixed"],
            drafter=LOOKUP,
        )  # fmt: skip
    # Sums over devices round differently: the rule for near-ties applies.
    assert_token_guarantee(decode("mixed"), out)
