"""The two small networks of `dynamic_tokenization`, trained on the frozen model's loss.

One corrects the mean of a token's pieces (tokenkit's way) and trains on the next
original piece at surviving boundaries: its rows are read. One predicts rows from the
pieces alone (ZeTT's way), is first taught that a token of one piece has that piece's
row, and then trains on that loss and on ZeTT's own, the next token of the merged text
among all tokens of the batch: its rows are read and written.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cache import cached
from jtok import embed, models, text, train
from jtok.errors import check
from jtok.models import storage
from jtok.ops import cross_entropy

RESIDUAL, ZETT = "network", "ZeTT network"
_SCALERS = ("in_rescaler", "out_rescaler", "in_scaler", "scaler", "out_scaler")


class Setting(NamedTuple):
    """The frozen model, what may merge, and ids of texts."""

    model: models.Model
    rule: text.MergeRule
    pad_id: int
    train: np.ndarray
    held_out: np.ndarray

    @property
    def source(self) -> jax.Array:
        """Input rows of the model."""
        return self.model.params["embed"]["tokens"]


def pieces_of(config: Any, ids: np.ndarray, rng: np.random.Generator) -> list[Any]:
    """A batch: rows of text, each from a place of its own."""
    most = len(ids) - config.length
    check(most > 0, "length", config.length, f"below the {len(ids)} tokens of the text")
    starts = rng.integers(0, most, config.rows)
    return [ids[s : s + config.length].astype(np.int32) for s in starts]


def next_pieces(
    rows: list[np.ndarray], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each token the piece that follows it, and where that stands; -1 for none."""
    after = np.full_like(starts, -1)
    after[:, :-1] = starts[:, 1:]
    pieces = np.stack(rows)
    return np.take_along_axis(pieces, np.maximum(after, 0), axis=1), after


def trained_makers(
    config: Any, setting: Setting, corpus: str, seed: int, report: Any
) -> dict[str, embed.RowMaker]:
    """Makers of rows, trained here or found in the cache: one network a seed, and for
    the first seed the ZeTT network, whose steps take several times as long."""
    kinds = (RESIDUAL, ZETT) if seed == config.seeds[0] else (RESIDUAL,)
    return {
        kind: _trained(kind, config, setting, corpus, seed, report) for kind in kinds
    }


def _trained(
    kind: str, config: Any, setting: Setting, corpus: str, seed: int, report: Any
) -> embed.RowMaker:
    names = (
        "documents", "rows", "length", "boundary", "pieces", "intermediate", "layers",
        "steps", "warmup", "learning_rate", "most_merges", "identity_steps", "tiny",
    )  # fmt: skip
    key = {name: getattr(config, name) for name in names}
    key |= {"seed": seed, "corpus": corpus, "kind": kind, "written": kind == ZETT}
    fill = functools.partial(_train, kind, config, setting, seed)
    folder = cached("dynamic_tokenization", key, fill)
    report.artifact(f"{kind}, seed {seed}", folder.name)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        report.metric(network=kind, seed=seed, **json.loads(line))
    network = _fresh(kind, config, setting, seed)
    leaves, tree = jax.tree.flatten(network.params)
    with storage.TensorFiles.open(folder) as tensors:
        read = [jnp.asarray(tensors.read(f"{i:04}")) for i in range(len(leaves))]
    return _maker(setting, network.replace(params=jax.tree.unflatten(tree, read)))


def _fresh(kind: str, config: Any, setting: Setting, seed: int) -> Any:
    width, key = setting.model.config.width, jax.random.key(seed)
    if kind == RESIDUAL:
        sizes = embed.PieceMixerConfig(
            row_width=width, hidden=width, intermediate=config.intermediate,
            layers=config.layers, alpha=8.0, max_pieces=config.pieces, pooling="mean",
            attention_heads=2,
        )  # fmt: skip
        mixer = embed.init_residual_network(sizes, key)
        return embed.fit_residual_rescalers(mixer, setting.source[:, None])
    network = embed.init_hypernetwork(
        embed.HypernetworkConfig(
            row_width=width, source_size=setting.source.shape[0],
            pad_id=setting.pad_id, hidden=width, intermediate=config.intermediate,
            heads=2, layers=config.layers, maxlen=config.pieces,
        ),
        key,
    )  # fmt: skip
    anchors = np.full(
        (min(2048, setting.source.shape[0]), config.pieces), setting.pad_id
    )
    anchors[:, 0] = np.arange(len(anchors))
    return embed.fit_rescalers(network, setting.source, anchors.astype(np.int32))


def _maker(setting: Setting, network: Any) -> embed.RowMaker:
    if isinstance(network, embed.Hypernetwork):
        return embed.network_rows(network, setting.source)
    return embed.residual_rows(network, setting.source, pad_id=setting.pad_id)


def _train(kind: str, config: Any, setting: Setting, seed: int, folder: Path) -> None:
    """Fills the cached folder; called again after a kill, with what was there."""
    network = _fresh(kind, config, setting, seed)
    free = {k: v for k, v in network.params.items() if k not in _SCALERS}
    still = {k: v for k, v in network.params.items() if k in _SCALERS}
    key = jax.random.key(seed)
    if kind == ZETT:
        first = train.fit(
            embed.identity_loss(network), free,
            frozen={"scalers": still, "source": setting.source, "model": None},
            optimizer=embed.network_optimizer(config.learning_rate / 2),
            steps=config.identity_steps,
            data=lambda step: {"ids": _some_ids(setting, seed, step)}, key=key,
            folder=folder / "identity", save_every=1000, keep=1,
        )  # fmt: skip
        free = first.trainable
    rate = train.schedule(
        "cosine", peak=config.learning_rate, steps=config.steps, warmup=config.warmup
    )
    result = train.fit(
        _loss(kind, setting, network), free,
        frozen={"scalers": still, "source": setting.source,
                "model": setting.model.params},
        optimizer=train.adamw(rate, weight_decay=0.01), steps=config.steps,
        data=lambda step: _training_batch(config, setting, seed, step),
        key=key, folder=folder / "training", save_every=100, keep=1,
        metrics_file=folder / "metrics.jsonl",
    )  # fmt: skip
    whole = dict.fromkeys(network.params) | {**result.trainable, **still}
    leaves = jax.tree.leaves(whole)
    storage.write_tensors(
        folder, {f"{i:04}": np.asarray(x) for i, x in enumerate(leaves)}
    )


def _some_ids(setting: Setting, seed: int, step: int) -> np.ndarray:
    rng = np.random.default_rng([seed, step, 7])
    return rng.integers(0, setting.rule.tokenizer.size, 512).astype(np.int32)


def _training_batch(
    config: Any, setting: Setting, seed: int, step: int
) -> dict[str, np.ndarray]:
    """Merged rows as numbers: where each token's row is, and the piece that follows."""
    rng = np.random.default_rng([seed, step])
    rows = pieces_of(config, setting.train, rng)
    merges = None if step % 4 == 3 else int(rng.integers(5, config.most_merges + 1))
    batch = text.merge_batch(setting.rule, rows, merges)
    made = embed.dynamic_inputs(
        batch, setting.rule.tokenizer, setting.source,
        lambda forms: jnp.zeros((len(forms), setting.source.shape[1])),
        pad_id=setting.pad_id, maxlen=config.pieces, length_multiple=config.length,
    )  # fmt: skip
    targets, after = next_pieces(rows, made.starts)
    forms = np.full((config.rows * config.length // 2, config.pieces), setting.pad_id)
    own = text.surface_forms(
        setting.rule.tokenizer, list(batch.merged), maxlen=config.pieces,
        pad_id=setting.pad_id,
    ).ids  # fmt: skip
    forms[: len(own)] = own
    ids = {"ids": made.ids, "targets": targets, "after": after}
    return {**ids, "forms": forms.astype(np.int32)}


def _loss(kind: str, setting: Setting, network: Any) -> Callable[..., Any]:
    """Cross-entropy of the next piece at the boundaries, through the frozen model."""
    shell = dataclasses.replace(setting.model, params=None)
    size = setting.rule.tokenizer.size
    written = None
    if kind == ZETT:
        written = embed.transfer_loss(network, setting.model, chunk=None)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        model = dataclasses.replace(shell, params=frozen["model"])
        source = model.params["embed"]["tokens"]
        whole = network.replace(params={**trainable, **frozen["scalers"]})
        made, ids = _maker(setting, whole)(batch["forms"]), batch["ids"]
        new = made[jnp.maximum(ids - size, 0)]
        old = source[jnp.clip(ids, 0, source.shape[0] - 1)]
        vectors = jnp.where((ids >= size)[..., None], new, old)
        hidden = model(vectors, mask=ids >= 0, logits="none").hidden
        weight, bias = model.unembedding()
        nats = cross_entropy(hidden, weight, batch["targets"], bias=bias)
        counts = batch["after"] >= 0
        loss = jnp.sum(nats * counts) / jnp.sum(counts)
        if written is None:
            return loss, ({}, state)
        more, _ = written(trainable, frozen, None, _as_written(setting, batch), key)
        return loss + more, ({}, state)

    return loss_fn


def _as_written(setting: Setting, batch: Any) -> dict[str, jax.Array]:
    """The batch over all its tokens, the base's first, as ZeTT's loss takes it."""
    tokenizer, pad = setting.rule.tokenizer, setting.pad_id
    size, pieces = tokenizer.size, batch["forms"].shape[1]
    single = jnp.full((size, pieces), pad, jnp.int32)
    single = single.at[:, 0].set(jnp.arange(size))
    made = batch["forms"]
    special = np.full(size + made.shape[0], -1, np.int32)
    own = sorted(tokenizer.special_ids)
    special[own] = own
    used = jnp.concatenate([jnp.ones(size, bool), made[:, 0] != pad])
    return {
        "forms": jnp.concatenate([single, made]), "special": jnp.asarray(special),
        "used": used, "tokens": jnp.maximum(batch["ids"], 0), "mask": batch["ids"] >= 0,
    }  # fmt: skip
