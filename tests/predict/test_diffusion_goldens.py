"""Masked diffusion and joint sampling against the official implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.predict import (
    align,
    bound_loss,
    context_matrix,
    denoiser_of,
    depth_law,
    dream_pace,
    even_pace,
    joint_layer,
    joint_loss_at,
    mask_tokens,
    masked_token_losses,
    nucleus,
    perturbed_argmax,
    position_scores,
    reveal_counts,
    sample_masked,
    share_trailing,
    time_weights,
    weighted_loss,
)
from jtok.predict.unmask import look, view_logits
from jtok.testing import assert_close
from tests.predict.masked_models import (
    BOS,
    MASK,
    PAD,
    base_model,
    golden,
    joint_params,
)

token_losses = jax.jit(masked_token_losses, static_argnums=0)
said = jax.jit(look, static_argnums=0)
CLOSE = {"rtol": 0.0, "atol": 2e-5}
PROMPT, NEW = 3, 12


def masked_rows(prompt):
    rows = np.full((len(prompt), PROMPT + NEW), MASK, np.int32)
    rows[:, :PROMPT] = prompt
    return rows


def test_the_base_looks_both_ways():
    file, model = golden("base_forward"), base_model()
    ids = jnp.asarray(file["input_ids"])
    out = jax.jit(lambda ids: model(ids, taps=["resid_post"]))(ids)
    assert_close(out.logits, file["raw_logits"], **CLOSE)
    embedded, first, final = file["hidden_all"]
    assert_close(model.params["embed"]["tokens"][ids], embedded, **CLOSE)
    assert_close(out.taps["resid_post"][0], first, **CLOSE)
    assert_close(out.hidden, final, **CLOSE)
    assert file["clean_ids"][ids != MASK].tolist() == ids[ids != MASK].tolist()


def test_the_shift_moves_what_is_said_to_where_it_is_said_of():
    file = golden("base_forward")
    model, params = denoiser_of(base_model())
    view = said(model, params, jnp.asarray(file["input_ids"]), None)
    assert_close(view.hidden, file["shifted_hidden"], **CLOSE)
    log_probs = jax.nn.log_softmax(view_logits(view))
    assert_close(log_probs, file["shifted_logprobs"], **CLOSE)
    raw = jnp.asarray(file["raw_logits"])
    assert_close(jax.nn.log_softmax(align(raw, None)), log_probs, **CLOSE)


def test_padding_is_not_seen():
    file = golden("base_forward")
    model, params = denoiser_of(base_model(shift=False))
    valid = jnp.asarray(file["pad_attention"])
    ids = jnp.asarray(file["input_ids"])
    logits = view_logits(said(model, params, ids, valid))
    assert np.isfinite(np.asarray(logits)).all()
    expected = file["pad_raw_logits"]
    assert_close(np.asarray(logits)[valid], expected[np.asarray(valid)], **CLOSE)


# ---- losses


def test_llada_losses():
    file, (model, params) = golden("llada"), denoiser_of(base_model(shift=False))
    clean, every = jnp.asarray(file["clean_ids"]), jnp.ones((3, 15), bool)
    time, draws = jnp.asarray(file["u_t"]), jnp.asarray(file["u"])
    made = mask_tokens(clean, every, time, draws, mask_id=MASK)
    assert_close(made.rate[:, None] * every, file["p_mask"], rtol=1e-6)
    np.testing.assert_array_equal(made.masked, file["masked"])
    np.testing.assert_array_equal(made.tokens, file["noisy"])
    losses = token_losses(model, params, made.tokens, clean, made.masked)
    assert_close(bound_loss(losses, made.masked, made.rate), file["pretrain_loss"],
                 rtol=1e-4)  # fmt: skip
    length = jnp.asarray(file["sft_prompt_len"])
    answer = jnp.arange(15)[None] >= length[:, None]
    made = mask_tokens(clean, answer, time, draws, mask_id=MASK)
    np.testing.assert_array_equal(made.tokens, file["sft_noisy"])
    losses = token_losses(model, params, made.tokens, clean, made.masked)
    loss = bound_loss(losses, made.masked, made.rate, lengths=15 - length)
    assert_close(loss, file["sft_loss"], rtol=1e-4)


def test_dream_losses():
    file, (model, params) = golden("dream_loss"), denoiser_of(base_model())
    clean, time = jnp.asarray(file["clean_ids"]), jnp.asarray(file["t"])
    masked, noisy = jnp.asarray(file["t_mask"]), jnp.asarray(file["x_t"])
    assert not (masked & ~jnp.asarray(file["maskable"])).any()
    np.testing.assert_array_equal(jnp.where(masked, MASK, clean), noisy)
    losses = token_losses(model, params, noisy, clean, masked)
    assert_close(losses, file["token_ce"], rtol=1e-4, atol=2e-5)
    for name in ("original", "linear"):
        weights = time_weights(name, time, masked)
        assert_close(weighted_loss(losses, masked, weights), file[f"loss_{name}"],
                     rtol=1e-4)  # fmt: skip
    for p in (0.1, 0.8):
        assert_close(context_matrix(15, p), file[f"cart_matrix_p{p}"], rtol=1e-5)
        weights = time_weights("cart", time, masked, cart_p=p)
        assert_close(weights, file[f"cart_weight_p{p}"], rtol=1e-5, atol=1e-6)
        assert_close(weighted_loss(losses, masked, weights), file[f"loss_cart_p{p}"],
                     rtol=1e-4)  # fmt: skip


def test_trailing_ends_share_their_mask():
    file = golden("dream_loss")
    clean = jnp.asarray(file["eos_clean"])
    masked = share_trailing(jnp.asarray(file["eos_t_mask_in"]), clean, eos_id=0)
    np.testing.assert_array_equal(masked, file["eos_t_mask_out"])
    np.testing.assert_array_equal(jnp.where(masked, MASK, clean), file["eos_x_t"])


# ---- sampling


def test_schedules():
    file = golden("schedules")
    for name in file:
        kind, count, steps = name.split("_")
        pace = {"dream": dream_pace, "llada": even_pace}[kind](int(steps))
        np.testing.assert_array_equal(reveal_counts(int(count), pace), file[name])


@pytest.mark.parametrize(
    "top_p, top_k", [(None, None), (0.9, None), (None, 3), (0.5, 5)]
)
def test_confidence_of_dream(top_p, top_k):
    file = golden("dream_confidence")
    logits = jnp.asarray(file["logits"])
    names = {
        "maskgit_plus": "confidence",
        "topk_margin": "margin",
        "entropy": "entropy",
    }
    kept = nucleus(logits, top_p=top_p, top_k=top_k, keep_ties=True)
    for official, order in names.items():
        stem = f"{official}_p{top_p}_k{top_k}"
        assert_close(position_scores(kept, order), file[f"{stem}_conf"], **CLOSE)
        choice, expected = jnp.argmax(kept, axis=-1), file[f"{stem}_x0"].copy()
        if top_p == 0.5:
            # Which of 29 equal tokens are the first half is up to the sort there.
            assert expected[1] == 14
            expected[1] = 0
        np.testing.assert_array_equal(choice, expected)


@pytest.mark.parametrize("steps", [12, 4])
@pytest.mark.parametrize("official, order", [
    ("maskgit_plus", "confidence"), ("topk_margin", "margin"), ("entropy", "entropy"),
])  # fmt: skip
def test_decoding_of_dream(official, order, steps):
    file = golden("dream_decode")
    rows = masked_rows(file["prompt"])
    out = sample_masked(base_model(), rows, pace=dream_pace(steps), order=order,
                        history=True, compat="official")  # fmt: skip
    expected = file[f"{official}_s{steps}_history"]
    np.testing.assert_array_equal(jnp.swapaxes(out.history, 0, 1), expected)


@pytest.mark.parametrize("block, steps", [(12, 12), (12, 4), (6, 12), (6, 4)])
def test_decoding_of_llada(block, steps):
    file = golden("llada")
    rows = masked_rows(file["prompt"])
    out = sample_masked(
        base_model(shift=False), rows, pace=even_pace(steps), start=PROMPT,
        order="plain_confidence", block=block, compat="official",
    )  # fmt: skip
    np.testing.assert_array_equal(out.tokens, file[f"gen_block{block}_steps{steps}"])


def test_noise_of_llada():
    file = golden("llada")
    draws = jnp.asarray(file["gumbel_u"], jnp.float32)
    temperature = float(file["gumbel_temperature"])
    chosen = perturbed_argmax(jnp.asarray(file["gumbel_logits"]), draws, temperature)
    np.testing.assert_array_equal(chosen, file["gumbel_argmax"])


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_likelihood_of_llada(scale):
    file, (model, params) = golden("llada"), denoiser_of(base_model(shift=False))
    noisy, ratio = jnp.asarray(file["mc_noisy"]), jnp.asarray(file["mc_ratio"])
    clean = jnp.broadcast_to(jnp.asarray(file["clean_ids"])[:1], noisy.shape)
    given = jnp.broadcast_to(jnp.arange(15) < PROMPT, noisy.shape)
    how = {"given": given, "guidance": scale} if scale else {}
    logits = view_logits(said(model, params, noisy, None, **how))
    assert_close(logits, file[f"mc_logits_cfg{scale}"], rtol=0.0, atol=5e-5)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), clean[..., None], 2)[
        ..., 0
    ]
    loss = bound_loss(losses, noisy == MASK, ratio[:, -1], lengths=jnp.ones(4))
    assert_close(loss, file[f"mc_loss_cfg{scale}"], rtol=1e-4)


# ---- the joint layer


@functools.cache
def layer():
    return joint_layer(base_model().config, zero_init=False)


def test_the_layer_unrolls():
    file, (model, params) = golden("adjust_train"), denoiser_of(base_model())
    states = jnp.asarray(file["states"])
    shown, at = np.asarray(states), file["positions"]
    for number in range(4):
        changed = shown[:, number] != shown[:, number + 1]
        assert changed.sum(1).tolist() == [1, 1, 1]
        np.testing.assert_array_equal(changed.argmax(1), at[:, number])
    weight = params["unembed"]["kernel"]
    model_hidden, step = jax.jit(model.hidden), jax.jit(layer().step)
    hidden = model_hidden(params, states[:, 0], None)
    base = jax.nn.log_softmax(hidden @ weight.T)
    for number in range(3):
        tokens = states[:, number + 1]
        hidden = step(joint_params(), params, tokens, hidden, None, number)
        assert_close(hidden, file["hidden"][number], **CLOSE)
        log_probs = jax.nn.log_softmax(hidden @ weight.T)
        assert_close(log_probs, file["logprobs"][number], **CLOSE)
        teacher = jax.nn.log_softmax(model_hidden(params, tokens, None) @ weight.T)
        assert_close(teacher, file["teacher_logprobs"][number], **CLOSE)
        masked = np.asarray(tokens == MASK)
        for name, other in (("kl", log_probs), ("kl_marginal", base)):
            apart = (jnp.exp(teacher) * (teacher - other)).sum(-1)[masked].mean()
            assert_close(apart, file[name][number], rtol=1e-4)


@functools.cache
def loss_and_gradient():
    model, params = denoiser_of(base_model())
    states = jnp.asarray(golden("adjust_train")["states"])
    start = golden("adjust_train")["prompt_len"]
    learnt = jnp.broadcast_to(jnp.arange(15) >= start, (3, 15))

    @functools.partial(jax.jit, static_argnames=("a", "b", "kind"))
    def both(layer_params, depth, a=0.0, b=0.0, kind="smooth_l1"):
        loss = lambda p: joint_loss_at(
            layer(), p, model, params, states, depth, learnt=learnt, to_teacher=a,
            to_base=b, distance=kind,
        )  # fmt: skip
        if a == b == 0.0:
            return jax.value_and_grad(loss)(layer_params)
        return loss(layer_params), None

    return both


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_training_of_the_layer(depth):
    file, both = golden("adjust_train"), loss_and_gradient()
    assert (file["clean_ids"] != PAD).all()
    loss, grads = both(joint_params(), depth)
    assert_close(loss, file[f"loss_kl_depth{depth}"], rtol=1e-4)
    for name, grad in (
        ("down_project", grads["down"]["kernel"].T),
        ("norm_postattn", grads["out_norm"]["scale"]),
    ):
        expected = file[f"grad_{name}_depth{depth}"]
        size = float(np.abs(expected).max())
        assert_close(grad, expected, rtol=1e-4, atol=1e-4 * size)
    loss, _ = both(joint_params(), depth, a=1.0, b=1.0)
    assert_close(loss, file[f"loss_kl_l1_depth{depth}"], rtol=1e-4)
    loss, _ = both(joint_params(), depth, a=0.5, b=0.25, kind="squared")
    assert_close(loss, file[f"loss_kl_mse_depth{depth}"], rtol=1e-4)


def test_law_of_the_depth():
    assert_close(depth_law(3), golden("adjust_train")["depth_probs"], rtol=1e-6)


def states_of(out):
    """Tokens of every row after each of its draws, as the layer reads them."""
    tokens, turn = np.asarray(out.tokens), np.asarray(out.turn)
    shown = turn[:, None] <= np.arange(NEW)[None, :, None]
    return np.where(shown, tokens[:, None], MASK)


@pytest.mark.parametrize("name, steps", [
    ("exact_k1", 12), ("parallel_k4", 3), ("adjust_k4", 3), ("adjust_k2", 6),
])  # fmt: skip
@pytest.mark.parametrize("ends", ["", "_maskeos"])
def test_joint_decoding(name, steps, ends):
    file, stem = golden("adjust_decode"), f"{name}{ends}"
    how = {}
    if name.startswith("adjust"):
        how = {"layer": layer(), "layer_params": joint_params()}
    out = sample_masked(
        base_model(), masked_rows(file["prompt"]), pace=dream_pace(steps),
        forbid=(MASK, PAD, BOS) if ends else (MASK,), history=True,
        compat="official", **how,
    )  # fmt: skip
    np.testing.assert_array_equal(out.tokens, file[f"{stem}_sequences"])
    assert file[f"{stem}_steps"] == steps
    history = jnp.swapaxes(out.history, 0, 1)
    np.testing.assert_array_equal(history, file[f"{stem}_history"])
    if "layer" in how:
        np.testing.assert_array_equal(states_of(out), file[f"{stem}_inner"])
