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
# # Vectors for tokens
#
# How a token gets its vector: from another model's space, from its pieces and from
# tokens that look alike, from a network that reads its pieces, from its letters, or
# anew in every text. `jtok.embed` has one interface for rows of a new vocabulary, and
# models whose embedding is made on the way.
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
import jax
import jax.numpy as jnp
import numpy as np

import jtok
from jtok import embed, testing, text, train
from jtok.testing import tiny_model, tiny_vocabulary

STEPS = 3 if SMOKE else 200
print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## Another vocabulary, without training
#
# A model gets the tokenizer of another one. Shared tokens keep their rows; each new
# token becomes a sparse combination of shared ones, found in the donor's space. The
# report says how every row was made, and a warning where numbers are cut differently.
# The result saves as a folder that `transformers` loads; `restore` is the way back.

# %%
texts = ["the cat sat on the mat, 12 times; the dog sat on the log, 34 times. "] * 8
old = jtok.text.Vocabulary.train_bpe(texts, 272)
new = jtok.text.Vocabulary.train_bpe(["a lantern in the catalogue. " * 8], 280)
base = jtok.testing.tiny_model(vocab_size=old.size).replace(vocabulary=old)
donor = jtok.testing.tiny_model(vocab_size=new.size, seed=1).replace(vocabulary=new)
method = jtok.embed.omp(donor=donor, k=8)
made = jtok.embed.transplant(base, donor, method, pad_to_multiple_of=8)
print(jtok.embed.transplant_record(made)["rows"])
back = jtok.embed.restore(made, base)
back.vocabulary == old

# %% [markdown]
# ## TokenAdapt: rows from pieces and look-alikes
#
# A model gets a new tokenizer without training. Tokens that both tokenizers have keep
# their rows; a new one gets a weighted sum of its old pieces and of the old tokens whose
# texts are alike. What is alike an encoder says: any function from texts to vectors,
# here one that counts character n-grams and needs no download.

# %%
old = testing.tiny_vocabulary()
model = testing.tiny_model(vocab_size=old.size).replace(vocabulary=old)
new = text.Vocabulary.train_bpe(["the cats and the dogs sat on the mats "] * 8, 290)

method = embed.tokenadapt(embed.hashed_ngrams(), k=3, weight=0.3, temperature=0.3)
rows, output, report = method(new, embed.rows_of(model), jax.random.key(0))
print(rows.shape, report.counts(), report.extras["input"])

# %% [markdown]
# ## Dynamic tokens
#
# The most frequent neighbours of a batch become one token; the frozen model reads
# vectors in place of its own tokens (Feher et al. 2024, arXiv 2411.18553). Here they
# are the mean of the pieces; `network_rows` puts a trained network in its place.

# %%
rule = jtok.text.merge_rule(tiny_vocabulary(), "pretokens")
texts = ["the cat sat on the mat", "that cat, that hat"]
batch = jtok.text.merge_batch(rule, [rule.tokenizer.encode(t) for t in texts], 8)
model = tiny_model(vocab_size=280)
source = model.params["embed"]["tokens"]
rows = jtok.embed.piece_mean_rows(source, pad_id=0)
inputs = jtok.embed.dynamic_inputs(batch, rule.tokenizer, source, rows, pad_id=0)
out = model(inputs.vectors, positions=inputs.positions, mask=inputs.mask)
print(batch.lengths, batch.merged[:4], out.logits.shape)

# %% [markdown]
# ## Words that are pooled from their letters
#
# A small encoder turns the characters of each word into one vector, a causal model runs
# over the words, and a small decoder spells every next word, all in parallel. There is
# no fixed vocabulary. Words are packed without padding for training, and written with
# two caches: one over words, one inside a word.

# %%
words = text.split_words("the cat sat on the mat ; the dog sat on the log . " * 40)
alphabet = text.char_alphabet(words)
config = embed.WordPooledConfig(
    vocab_size=alphabet.size, width=32, prefixes=1, words=24, units=6, layers=2, heads=2,
    encoder_heads=2, decoder_heads=2, encoder_mlp=64, dropout=0.0,
)
ids, lengths, _ = text.units(words, alphabet, config.units)
rows = np.arange(4)[:, None] * 5 + np.arange(14)[None]
batch = embed.pack_words(config, ids[rows], lengths[rows])
params = jax.jit(embed.init_words, static_argnums=0)(config, jax.random.key(0))
fitted = train.fit(
    embed.packed_loss(config), params, optimizer=embed.word_optimizer(3e-3),
    data=lambda step: batch, steps=STEPS, key=jax.random.key(1), progress=False,
)
print("nats a word:", fitted.metrics["nats_per_word"][[0, -1]].round(2))

# %%
context = {"context": ids[None, :6], "lengths": lengths[None, :6]}
written = embed.generate_words(fitted.trainable, config, num_words=8, **context)
print(text.join_words(words[:6]), "->", text.join_words(text.words_of(
    np.asarray(written.units[0]), alphabet)))
both = jnp.asarray(ids[rows]), jnp.asarray(lengths[rows])
scores = embed.word_scores(fitted.trainable, config, *both)
print("words right:", float(scores.right[scores.words].mean()))

# %% [markdown]
# ## Without fixed embeddings
#
# A lexinvariant model draws a fresh random row for every symbol of every sequence, so
# nothing that it knows is tied to an id: it must find out in context what each symbol
# does. Below it learns to look values up among 24 symbols, and then does so among 8
# that training never showed. Beside it, the exact mixture over all renamings of a
# Markov language: what it loses never passes log(v!).

# %%
def lookup(key, symbols, batch=32):
    return embed.lookup_task(
        key, batch=batch, symbols=symbols, vocab_size=32, pairs=4, queries="all"
    )

lex = embed.lexinvariant_from(
    testing.tiny_model(vocab_size=32, scale=8.0), key=jax.random.key(0), previous_token=True
)
draw = jax.jit(lambda key: lookup(key, range(24))[:2])
batches = lambda step: dict(zip(("tokens", "mask"), draw(jax.random.key(step))))
fitted = train.fit(
    embed.lexinvariant_loss(lex), lex.params, optimizer=train.adamw(3e-3),
    data=batches, steps=3 if SMOKE else 400, key=jax.random.key(1), progress=False,
)
# %%
task = lookup(jax.random.key(-1), range(24, 32), batch=256)
logits = embed.lexinvariant_logits(lex.replace(params=fitted.trainable), task.tokens, jax.random.key(2))
print("right on unseen symbols:", float(embed.task_scores(logits, task.tokens, task.answers).each))

ring = 0.8 * np.roll(np.eye(5), 1, axis=1) + 0.2 / 5
language = embed.markov_language(0.5 * np.eye(5)[0] + 0.1, ring)
ids = embed.sample_language(language, jax.random.key(0), batch=16, length=100)
reads = jax.jit(embed.permutation_mixture)(language, ids)
print("nats lost after 100 symbols:", reads.regret[:, -1].mean(), "at most", embed.regret_bound(5))

# %% [markdown]
# ## Where to go from here
#
# - `python -m experiments.run omp_transplant`, `tokenadapt`, `dynamic_tokenization`,
#   `learn_your_tokens` and `lexinvariant` measure the papers' claims on real text.
# - `python -m jtok.embed --help` swaps the vocabulary of a checkpoint in one command.
