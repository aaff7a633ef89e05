"""Decoding over eight devices: the same tokens, and little that travels."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jtok import models
from jtok.decode import (
    generate,
    lower_decode,
    prompt_lookup,
    serve,
    stream,
    token_recycling,
)
from jtok.decode.recycling import recycling_template
from jtok.errors import ArgumentError
from jtok.models.checkpoint import place_params
from jtok.ops import Tree
from jtok.ops.sharding import mesh_from
from jtok.testing import (
    assert_token_guarantee,
    bigram_target,
    collectives,
    tiny_config,
    tiny_model,
)
from tests.ops.topologies import tpu_mesh

PROMPTS = [[5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], [44, 17] * 4]
PROMPTS += [[3], [8, 8, 8], [90, 1], [17] * 20]
MIXED = [1.0, 0.0, 0.7, 1.3, 0.0, 1.0, 0.5, 0.0]
SMALL = Tree.from_paths(recycling_template().paths[:14])
DRAFTERS = {"recycling": token_recycling(8, SMALL), "lookup": prompt_lookup(4)}


def on_mesh(spec, *args, **options):
    with jax.set_mesh(mesh_from(spec)):
        return generate(*args, **options)


def lists(out):
    return [row.tolist() for row in out.tokens]


@functools.lru_cache
def alone(sampled, stops=()):
    return generate(
        tiny_model(), PROMPTS, max_new_tokens=24, gaps=True, stop_ids=stops,
        temperature=MIXED if sampled else 0.0,
    )  # fmt: skip


# The guarantee ------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [None, *DRAFTERS])
def test_tokens_are_those_of_one_device(name, sampled):
    """Rows over two devices; heads and vocabulary over four, two key-value heads."""
    stops = (lists(alone(False))[0][3], lists(alone(True))[2][5])
    out = on_mesh(
        "data=2,model=4", tiny_model(), PROMPTS, max_new_tokens=24, gaps=True,
        temperature=MIXED if sampled else 0.0, drafter=DRAFTERS.get(name),
        stop_ids=stops,
    )  # fmt: skip
    plain = alone(sampled, stops)
    assert_token_guarantee(plain, out)
    assert lists(out) == lists(plain)  # no near-ties with these seeds
    assert out.finish_reason == plain.finish_reason
    assert "stop" in out.finish_reason and "length" in out.finish_reason
    if name == "recycling":
        assert out.stats.calls < plain.stats.calls


@pytest.mark.medium
def test_rows_that_do_not_divide_are_on_every_device():
    """Three rows on four devices: as without a mesh, also in the counts."""
    target = bigram_target(np.random.default_rng(0).normal(size=(9, 9)))
    run = functools.partial(
        generate, target, [[1, 2], [3], [4, 5, 6]], max_new_tokens=[6, 9, 3],
        temperature=[1.0, 0.0, 0.5], drafter=token_recycling(2, Tree.star(2)),
    )  # fmt: skip
    plain = run()
    with jax.set_mesh(mesh_from("data=4,model=2")):
        out = run()
    assert lists(out) == lists(plain)
    assert out.finish_reason == ["length"] * 3
    for name in ("row_calls", "row_emitted", "emitted_per_call", "node_hits"):
        expected = getattr(plain.stats, name)
        np.testing.assert_array_equal(getattr(out.stats, name), expected)
    assert out.stats.calls == plain.stats.calls


@pytest.mark.medium
def test_a_mesh_with_explicit_axes_and_weights_from_before_it():
    """`jax.make_mesh` makes explicit axes; the model was made without a mesh."""
    expected = generate(tiny_model(), PROMPTS[:2], max_new_tokens=6)
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"))):
        made = models.init(tiny_config(), jax.random.key(0))
        out = generate(tiny_model(), PROMPTS[:2], max_new_tokens=6)
    assert lists(out) == lists(expected)
    query = made.params["layers"][0]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (32, 8)
    # The same numbers as without a mesh, and key-value heads are not cut.
    without = models.init(tiny_config(), jax.random.key(0)).params
    jax.tree.map(np.testing.assert_array_equal, made.params, without)
    key = made.params["layers"][0]["key"]["kernel"]
    assert key.sharding.is_fully_replicated


@pytest.mark.medium
def test_streams_and_rows_that_refill_on_a_mesh_with_explicit_axes():
    expected = generate(tiny_model(), PROMPTS[:4], max_new_tokens=6)
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"))):
        told = {row: [] for row in range(4)}
        for event in stream(tiny_model(), PROMPTS[:4], max_new_tokens=6, sync_every=4):
            told[event.row] += event.tokens.tolist()
        served = dict(serve(tiny_model(), PROMPTS[:4], batch=2, max_new_tokens=6))
        first = generate(
            tiny_model(), PROMPTS[:4], max_new_tokens=3, keep_cache=True,
            drafter=DRAFTERS["recycling"],
        )  # fmt: skip
        longer = [p + t.tolist() for p, t in zip(PROMPTS, first.tokens)]
        again = generate(
            tiny_model(), longer, max_new_tokens=3, cache=first.cache,
            drafter=DRAFTERS["recycling"], drafter_state=first.drafter_state,
        )  # fmt: skip
    assert list(told.values()) == lists(expected)
    assert [served[row].tokens.tolist() for row in range(4)] == lists(expected)
    halves = [a + b for a, b in zip(lists(first), lists(again), strict=True)]
    assert halves == lists(expected)


def test_a_mesh_that_does_not_divide_the_heads_is_refused(tmp_path):
    models.save(tiny_model(), tmp_path / "m")
    says = r"mesh: got 'model=8', expected .* divides the 4 heads: one of 1, 2, 4\."
    with jax.set_mesh(mesh_from("model=8")):
        for job in (
            lambda: models.init(tiny_config(), jax.random.key(0)),
            lambda: models.load(tmp_path / "m"),
            lambda: models.abstract(tiny_config()),
            lambda: generate(tiny_model(), [1], max_new_tokens=1),
        ):
            with pytest.raises(ArgumentError, match=says):
                job()


@pytest.mark.medium
def test_load_places_what_save_wrote(tmp_path):
    models.save(tiny_model(), tmp_path / "m")
    with jax.set_mesh(mesh_from("data=2,model=4")):
        loaded = models.load(tmp_path / "m")
        models.save(loaded, tmp_path / "again")
    embed = loaded.params["embed"]["tokens"]
    assert embed.sharding.shard_shape(embed.shape) == (24, 32)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, tiny_model().params)
    again = models.load(tmp_path / "again").params
    jax.tree.map(np.testing.assert_array_equal, again, tiny_model().params)


# What travels ------------------------


@functools.lru_cache
def compiled(name, spec, heads=4):
    config = dataclasses.replace(tiny_config(vocab_size=4096), num_kv_heads=heads)
    with jax.set_mesh(mesh_from(spec)):
        lowered = lower_decode(
            models.abstract(config), batch=4, capacity=1024, drafter=DRAFTERS.get(name)
        )
        return lowered.compile()


def largest(program, kind):
    sizes = [c.num_bytes for c in collectives(program) if c.kind == kind]
    return max(sizes, default=0)


@pytest.mark.medium
@pytest.mark.parametrize("name", [None, "recycling"])
def test_a_step_gathers_neither_logits_nor_weights(name):
    """Two rows a device, 1 or 14 nodes, 4096 ids in parts of 1024."""
    program = compiled(name, "data=2,model=4")
    nodes = 1 if name is None else SMALL.num_nodes
    kinds = {c.kind for c in collectives(program)}
    assert kinds <= {"all-gather", "all-reduce", "collective-permute"}
    # Of each of the four parts 8 candidates with their ids, and four running values.
    assert largest(program, "all-gather") <= 4 * 2 * nodes * (2 * 8 + 4) * 4
    # Sums after attention, MLP and embedding: [2, nodes, 32] float32.
    sums = [c.shape for c in collectives(program) if c.kind == "all-reduce"]
    assert sums.count((2, nodes, 32)) == 2 * 2 + 1
    assert largest(program, "all-reduce") == 2 * nodes * 32 * 4
    text = program.as_text()
    assert "f32[4096,32]" not in text and "f32[32,4096]" not in text
    assert f"f32[2,{nodes},4096]" not in text


@pytest.mark.medium
def test_a_cache_of_fewer_heads_than_devices_stays_where_it_is():
    program = compiled("recycling", "data=2,model=4", heads=2)
    cache = 2 * 2 * 1024 * 8 * 4
    assert largest(program, "all-gather") < cache / 8
    assert "f32[2,2,1024,8]" in program.as_text()


def test_temporaries_do_not_hold_a_second_copy():
    program = compiled(None, "data=2,model=4")
    stats = program.memory_analysis()
    assert stats.temp_size_in_bytes < stats.argument_size_in_bytes / 2


def test_weights_that_are_in_place_are_not_moved():
    with jax.set_mesh(mesh_from("data=2,model=4")):
        placed = place_params(tiny_model().params, tiny_config())
        again = place_params(placed, tiny_config())
    same = jax.tree.map(lambda a, b: a is b, placed, again)
    assert all(jax.tree.leaves(same))


# A TPU that is not here ------------------------


@pytest.mark.medium
def test_a_decode_step_compiles_for_a_tpu():
    mesh = tpu_mesh("v5e:2x2", 4)
    config = dataclasses.replace(
        tiny_config(vocab_size=4096), num_kv_heads=4, dtype="bfloat16"
    )
    with jax.set_mesh(mesh):
        model = models.abstract(config)
        lowered = lower_decode(
            model, batch=2, capacity=256, drafter=DRAFTERS["recycling"]
        )
        program = lowered.compile()
    nodes = SMALL.num_nodes
    assert 0 < largest(program, "all-gather") <= 4 * 2 * nodes * (2 * 8 + 4) * 4
    assert largest(program, "all-reduce") <= 2 * nodes * 32 * 4
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20
