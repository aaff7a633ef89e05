"""Drafting, verification and the whole loop against the official implementations."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.decode import (
    Proposal,
    accept,
    draft_tokens,
    find_continuation,
    generate,
    token_recycling,
    update_table,
)
from jtok.models import Info, StepOutput, Target
from jtok.ops import Tree
from jtok.testing import assert_close

TEMPLATES = ("tpl222", "mini", "chain", "star", "mixed")
TRACES = ("222", "mini", "warm", "eos_inside", "eos_root")
LLAMAS = ("222", "mini")
PLANES = 4


def tree_of(paths):
    return Tree.from_paths([path[path >= 0].tolist() for path in paths])


def set_rows(table, tokens, rows):
    """The update in plain Python: nodes in order, a later one overwrites."""
    table = table.copy()
    for token, row in zip(tokens, rows, strict=True):
        table[token] = row
    return table


def best_ids(logits, width):
    return np.argsort(-logits, axis=-1, kind="stable")[..., :width].astype(np.int32)


# Templates and drafts ------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(golden, name):
    file = golden("token_recycling/templates.npz")
    tree = tree_of(file[f"{name}_paths"])
    np.testing.assert_array_equal(tree.ancestors, file[f"{name}_mask"])
    np.testing.assert_array_equal(tree.depth, file[f"{name}_depth"])
    np.testing.assert_array_equal(tree.parent, file[f"{name}_parent"])
    np.testing.assert_array_equal(tree.rank, file[f"{name}_rank"])
    np.testing.assert_array_equal(tree.level_start[1:], file[f"{name}_level_start"])
    np.testing.assert_array_equal(tree.leaf_paths, file[f"{name}_leaf_paths"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_drafts(golden, name):
    file = golden("token_recycling/draft.npz")
    tree = tree_of(golden("token_recycling/templates.npz")[f"{name}_paths"])
    draft = jax.jit(draft_tokens, static_argnums=2)
    ids, _ = draft(jnp.asarray(file["adj"]), jnp.asarray(file["roots"]), tree)
    np.testing.assert_array_equal(ids, file[f"{name}_tree_ids"])


# Traces of the loop ------------------------


@pytest.mark.parametrize("name", TRACES)
def test_every_call_of_a_trace(golden, name):
    file = golden(f"token_recycling/trace_{name}.npz")
    tree = tree_of(file["template_paths"])
    tables, ids, logits = file["adj_before"], file["tree_ids"], file["logits"]
    roots, lengths = file["roots"], file["accept_len"]
    valid = jnp.ones(ids.shape, bool)

    draft = jax.vmap(lambda table, root: draft_tokens(table, root[None], tree)[0][0])
    drafted = jax.jit(draft)(jnp.asarray(tables), jnp.asarray(roots))
    np.testing.assert_array_equal(drafted, ids)

    choice = jnp.asarray(logits.argmax(-1).astype(np.int32))
    got = jax.jit(accept)(choice, Proposal(jnp.asarray(ids), valid, tree=tree))
    np.testing.assert_array_equal(got.drafts + 1, lengths)
    nodes = file["accepted_nodes"]
    np.testing.assert_array_equal(got.path[:, : nodes.shape[1]], nodes)
    following = np.asarray(got.emitted)[np.arange(len(roots)), lengths - 1]
    np.testing.assert_array_equal(following[:-1], roots[1:])

    rows = best_ids(logits, tables.shape[-1])
    update = jax.vmap(lambda t, i, r, v: update_table(t, i[None], r[None], v[None]))
    updated = jax.jit(update)(*map(jnp.asarray, (tables, ids, rows)), valid)
    count = len(tables) - stopped_early(file)
    after = [*tables[1:], file["adj_final"]][:count]
    np.testing.assert_array_equal(updated[:count], after)


def stopped_early(file):
    """Whether the loop ended before the last update: the committed tokens did it."""
    fresh = file["out_tokens"][len(file["prompt"]) :]
    early = len(fresh) > int(file["max_new"]) or int(file["eos"]) in fresh
    if early:
        np.testing.assert_array_equal(file["adj_final"], file["adj_before"][-1])
    return early


def stand_in(nodes, vocab, calls):
    """A target whose logits are given for every call, and which records what it saw.

    Its cache holds codes in place of keys and values, moved by `commit`.
    """

    def init_cache(params, batch, capacity):
        return {
            "codes": jnp.full((PLANES, capacity), -1),
            "length": jnp.zeros((), jnp.int32),
            "call": jnp.zeros((), jnp.int32),
            "lengths": jnp.full(calls, -1),
            "ids": jnp.full((calls, nodes), -1),
            "positions": jnp.full((calls, nodes), -1),
        }

    def step(params, cache, step):
        width = step.positions.shape[1]
        call = cache["call"]
        cache = {**cache, "call": call + 1}
        if width != nodes:
            return StepOutput(jnp.zeros((1, width, vocab))), cache
        for name, new in (
            ("lengths", cache["length"]),
            ("ids", step.ids[0]),
            ("positions", step.positions[0]),
        ):
            cache[name] = cache[name].at[call - 1].set(new)
        return StepOutput(params[call - 1][None]), cache

    def commit(cache, path, count):
        slots = jnp.arange(path.shape[1])
        places = jnp.where(slots < count[0], cache["length"] + slots, 10**6)
        planes = 100000 * jnp.arange(PLANES)[:, None]
        codes = planes + (1000 * (cache["call"] - 1) + path)
        written = cache["codes"].at[:, places].set(codes, mode="drop")
        return {**cache, "codes": written, "length": cache["length"] + count[0]}

    return Target(init_cache, step, commit, Info(vocab))


@pytest.fixture
def final_state(monkeypatch):
    """The loop's last state, which `generate` keeps to itself."""
    module = importlib.import_module("jtok.decode.generate")
    seen = {}

    class Watched(module.Course):
        def result(self):
            seen["state"] = self.state
            return super().result()

    monkeypatch.setattr(module, "Course", Watched)
    return lambda: jax.device_get(seen["state"])


@pytest.mark.parametrize("name", TRACES)
def test_the_loop_replays_a_trace(golden, final_state, name):
    file = golden(f"token_recycling/trace_{name}.npz")
    tree = tree_of(file["template_paths"])
    prompt, eos, budget = file["prompt"], int(file["eos"]), int(file["max_new"])
    logits, tables = file["logits"], file["adj_before"]
    calls, nodes, vocab = logits.shape
    made = generate(
        stand_in(nodes, vocab, calls),
        prompt,
        params=jnp.asarray(logits),
        max_new_tokens=budget,
        stop_ids=[eos],
        drafter=token_recycling(tables.shape[-1], tree, compat="official"),
        drafter_state=tables[0],
    )
    cache = final_state().cache

    # The loop's own output ends beyond the budget, beyond EOS, or just before it.
    raw = list(file["out_tokens"][len(prompt) :])
    reported = int(file["new_tokens_reported"])
    if reported > len(raw):
        raw.append(eos)
    assert len(raw) == reported
    expected = raw[: raw.index(eos) + 1] if eos in raw else raw
    expected = expected[:budget]
    np.testing.assert_array_equal(made.tokens, expected)
    assert made.finish_reason == ("stop" if expected[-1] == eos else "length")

    # It may need one call less, because tokens count as soon as they are known.
    count = made.stats.calls
    lengths = np.cumsum(file["accept_len"])
    assert count == int(np.searchsorted(lengths, len(expected))) + 1
    np.testing.assert_array_equal(cache["ids"][:count], file["tree_ids"][:count])
    positions, before = file["abs_positions"], file["cache_len_before"]
    np.testing.assert_array_equal(cache["positions"][:count], positions[:count])
    np.testing.assert_array_equal(cache["lengths"][:count], before[:count])

    held = len(prompt) + len(expected) - 1
    assert cache["length"] == held
    codes = file["kv_codes"]
    np.testing.assert_array_equal(cache["codes"][:, :held], codes[:, :held])

    rows = best_ids(logits[-1], tables.shape[-1])
    last = set_rows(tables[-1], file["tree_ids"][-1], rows)
    after = [*tables[1:], last][count - 1]
    np.testing.assert_array_equal(made.drafter_state.table, after)
    if not stopped_early(file):
        assert count == calls
        np.testing.assert_array_equal(after, file["adj_final"])


# A whole Llama ------------------------


@pytest.fixture(params=LLAMAS)
def llama(request, golden, tmp_path):
    """A golden file and the model whose weights it has, read as a checkpoint."""
    file = golden(f"token_recycling/tiny_llama_{request.param}.npz")
    names = [name for name in file if name.startswith("w/")]
    weights = {name[2:]: np.ascontiguousarray(file[name]) for name in names}
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    vocab, width, inner, layers, heads, kv_heads = map(int, file["config"])
    fields = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": int(file["eos"]),
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return file, models.load(tmp_path)


def recording_target(model, nodes, calls):
    """The model's target, which also keeps the ids and logits of every tree."""
    inner = model.target()

    def init_cache(params, batch, capacity):
        vocab = model.config.vocab_size
        return {
            "inner": inner.init_cache(params, batch, capacity),
            "call": jnp.zeros((), jnp.int32),
            "ids": jnp.full((calls, nodes), -1),
            "logits": jnp.zeros((calls, nodes, vocab)),
        }

    def step(params, cache, step):
        out = model(
            step.ids,
            positions=step.positions,
            mask=step.allow,
            cache=cache["inner"],
        )
        cache = {**cache, "inner": out.cache}
        if step.ids.shape[1] == nodes:
            call = cache["call"]
            cache["ids"] = cache["ids"].at[call].set(step.ids[0])
            cache["logits"] = cache["logits"].at[call].set(out.logits[0])
            cache["call"] = call + 1
        return StepOutput(out.logits), cache

    def commit(cache, path, count):
        return {**cache, "inner": inner.commit(cache["inner"], path, count)}

    return Target(init_cache, step, commit, inner.info)


def test_a_llama_decodes_as_the_official_loop(llama):
    file, model = llama
    prompt, eos = file["prompt"], int(file["eos"])
    tree = tree_of(file["template_paths"])
    width = file["adj_final"].shape[1]
    official = token_recycling(width, tree, compat="official")
    greedy = file["greedy_tokens"][len(prompt) :]
    made = generate(model, prompt, max_new_tokens=len(greedy), drafter=official)
    np.testing.assert_array_equal(made.tokens, greedy)
    assert made.finish_reason == ("stop" if greedy[-1] == eos else "length")

    raw = file["out_tokens"][len(prompt) :]
    np.testing.assert_array_equal(raw, greedy[: len(raw)])
    assert len(raw) > int(file["max_new"]) or raw[-1] == eos  # why the loop ended

    # The loop does not learn from its last call, so neither does this run.
    lengths = file["accept_len"]
    before = int(lengths[:-1].sum())
    made = generate(model, prompt, max_new_tokens=before, drafter=official)
    np.testing.assert_array_equal(np.bincount(made.call_of), lengths[:-1])
    np.testing.assert_array_equal(made.drafter_state.table, file["adj_final"])


def test_the_trees_of_a_llama(llama, final_state):
    file, model = llama
    tree = tree_of(file["template_paths"])
    width = file["adj_final"].shape[1]
    expected, lengths = file["tree_ids"], file["accept_len"]
    made = generate(
        recording_target(model, tree.num_nodes, len(expected)),
        file["prompt"],
        max_new_tokens=int(lengths.sum()) - 1,
        drafter=token_recycling(width, tree, compat="official"),
    )
    assert made.stats.calls == len(expected)
    cache = final_state().cache
    np.testing.assert_array_equal(cache["ids"], expected)
    logits, middle = cache["logits"], int(file["mid_index"])
    # Another library's sums, hence the README's tolerance.
    assert_close(logits[0], file["first_tree_logits"], atol=1e-4)
    assert_close(logits[middle], file["mid_tree_logits"], atol=1e-4)


# Verification and prompt lookup ------------------------


def test_greedy_acceptance_of_medusa(golden):
    file = golden("speculative_verification/greedy_typical.npz")
    file.ignore("typical_*", reason="read by tests/decode/test_rules_goldens.py")
    tree = tree_of(file["paths"])
    tokens, retrieve = file["tree_tokens"], file["retrieve"]
    rows = {tuple(row) for row in retrieve.tolist()}
    assert rows == {tuple(row) for row in tree.leaf_paths.tolist()}
    candidates = np.where(retrieve >= 0, tokens[:, retrieve], 0)
    np.testing.assert_array_equal(candidates, file["candidates"])

    choice = jnp.asarray(file["tree_logits"].argmax(-1).astype(np.int32))
    valid = jnp.ones(tokens.shape, bool)
    got = jax.jit(accept)(choice, Proposal(jnp.asarray(tokens), valid, tree=tree))
    lengths = file["greedy_accept_len"]
    np.testing.assert_array_equal(got.drafts, lengths)
    assert lengths.max() >= 2
    for case, (best, length) in enumerate(
        zip(file["greedy_best"], lengths, strict=True)
    ):
        path = np.asarray(got.path[case])
        assert (path[length + 1 :] == -1).all()
        kept = tokens[case, path[: length + 1]]
        np.testing.assert_array_equal(kept, candidates[case, best, : length + 1])
        np.testing.assert_array_equal(got.emitted[case, :length], kept[1:])
        last = choice[case, path[length]]
        assert got.emitted[case, length] == last


def test_prompt_lookup_of_spec_bench(golden):
    file = golden("speculative_verification/prompt_lookup.npz")
    ids, lengths, drafts = file["input_ids"], file["length"], file["draft"]
    settings = np.stack([file["max_ngram"], file["num_pred"]], axis=1)
    none = 0
    names = ("num_draft", "max_ngram", "whole")
    find = jax.jit(find_continuation, static_argnames=names)
    for ngram, num in {tuple(pair) for pair in settings.tolist()}:
        cases = np.flatnonzero((settings == (ngram, num)).all(axis=1))
        got, found = find(
            jnp.asarray(ids[cases]),
            jnp.asarray(lengths[cases]),
            num_draft=num,
            max_ngram=ngram,
            whole=True,
        )
        np.testing.assert_array_equal(np.where(found, got, -1), drafts[cases, :num])
        assert (drafts[cases, num:] == -1).all()
        none += int((~np.asarray(found).any(axis=1)).sum())
    assert 0 < none < len(ids)  # both outcomes are covered
