"""Trees that heads draft, with a head that knows the target."""

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import Drafter, Tokens, draft_tree, generate, rejection
from jtok.errors import ArgumentError
from jtok.ops import Tree, readout_logits
from jtok.predict import DraftHead
from jtok.testing import bigram_target

VOCAB = 8
TABLE = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32) * 3
TREE = Tree.from_paths([(0,), (1,), (0, 0), (1, 0), (1, 2), (1, 0, 0)])
PROMPTS = [[3], [1, 2, 3], [7] * 5]


def knowing(steps=3):
    """Its state holds the path that leads to a node; a wrong parent would show."""

    def step(params, context, state, tokens, index):
        path = jnp.concatenate([state, tokens[..., None]], axis=-1)
        assert path.shape[-1] == index + 1
        return params[path[..., -1]] + 0.0 * path.sum(-1, keepdims=True), path

    init = lambda params, context: jnp.zeros((context.shape[0], 1, 0), jnp.int32)
    return DraftHead(init, step, lambda p, hidden, want: readout_logits(hidden, want),
                     steps)  # fmt: skip


def drafter(tree, own=False, steps=3):
    head = knowing(steps)

    def propose(state, tokens: Tokens, params):
        made = draft_tree(
            head, params, tokens.count, tokens, tree, vocab_size=VOCAB, own=own
        )
        return made, state

    return Drafter(
        lambda info, tokens, params: (), propose, lambda state, verdict, params: state,
        params=jnp.asarray(TABLE),
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, [0.0, 1.0, 0.7]])
@pytest.mark.parametrize("tree", [Tree.chain(3), TREE])
def test_a_head_that_knows_the_target_is_always_right(tree, temperature):
    target = bigram_target(TABLE)
    plain = generate(target, PROMPTS, max_new_tokens=12, temperature=temperature)
    out = generate(
        target, PROMPTS, max_new_tokens=12, temperature=temperature,
        drafter=drafter(tree),
    )  # fmt: skip
    for a, b in zip(out.tokens, plain.tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    # The best path of the tree is two deep, the chain three.
    best = {Tree.chain(3): 4, TREE: 3}[tree]
    assert out.stats.emitted_per_call[best] >= 0.9 * out.stats.calls - 3


def test_own_draws_say_from_which_law():
    out = generate(
        bigram_target(TABLE), PROMPTS, max_new_tokens=16, temperature=1.0,
        drafter=drafter(TREE, own=True), rule=rejection(),
    )  # fmt: skip
    assert out.guarantee == "distribution"
    # Drawn from the target's own law, the first draft is never refused.
    assert out.stats.tokens_per_call > 2.0


def test_a_tree_deeper_than_the_head_is_refused():
    with pytest.raises(ArgumentError, match="tree: got 'depth 3', expected at most 2"):
        generate(bigram_target(TABLE), [1], drafter=drafter(TREE, steps=2))


def test_every_node_continues_its_own_path():
    """Candidate r after a path is (3 * sum of the path + r) % VOCAB."""

    def step(params, context, state, tokens, index):
        total = state + tokens
        ids = jnp.arange(VOCAB)[None, None]
        rank = (ids - 3 * total[..., None]) % VOCAB  # of every id
        return -rank.astype(jnp.float32), total

    init = lambda params, context: jnp.zeros((context.shape[0], 1), jnp.int32)
    read = lambda params, hidden, want: readout_logits(hidden, want)
    head = DraftHead(init, step, read, 3)
    tokens = Tokens(jnp.array([[5, 2], [1, 7]]), jnp.array([1, 2]))
    made = draft_tree(head, None, tokens.count, tokens, TREE, vocab_size=VOCAB)
    for row, root in enumerate([5, 7]):
        assert made.tokens[row, 0] == root
        for node, path in enumerate(TREE.paths, start=1):
            total, token = root, None
            for rank in path:
                token = (3 * total + rank) % VOCAB
                total += token
            assert made.tokens[row, node] == token, path
