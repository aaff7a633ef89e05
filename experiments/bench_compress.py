"""Merging is cheap: plans and merges beside one block, whole models beside their FLOPs.

Four races, each in turns on the same arrays. A plan and its merge (ToMe, and every rule
of PiToMe) against one uncompressed block of the same length. A model of ViT-B's shape,
a tenth of its tokens leaving in every layer, against the same model with all tokens:
the speed-up beside the one that the arithmetic allows. The same model in PyTorch with
the official merge functions, eager as they ship, where a Python with torch and
checkouts of them are given. And attention with its by-products (received attention,
mass on a key set, a chosen row) against `jax.nn.dot_product_attention`, which gives
none.

```
python -m experiments.run bench_compress
python -m experiments.run bench_compress --preset gpu
python -m experiments.run bench_compress --peer-python PYTHON --tome-path FOLDER
```

`FOLDER` is a checkout of facebookresearch/ToMe; `--pitome-path` takes one of
hchautran/PiToMe. About 4 minutes on 2 CPU cores.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.peers_compress.ask import PeerError, ask
from jtok import models, nn
from jtok.compress import pitome, schedule, tome
from jtok.compress.flops import flops
from jtok.errors import ArgumentError
from jtok.ops import attention_byproducts

CLAIMS = (
    "plan_time",
    "speed_up",
    "official_time",
    "official_pitome_time",
    "byproducts_time",
    "byproducts_memory",
)
SOURCES = (
    "experiments/peers_compress/*.py",
    "jtok/compress/flops.py",
    "jtok/compress/matching.py",
    "jtok/compress/pitome.py",
    "jtok/compress/schedule.py",
    "jtok/compress/tome.py",
    "jtok/models/compression.py",
    "jtok/models/compressor.py",
    "jtok/models/encoder.py",
    "jtok/models/encoder_layers.py",
    "jtok/nn/encoder.py",
    "jtok/ops/attention/*.py",
    "jtok/ops/byproducts/*.py",
    "jtok/ops/energy/*.py",
    "jtok/ops/plan.py",
    "jtok/ops/segments.py",
)
MINUTES = {"smoke": 0.3, "small": 5, "gpu": 6, "full": 12}
ABSENT = "torch and the official functions were not asked for: nothing was compared"

RULES: dict[str, Callable[..., Any]] = {
    "tome": tome,
    "pitome": pitome,
    "pitome bsm": functools.partial(pitome, rule="bsm"),
    "pitome text": functools.partial(pitome, rule="text"),
}
Times = dict[str, list[float]]
_ALL = "all tokens"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is raced.

    Attributes:
      lengths: tokens of a block, and sequences of it at once.
      width: of the models; heads are 64 wide.
      layers: of the whole model.
      seq: its tokens, a class token among them.
      batch: its sequences.
      keep: share of the tokens that every layer keeps.
      attention: tokens of the by-products' race.
      heads: of that race.
      dtype: of models and of that race.
      rounds: timed runs of each, in turns.
      peer_python: a Python that has torch; "" for none.
      tome_path: a checkout of facebookresearch/ToMe; "" for none.
      pitome_path: a checkout of hchautran/PiToMe; "" for none.
      threads: of the peer; JAX uses the machine's.
      seed: of parameters and inputs.
    """

    lengths: tuple[tuple[int, int], ...] = ((197, 4), (577, 1), (1024, 1), (4096, 1))
    width: int = 768
    layers: int = 12
    seq: int = 197
    batch: int = 2
    keep: float = 0.9
    attention: tuple[int, ...] = (1024, 4096)
    heads: int = 12
    dtype: str = "float32"
    rounds: int = 5
    peer_python: str = ""
    tome_path: str = ""
    pitome_path: str = ""
    threads: int = 2
    seed: int = 0


_LONG = (1024, 2048, 4096, 8192, 16384)

PRESETS = {
    "smoke": Config(
        lengths=((33, 1),), width=64, layers=2, seq=33, batch=1, attention=(64,),
        heads=2, rounds=1,
    ),
    "small": Config(),
    "gpu": Config(
        lengths=((197, 64), (577, 16), (1024, 16), (4096, 4)), batch=64,
        attention=_LONG, dtype="bfloat16", rounds=15,
    ),
    "full": Config(batch=8, attention=_LONG, rounds=15),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Runs all races and writes the report.

    Args:
      config: what to race.
      report: where the figures go.
    """
    report.data("random arrays", f"seed {config.seed}".encode(), kind="synthetic")
    plans = [
        row
        for seq, batch in report.progress(config.lengths, "lengths")
        for row in _plans(seq, batch, config)
    ]
    report.table("Plan and merge beside one uncompressed block", plans)
    wholes, official = _models(config, report)
    # Threads that wait for each other suffer from other work on the machine.
    load = f"load {os.getloadavg()[0]:.1f}"
    report.table(
        f"A model of {config.layers} layers, keep {config.keep}, {load}", wholes
    )
    beside = [
        _byproducts(seq, config)
        for seq in report.progress(config.attention, "attention")
    ]
    report.table(
        "Attention with by-products beside jax.nn.dot_product_attention", beside
    )
    _claims(config, plans, wholes, official, beside, report)


# ---- a plan beside a block


def _plans(seq: int, batch: int, config: Config) -> list[dict[str, Any]]:
    model = _model(config, 1)
    x, metric = _drawn(config, batch, seq)
    size = jnp.ones((batch, seq))
    runs = {"block": _compiled(lambda x: model(x).hidden, x)}
    for name, rule in RULES.items():
        act = lambda metric, x, size, rule=rule: rule(
            metric, keep=config.keep, protect=1
        ).merge(x, size)
        runs[name] = _compiled(act, metric, x, size)
    ms = _medians(_in_turns(runs, config.rounds))
    work = batch * flops(model.config, (seq, seq)).flops
    return [
        {
            "tokens": seq,
            "sequences": batch,
            "rule": name,
            "plan and merge, ms": ms[name],
            "block, ms": ms["block"],
            "share": ms[name] / ms["block"],
            "block, GFLOP/s": work / ms["block"] / 1e6,
        }
        for name in RULES
    ]


def _model(config: Config, layers: int) -> Any:
    sizes = nn.EncoderConfig(
        vocab_size=8, width=config.width, num_layers=layers,
        num_heads=config.width // 64, head_dim=64, mlp_width=4 * config.width,
        max_positions=max(seq for seq, _ in (*config.lengths, (config.seq, 1))),
        num_types=0, embed_norm=False, norm_first=True, dtype=config.dtype,
    )  # fmt: skip
    return models.init(sizes, jax.random.key(config.seed))


def _drawn(config: Config, batch: int, seq: int) -> tuple[jax.Array, jax.Array]:
    """Tokens, some of them near each other as those of a picture are, and keys."""
    keys = jax.random.split(jax.random.key(config.seed + 1), 4)
    centres = jax.random.normal(keys[0], (batch, seq, config.width))
    which = jax.random.randint(keys[1], (batch, seq), 0, max(seq // 4, 1))
    x = jnp.take_along_axis(centres, which[..., None], axis=1)
    x = x + 0.3 * jax.random.normal(keys[2], x.shape)
    turn = jax.random.normal(keys[3], (config.width, 64)) / config.width**0.5
    return x.astype(config.dtype), (x @ turn).astype(config.dtype)


# ---- whole models


def _models(
    config: Config, report: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of all models, and by rule the official one's time over ours."""
    model = _model(config, config.layers)
    x, _ = _drawn(config, config.batch, config.seq)
    counts = {_ALL: (config.seq,) * (config.layers + 1)}
    runs = {_ALL: _compiled(lambda x: model(x).hidden, x)}
    for name, rule in RULES.items():
        plan = schedule(rule, keep=config.keep, protect=1, proportional=True)
        counts[name] = plan.token_counts(config.seq, config.layers)
        runs[name] = _compiled(lambda x, plan=plan: model(x, compress=plan).hidden, x)
    first = _in_turns(runs, config.rounds)
    theirs = _official(config, counts["tome"], report)
    again = _in_turns(runs, config.rounds) if theirs else {}
    ms = _medians({name: first[name] + again.get(name, []) for name in runs})
    work = {name: flops(model.config, some).flops for name, some in counts.items()}
    rows: list[dict[str, Any]] = []
    for name in runs:
        ideal = work[_ALL] / work[name]
        gained = ms[_ALL] / ms[name]
        rows.append(
            {
                "model": name,
                "tokens left": counts[name][-1],
                "ms": ms[name],
                "GFLOP": config.batch * work[name] / 1e9,
                "speed-up": gained,
                "speed-up of the FLOPs": ideal,
                "share of it": gained / ideal,
            }
        )
    rows += [
        {
            "model": f"PyTorch, {name}", "tokens left": left, "ms": made,
            "speed-up": theirs[_ALL][1] / made, "time over ours": made / ms[name],
        }
        for name, (left, made) in theirs.items()
    ]  # fmt: skip
    over = {name: made / ms[name] for name, (_, made) in theirs.items()}
    return rows, over


def _official(
    config: Config, counts: tuple[int, ...], report: Any
) -> dict[str, tuple[int, float]]:
    """Tokens left, and milliseconds of the same model in PyTorch, by rule."""
    given = {"tome": config.tome_path, "pitome": config.pitome_path}
    if not config.peer_python or not any(given.values()):
        report.text(f"{ABSENT}.")
        return {}
    request = given | {
        "width": config.width, "keep": config.keep,
        "leaving": [a - b for a, b in itertools.pairwise(counts)],
        "seq": config.seq, "batch": config.batch, "rounds": config.rounds,
        "threads": config.threads, "seed": config.seed,
    }  # fmt: skip
    try:
        answer = ask(
            config.peer_python, "merging_with_torch.py", request, config.threads
        )
    except PeerError as error:
        raise ArgumentError(f"peer_python: {error}.") from None
    report.artifact("torch", answer["torch"])
    return {
        name: (answer["left"][name], 1e3 * float(np.median(seconds)))
        for name, seconds in answer["seconds"].items()
    }


# ---- attention


def _byproducts(seq: int, config: Config) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(config.seed), 3)
    shape = (1, seq, config.heads, 64)
    query, key, value = (jax.random.normal(k, shape, config.dtype) for k in keys)
    on = jnp.arange(seq)[None] < seq // 4
    rows = jnp.zeros((1, 1), jnp.int32)

    def ours(query: Any, key: Any, value: Any) -> Any:
        return attention_byproducts(
            query, key, value, scale=0.125, columns=True, on=on, rows=rows
        )

    def peer(query: Any, key: Any, value: Any, how: Any = None) -> Any:
        return jax.nn.dot_product_attention(
            query, key, value, scale=0.125, implementation=how
        )

    arrays = (query, key, value)
    runs = {"ours": _compiled(ours, *arrays), "peer": _compiled(peer, *arrays)}
    if jax.default_backend() == "gpu" and config.dtype == "bfloat16":
        runs["cudnn"] = _compiled(functools.partial(peer, how="cudnn"), *arrays)
    ms = _medians(_in_turns(runs, config.rounds))
    held = {
        name: made.func.memory_analysis().temp_size_in_bytes
        for name, made in runs.items()
    }
    row = {
        "tokens": seq,
        "ours, ms": ms["ours"],
        "peer, ms": ms["peer"],
        "peer over ours": ms["peer"] / ms["ours"],
        "ours, temporary MB": held["ours"] / 2**20,
        "peer, temporary MB": held["peer"] / 2**20,
        "memory of the peer over ours": held["peer"] / max(held["ours"], 1),
    }
    return row | ({"cudnn, ms": ms["cudnn"]} if "cudnn" in ms else {})


# ---- measuring


def _compiled(function: Callable[..., Any], *arguments: Any) -> functools.partial[Any]:
    return functools.partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def _in_turns(runs: dict[str, Any], rounds: int) -> Times:
    """Milliseconds of every run, each in every turn; the first turn warms up."""
    times: Times = {who: [] for who in runs}
    for turn in range(rounds + 1):
        for who, call in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times[who].append(1e3 * (time.perf_counter() - began))
    return times


def _medians(times: Times) -> dict[str, float]:
    return {who: float(np.median(some)) for who, some in times.items()}


def _claims(
    config: Config, plans: Any, wholes: Any, official: dict[str, float], beside: Any,
    report: Any,
) -> None:  # fmt: skip
    claim = functools.partial(_claim, report, config.rounds)
    claim(
        "plan_time", "of a block", max(row["share"] for row in plans), "<=", 0.1,
        "plan and merge beside one uncompressed block, the worst rule and length",
        "sorting and scattering do not shrink with the width as a block does",
    )  # fmt: skip
    shares = [row["share of it"] for row in wholes if row["model"] in RULES]
    claim(
        "speed_up", "of the FLOPs' speed-up", min(shares), ">=", 0.75,
        f"end to end, {config.layers} layers that keep {config.keep}, the worst rule",
        "products of fewer rows run at a lower rate on this device",
    )  # fmt: skip
    pitomes = [over for name, over in official.items() if name.startswith("pitome")]
    for name, of, over in (
        ("official_time", "ToMe's official functions", official.get("tome")),
        (
            "official_pitome_time", "PiToMe's official functions, the worst rule,",
            min(pitomes, default=None),
        ),
    ):  # fmt: skip
        claim(
            name, "x", over or 0.0, ">=", 1.0,
            f"time of the model in PyTorch with {of} over ours",
            "PyTorch's products are faster on this device" if over else ABSENT,
        )  # fmt: skip
    claim(
        "byproducts_time", "x", min(row["peer over ours"] for row in beside), ">=",
        1 / 1.3, "time of attention without by-products over ours with them, the worst "
        "length", "at this length the peer's products outweigh what it writes",
    )  # fmt: skip
    claim(
        "byproducts_memory", "x", beside[-1]["memory of the peer over ours"], ">=", 4.0,
        "temporary memory of attention without by-products over ours with them, at the "
        "largest length", "at this length all scores fit where a block of them does",
    )  # fmt: skip


def _claim(
    report: Any, n: int, id: str, unit: str, measured: float, op: str, bound: float,
    claim: str, reason: str,
) -> None:  # fmt: skip
    report.claim(
        id,
        claim,
        paper="none: a peer in the same run",
        measured=round(float(measured), 4),
        unit=unit,
        op=op,
        bound=round(bound, 3),
        ci95=None,
        n=n,
        reason=reason,
    )
