"""The kernel operations beside their plain forms and the field's library functions.

Cached tree attention against `jax.nn.dot_product_attention` over cache and nodes in one
array; the readout of hidden states over a vocabulary against dense logits; loss and
gradient of cross-entropy against `optax`'s on dense logits. Each is compiled once, and
run in turns with its peer. Shown are time, spread, temporary memory, and the share of
what the device can do (reading its inputs once, or multiplying).

```
python -m experiments.run bench_ops
python -m experiments.run bench_ops --preset gpu
```

About 2 minutes on 2 CPU cores, where the shapes of real use are cut to fit.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtok.ops import cached_attention, cross_entropy, readout
from jtok.ops.attention import shapes as attention_shapes
from jtok.ops.unembed import shapes as readout_shapes

CLAIMS = (
    "attention_time",
    "readout_time",
    "readout_memory",
    "cross_entropy_time",
    "cross_entropy_memory",
)
SOURCES = ("jtok/ops/attention/*.py", "jtok/ops/unembed/*.py", "jtok/ops/readouts.py")
MINUTES = {"smoke": 0.3, "small": 2, "gpu": 4, "full": 4}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      attention: names of `jtok.ops.attention.shapes.cases()`.
      readout: names of `jtok.ops.unembed.shapes.cases()`.
      tokens: tokens of the cross-entropy.
      dim: its width.
      vocab: its vocabulary.
      cut: divides capacities, vocabularies and widths, for small machines.
      dtype: "" keeps that of each case.
      rounds: timed runs of each, in turns.
      seed: of the arrays.
    """

    attention: tuple[str, ...] = ("token-8b", "tree-0.5b", "float32")
    readout: tuple[str, ...] = ("token-8b", "tree-0.5b", "float32")
    tokens: int = 2048
    dim: int = 256
    vocab: int = 32768
    cut: int = 8
    dtype: str = "float32"
    rounds: int = 7
    seed: int = 0


_ALL_ATTENTION = ("token-8b", "tree-8b", "tree-0.5b", "prefill-8b", "window-softcap")
_ALL_READOUT = ("token-8b", "tree-8b", "tree-0.5b", "sampled-0.5b")

PRESETS = {
    "smoke": Config(
        attention=("float32",), readout=("float32",), tokens=64, dim=16, vocab=512,
        cut=64, rounds=1,
    ),
    "small": Config(),
    "gpu": Config(
        attention=_ALL_ATTENTION, readout=_ALL_READOUT, tokens=16384, dim=4096,
        vocab=128256, cut=1, dtype="",
    ),
    "full": Config(
        attention=_ALL_ATTENTION, readout=_ALL_READOUT, tokens=16384, dim=4096,
        vocab=128256, cut=1, dtype="", rounds=15,
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Runs all measurements and writes the report.

    Args:
      config: what to measure.
      report: where the figures go.
    """
    report.data("random arrays", f"seed {config.seed}".encode(), kind="synthetic")
    attention = [
        _compare(name, *_attention(name, config), config)
        for name in report.progress(config.attention, "attention")
    ]
    reads = [
        _compare(name, *_readout(name, config), config)
        for name in report.progress(config.readout, "readout")
    ]
    loss = _compare("loss and gradient", *_loss(config), config)
    report.table(
        "Cached tree attention against jax.nn.dot_product_attention", attention
    )
    report.table("Readout (arg-max or draw, top-k, normaliser) against dense", reads)
    report.table("Cross-entropy and gradient against optax on dense logits", [loss])
    slow = "the peer's one large product is faster on this device than many blocks"
    worst = lambda rows, field: min(row[field] for row in rows)
    for id_, rows, bound in (
        ("attention_time", attention, 1 / 1.3),
        ("readout_time", reads, 1 / 1.3),
        ("cross_entropy_time", [loss], 1 / 1.3),
    ):
        _claim(id_, "time of the peer over ours", worst(rows, "speed-up"), bound,
               config, report, slow)  # fmt: skip
    held = "at these sizes the blocks are as large as what they replace"
    for id_, rows, bound in (
        ("readout_memory", reads, 1.0),
        ("cross_entropy_memory", [loss], 4.0),
    ):
        _claim(id_, "temporary memory of the peer over ours",
               worst(rows, "memory of the peer over ours"), bound, config, report,
               held)  # fmt: skip


def _claim(
    id_: str, claim: str, measured: float, bound: float, config: Config, report: Any,
    reason: str,
) -> None:  # fmt: skip
    report.claim(
        id_,
        f"{id_.split('_')[0]}: {claim}, in the worst case of the table",
        paper="none: a strong peer in the same run",
        measured=round(float(measured), 3),
        unit="x",
        op=">=",
        bound=round(bound, 3),
        n=config.rounds,
        reason=reason,
    )


# ---- contestants: ours, the peer, their arguments, bytes and operations

Contestants = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], int, float]


def _attention(name: str, config: Config) -> Contestants:
    case = dict(attention_shapes.cases()[name])
    case["capacity"] = max(32, case["capacity"] // config.cut)
    case["dtype"] = config.dtype or case["dtype"]
    options = case["options"]
    arrays = attention_shapes.inputs(case, seed=config.seed)

    def ours(arrays: dict[str, Any]) -> Any:
        return cached_attention(**arrays, **options)

    def peer(arrays: dict[str, Any]) -> Any:
        join = lambda a, b: jnp.concatenate([a, b], axis=2).transpose(0, 2, 1, 3)
        key = join(arrays["cache_key"], arrays["key"])
        value = join(arrays["cache_value"], arrays["value"])
        slots = jnp.arange(case["capacity"])[None, None]
        old = slots < arrays["length"][:, None, None]
        batch, nodes = arrays["positions"].shape
        old = jnp.broadcast_to(old, (batch, nodes, case["capacity"]))
        mask = jnp.concatenate([old, arrays["allow"]], axis=2)
        return jax.nn.dot_product_attention(
            arrays["query"], key, value, mask=mask[:, None], scale=options["scale"]
        )

    # Rows have lengths from the capacity down to 0: half of the cache is read.
    size = jnp.dtype(case["dtype"]).itemsize
    rows = case["batch"] * case["kv_heads"] * case["head_dim"] * size
    used = rows * 2 * (case["capacity"] // 2 + case["nodes"])
    work = 4.0 * case["batch"] * case["heads"] * case["head_dim"] * case["nodes"]
    return ours, peer, (arrays,), used, work * (case["capacity"] / 2 + case["nodes"])


def _readout(name: str, config: Config) -> Contestants:
    case = dict(readout_shapes.cases()[name])
    case["vocab"] = max(256, case["vocab"] // config.cut)
    case["dim"] = max(32, case["dim"] // config.cut)
    case["dtype"] = config.dtype or case["dtype"]
    arrays = readout_shapes.inputs(case, seed=config.seed)

    def ours(hidden: Any, weight: Any, want: Any) -> Any:
        return readout(hidden, weight, want)

    def peer(hidden: Any, weight: Any, want: Any) -> Any:
        from jtok.ops import readout_logits

        logits = jnp.einsum(
            "bnd,vd->bnv", hidden, weight, preferred_element_type=jnp.float32
        )
        return readout_logits(logits, want)

    arguments = (arrays["hidden"], arrays["weight"], arrays["want"])
    used = sum(a.size * a.dtype.itemsize for a in arguments[:2])
    nodes = case["batch"] * case["nodes"]
    return ours, peer, arguments, used, 2.0 * nodes * case["dim"] * case["vocab"]


def _loss(config: Config) -> Contestants:
    keys = jax.random.split(jax.random.key(config.seed), 3)
    dtype = config.dtype or "bfloat16"
    hidden = jax.random.normal(keys[0], (config.tokens, config.dim), dtype)
    weight = jax.random.normal(keys[1], (config.vocab, config.dim), dtype) * 0.02
    targets = jax.random.randint(keys[2], (config.tokens,), 0, config.vocab)

    def ours(hidden: Any, weight: Any, targets: Any) -> Any:
        loss = lambda h, w: jnp.mean(cross_entropy(h, w, targets))
        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, weight)

    def peer(hidden: Any, weight: Any, targets: Any) -> Any:
        def loss(h: Any, w: Any) -> Any:
            logits = jnp.einsum("td,vd->tv", h, w, preferred_element_type=jnp.float32)
            fit = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.mean(fit)

        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, weight)

    used = 2 * (hidden.size + weight.size) * jnp.dtype(dtype).itemsize
    work = 6.0 * config.tokens * config.dim * config.vocab
    return ours, peer, (hidden, weight, targets), used, work


# ---- measuring


def _compare(
    name: str, ours: Any, peer: Any, arguments: Any, used: int, work: float,
    config: Config,
) -> dict[str, Any]:  # fmt: skip
    runs, memory, compiling = {}, {}, {}
    for who, function in (("ours", ours), ("peer", peer)):
        began = time.perf_counter()
        runs[who] = jax.jit(function).lower(*arguments).compile()
        compiling[who] = time.perf_counter() - began
        memory[who] = runs[who].memory_analysis().temp_size_in_bytes
    times = _in_turns(runs, arguments, config.rounds)
    ms = {who: float(np.median(some)) for who, some in times.items()}
    return {
        "case": name,
        "ours, ms": ms["ours"],
        "ours, spread": float(np.ptp(times["ours"])),
        "peer, ms": ms["peer"],
        "speed-up": ms["peer"] / ms["ours"],
        "ours, temporary MB": memory["ours"] / 2**20,
        "peer, temporary MB": memory["peer"] / 2**20,
        "memory of the peer over ours": memory["peer"] / max(memory["ours"], 1),
        "GB/s of the inputs": used / ms["ours"] / 1e6,
        "GFLOP/s": work / ms["ours"] / 1e6,
        "compile, s": compiling["ours"],
    }


def _in_turns(runs: Any, arguments: Any, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every compiled function; the first turn warms up."""
    times: dict[str, list[float]] = {who: [] for who in runs}
    repeats = 1 if rounds == 1 else 5
    for turn in range(rounds + 1):
        for who, compiled in runs.items():
            began = time.perf_counter()
            for _ in range(repeats):
                out = compiled(*arguments)
            jax.block_until_ready(out)
            if turn:
                times[who].append(1e3 * (time.perf_counter() - began) / repeats)
    return times
