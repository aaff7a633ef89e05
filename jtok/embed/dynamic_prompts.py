"""Prompts of merged tokens that `jtok.decode.generate` goes on with."""

import jax.numpy as jnp
import numpy as np

from jtok.embed.dynamic import DynamicInputs
from jtok.errors import check
from jtok.models import Model, vector_ids, with_vectors

__all__ = ["dynamic_prompts"]


def dynamic_prompts(
    model: Model, inputs: DynamicInputs, *, own_ids: int = 0
) -> tuple[Model, list[np.ndarray]]:
    """Merged prompts as ids, and the model that reads them.

    Each different token of the batch gets one row beside the embedding, and prefill and
    the cache work as for any prompt, each row of the batch at its own length. What is
    generated comes from the model's own output rows: those of its vocabulary, of
    another (`with_vocabulary`), or of very many tokens (`candidate_target`, with the
    parameters of the model that comes back).

    Args:
      model: a decoder, its vocabulary being the one to generate from.
      inputs: of the prompts, see `dynamic_inputs`.
      own_ids: ids below this are read from the model's own embedding, in which they
        must mean the same; 0 takes no row from there.

    Returns:
      The model with the rows, and for each prompt `[tokens]` int32 ids.

    Raises:
      ArgumentError: vectors of another width, a model with vectors already, or
        `own_ids` outside of its vocabulary.

    Source: arXiv 2411.18553v1, section 3.3. Differs: what came before is cached, where
    the official code runs the whole text again for every token.

    Example:
      >>> from jtok.embed import dynamic_inputs, piece_mean_rows
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> from jtok.text import merge_batch, merge_rule
      >>> rule, model = merge_rule(tiny_vocabulary()), tiny_model(vocab_size=280)
      >>> batch = merge_batch(rule, [rule.tokenizer.encode("zz z")], 1)
      >>> rows = model.params["embed"]["tokens"]
      >>> made = dynamic_inputs(batch, rule.tokenizer, rows,
      ...     piece_mean_rows(rows, pad_id=0), pad_id=0)
      >>> reader, prompts = dynamic_prompts(model, made, own_ids=280)
      >>> [id_ >= 280 for id_ in prompts[0].tolist()]
      [True, False, False]
    """
    size = model.config.vocab_size
    check(0 <= own_ids <= size, "own_ids", own_ids, f"0 to {size}, the vocabulary")
    ids = np.asarray(inputs.ids)
    made = np.unique(ids[ids >= own_ids])
    if made.size == 0:
        return model, [row[row >= 0].astype(np.int32) for row in ids]
    first = {int(id_): place for place, id_ in reversed(list(enumerate(ids.flat)))}
    places = np.array([first[int(id_)] for id_ in made])
    rows = inputs.vectors.reshape(-1, inputs.vectors.shape[-1])[jnp.asarray(places)]
    slot = np.searchsorted(made, ids)
    new = np.where(
        ids >= own_ids, vector_ids(model.params, size).start + slot, ids
    ).astype(np.int32)
    prompts = [row[real] for row, real in zip(new, ids >= 0, strict=True)]
    return with_vectors(model, rows), prompts
