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
# # Fewer tokens
#
# Tokens that look alike become one, tokens that nobody looks at leave: in the layers of
# an encoder, between a tower and a language model, inside the language model.
# `jtok.compress` has one plan for all of it, one menu of methods, one schedule and one
# counter of what is saved.
#
# The next cell installs jtok where it is missing. It pins the jax that is there, so
# that a hosted runtime keeps the one that fits its accelerator. The notebook expects to
# lie in the `notebooks/` folder of a checkout. Elsewhere, in Colab for instance, set
# `SOURCE` to anything that pip takes.

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
        subprocess.run([*pip, SOURCE, "matplotlib", "scikit-learn"], check=True)
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_sample_images

import jtok
from jtok import classify, nn, train
from jtok.testing import tiny_model

STEPS = 5 if SMOKE else 60
print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## Tokens that look alike become one: ToMe and PiToMe
#
# A photograph is cut into patches and each patch is a token, here with its colours for a
# vector. Four times over, a tenth to a half of the tokens merge. Every patch is drawn
# with the mean colour of the token that it ended in: the sky becomes few tokens, small
# and odd things stay as they are.

# %%
photo = np.asarray(load_sample_images().images[0], np.float32)[:416, :640] / 255
patches = photo.reshape(26, 16, 40, 16, 3).transpose(0, 2, 1, 3, 4)
colours = jnp.asarray(patches.mean((2, 3)).reshape(1, -1, 3))
metric = jnp.asarray(patches.reshape(1, 26 * 40, -1)) - 0.5


def merged(method, steps=4):
    x, like, size, path = colours, metric, None, None
    for _ in range(steps):
        plan = method(like)
        like, _ = plan.merge(like, size)
        x, size = plan.merge(x, size)
        path = plan if path is None else path.then(plan)
    return path.unmerge(x).reshape(26, 40, 3), x.shape[1]


# %%
few = {"keep": 0.6}
pictures = {"photograph": (photo, colours.shape[1])}
pictures["ToMe"] = merged(lambda m: jtok.compress.tome(m, **few))
pictures["PiToMe"] = merged(lambda m: jtok.compress.pitome(m, margin=0.75, **few))
pictures["even stride"] = merged(lambda m: jtok.compress.uniform_merge(m, **few))
figure, axes = plt.subplots(1, 4, figsize=(14, 3))
for axis, (name, (picture, count)) in zip(axes, pictures.items(), strict=True):
    axis.imshow(np.clip(picture, 0, 1))
    axis.set_title(f"{name}: {count} tokens")
    axis.axis("off")

# %% [markdown]
# In a model the same merging sits between attention and MLP of every layer. A schedule
# says how many tokens leave where, and one counter says what that saves.

# %%
model = tiny_model(family="bert")
merging = jtok.compress.schedule(jtok.compress.pitome, keep=0.7, margin=0.5)
out = model(jnp.arange(5, 29)[None], compress=merging)
counts = merging.token_counts(24, model.config.num_layers, prefix=1)
saved = 1 - (
    jtok.compress.flops(model.config, counts).flops
    / jtok.compress.flops(model.config, (24,) * len(counts)).flops
)
print(f"tokens {counts}, {saved:.0%} fewer FLOPs; rows hold {out.plan.size[0].astype(int)}")

# %% [markdown]
# ## One menu: which tokens stay, on a real photograph
#
# `jtok.compress.methods()` lists every method with what it needs; `compress` runs any of
# them at a budget. Here the tokens are the patches of a photograph, described by their
# colours and edges, and the attention is that of the mean of all patches. White edges
# mark tokens that stay, one tint those that became one row, dark patches are gone.

# %%
photo = np.asarray(load_sample_images().images[0], np.float32)[:416, :640] / 255
side, rows, columns = 32, 13, 20
patches = photo.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
x = jnp.asarray(patches[:, :, ::4, ::4].reshape(1, rows * columns, -1))
x = x - x.mean(axis=1, keepdims=True)
heads = x[:, :, None] / jnp.linalg.norm(x, axis=-1).mean()
attn = jtok.compress.attention_scores(heads, heads, of="mean", scale=9.0)
for name, method in jtok.compress.methods(modality="image").items():
    print(f"{name:18} {method.family:15} needs {', '.join(method.needs) or 'nothing'}")

# %%
def draw(axes, plan, title):
    wide = np.kron(plan.assign[0].reshape(rows, columns), np.ones((side, side), int))
    shown = photo * np.where(wide >= 0, 1.0, 0.25)[..., None]
    for row in np.flatnonzero(np.asarray(plan.size[0]) > 1):
        tint = np.array(plt.colormaps["hsv"](row * 0.381 % 1)[:3])
        shown = np.where((wide == row)[..., None], 0.6 * shown + 0.4 * tint, shown)
    axes.imshow(shown)
    for token in plan.keep[0][plan.keep[0] >= 0]:
        corner = (token % columns * side, token // columns * side)
        axes.add_patch(plt.Rectangle(corner, side, side, fill=False, ec="white", lw=0.7))
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()

# %%
names = ["uniform", "random", "divprune", "fastv", "visionzip", "prumerge", "tome", "pitome"]
fig, cells = plt.subplots(2, 4, figsize=(14, 5.5))
for cell, name in zip(cells.flat, names):
    extra = {"key": jax.random.key(0)} if name == "random" else {}
    act = lambda x: jtok.compress.compress(
        x, name, budget=x.shape[1] // 9, keys=x, attn=attn, grid=(1, rows, columns), **extra
    )
    found = jax.jit(act)(x)
    draw(cell, found.plan, f"{name}: {x.shape[1]} tokens to {found.keep.shape[1]}")
fig.tight_layout()

# %% [markdown]
# ## AIM: merge before the language model, prune inside it
#
# Each merging step joins the most similar neighbours of a frame and halves it. Here
# the tokens are patches of a photograph; a tile shows the mean of what it holds.

# %%
photo = np.asarray(load_sample_images().images[1], np.float32)[:420, :630] / 255
side, rows, columns = 15, 28, 42
x = photo.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(1, -1, side * side * 3)
fig, axes = plt.subplots(1, 4, figsize=(14, 2.8))
for axis, steps in zip(axes, range(4)):
    removed = jtok.compress.frame_removals(rows * columns, halvings=steps)
    merged = jtok.compress.merge_frames(jnp.asarray(x), removed)
    seen = np.asarray(merged.plan.unmerge(merged.tokens)).reshape(rows, columns, side, side, 3)
    axis.imshow(seen.swapaxes(1, 2).reshape(photo.shape))
    axis.set_title(f"{merged.tokens.shape[1]} tokens", fontsize=8)
    axis.set_axis_off()

# %% [markdown]
# Inside the model tokens leave a few after each layer. A schedule says how many, a
# score which; layers then hold keys and values of different lengths, and `generate`
# goes on from them.

# %%
ramp = jtok.compress.ramp_schedule(28, 14, 22)
plt.step(range(29), ramp.token_counts(1568, 100), where="post", label="AIM")
fastv = jtok.compress.fastv_schedule(28, 2, 0.5)
plt.step(range(29), fastv.token_counts(1568, 100), where="post", label="FastV")
plt.xlabel("layer"), plt.ylabel("tokens that enter it"), plt.legend()

# %%
lm, ids = tiny_model(), jnp.arange(1, 25)[None]
image = jtok.compress.spans_mask(24, [(4, 20)])[None]
half = jtok.compress.fastv_schedule(lm.config.num_layers, 1, 0.5)
for name in ("compact", "mask"):
    out = jtok.compress.prefill(lm, ids, prunable=image, schedule=half, mode=name)
    more = jtok.decode.generate(
        out.target, out.prompts(), params=lm.params, max_new_tokens=8,
        cache=jtok.decode.Session(**out.session()))
    print(name, out.cache.num_bytes, "bytes;", more.tokens[0])

# %% [markdown]
# ## LAMA: a few numbers a head, and the words it looks at
#
# A head of low-rank attention is a column of two thin matrices. Here a small bi-GRU
# with four heads learns to tell two kinds of sentences apart; the picture shows how much
# of its attention each head gives each word (1 would be an equal share).

# %%
rng = np.random.default_rng(0)
pick = lambda words: rng.choice(words.split())
kinds = ("dull weak slow flat", "bright warm funny great")
labels = rng.integers(0, 2, 256).astype(np.int32)
texts = [f"the {pick('film plot cast')} was {pick(kinds[k])} and the {pick('seats popcorn')} fine" for k in labels]
words = classify.WordList.build(texts)

# %%
pooler = nn.LamaPooler(width=32, heads=4, learn_scale=True)
head = classify.HeadConfig(pooler=pooler, classes=2, dropout=0.1)
config = classify.ClassifierConfig(words.size, head, embedding=16, state=16, dropout=0.1)
ids, _ = words.encode(texts, length=9)
fitted = train.fit(
    classify.classifier_loss(config), classify.init_classifier(config, jax.random.key(0)),
    optimizer=optax.adam(1e-2), steps=STEPS, key=jax.random.key(1), progress=False,
    data=classify.shuffled_batches({"ids": ids, "labels": labels}, batch=64, seed=0),
)
model = classify.TextClassifier(fitted.trainable, config, words)

# %%
seen = classify.word_weights(model, "the cast was funny and the seats fine")
fig, axes = plt.subplots(figsize=(7, 2))
shown = axes.imshow(seen.weights * len(seen.words), cmap="viridis", aspect="auto")
axes.set_xticks(range(len(seen.words)), seen.words)
axes.set_ylabel("head")
fig.colorbar(shown)
print("warm" if seen.label else "cold", seen.probabilities.round(3))

# %% [markdown]
# The same head reads any encoder; its parameters are counted beside Lin et al.'s.

# %%
size = lambda p: sum(x.size for x in jax.tree.leaves(jax.eval_shape(p.init, jax.random.key(0))))
for pooler in (nn.LamaPooler(width=768, heads=15), nn.StructuredPooler(width=768, heads=15)):
    print(f"{type(pooler).__name__:18} {size(pooler):8,} parameters")
