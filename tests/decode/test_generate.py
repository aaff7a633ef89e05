"""`generate` with a transformer: the same tokens whatever drafts, batch or mesh."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.decode import generate, loop, no_drafter, prompt_lookup, token_recycling
from jtok.decode.recycling import recycling_template
from jtok.errors import ArgumentError
from jtok.models import GenerationConfig, StepInput, split_layers
from jtok.ops import Tree
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    bigram_target,
    compare,
    counting_target,
    dynamic_drafter,
    extra_slots_drafter,
    random_drafter,
    steps,
    tiny_config,
    tiny_model,
    tiny_vocabulary,
)
from tests.contracts.drafters import OF_ANY_TARGET

PROMPTS = [[5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], [44, 17] * 4]
BUDGET = 40
MODES = {"greedy": 0.0, "sampled": [1.0, 0.0, 0.7, 1.3]}
SMALL = Tree.from_paths(recycling_template().paths[:14])
LEARNING = token_recycling(8, SMALL, update_from_prefill=True)


@functools.lru_cache
def decode(mode, drafter=None, family="llama", **options):
    options = {"max_new_tokens": BUDGET, "gaps": True, **options}
    return generate(
        tiny_model(family=family), PROMPTS, temperature=MODES[mode],
        drafter=drafter, **options,
    )  # fmt: skip


def lists(out):
    return [row.tolist() for row in out.tokens]


# The guarantee ------------------------


@pytest.mark.parametrize(
    "mode", [pytest.param("greedy", marks=pytest.mark.medium), "sampled"]
)
def test_drafts_change_nothing_but_the_calls(mode):
    plain, out = decode(mode), decode(mode, LEARNING)
    assert_token_guarantee(plain, out)
    assert compare(plain, out) == []  # no near-ties with this model and these seeds
    assert plain.stats.tokens_per_call == 1
    assert out.stats.tokens_per_call > 1.2
    assert out.guarantee == plain.guarantee == "token"


@pytest.mark.medium
@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_of_every_family(family):
    plain, out = decode("sampled", None, family), decode("sampled", LEARNING, family)
    assert_token_guarantee(plain, out)
    assert out.stats.calls < plain.stats.calls


def plain_by_hand(model, prompt, count):
    """Arg-max of a whole forward pass for every token."""
    forward = jax.jit(lambda params, ids: model.replace(params=params)(ids).logits)
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        logits = forward(model.params, padded)[0, len(ids) - 1]
        best = np.sort(np.asarray(logits))[-2:]
        ids.append(int(jnp.argmax(logits)))
        yield ids[-1], float(best[1] - best[0])


def test_plain_decoding_takes_the_best_token_and_says_how_close_it_was():
    out = decode("greedy")
    for row in (0, 1):
        expected = list(plain_by_hand(tiny_model(), PROMPTS[row], BUDGET))
        tokens, gaps = zip(*expected, strict=True)
        assert out.tokens[row].tolist() == list(tokens)
        assert_close(out.gaps[row], np.float32(gaps), atol=1e-4)


def test_a_row_does_not_depend_on_its_batch_mates():
    together = decode("sampled", LEARNING)
    for row in (0, 2):
        alone = generate(
            tiny_model(), PROMPTS[row], max_new_tokens=BUDGET, gaps=True, seed=row,
            temperature=MODES["sampled"][row], drafter=LEARNING,
        )  # fmt: skip
        assert alone.tokens.tolist() == together.tokens[row].tolist()
        assert_close(alone.gaps, together.gaps[row], atol=1e-4)


def test_options_may_differ_by_row():
    out = generate(
        tiny_model(), PROMPTS, max_new_tokens=[40, 1, 7, 40], gaps=True,
        temperature=MODES["sampled"], seed=[0, 1, 2, 90], drafter=LEARNING,
    )  # fmt: skip
    expected = [row[:n] for row, n in zip(lists(decode("sampled")), [40, 1, 7, 0])]
    assert lists(out)[:3] == expected[:3]
    assert lists(out)[3] != lists(decode("sampled"))[3]


def test_sampling_depends_on_the_seed_only():
    again = generate(
        tiny_model(), PROMPTS, max_new_tokens=BUDGET, gaps=True, seed=0,
        temperature=MODES["sampled"], drafter=LEARNING,
    )  # fmt: skip
    other = generate(
        tiny_model(), PROMPTS, max_new_tokens=BUDGET, gaps=True, seed=7,
        temperature=MODES["sampled"], drafter=LEARNING,
    )  # fmt: skip
    assert lists(again) == lists(decode("sampled", LEARNING))
    # All but the row of temperature 0.
    same = [a == b for a, b in zip(lists(again), lists(other), strict=True)]
    assert same == [False, True, False, False]


@pytest.mark.parametrize("every", [1, 7])
def test_looks_of_the_host_change_nothing(every):
    out = decode("sampled", LEARNING, sync_every=every)
    whole = decode("sampled", LEARNING)
    assert lists(out) == lists(whole)
    assert out.stats.row_calls.tolist() == whole.stats.row_calls.tolist()
    assert out.stats.host_syncs == -(-out.stats.row_calls.max() // every)
    assert whole.stats.host_syncs == 0


# The cache ------------------------


def fresh_cache(model, ids):
    """Keys and values of one forward pass, per layer."""
    target, params = model.target(), split_layers(model.params)
    cache = target.init_cache(params, 1, len(ids))
    prefill = jax.jit(
        lambda params, ids: model.replace(params=params)(ids, cache=cache)
    )
    return prefill(params, jnp.asarray(ids)[None]).cache.pending


@pytest.mark.parametrize(
    "family", ["llama", pytest.param("gpt2", marks=pytest.mark.medium)]
)
def test_after_every_step_the_cache_is_that_of_a_fresh_prefill(family):
    """Slots, order and positions: accepted nodes lie where a chain would."""
    model = tiny_model(family=family)
    states = list(
        steps(
            model.target(), split_layers(model.params), PROMPTS, drafter=LEARNING,
            max_new_tokens=[20, 20, 3, 20], temperature=MODES["sampled"],
        )
    )  # fmt: skip
    last = states[-1].tokens
    fresh = [
        fresh_cache(model, last.ids[row, : last.count[row] - 1])
        for row in range(len(PROMPTS))
    ]
    assert max(np.diff([s.tokens.count for s in states], axis=0).max(0)) > 1
    for state, row in itertools.product(states, range(len(PROMPTS))):
        length = state.cache.length[row]
        assert length == state.tokens.count[row] - 1
        for layer, expected in zip(state.cache.layers, fresh[row], strict=True):
            for held, new in zip(layer, expected, strict=True):
                got = held[row, :, :length]
                assert_close(got, new[0, :, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.medium
def test_calls_are_counted_by_the_target():
    model = tiny_model()
    target = counting_target(model.target())
    *_, last = steps(
        target, split_layers(model.params), PROMPTS, drafter=LEARNING,
        max_new_tokens=BUDGET, temperature=MODES["sampled"],
    )  # fmt: skip
    prefills = np.array([len(prompt) > 1 for prompt in PROMPTS])
    stats = decode("sampled", LEARNING).stats
    np.testing.assert_array_equal(stats.row_calls, last.cache.commits - prefills)


@pytest.mark.medium
def test_long_prompts_are_fed_in_chunks():
    """64 and 256 are the sizes of a chunk; 65 tokens are 64 and the root."""
    rng = np.random.default_rng(0)
    target = counting_target(bigram_target(rng.normal(size=(9, 9)), whole_context=True))
    for lengths in ([64, 65, 66], [1, 257, 258], [256, 2, 300]):
        prompts = [rng.integers(0, 9, n).tolist() for n in lengths]
        out = generate(target, prompts, max_new_tokens=6, drafter=prompt_lookup(3))
        alone = [generate(target, p, max_new_tokens=6) for p in prompts]
        assert lists(out) == [one.tokens.tolist() for one in alone]
        small = list(
            steps(target, None, prompts, max_new_tokens=6, capacity=512, chunk=16)
        )
        ids, count = small[-1].tokens.ids, small[-1].tokens.count
        for row, n in enumerate(lengths):
            assert ids[row, n : count[row]].tolist() == out.tokens[row].tolist()
            assert small[0].cache.commits[row] == -(-(n - 1) // 16)


# Ends and texts ------------------------


@pytest.mark.medium
def test_stop_ids_come_from_the_model_unless_given():
    first = lists(decode("greedy"))
    stops = (first[0][3], first[2][5])
    config = GenerationConfig(eos_token_ids=stops)
    model = dataclasses.replace(tiny_model(), generation_config=config)

    def cut(row):
        ends = [i for i, token in enumerate(row) if token in stops]
        return row[: ends[0] + 1] if ends else row

    for drafter in (no_drafter(), LEARNING):
        run = functools.partial(
            generate, model, PROMPTS, max_new_tokens=BUDGET, drafter=drafter, gaps=True
        )
        out = run()
        assert lists(out) == [cut(row) for row in first]
        reasons = ["stop" if set(row) & set(stops) else "length" for row in first]
        assert out.finish_reason == reasons
        assert lists(run(stop_ids=())) == first
        assert lists(run(stop_ids=stops)) == lists(out)


def test_a_single_prompt_gives_single_values():
    out = generate(tiny_model(), [5, 6], max_new_tokens=3, gaps=True)
    assert out.tokens.shape == out.call_of.shape == out.gaps.shape == (3,)
    assert out.finish_reason == "length" and out.text is None
    several = generate(tiny_model(), [[5, 6]], max_new_tokens=3, gaps=True)
    assert [row.tolist() for row in several.tokens] == [out.tokens.tolist()]
    assert several.finish_reason == ["length"]
    as_array = generate(tiny_model(), np.array([5, 6]), max_new_tokens=3, gaps=True)
    assert as_array.tokens.tolist() == out.tokens.tolist()


@functools.lru_cache
def speaking():
    vocabulary = tiny_vocabulary()
    config = tiny_config(vocab_size=vocabulary.size + 24)
    return models.init(config, jax.random.key(1), vocabulary=vocabulary)


@pytest.mark.medium
def test_strings_are_encoded_and_decoded():
    model = speaking()
    vocabulary = model.vocabulary
    texts = ["the cat", "that is all"]
    ids = [vocabulary.encode(text) for text in texts]
    out = generate(model, texts, max_new_tokens=8, temperature=1.5, stop_ids=())
    of_ids = generate(model, ids, max_new_tokens=8, temperature=1.5, stop_ids=())
    assert lists(out) == lists(of_ids)
    # The embedding has more rows than the tokenizer has ids: those spell nothing.
    spelled = [row[row < vocabulary.size] for row in out.tokens]
    assert out.text == [vocabulary.decode(row) for row in spelled]
    alone = generate(model, texts[0], max_new_tokens=8, temperature=1.5, stop_ids=())
    assert isinstance(alone.text, str) and alone.text == out.text[0]


def test_a_target_that_takes_chains_only_is_not_given_trees():
    table = np.eye(4)[[1, 2, 3, 0]]
    target = bigram_target(table, trees=False)
    out = generate(target, [0], max_new_tokens=5, drafter=prompt_lookup(3))
    assert out.tokens.tolist() == [1, 2, 3, 0, 1]
    for drafter in (token_recycling(2, Tree.star(2)), random_drafter()):
        with pytest.raises(ArgumentError, match="drafter: .* chains"):
            generate(target, [0], max_new_tokens=5, drafter=drafter)


# Other numbers, other devices ------------------------


@functools.lru_cache
def half():
    model = tiny_model()
    config = dataclasses.replace(model.config, dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    return dataclasses.replace(model, params=params, config=config)


@pytest.mark.medium
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_bfloat16_only_near_ties_differ(temperature):
    options = {"max_new_tokens": BUDGET, "temperature": temperature, "gaps": True}
    plain = generate(half(), PROMPTS, **options)
    out = generate(half(), PROMPTS, drafter=LEARNING, **options)
    assert_token_guarantee(plain, out, tolerance=1e-1)
    assert out.stats.calls < plain.stats.calls


@pytest.mark.medium
@pytest.mark.parametrize("mode", MODES)
def test_on_a_mesh_the_tokens_are_the_same(mode):
    """Rows over two devices, heads and vocabulary over four."""
    expected = decode(mode, LEARNING)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        axes = models.checkpoint.param_axes(tiny_model().params)
        params = shard_tree(tiny_model().params, axes)
        model = dataclasses.replace(tiny_model(), params=params)
        kernel = jax.tree.leaves(params["layers"])[0]
        assert len(kernel.sharding.device_set) == 8
        out = generate(
            model, PROMPTS, max_new_tokens=BUDGET, temperature=MODES[mode],
            drafter=LEARNING, gaps=True,
        )  # fmt: skip
    # Sums over devices round differently: the rule for near-ties applies.
    assert_token_guarantee(decode(mode), out)
    assert lists(out) == lists(expected)


# Every drafter with every rule ------------------------

RULES = {
    "sampled": {"temperature": [1.0, 0.0, 0.7, 1.3]},
    "top-k": {"temperature": 1.0, "top_k": 7},
    "top-p-min-p": {"temperature": 0.9, "top_p": [0.9, 0.5, 1.0, 0.8], "min_p": 0.02},
}


@functools.lru_cache
def truth(rule):
    return generate(
        tiny_model(), PROMPTS, max_new_tokens=BUDGET, gaps=True, **RULES[rule]
    )


# A row of the sampled batch takes the arg-max; the filters are one code for all
# drafters, so each drafter meets one of them.
NAMES = [n for n, case in OF_ANY_TARGET.items() if case.guarantee == "token"]
PAIRS = [("sampled", name) for name in NAMES]
PAIRS += [(("top-k", "top-p-min-p")[i % 2], n) for i, n in enumerate(NAMES)]


@pytest.mark.slow
@pytest.mark.parametrize("rule, name", PAIRS)
def test_every_drafter_with_every_rule(rule, name):
    plain, case = truth(rule), OF_ANY_TARGET[name]
    drafter = case.make(plain.tokens, 96)
    state = None if case.state is None else case.state(len(PROMPTS), 96)
    out = generate(
        tiny_model(), PROMPTS, max_new_tokens=BUDGET, drafter=drafter,
        drafter_state=state, **RULES[rule],
    )  # fmt: skip
    assert_token_guarantee(plain, out)
    if name == "oracle":
        assert out.stats.calls == BUDGET // 4 * len(PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [dynamic_drafter, extra_slots_drafter], ids=["dynamic", "extra"]
)
def test_wrapped_drafters_with_a_transformer(wrap):
    out = decode("sampled", wrap(LEARNING))
    assert_token_guarantee(decode("sampled"), out)
    assert out.stats.calls == decode("sampled", LEARNING).stats.calls


# Loops over growing parts of the cache, as on a GPU ------------------------


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(loop, "_reaches", lambda capacity: (6, 14, 30, capacity))
    loop._runner.cache_clear()
    yield
    loop._runner.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_reading_only_a_part_of_the_cache_changes_nothing(mode, in_parts):
    whole = lists(decode.__wrapped__(mode))
    for drafter in (
        prompt_lookup(),
        token_recycling(8, SMALL, min_accept=9.0, patience=2),
    ):
        out = decode.__wrapped__(mode, drafter)
        assert lists(out) == whole
    loop._runner.cache_clear()
    assert whole == lists(decode.__wrapped__(mode))


def test_slots_beyond_the_reach_are_not_read():
    model = tiny_model()
    target, params = model.target(), model.params
    cache = target.init_cache(params, 1, 64)
    causal = jnp.tril(jnp.ones((1, 5, 5), bool))
    ids = jnp.array([[4, 5, 6, 7, 8]])
    step = StepInput(ids, jnp.arange(5)[None], causal, jnp.ones((1, 5), bool))
    _, cache = target.step(params, cache, step)
    cache = target.commit(cache, jnp.arange(5)[None], jnp.array([5]))
    spoiled = [(k.at[:, :, 8:].set(jnp.nan),) * 2 for k, _ in cache.layers]
    after = StepInput(
        ids[:, :1], jnp.array([[5]]), causal[:, :1, :1], jnp.ones((1, 1), bool)
    )
    plain, _ = target.step(params, cache, after)
    near, _ = target.step(params, cache, dataclasses.replace(after, reach=8))
    assert_close(near.hidden, plain.hidden)
    broken = dataclasses.replace(cache, layers=tuple(spoiled))
    out, _ = target.step(params, broken, dataclasses.replace(after, reach=8))
    assert jnp.isfinite(out.hidden).all()
