"""A model that drafts for itself, against a reference and against plain decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import models
from jtok.decode import Proposal, Tokens, accept, generate, mtp, rejection
from jtok.errors import ArgumentError, VocabMismatchError
from jtok.models import StepInput
from jtok.ops import Tree
from jtok.ops.sharding import mesh_from
from jtok.predict import mask_head, mask_init, with_masks
from jtok.testing import compare, load_golden, recurrent_target, steps, tiny_model
from tests.predict.mtp_model import golden_model

MODES = ("linear", "linear_basehead", "quadratic", "quadratic_basehead")
K = 4


def drafter_of(lm, sampler, mode, **options):
    kind, _, bare = mode.partition("_")
    return mtp(lm, None if bare else sampler, decoding=kind, **options)


# ---- the reference


def test_acceptance_in_a_batch():
    golden = load_golden("mtp/accept.npz")
    spec, length, target = (golden[n] for n in ("spec", "spec_len", "target"))
    batch, k = spec.shape
    tokens = np.concatenate([np.zeros((batch, 1), np.int32), spec], axis=1)
    valid = np.arange(k + 1)[None] <= length[:, None]
    proposal = Proposal(jnp.asarray(tokens), jnp.asarray(valid), tree=Tree.chain(k))
    found = accept(jnp.asarray(target), proposal)
    np.testing.assert_array_equal(found.drafts, golden["accepted"])
    there = np.arange(k + 1)[None] <= golden["accepted"][:, None]
    got = np.where(there, found.emitted, -1)
    np.testing.assert_array_equal(got, golden["new_tokens"])


@functools.cache
def decoder():
    model, trained, golden = golden_model("decode")
    assert golden["meta"][6] == K
    return model, with_masks(model, trained), trained["sampler"], golden


@pytest.mark.parametrize("mode", MODES)
def test_decoding_is_that_of_the_reference(mode):
    """Every step: what was under verification, and how much of it was accepted."""
    _, lm, sampler, golden = decoder()
    drafter = drafter_of(lm, sampler, mode)
    propose = jax.jit(drafter.propose)
    prompts = [golden[f"prompt{p}"].tolist() for p in range(4)]
    states = list(
        steps(
            lm.target(), models.split_layers(lm.params), prompts, max_new_tokens=44,
            drafter=drafter,
        )
    )  # fmt: skip
    for p, prompt in enumerate(prompts):
        tokens = golden[f"{mode}{p}_tokens"]
        specs, accepted = (golden[f"{mode}{p}_{x}"] for x in ("specs", "accepted"))
        emitted = np.asarray(states[-1].tokens.ids[p, len(prompt) :][: len(tokens)])
        np.testing.assert_array_equal(emitted[: len(tokens)], tokens)
        np.testing.assert_array_equal(tokens, golden[f"greedy{p}"][: len(tokens)])
        for step, (spec, count) in enumerate(zip(specs, accepted, strict=True)):
            before, after = states[step], states[step + 1]
            proposal, _ = propose(before.drafter, before.tokens, drafter.params)
            drafts = np.where(proposal.valid[p, 1:], proposal.tokens[p, 1:], -1)
            np.testing.assert_array_equal(drafts, spec)
            new = int(after.tokens.count[p] - before.tokens.count[p])
            assert new == count + 1


def test_the_layout_of_quadratic_decoding_is_that_of_the_reference():
    """Two drafts behind a prefix of three, the last of which is the root."""
    _, lm, sampler, golden = decoder()
    drafter = drafter_of(lm, sampler, "quadratic")
    tokens = Tokens(jnp.zeros((1, 8), jnp.int32), jnp.array([3]))
    state = drafter.init(lm.target().info, tokens, drafter.params)
    proposal, _ = drafter.propose(
        state.replace(ready=jnp.array([True])), tokens, drafter.params
    )
    group, offset = golden["quad_group"], golden["quad_offset"]
    # Theirs stand interleaved and have two drafts; the third is the root, our node 0.
    node = np.maximum(group, 0)
    at = np.where(offset == 0, node, K + 1 + node * K + offset - 1)[2:]
    positions = jnp.concatenate([2 + jnp.arange(K + 1), proposal.extra.positions[0]])
    np.testing.assert_array_equal(positions[at], golden["quad_pos"][2:])
    slots = (K + 1) ** 2
    allow = np.zeros((slots, slots), bool)
    allow[: K + 1, : K + 1] = np.tri(K + 1, dtype=bool)
    allow[K + 1 :] = proposal.extra.allow[0]
    want = golden["quad_allow"]
    np.testing.assert_array_equal(allow[np.ix_(at, at)], want[2:, 2:])
    assert want[2:, :2].all()  # committed tokens are seen by all


# ---- losslessness


@functools.cache
def tiny(seed=0, scale=1.0):
    """A tiny model with random adapters, masks and sampler: drafts are noise."""
    model = tiny_model()
    made = mask_init(model, 3, 2, jax.random.key(seed))
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(7), x.shape)
    made = jax.tree.map(noise, made)
    return model, with_masks(model, made, scale=scale), made["sampler"]


PROMPTS = [
    [3],
    [1, 2, 3, 1, 2],
    [7] * 9,
    [4, 5, 6, 4, 5, 8],
    [9, 9],
    [11],
    [2, 1],
    [5] * 4,
]


MIXED = [0.0, 1.0, 1.0, 0.7, 0.0, 1.3, 1.0, 0.5]


@functools.cache
def plain(batch, sampled=False):
    out = generate(
        tiny()[0], PROMPTS[:batch], max_new_tokens=16, gaps=True, stop_ids=(),
        temperature=MIXED[:batch] if sampled else 0.0,
    )  # fmt: skip
    return [row.tolist() for row in out.tokens]


FORK = Tree.from_paths([(0,), (1,), (0, 0), (0, 1)])
CASES = {
    "quadratic": {},
    "linear": {"decoding": "linear"},
    "fewer": {"k": 1},
    "tree": {"tree": FORK},
    "linear-tree": {"tree": FORK, "decoding": "linear"},
    "base-head": {"k": 2},
    "shortlist": {"shortlist": 8},
    "confident": {"confidence": 0.02},
}


@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.medium)])
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_model_without_masks(name, batch):
    """One row by arg-max; eight that draw, each with its temperature."""
    _, lm, sampler = tiny()
    drafter = mtp(lm, None if name == "base-head" else sampler, **CASES[name])
    out = generate(
        lm, PROMPTS[:batch], max_new_tokens=16, stop_ids=(),
        temperature=MIXED if batch > 1 else 0.0, drafter=drafter,
    )  # fmt: skip
    assert out.guarantee == "token"
    assert [row.tolist() for row in out.tokens] == plain(batch, batch > 1)


def test_no_mask_is_plain_decoding_and_masks_are_never_emitted():
    model, lm, sampler = tiny()
    out = generate(
        lm, [3], max_new_tokens=16, drafter=mtp(lm, sampler, k=0), stop_ids=()
    )
    assert out.stats.tokens_per_call == 1.0
    assert [out.tokens.tolist()] == plain(1)
    assert out.tokens.max() < model.config.vocab_size


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 3.0]))
def test_any_weights_give_the_same_tokens(seed, scale):
    _, lm, sampler = tiny()
    random = lambda x: scale * jax.random.normal(jax.random.key(seed), x.shape)
    params, layers = lm.params, lm.params["layers"]
    noisy = lambda path, x: random(x) if "lora" in str(path[-1]) else x
    layers = jax.tree_util.tree_map_with_path(noisy, layers)
    extra = {"extra": random(params["embed"]["extra"])}
    params = {**params, "layers": layers, "embed": {**params["embed"], **extra}}
    other = lm.replace(params=params)
    drafter = mtp(other, jax.tree.map(random, sampler))
    out = generate(other, PROMPTS[:1], max_new_tokens=16, drafter=drafter, stop_ids=())
    assert [out.tokens[0].tolist()] == plain(1)


def test_tokens_of_a_call_with_masks_are_those_of_one_without():
    """Bit for bit at equal shapes: only what stands in the further slots differs."""
    model, lm, _ = tiny()
    target = lm.target()
    ids = jnp.array([[5, 6, 96, 97]])
    allow = jnp.asarray(np.tri(4, dtype=bool))[None]
    nodes = lambda ids: StepInput(
        ids, jnp.arange(4)[None], allow, jnp.ones((1, 4), bool)
    )
    run = jax.jit(
        lambda params, ids: (
            target.step(params, target.init_cache(params, 1, 8), nodes(ids))[0].hidden
        )
    )
    ours = run(models.split_layers(lm.params), ids)
    bare = run(models.split_layers(model.params), jnp.where(ids < 96, ids, 3))
    np.testing.assert_array_equal(ours[:, :2], bare[:, :2])


@pytest.mark.medium
def test_bfloat16_differs_at_near_ties_only():
    model, lm, sampler = tiny()
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    config = models.config_from(
        models.FAMILIES["llama"].write(model.config), dtype="bfloat16"
    )
    narrow = models.Model(half(model.params), config)
    masked = models.Model(half(lm.params), config)
    out = generate(
        masked, PROMPTS[:2], max_new_tokens=16, drafter=mtp(masked, sampler),
        stop_ids=(),
    )  # fmt: skip
    expected = generate(narrow, PROMPTS[:2], max_new_tokens=16, gaps=True, stop_ids=())
    assert all(found.gap < 1e-1 for found in compare(expected, out))


@pytest.mark.medium
def test_on_a_mesh_tokens_are_the_same():
    _, lm, sampler = tiny()
    with jax.set_mesh(mesh_from("data=2,model=2", devices=jax.devices()[:4])):
        spread = models.Model(
            models.checkpoint.place_params(lm.params, lm.config), lm.config
        )
        out = generate(
            spread, PROMPTS[:2], max_new_tokens=16, drafter=mtp(spread, sampler),
            stop_ids=(),
        )  # fmt: skip
    assert [row.tolist() for row in out.tokens] == plain(2)


# ---- how many calls


VOCAB, MASKS = 7, 3


@functools.cache
def counter(wrong):
    """A target whose token depends on its position alone; masks may be wrong by one."""

    def apply(params, ids, positions, mask):
        del params, mask
        off = jnp.where(ids >= VOCAB, wrong, 0)
        return jax.nn.one_hot((positions * 3 + 1 + off) % VOCAB, VOCAB)

    target = models.logits_target(apply, vocab_size=VOCAB, trees=True)
    eye = jnp.eye(VOCAB)
    return target, {"tokens": eye, "unembed": eye, "bias": None, "sampler": None}


@pytest.mark.parametrize("decoding", ["linear", "quadratic"])
@pytest.mark.parametrize("k", [1, MASKS])
def test_an_oracle_gives_all_and_a_fool_gives_one(decoding, k):
    rate = {}
    for wrong in (0, 1):
        target, params = counter(wrong)
        drafter = mtp(mask_head(MASKS), params=params, k=k, decoding=decoding)
        out = generate(target, [1, 2], max_new_tokens=25, drafter=drafter)
        rate[wrong] = out.stats.calls
        histogram = out.stats.emitted_per_call
    # The first call has nothing to verify.
    assert rate[0] == 1 + -(-24 // (k + 1))
    assert rate[1] == 25 and histogram[1] == 25


def test_on_average_quadratic_decoding_takes_fewer_calls():
    _, lm, sampler, golden = decoder()
    prompts = [golden[f"prompt{p}"].tolist() for p in range(4)]
    calls = {
        mode: generate(
            lm, prompts, max_new_tokens=40, drafter=drafter_of(lm, sampler, mode),
            stop_ids=(),
        ).stats.calls
        for mode in ("linear", "quadratic")
    }  # fmt: skip
    assert calls["quadratic"] < calls["linear"]


def test_confidence_drops_drafts_and_their_blocks():
    _, lm, sampler, _ = decoder()
    tokens = Tokens(jnp.zeros((1, 8), jnp.int32), jnp.array([3]))
    made = []
    for confidence in (1e-6, 0.999999):
        drafter = mtp(lm, sampler, confidence=confidence)
        state = drafter.init(lm.target().info, tokens, drafter.params)
        state = state.replace(ready=jnp.array([True]))
        made.append(drafter.propose(state, tokens, drafter.params)[0])
    low, high = made
    assert low.valid.all() and low.extra.valid.all()
    assert not high.valid[:, 1:].any() and high.valid[:, 0].all()
    assert high.extra.valid.sum() == K


# ---- rejection


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["linear", "quadratic"])
def test_rejection_keeps_the_law(decoding):
    """Chi-square of two-token continuations, false alarm 1 in 10,000."""
    rows, vocab = 2000, 5
    model = tiny_model(vocab_size=vocab, scale=2.0)
    made = mask_init(model, 2, 2, jax.random.key(0))
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(7), x.shape)
    made = jax.tree.map(noise, made)
    lm = with_masks(model, made)
    drafter = mtp(lm, made["sampler"], draw="own", decoding=decoding)
    out = generate(
        lm, [[1, 2]] * rows, max_new_tokens=4, temperature=1.0, drafter=drafter,
        seed=0, stop_ids=(),
    )  # fmt: skip
    assert out.guarantee == "distribution"
    # The first token is drawn plainly: look at the two after it.
    table = np.stack(out.tokens)[:, :3]
    seen = np.zeros((vocab,) * 3)
    np.add.at(seen, tuple(table.T), 1)
    texts = np.stack(np.meshgrid(*[np.arange(vocab)] * 3, indexing="ij"), -1)
    texts = texts.reshape(-1, 3)
    ids = np.concatenate([np.tile([1, 2], (len(texts), 1)), texts], axis=1)
    logs = jax.nn.log_softmax(model(jnp.asarray(ids)).logits, axis=-1)
    picked = np.take_along_axis(np.asarray(logs)[:, 1:4], texts[..., None], 2)
    law = np.exp(picked[..., 0].sum(-1))
    counts, expected = seen.reshape(-1), rows * law
    rare = expected < 5
    pooled = lambda x: np.append(x[~rare], x[rare].sum())
    counts, expected = pooled(counts), pooled(expected)
    counts, expected = (x[expected > 0] for x in (counts, expected))
    statistic = float((np.square(counts - expected) / expected).sum())
    freedom = len(counts) - 1
    # Wilson and Hilferty's approximation of the quantile.
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < bound
    assert out.stats.tokens_per_call > 1


def test_drafts_of_own_draws_say_from_which_law():
    _, lm, sampler = tiny()
    drafter = mtp(lm, sampler, draw="own")
    out = generate(
        lm, PROMPTS[:1], max_new_tokens=16, drafter=drafter, rule=rejection(),
        stop_ids=(),
    )  # fmt: skip
    # A row of temperature 0 takes the arg-max.
    assert [out.tokens[0].tolist()] == plain(1)


# ---- bad input


def test_bad_input_is_refused_by_name():
    model, lm, sampler = tiny()
    with pytest.raises(ArgumentError, match=r"k: got -1, expected 0 to 3"):
        mtp(lm, sampler, k=-1)
    with pytest.raises(ArgumentError, match=r"k: got 4, expected 0 to 3"):
        mtp(lm, sampler, k=4)
    with pytest.raises(ArgumentError, match=r"tree: got 'depth 4'"):
        mtp(lm, sampler, tree=Tree.chain(4))
    with pytest.raises(ArgumentError, match=r"k: got 2, expected None beside a tree"):
        mtp(lm, sampler, k=2, tree=Tree.chain(3))
    with pytest.raises(ArgumentError, match=r"confidence: got 2"):
        mtp(lm, sampler, confidence=2.0)
    with pytest.raises(ArgumentError, match=r"confidence: got 0.5, expected None"):
        mtp(lm, sampler, confidence=0.5, draw="own")
    for head in (mask_head(2), mask_head(2, softcap=3.0), mask_head(2, shortlist=2)):
        # It does not tell of its cap or its shortlist.
        with pytest.raises(ArgumentError, match=r"confidence: .* beside a DraftHead"):
            mtp(head, params=counter(0)[1], confidence=0.5)
    with pytest.raises(ArgumentError, match=r"shortlist: got 0"):
        mtp(lm, sampler, shortlist=0)
    with pytest.raises(ArgumentError, match=r"model: got 'a model without extra rows'"):
        mtp(model, sampler)
    with pytest.raises(ArgumentError, match=r"params: got None"):
        mtp(mask_head(2))
    with pytest.raises(ArgumentError, match=r"params: got 'parameters'"):
        mtp(lm, params={})
    drafter = mtp(lm, sampler)
    with pytest.raises(VocabMismatchError, match=r"model: got '96 ids'"):
        generate(counter(0)[0], [1], drafter=drafter)
    with pytest.raises(
        ArgumentError, match=r"target: got 'one that takes chains only'"
    ):
        generate(recurrent_target(np.eye(96)), [1], drafter=drafter)
    with pytest.raises(ArgumentError, match="96"):  # a mask is no token of a prompt
        generate(lm, [96], drafter=drafter)
    with pytest.raises(ArgumentError):
        generate(lm, [], drafter=drafter)


def test_learned_positions_end_where_the_model_ends():
    model = tiny_model(family="gpt2")
    made = mask_init(model, 2, 2, jax.random.key(0))
    lm = with_masks(model, made)
    drafter = mtp(lm, made["sampler"])
    prompt = (np.arange(500) % 90).tolist()
    with pytest.raises(ArgumentError, match="positions"):
        generate(lm, prompt, max_new_tokens=13, drafter=drafter)
    out = generate(lm, prompt, max_new_tokens=12, drafter=drafter, stop_ids=())
    want = generate(model, prompt, max_new_tokens=12, stop_ids=())
    np.testing.assert_array_equal(out.tokens, want.tokens)
