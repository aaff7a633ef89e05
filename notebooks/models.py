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
# # Any model, any text
#
# What `jtok.models` and `jtok.text` do for you before any paper begins: load a checkpoint
# in the Hugging Face format, read its vocabulary down to the bytes, score texts, turn
# them into vectors, look inside a forward pass and change it, decode with drafts from a
# second model, serve many prompts, and bring a model that jtok has never heard of.
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
        subprocess.run([*pip, SOURCE, "matplotlib"], check=True)
    importlib.invalidate_caches()

# %%
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from jtok.decode import draft_model, generate, serve, stream
from jtok.testing import assert_token_guarantee, tiny_model

print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## Load, look, save
#
# In a checkout this takes the small model of `experiments/pretrain.py` (trained on first
# use, then found in a cache); elsewhere a model from the hub. The families below are
# read and written; anything else is refused by name, never half-loaded.

# %%
CHECKOUT = pathlib.Path("..").resolve()
MODEL = None if (CHECKOUT / "experiments").is_dir() else "Qwen/Qwen2.5-0.5B"

if MODEL is None:
    sys.path.append(str(CHECKOUT))
    from experiments.pretrain import PRESETS, small_lm

    MODEL = small_lm(PRESETS[PRESET])

lm = jtok.models.load(MODEL, dtype="float32")
print("families:", ", ".join(jtok.models.FAMILIES))
print(f"{lm.num_params:,} parameters, {lm.config.num_layers} layers")

# %%
with tempfile.TemporaryDirectory() as folder:
    jtok.models.save(lm, f"{folder}/copy")  # a folder that `transformers` loads, too
    again = jtok.models.load(f"{folder}/copy")
same = jax.tree.map(lambda a, b: bool((a == b).all()), lm.params, again.params)
print("equal after saving and loading:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## The vocabulary, down to the bytes
#
# Every id has bytes, whatever file the vocabulary came from: `tokenizer.json`,
# SentencePiece, tiktoken ranks, CLIP. A `Detokenizer` turns ids into text as they come,
# and never shows half a character.

# %%
words = lm.vocabulary
ids = words.encode("naïve café")
print([words.decode_bytes([i]) for i in ids])
pieces = jtok.text.Detokenizer(words)
print([pieces.push([i]) for i in ids], repr(pieces.finish()))

# %% [markdown]
# ## How likely is a text?
#
# `score` gives log-likelihoods and bits per byte, which compare models whose token
# counts differ. Real code should need fewer bits than the same letters shuffled.

# %%
text = "def add(a, b):\n    return a + b\n\n\nclass Point:\n    pass\n"
shuffled = "".join(np.random.default_rng(0).permutation(list(text)))
scores = jtok.models.score(lm, [text, shuffled])
for name, bits in zip(["code", "shuffled"], scores.bits_per_byte):
    print(f"{name:>9}: {bits:.2f} bits per byte")

# %% [markdown]
# ## Texts as vectors
#
# `encode` pools hidden states. A general model is no trained embedder, but the two
# pieces of code are closer to each other than to the sentence.

# %%
texts = ["def f(x):\n    return x", "def g(y):\n    return y", "It rained all day."]
vectors = jtok.models.encode(lm, texts, pool="mean", normalize=True)
print(np.round(vectors @ vectors.T, 3))

# %% [markdown]
# ## Inside a forward pass
#
# *Taps* read an activation at (site, layer), or replace it. Here the first block's MLP
# is silenced, and the loss of the text rises.

# %%
tokens = jnp.asarray(words.encode(text))[None]
read = lm(tokens, taps=[("resid_post", 0)]).taps["resid_post", 0]
print("residual stream after block 0:", read.shape)

# %%
def silence(layer, site, x):
    return jnp.where((layer == 0) & (site == "mlp_out"), 0 * x, x)


def loss(taps):
    logs = jax.nn.log_softmax(lm(tokens, taps=taps).logits[:, :-1])
    return -jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1).mean()


SILENT = jtok.models.Taps(edit=silence)
print("loss:", float(loss(None)), "silenced:", float(loss(SILENT)))

# %% [markdown]
# ## Drafts from a second model
#
# A smaller model of the same vocabulary drafts, the larger one checks. Here the model
# drafts for itself, so every draft is right; with a small relative you save calls of
# the large one. The tokens are those of plain decoding, at any temperature.

# %%
NEW = 16 if SMOKE else 64
options = dict(max_new_tokens=NEW, temperature=0.8, seed=3, gaps=True)
plain = generate(lm, "class Stack:", **options)
fast = generate(lm, "class Stack:", drafter=draft_model(lm, depth=3), **options)
assert_token_guarantee(plain, fast)
print(f"{fast.stats.tokens_per_call:.2f} tokens per call, {fast.guarantee!r}")

# %% [markdown]
# ## Many prompts, and text as it comes
#
# `serve` keeps a batch full: a row that is done gives its place to the next prompt, and
# no row's tokens depend on its mates. `stream` yields text between chunks of steps.

# %%
prompts = ["import ", "def main(", "class A", "for i in", "return "]
for index, out in serve(lm, prompts, batch=2, max_new_tokens=8):
    print(index, repr(prompts[index] + out.text))

# %%
for event in stream(lm, "def read(path):", max_new_tokens=NEW, sync_every=4):
    print(event.text, end="", flush=True)

# %% [markdown]
# ## A model that jtok does not know
#
# Any function of ids can be decoded. This one counts upwards; with `logits_target` it
# takes every drafter that drafts chains. For speed, give a `jtok.models.Target` with a
# cache of its own.

# %%
count_up = lambda params, ids, positions, mask: jax.nn.one_hot(ids + 1, 50)
target = jtok.models.logits_target(count_up, vocab_size=50)
print(generate(target, [2, 3, 4], max_new_tokens=6).tokens)

# %% [markdown]
# ## Recurrent models
#
# Mamba keeps a state instead of keys and values. It is loaded, trained and decoded as
# the others are; drafts must be chains.

# %%
mamba = tiny_model(family="mamba")
out = generate(mamba, [1, 2, 3], max_new_tokens=8, drafter=jtok.decode.prompt_lookup())
print(out.tokens, out.guarantee)
