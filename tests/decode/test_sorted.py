"""Drafts of a sorted model: as if there were no cache, whatever was rejected."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jtok.decode import (
    Sampling,
    SortedState,
    Verdict,
    draft_model,
    dynamic,
    generate,
    lengths,
    node_laws,
    rejection,
    serve,
    sorted_chain,
    sorted_tree,
)
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import cut_layers, split_layers
from jtok.ops import Readout, purpose_keys
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    choose_exit,
    init_probe,
    part_confidence,
    probe_confidence,
)
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    steps,
    tiny_model,
    tiny_vocabulary,
)
from tests.predict.nested import EXITS, HIDDEN, READS, llama_of, near, nested_model

PROMPTS = [[1, 2, 3], [5] * 9, [7]]
BOUNDS = (0.45, 0.5, 0.0)  # each exit is taken often
CHAINS = ("full", "first", "adaptive")
SHORT = lengths(3, most=4)


def chain_of(bounds=BOUNDS, model=None, **options):
    options = {"chain": SHORT, **options}
    return sorted_chain(near() if model is None else model, EXITS, bounds, **options)


def states_of(target, prompts, drafter, **options):
    options = {"max_new_tokens": 12, "chunk": 16, "capacity": 64, **options}
    params = split_layers(target.params)
    return list(steps(target.target(), params, prompts, drafter=drafter, **options))


@functools.lru_cache
def proposer(bare, ready):
    del ready
    return jax.jit(lambda state, tokens, params: bare.propose(state, tokens, params))


def proposal_of(drafter, state):
    """The drafts of the step that follows a state, and the drafter's state then."""
    run = proposer(drafter._replace(params=None), state.tokens.sampling is None)
    return run(state.drafter, state.tokens, drafter.params)


def rows_of(state, proposal):
    """`(row, emitted tokens, drafts)` of every row that is live."""
    for row in np.flatnonzero(state.live):
        count = int(state.tokens.count[row])
        kept = np.asarray(proposal.valid[row, 1:])
        drafts = np.asarray(proposal.tokens[row, 1:])[kept]
        yield row, np.asarray(state.tokens.ids[row, :count]), drafts


def early(model, rows, bounds, exits=EXITS, width=64):
    """Cache-free exits and tokens at every position of `rows`."""
    ids = np.zeros((len(rows), width), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    reads = READS(model, jnp.asarray(ids), exits)
    chosen = choose_exit(reads.confidence, jnp.asarray(bounds, jnp.float32))
    tokens = jnp.take_along_axis(reads.tokens, chosen[None], axis=0)[0]
    return np.asarray(chosen), np.asarray(tokens), np.asarray(reads.confidence)


# Against the official loop ------------------------


@pytest.fixture(scope="module")
def official_models(golden, tmp_path_factory):
    weights, file = golden("s2d/chain_models.npz"), golden("s2d/chain_full.npz")
    sizes = file["config"]
    folder = tmp_path_factory.mktemp
    target = [*sizes[:3], sizes[6], *sizes[4:6]]
    draft = llama_of(weights, "draft/", sizes[:6], folder("draft"))
    return draft, llama_of(weights, "target/", target, folder("target"))


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_the_official_ones(golden, official_models, name):
    """Their caches drift after a rejection, which shows in the confidences alone."""
    file, (draft, target) = golden(f"s2d/chain_{name}.npz"), official_models
    exits, bounds = tuple(file["submodels"].tolist()), file["thresholds"].tolist()
    assert file["config"][3] == draft.config.num_layers
    assert file["config"][6] == target.config.num_layers
    prompt, budget = file["prompt"].tolist(), int(file["max_new"])
    drafter = sorted_chain(draft, exits, bounds, compat="official")
    states = states_of(target, [prompt], drafter, max_new_tokens=budget)
    emitted = np.asarray(states[-1].tokens.ids[0, : len(prompt) + budget])
    np.testing.assert_array_equal(emitted, file["out_tokens"])
    np.testing.assert_array_equal(emitted, file["greedy_tokens"][: len(emitted)])
    counts = np.array([int(s.tokens.count[0]) for s in states])
    np.testing.assert_array_equal(counts[:-1], file["context_len"])
    np.testing.assert_array_equal(np.diff(counts), file["accept_len"])

    expected, found, rows = file["draft_tokens"], [], []
    for state in states[:-1]:
        (_, context, drafts) = next(rows_of(state, proposal_of(drafter, state)[0]))
        left = len(prompt) + budget - len(context) - 1  # no more would be emitted
        drafts = drafts[:left]
        found.append(np.pad(drafts, (0, expected.shape[1] - len(drafts)),
                            constant_values=-1))  # fmt: skip
        rows.append([*context, *drafts])
    np.testing.assert_array_equal(np.stack(found), expected)

    exit, token, sure = early(draft, rows, bounds, exits)
    drift = []
    for step, (start, drafts) in enumerate(
        zip(file["context_len"], expected, strict=True)
    ):
        for at in range(np.count_nonzero(drafts >= 0)):
            place = np.s_[step, start - 1 + at]
            here = (step, at)
            assert exit[place] == file["cachefree_exit"][here]
            assert token[place] == file["cachefree_token"][here]
            confidence = sure[(slice(None), *place)]
            assert_close(confidence, file["cachefree_max_prob"][here], atol=1e-4)
            seen = file["draft_max_prob"][here]
            if abs(seen - confidence[exit[place]]) > 1e-4:
                drift.append(here)
                assert drafts[at] == token[place] or here == (0, 0)
    assert len(drift) == int(file["mismatch"])
    if name == "first":  # the first draft after the prompt ran all layers
        assert drift == [(0, 0)]
        assert_close(
            file["draft_max_prob"][0, 0], sure[2, 0, len(prompt) - 1], atol=1e-4
        )


def test_by_default_the_first_draft_leaves_early_too(golden, official_models):
    draft, target = official_models
    file = golden("s2d/chain_first.npz")
    drafter = sorted_chain(draft, (2, 4, 6), (0.0, 0.0, 0.0))
    states = states_of(target, [file["prompt"].tolist()], drafter, max_new_tokens=2)
    proposal, _ = proposal_of(drafter, states[0])
    assert proposal.tokens[0, 1] == file["cachefree_token"][0, 0] == 32
    assert file["draft_tokens"][0, 0] == 17


# As if there were no cache ------------------------


@functools.lru_cache
def walk():
    return states_of(nested_model(), PROMPTS, chain_of())


def test_drafts_and_exits_are_those_without_a_cache():
    """At every position, after rejections of any length; rows leave at their own."""
    drafter, model = chain_of(), near()
    accepted, exits = set(), np.zeros(3, int)
    for state, after in itertools.pairwise(walk()):
        proposal, drawn = proposal_of(drafter, state)
        rows = list(rows_of(state, proposal))
        lists = [[*context, *drafts] for _, context, drafts in rows]
        chosen, tokens, _ = early(model, lists, BOUNDS)
        left = np.asarray(drawn.left - state.drafter.left)
        for at, (row, context, drafts) in enumerate(rows):
            span = np.s_[at, len(context) - 1 : len(context) - 1 + len(drafts)]
            np.testing.assert_array_equal(drafts, tokens[span])
            counts = np.bincount(chosen[span], minlength=3)
            np.testing.assert_array_equal(left[row], counts)
            exits += counts
            accepted.add(int(after.tokens.count[row] - len(context)) - 1)
    assert len(accepted) >= 3 and all(exits > 0)


def test_caches_hold_what_a_prefill_would_and_never_more():
    """Lengths fall from segment to segment, and streams reach as far as is needed."""
    model = near()
    params = split_layers(model.params)
    fresh = jax.jit(
        lambda ids, cache: model.replace(params=params)(ids, cache=cache).cache.pending
    )
    lags = 0
    alone = states_of(nested_model(), PROMPTS[:1], chain_of())
    for state in [*walk()[:4], *alone]:
        _, drawn = proposal_of(chain_of(), state)
        lengths_ = np.stack([np.asarray(c.length) for c in drawn.caches])
        assert np.all(np.diff(lengths_, axis=0) <= 0)
        lags += np.count_nonzero(np.diff(lengths_, axis=0))
        ids = jnp.asarray(state.tokens.ids[:, :32])
        pairs = fresh(ids, model.target().init_cache(params, len(ids), 64))
        layer = 0
        for cache in drawn.caches:
            for held in cache.layers:
                for row, count in enumerate(state.tokens.count):
                    most = min(int(cache.length[row]), int(count) - 1)
                    for got, want in zip(held, pairs[layer], strict=True):
                        part = np.s_[row, :, :most]
                        assert_close(np.asarray(got)[part], np.asarray(want)[part])
                layer += 1
    assert lags > 0


@pytest.mark.medium
def test_a_row_drafts_as_it_does_alone():
    """Its drafts do not depend on its batch mates, only how deep the batch runs."""
    drafter = chain_of()
    for row, prompt in enumerate(PROMPTS):
        alone = states_of(nested_model(), [prompt], drafter)
        for one, many in zip(alone, walk(), strict=False):
            if not (one.live[0] and many.live[row]):
                break
            a, b = (proposal_of(drafter, s)[0] for s in (one, many))
            np.testing.assert_array_equal(a.valid[0], b.valid[row])
            kept = np.asarray(a.valid[0])
            np.testing.assert_array_equal(
                np.asarray(a.tokens[0])[kept], np.asarray(b.tokens[row])[kept]
            )


@pytest.mark.medium
def test_a_segment_that_nobody_wants_does_not_run():
    prompts = [[1, 2, 3], [4, 5]]
    first = states_of(nested_model(), prompts, chain_of((0.0, 0.0, 0.0)))
    before, last = first[0].drafter, first[-1].drafter
    np.testing.assert_array_equal(last.passes[1:], before.passes[1:])
    assert last.passes[0] > before.passes[0] and np.all(last.left[:, 1:] == 0)
    full = states_of(nested_model(), prompts, chain_of((2.0, 1.5, 0.0)))[-1].drafter
    assert len(set(full.passes.tolist())) == 1 and np.all(full.left[:, :2] == 0)


# What is emitted ------------------------


@functools.lru_cache
def plain(temperature, count=3, seed=0):
    prompts = (PROMPTS * 3)[:count]
    return generate(
        nested_model(), prompts, max_new_tokens=16, temperature=temperature, seed=seed,
        gaps=True,
    )  # fmt: skip


def check_token(drafter, temperature=0.0, count=3):
    prompts = (PROMPTS * 3)[:count]
    out = generate(
        nested_model(), prompts, max_new_tokens=16, temperature=temperature,
        drafter=drafter,
    )  # fmt: skip
    assert out.guarantee == "token"
    assert_token_guarantee(plain(temperature, count), out)
    return out


@pytest.mark.slow
@settings(max_examples=6)
@given(
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 2.0]), min_size=3, max_size=3),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.6]),
)
def test_any_thresholds_emit_what_plain_decoding_does(bounds, temperature, cut):
    out = check_token(chain_of(tuple(bounds), cut=cut), temperature)
    assert out.stats.host_syncs == 0


@pytest.mark.medium
@pytest.mark.parametrize(
    "count, temperature",
    [
        (1, 0.0),
        pytest.param(1, 1.0, marks=pytest.mark.slow),
        pytest.param(8, 0.0, marks=pytest.mark.slow),
        (8, 1.0),
    ],
)
def test_chains_and_trees_in_batches(count, temperature):
    for drafter in (
        chain_of(),
        sorted_tree(near(), EXITS, BOUNDS, size=dynamic(3, 2, 9)),
    ):
        out = check_token(drafter, temperature, count)
        assert out.stats.tokens_per_call > 1.05


@pytest.mark.medium
def test_arg_max_drafts_are_exact_at_any_temperature():
    """Verified as point masses; with p / q they would come out far too often."""
    check_token(chain_of(draw="greedy"), 1.0)


@pytest.mark.medium
def test_one_draft_serves_every_target():
    """Also a target of another depth and width; thresholds compile nothing anew."""
    drafter = chain_of()
    for target in (nested_model(), nested_model(1, layers=2), tiny_model()):
        expected = generate(target, [1, 2, 3], max_new_tokens=12, gaps=True)
        out = generate(target, [1, 2, 3], max_new_tokens=12, drafter=drafter)
        assert_token_guarantee(expected, out)
    bare = [chain_of(b)._replace(params=None) for b in (BOUNDS, (0.1, 2.0, 0.0))]
    assert bare[0] == bare[1]


PENALTIES = {
    "repetition_penalty": 1.6,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
}


@pytest.mark.parametrize("temperature, penalties", [
    (0.0, {}), (1.0, {}), (0.0, PENALTIES), (1.0, PENALTIES),
])  # fmt: skip
def test_a_draft_like_its_target_is_always_right(temperature, penalties):
    """The target itself, never leaving early: every draft is kept."""
    chain = lengths(4, grow=0, shrink=0, most=4)
    drafter = sorted_chain(nested_model(), EXITS, (2, 2, 0), chain=chain, **penalties)
    out = generate(
        nested_model(), [1, 2, 3], max_new_tokens=20, temperature=temperature,
        drafter=drafter, **penalties,
    )  # fmt: skip
    assert out.stats.calls == 4 and out.stats.tokens_per_call == 5


@pytest.mark.medium
def test_a_tree_drafts_as_its_target_after_penalties():
    """A single path of the target's own best tokens is kept whole."""
    tree = sorted_tree(
        nested_model(), EXITS, (2, 2, 0), size=dynamic(1, 3, 5), **PENALTIES
    )
    out = generate(
        nested_model(), [1, 2, 3], max_new_tokens=20, drafter=tree, **PENALTIES
    )
    assert out.stats.calls == 4


@pytest.mark.medium
def test_an_exit_is_as_sure_as_what_it_says_after_penalties():
    """Of what was prompted, emitted and drafted; before the temperature."""
    drafter, model = chain_of(**PENALTIES), near()
    repetition, presence, frequency = PENALTIES.values()
    weight, moved, exits = np.asarray(model.unembedding()[0]), 0, np.zeros(3, int)
    states = states_of(nested_model(), PROMPTS, drafter, max_new_tokens=8)
    for state in states[:-1]:
        proposal, drawn = proposal_of(drafter, state)
        left = np.asarray(drawn.left - state.drafter.left)
        for row, context, drafts in rows_of(state, proposal):
            whole = [*context, *drafts]
            ids = np.zeros((1, 64), np.int32)
            ids[0, : len(whole)] = whole
            hidden = [np.asarray(h)[0] for h in HIDDEN(model, jnp.asarray(ids), EXITS)]
            counts = np.zeros(3, int)
            for at, token in enumerate(drafts):
                end = len(context) + at
                seen = np.bincount(whole[:end], minlength=96)
                raw = np.stack([h[end - 1] @ weight.T for h in hidden])
                told = np.where(raw > 0, raw / repetition, raw * repetition)
                told = np.where(seen > 0, told - presence - frequency * seen, raw)
                sure, bare = (
                    np.asarray(jax.nn.softmax(jnp.asarray(x))).max(-1)
                    for x in (told, raw)
                )
                exit, other = (
                    next((i for i in (0, 1) if s[i] > BOUNDS[i]), 2)
                    for s in (sure, bare)
                )
                assert token == told[exit].argmax()
                counts[exit] += 1
                moved += exit != other
            np.testing.assert_array_equal(left[row], counts)
            exits += counts
    assert moved > 0 and all(exits > 0)


@pytest.mark.medium
def test_own_draws_tell_the_law_of_the_exit_that_was_taken():
    drafter, model = chain_of(draw="own"), near()
    options = {"temperature": [1.0, 0.0, 0.7], "rule": rejection()}
    states = states_of(nested_model(), PROMPTS, drafter, **options)
    for state in states[:4]:
        proposal, _ = proposal_of(drafter, state)
        how = state.tokens.sampling
        for row, context, drafts in rows_of(state, proposal):
            ids = np.zeros((1, 64), np.int32)
            whole = [*context, *drafts]
            ids[0, : len(whole)] = whole
            exits, _, _ = early(model, [whole], BOUNDS)
            hidden = HIDDEN(model, jnp.asarray(ids), EXITS)
            one = Sampling(
                *(jnp.asarray(x[row])[None] for x in (how.keys, how.temperature))
            )
            one = one.replace(keys=purpose_keys(one.keys, "draft"))
            for at, token in enumerate(drafts):
                place = len(context) - 1 + at
                states_ = hidden[int(exits[0, place])][:, place]
                logits = (states_ @ model.unembedding()[0].T)[:, None]
                zero = jnp.zeros((1, 1), jnp.int32)
                draw = one.draw(jnp.array([place]), zero, 0)
                law = node_laws(logits, draw)[0, 0]
                assert_close(proposal.q[row, at + 1], law, atol=1e-5)
                scores = draw.noised(draw.scaled(logits), draw.noise(jnp.arange(96)))
                assert token == int(jnp.argmax(scores))


# Lengths of chains ------------------------


@settings(max_examples=6)
@given(
    st.integers(1, 8), st.integers(0, 8), st.booleans(), st.integers(0, 3),
    st.integers(0, 2),
)  # fmt: skip
@example(5, 4, True, 2, 2)
@example(2, 2, True, 0, 3)
def test_lengths_follow_the_schedule(length, drafted, live, grow, shrink):
    drafted = min(drafted, length)
    for kept in range(drafted + 1):
        chain = lengths(1, grow=grow, shrink=shrink)
        drafter = sorted_chain(tiny_model(), (1, 2), (0, 0), chain=chain)

        state = _state(length, drafted)
        after = int(drafter.update(state, _verdict((kept + 1) * live), None).length[0])
        if not live:
            assert after == 0
        elif kept == length:
            assert after == min(length + grow, 8)
        elif kept == drafted:
            assert after == length
        else:
            assert after == max(length - shrink, 1)


def _state(length, drafted):
    return SortedState(
        caches=(), streams=(), length=jnp.array([length]),
        drafted=jnp.array([drafted]), fresh=jnp.array([True]),
        left=jnp.zeros((1, 2), jnp.int32), passes=jnp.zeros(2, jnp.int32),
    )  # fmt: skip


def _verdict(count):
    ids = jnp.zeros((1, 9), jnp.int32)
    return Verdict(ids, ids >= 0, ids, jnp.array([count]), ids, Readout(ids), ids)


def test_a_cut_ends_a_chain_after_an_unsure_draft():
    """Only the last exit is asked; what it drafted then is still verified."""
    drafter = chain_of((2.0, 2.0, 0.0), cut=1.0)
    states = states_of(nested_model(), PROMPTS, drafter)
    for state in states[:-1]:
        proposal, _ = proposal_of(drafter, state)
        live = np.asarray(state.live)
        np.testing.assert_array_equal(np.asarray(proposal.valid)[live].sum(1), 2)
    drafter = chain_of((0.0, 0.0, 0.0), cut=1.0)
    proposal, _ = proposal_of(drafter, states_of(nested_model(), PROMPTS, drafter)[0])
    np.testing.assert_array_equal(np.asarray(proposal.valid).sum(1), 1 + SHORT.start)


# Other kinds of confidence ------------------------


@pytest.mark.medium
def test_a_part_that_is_all_of_the_vocabulary_changes_nothing():
    whole = chain_of(confidence=part_confidence(near(), range(96)))
    out = generate(nested_model(), PROMPTS, max_new_tokens=12, drafter=whole)
    same = generate(nested_model(), PROMPTS, max_new_tokens=12, drafter=chain_of())
    np.testing.assert_array_equal(out.stats.row_calls, same.stats.row_calls)
    np.testing.assert_array_equal(out.drafter_state.left, same.drafter_state.left)


@pytest.mark.slow
def test_a_probe_decides_where_drafts_leave():
    probe = init_probe(32, 3)
    probe["bias"] = jnp.array([-9.0, 9.0, 0.0])
    out = generate(
        nested_model(), PROMPTS, max_new_tokens=12,
        drafter=chain_of(confidence=probe_confidence(probe)),
    )  # fmt: skip
    left = np.asarray(out.drafter_state.left)
    assert np.all(left[:, [0, 2]] == 0) and np.all(left[:, 1] > 0)
    part = check_token(
        chain_of(confidence=part_confidence(near(), range(0, 96, 3))), 1.0
    )
    assert np.asarray(part.drafter_state.left)[:, :2].sum() > 0


# Trees ------------------------


SIZE = dynamic(2, 2, 7)


@pytest.mark.medium
@pytest.mark.parametrize("bounds, layers", [((2, 2, 0), 4), ((0, 0, 0), 1)])
def test_a_tree_of_one_depth_is_that_of_a_draft_model(bounds, layers):
    tree = sorted_tree(near(), EXITS, bounds, size=SIZE)
    other = draft_model(cut_layers(near(), layers), tree=SIZE)
    states = states_of(nested_model(), PROMPTS, tree)
    others = states_of(nested_model(), PROMPTS, other)
    for a, b in zip(states[:-1], others[:-1], strict=True):
        one, two = proposal_of(tree, a)[0], proposal_of(other, b)[0]
        live = np.asarray(a.live)
        for field in ("tokens", "parent", "valid"):
            got, want = (np.asarray(getattr(p, field))[live] for p in (one, two))
            np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["max", "mean"])
def test_a_level_leaves_together(level):
    """Against trees that are grown from whole texts, without a cache."""
    bounds = (0.62, 0.6, 0.0) if level == "max" else (0.45, 0.45, 0.0)
    tree = sorted_tree(near(), EXITS, bounds, size=SIZE, level=level)
    states = states_of(nested_model(), PROMPTS, tree)
    exits = np.zeros(3, int)
    for state in states[:3]:
        proposal, drawn = proposal_of(tree, state)
        left = np.asarray(drawn.left - state.drafter.left)
        for row in np.flatnonzero(state.live):
            context = state.tokens.ids[row, : int(state.tokens.count[row])].tolist()
            tokens, parent, counts = grown(near(), context, bounds, level)
            assert proposal.tokens[row].tolist() == tokens
            assert proposal.parent[row].tolist() == parent
            np.testing.assert_array_equal(left[row], counts)
            exits += counts
    assert np.count_nonzero(exits) >= 2


def grown(model, context, bounds, level):
    """Tokens and parents of a tree whose levels read whole texts, and their exits."""
    counts, weight = np.zeros(3, int), np.asarray(model.unembedding()[0])
    frontier, pool = [(0.0, ())], []
    for _ in range(SIZE.max_depth):
        logits = []
        for _, path in frontier:
            ids = np.zeros((1, 64), np.int32)
            ids[0, : len(context) + len(path)] = [*context, *path]
            hidden = HIDDEN(model, jnp.asarray(ids), EXITS)
            last = len(context) + len(path) - 1
            logits.append([np.asarray(h)[0, last] @ weight.T for h in hidden])
        log_probs = np.asarray(jax.nn.log_softmax(np.stack(logits)))
        sure = np.exp(log_probs.max(-1))
        sure = sure.max(0) if level == "max" else sure.mean(0)
        exit = next((i for i in (0, 1) if sure[i] > bounds[i]), 2)
        counts[exit] += 1
        grown_ = []
        for (score, path), row in zip(frontier, log_probs[:, exit], strict=True):
            for token in np.argsort(-row, kind="stable")[: SIZE.beam]:
                grown_.append((score + row[token], (*path, int(token))))
        pool += grown_
        frontier = sorted(grown_, key=lambda node: -node[0])[: SIZE.beam]
    best = sorted(range(len(pool)), key=lambda i: -pool[i][0])[: SIZE.num_nodes - 1]
    paths = [(), *(pool[i][1] for i in sorted(best))]
    tokens = [context[-1], *(path[-1] for path in paths[1:])]
    return tokens, [-1, *(paths.index(path[:-1]) for path in paths[1:])], counts


def test_an_official_tree_starts_deep():
    tree = sorted_tree(near(), EXITS, (0, 0, 0), size=SIZE, compat="official")
    out = generate(nested_model(), [1, 2], max_new_tokens=8, drafter=tree)
    assert np.asarray(out.drafter_state.left)[0, 2] == 1


@pytest.mark.medium
def test_no_token_and_no_length_stops_a_draft():
    """The official drafters end at the pad id, 1960 tokens and 512 steps."""
    target, other = (
        model.replace(config=dataclasses.replace(model.config, max_positions=2048))
        for model in (tiny_model(), tiny_model(seed=1))
    )
    size = dynamic(1, 1, 2)
    tree = sorted_tree(other, (1, 2), (2, 0), size=size)
    prompt = [0] + [7, 0, 3] * 480
    out = generate(target, prompt, max_new_tokens=530, drafter=tree, stop_ids=())
    assert out.stats.calls > 512 and len(prompt) + len(out.tokens) > 1960
    levels = np.asarray(out.drafter_state.left).sum()
    assert levels == size.max_depth * out.stats.calls
    for drafter in (chain_of(), sorted_tree(near(), EXITS, BOUNDS, size=SIZE)):
        state = states_of(nested_model(), PROMPTS, drafter, max_new_tokens=2)[0]
        tokens = state.tokens
        ids = np.array(tokens.ids)
        ids[np.arange(3), np.asarray(tokens.count) - 1] = 0
        padded = state.replace(tokens=tokens.replace(ids=ids))
        proposal, _ = proposal_of(drafter, padded)
        assert np.asarray(proposal.tokens)[:, 0].tolist() == [0, 0, 0]
        np.testing.assert_array_equal(
            proposal.valid, proposal_of(drafter, state)[0].valid
        )


# Turns, rows, devices, numbers ------------------------


@pytest.mark.slow
def test_rows_that_refill_draft_from_their_own_prompt():
    target = nested_model()
    drafter = sorted_chain(target, EXITS, (2, 2, 0), chain=lengths(3, most=3))
    prompts = [[3], [1, 2, 3, 1, 2], [7] * 9, [4] * 70, [8, 9]]
    done = serve(target, prompts, batch=2, max_new_tokens=8, drafter=drafter)
    for index, out in done:
        expected = generate(target, prompts[index], max_new_tokens=8)
        assert out.tokens.tolist() == expected.tokens.tolist()
        assert out.stats.calls == 2


@pytest.mark.medium
def test_eight_devices_emit_the_same():
    prompts = (PROMPTS * 3)[:8]
    with jax.set_mesh(mesh_from("data=4,model=2")):
        out = generate(
            nested_model(), prompts, max_new_tokens=16, drafter=chain_of(),
            temperature=1.0,
        )  # fmt: skip
    assert_token_guarantee(plain(1.0, 8), out)
    alone = check_token(chain_of(), 1.0, 8)
    np.testing.assert_array_equal(out.stats.row_calls, alone.stats.row_calls)


@pytest.mark.medium
def test_bfloat16_differs_only_at_near_ties():
    target = nested_model(dtype="bfloat16")
    options = {"max_new_tokens": 24, "temperature": [0.0, 1.0, 0.0]}
    expected = generate(target, PROMPTS, gaps=True, **options)
    drafter = chain_of(model=target)
    out = generate(target, PROMPTS, drafter=drafter, **options)
    assert_token_guarantee(expected, out, tolerance=1e-1)
    assert out.stats.tokens_per_call > 1.3


# Bad input ------------------------


def test_bad_input_is_refused():
    model = near()
    for exits in ((), (0, 2, 3), (3, 1, 4), (1, 2, 2), (1, 2, 5)):
        with pytest.raises(ArgumentError, match="exits: got"):
            sorted_chain(model, exits, (0.5, 0.5, 0))
        with pytest.raises(ArgumentError, match="exits: got"):
            sorted_tree(model, exits, (0.5, 0.5, 0))
    for bounds in ((0.5, 0.5), (0.5,) * 4, (0.5, -0.1, 0)):
        with pytest.raises(ArgumentError, match="thresholds: got"):
            sorted_chain(model, EXITS, bounds)
    with pytest.raises(ArgumentError, match="cut: got 1.5"):
        chain_of(cut=1.5)
    with pytest.raises(ArgumentError, match="repetition_penalty: got 0.0"):
        chain_of(repetition_penalty=0.0)
    with pytest.raises(ArgumentError, match="frequency_penalty: got inf"):
        chain_of(frequency_penalty=float("inf"))
    for bad, message in (
        ({"start": 9}, "start: got 9, expected 1 to most=8"),
        ({"most": 0}, "most: got 0"),
        ({"grow": -1}, "grow: got -1"),
        ({"shrink": -1}, "shrink: got -1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            lengths(**bad)
    with pytest.raises(ArgumentTypeError, match="model: got a MambaConfig"):
        sorted_chain(tiny_model(family="mamba"), (1, 2), (0, 0))
    for make in (sorted_chain, sorted_tree):
        unchecked = getattr(make, "__wrapped__", make)
        with pytest.raises(ArgumentError, match="compat: got 'other'"):
            unchecked(model, EXITS, BOUNDS, compat="other")
    unchecked = getattr(sorted_chain, "__wrapped__", sorted_chain)
    with pytest.raises(ArgumentError, match="draw: got 'both'"):
        unchecked(model, EXITS, BOUNDS, draw="both")
    unchecked = getattr(sorted_tree, "__wrapped__", sorted_tree)
    with pytest.raises(ArgumentError, match="level: got 'min'"):
        unchecked(model, EXITS, BOUNDS, level="min")


def test_another_vocabulary_is_refused():
    with pytest.raises(
        VocabMismatchError, match="model: got '96 ids', expected 50 ids"
    ):
        generate(tiny_model(vocab_size=50), [1], drafter=chain_of())
    tree = sorted_tree(tiny_model(vocab_size=6), (1, 2), (0, 0))
    with pytest.raises(
        ArgumentError, match="size: got 'a beam of 10', expected at most"
    ):
        generate(tiny_model(vocab_size=6), [1], drafter=tree)
    ours, theirs = tiny_vocabulary(280), tiny_vocabulary(270)
    model = tiny_model(vocab_size=280)
    drafter = sorted_chain(model.replace(vocabulary=theirs), (1, 2), (0, 0))
    with pytest.raises(VocabMismatchError, match="drafter: it speaks of another"):
        generate(model.replace(vocabulary=ours), [1], drafter=drafter)
