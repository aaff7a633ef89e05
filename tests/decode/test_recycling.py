"""Token Recycling: what is drafted, what is learned, and that no text changes."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings

from jtok.decode import (
    RecyclingState,
    draft_tokens,
    generate,
    load_table,
    recycling_template,
    save_table,
    token_recycling,
    update_table,
)
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
)
from jtok.models import Info, StepOutput, Target
from jtok.ops import Tree
from jtok.testing import tiny_model, tiny_vocabulary

VOCAB, WIDTH = 12, 4
MIXED = Tree.from_paths([(0,), (3,), (0, 1), (3, 0), (3, 2), (0, 1, 0), (3, 2, 3)])
draft = jax.jit(draft_tokens, static_argnums=2)
update = jax.jit(update_table)


@functools.cache
def _cycle_target(vocab):
    """After v comes v + 1, then v + 2, ..., whatever stood before."""

    def logits(params, ids):
        distance = (jnp.arange(vocab)[None, None] - ids[..., None] - 1) % vocab
        return -distance.astype(jnp.float32)

    def step(params, cache, nodes):
        return StepOutput(logits(params, nodes.ids)), cache

    return Target(
        lambda params, batch, capacity: jnp.zeros(batch),
        step,
        lambda cache, path, count: cache + count,
        Info(vocab),
    )


def _cycle_row(token, vocab, width):
    return (token + 1 + np.arange(width)) % vocab


def _warm_table(vocab, width):
    rows = [_cycle_row(token, vocab, width) for token in range(vocab)]
    return np.array(rows, np.int32)


arrays = st.integers(0, 2**32 - 1).map(np.random.default_rng)


# Drafting ------------------------


@given(arrays, st.booleans(), st.sampled_from([1, 3]))
def test_drafts_are_lookups_along_the_paths(rng, per_row, batch):
    shape = (batch,) * per_row + (VOCAB, WIDTH)
    table = rng.integers(0, VOCAB, shape).astype(np.int32)
    roots = rng.integers(0, VOCAB, batch).astype(np.int32)
    tokens, fresh = map(np.asarray, draft(table, roots, MIXED))
    for row, root in enumerate(roots):
        known = table[row] if per_row else table
        assert tokens[row, 0] == root
        assert fresh[row, 0]
        for node, path in enumerate(MIXED.paths, start=1):
            token, useful = root, True
            for rank in path:
                useful &= rank == 0 or known[token, rank] != known[token, 0]
                token = known[token, rank]
            assert tokens[row, node] == token
            assert fresh[row, node] == useful


def test_the_default_template_is_cut_to_the_width():
    drafter = token_recycling(2)
    made = decode([[1, 2]], drafter)
    paths = [path for path in recycling_template().paths if max(path) < 2]
    assert made.stats.slots_per_call == len(paths) + 1
    assert made.drafter_state.table.shape == (96, 2)


# Learning ------------------------


@given(arrays, st.booleans(), st.sampled_from([1, 3]))
def test_the_last_valid_node_gives_a_tokens_row(rng, per_row, batch):
    nodes, shape = 6, (batch,) * per_row + (VOCAB, WIDTH)
    table = rng.integers(0, VOCAB, shape).astype(np.int32)
    tokens = rng.integers(0, VOCAB // 2, (batch, nodes)).astype(np.int32)
    rows = rng.integers(0, VOCAB, (batch, nodes, WIDTH)).astype(np.int32)
    valid = rng.random((batch, nodes)) < 0.7
    expected = table.copy()
    for row, node in itertools.product(range(batch), range(nodes)):
        if valid[row, node]:
            place = (row,) * per_row + (tokens[row, node],)
            expected[place] = rows[row, node]
    got = update(*map(jnp.asarray, (table, tokens, rows, valid)))
    np.testing.assert_array_equal(got, expected)


def test_many_duplicates_give_the_same_table_every_time():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (4, 81)).astype(np.int32)
    rows = rng.integers(0, VOCAB, (4, 81, WIDTH)).astype(np.int32)
    table, valid = np.zeros((VOCAB, WIDTH), np.int32), np.ones((4, 81), bool)
    expected = table.copy()
    for token in range(3):
        expected[token] = rows.reshape(-1, WIDTH)[
            np.flatnonzero(tokens.ravel() == token)[-1]
        ]
    for device in jax.devices()[:2]:
        given_ = jax.device_put((table, tokens, rows, valid), device)
        for _ in range(50):
            np.testing.assert_array_equal(update(*given_), expected)


def test_only_tokens_of_the_trees_are_learned():
    vocab = 40
    table = np.full((vocab, WIDTH), 7, np.int32)
    drafter = token_recycling(WIDTH, MIXED)
    made = generate(
        _cycle_target(vocab),
        [3],
        max_new_tokens=3,
        drafter=drafter,
        drafter_state=table,
    )
    assert made.tokens.tolist() == [4, 5, 6]
    # Roots 3, 4 and 5, and below each the constant 7, which is learned and then drafts
    # 8 onwards: candidates of the learned row.
    got = np.asarray(made.drafter_state.table)
    changed = set(np.flatnonzero((got != table).any(axis=1)).tolist())
    assert {3, 4, 5, 7} <= changed
    assert 6 not in changed  # emitted, but never run
    assert changed <= {3, 4, 5, *range(7, 18)}
    for token in changed:
        np.testing.assert_array_equal(got[token], _cycle_row(token, vocab, WIDTH))


@pytest.mark.parametrize("per_row", [False, True])
def test_rows_that_finished_teach_nothing(per_row):
    drafter = token_recycling(WIDTH, Tree.chain(0), per_row=per_row)
    made = generate(
        _cycle_target(VOCAB), [[0], [5]], max_new_tokens=[1, 4], drafter=drafter
    )
    table = np.asarray(made.drafter_state.table)
    learned = [table[0], table[1]] if per_row else [table]
    seen = [np.flatnonzero(one.any(axis=1)).tolist() for one in learned]
    assert seen == ([[0], [5, 6, 7, 8]] if per_row else [[0, 5, 6, 7, 8]])


def test_a_root_alone_learns_what_it_sees():
    drafter = token_recycling(WIDTH, Tree.chain(0))
    made = generate(_cycle_target(VOCAB), [1], max_new_tokens=5, drafter=drafter)
    assert made.stats.tokens_per_call == 1.0
    expected = np.zeros((VOCAB, WIDTH), np.int32)
    for token in range(1, 6):
        expected[token] = _cycle_row(token, VOCAB, WIDTH)
    np.testing.assert_array_equal(made.drafter_state.table, expected)


def test_a_shared_table_keeps_what_the_last_row_says():
    # Both rows run token 4 with different followers: the logits tell rows apart.
    def step(params, cache, nodes):
        batch = nodes.ids.shape[0]
        offset = jnp.arange(batch)[:, None, None]
        distance = jnp.arange(VOCAB)[None, None] - nodes.ids[..., None] - 1 - offset
        return StepOutput(-(distance % VOCAB).astype(jnp.float32)), cache

    target = _cycle_target(VOCAB)._replace(step=step)
    tree = Tree.chain(0)
    shared = generate(
        target, [[4], [4]], max_new_tokens=1, drafter=token_recycling(WIDTH, tree)
    )
    table = np.asarray(shared.drafter_state.table)
    np.testing.assert_array_equal(table[4], (6 + np.arange(WIDTH)) % VOCAB)
    own = generate(
        target, [[4], [4]], max_new_tokens=1,
        drafter=token_recycling(WIDTH, tree, per_row=True),
    )  # fmt: skip
    tables = np.asarray(own.drafter_state.table)
    np.testing.assert_array_equal(tables[0, 4], (5 + np.arange(WIDTH)) % VOCAB)
    np.testing.assert_array_equal(tables[1, 4], (6 + np.arange(WIDTH)) % VOCAB)


# Decoding ------------------------


def test_a_warm_chain_accepts_everything():
    depth, calls = 5, 4
    made = generate(
        _cycle_target(VOCAB),
        [2],
        max_new_tokens=calls * (depth + 1),
        drafter=token_recycling(WIDTH, Tree.chain(depth)),
        drafter_state=_warm_table(VOCAB, WIDTH),
    )
    assert made.stats.calls == calls
    assert made.stats.tokens_per_call == depth + 1
    assert made.tokens.tolist() == [(3 + i) % VOCAB for i in range(24)]


def test_a_star_emits_at_most_two_tokens_a_call():
    made = generate(
        _cycle_target(VOCAB),
        [2],
        max_new_tokens=20,
        drafter=token_recycling(WIDTH, Tree.star(WIDTH)),
        drafter_state=_warm_table(VOCAB, WIDTH),
    )
    assert made.stats.emitted_per_call.tolist() == [0, 0, 10]


@functools.cache
def _bigram_target():
    """A random bigram model: compiles faster than a transformer."""

    def step(params, cache, nodes):
        return StepOutput(params[nodes.ids]), cache

    return _cycle_target(96)._replace(step=step)


@functools.cache
def _bigrams():
    return jax.random.normal(jax.random.key(3), (96, 96)) * 3.0


def decode(prompts, drafter=None, **options):
    return generate(
        _bigram_target(),
        prompts,
        params=_bigrams(),
        max_new_tokens=24,
        drafter=drafter,
        **options,
    )


PROMPTS = [[5, 9, 3, 7], [1, 2], [11, 60, 5, 9, 3, 8, 8, 8]]


@functools.cache
def _plain(temperature):
    return decode(PROMPTS, temperature=temperature)


def assert_same_tokens(made, plain):
    assert len(made.tokens) == len(plain.tokens)
    for got, want in zip(made.tokens, plain.tokens, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("compat", [None, "official"])
def test_no_table_changes_the_text(temperature, compat):
    vocab, rng = 96, np.random.default_rng(1)
    drafter = token_recycling(WIDTH, MIXED, compat=compat)
    run = functools.partial(decode, PROMPTS, drafter, temperature=temperature)
    for table in (
        np.zeros((vocab, WIDTH), np.int32),
        rng.integers(0, vocab, (vocab, WIDTH)).astype(np.int32),
        np.full((vocab, WIDTH), 5, np.int32),
    ):
        made = run(drafter_state=table)
        assert_same_tokens(made, _plain(temperature))
        again = run(drafter_state=np.asarray(made.drafter_state.table))
        assert_same_tokens(again, _plain(temperature))
        assert again.stats.tokens_per_call > made.stats.tokens_per_call >= 1.0


@pytest.mark.slow
def test_a_transformer_samples_the_same_text():
    run = functools.partial(
        generate, tiny_model(), PROMPTS[:2], max_new_tokens=24, temperature=1.0
    )
    made = run(drafter=token_recycling(WIDTH, MIXED))
    assert_same_tokens(made, run())
    assert made.stats.calls < made.stats.emitted


def test_own_tables_are_those_of_rows_run_alone():
    drafter = token_recycling(WIDTH, MIXED, per_row=True)
    together = decode(PROMPTS, drafter)
    for row, prompt in enumerate(PROMPTS):
        alone = decode([prompt], drafter)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.call_of[row], alone.call_of[0])
        np.testing.assert_array_equal(
            together.drafter_state.table[row], alone.drafter_state.table[0]
        )


def test_an_inherited_table_saves_calls(tmp_path):
    run = functools.partial(decode, PROMPTS, token_recycling(WIDTH, MIXED))
    first = run()
    again = run(drafter_state=first.drafter_state)
    assert again.stats.calls < first.stats.calls
    # The table from a file is as good as the state that held it.
    path = tmp_path / "table.safetensors"
    save_table(path, first.drafter_state)
    same = run(drafter_state=load_table(path))
    assert same.stats.calls == again.stats.calls
    np.testing.assert_array_equal(same.drafter_state.table, again.drafter_state.table)


def test_the_prompt_warms_the_table():
    prompt = [0, 1, 2, 3, 4, 5, 6, 7]
    tree = Tree.chain(3)
    run = functools.partial(generate, _cycle_target(VOCAB), prompt, max_new_tokens=1)
    cold = run(drafter=token_recycling(WIDTH, tree))
    warm = run(drafter=token_recycling(WIDTH, tree, update_from_prefill=True))
    seen = [
        np.flatnonzero(np.asarray(made.drafter_state.table)[1:].any(axis=1)) + 1
        for made in (cold, warm)
    ]
    # Cold: the root 7 and, below it, token 0, which every new row predicts.
    assert seen[0].tolist() == [7]
    assert seen[1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    for token in seen[1]:
        row = warm.drafter_state.table[token]
        np.testing.assert_array_equal(row, _cycle_row(token, VOCAB, WIDTH))


def test_drafting_stops_where_it_does_not_pay():
    patience, budget = 3, 20
    # A star over a table that is always wrong: its tokens are never the next one.
    wrong = (np.arange(40)[:, None] + 20 + np.arange(WIDTH)[None]) % 40
    drafter = token_recycling(
        WIDTH, Tree.star(WIDTH), min_accept=1.5, patience=patience
    )
    made = generate(
        _cycle_target(40),
        [0],
        max_new_tokens=budget,
        drafter=drafter,
        drafter_state=wrong.astype(np.int32),
    )
    assert made.tokens.tolist() == list(range(1, budget + 1))
    assert made.stats.calls == budget
    # So many calls had all nodes, the others the root alone.
    assert made.stats.slots == patience * (WIDTH + 1) + budget - patience
    keeps = token_recycling(WIDTH, Tree.star(WIDTH), patience=patience)
    made = generate(
        _cycle_target(40), [0], max_new_tokens=budget, drafter=keeps,
        drafter_state=wrong.astype(np.int32),
    )  # fmt: skip
    assert made.stats.slots == budget * (WIDTH + 1)


def test_drafting_goes_on_where_it_pays():
    drafter = token_recycling(WIDTH, Tree.star(WIDTH), min_accept=1.5, patience=3)
    made = generate(
        _cycle_target(VOCAB),
        [0],
        max_new_tokens=20,
        drafter=drafter,
        drafter_state=_warm_table(VOCAB, WIDTH),
    )
    assert made.stats.calls == 10
    assert made.stats.slots == 10 * (WIDTH + 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_giving_up_changes_no_text(temperature):
    drafter = token_recycling(WIDTH, MIXED, min_accept=4.0, patience=2)
    made = decode(PROMPTS, drafter, temperature=temperature)
    assert_same_tokens(made, _plain(temperature))
    assert made.stats.slots < made.stats.calls * MIXED.num_nodes


# Files ------------------------


@settings(max_examples=5)
@given(arrays, st.booleans(), st.booleans())
def test_a_saved_table_comes_back(tmp_path_factory, rng, per_row, named):
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    vocabulary = tiny_vocabulary() if named else None
    shape = (2,) * per_row + (280, WIDTH)
    table = rng.integers(0, 280, shape).astype(np.int32)
    count = jnp.zeros(2, jnp.int32)
    save_table(path, RecyclingState(jnp.asarray(table), count, count), vocabulary)
    again = load_table(path, vocabulary)
    assert again.dtype == np.int32
    np.testing.assert_array_equal(again, table)
    np.testing.assert_array_equal(load_table(path), table)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_table_of_another_vocabulary(tmp_path):
    path = tmp_path / "table.safetensors"
    table = np.zeros((280, WIDTH), np.int32)
    save_table(path, table, tiny_vocabulary())
    with pytest.raises(VocabMismatchError, match="path: .*another vocabulary"):
        load_table(path, tiny_vocabulary(270))
    with pytest.raises(VocabMismatchError, match="state: its table has 279 rows"):
        save_table(path, table[:279], tiny_vocabulary())
    # Refused before anything was written.
    assert load_table(path, tiny_vocabulary()).shape == (280, WIDTH)
    save_table(path, table)
    with pytest.raises(VocabMismatchError, match="path: .*another vocabulary"):
        load_table(path, tiny_vocabulary())


def test_files_that_hold_no_table(tmp_path):
    path = tmp_path / "table.safetensors"
    with pytest.raises(MissingFileError, match="path: there is no file"):
        load_table(path)
    table = np.arange(8, dtype=np.int32).reshape(4, 2) % 4
    save_table(path, table)
    whole = path.read_bytes()
    for damaged in (b"", b"not a table", whole[:-3], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="path: .*damaged"):
            load_table(path)
    kind = {"kind": "jtok.token_recycling"}
    for tensors, meta in (
        ({"table": table}, None),
        ({"table": table}, {"kind": "other"}),
        ({"table": table.astype(np.float32)}, kind),
        ({"table": table[0]}, kind),
    ):
        path.write_bytes(safetensors.numpy.save(tensors, metadata=meta))
        with pytest.raises(CheckpointError, match="holds no recycling table"):
            load_table(path)
    path.write_bytes(safetensors.numpy.save({"weights": table}, metadata=kind))
    with pytest.raises(CheckpointError, match="path: "):
        load_table(path)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_table_with_ids_outside_the_vocabulary(tmp_path, wrong):
    path = tmp_path / "table.safetensors"
    save_table(path, np.full((4, 2), wrong, np.int32))
    with pytest.raises(ArgumentError, match=r"path: .*holds ids outside 0\.\.3"):
        load_table(path)
