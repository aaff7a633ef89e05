"""What the contract suite gives to each method, and the numbers that it takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok.compress import Method, methods

FRAMES, HEIGHT, WIDTH = 4, 2, 4
SEQ, DIM, WORDS, HEADS = FRAMES * HEIGHT * WIDTH, 8, 5, 2
PADDED = SEQ + HEIGHT * WIDTH  # one frame more
BUDGET = 14


class Case(NamedTuple):
    """How a method is called here.

    Attributes:
      budget: rows that come out.
      options: of the method, beside the arrays that all get.
      merges: rows are made of several tokens.
      whole: at a budget of all tokens nothing changes.
    """

    budget: int = BUDGET
    options: dict = {}
    merges: bool = False
    whole: bool = True


CASES: dict[str, Case] = {
    "adjacent": Case(merges=True),
    "aim": Case(merges=True),
    "divprune": Case(),
    "dycoke": Case(budget=20),  # two whole frames of five fit in
    "fastv": Case(),
    "pitome": Case(merges=True),
    "pitome_bsm": Case(merges=True),
    "pitome_text": Case(merges=True),
    "prumerge": Case(options={"neighbours": 3}, merges=True, whole=False),
    "prumerge_plus": Case(options={"neighbours": 3}, merges=True, whole=False),
    "random": Case(),
    "sparsevlm": Case(merges=True),
    "tome": Case(merges=True),
    "uniform": Case(),
    "visionzip": Case(merges=True),
}


def choosing() -> list[str]:
    """Names of the menu whose count is free; the others have a suite of their own."""
    return [name for name, method in methods().items() if not method.fixed]


def arrays(seed: int, batch: int = 2, seq: int = SEQ) -> dict:
    """Everything that a method may look at, with the same tokens at any length."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(
        np.moveaxis(rng.normal(size=(PADDED, *shape)), 0, -2)[..., :seq, :], jnp.float32
    )
    softmax = lambda x: jax.nn.softmax(x, axis=-1)
    words = jnp.asarray(rng.normal(size=(batch, HEADS, WORDS, PADDED)), jnp.float32)
    return {
        "x": draw(batch, DIM),
        "keys": draw(batch, 6),
        "received": softmax(words.sum(2))[..., :seq],
        "words": softmax(words)[..., :seq],
        "text": jnp.asarray(rng.normal(size=(batch, WORDS, DIM)), jnp.float32),
        "position": jnp.broadcast_to(
            jnp.arange(seq, dtype=jnp.float32)[None, :, None] * 2, (batch, seq, 1)
        ),
        "key": jax.random.split(jax.random.key(seed), batch),
    }


def inputs_of(method: Method, given: dict) -> dict:
    """What `compress` gets of those arrays."""
    seq = given["x"].shape[1]
    out = {name: given[name] for name in ("keys", "text", "position")}
    out["attn"] = given["words" if method.name == "sparsevlm" else "received"]
    if "key" in method.takes():
        out["key"] = given["key"]
    return out | {"grid": (seq // (HEIGHT * WIDTH), HEIGHT, WIDTH)}
