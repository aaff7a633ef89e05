"""A decoder without fixed token embeddings: a fresh random table for every sequence.

Nothing that the model knows is tied to a token id, so it must work out from the text
itself what each symbol does. The partial form gives each entry of the table a random
row with probability q, and its learned row otherwise.

Source: Huang et al. 2023, arXiv 2305.16349. Differs: chosen ids may keep a learned row.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, UInt32

from jtok.errors import ArgumentTypeError, check
from jtok.models import Model
from jtok.ops import GeneratedTable, generated_table

__all__ = [
    "LexinvariantConfig",
    "LexinvariantModel",
    "example_keys",
    "lexinvariant_from",
    "lexinvariant_table",
]

PyTree = Any
_SCALES = ("none", "rsqrt", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LexinvariantConfig:
    """What a lexinvariant model is made of, hashable.

    Attributes:
      model: configuration of the decoder whose layers it has.
      q: probability that an entry of a sequence's table is random; 1 is lexinvariant,
        0 an ordinary model whose input and output share one table.
      row_scale: spread of random rows.
      logit_scale: factor on the final states: "none", "rsqrt" (width ** -0.5), or
        "learned", which starts there.
      fixed_ids: ids that are never random, such as BOS; they have learned rows.
      excluded_ids: ids that get no probability, such as padding.
      previous_token: add a learned linear map of the previous token's row to the input.
    """

    model: Any
    q: float = 1.0
    row_scale: float = 1.0
    logit_scale: Literal["none", "rsqrt", "learned"] = "rsqrt"
    fixed_ids: tuple[int, ...] = ()
    excluded_ids: tuple[int, ...] = ()
    previous_token: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.q <= 1, "q", self.q, "a probability, 0 to 1")
        check(self.row_scale > 0, "row_scale", self.row_scale, "above 0")
        good = self.logit_scale in _SCALES
        check(good, "logit_scale", self.logit_scale, f"one of {', '.join(_SCALES)}")
        size = self.model.vocab_size
        for name in ("fixed_ids", "excluded_ids"):
            ids = getattr(self, name)
            good = all(0 <= i < size for i in ids) and len(set(ids)) == len(ids)
            check(good, name, ids, f"different ids in 0..{size - 1}")


@struct.dataclass
class LexinvariantModel:
    """Parameters of a lexinvariant model, and what they mean.

    Attributes:
      params: `body` (the decoder without its table) and, as the configuration asks:
        `learned` `[vocab, dim]` where q < 1, `fixed_rows` `[fixed, dim]`,
        `logit_scale`, `previous` `[dim, dim]`.
      config: static.
      vocabulary: the tokenizer, or None.
    """

    params: PyTree
    config: LexinvariantConfig = struct.field(pytree_node=False)
    vocabulary: Any = struct.field(pytree_node=False, default=None)

    @property
    def body(self) -> Model:
        """The decoder, to be run on vectors."""
        return Model(self.params["body"], self.config.model)


def lexinvariant_from(
    model: Model,
    *,
    key: jax.Array,
    q: float = 1.0,
    row_scale: float | None = None,
    logit_scale: Literal["none", "rsqrt", "learned"] = "rsqrt",
    fixed_ids: tuple[int, ...] = (),
    excluded_ids: tuple[int, ...] = (),
    previous_token: bool = False,
) -> LexinvariantModel:
    """Takes a decoder's layers and puts random tables in place of its embedding.

    Args:
      model: any causal `jtok.models.Model`; of its rows only those that stay learned
        are kept, and they serve input and output.
      key: typed key of the new parameters; consumed.
      q: see `LexinvariantConfig`.
      row_scale: spread of random rows; None is 1 or, where q < 1, the root mean square
        of the model's rows.
      logit_scale: see `LexinvariantConfig`.
      fixed_ids: see `LexinvariantConfig`.
      excluded_ids: see `LexinvariantConfig`.
      previous_token: see `LexinvariantConfig`; the map starts at random.

    Returns:
      `LexinvariantModel`.

    Raises:
      ArgumentError: a number or an id out of range, or a model that is not causal.
      ArgumentTypeError: no `Model`.

    Source: arXiv 2305.16349, sections 3 and 6.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> sorted(model.params)
      ['body']
    """
    if not isinstance(model, Model):
        kind = type(model).__name__
        raise ArgumentTypeError(f"model: got {kind}, expected a jtok.models.Model.")
    causal = getattr(model.config, "causal", True)
    check(causal, "model", "one that looks both ways", "a causal one")
    table = model.params["embed"]["tokens"]
    spread = 1.0
    if row_scale is not None:
        spread = row_scale
    elif q < 1:
        spread = float(jnp.sqrt(jnp.mean(jnp.square(table.astype(jnp.float32)))))
    config = LexinvariantConfig(
        model=model.config, q=q, row_scale=spread, logit_scale=logit_scale,
        fixed_ids=tuple(fixed_ids), excluded_ids=tuple(excluded_ids),
        previous_token=previous_token,
    )  # fmt: skip
    params = _parameters(config, model.params, key)
    return LexinvariantModel(params, config, model.vocabulary)


def _parameters(config: LexinvariantConfig, params: PyTree, key: jax.Array) -> PyTree:
    table, width = params["embed"]["tokens"], config.model.width
    body = {name: part for name, part in params.items() if name != "unembed"}
    body["embed"] = {n: x for n, x in params["embed"].items() if n != "tokens"}
    made: PyTree = {"body": body}
    first, second = jax.random.split(key)
    if config.q < 1:
        made["learned"] = table
    elif config.fixed_ids:
        rows = jax.random.normal(first, (len(config.fixed_ids), width), jnp.float32)
        made["fixed_rows"] = (config.row_scale * rows).astype(table.dtype)
    if config.logit_scale == "learned":
        made["logit_scale"] = jnp.float32(width**-0.5)
    if config.previous_token:
        linear = jax.random.normal(second, (width, width), jnp.float32) * width**-0.5
        made["previous"] = linear.astype(table.dtype)
    return made


def example_keys(
    key: jax.Array, examples: Int[Array, " batch"]
) -> UInt32[Array, "batch 2"]:
    """One key for the table of each sequence, whatever its place in the batch.

    Args:
      key: typed key of the step; it may be used for other examples again.
      examples: `[batch]` int32 index of each sequence among all of the step.

    Returns:
      `[batch, 2]` uint32 raw threefry keys.

    Source: arXiv 2305.16349, section 3. Differs: keyed, so that draws do not depend on
    the sharding.

    Example:
      >>> keys = example_keys(jax.random.key(0), jnp.array([3, 4]))
      >>> keys.shape
      (2, 2)
    """
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    typed = jax.random.wrap_key_data(words, impl="threefry2x32")
    one = lambda index: jax.random.key_data(jax.random.fold_in(typed, index))
    return jax.vmap(one)(examples)


def lexinvariant_table(
    model: LexinvariantModel, keys: UInt32[Array, "batch 2"]
) -> GeneratedTable:
    """The tables of a batch, for `jtok.ops.table_rows` and its neighbours.

    Args:
      model: a lexinvariant model.
      keys: `[batch, 2]` from `example_keys`.

    Returns:
      `GeneratedTable`.

    Source: arXiv 2305.16349, sections 3 and 6.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> table = lexinvariant_table(
      ...     model, example_keys(jax.random.key(1), jnp.arange(2)))
      >>> table.vocab_size
      96
    """
    config, params = model.config, model.params
    return generated_table(
        keys, config.model.vocab_size, config.model.width, q=config.q,
        scale=config.row_scale, learned=params.get("learned"),
        fixed_ids=config.fixed_ids, fixed_rows=params.get("fixed_rows"),
        excluded_ids=config.excluded_ids, dtype=config.model.dtype,
    )  # fmt: skip
