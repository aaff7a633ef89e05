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
# # The same text in fewer model calls
#
# A language model that decodes plainly is called once for every token. `jtok.decode`
# drafts several tokens, lets the model check them all in one call, and keeps what the
# model would have emitted anyway. Here you decode a model both ways, check that the
# tokens are the same, look at where the calls went, choose a draft tree for your
# machine, and plug in a model of your own.
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
import html, io, itertools, pathlib

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
from IPython.display import HTML, Image, display

import jtok
from jtok.decode import generate, token_recycling
from jtok.testing import assert_token_guarantee

print("jtok", jtok.__version__, "| jax", jax.__version__, "|", jax.devices()[0])

# %% [markdown]
# ## A model
#
# In a checkout this takes the small model of `experiments/pretrain.py`, which learned
# from Python's own library. The first time it is trained, which takes
# some minutes on a CPU; then it lies in the cache. Elsewhere it takes a model from the
# hub. Set `MODEL` to any hub id or folder in the Hugging Face format whose
# `model_type` is among those printed below.
#
# Weights are read as float32 here. In bfloat16 everything works, too, but a call of
# several tokens rounds otherwise than a call of one, and where two tokens are almost
# equally likely the choice may fall differently.

# %%
CHECKOUT = pathlib.Path("..").resolve()
MODEL = None if (CHECKOUT / "experiments").is_dir() else "Qwen/Qwen2.5-0.5B"

if MODEL is None:
    sys.path.append(str(CHECKOUT))
    from experiments.pretrain import PRESETS, small_lm

    MODEL = small_lm(PRESETS[PRESET])

lm = jtok.models.load(MODEL, dtype="float32")
print("families:", ", ".join(jtok.models.FAMILIES))
print(f"{lm.num_params:,} parameters, {lm.config.vocab_size:,} token ids")

# %% [markdown]
# ## Plainly, and with drafts
#
# `generate` continues a prompt. With `drafter=token_recycling()` it also keeps, for
# every token, the candidates that the model ranked highest when it last saw that token,
# and grows a tree of drafts from this table. Nothing is trained, and no second model is
# needed.
#
# Look at three things: the text, the **tokens per call** (1.0 for plain decoding), and
# the **guarantee**: `"token"` says that every token is the one that plain decoding
# emits. You need not believe it: `assert_token_guarantee` compares. It lets pass only a
# difference at a near-tie, where the two best tokens score almost the same
# (`gaps=True` records how close each choice was).

# %%
NEW = 24 if SMOKE else 128
PROMPTS = [
    'class Stack:\n    """A list with two ends."""\n\n    def __init__(self, items):',
    "def read_lines(path):\n    with open(path) as file:",
    "The following methods are defined for",
]

plain = generate(lm, PROMPTS[0], max_new_tokens=NEW, gaps=True)
fast = generate(lm, PROMPTS[0], max_new_tokens=NEW, drafter=token_recycling())
assert_token_guarantee(plain, fast)

print(PROMPTS[0] + fast.text)

# %%
for name, out in {"plain": plain, "recycling": fast}.items():
    stats = out.stats
    print(f"{name:>9}: {stats.emitted} tokens in {stats.calls} calls,", end=" ")
    print(f"{stats.tokens_per_call:.2f} tokens per call, guarantee {out.guarantee!r}")
print("equal token by token:", np.array_equal(plain.tokens, fast.tokens))
print("differences:", jtok.testing.compare(plain, fast))

# %% [markdown]
# ## Which call emitted what
#
# `out.call_of` tells for every token the call that emitted it. Below, each call has a
# colour of its own: a long stretch of one colour is a draft that was right, a lone
# token a call whose drafts were all wrong. Hover over a stretch for its number.
#
# Expect single tokens at the beginning, while the table is empty, and longer stretches
# where the text comes back to tokens that it had before.

# %%
COLOURS = "#a6cee3 #fdd49e #b2df8a #fbb4b9 #cab2d6 #ffff99 #99d8c9".split()


def coloured(prompt, out):
    """The prompt, then what was emitted, on one colour a call."""
    spans = [html.escape(prompt)]
    for call, run in itertools.groupby(zip(out.call_of, out.tokens), lambda p: p[0]):
        ids = [token for _, token in run if token < lm.vocabulary.size]
        piece = html.escape(lm.vocabulary.decode_bytes(ids).decode(errors="replace"))
        colour = COLOURS[call % len(COLOURS)]
        spans.append(f'<span style="background:{colour};color:#000" title="call {call}')
        spans.append(f': {len(ids)} tokens">{piece}</span>')
    return HTML(f'<pre style="white-space:pre-wrap">{"".join(spans)}</pre>')


# %%
coloured(PROMPTS[0], fast)

# %% [markdown]
# ## How deep the drafts hold
#
# A draft of depth d is kept when it and all the drafts above it are what the model
# chose. The share of calls that keep one falls with the depth; the bars add up to the
# tokens per call, minus the one that every call emits. Where the last bars are near
# zero, a shallower tree would cost less and lose little; below, a tree is chosen by
# that.

# %%
def show(fig):
    """Shows a figure without any display behind it."""
    png = io.BytesIO()
    fig.savefig(png, dpi=110, bbox_inches="tight")
    display(Image(png.getvalue()))


kept = fast.stats.accepted_by_depth
fig = matplotlib.figure.Figure(figsize=(5, 2.5))
axes = fig.add_subplot()
axes.bar(np.arange(1, len(kept) + 1), kept)
axes.set(xlabel="depth of the draft", ylabel="share of calls that kept it")
show(fig)

# %% [markdown]
# ## Sampling is the same, too
#
# The noise of a draw depends on the seed and on the position in the text only, never on
# what was drafted. So at temperature 1 the same seed gives the same text with and
# without drafts, and another seed another text. `top_k`, `top_p` and `min_p` work the
# same way.
#
# Sampled text comes back to itself less than greedy text does: compare the tokens per
# call with those above.

# %%
options = dict(max_new_tokens=NEW, temperature=1.0, seed=7, gaps=True)
plain_1 = generate(lm, PROMPTS[0], **options)
fast_1 = generate(lm, PROMPTS[0], drafter=token_recycling(), **options)
other = generate(lm, PROMPTS[0], **{**options, "seed": 8})
assert_token_guarantee(plain_1, fast_1)

print("seed 7, plain and recycling:", np.array_equal(plain_1.tokens, fast_1.tokens))
print("seed 7 and seed 8:", np.array_equal(plain_1.tokens, other.tokens))
print(f"{fast_1.stats.tokens_per_call:.2f} tokens per call")
coloured(PROMPTS[0], fast_1)

# %% [markdown]
# ## Several prompts at once
#
# Give a list, of any lengths; results come as lists. Every row moves at its own speed:
# its calls end when it has its tokens. What a row emits does not depend on its
# neighbours, so row 0 is what it was alone. The rows share one table, and each teaches
# the others.

# %%
batch_plain = generate(lm, PROMPTS, max_new_tokens=NEW, gaps=True)
batch = generate(lm, PROMPTS, max_new_tokens=NEW, drafter=token_recycling())
assert_token_guarantee(batch_plain, batch)

print("row 0 as it was alone:", np.array_equal(batch.tokens[0], plain.tokens))
for prompt, calls, emitted, reason in zip(
    PROMPTS, batch.stats.row_calls, batch.stats.row_emitted, batch.finish_reason
):
    ids = len(lm.vocabulary.encode(prompt))
    print(f"{ids:3} prompt tokens, {emitted} emitted in {calls} calls ({reason})")

# %% [markdown]
# ## A table that remembers
#
# A run without `drafter_state` starts with an empty table. Hand over the one of an
# earlier run, and the drafts are good from the first call on. Only speed is inherited:
# the tokens stay the same. In a service you would keep one table for a model and pass
# it from request to request.
#
# `save_table` writes it to a file together with a hash of the vocabulary, and
# `load_table` refuses a table that was made for another one.

# %%
cold = generate(lm, PROMPTS[1], max_new_tokens=NEW, drafter=token_recycling())
warm = generate(
    lm,
    PROMPTS[1],
    max_new_tokens=NEW,
    drafter=token_recycling(),
    drafter_state=fast.drafter_state,
)
assert_token_guarantee(generate(lm, PROMPTS[1], max_new_tokens=NEW, gaps=True), warm)
print(f"cold: {cold.stats.tokens_per_call:.2f} tokens per call")
print(f"inherited: {warm.stats.tokens_per_call:.2f} tokens per call")

# %%
path = pathlib.Path(tempfile.mkdtemp()) / "table.safetensors"
jtok.decode.save_table(path, warm.drafter_state, lm.vocabulary)
table = jtok.decode.load_table(path, lm.vocabulary)
again = generate(
    lm, PROMPTS[2], max_new_tokens=NEW, drafter=token_recycling(), drafter_state=table
)
filled = np.any(table != 0, axis=1).mean()
print(f"{path.stat().st_size:,} bytes, rows {table.shape[0]:,} x {table.shape[1]}")
print(f"{filled:.0%} of the tokens have candidates")
print(f"{again.stats.tokens_per_call:.2f} tokens per call from the loaded table")

# %% [markdown]
# ## What a call costs here, and which tree pays
#
# Fewer calls are not yet less time: a call that checks many nodes costs more than one
# that checks a single token. How much more depends on the machine and on the model: an
# accelerator has arithmetic to spare while it reads the weights, a CPU has less.
# `cost_curve` measures it; `tune_template` decodes some prompts with the paper's tree
# of 81 nodes, counts which of them are accepted, and keeps the part of the tree that
# gives the most tokens a second. Use prompts like those that you will decode.
#
# Look at the first step of the curve, from one node to two: products of a matrix and a
# vector become products of two matrices, which can cost much more for a small model on
# a CPU. Costs between the sizes that were measured are interpolated.

# %%
SIZES = (1, 8) if SMOKE else (1, 2, 4, 8, 16, 32, 81)
costs = jtok.decode.cost_curve(
    lm, sizes=SIZES, calls=8 if SMOKE else 64, repeats=1 if SMOKE else 3
)
tuned = jtok.decode.tune_template(lm, PROMPTS[1:], costs=costs, max_new_tokens=NEW)

fig = matplotlib.figure.Figure(figsize=(5, 2.5))
axes = fig.add_subplot()
axes.plot(costs.nodes, 1e3 * np.array(costs.seconds), marker="o")
axes.axvline(tuned.template.num_nodes, ls=":", color="grey", label="chosen")
axes.set(xlabel="nodes of a call", ylabel="milliseconds", ylim=(0, None))
axes.legend()
show(fig)

# %% [markdown]
# The prediction and what comes of it. Every way is run once to compile, then three
# times in turns, and the fastest counts. A small model on a busy machine gives figures
# that vary; a tree of one node means that here plain decoding is best.

# %%
drafter = token_recycling(template=tuned.template)
ways = {"plain": (None, None), "tuned": (drafter, warm.drafter_state)}
seconds = {name: [] for name in ways}
for turn in range(2 if SMOKE else 4):
    for name, (way, state) in ways.items():
        out = generate(
            lm, PROMPTS[0], max_new_tokens=NEW, drafter=way, drafter_state=state
        )
        seconds[name] += [out.stats.decode_seconds] if turn else []
speedup = min(seconds["plain"]) / min(seconds["tuned"])
size = tuned.template.num_nodes
print(f"{size} node(s): predicted {tuned.expected:.2f} tokens per call")
print(f"speed-up: predicted {tuned.speedup:.2f}, measured {speedup:.2f}")

# %% [markdown]
# ## Bring your own model
#
# Whatever can be written as a few pure functions of arrays can be decoded with any
# drafter: a `Target` is a tuple of them. Here is a model in plain JAX that has no
# attention at all: it predicts the next byte from the last byte and from the average
# vector of all bytes so far.
#
# - `init_cache` makes what the model remembers: here the sum of the vectors of all
#   committed bytes.
# - `step` computes a whole tree of drafts at once. Node i sees what is committed and
#   the nodes that `allow[i]` names: itself and those above it. It remembers the new
#   vectors but commits nothing.
# - `commit` keeps the accepted path: the first `count` nodes of `path`.

# %%
def init_cache(params, batch, capacity):
    return jnp.zeros((batch, params["embed"].shape[1]))


def step(params, total, nodes):
    vectors = params["embed"][nodes.ids]
    seen = total[:, None] + jnp.matmul(nodes.allow.astype(vectors.dtype), vectors)
    mean = seen / (nodes.positions[..., None] + 1)
    hidden = jnp.tanh(jnp.concatenate([vectors, mean], axis=-1) @ params["hidden"])
    return jtok.models.StepOutput(hidden @ params["logits"]), (total, vectors)


# %%
def commit(cache, path, count):
    total, vectors = cache
    kept = jnp.arange(path.shape[1])[None] < count[:, None]
    chosen = jnp.take_along_axis(vectors, jnp.maximum(path, 0)[..., None], axis=1)
    return total + jnp.sum(chosen * kept[..., None], axis=1)


info = jtok.models.Info(vocab_size=256)
target = jtok.models.Target(init_cache, step, commit, info)

# %% [markdown]
# The same `step` trains it: a text is a chain of nodes, each of which sees all before
# it. The text is the documentation of `generate`.

# %%
text = jnp.array([list(generate.__doc__.encode()[:800])])
where = jnp.arange(text.shape[1])[None]
chain = jtok.models.StepInput(
    text, where, jnp.tril(jnp.ones((1, where.size, where.size), bool)), where >= 0
)


def loss(params):
    out, _ = step(params, init_cache(params, 1, 0), chain)
    every = optax.softmax_cross_entropy_with_integer_labels(
        out.hidden[:, :-1], text[:, 1:]
    )
    return every.mean()


# %%
normal = jax.nn.initializers.normal(0.1)
shapes = {"embed": (256, 64), "hidden": (128, 128), "logits": (128, 256)}
keys = jax.random.split(jax.random.key(0), len(shapes))
params = {name: normal(key, shapes[name]) for name, key in zip(shapes, keys)}

# %%
optimizer = optax.adam(1e-2)


@jax.jit
def update(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    changes, state = optimizer.update(grads, state)
    return optax.apply_updates(params, changes), state, value


state = optimizer.init(params)
for number in range(21 if SMOKE else 201):
    params, state, value = update(params, state)
    if number in (0, 20, 200):
        print(f"after {number} updates: {value:.2f} nats per byte")

# %% [markdown]
# Any drafter now works on it, with the same guarantee. A vocabulary is not needed:
# prompts and results are ids, here bytes.

# %%
prompt = list(b"Args:\n")
options = dict(params=params, max_new_tokens=NEW, temperature=0.5, gaps=True)
mine = generate(target, prompt, **options)
print(bytes(mine.tokens.tolist()).decode(errors="replace"))

ways = {"recycling": token_recycling(), "lookup": jtok.decode.prompt_lookup()}
for name, way in ways.items():
    out = generate(target, prompt, drafter=way, **options)
    assert_token_guarantee(mine, out)
    print(f"{name}: {out.stats.tokens_per_call:.2f} tokens per call, the same bytes")

# %% [markdown]
# ## When something is wrong
#
# Bad input is refused before the model runs. A message names the argument, what
# came and what it takes. All errors of jtok are `JtokError`s and built-in errors at the
# same time, so `except ValueError` works as well.

# %%
def refused(call):
    """Prints the error of a call, and fails where there is none."""
    try:
        call()
    except jtok.errors.JtokError as error:
        print(f"{type(error).__name__}: {error}\n")
    else:
        raise RuntimeError("this should have been refused")


refused(lambda: generate(lm, [[1, 2], []]))
refused(lambda: generate(lm, [lm.config.vocab_size]))
refused(lambda: generate(lm, PROMPTS[0], temperature=-1.0))
refused(lambda: generate(lm, PROMPTS, seed=[1, 2]))
refused(lambda: generate(lm, PROMPTS[0], max_new_tokens=0))

# %%
paths = [(0,), (1, 0)]  # there is no (1,)
small = np.zeros((10, 8), np.int32)  # ten tokens only

refused(lambda: jtok.models.load("no/such/folder"))
refused(lambda: jtok.ops.Tree.from_paths(paths))
refused(lambda: token_recycling(width=0))
refused(lambda: generate(lm, [1], drafter=token_recycling(), drafter_state=small))
refused(lambda: generate(lm, [1], drafter_state=small))

# %% [markdown]
# ## Where to go on
#
# - `help(jtok.decode.generate)` has every option: stop ids, budgets and seeds for each
#   row, `sync_every` to look in between.
# - `help(jtok.decode.token_recycling)`: other widths and trees, a table for each row,
#   learning from prompts, giving up where drafts do not pay.
# - `help(jtok.decode.Drafter)` is the contract for a drafter of your own: three
#   functions. Whatever it proposes, it cannot change what is emitted.
# - `python -m experiments.run token_recycling` in a checkout measures the paper's
#   claims on this machine and writes a report with pictures.
