"""Models of `experiments.token_compression_survey`: connectors to train, and LLaVA."""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scenes import SceneConfig
from jtok import models, nn
from jtok.compress import Budget, attention_scores, compress, text_raters
from jtok.errors import ArgumentError

__all__ = ["ask_llava", "inside", "untrained"]


def untrained(scene: SceneConfig) -> list[dict[str, Any]]:
    """What the methods with parameters would add at the sizes of the scenes' models.

    Args:
      scene: sizes.

    Returns:
      Rows of a table; nothing of it is trained.
    """
    width, side = scene.width, scene.grid
    few = scene.tokens // 4
    grid = jax.ShapeDtypeStruct((1, side, side, width), jnp.float32)
    flat = jax.ShapeDtypeStruct((1, 1, 1, scene.tokens, width), jnp.float32)
    line = jax.ShapeDtypeStruct((1, scene.tokens, width), jnp.float32)
    head = width // scene.heads
    perceiver = nn.PerceiverConfig(
        width=width, layers=2, heads=scene.heads, head_dim=head, latents=few
    )
    queries = nn.QFormerConfig(
        queries=few, width=width, layers=2, heads=scene.heads, mlp_width=4 * width,
        image_width=width,
    )  # fmt: skip
    rows = []
    for name, family, module, x in (
        ("internvl (unshuffle)", "transformation", nn.UnshuffleConnector(width), grid),
        ("mobilevlm", "transformation", nn.PoolingConnector(width), grid),
        ("perceiver, 2 layers", "query", nn.PerceiverResampler(perceiver), flat),
        ("qformer, 2 layers", "query", nn.QFormer(queries), line),
    ):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        rows.append(
            {"method": name, "family": family, "tokens": few, "parameters": count}
        )
    return rows


# Inside a decoder ------------------------


def inside(
    lm: Any, x: Any, positions: Any, tokens: Any, asked: Any, *, first: int, layer: int,
    name: str, budget: int,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """Lets a method act between two layers: physically fewer rows behind it.

    Args:
      lm: the decoder.
      x: `[batch, seq, dim]` the vectors of a prompt.
      positions: `[batch, seq]` of them; those that stay keep theirs.
      tokens: `[batch, count, dim]` the visual ones, which stand from `first` on.
      asked: `[batch, words, dim]` those of the question, the last of the prompt.
      first: place of the first visual token.
      layer: the first decoder layer with fewer rows.
      name: "fastv" or "sparsevlm".
      budget: visual tokens that are left.

    Returns:
      Logits of the last row `[batch, vocab]`, and what was kept.
    """
    below, above = _halves(lm, layer)
    taps = (("query", layer - 1), ("key", layer - 1), ("resid_post", layer - 1))
    out = below(x, positions=positions, taps=taps, logits="none")
    query, key, x = (out.taps[tap] for tap in taps)
    batch, seq = positions.shape
    sight = slice(first, first + tokens.shape[1])
    options: dict[str, Any] = {}
    of: Any = "last"
    if name == "sparsevlm":
        options["raters"] = text_raters(tokens, asked).rates
        words = jnp.arange(seq - asked.shape[1], seq, dtype=jnp.int32)
        of = jnp.broadcast_to(words, (batch, words.shape[0]))
    attn = attention_scores(query, key, of=of, causal=True)[..., sight]
    where = positions[:, sight, None].astype(jnp.float32)
    found = compress(
        x[:, sight], name, budget=budget, attn=attn, position=where, **options
    )
    around = lambda whole, some: jnp.concatenate(
        [whole[:, : sight.start], some, whole[:, sight.stop :]], axis=1
    )
    kept = jnp.round(found.position[..., 0]).astype(positions.dtype)
    mask = around(jnp.ones((batch, seq), bool), found.valid)
    logits = above(
        around(x, found.tokens), positions=around(positions, kept), mask=mask,
        logits="last",
    ).logits[:, 0]  # fmt: skip
    return logits, found


def _halves(lm: Any, layer: int) -> tuple[Any, Any]:
    """The decoder's layers below one, and from that one on."""
    layers = lm.params["layers"]
    of = lambda some: lm.replace(
        params={**lm.params, "layers": some},
        config=dataclasses.replace(lm.config, num_layers=len(some)),
    )
    return of(layers[:layer]), of(layers[layer:])


# LLaVA ------------------------


def ask_llava(config: Any, cases: Any, report: Any) -> tuple[Any, Any, Any]:
    """Asks a LLaVA yes-or-no questions with fewer and fewer visual tokens.

    Args:
      config: the experiment's: JSON lines as POPE has them (`image`, `text`, `label`)
        in the file `questions`, their pictures in the folder `images`.
      cases: what is compared.
      report: where the model and the data are named.

    Returns:
      Rows with all tokens, rows by method and budget, one a question, and the
      decoder's configuration.
    """
    lines = Path(config.questions).read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines if line.strip()][: config.scenes]
    report.data(config.questions, Path(config.questions))
    model = models.load(config.model)
    report.artifact("model", config.model)
    lm = models.Model(model.params, model.config.text, vocabulary=model.vocabulary)
    whole: list[dict[str, Any]] = []
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for item in report.progress(asked, "questions"):
        seen = _seen(model, Path(config.images) / item["image"])
        row, by_case = _one_question(config, cases, lm, seen, item)
        whole.append(row)
        for key, each in by_case.items():
            found.setdefault(key, []).append(each)
    return whole, found, lm.config


def _one_question(
    config: Any, cases: Any, lm: Any, seen: dict[str, Any], item: dict[str, str]
) -> tuple[dict[str, Any], dict[tuple[str, int], dict[str, Any]]]:
    text, wanted = item["text"], item["label"].strip().lower() == "yes"
    row = lambda logits: {"accuracy": float(_yes(lm, logits) == wanted)}
    whole = _clocked(lambda: _read(lm, seen["tokens"], text), row)
    found = {}
    for case in cases:
        for share in config.keep:
            budget = Budget(keep=share).of(seen["tokens"].shape[1])
            act = functools.partial(_asked, lm, config, case, budget, seen, text)
            try:
                found[case.label, budget] = _clocked(act, row)
            except ArgumentError:  # a budget that the grid does not give
                continue
    return whole, found


def _clocked(act: Any, row: Any) -> dict[str, Any]:
    start = time.perf_counter()
    logits, *rest = jax.block_until_ready(act())
    milliseconds = 1000 * (time.perf_counter() - start)
    out = row(logits) | {"ms": milliseconds, "rows": 0}
    if rest:
        out |= {"rows": int(rest[0]), "gathered": row(rest[1])["accuracy"]}
    return out


def _asked(lm: Any, config: Any, case: Any, budget: int, seen: Any, text: str) -> Any:
    """Logits, rows left, and logits with gathered positions."""
    if case.inside:
        x, at, before, words = _prompt(lm, seen["tokens"], text)
        logits, found = inside(
            lm, x, at, seen["tokens"], words, first=before, layer=config.layer,
            name=case.method.name, budget=budget,
        )  # fmt: skip
        return logits, jnp.sum(found.valid), logits
    count = seen["tokens"].shape[1]
    side = round(count**0.5)
    options: dict[str, Any] = {}
    if case.attn:
        options["attn"] = seen[case.attn]
    if "key" in case.method.takes():
        options["key"] = jax.random.key(len(text))
    keys = seen["wide_keys" if case.attn == "wide" else "keys"]
    found = compress(
        seen["tokens"], case.method, budget=budget, keys=keys, grid=(1, side, side),
        **options,
    )  # fmt: skip
    rows = int(jnp.sum(found.valid))
    at = jnp.round(found.position[:, :rows, 0]).astype(jnp.int32)
    tokens = found.tokens[:, :rows]
    plain = _read(lm, tokens, text)[0]
    return plain, jnp.int32(rows), _read(lm, tokens, text, at, count)[0]


def _prompt(lm: Any, tokens: Any, text: str) -> tuple[Any, Any, int, Any]:
    """Vectors, positions, what stands before the image, vectors of the question."""
    encode, rows = lm.vocabulary.encode, lm.params["embed"]["tokens"]
    at = lambda ids: rows[jnp.asarray(ids, jnp.int32)][None]
    before = at(encode("USER: "))
    after = at(encode(f"\n{text}\nAnswer the question using a single word. ASSISTANT:"))
    x = jnp.concatenate([before, tokens.astype(rows.dtype), after], axis=1)
    return x, jnp.arange(x.shape[1], dtype=jnp.int32)[None], before.shape[1], after


def _read(
    lm: Any, tokens: Any, text: str, places: Any = None, count: int = 0
) -> tuple[Any]:
    """Logits of the answer's first token; `places` of `count` stay where they were."""
    x, at, before, after = _prompt(lm, tokens, text)
    if places is not None:
        behind = at[:, : after.shape[1]] + before + count
        at = jnp.concatenate([at[:, :before], before + places, behind], axis=1)
    return (lm(x, positions=at, logits="last").logits[:, 0],)


def _yes(lm: Any, logits: Any) -> bool:
    """Whether "Yes" is likelier than "No" as the first word of the answer."""
    yes, no = (int(lm.vocabulary.encode(word)[-1]) for word in ("Yes", "No"))
    return bool(logits[0, yes] > logits[0, no])


def _seen(model: Any, path: Path) -> dict[str, Any]:
    """Vectors of a picture for the decoder, and the tower's keys and attention."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels = model.processor(images=[np.asarray(picture.convert("RGB"))])["images"]
    tower = models.vision_tower(model)
    last = model.config.num_run - 1
    taps = (("query", last), ("key", last))
    read = tower(pixels, taps=taps, logits="none").taps
    query, key = (read[tap] for tap in taps)
    wide = lambda x: x.reshape(*x.shape[:2], 1, -1)
    return {
        "tokens": models.image_features(model, pixels).tokens,
        "keys": jnp.mean(key, axis=2)[:, 1:],
        "wide_keys": wide(key)[:, 1:, 0],
        "class": attention_scores(query, key, of="first")[..., 1:],
        "mean": attention_scores(query, key, of="mean")[..., 1:],
        "wide": attention_scores(wide(query), wide(key), of="first")[..., 1:],
    }
