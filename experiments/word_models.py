"""Word-pooled models and models of units beside them: texts, training, scores."""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import provenance
from experiments.cache import cached
from experiments.corpus import standard_library
from experiments.web_text import documents
from jtok import embed, testing, text, train
from jtok.errors import check
from jtok.models import storage

__all__ = ["Data", "Scored", "read_data", "score_words", "trained", "words_per_second"]

_BATCH = 16  # windows scored at a time
_AT_ONCE = 4  # words that share a context of units


class Text(NamedTuple):
    """Words, as pieces of units and as a stream of units with an end after each."""

    words: list[str]
    pieces: text.Units
    streams: dict[str, tuple[np.ndarray, np.ndarray]]  # units, and their words


class Data(NamedTuple):
    """What is trained on and what is held out; `whole` is both."""

    train: Text
    held_out: Text
    whole: Text
    alphabets: dict[str, text.Alphabet]
    sha256: str


class Scored(NamedTuple):
    """Nats and hits of held-out words; nan where one was not scored whole."""

    nats: np.ndarray
    right: np.ndarray


# Data ------------------------


def read_data(config: Any) -> Data:
    train_texts, held_texts, sha = _texts(config)
    spelled = [" ".join(train_texts), " ".join(held_texts)]
    alphabets = {"byte": text.byte_alphabet()}
    alphabets["char"] = text.char_alphabet(spelled[:1], unknown="unit")
    if config.tokenizer:
        patterns = ("*.json", "*.txt", "*.model")
        folder = storage.resolve(config.tokenizer, patterns=patterns)
        vocabulary = text.Vocabulary.load(folder)
        alphabets["subword"] = text.subword_alphabet(vocabulary)
    cut = lambda texts: [w for t in texts for w in text.split_words(t, clean="etok")]
    known, held = cut(train_texts)[: config.max_words], cut(held_texts)
    make = lambda words: _text(config, words, alphabets)
    return Data(make(known), make(held), make(known + held), alphabets, sha)


def _texts(config: Any) -> tuple[list[str], list[str], str]:
    if not config.data:
        corpus = standard_library()
        held = list(corpus.held_out_english)
        return list(corpus.train_english), held, corpus.sha256
    if config.data.startswith("text/"):
        path = testing.data(config.data)
        texts = [path.read_text(encoding="utf-8")]
    else:
        texts, size = [], 0
        for document in documents(config.data):
            texts.append(document)
            size += len(document) // 5
            if size > config.max_words * 10 / 9:
                break
    whole = "\n".join(texts)
    at = whole.rfind(" ", 0, len(whole) * 9 // 10)
    return [whole[:at]], [whole[at:]], provenance.sha256(whole.encode())


def _text(config: Any, words: list[str], alphabets: dict[str, text.Alphabet]) -> Text:
    pieces = text.units(words, alphabets[config.alphabet], config.units)
    streams = {}
    for kind in config.baselines:
        rows = [[*alphabets[kind].spell(word), 0] for word in words]
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        streams[kind] = np.array([u for row in rows for u in row], np.int32), owner
    return Text(words, pieces, streams)


# Models ------------------------


def _pooled(config: Any, data: Data, prefixes: int) -> embed.WordPooledConfig:
    return embed.WordPooledConfig(
        vocab_size=data.alphabets[config.alphabet].size, width=config.width,
        prefixes=prefixes, words=config.words, units=config.units,
        layers=config.layers, heads=config.heads, encoder_layers=config.parts,
        encoder_heads=config.heads, encoder_mlp=4 * config.width,
        decoder_layers=config.parts, decoder_heads=config.heads,
        dropout=config.dropout, unroll=True, dtype=config.dtype,
    )  # fmt: skip


def _units(config: Any, data: Data, kind: str) -> embed.UnitConfig:
    return embed.UnitConfig(
        vocab_size=data.alphabets[kind].size, width=config.width,
        length=config.words * config.unit_window, heads=config.heads,
        layers=config.layers + 2 * config.parts, dropout=config.dropout, unroll=True,
        dtype=config.dtype,
    )  # fmt: skip


def trained(config: Any, data: Data, name: str, seed: int, leaky: bool) -> Path:
    fixed = dataclasses.asdict(config)
    for field in ("seeds", "scored", "written", "prefixes", "baselines", "leaky"):
        del fixed[field]
    key = {**fixed, "model": name, "seed": seed, "leaky": leaky, "sha": data.sha256}
    code = [Path(embed.__file__).parent / f"word_{n}.py" for n in ("pooled", "packed")]
    key["code"] = provenance.sha256(code)
    key["start"] = "scaled to width"
    build = functools.partial(_build, config, data, name, seed, leaky)
    return cached("learn_your_tokens", key, build)


@functools.lru_cache
def _training(model: Any, rate: float, steps: int, warmup: int) -> tuple[Any, Any, Any]:
    """Loss, gradient and optimizer of a kind of model, compiled once for all seeds.

    Args:
      model: the model's configuration.
      rate: highest learning rate.
      steps: updates.
      warmup: updates of the rise.
    """
    pooled = isinstance(model, embed.WordPooledConfig)
    loss = embed.packed_loss(model) if pooled else embed.unit_loss(model)
    gradient = jax.jit(jax.grad(lambda p, b, k: loss(p, None, None, b, k)[0]))
    plan = train.schedule("cosine", peak=rate, steps=steps, warmup=warmup)
    return loss, gradient, embed.word_optimizer(plan)


def _parts(config: Any, model: Any) -> tuple[Any, Any, Any]:
    return _training(model, config.learning_rate, config.steps, config.warmup)


def _build(
    config: Any, data: Data, name: str, seed: int, leaky: bool, folder: Path
) -> None:
    kind, _, which = name.partition(" ")
    source = data.whole if leaky else data.train
    key, model = jax.random.key(seed), _model(config, data, name)
    if kind == "pooled":
        batch, alphabet = _packed_batches(config, source, model), config.alphabet
        params = jax.jit(embed.init_words, static_argnums=0)(model, key)
    else:
        batch = _unit_batches(config, source.streams[which][0], model)
        params, alphabet = (
            jax.jit(embed.init_units, static_argnums=0)(model, key),
            which,
        )
    loss, _, optimizer = _parts(config, model)
    params = _scaled_to_width(params)
    result = train.fit(
        loss, params, optimizer=optimizer, steps=config.steps,
        data=lambda step: batch(np.random.default_rng((seed, step))), key=key,
        folder=folder / "training", progress=False,
    )  # fmt: skip
    saved = embed.WordModel(
        params=result.trainable, config=model, alphabet=data.alphabets[alphabet]
    )
    embed.save_words(saved, folder / "model")
    nats = result.metrics["nats_per_word"]
    (folder / "training.json").write_text(json.dumps(nats.tolist()))


def _scaled_to_width(params: Any) -> Any:
    """Starts kernels at 1 / sqrt(inputs): at these widths 0.02 loses many updates."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = getattr(path[-1], "key", None)
        if name == "kernel" and path[0].key != "head":
            return leaf * (leaf.shape[-2] ** -0.5 / 0.02)
        return 10 * leaf if name in ("units", "bos") else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


def _model(config: Any, data: Data, name: str) -> Any:
    kind, _, which = name.partition(" ")
    if kind == "pooled":
        return _pooled(config, data, int(which))
    return _units(config, data, which)


def _packed_batches(config: Any, source: Text, model: Any) -> Any:
    """Random windows of words, packed into rows of one length."""
    ids, lengths, _ = source.pieces
    sizes = float(lengths.mean()) + model.prefixes
    room = int(config.words * sizes * config.slack)
    room = max(room, config.units + model.prefixes)
    check(len(ids) > config.words, "max_words", len(ids), f"over {config.words}")

    def batch(rng: np.random.Generator) -> Any:
        starts = rng.integers(0, len(ids) - config.words, config.batch)
        rows = starts[:, None] + np.arange(config.words)[None]
        # What does not fit is left out, at the end of its row.
        ends = np.cumsum(lengths[rows] + model.prefixes, axis=1)
        return embed.pack_words(
            model, ids[rows], lengths[rows], mask=ends <= room, length=room
        )

    return batch


def _unit_batches(config: Any, ids: np.ndarray, model: Any) -> Any:
    """Random windows of units, as long as the model's."""
    most = len(ids) - model.length - 1
    check(most > 0, "max_words", len(ids), f"over {model.length} units")

    def batch(rng: np.random.Generator) -> Any:
        starts = rng.integers(0, most, config.batch)
        return {"units": ids[starts[:, None] + np.arange(model.length + 1)[None]]}

    return batch


# Scores ------------------------


def score_words(
    config: Any, data: Data, model: Any, name: str, context: int | None
) -> Scored:
    """Scores of the held-out words that stand in the second half of a window."""
    half = config.words // 2
    pieces = data.held_out.pieces
    starts = np.arange(0, len(pieces.ids) - config.words + 1, half)[: config.scored]
    first = pieces.word[starts + half]
    # A word that two halves share is of the second.
    last = pieces.word[np.minimum(starts + config.words, len(pieces.ids) - 1)]
    size = len(data.held_out.words)
    nats, right = np.full(size, np.nan), np.ones(size, bool)
    if name.startswith("pooled"):
        rows = starts[:, None] + np.arange(config.words)[None]
        unit_nats, hit = _run_pooled(model, pieces.ids[rows], pieces.lengths[rows])
        unit_nats, hit = unit_nats[:, half - 1 :], hit[:, half - 1 :]
        owner = pieces.word[rows[:, half:]]
    else:
        unit_nats, hit, owner = _run_units(
            model, data.held_out.streams[name.split()[1]], first, last, context
        )
    use = owner >= 0
    _gather(nats, right, owner[use], unit_nats[use], hit[use])
    inner = np.arange(size)
    # The first word may be cut, and so is what the last window does not hold whole.
    whole = (inner > first[0]) & (inner < last[-1])
    whole &= np.isfinite(nats)
    return Scored(np.where(whole, nats, np.nan), right & whole)


def _gather(nats: Any, right: Any, owner: Any, values: Any, hit: Any) -> None:
    nats[np.unique(owner)] = 0.0
    np.add.at(nats, owner, values)
    np.logical_and.at(right, owner, hit)


def _batches(arrays: tuple[np.ndarray, ...]) -> Any:
    """Parts of one size; the last repeats its last row."""
    count = len(arrays[0])
    for at in range(0, count, _BATCH):
        rows = np.minimum(np.arange(at, at + _BATCH), count - 1)
        yield min(_BATCH, count - at), tuple(a[rows] for a in arrays)


def _run_pooled(model: Any, ids: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
    nats, right = [], []
    for real, (some, sizes) in _batches((ids, lengths)):
        packed = embed.pack_words(
            model.config, some, sizes, length=_room(model.config, lengths)
        )
        found = _POOLED(model.params, model.config, packed)
        nats.append(np.asarray(found.word_nats)[:real])
        right.append(np.asarray(found.right)[:real])
    return np.concatenate(nats), np.concatenate(right)


def _room(model: embed.WordPooledConfig, lengths: np.ndarray) -> int:
    """Slots of the longest row."""
    return int(np.max(lengths.sum(1)) + lengths.shape[1] * model.prefixes)


def _run_units(
    model: Any, stream: tuple[np.ndarray, np.ndarray], first: np.ndarray,
    last: np.ndarray, context: int | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Nats, hits and words of the units of words `first..last` of each window.

    With a context, few words at a time are read from so many units before them.
    """
    ids, owner = stream
    if context is not None:
        cut = [np.arange(a, b, _AT_ONCE) for a, b in zip(first, last, strict=True)]
        most = np.repeat(last, [len(part) for part in cut])
        first = np.concatenate(cut)
        last = np.minimum(first + _AT_ONCE, most)
    begin, end = np.searchsorted(owner, first), np.searchsorted(owner, last)
    length = model.config.length
    if context is not None:
        length = min(length, context + int(np.max(end - begin)))
    before = length if context is None else context
    start = np.maximum(np.maximum(end - length - 1, begin - before), 0)
    rows = start[:, None] + np.arange(length + 1)[None]
    inside = (rows >= begin[:, None]) & (rows < end[:, None])
    inside &= (start < begin)[:, None]  # else the first has nothing before it
    rows = np.minimum(rows, len(ids) - 1)
    nats, hit = [], []
    for real, (some,) in _batches((ids[rows],)):
        found = _UNITS(model.params, model.config, some)
        nats.append(np.asarray(found.nats)[:real])
        hit.append(np.asarray(found.right)[:real])
    words = np.where(inside, owner[rows], -1)[:, 1:]
    return np.concatenate(nats), np.concatenate(hit), words


_POOLED = jax.jit(embed.packed_scores, static_argnums=1)


_UNITS = jax.jit(embed.unit_scores, static_argnums=1)


def words_per_second(config: Any, data: Data, model: Any, name: str) -> float:
    """Words a second through loss and gradient, of batches as in training."""
    rng = np.random.default_rng(0)
    if name.startswith("pooled"):
        batch = _packed_batches(config, data.train, model.config)(rng)
        words = int(np.max(batch.words, axis=1).sum())
    else:
        ids = data.train.streams[name.split()[1]][0]
        batch = _unit_batches(config, ids, model.config)(rng)
        words = int((batch["units"][:, 1:] == 0).sum())
    batch = jax.tree.map(jnp.asarray, batch)
    gradient = _parts(config, model.config)[1]
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(gradient(model.params, batch, jax.random.key(0)))
        seconds.append(time.perf_counter() - start)
    return words / float(np.median(seconds[1:]))
