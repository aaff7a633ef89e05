"""Penalties, biases, constraints: as plain decoding has them, at every node."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    EXACT,
    Processor,
    Proposal,
    allow_tokens,
    dfa,
    generate,
    loop,
    no_drafter,
    prompt_lookup,
    spelling_dfa,
    token_recycling,
)
from jtok.decode.shaping import Seen, Shaping, shape_logits
from jtok.ops import Penalties, Tree, count_tokens, node_counts, penalize
from jtok.ops.sampling import gumbel_at, row_keys
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    bigram_target,
    tiny_model,
    tiny_vocabulary,
)
from tests.contracts.drafters import DRAFTERS, MIXED

VOCAB = 10
PROMPTS = [[3], [1, 2, 3, 1, 2], [7] * 9]
BUDGET = 20
TABLE = 2.0 * np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)
TARGET = bigram_target(TABLE, whole_context=True)
TEMPERATURES = {"greedy": 0.0, "sampled": [0.0, 1.0, 0.6]}
PENALTIES = {
    "repetition_penalty": [1.3, 1.0, 0.8],
    "presence_penalty": [0.5, 0.0, 1.0],
    "frequency_penalty": [0.3, 0.9, -0.2],
}
OTHERS = {
    "logit_bias": [{1: 2.0}, None, {7: -float("inf"), 2: -1.5}],
    "min_new_tokens": [4, 9, 0],
    "stop_ids": [4, 5],
}
# States are what is left of a token after division by 3; of each, other tokens follow.
ALLOWED = np.random.default_rng(2).random((3, VOCAB)) < 0.4
ALLOWED[:, 6] = True
LANGUAGE = np.where(ALLOWED, np.arange(VOCAB)[None] % 3, -1)
OPTIONS = {
    "penalties": PENALTIES,
    "others": OTHERS,
    "language": {"logits_processor": dfa(LANGUAGE, start=1)},
    "all": {**PENALTIES, **OTHERS, "logits_processor": dfa(LANGUAGE, start=1)},
}


def decode(mode, kind, drafter=None, state=None, **more):
    return generate(
        TARGET, PROMPTS, max_new_tokens=BUDGET, temperature=TEMPERATURES[mode],
        drafter=drafter, drafter_state=state, gaps=True, **OPTIONS[kind], **more,
    )  # fmt: skip


@functools.lru_cache
def plain(mode, kind):
    return decode(mode, kind)


def lists(out):
    return [row.tolist() for row in out.tokens]


# By hand ------------------------


def logits_by_hand(ids):
    """What the target says after `ids`, in NumPy."""
    marks = [(t * 31 + p * 17 + t * p * 7) % 997 for p, t in enumerate(ids)]
    return (TABLE[ids[-1]] + TABLE[sum(marks) % VOCAB]).astype(np.float64)


def by_hand(row, temperature, penalties=True, others=True, language=True):
    """One row, token by token."""
    ids, state = list(PROMPTS[row]), 1
    repetition, presence, frequency = (values[row] for values in PENALTIES.values())
    for index in range(BUDGET):
        logits = logits_by_hand(ids)
        if others:
            for token, bias in (OTHERS["logit_bias"][row] or {}).items():
                logits[token] += bias
        if penalties:
            for token in set(ids):
                value = logits[token]
                value = value / repetition if value > 0 else value * repetition
                times = ids.count(token)
                logits[token] = value - presence - frequency * times
        if others and index < OTHERS["min_new_tokens"][row]:
            logits[OTHERS["stop_ids"]] -= 1e9
        if language:
            logits[LANGUAGE[state] < 0] = -np.inf
        if temperature:
            keys, at = row_keys(jnp.array([row])), jnp.array([[len(ids) - 1]])
            noise = gumbel_at(keys, at, jnp.arange(VOCAB)[None, None])
            logits = logits / temperature + np.asarray(noise)[0, 0]
        ids.append(int(np.argmax(logits)))
        state = LANGUAGE[state, ids[-1]]
        if others and ids[-1] in OTHERS["stop_ids"]:
            break
    return ids[len(PROMPTS[row]) :]


PARTS = {
    "penalties": (True, False, False),
    "others": (False, True, False),
    "language": (False, False, True),
    "all": (True, True, True),
}


@pytest.mark.parametrize(
    "mode, kind",
    [
        ("sampled", "all"),
        pytest.param("greedy", "penalties", marks=pytest.mark.medium),
        pytest.param("sampled", "others", marks=pytest.mark.medium),
        pytest.param("sampled", "language", marks=pytest.mark.medium),
    ],
)
def test_plain_decoding_is_what_one_computes_by_hand(mode, kind):
    temperatures = np.broadcast_to(TEMPERATURES[mode], 3)
    expected = [by_hand(r, t, *PARTS[kind]) for r, t in enumerate(temperatures)]
    assert lists(plain(mode, kind)) == expected


# The guarantee ------------------------


def cases():
    fast = [("sampled", "all", "random"), ("greedy", "all", "recycling-inherited")]
    yield from fast
    for mode, kind, name in [
        ("sampled", "all", "oracle"),
        ("sampled", "penalties", "recycling-inherited"),
        ("greedy", "penalties", "oracle"),
        ("sampled", "others", "random"),
        ("sampled", "language", "dynamic-parent"),
        ("sampled", "all", "extra-slots"),
        ("sampled", "all", "recycling-gives-up"),
        ("sampled", "all", "prompt-lookup"),
    ]:
        yield pytest.param(mode, kind, name, marks=pytest.mark.medium)


@pytest.mark.parametrize("mode, kind, name", list(cases()))
def test_drafts_change_nothing(mode, kind, name):
    expected, case = plain(mode, kind), DRAFTERS[name]
    longer = [[*row.tolist(), *[0] * BUDGET] for row in expected.tokens]
    state = None if case.state is None else case.state(len(PROMPTS), VOCAB)
    out = decode(mode, kind, case.make(longer, VOCAB), state)
    assert_token_guarantee(expected, out)
    assert lists(out) == lists(expected)
    assert out.finish_reason == expected.finish_reason
    if name in ("oracle", "recycling-inherited"):
        assert out.stats.tokens_per_call > 1.1


@pytest.mark.medium
def test_with_a_transformer_and_filters():
    options = {
        "max_new_tokens": 24, "temperature": [0.0, 1.0], "gaps": True, "top_k": 20,
        "top_p": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.4,
    }  # fmt: skip
    prompts = [[5, 6, 7, 5, 6], [9, 4]]
    without = generate(tiny_model(), prompts, **options)
    drafter = token_recycling(4, MIXED, update_from_prefill=True)
    out = generate(tiny_model(), prompts, drafter=drafter, **options)
    assert_token_guarantee(without, out)
    assert out.stats.calls < without.stats.calls


def test_a_row_does_not_depend_on_the_options_of_others():
    together = plain("sampled", "all")
    own = {
        name: values[1] for name, values in {**PENALTIES, **OTHERS}.items()
        if name not in ("logit_bias", "stop_ids")
    }  # fmt: skip
    alone = generate(
        TARGET, PROMPTS[1], max_new_tokens=BUDGET, temperature=1.0, seed=1,
        stop_ids=OTHERS["stop_ids"], logit_bias={}, drafter=prompt_lookup(3),
        logits_processor=OPTIONS["all"]["logits_processor"], **own,
    )  # fmt: skip
    assert alone.tokens.tolist() == together.tokens[1].tolist()


def test_neutral_options_compile_nothing_new():
    generate(TARGET, PROMPTS, max_new_tokens=2)
    rules = loop.Rules(EXACT, False, 128, 64)
    run = loop.runner(TARGET, no_drafter(), rules)
    sizes = run.start._cache_size(), run.advance._cache_size()
    assert all(sizes)
    generate(
        TARGET, PROMPTS, max_new_tokens=2, repetition_penalty=1.0, min_new_tokens=0,
        presence_penalty=0.0, frequency_penalty=[0.0] * 3, logprobs=False,
    )  # fmt: skip
    assert (run.start._cache_size(), run.advance._cache_size()) == sizes


# Minimum lengths and constraints ------------------------


def test_stop_ids_wait_for_the_minimum():
    cycle = bigram_target(8 * np.eye(3, dtype=np.float32)[[1, 2, 0]])
    without = generate(cycle, [0], max_new_tokens=9, stop_ids=[2])
    assert without.tokens.tolist() == [1, 2]
    out = generate(cycle, [0], max_new_tokens=9, stop_ids=[2], min_new_tokens=2)
    assert len(out.tokens) > 2 and 2 not in out.tokens[:2]
    # A constraint that leaves nothing but a stop id goes first.
    only = allow_tokens([2])
    forced = generate(
        cycle, [0], max_new_tokens=9, stop_ids=[2], min_new_tokens=5,
        logits_processor=only,
    )  # fmt: skip
    assert forced.tokens.tolist() == [2]


def test_the_minimum_counts_the_drafts_above_a_node():
    """One token was emitted of three: the two nodes at depth 0 and 1 come too early."""
    chain = Proposal(jnp.array([[0, 1, 1]]), jnp.ones((1, 3), bool), tree=Tree.chain(2))
    logits = shape_logits(
        jnp.zeros((1, 3, 3)), chain, Seen(), Shaping(min_new=jnp.array([3])), None,
        produced=jnp.array([1]), stop_ids=jnp.array([2]),
    )  # fmt: skip
    assert (logits < -1e6).tolist() == [[[False, False, n < 2] for n in range(3)]]


def in_language(row, table, state):
    for token in row:
        state = table[state, token]
        if state < 0:
            return False
    return True


def test_the_output_is_in_the_language():
    for row in plain("sampled", "all").tokens:
        assert in_language(row, LANGUAGE, 1)
    free = generate(TARGET, PROMPTS, max_new_tokens=BUDGET)
    assert not all(in_language(row, LANGUAGE, 1) for row in free.tokens)


@pytest.mark.medium
def test_only_digits_then_the_end():
    """A language over bytes: at least two digits, and a stop id."""
    vocabulary = tiny_vocabulary()
    model = tiny_model(vocab_size=vocabulary.size)
    digits = np.full((3, 256), -1)
    for state, after in ((0, 1), (1, 2), (2, 2)):
        digits[state, list(b"0123456789")] = after
    end = vocabulary.special["eos"]
    table = spelling_dfa(digits, vocabulary, accepting=[2], stop_ids=[end])
    assert (table[0] >= 0).sum() == 10 and table[2, end] == 2 and table[1, end] == -1
    out = generate(
        model, [[3, 4], [5]], max_new_tokens=12, temperature=1.5, vocabulary=vocabulary,
        logits_processor=dfa(table), stop_ids=[end], drafter=prompt_lookup(3),
        logit_bias={end: 3.0},
    )  # fmt: skip
    assert "stop" in out.finish_reason
    for text, reason in zip(out.text, out.finish_reason, strict=True):
        assert text.isdigit() and (reason == "length" or len(text) >= 2)


def test_a_processor_of_ones_own():
    """No token twice in a row: the state is the newest token."""
    newest = Processor(
        init=lambda info, tokens: tokens.root,
        advance=lambda state, token: token,
        process=lambda state, logits: logits.at[state].set(-jnp.inf),
    )
    options = {"max_new_tokens": 30, "logits_processor": newest, "gaps": True}
    sticky = bigram_target(5 * np.eye(6, dtype=np.float32) + TABLE[:6, :6])
    without = generate(sticky, [[1], [2, 3]], temperature=1.0, **options)
    out = generate(
        sticky, [[1], [2, 3]], temperature=1.0, drafter=prompt_lookup(4), **options
    )
    assert lists(out) == lists(without)
    for row in out.tokens:
        assert np.all(np.diff(row) != 0)


# The operations ------------------------


def test_counts_of_a_tree():
    tokens = jnp.array([[2, 0, 2, 3, -1]])
    parent = [-1, 0, 0, 2, 3]
    ancestors = np.zeros((1, 5, 5), bool)
    for node in range(5):
        at = node
        while at >= 0:
            ancestors[0, node, at] = True
            at = parent[at]
    counts = count_tokens(jnp.array([[1, 2, 3, 3]]), jnp.array([2]), 4)
    assert counts.tolist() == [[0, 1, 1, 0]]
    got = node_counts(counts, tokens, jnp.asarray(ancestors))
    expected = [[0, 1, 1, 0], [1, 1, 1, 0], [0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 2, 1]]
    assert got[0].tolist() == expected


def test_penalties_of_each_row():
    logits = jnp.array([[[2.0, -2.0, 0.5]], [[2.0, -2.0, 0.5]]])
    counts = jnp.array([[[1, 3, 0]], [[0, 1, 2]]])
    values = Penalties(*(jnp.array(v) for v in ([2.0, 1.0], [0.5, 0.0], [0.0, 1.0])))
    got = penalize(logits, counts, values)
    assert_close(got, np.float32([[[0.5, -4.5, 0.5]], [[2.0, -3.0, -1.5]]]))


# Log-probabilities ------------------------


def test_log_probabilities_are_those_of_the_model():
    expected = decode("sampled", "all", logprobs=True, top_logprobs=3)
    assert lists(expected) == lists(plain("sampled", "all"))
    for row, tokens in enumerate(expected.tokens):
        ids = list(PROMPTS[row])
        for index, token in enumerate(tokens):
            logits = logits_by_hand(ids)
            log_probs = logits - np.log(np.sum(np.exp(logits)))
            got = expected.logprobs[row][index]
            assert got == pytest.approx(log_probs[token], abs=1e-4)
            best = np.argsort(-log_probs, kind="stable")[:3]
            assert expected.top_ids[row][index].tolist() == best.tolist()
            top = np.float32(log_probs[best])
            assert_close(expected.top_logprobs[row][index], top, atol=1e-4)
            ids.append(int(token))
    assert plain("sampled", "all").logprobs is None


@pytest.mark.medium
@pytest.mark.parametrize("name", ["random", "oracle"])
def test_log_probabilities_do_not_depend_on_the_drafter(name):
    prompts, options = [[5, 6, 7, 5], [9]], {"max_new_tokens": 20, "gaps": True}
    options |= {"temperature": [1.0, 0.0], "logprobs": True, "top_logprobs": 2}
    without = generate(tiny_model(), prompts, **options)
    truth = [[*row.tolist(), *[0] * 20] for row in without.tokens]
    drafter = DRAFTERS[name].make(truth, 96)
    out = generate(tiny_model(), prompts, drafter=drafter, **options)
    assert lists(out) == lists(without)
    for field in ("logprobs", "top_logprobs"):
        for a, b in zip(getattr(out, field), getattr(without, field), strict=True):
            assert_close(a, b, atol=1e-4)
