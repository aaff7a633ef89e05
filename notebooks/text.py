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
# # Bytes, words and vocabularies
#
# What a token is: bytes that a tokenizer keeps together. `jtok.text` compares
# vocabularies by these bytes, cuts the tokens of one by another, finds words in any of
# them, trains tokens that span words, and says which tokens may follow. On top of it a
# model gives the exact probability of the next byte, and two models of different
# vocabularies draft for each other.
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

print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## Two vocabularies side by side
#
# Tokens are the same where their bytes are, however their files spell them; special
# tokens match by role. What only one of them has is cut into pieces by the other.

# %%
one = text.Vocabulary.train_bpe(["the cat sat on the mat, the cats "] * 8, 280)
two = text.Vocabulary.train_bpe(["a hat on the cat, hats on cats "] * 8, 280)
shared = text.overlap(one, two)
print(len(shared.target_ids), "tokens shared, roles", dict(shared.roles))
new = [two.token_bytes[id_] for id_ in shared.new_ids]
pieces = text.decompose(new, one)
for token, ids in zip(new, pieces.ids):
    print(token, [one.token_bytes[id_] for id_ in ids if id_ >= 0])

# %% [markdown]
# ## Words of any tokenizer, and text to words and back
#
# `split_words` loses nothing: one space between words is implied, other whitespace is a
# word. `word_ids` says to which word each token of any tokenizer belongs.

# %%
sentence = "Tokens  are\nnot words, are they?"
words = text.split_words(sentence)
print(words, text.join_words(words) == sentence)
vocabulary = text.Vocabulary.train_bpe([sentence] * 3, 280)
tokens = vocabulary.encode(sentence)
for piece, word in zip(tokens.tolist(), text.word_ids(vocabulary, tokens).tolist()):
    print(word, vocabulary.token_bytes[piece], end="; ")

# %% [markdown]
# ## Supertokens: tokens that span words
#
# BPE usually merges within words. Trained on random chunks of text instead, its tokens
# may hold the end of one word and the start of the next. Only the training is random;
# the vocabulary then encodes a whole text as one word. The tables count bytes a token
# on text that neither vocabulary has seen.

# %%
sample = ["in the middle of the night there is the sound of the sea. "] * 40
held_out = {"en": ["the end of the night is in the middle of the sea."]}
words = text.train_word_bpe(text.training_words(sample, None), 320, split="gpt2")
chunks = text.train_supertokens(sample, 320, 0)

for row in text.compression({"words": words, "chunks": chunks}, held_out):
    print(f"{row.vocabulary:7} {row.bytes_per_token:.2f} bytes a token,",
          f"{row.multiword_share:.0%} of tokens span words")
ids = chunks.encode(held_out["en"][0])
print([chunks.token_bytes[id_].decode() for id_ in ids.tolist()])

# %% [markdown]
# ## Bytes instead of tokens
#
# A prompt that ends inside a token misleads a model of tokens: its own encoding says
# that the word is over. `byte_level` sums over every way in which tokens can cover the
# text, so the next byte has its exact probability wherever the cursor stands. Models of
# different vocabularies can be averaged this way.

# %%
model = testing.tiny_model(vocab_size=280)
vocabulary = testing.tiny_vocabulary()
by_byte = jtok.decode.byte_level(model, vocabulary)
naive = jtok.decode.token_prompt(model, vocabulary)
for name, reader in {"exact": by_byte, "naive": naive}.items():
    logs = reader.next_byte_logprobs("the ca")
    best = np.argsort(-logs[:256])[:3]
    print(name, {bytes([b]): round(float(np.exp(logs[b])), 3) for b in best})
print("log P:", by_byte.logprob("the cat sat"))
print("covers:", by_byte.covers(by_byte.start("the ca"))[0][:3])
print("drawn:", by_byte.sample("the ca", max_bytes=8, seed=1))

# %% [markdown]
# ## A draft model of another vocabulary
#
# Text is what two models with different tokenizers share: the draft model continues the
# text, and what it wrote is cut into the target's tokens. They are verified like any
# drafts, so the output stays that of plain decoding.

# %%
large = testing.tiny_model(vocab_size=one.size).replace(vocabulary=one)
small = testing.tiny_model(vocab_size=two.size, seed=1).replace(vocabulary=two)
across = jtok.decode.draft_across(small, one, draft_tokens=3)
options = {"max_new_tokens": 12, "temperature": 0.8, "stop_ids": ()}
plain = jtok.decode.generate(large, "the cat", **options)
out = jtok.decode.generate(large, "the cat", drafter=across, **options)
print(out.guarantee, (out.tokens == plain.tokens).all(), out.stats.tokens_per_call)

# %% [markdown]
# ## Where to go from here
#
# - `python -m experiments.run byte_probabilities` and `tokenadapt` measure what papers
#   claim of this, on real text; `bench_draft_across` races the drafts.
# - `help(jtok.text)` lists what else there is: validity of token sequences, ranges of
#   byte prefixes, n-gram lexicons, batch-level merges.
