"""Every drafter, for the suites that all of them pass. A new one adds one line."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jtok import models, nn
from jtok.decode import (
    Drafter,
    Rule,
    auxiliary_heads,
    chimera,
    chimera_template,
    draft_across,
    draft_model,
    dynamic,
    future_drafter,
    host_drafter,
    medusa,
    mtp,
    no_drafter,
    prompt_lookup,
    recycling_template,
    rejection,
    sequential,
    sorted_chain,
    sorted_tree,
    token_recycling,
    typical,
)
from jtok.models import Model
from jtok.nn import DecoderConfig
from jtok.ops import Tree
from jtok.predict import (
    AuxiliaryHeads,
    FutureConfig,
    FutureModel,
    HeadsConfig,
    init_fusing,
    init_future,
    init_heads,
    init_state_heads,
    mask_head,
    sampler_init,
)
from jtok.testing import (
    adversary_drafter,
    bigram_target,
    drawn_drafter,
    dynamic_drafter,
    extra_slots_drafter,
    oracle_drafter,
    random_drafter,
    recurrent_target,
    tiny_model,
)
from jtok.text import Vocabulary


class Case(NamedTuple):
    """How a suite makes a drafter.

    Attributes:
      make: `(what plain decoding emits for every row, vocab_size) -> Drafter`.
      state: `(batch, vocab_size) -> drafter_state`, or None for a cold start.
      rule: how its drafts are verified; None lets `generate` choose.
      guarantee: of rows that sample.
    """

    make: Callable[[Any, int], Drafter]
    state: Callable[[int, int], Any] | None = None
    rule: Rule | None = None
    guarantee: str = "token"


MIXED = Tree.from_paths([(0,), (1,), (3,), (0, 0), (0, 2), (1, 1), (0, 2, 0)])
SMALL = Tree.from_paths(recycling_template().paths[:12])


def random_table(width: int, *, per_row: bool = False) -> Callable[[int, int], Any]:
    """A table of random candidates."""

    def make(batch: int, vocab_size: int) -> np.ndarray:
        shape = (batch,) * per_row + (vocab_size, width)
        rng = np.random.default_rng(3)
        return rng.integers(0, vocab_size, shape).astype(np.int32)

    return make


def constant_table(batch: int, vocab_size: int) -> np.ndarray:
    """A table in which every token is followed by the last id, four times."""
    return np.full((vocab_size, 4), vocab_size - 1, np.int32)


def case(
    drafter: Drafter,
    state: Any = None,
    rule: Rule | None = None,
    guarantee: str = "token",
) -> Case:
    return Case(lambda truth, vocab_size: drafter, state, rule, guarantee)


# The table of the suite's target, and one near it: a draft model that is often right.
VOCAB = 10
TABLE = 2.0 * np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
NEAR = TABLE + np.random.default_rng(1).normal(size=TABLE.shape).astype(np.float32)
SMALLER = bigram_target(NEAR, whole_context=True)
CHAINS_ONLY = bigram_target(NEAR, whole_context=True, trees=False)
RECURRENT = recurrent_target(NEAR)


def seen_before(ids: np.ndarray) -> list[np.ndarray]:
    """What followed the newest token wherever it stood before."""
    places = np.flatnonzero(ids[:-1] == ids[-1])[::-1]
    return [ids[place + 1 :] for place in places]


MASKS = {
    "tokens": jnp.asarray(NEAR),
    "unembed": jnp.eye(VOCAB),
    "bias": None,
    "sampler": sampler_init(VOCAB, jax.random.key(4)),
}


def table_heads(arch: str) -> AuxiliaryHeads:
    """Heads that read the table target's logits as if they were hidden states."""
    base = DecoderConfig(
        vocab_size=VOCAB, width=VOCAB, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=4, mlp_width=8, max_positions=256,
    )  # fmt: skip
    config = HeadsConfig(
        num_auxiliary=3, arch=arch, head_input="final_norm", head_norm=False,
        separate_unembedding=True,
    )  # fmt: skip
    model = models.init(base, jax.random.key(0))
    eye = np.broadcast_to(np.eye(VOCAB, dtype=np.float32), (3, VOCAB, VOCAB))
    made = init_heads(model, config, key=jax.random.key(1))
    return made.replace(params={**made.params, "unembed": {"kernel": eye}})


def across_vocabularies() -> Drafter:
    """A draft model whose ids are the target's, counted from the other end."""

    def letters(order: str) -> Vocabulary:
        table = {letter: index for index, letter in enumerate(order)}
        bpe = tokenizers.models.BPE(table, [])
        return Vocabulary.from_json(tokenizers.Tokenizer(bpe).to_str())

    target, draft = letters("abcdefghij"), letters("jihgfedcba")
    mirrored = bigram_target(NEAR[::-1, ::-1].copy(), whole_context=True)
    return draft_across(mirrored, target, draft_vocabulary=draft, draft_tokens=3)


HEADS, LINEAR_HEADS = table_heads("decoder"), table_heads("linear")


@functools.lru_cache
def future_model() -> FutureModel:
    """A model of the target's width whose slots nearly say what the table says.

    A slot reads a one-hot row; branches add little, and the output is the table.
    """
    encoder = nn.DecoderConfig(
        vocab_size=VOCAB, width=VOCAB, num_layers=1, num_heads=2, num_kv_heads=2,
        head_dim=6, mlp_width=20, max_positions=128,
    )  # fmt: skip
    config = FutureConfig(encoder=encoder, decoder_layers=2, pseudo_tokens=3, horizon=4)
    params = init_future(config, jax.random.key(0)).params
    rows = {"tokens": jnp.eye(VOCAB)}
    unembed = {"kernel": jnp.asarray(NEAR.T) * 0.5}
    params["encoder"] = {**params["encoder"], "embed": rows, "unembed": unembed}
    return FutureModel(params, config)


def future(guarantee: str = "token", **options: Any) -> Case:
    make = lambda truth, vocab_size: future_drafter(future_model(), **options)
    return Case(make, guarantee=guarantee)


def _reading() -> Model:
    """The suite's target as what draft stacks know of it: its states are its logits."""
    config = nn.DecoderConfig(
        vocab_size=VOCAB, width=VOCAB, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=VOCAB, mlp_width=8, max_positions=64,
    )  # fmt: skip
    eye = jnp.eye(VOCAB)
    return Model({"embed": {"tokens": eye}, "unembed": {"kernel": eye}}, config)


def fusing_stack() -> Any:
    """Its heads read the newest token's row of the table out of the trigram."""
    draft = init_fusing(_reading(), jax.random.key(0))
    outer = jnp.concatenate([jnp.zeros((2 * VOCAB, VOCAB)), jnp.eye(VOCAB)])
    params = {
        **draft.params,
        "trigram": {**draft.params["trigram"], "outer": {"kernel": outer}},
    }
    rows = jnp.concatenate([0.3 * jnp.eye(VOCAB), jnp.asarray(TABLE).T], axis=1)
    params["heads"] = {"kernel": jnp.stack([rows] * 4)}
    return draft.replace(params=params)


NESTED = tiny_model(vocab_size=VOCAB)


OF_ANY_TARGET: dict[str, Case] = {
    "none": case(no_drafter()),
    "prompt-lookup": case(prompt_lookup()),
    "prompt-lookup-2-of-2": case(prompt_lookup(2, 2, 2)),
    "prompt-lookup-official": case(prompt_lookup(4, compat="official")),
    "recycling": case(token_recycling()),
    "recycling-width-1": case(token_recycling(1)),
    "recycling-width-4": case(token_recycling(4)),
    "recycling-chain": case(token_recycling(2, Tree.chain(4))),
    "recycling-star": case(token_recycling(6, Tree.star(6))),
    "recycling-root-only": case(token_recycling(4, Tree.chain(0))),
    "recycling-official": case(token_recycling(8, SMALL, compat="official")),
    "recycling-prefill": case(token_recycling(4, MIXED, update_from_prefill=True)),
    "recycling-per-row": case(
        token_recycling(4, MIXED, per_row=True, update_from_prefill=True)
    ),
    "recycling-inherited": case(token_recycling(4, MIXED), random_table(4)),
    "recycling-inherited-per-row": case(
        token_recycling(4, MIXED, per_row=True), random_table(4, per_row=True)
    ),
    "recycling-adversarial": case(token_recycling(4, MIXED), constant_table),
    "recycling-gives-up": case(
        token_recycling(4, MIXED, min_accept=1.5, patience=2), random_table(4)
    ),
    "host": case(host_drafter(seen_before, nodes=7, depth=3)),
    "oracle": Case(lambda truth, vocab_size: oracle_drafter(truth, 3)),
    "adversary": Case(
        lambda truth, vocab_size: adversary_drafter(truth, vocab_size, 3)
    ),
    "random": case(random_drafter(3, 6)),
    "extra-slots": case(
        extra_slots_drafter(token_recycling(4, MIXED, update_from_prefill=True))
    ),
    "extra-slots-random": case(extra_slots_drafter(random_drafter(2, 3), 3)),
    "dynamic-parent": case(dynamic_drafter(token_recycling(4, MIXED)), random_table(4)),
    "random-sequential": case(random_drafter(3, 6), None, sequential(), "distribution"),
    "recycling-typical": case(
        # A table for each row: what is accepted depends on the drafts.
        token_recycling(4, MIXED, per_row=True),
        random_table(4, per_row=True),
        typical(),
        "none",
    ),
}
# The others are made for the suite's own target.
DRAFTERS: dict[str, Case] = {
    **OF_ANY_TARGET,
    "draft-model": case(draft_model(SMALLER, 3)),
    "draft-model-chains-only": case(draft_model(CHAINS_ONLY, 2)),
    "draft-model-recurrent": case(draft_model(RECURRENT, 2)),
    "draft-model-tree": case(draft_model(SMALLER, tree=MIXED)),
    "draft-model-dynamic": case(draft_model(SMALLER, tree=dynamic(3, 2, 9))),
    "draft-model-own": case(
        draft_model(SMALLER, 3, draw="own"), guarantee="distribution"
    ),
    "draft-model-own-tree": case(
        draft_model(SMALLER, tree=MIXED, draw="own"), guarantee="distribution"
    ),
    "drawn-with-replacement": case(
        drawn_drafter(NEAR, MIXED), None, rejection(replacement=True), "distribution"
    ),
    "draft-across": case(across_vocabularies()),
    "mtp": case(mtp(mask_head(3), params=MASKS)),
    "mtp-linear": case(mtp(mask_head(3), params=MASKS, decoding="linear")),
    "mtp-tree": case(mtp(mask_head(4), params=MASKS, tree=MIXED)),
    "mtp-own": case(
        mtp(mask_head(3), params=MASKS, draw="own"), guarantee="distribution"
    ),
    "heads": case(auxiliary_heads(HEADS)),
    "heads-tree": case(auxiliary_heads(HEADS, tree=MIXED)),
    "heads-linear": case(auxiliary_heads(LINEAR_HEADS, tree=MIXED)),
    "heads-dynamic": case(auxiliary_heads(HEADS, tree=dynamic(3, 2, 9))),
    "heads-own-tree": case(
        auxiliary_heads(HEADS, tree=MIXED, draw="own"), guarantee="distribution"
    ),
    "future": future(),
    "future-chain-2": future(depth=2),
    "future-tree": future(tree=MIXED),
    "future-own": future(guarantee="distribution", draw="own"),
    "chimera": case(chimera(fusing_stack(), chimera_template(3))),
    "chimera-chain": case(chimera(fusing_stack(), Tree.chain(4))),
    "chimera-own-tree": case(
        chimera(fusing_stack(), MIXED, draw="own"), guarantee="distribution"
    ),
    "medusa": case(medusa(init_state_heads(_reading()), MIXED)),
    "sorted-chain": case(sorted_chain(NESTED, (1, 2), (0.2, 0.0))),
    "sorted-own": case(
        sorted_chain(NESTED, (1, 2), (0.2, 0.0), draw="own"), guarantee="distribution"
    ),
    "sorted-tree": case(sorted_tree(NESTED, (1, 2), (0.2, 0.0), size=dynamic(3, 2, 9))),
}
