"""Decoding with every family: drafts change nothing, and readouts are the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.decode import generate, token_recycling
from jtok.decode.recycling import recycling_template
from jtok.models import FAMILIES, StepInput
from jtok.ops import Tree
from jtok.ops.readouts import Want
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    tiny_config,
    tiny_model,
)
from jtok.train import lm_loss

# Longer than the windows of the tiny models.
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6, 7, 5], [44, 17] * 6]
CAUSAL = [f for f in FAMILIES if getattr(tiny_config(family=f), "causal", True)]
SMALL = Tree.from_paths(recycling_template().paths[:14])


@pytest.mark.medium
@pytest.mark.parametrize("family", CAUSAL)
def test_drafts_do_not_change_what_a_family_says(family):
    model = tiny_model(family=family)
    tree = SMALL if model.target().info.trees else Tree.chain(4)
    drafter = token_recycling(8, tree, update_from_prefill=True)
    options = {"max_new_tokens": 16, "gaps": True}
    plain = generate(model, PROMPTS, **options)
    drafted = generate(model, PROMPTS, drafter=drafter, **options)
    assert_token_guarantee(plain, drafted)
    # Plain decoding is the arg-max of a whole pass over what it has said.
    ids = jnp.array([PROMPTS[0] + plain.tokens[0].tolist()])
    logits = jax.jit(lambda ids: model(ids).logits)(ids)[0, len(PROMPTS[0]) - 1 : -1]
    assert jnp.argmax(logits, axis=-1).tolist() == plain.tokens[0].tolist()


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_the_target_reads_out_the_logits_of_the_model(family):
    model, ids = tiny_model(family=family), jnp.array([PROMPTS[0]])
    target, count = model.target(), ids.shape[1]
    allow = jnp.tril(jnp.ones((1, count, count), bool))
    positions = jnp.arange(count)[None]
    nodes = StepInput(ids, positions, allow, jnp.ones(ids.shape, bool))

    @jax.jit
    def both(model):
        cache = target.init_cache(model.params, 1, 16)
        out, _ = target.step(model.params, cache, nodes)
        want = Want(rows=True, log_sum_exp=True)
        return target.readout(model.params, out.hidden, want), model(ids).logits

    read, logits = both(model)
    assert_close(read.rows, logits, rtol=1e-5, atol=1e-5)
    lse = jax.nn.logsumexp(logits, axis=-1)
    assert_close(read.log_sum_exp, lse, rtol=1e-5, atol=1e-5)
    if (cap := model.config.final_softcap) is not None:
        uncapped = cap * np.arctanh(np.asarray(logits) / cap)
        assert np.abs(uncapped - logits).max() > 1e-3  # the cap is felt


def test_the_loss_is_that_of_the_capped_logits():
    model, tokens = tiny_model(family="gemma2"), jnp.array(PROMPTS[:1])

    @jax.jit
    def losses(params):
        batch = {"tokens": tokens}
        return [
            lm_loss(model, softcap=cap)(params, None, None, batch, jax.random.key(0))[0]
            for cap in (None, 2.0)
        ]

    loss, other = losses(model.params)
    logs = jax.nn.log_softmax(jax.jit(lambda ids: model(ids).logits)(tokens)[:, :-1])
    picked = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)
    assert float(loss) == pytest.approx(-float(jnp.mean(picked)), rel=1e-5)
    assert float(other) != pytest.approx(float(loss), rel=1e-3)


def test_layers_of_two_kinds_run_split_and_do_not_stack():
    fields = FAMILIES["qwen3_moe"].write(tiny_model(family="qwen3_moe").config)
    model = models.init({**fields, "mlp_only_layers": [1]}, jax.random.key(0))
    sparse, dense = model.params["layers"]
    assert "router" in sparse["mlp"] and set(dense["mlp"]) == {"gate", "up", "down"}
    assert dense["mlp"]["up"]["kernel"].shape == (32, 64)
    out = jax.jit(lambda model, ids: model(ids))(model, jnp.array(PROMPTS[:1]))
    assert np.isfinite(out.logits).all()
    with pytest.raises(ValueError, match="layers have different parameters"):
        models.stack_layers(model.params)
