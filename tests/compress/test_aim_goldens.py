"""AIM's merging, importance and pruning against the official functions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models, nn
from jtok.compress import (
    aim_importance,
    frame_removals,
    merge_frames,
    prefill,
    ramp_schedule,
)
from jtok.models import StepInput, run_layer
from jtok.testing import load_golden

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = {
    "attn_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "query.kernel": "self_attn.q_proj.weight",
    "query.bias": "self_attn.q_proj.bias",
    "key.kernel": "self_attn.k_proj.weight",
    "key.bias": "self_attn.k_proj.bias",
    "value.kernel": "self_attn.v_proj.weight",
    "value.bias": "self_attn.v_proj.bias",
    "out.kernel": "self_attn.o_proj.weight",
    "mlp.gate.kernel": "mlp.gate_proj.weight",
    "mlp.up.kernel": "mlp.up_proj.weight",
    "mlp.down.kernel": "mlp.down_proj.weight",
}


@functools.partial(jax.jit, static_argnums=1)
def chain(x, removed, metric=None):
    """What each step leaves, and the plan of all steps together."""
    found = []
    for remove in removed:
        merged = merge_frames(x, (remove,), metric=metric)
        x, metric = merged.tokens, None if metric is None else merged.metric
        found.append(merged)
    return found


def test_merging_of_frames():
    golden = load_golden("aim/merge_a.npz")
    for case in range(3):
        steps = sum(name.startswith(f"c{case}.r") for name in golden)
        removed = tuple(int(golden[f"c{case}.r{step}"]) for step in range(steps))
        found = chain(jnp.asarray(golden[f"c{case}.x"]), removed)
        for step, got in enumerate(found):
            np.testing.assert_allclose(
                got.tokens, golden[f"c{case}.out{step}"], **CLOSE
            )
    x, keys = (jnp.asarray(golden[f"img.{name}"]) for name in ("x", "keys"))
    for step, got in enumerate(chain(x, tuple(golden["img.rs"].tolist()), keys)):
        np.testing.assert_allclose(got.tokens, golden[f"img.x_out{step}"], **CLOSE)
        np.testing.assert_allclose(got.metric, golden[f"img.keys_out{step}"], **CLOSE)
    assert golden.unread() == []
    assert frame_removals(196, halvings=2) == (98, 49)


def test_importance():
    golden = load_golden("aim/importance_a.npz")
    logits = jnp.asarray(golden["logits"])
    batch, _, seq, _ = logits.shape
    # Queries are rows of logits and keys unit vectors: their products are the logits.
    query = logits.transpose(0, 2, 1, 3)
    key = jnp.broadcast_to(jnp.eye(seq)[None, :, None], (batch, seq, 1, seq))
    soft = {"temperature": 1.0}
    kept = {
        "valid": jnp.asarray(golden["keep"]) > 0,
        "start": jnp.full((batch, seq), 1 / seq),
    }
    cases = {
        "imp_causal": {},
        "imp_causal_pruned_keys": kept,
        "imp_tau1_it3": {"iterations": 3, **soft},
        "imp_tau1_it3_d015": {"iterations": 3, "damping": 0.15, **soft},
        "imp_iters0": {"iterations": 0},
        "imp_tau1_it200_d015": {
            "iterations": 200, "damping": 0.15, "causal": False, **soft,
        },
    }  # fmt: skip
    for name, options in cases.items():
        got = aim_importance(query, key, scale=1.0, **options)
        np.testing.assert_allclose(
            got, golden[name], atol=1e-5 * golden[name].max(), rtol=0, err_msg=name
        )
    assert golden.unread() == []


def official_model(golden):
    layers, width, inner, heads, kv_heads = golden["cfg"].tolist()
    config = nn.DecoderConfig(
        family="qwen2", vocab_size=8, width=width, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=width // heads, mlp_width=inner, tied=True,
        max_positions=4096, query_bias=True, norm_eps=1e-6,
    )  # fmt: skip
    model = models.init(config, jax.random.key(0))

    def weight(path, leaf):
        layer, *rest = [str(getattr(k, "key", getattr(k, "idx", None))) for k in path]
        name = NAMES[".".join(rest)]
        value = jnp.asarray(golden[f"w.layers.{layer}.{name}"])
        return (value.T if rest[-1] == "kernel" else value).reshape(leaf.shape)

    split = jax.tree_util.tree_map_with_path(weight, model.params["layers"])
    norm = {"scale": jnp.asarray(golden["w.norm.weight"])}
    return model.replace(params={**model.params, "layers": split, "final_norm": norm})


@pytest.fixture(scope="module", params=["stack_b1", "stack_b2"])
def stack(request):
    golden = load_golden(f"aim/{request.param}.npz")
    model = official_model(golden)
    begin, end, last = golden["boundaries"].tolist()
    x = jnp.asarray(golden["inputs_embeds"])
    assert last == x.shape[1]
    seen = np.zeros(x.shape[:2], bool)
    seen[:, begin:end] = True
    run = functools.partial(
        prefill, model, x, prunable=seen, ids=jnp.zeros(x.shape[:2], jnp.int32)
    )
    return golden, model, run


def close(got, expected):
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)


def decoded(model, out, vectors):
    """Final-norm outputs of one token after the other."""
    target = out.target
    # The prompt whole, and room for what follows.
    cache = target.init_cache(model.params, vectors.shape[0], out.mask.shape[1] + 8)
    grown = jax.tree.map(
        lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim),
        cache, out.cache,
    )  # fmt: skip

    @jax.jit
    def step(cache, vector, at):
        ones = jnp.ones((vector.shape[0], 1), jnp.int32)
        nodes = StepInput(None, at * ones, ones[..., None] > 0, ones > 0, vector)
        found, cache = target.step(model.params, cache, nodes)
        return found.hidden, target.commit(cache, 0 * ones, ones[:, 0])

    found = []
    for item in range(vectors.shape[1]):
        hidden, grown = step(
            grown, vectors[:, item : item + 1], out.mask.shape[1] + item
        )
        found.append(hidden)
    return jnp.concatenate(found, axis=1)


@pytest.mark.medium
def test_official_stack(stack):
    golden, model, run = stack
    keep = golden["keep_mask"] > 0
    tie = _first_tie(golden["importance_raw"], keep, golden["boundaries"])
    schedule, official = ramp_schedule(28, 14, 22), {"compat": "official"}
    # Where scores are equal the official sort is not stable: there its choice is given.
    given = {} if tie is None else {"kept": jnp.asarray(keep)}
    out = run(schedule=schedule, mode="mask", **official, **given)
    np.testing.assert_array_equal(out.kept, keep)
    raw = golden["importance_raw"]
    got = jnp.stack([out.scores[layer] for layer in range(28)])
    np.testing.assert_allclose(got, raw, atol=1e-5 * raw.max(), rtol=0)
    assert_chosen(got, keep, golden["boundaries"], tie)
    close(out.hidden, golden["hidden_final"])
    close_streams(model, golden, keep)
    vectors = jnp.asarray(golden["decode_embeds"])
    decode = decoded(model, out, vectors)
    close(decode, golden["decode_hidden"])
    faulty = golden["decode_hidden_inplace_bug"]
    close(decode[:, 0], faulty[:, 0])
    assert float(jnp.max(jnp.abs(decode[:, 1:] - faulty[:, 1:]))) > 1e-3
    plain = jax.jit(lambda m, x: m(x, logits="none").hidden)
    stacked = model.replace(params=models.stack_layers(model.params))
    whole = plain(stacked, jnp.asarray(golden["inputs_embeds"]))
    close(whole, golden["hidden_final_nopruning"])
    assert golden.unread() == []
    if tie is None:
        return
    # Compact, with the official choice: what is left has the same vectors.
    short = run(schedule=schedule, kept=out.kept)
    sizes = [key.shape[2] for key, _ in short.cache.layers]
    assert sizes == keep.sum(2)[:-1, 0].tolist()
    at = short.index[..., None]
    close(short.hidden, jnp.take_along_axis(out.hidden, at, axis=1))
    close(short.logits, out.logits)
    close(decoded(model, short, vectors), decode)


def _first_tie(raw, keep, boundaries):
    """The first layer that keeps and drops visual tokens of the same importance."""
    begin, end, _ = boundaries.tolist()
    for layer, (scores, now, after) in enumerate(
        zip(raw, keep, keep[1:], strict=False)
    ):
        for row, score in enumerate(scores):
            visual = np.zeros(len(score), bool)
            visual[begin:end] = True
            left, gone = after[row] & visual, now[row] & ~after[row]
            if left.any() and gone.any() and score[left].min() <= score[gone].max():
                return layer
    return None


def assert_chosen(scores, keep, boundaries, tie):
    """Our scores choose what is kept, but where the official sort was not stable."""
    begin, end, _ = boundaries.tolist()
    for layer, (now, after) in enumerate(itertools.pairwise(keep)):
        ranked = np.where(now, scores[layer], -1.0)
        ranked[:, :begin], ranked[:, end:] = 1.0, 1.0
        order = np.argsort(-ranked, axis=1, kind="stable")[:, : after[0].sum()]
        chosen = np.zeros_like(now)
        np.put_along_axis(chosen, order, True, axis=1)
        assert layer == tie or (chosen & now == after).all()


@functools.partial(jax.jit, static_argnums=0)
def one_layer(config, layer, x, mask):
    at = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    return run_layer({"layers": (layer,)}, config, 0, x, at, mask=mask).x


def close_streams(model, golden, keep):
    """Entering layers 14 and 18, one layer at a time."""
    x = jnp.asarray(golden["inputs_embeds"])
    for layer in range(18):
        mask = jnp.asarray(keep[layer])
        x = one_layer(model.config, model.params["layers"][layer], x, mask)
        if layer == 13:
            close(x, golden["hidden_after_layer14"])
    close(x, golden["hidden_after_layer18"])
