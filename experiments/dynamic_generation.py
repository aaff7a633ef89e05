"""What a model goes on with after a merged prompt, from three vocabularies."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dynamic_networks import Setting
from jtok import decode, embed, models, text
from jtok.ops import cross_entropy


def generations(
    config: Any, setting: Setting, make: embed.RowMaker
) -> list[dict[str, Any]]:
    """Prompts of held-out text, merged and not, continued by each vocabulary.

    The vocabularies are the base's own rows, the network's rows for the same tokens,
    and the base's tokens with those that further merges of the training text make, all
    in the network's rows. Texts are greedy; how good one is tells the base model, which
    reads the plain prompt and then the text.
    """
    tokenizer, source = setting.rule.tokenizer, setting.source
    plain = _prompts(config, setting)
    batch = text.merge_batch(setting.rule, plain, None)
    made = embed.dynamic_inputs(
        batch, tokenizer, source, make, pad_id=setting.pad_id, maxlen=config.pieces,
        side="left",
    )  # fmt: skip
    size = tokenizer.size
    own = list(tokenizer.token_bytes[:size])
    given = _rows(config, setting, make, own)
    longer, rows = _more_tokens(config, setting, make)
    kinds: dict[str, tuple[models.Model, list[Any]]] = {
        "base rows": (setting.model, own),
        "network's rows": (embed.with_vocabulary(setting.model, given), own),
        f"{len(longer):,} tokens": (embed.with_vocabulary(setting.model, rows), longer),
    }
    table = [_line(config, setting, "base rows, prompt as it is", setting.model,
                   plain, own, plain)]  # fmt: skip
    for name, (model, tokens) in kinds.items():
        keep = size if name == "base rows" else 0
        reader, prompts = embed.dynamic_prompts(model, made, own_ids=keep)
        table.append(_line(config, setting, name, reader, prompts, tokens, plain))
    return table


def _prompts(config: Any, setting: Setting) -> list[np.ndarray]:
    rng = np.random.default_rng(97)
    starts = rng.integers(0, len(setting.held_out) - config.length, config.prompts)
    return [setting.held_out[s : s + config.length].astype(np.int32) for s in starts]


def _rows(
    config: Any, setting: Setting, make: embed.RowMaker, tokens: list[Any]
) -> jax.Array:
    """The network's rows of tokens; special ones keep their own."""
    special = [i for i, token in enumerate(tokens) if not token]
    named = [token or i for i, token in enumerate(tokens)]
    forms = text.surface_forms(
        setting.rule.tokenizer, named, maxlen=config.pieces, pad_id=setting.pad_id
    )
    rows = make(forms.ids)
    kept = setting.source[jnp.asarray(special, jnp.int32)].astype(rows.dtype)
    return rows.at[jnp.asarray(special, jnp.int32)].set(kept)


def _more_tokens(
    config: Any, setting: Setting, make: embed.RowMaker
) -> tuple[list[Any], jax.Array]:
    """The base's tokens and those of further merges, and rows of all."""
    part = setting.train[: config.vocabulary_text]
    cut = [part[i : i + 512] for i in range(0, len(part), 512)]
    batch = text.merge_batch(setting.rule, cut, config.more_tokens)
    base = list(setting.rule.tokenizer.token_bytes[: setting.rule.tokenizer.size])
    new = [token for token in dict.fromkeys(batch.merged) if token not in set(base)]
    tokens = [*base, *new]
    return tokens, _rows(config, setting, make, tokens)


def _line(
    config: Any,
    setting: Setting,
    name: str,
    model: models.Model,
    prompts: list[Any],
    tokens: list[Any],
    plain: list[np.ndarray],
) -> dict[str, Any]:
    """Generates from all prompts at once, and asks the base model about the texts."""
    target = embed.candidate_target(model, candidates=20)
    run = lambda: decode.generate(
        target, prompts, params=model.params, max_new_tokens=config.new_tokens
    )
    jax.block_until_ready(run().tokens)
    start = time.perf_counter()
    ids = np.asarray(run().tokens)
    seconds = time.perf_counter() - start
    texts = [b"".join(tokens[i] or b"" for i in row) for row in ids.tolist()]
    total = sum(map(len, texts))
    bits = [_bits(setting, p, t) for p, t in zip(plain, texts, strict=True) if t]
    return {
        "generated from": name,
        "tokens of a prompt": round(float(np.mean([len(p) for p in prompts])), 1),
        "bytes a token": round(total / ids.size, 2),
        "bits a byte, by the base": round(sum(bits) / max(total, 1), 3),
        "ms a token": round(1e3 * seconds / ids.size, 2),
    }


def _bits(setting: Setting, prompt: np.ndarray, written: bytes) -> float:
    """Bits that the base model needs for a text after its prompt."""
    after = setting.rule.tokenizer.encode(written.decode("utf-8", "replace"))
    ids = np.concatenate([prompt, after])
    width = -(-len(ids) // 64) * 64
    padded = jnp.asarray(np.pad(ids, (0, width - len(ids))))[None]
    nats = _nats(setting.model, padded)[0]
    return float(nats[len(prompt) - 1 : len(ids) - 1].sum() / np.log(2))


@jax.jit
def _nats(model: models.Model, ids: jax.Array) -> jax.Array:
    """Nats of every next token."""
    hidden = model(ids, logits="none").hidden[:, :-1]
    weight, bias = model.unembedding()
    return cross_entropy(hidden, weight, ids[:, 1:], bias=bias)
