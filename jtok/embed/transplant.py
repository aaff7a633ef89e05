"""A model with another vocabulary: rows, ids and tokenizer changed together."""

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok import models
from jtok.embed.init import EmbeddingInit, Report, rows_of
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    VocabMismatchError,
    check,
)
from jtok.models import GenerationConfig, Model, storage
from jtok.models.checkpoint import config_from, place_params
from jtok.models.families import FAMILIES
from jtok.models.fields import read_object
from jtok.text import Vocabulary
from jtok.text.overlap import ROLES, overlap

__all__ = ["restore", "transplant", "transplant_record"]

RECORD = "jtok_transplant"  # in the saved config.json
# What is downloaded of a hub repository for its tokenizer alone.
_PATTERNS = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja")
_NEVER = -1e4  # bias of ids that no token has


def transplant(
    model: Model,
    target: Any,
    method: EmbeddingInit,
    *,
    key: jax.Array | None = None,
    pad_to_multiple_of: int = 1,
    on_report: Callable[[Report], None] | None = None,
) -> Model:
    """Gives a model another vocabulary.

    Rows of tokens that both vocabularies have are kept bit for bit; `method` makes the
    others. The ids of special tokens in the configurations become those of the new
    tokenizer, whose chat template and options come along. What stands behind the rows
    is not trained: arithmetic suffers where numbers are cut differently, and a warning
    says so. The source's tokenizer is named by its hash in the configuration.

    Args:
      model: with its vocabulary.
      target: a `Vocabulary`, a tokenizer file or folder, a hub id, or a `Model`, whose
        vocabulary and ids of special tokens are taken.
      method: what makes new rows, such as `omp(donor=...)`.
      key: typed PRNG key for methods that draw; None is key 0.
      pad_to_multiple_of: number of rows is the next multiple. Padding has zeros as
        input rows and the mean row as output rows, which is never near the top; of a
        tied model the mean row.
      on_report: called with the `Report`.

    Returns:
      `Model`, ready for `jtok.models.save`.

    Raises:
      ArgumentError: a model without a vocabulary or with extra rows,
        `pad_to_multiple_of` below 1, or a model that needs a mask token and a target
        without one; what `method` refuses.
      ArgumentTypeError: another kind of target.
      MissingFileError: there is no tokenizer at `target`.

    Warns:
      UserWarning: the tokenizers cut numbers differently.

    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607. Differs: the generation
      configuration follows, rows may be padded, a way back is kept.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> wider = transplant(model, tiny_vocabulary(284), subword())
      >>> wider.config.vocab_size, wider.vocabulary.size
      (284, 284)
    """
    good = pad_to_multiple_of >= 1
    check(good, "pad_to_multiple_of", pad_to_multiple_of, "at least 1")
    if "extra" in model.params["embed"]:
        raise ArgumentError(
            "model: got one with extra rows of its embedding (mask tokens); detach "
            "them first."
        )
    rows = rows_of(model)
    new = _resolved(target)
    config = _new_config(model, new, None, pad_to_multiple_of)  # refuses early
    key = jax.random.key(0) if key is None else key
    made_in, made_out, report = method(new.vocabulary, rows, key)
    for warning in report.warnings:
        warnings.warn(warning, stacklevel=2)
    if on_report is not None:
        on_report(report)
    config = _new_config(model, new, report, pad_to_multiple_of)
    params = _new_params(model, made_in, made_out, report, config.vocab_size)
    return Model(
        place_params(params, config),
        config,
        new.vocabulary,
        model.processor,
        _new_generation(model.generation_config, new),
    )


class _Target(NamedTuple):
    vocabulary: Vocabulary
    ids: Mapping[str, int]  # of special tokens, by role
    ends: tuple[int, ...]  # every id that ends a text


def _resolved(target: Any) -> _Target:
    generation = None
    if isinstance(target, Model):
        vocabulary, generation = target.vocabulary, target.generation_config
        if vocabulary is None:
            raise ArgumentError("target: got a model without a vocabulary.")
    elif isinstance(target, Vocabulary):
        vocabulary = target
    elif isinstance(target, str | os.PathLike):
        vocabulary, generation = _read(target)
    else:
        raise ArgumentTypeError(
            f"target: got {type(target).__name__}, expected a Vocabulary, a path, a "
            "hub id or a Model."
        )
    ids = {role: id_ for role, id_ in vocabulary.special.items() if role in ROLES}
    ends: tuple[int, ...] = (ids["eos"],) if "eos" in ids else ()
    if generation is not None:
        found = [id_ for id_ in generation.eos_token_ids if id_ < vocabulary.size]
        ends = tuple(dict.fromkeys([*ends, *found]))
    return _Target(vocabulary, ids, ends)


def _read(target: str | os.PathLike[str]) -> tuple[Vocabulary, GenerationConfig | None]:
    place = pathlib.Path(target).expanduser()
    if not place.is_file():
        place = storage.resolve(target, patterns=_PATTERNS)
    vocabulary = Vocabulary.load(place)
    file = place / "generation_config.json"
    if not file.is_file():
        return vocabulary, None
    return vocabulary, GenerationConfig.from_dict(read_object(file))


def _fields(model: Model) -> dict[str, Any]:
    """What the model's `config.json` says, or would say."""
    found = json.loads(model.config.source)
    if found:
        return found
    family = model.config.family
    return {**FAMILIES[family].write(model.config), "model_type": family}


def _new_config(
    model: Model, new: _Target, report: Report | None, multiple: int
) -> Any:
    fields = _fields(model)
    size = -(-new.vocabulary.size // multiple) * multiple
    needs_mask = getattr(model.config, "mask_token_id", None) is not None
    if needs_mask and "mask" not in new.ids:
        raise ArgumentError(
            "target: got a vocabulary without a mask token, which this model fills in."
        )
    fields["vocab_size"] = size
    for role in ROLES:
        name = f"{role}_token_id"
        if name in fields or (role in ("bos", "eos", "pad") and role in new.ids):
            fields[name] = new.ids.get(role)
    if len(new.ends) > 1:
        fields["eos_token_id"] = list(new.ends)
    if report is not None:
        fields[RECORD] = report.summary()
    return config_from(fields, dtype=model.config.dtype)


def _new_generation(
    old: GenerationConfig | None, new: _Target
) -> GenerationConfig | None:
    if old is None:
        return None
    source = old.source
    if source is not None:
        fields = json.loads(source)
        single = new.ends[0] if len(new.ends) == 1 else list(new.ends)
        fields["eos_token_id"] = single if new.ends else None
        for role in ("bos", "pad"):
            fields[f"{role}_token_id"] = new.ids.get(role)
        source = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    return GenerationConfig(new.ends, new.ids.get("bos"), new.ids.get("pad"), source)


def _new_params(
    model: Model, made_in: Any, made_out: Any, report: Report, size: int
) -> Any:
    """The parameters with padded matrices; a bias goes with its tokens."""
    tied = made_out is None
    embed = {**model.params["embed"], "tokens": _padded(made_in, size, mean=tied)}
    params = {**model.params, "embed": embed}
    if "unembed" in params and not tied:
        head = {**params["unembed"], "kernel": _padded(made_out, size, mean=True)}
        if head.get("bias") is not None:
            head["bias"] = _moved_bias(head["bias"], report, size)
        params["unembed"] = head
    return params


def _padded(rows: jax.Array, size: int, *, mean: bool) -> jax.Array:
    count = size - rows.shape[0]
    if not count:
        return rows
    fill = rows.astype(jnp.float32).mean(axis=0, keepdims=True) * float(mean)
    fill = jnp.broadcast_to(fill.astype(rows.dtype), (count, rows.shape[1]))
    return jnp.concatenate([rows, fill])


def _moved_bias(bias: jax.Array, report: Report, size: int) -> jax.Array:
    """Copied where rows are, the mean for new tokens, far below all for padding."""
    taken = report.copied_from
    middle = bias.astype(jnp.float32).mean().astype(bias.dtype)
    moved = jnp.where(taken >= 0, bias[np.maximum(taken, 0)], middle)
    fill = jnp.full(size - len(taken), _NEVER, bias.dtype)
    return jnp.concatenate([moved, fill])


def transplant_record(model: Model) -> dict[str, Any] | None:
    """What a transplanted model's configuration says of the transplant.

    Args:
      model: any, also one that was saved and loaded.

    Returns:
      `Report.summary()`: method, hashes of both vocabularies, counts of rows; None of a
      model that was not transplanted.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> made = transplant(model, tiny_vocabulary(284), zero())
      >>> transplant_record(made)["rows"]["input"]
      {'copied': 279, 'role': 1, 'made': 4}
    """
    return json.loads(model.config.source).get(RECORD)


def restore(model: Model, base: Any, *, keep_shared: bool = False) -> Model:
    """Gives a transplanted model its first vocabulary back.

    What was trained since behind the embedding stays; rows, ids and tokenizer are
    those of the model that the transplant started from.

    Args:
      model: what `transplant` returned, trained since or loaded again.
      base: the model that was transplanted, its folder or hub id.
      keep_shared: take the rows of shared tokens from `model`, with what they learnt.

    Returns:
      `Model`.

    Raises:
      ArgumentError: `model` was not transplanted, or the widths differ.
      VocabMismatchError: it did not come from a model with `base`'s vocabulary.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> back = restore(transplant(model, tiny_vocabulary(284), zero()), model)
      >>> back.vocabulary == model.vocabulary
      True
    """
    if not isinstance(base, Model):
        base = models.load(base, dtype=model.config.dtype)
    record = transplant_record(model)
    if record is None:
        raise ArgumentError("model: got one that was not transplanted.")
    rows = rows_of(base)
    if base.vocabulary.hash != record["source_vocabulary"]:
        raise VocabMismatchError(
            f"base: its vocabulary is {base.vocabulary.hash[:12]}, the model came from "
            f"one with {record['source_vocabulary'][:12]}."
        )
    widths = (base.config.width, model.config.width)
    check(widths[0] == widths[1], "base", f"width {widths[0]}", f"{widths[1]}")
    params = {**model.params, "embed": dict(base.params["embed"])}
    if "unembed" in base.params:
        params["unembed"] = dict(base.params["unembed"])
    if keep_shared:
        shared = overlap(base.vocabulary, model.vocabulary)
        there = shared.source_ids < rows.input.shape[0]
        old, new = shared.source_ids[there], shared.target_ids[there]
        for part, name in (("embed", "tokens"), ("unembed", "kernel")):
            if part in params:
                learnt = model.params[part][name][new]
                params[part][name] = params[part][name].at[old].set(learnt)
    fields = {**_fields(model), **_vocabulary_fields(_fields(base))}
    fields.pop(RECORD, None)
    config = config_from(fields, dtype=model.config.dtype)
    return dataclasses.replace(base, params=place_params(params, config), config=config)


def _vocabulary_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ["vocab_size", *(f"{role}_token_id" for role in ROLES)]
    return {name: fields[name] for name in names if name in fields}
