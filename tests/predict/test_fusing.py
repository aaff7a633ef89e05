"""Fusing draft stacks: against the released code, and what must hold of any."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import models, nn, train
from jtok.errors import ArgumentError, ArgumentTypeError, CheckpointError
from jtok.ops import Want
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.predict import (
    OBJECTIVES,
    FusingConfig,
    Objective,
    base_of,
    draft_loss,
    draft_losses,
    empty_context,
    encode_trigrams,
    extend_context,
    fuse,
    fusing_axes,
    fusing_config,
    fusing_draft,
    fusing_head,
    gram_ids,
    head_logits,
    import_fusing,
    init_fusing,
    init_state_heads,
)
from jtok.predict.fusing_states import _texts, best_ids
from jtok.testing import assert_close, tiny_config, tiny_model

FILES = ("forward_b1", "forward_b2", "forward_pad")
ATOL = 2e-4  # of activations and logits, as the README of the goldens says


# Against the released code ------------------------


def released(golden, name):
    """A golden, its target and its draft stack."""
    file = golden(f"chimera/{name}.npz")
    vocab, width, inner, layers, heads, kv_heads, steps = file["config"].tolist()
    config = nn.DecoderConfig(
        vocab_size=vocab, width=width, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=width // heads, mlp_width=inner,
        max_positions=512, norm_eps=1e-5,
    )  # fmt: skip
    weights = {key[2:]: file[key] for key in file if key.startswith("w/")}
    base = {
        key.removeprefix("base_model."): value for key, value in weights.items()
    }  # names of a llama
    model = models.Model(llama(base, config), config)
    draft = import_fusing(weights, model)
    assert draft.config.steps == steps
    return file, model, draft


def llama(weights, config):
    def layer(index):
        part = f"model.layers.{index}."
        kernel = lambda name: {"kernel": jnp.asarray(weights[f"{part}{name}.weight"].T)}
        scale = lambda name: {"scale": jnp.asarray(weights[f"{part}{name}.weight"])}
        attn = dict(zip(("query", "key", "value", "out"), "qkvo"))
        return {
            "attn_norm": scale("input_layernorm"),
            "mlp_norm": scale("post_attention_layernorm"),
            **{name: kernel(f"self_attn.{x}_proj") for name, x in attn.items()},
            "mlp": {x: kernel(f"mlp.{x}_proj") for x in ("gate", "up", "down")},
        }

    return {
        "embed": {"tokens": jnp.asarray(weights["model.embed_tokens.weight"])},
        "layers": tuple(layer(index) for index in range(config.num_layers)),
        "final_norm": {"scale": jnp.asarray(weights["model.norm.weight"])},
        "unembed": {"kernel": jnp.asarray(weights["lm_head.weight"])},
    }


def inputs(file):
    ids, mask = jnp.asarray(file["input_ids"]), jnp.asarray(file["attention_mask"])
    return ids, mask.astype(bool)


@pytest.mark.parametrize("name", FILES)
def test_states_and_logits_of_the_released_code(golden, name):
    file, model, draft = released(golden, name)
    ids, mask = inputs(file)
    out = jax.jit(type(model).__call__)(model, ids, mask=mask)
    assert_close(out.hidden, file["base_hidden"], atol=ATOL)
    assert_close(out.logits, file["base_logits"], atol=ATOL)
    following = best_ids(draft.base, out.hidden[:, -1:], draft.config)
    np.testing.assert_array_equal(following[:, 0], file["next_token"])

    official = functools.partial(fuse, compat="official")
    states = jax.jit(official)(draft, out.hidden, ids, mask=mask)
    for step in range(1, draft.config.steps + 1):
        assert_close(states[step - 1], file[f"step{step}_out"], atol=ATOL)
    logits = read_out(draft, out.hidden, states)
    assert_close(logits, file["head_logits"], atol=ATOL)


@pytest.mark.parametrize("name", FILES)
def test_trigrams_of_the_released_code(golden, name):
    file, _, draft = released(golden, name)
    ids, _ = inputs(file)
    tokens = jnp.concatenate([ids, jnp.asarray(file["next_token"])[:, None]], axis=1)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    before = jnp.pad(tokens, ((0, 0), (2, 0)))
    grams = gram_ids(
        jnp.stack([before[:, :-2], before[:, 1:-1]], axis=-1), tokens, places
    )
    rows = np.asarray(draft.base.embed)[np.asarray(grams)]
    assert_close(rows.reshape(*tokens.shape, -1), file["trigram_in"])
    made = encode_trigrams(draft, grams, places)
    assert_close(made, file["trigram_out"], atol=ATOL)
    length = jnp.full(len(ids), ids.shape[1])
    assert_close(_texts(draft, tokens, length, 4)[:, : tokens.shape[1]], made)


@pytest.mark.parametrize("name", FILES)
def test_who_sees_whom_in_the_released_code(golden, name):
    """A state, or a token, moves those estimates that its mask lets look at it."""
    file, _, draft = released(golden, name)
    ids, mask = (x[:1] for x in inputs(file))
    seq, hidden = ids.shape[1], jnp.asarray(file["base_hidden"])[:1]
    place = jnp.eye(
        seq + 1, seq, -1, dtype=bool
    )  # row 0 changes nothing, j + 1 place j
    wide = jnp.broadcast_to(mask, place.shape)
    following = jnp.broadcast_to(jnp.asarray(file["next_token"])[:1], seq + 1)

    @jax.jit
    def moved(hidden, ids):
        """`[steps, rows that look, places that change]`."""
        states = fuse(
            draft, hidden, ids, mask=wide, next_ids=following, compat="official"
        )
        change = jnp.abs(states[:, 1:] - states[:, :1]).max(-1)
        return jnp.swapaxes(change > 1e-5, 1, 2)

    still = jnp.broadcast_to(hidden, (seq + 1, *hidden.shape[1:]))
    by_state = moved(still + 3.0 * place[..., None], ids * jnp.ones_like(place, int))
    by_token = moved(still, jnp.where(place, (ids + 7) % 50, ids))
    for step in range(1, draft.config.steps + 1):
        offsets = np.arange(step + 1)[:, None] + np.arange(seq)
        np.testing.assert_array_equal(file[f"step{step}_positions"], offsets.ravel())
        allowed = file[f"step{step}_allowed"].astype(bool)
        rows = allowed[-seq:].reshape(seq, step + 1, seq)
        assert not rows[:, 1:-1].any()  # estimates are masked, the diagonal included
        np.testing.assert_array_equal(by_state[step - 1], rows[:, 0])
        read = np.zeros((seq, seq), bool)  # tokens of the trigrams that are keys
        for column in range(seq):
            last = min(column + step, seq)
            read[column, max(last - 2, 0) : last + 1] = True
        looks = rows[:, -1] | np.eye(seq, dtype=bool)  # a query is a trigram itself
        np.testing.assert_array_equal(by_token[step - 1], looks @ read)


@pytest.mark.parametrize("name", FILES)
def test_losses_of_the_released_code(golden, name):
    file, _, draft = released(golden, name)
    ids, mask = inputs(file)
    hidden, goal = jnp.asarray(file["base_hidden"]), OBJECTIVES["distill"]
    found = losses(draft, hidden, ids, mask=mask, objective=goal)
    close = functools.partial(assert_close, rtol=1e-3)
    close(found.cross_entropy, file["ce_teacher"])
    close(found.logits, file["mse_logits"])
    close(found.hidden, file["mse_hidden"])
    close(found.hidden + found.logits.sum(), file["hsloss"])
    close(found.total(goal), file["loss_A"])
    labels = jnp.asarray(file["labels"])
    found = losses(draft, hidden, ids, mask=mask, labels=labels)
    close(found.cross_entropy, file["ce_labels"])


@pytest.mark.parametrize("name", FILES)
def test_gradients_of_the_released_code(golden, name):
    file, _, draft = released(golden, name)
    ids, mask = inputs(file)
    hidden, goal = jnp.asarray(file["base_hidden"]), OBJECTIVES["distill"]

    @jax.jit
    @jax.grad
    def slope(draft, hidden):
        return draft_losses(draft, hidden, ids, mask=mask, objective=goal).total(goal)

    found = slope(draft, hidden)
    trained = found.params
    expected = {
        "chimera_head.0.0.weight": trained["heads"]["kernel"][0],
        "chimera_head.3.0.weight": trained["heads"]["kernel"][3],
        "trimlp.0.linear.weight": trained["trigram"]["inner"]["kernel"].T,
        "trimlp.1.weight": trained["trigram"]["outer"]["kernel"].T,
        "fast_layer1.0.self_attn.q_proj.weight": trained["layer"]["query"]["kernel"].T,
        "fast_layer1.0.mlp.down_proj.weight": (
            trained["layer"]["mlp"]["down"]["kernel"].T
        ),
    }
    for key in file:
        if key.startswith("grad/"):
            wanted = file[key]
            size = np.abs(wanted).max()
            assert_close(expected.pop(key[5:]) / size, wanted / size, atol=1e-3)
    assert not expected
    # There the embedding got a gradient; here nothing of the target does.
    assert float(file["grad_norm_base_embed"]) > 1
    assert all(not np.any(x) for x in jax.tree.leaves(found.base))


# What must hold ------------------------

MODEL = tiny_model()
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 10)), jnp.int32)


def stack(model=MODEL, seed=1, **options):
    """A draft stack with random heads and a trigram encoder that does something."""
    draft = init_fusing(model, jax.random.key(seed), fusing_config(model, **options))
    leaves, treedef = jax.tree.flatten(draft.params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [
        x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return draft.replace(params=jax.tree.unflatten(treedef, moved))


DRAFT = stack()
VARIANTS = {
    "default": {},
    "light": {"heads": "light"},
    "narrow": {"trigram": "narrow"},
    "token": {"trigram": "token"},
    "blind": {"states": False},
    "own states": {"own_states": True},
    "one step": {"steps": 1},
}


@functools.partial(jax.jit, static_argnames="own_tokens")
def estimate(draft, hidden, ids, mask=None, own_tokens=False):
    return fuse(draft, hidden, ids, mask=mask, own_tokens=own_tokens)


run = jax.jit(lambda ids, mask=None: MODEL(ids, mask=mask, logits="none").hidden)
losses = jax.jit(draft_losses, static_argnames="objective")
texts = jax.jit(_texts, static_argnums=3)
read_out = jax.jit(head_logits)


@given(place=st.integers(0, 9), row=st.integers(0, 1), change=st.integers(1, 95))
def test_a_state_knows_its_past_and_the_drafts_only(place, row, change):
    """`F^k_i` may change with tokens up to i + k, and with states up to i."""
    changed = IDS.at[row, place].add(change) % 96
    before = estimate(DRAFT, run(IDS), IDS)
    after = estimate(DRAFT, run(changed), changed)
    for step in range(1, 5):
        last = max(0, place - step)  # the first row that may see the change
        assert_close(after[step - 1, row, :last], before[step - 1, row, :last])
        assert_close(after[step - 1, 1 - row], before[step - 1, 1 - row])
    if place > 2:
        assert np.abs(after[0, row, place - 1] - before[0, row, place - 1]).max() > 1e-3


@given(st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_a_trigram_depends_on_three_tokens(ids):
    tokens = jnp.asarray([ids], jnp.int32)
    made = np.asarray(texts(DRAFT, tokens, jnp.array([8]), 1))[0]
    seen = {}
    for place in range(2, len(ids)):
        gram = tuple(ids[place - 2 : place + 1])
        np.testing.assert_array_equal(made[place], seen.setdefault(gram, made[place]))
    assert len({x.tobytes() for x in seen.values()}) == len(seen)


def test_the_start_of_a_text():
    """One token stands three times; the narrow encoder sees nothing before it."""
    grams = gram_ids(
        jnp.array([[[9, 9], [9, 5], [5, 6]]]), jnp.array([[5, 6, 7]]),
        jnp.array([[0, 1, 2]]),
    )  # fmt: skip
    assert grams[0].tolist() == [[5, 5, 5], [5, 6, 6], [5, 6, 7]]
    narrow, places = stack(trigram="narrow"), jnp.array([[0, 1, 2]])
    first = encode_trigrams(narrow, grams, places)
    other = encode_trigrams(narrow, grams.at[0, 0, :2].set(3), places)
    assert_close(first, other)
    assert np.abs(encode_trigrams(narrow, grams, places + 2) - first)[0, 0].max() > 1e-3


@pytest.mark.parametrize("heads", ["full", "light"])
def test_a_new_stack_reads_out_the_sum(heads):
    """And adds the bias of the target's readout once."""
    bias = np.linspace(-3.0, 3.0, 96, dtype=np.float32)
    rows = {**MODEL.params["unembed"], "bias": jnp.asarray(bias)}
    model = MODEL.replace(params={**MODEL.params, "unembed": rows})
    draft = init_fusing(model, jax.random.key(0), fusing_config(model, heads=heads))
    hidden = run(IDS)
    states = estimate(draft, hidden, IDS)
    sums = hidden[None] + states
    expected = np.einsum("kbnd,vd->kbnv", sums, model.unembedding()[0]) + bias
    assert_close(read_out(draft, hidden, states), expected, rtol=1e-4, atol=1e-4)
    narrow = sums[1] if heads == "light" else jnp.concatenate([hidden, states[1]], -1)
    drafting = fusing_head(draft.config).readout(draft, narrow, Want(rows=True), 1)
    assert_close(drafting.rows, expected[1], rtol=1e-4, atol=1e-4)


def test_sizes_for_a_target_of_seven_billion():
    sizes = {"vocab_size": 32000, "width": 4096, "num_heads": 32, "num_kv_heads": 32}
    config = dataclasses.replace(tiny_config(), head_dim=128, mlp_width=11008, **sizes)

    def count(heads):
        def make(model):
            chosen = fusing_config(model, heads=heads)
            return init_fusing(model, jax.random.key(0), chosen).params

        made = jax.eval_shape(make, models.abstract(config))
        total = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
        return {name: total(part) for name, part in made.items()}

    full, light = count("full"), count("light")
    assert full["trigram"] == 9 * 4096**2 + 3 * 4096 + 3 * 4096**2
    assert full["layer"] == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert full["heads"] == 4 * 32000 * 8192
    assert round(sum(full.values()) / 1e9, 2) == 1.45
    assert light["heads"] == 4 * 8192 * 4096


def drafted(draft, hidden, ids, last, tokens):
    """The hidden states of a chain after `last`, drafted step by step."""
    head = fusing_head(draft.config)
    context = empty_context(draft.config, ids.shape[0], 10)
    count = jnp.broadcast_to(last + 1, ids.shape[:1])
    for start, stop in ((0, 3), (3, 10)):  # in two pieces, as prefill feeds it
        some = jnp.clip(count - start, 0, stop - start)
        part = (hidden[:, start:stop], ids[:, start:stop])
        context = extend_context(draft, context, *part, some)
    state, made = head.init(draft, context), []
    for index in range(draft.config.steps):
        out, state = head.step(draft, context, state, tokens[:, index, None], index)
        made.append(out[:, 0])
    return jnp.stack(made)


FAST = ("default", "own states", "one step")
SOME = [x if x in FAST else pytest.param(x, marks=pytest.mark.medium) for x in VARIANTS]


@pytest.mark.parametrize("name", SOME)
def test_drafting_agrees_with_training_at_every_step(name, monkeypatch):
    """Also of the first rows, where trigrams of the start are no keys.

    A context of 5 tokens takes two blocks; one of 9 a third, which overlaps the second.
    """
    monkeypatch.setattr(fusing_draft, "_BLOCK", 4)
    draft = stack(**VARIANTS[name])
    hidden, config = run(IDS), draft.config
    states = estimate(draft, hidden, IDS)
    chain = jax.jit(drafted)
    for last in (0, 1, 4, 8) if config.steps == 1 else (0, 1, 4):
        tokens = IDS[:, last + 1 : last + 1 + config.steps]
        found = chain(draft, hidden, IDS, jnp.int32(last), tokens)
        for step, (got, state) in enumerate(zip(found, states)):
            head = jax.tree.map(lambda x, k=step: x[k], draft.params["heads"])
            both = jnp.concatenate([hidden[:, last], state[:, last]], axis=-1)
            if config.heads == "light":
                both = hidden[:, last] + both @ head["kernel"]
            assert_close(got, both, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_target_gets_a_gradient():
    def loss(params, ids):
        model = MODEL.replace(params=params)
        draft = DRAFT.replace(base=base_of(model))
        hidden = model(ids, logits="none").hidden
        goal = Objective(logits=1.0)
        return draft_losses(draft, hidden, ids, objective=goal).total(goal)

    found = jax.jit(jax.grad(loss))(MODEL.params, IDS)
    assert all(not np.any(x) for x in jax.tree.leaves(found))


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.grad, allow_int=True)
def slope(draft, ids, step, mask, goal):
    """Of the loss of one head."""
    hidden = run(ids)
    found = draft_losses(draft, hidden, ids, mask=mask, objective=goal)
    return found.cross_entropy[step]


def test_which_losses_reach_which_parameters():
    """Step 1 trains trigrams and layer, later ones the layer; or the heads alone."""
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))
    mask = jnp.ones(IDS.shape, bool)
    for step in (0, 1, 3):
        found = slope(DRAFT, IDS, step, mask, Objective()).params
        assert (size(found["trigram"]) > 0) == (step == 0)
        assert size(found["layer"]) > 0 and size(found["heads"]) > 0
        own = slope(DRAFT, IDS, step, mask, Objective(heads_only=True)).params
        assert size(own["trigram"]) == size(own["layer"]) == 0
        assert size(own["heads"]) > 0


RAGGED = jnp.arange(10)[None] < jnp.array([[10], [6]])
EVERY = Objective(labels="teacher", logits=1.0)
GOALS = {"recommended": OBJECTIVES["recommended"], "own": OBJECTIVES["next_token"],
         "teacher": EVERY}  # fmt: skip


@pytest.mark.parametrize("goal", GOALS)
def test_what_stands_in_padding_changes_nothing(goal):
    """Tokens, labels and states there are of no use, whatever they are."""
    options = {"mask": RAGGED, "objective": GOALS[goal]}
    hidden = run(IDS, RAGGED)
    first = losses(DRAFT, hidden, IDS, labels=IDS, **options)
    other = jnp.where(RAGGED, IDS, 77)
    loud = jnp.where(RAGGED[..., None], hidden, 50.0)
    second = losses(DRAFT, loud, other, labels=other, **options)
    for got, expected in zip(second, first):
        assert_close(got, expected)
    assert first.cross_entropy.min() > 1
    # They would matter: without the mask they are learnt from.
    options["mask"] = jnp.ones_like(RAGGED)
    seen = losses(DRAFT, loud, other, labels=other, **options)
    assert np.abs(seen.cross_entropy - first.cross_entropy).min() > 1e-2


@pytest.mark.parametrize("own_tokens", [False, True])
def test_states_of_a_ragged_batch_are_those_of_its_rows(own_tokens):
    """To the last place, where the target's next token follows at once."""
    hidden = run(IDS, RAGGED)
    whole = estimate(DRAFT, hidden, IDS, RAGGED, own_tokens)
    alone = estimate(DRAFT, hidden[1:, :6], IDS[1:, :6], None, own_tokens)
    assert_close(whole[:, 1:, :6], alone, rtol=1e-4, atol=1e-4)
    full = estimate(DRAFT, hidden[:1], IDS[:1], None, own_tokens)
    assert_close(whole[:, :1], full, rtol=1e-4, atol=1e-4)


def test_a_next_token_that_is_given_follows_the_last_real_one():
    hidden, given = run(IDS, RAGGED), jnp.array([5, 9])
    follow = jax.jit(lambda ids, mask: fuse(
        DRAFT, hidden, ids, mask=mask, next_ids=given))  # fmt: skip
    as_text = follow(IDS.at[1, 6].set(9), RAGGED.at[1, 6].set(True))
    assert_close(follow(IDS, RAGGED)[0, :, :6], as_text[0, :, :6])


def test_losses_of_a_ragged_batch_are_means_over_its_rows():
    hidden = run(IDS, RAGGED)
    whole = losses(DRAFT, hidden, IDS, mask=RAGGED, objective=EVERY)
    rows = (hidden[:1], IDS[:1]), (hidden[1:, :6], IDS[1:, :6])
    each = [losses(DRAFT, *row, objective=EVERY) for row in rows]
    length, step = np.array([[10], [6]]), np.arange(4)[None]
    # Tokens are not said by the first place, nor logits by the first two.
    counts = {"cross_entropy": length - 2 - step, "logits": length - 3 - step,
              "hidden": length[:, 0] - 1}  # fmt: skip
    for name, count in counts.items():
        parts = np.stack([getattr(one, name) for one in each])
        expected = ((count * parts).sum(0) / count.sum(0)).astype(np.float32)
        assert_close(getattr(whole, name), expected, rtol=1e-4, atol=1e-6)
        assert (expected > 0).all()


def test_own_tokens_are_those_of_the_head_before():
    hidden = run(IDS)
    taught = estimate(DRAFT, hidden, IDS)
    own = estimate(DRAFT, hidden, IDS, own_tokens=True)
    assert_close(own[0], taught[0])  # the first step has no own token
    said = read_out(DRAFT, hidden, own).argmax(-1)
    # Row i of step 2 looks at its own guess of the token at i + 2: put into the text
    # where row 0 looks, it gives what that row saw.
    for row in (0, 1):
        text = IDS.at[row, 2].set(said[0, row, 0])
        again = estimate(DRAFT, hidden, text)
        assert_close(again[1, row, 0], own[1, row, 0])
    assert np.abs(own[1] - taught[1]).max() > 1e-3


def test_own_states_are_seen_by_later_steps_only():
    draft = stack(own_states=True)
    hidden = run(IDS)
    seeing, blind = estimate(draft, hidden, IDS), estimate(DRAFT, hidden, IDS)
    assert_close(seeing[0], blind[0])
    assert all(np.abs(seeing[k] - blind[k]).max() > 1e-3 for k in (1, 2, 3))


def test_batches_of_rows_are_rows():
    goal = OBJECTIVES["distill"]
    both = losses(DRAFT, run(IDS), IDS, objective=goal)
    each = [losses(DRAFT, run(x), x, objective=goal) for x in (IDS[:1], IDS[1:])]
    for got, *parts in zip(both, *each):
        assert_close(got, sum(parts) / 2, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near():
    model = tiny_model()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    config = dataclasses.replace(model.config, dtype="bfloat16")
    small = models.Model(narrow, config)
    draft = DRAFT.replace(
        params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), DRAFT.params),
        base=base_of(small),
        config=fusing_config(small),
    )
    hidden = jax.jit(type(small).__call__)(small, IDS).hidden
    assert hidden.dtype == jnp.bfloat16
    states = estimate(draft, hidden, IDS)
    assert states.dtype == jnp.bfloat16
    wide = estimate(DRAFT, hidden.astype(jnp.float32), IDS)
    assert np.abs(states.astype(jnp.float32) - wide).mean() < 0.1
    found = losses(draft, hidden, IDS)
    assert found.cross_entropy.dtype == jnp.float32
    expected = losses(DRAFT, hidden.astype(jnp.float32), IDS)
    assert_close(found.cross_entropy, expected.cross_entropy, rtol=0.1)


FAMILIES = [
    "mamba",
    *(
        pytest.param(x, marks=pytest.mark.medium)
        for x in ("gemma2", "gpt2", "qwen3_moe")
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_can_be_the_target(family):
    model = tiny_model(family=family)
    draft = init_fusing(model, jax.random.key(0))
    loss_fn = jax.jit(draft_loss(model, draft))
    batch = {"tokens": IDS}
    args = draft.params, model.params, None, batch, jax.random.key(0)
    loss, (metrics, _) = loss_fn(*args)
    assert np.isfinite(loss) and int(metrics["tokens"]) == 20
    if family == "gemma2":  # its logits are capped, and so are those of the heads
        hidden = jax.jit(type(model).__call__)(model, IDS).hidden
        logits = read_out(draft, hidden, estimate(draft, hidden, IDS))
        assert np.abs(logits).max() <= 8.0


@pytest.mark.medium
@pytest.mark.parametrize("goal", ["recommended", "distill", "next_token"])
def test_training_lowers_the_loss(goal):
    batch = {"tokens": jnp.tile(IDS, (2, 1))}
    draft = init_fusing(MODEL, jax.random.key(0), fusing_config(MODEL, heads="light"))
    result = train.fit(
        draft_loss(MODEL, draft, objective=OBJECTIVES[goal]), draft.params,
        frozen=MODEL.params, optimizer=train.adamw(3e-3), data=lambda step: batch,
        steps=30, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    assert result.metrics["loss"][-1] < 0.7 * result.metrics["loss"][0]
    wrong = draft_loss(MODEL, draft)
    with pytest.raises(ArgumentTypeError, match=r"data: got \['x'\]"):
        wrong(draft.params, MODEL.params, None, {"x": IDS}, jax.random.key(0))


@pytest.mark.medium
def test_eight_devices_give_the_same_losses():
    goal = Objective(logits=1.0)
    ids = jnp.tile(IDS, (2, 1))
    hidden = run(ids)

    def loss(params, ids, hidden):
        draft = DRAFT.replace(params=params)
        return draft_losses(draft, hidden, ids, objective=goal).total(goal)

    expected, slopes = jax.jit(jax.value_and_grad(loss))(DRAFT.params, ids, hidden)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        params = shard_tree(DRAFT.params, fusing_axes(DRAFT.params, DRAFT.config))
        assert params["heads"]["kernel"].sharding.spec[1] == "model"
        found, got = jax.jit(jax.value_and_grad(loss))(params, ids, hidden)
        assert_close(found, expected, rtol=1e-4)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(slopes), strict=True)
        for a, b in pairs:
            assert_close(jax.device_get(a), b, rtol=1e-3, atol=1e-4)


def test_logits_of_all_heads_never_exist():
    """Temporaries of the losses and their slopes stay below those of one head."""
    vocab, batch, seq = 32768, 4, 256
    config = tiny_config(vocab_size=vocab)
    draft = jax.eval_shape(
        lambda: init_fusing(models.init(config, jax.random.key(0)), jax.random.key(1))
    )
    goal = Objective(logits=1.0, labels="teacher")

    def slopes(draft, hidden, ids):
        def loss(params):
            some = draft.replace(params=params)
            return draft_losses(some, hidden, ids, objective=goal).total(goal)

        return jax.grad(loss)(draft.params)

    hidden = jax.ShapeDtypeStruct((batch, seq, config.width), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    compiled = jax.jit(slopes).lower(draft, hidden, ids).compile()
    one = batch * seq * vocab * 4  # [batch, seq, vocab] in float32
    assert compiled.memory_analysis().temp_size_in_bytes < one


# Bad input ------------------------


def test_bad_input_is_refused():
    hidden = run(IDS)
    with pytest.raises(ArgumentError, match=r"ids: got 'shape \(2, 2\)'"):
        fuse(DRAFT, hidden[:, :2], IDS[:, :2])
    with pytest.raises(ArgumentTypeError, match="mask: got dtype int32"):
        unchecked(fuse)(DRAFT, hidden, IDS, mask=jnp.ones(IDS.shape, jnp.int32))
    with pytest.raises(ArgumentError, match="steps: got 0, expected at least 1"):
        fusing_config(MODEL, steps=0)
    with pytest.raises(ArgumentError, match="trigram: got 'wide'"):
        fusing_config(MODEL, trigram="wide")
    with pytest.raises(ArgumentError, match="heads: got 'big'"):
        fusing_config(MODEL, heads="big")
    with pytest.raises(ArgumentError, match=r"hidden: got 'shape \(2, 10, 16\)'"):
        unchecked(draft_losses)(DRAFT, hidden[..., :16], IDS)
    other = fusing_config(tiny_model(vocab_size=50))
    with pytest.raises(ArgumentError, match=r"model: got 'an embedding of shape"):
        init_fusing(MODEL, jax.random.key(0), other)
    with pytest.raises(ArgumentError, match="compat: got 'theirs'"):
        unchecked(fuse)(DRAFT, hidden, IDS, compat="theirs")
    with pytest.raises(ArgumentError, match="states: got 3, expected 4"):
        head_logits(DRAFT, hidden, jnp.zeros((3, 2, 10, 32)))
    with pytest.raises(ArgumentError, match="labels: got 'shape"):
        unchecked(draft_losses)(DRAFT, hidden, IDS, labels=IDS[:, :4])
    with pytest.raises(ArgumentError, match="labels: got 'tokens'"):
        unchecked(Objective)(labels="tokens")
    with pytest.raises(ArgumentError, match="logits: got -1"):
        Objective(logits=-1)
    with pytest.raises(ArgumentTypeError, match="draft: got str, expected Fusing or"):
        unchecked(draft_loss)(MODEL, "draft")
    assert FusingConfig(layer=DRAFT.config.layer).steps == 4


def unchecked(function):
    return getattr(function, "__wrapped__", function)


def test_released_weights_that_do_not_fit():
    with pytest.raises(CheckpointError, match="there is no 'trimlp"):
        import_fusing({"chimera_head.0.0.weight": np.zeros((96, 64))}, MODEL)
    small = init_state_heads(MODEL, steps=1)
    assert small.num_params == 32 * 32 + 32 + 96 * 32
    assert DRAFT.num_params == sum(x.size for x in jax.tree.leaves(DRAFT.params))
