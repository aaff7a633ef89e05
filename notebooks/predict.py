# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Several tokens from one position
#
# A language model says one token at a time. `jtok.predict` teaches it, or what stands
# beside it, to say several: heads on its states, mask tokens that it fills in, exits
# below its last layer, a decoder that spells what one vector holds. `jtok.decode` turns
# each of them into a drafter, and what is emitted stays what the model alone would
# emit. At the end a model without any order fills in masks, several at a step.
#
# The next cell installs jtok where it is missing. It pins the jax that is there, so
# that a hosted runtime keeps the one that fits its accelerator; where that one is too
# old, pip says so and changes nothing. The notebook expects to lie in the
# `notebooks/` folder of a checkout. Elsewhere, in Colab for instance, set `SOURCE` to
# anything that pip takes: a wheel that you uploaded, or `git+` and the address of the
# repository.

# %%
import importlib.util, os, subprocess, sys, tempfile
from importlib.metadata import distributions

SOURCE = os.environ.get("JTOK_SOURCE", "..")
PRESET = os.environ.get("JTOK_PRESET", "small")  # "smoke" checks that all cells run
SMOKE = PRESET == "smoke"

if importlib.util.find_spec("jtok") is None:
    here = [(d.name.replace("_", "-"), d.version) for d in distributions()]
    pins = [f"{n}=={v}" for n, v in here if n in ("jax", "jaxlib") or n[:4] == "jax-"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        print(*pins, sep="\n", file=file, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "-c", file.name]
        subprocess.run([*pip, SOURCE, "matplotlib"], check=True)
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jtok
from jtok import predict
from jtok.decode import generate

STEPS = 3 if SMOKE else 200
print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## A model and its text
#
# A small decoder learns characters of a text that repeats itself with changes. It
# stands for any checkpoint: `lm = jtok.models.load(...)` and your own rows of tokens do
# as well. `learn` is the loop that all trainings below share; `jtok.train.fit` is the
# one for real work, with checkpoints and resuming.

# %%
WORDS = "for index item in enumerate zip range self value return None print".split()
rng = np.random.default_rng(0)
lines = [" ".join(rng.choice(WORDS, 3)) for _ in range(800)]
TEXT = np.frombuffer("\n".join(lines).encode(), np.uint8).astype(np.int32)


def rows(step, count=8, length=64):
    at = np.random.default_rng(step).integers(0, len(TEXT) - length, count)
    return {"tokens": jnp.asarray(TEXT[at[:, None] + np.arange(length)])}


# %%
def learn(loss_fn, trainable, frozen=None, state=None, rate=3e-3, steps=STEPS):
    optimizer = optax.adam(rate)

    @jax.jit
    def update(trainable, opt, batch, key):
        grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, _), grads = grad(trainable, frozen, state, batch, key)
        moves, opt = optimizer.update(grads, opt, trainable)
        return optax.apply_updates(trainable, moves), opt, loss

    opt = optimizer.init(trainable)
    for step in range(steps):
        trainable, opt, loss = update(trainable, opt, rows(step), jax.random.key(step))
    return trainable, float(loss)


# %%
SIZES = dict(vocab_size=128, width=64, num_layers=4, num_heads=4, num_kv_heads=4)
config = jtok.nn.DecoderConfig(**SIZES, head_dim=16, mlp_width=128, max_positions=512)
lm = jtok.models.init(config, jax.random.key(0))
params, loss = learn(jtok.train.lm_loss(lm), lm.params, steps=3 * STEPS)
lm = lm.replace(params=params)
PROMPTS = [TEXT[start : start + 24] for start in (0, 1000, 2000)]
NEW = 8 if SMOKE else 64


def tokens_per_call(model, drafter, **options):
    options = {"max_new_tokens": NEW, "drafter": drafter, "stop_ids": (), **options}
    return generate(model, PROMPTS, **options).stats.tokens_per_call


print("nats a character:", round(loss, 2), "| plain:", tokens_per_call(lm, None))

# %% [markdown]
# ## Mask tokens and gated adapters (`mtp`)
#
# Mask tokens behind a text ask the model for what comes next, and next but one. Low-rank
# adapters help it to answer, with a gate that is shut for ordinary tokens: the model's
# own outputs do not change by a bit. A sampler head lets each guess know the one before.

# %%
masks = predict.mask_init(lm, 3, 4, jax.random.key(1))
before = lm(rows(0)["tokens"]).logits
masks, _ = learn(predict.mask_loss(lm, 3, num_blocks=16), masks, lm.params)
masked = predict.with_masks(lm, masks)
assert (masked(rows(0)["tokens"]).logits == before).all()

for decoding in ("linear", "quadratic"):
    drafter = jtok.decode.mtp(masked, masks["sampler"], decoding=decoding)
    print(f"{decoding:>9}: {tokens_per_call(masked, drafter):.2f} tokens per call")

# %% [markdown]
# ## Heads on the model's states (`caft`, `chimera`)
#
# Auxiliary heads read what the last layer reads and predict the tokens after the next
# one; concept-aware fine-tuning uses them to train, and then drops them. They draft,
# too. Chimera's stack fuses the model's states with the last three tokens.

# %%
heads = predict.init_heads(lm, predict.HeadsConfig(num_auxiliary=3))
heads, _ = predict.pretrain_heads(
    lm,
    heads,
    rows,
    steps=STEPS,
    key=jax.random.key(2),
    learning_rate=3e-3,
    progress=False,
)
drafter = jtok.decode.auxiliary_heads(heads, lm)
print(f"auxiliary heads: {tokens_per_call(lm, drafter):.2f} tokens per call")

# %%
sizes = predict.fusing_config(lm, steps=3, heads="light")
draft = predict.init_fusing(lm, jax.random.key(3), sizes)
params, _ = learn(predict.draft_loss(lm, draft), draft.params, lm.params)
drafter = jtok.decode.chimera(draft.replace(params=params), jtok.ops.Tree.chain(3))
print(f"chimera: {tokens_per_call(lm, drafter):.2f} tokens per call")

# %% [markdown]
# ## Exits below the last layer (`s2d`)
#
# One draft model whose first layers are drafts of their own: all exits learn at once,
# and each token leaves at the first exit that is sure enough.

# %%
layers = lm.params["layers"][:2]
small = lm.replace(params={**lm.params, "layers": layers})
small = small.replace(
    config=jtok.nn.DecoderConfig(
        **{**SIZES, "num_layers": 2}, head_dim=16, mlp_width=128, max_positions=512
    )
)
params, _ = learn(predict.sorted_loss(small, (1, 2)), small.params)
small = small.replace(params=params)
for thresholds in ((0.0, 0.0), (0.6, 0.0), (2.0, 0.0)):
    drafter = jtok.decode.sorted_chain(small, (1, 2), thresholds)
    print(thresholds, f"{tokens_per_call(lm, drafter):.2f} tokens per call")

# %% [markdown]
# ## A vector that spells what follows (`ftp`)
#
# Every position's vector must, alone, let a small decoder write the next tokens. Such
# vectors change more smoothly along a text than those of a next-token model.

# %%
future = predict.future_from(
    lm, key=jax.random.key(4), decoder_layers=1, pseudo_tokens=4, horizon=4
)
params, _ = learn(predict.future_loss(future), future.params)
future = future.replace(params=params)
drafter = jtok.decode.future_drafter(future)
made = tokens_per_call(future.target(), drafter, params=future.params)
print(f"the model drafts for itself: {made:.2f} tokens per call")

# %% [markdown]
# ## Masks in any order (`diffusion_joint_sampling`)
#
# A masked-diffusion model looks both ways and fills in masks, one or several at a step.
# Several at once are drawn independently, and may not fit together; the one-layer
# sampler of ADJUST draws them one after another without another full pass.

# %%
# Groups of four tokens of which the first decides the others.
both = jtok.nn.DecoderConfig(
    vocab_size=17,
    width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=12,
    mlp_width=96,
    max_positions=32,
    causal=False,
    mask_token_id=16,
)
# %%
shift = np.random.default_rng(1).permutation(16)


def groups(step, count=64):
    first = np.random.default_rng(step).integers(0, 16, (count, 2))
    parts = [first, shift[first], (first + shift[first]) % 16, (3 * first + 1) % 16]
    return {"tokens": jnp.asarray(np.stack(parts, -1).reshape(count, 8), jnp.int32)}


# %%
rows = groups  # what `learn` trains on from here
filler = jtok.models.init(both, jax.random.key(5))
params, loss = learn(predict.diffusion_loss(filler), filler.params, steps=8 * STEPS)
filler = filler.replace(params=params)
blank = np.full((64, 8), 16, np.int32)
for count in (1, 2, 4):
    pace = predict.fixed_pace(count)
    out = predict.sample_masked(filler, blank, pace=pace, temperature=1.0)
    made = np.asarray(out.tokens).reshape(-1, 4)
    right = (made[:, 1] == shift[made[:, 0]]).mean()
    print(f"{count} a forward: {int(out.forwards[0])} forwards, {right:.0%} pairs fit")

# %% [markdown]
# ## N-grams that are masked as one
#
# Phrases that are more frequent than chance become classes of their own. A masked phrase
# is one [MASK], whatever its length; the model names it as one class and, by queries that
# nobody else sees, spells it. Afterwards the encoder alone is kept for fine-tuning.

# %%
words = ("the united states of america and the new york times . " * 40).split()
names = ["[pad]", "[cls]", "[sep]", "[mask]", *dict.fromkeys(words)]
ids = np.array([names.index(word) for word in words])
counts = jtok.text.count_grams([ids], vocab_size=96)
lexicon = jtok.text.build_lexicon(counts, (6, 3), forbidden=range(4))
print([" ".join(names[i] for i in lexicon.gram(96 + row)) for row in range(len(lexicon))])

# %%
layout = predict.GramLayout(cls_id=1, sep_id=2, mask_id=3, pad_id=0, left=16, fine=8)
texts = predict.cut_documents([ids], layout)
data = predict.gram_batches(texts, lexicon, layout, batch_size=4, seed=0)
config = predict.gram_config(jtok.testing.tiny_model(family="bert"), lexicon)
model = predict.init_grams(config, jax.random.key(0))
trained = jtok.train.fit(
    predict.gram_loss(model), model.params, data=data, steps=30, key=jax.random.key(1),
    optimizer=jtok.train.adamw(3e-3), progress=False,
)
print(trained.metrics["coarse_nats"][[0, -1]], trained.metrics["fine_nats"][[0, -1]])
encoder = predict.plain_encoder(model.replace(params=trained.trainable))
encoder(jnp.asarray(texts[0][None]), logits="none").hidden.shape

# %% [markdown]
# ## Where to go from here
#
# - Each method has an experiment that measures its paper's claim:
#   `python -m experiments.run mtp`, `ftp`, `caft`, `chimera`, `s2d`,
#   `diffusion_joint_sampling`, `ernie_gram`; `drafters` sets them side by side on one target.
# - Adapters are kept as PEFT keeps them: `predict.save_adapters`.
# - `help(jtok.decode.mtp)` and its neighbours say what else they take: trees, own draws
#   with `rejection()`, fewer masks, a confidence below which they stop.
