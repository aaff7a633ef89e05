"""Decoding is fast: against `transformers` on this machine, and against its memory.

A random llama of about 30 M parameters continues prompts of 200 tokens greedily, with
4,096 slots of cache, one prompt and eight at a time; beside it, in turns and with as
many threads, `transformers` does the same with its eager `generate` and with a static
cache under `torch.compile`; the faster of the two is the peer. Prompt lookup is raced
against its prompt lookup on a trained model. Then: what share of the memory's speed
plain decoding reaches, what a call costs by its nodes, and what Token Recycling gains
there with the acceptance that it has on a trained model.

```
python -m experiments.run bench_decode --peer-python path/to/python
python -m experiments.run bench_decode --preset gpu
```

`--peer-python` is a Python with torch and transformers (`pip install jtok[peers]` in an
environment of its own); without one, the comparisons say so and fail. The preset `gpu`
takes 1 B and 7 B shapes in bfloat16. About 6 minutes on 2 CPU cores.
"""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from experiments.peers.process import Peer, PeerError
from experiments.scripted import depth_law, scripted_drafter
from experiments.targets import load_target, prompts_by_domain
from jtok import nn
from jtok.decode import (
    CostCurve,
    choose_template,
    cost_curve,
    generate,
    prompt_lookup,
    recycling_template,
    token_recycling,
)
from jtok.errors import ArgumentError
from jtok.ops import Tree

CLAIMS = (
    "plain_over_peer_batch_1",
    "plain_over_peer_batch_8",
    "lookup_over_peer_lookup",
    "bandwidth_share",
    "recycling_over_plain",
)
SOURCES = (
    "experiments/scripted.py",
    "experiments/targets.py",
    "experiments/peers/*.py",
    "jtok/decode/calibrate.py",
    "jtok/decode/drafters.py",
    "jtok/decode/generate.py",
    "jtok/decode/loop.py",
    "jtok/decode/recycling.py",
    "jtok/ops/attention/*.py",
    "jtok/ops/unembed/*.py",
    "jtok/models/cache.py",
    "jtok/models/model.py",
    "jtok/models/target.py",
)
MINUTES = {"smoke": 0.5, "small": 6, "gpu": 8, "full": 30}
ABSENT = "torch and transformers are not here, or not asked for: nothing was compared"
# Bytes a second by their makers' data sheets.
DATASHEET = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}

# Sizes of llama-shaped models: width, layers, heads, kv heads, mlp, vocabulary.
SHAPES = {
    "2m": (128, 2, 2, 2, 384, 2048),
    "30m": (512, 8, 8, 8, 1536, 8192),
    "1b": (2048, 16, 32, 8, 8192, 128256),
    "7b": (4096, 32, 32, 8, 14336, 32000),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is raced.

    Attributes:
      shapes: names of the random models; the first is raced against the peer.
      batches: numbers of rows; the claims are about 1 and 8.
      cached: tokens of a prompt.
      new_tokens: tokens that are timed.
      capacity: slots of the cache.
      lookup_model: trained model of the prompt-lookup race and for the acceptance of
        Token Recycling, as `--model` elsewhere.
      lookup_prompts: its prompts, of each domain.
      rounds: timed runs of each contestant, in turns.
      nodes: tree sizes of the cost curve.
      peer: race against transformers, where it can be run.
      threads: of the peer; JAX uses the machine's.
      peer_python: a Python that has torch and transformers; "" is this one.
      dtype: of the parameters.
      small: whether the trained small model is the real one or the smoke-sized one.
      seed: of parameters and prompts.
    """

    shapes: tuple[str, ...] = ("30m",)
    batches: tuple[int, ...] = (1, 8)
    cached: int = 200
    new_tokens: int = 64
    capacity: int = 4096
    lookup_model: str = ""
    lookup_prompts: int = 2
    rounds: int = 7
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    peer: bool = True
    threads: int = 2
    peer_python: str = ""
    dtype: str = "float32"
    small: bool = True
    seed: int = 0


PRESETS = {
    "smoke": Config(
        shapes=("2m",), new_tokens=4, cached=16, capacity=128, lookup_prompts=1,
        rounds=1, nodes=(1, 4), small=False,
    ),
    "small": Config(),
    "gpu": Config(
        shapes=("1b", "7b"), dtype="bfloat16", nodes=(1, 8, 32, 128), rounds=5,
    ),
    "full": Config(
        shapes=("1b", "7b"), dtype="bfloat16", lookup_model="Qwen/Qwen2.5-7B-Instruct",
        new_tokens=256,
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Runs all races and writes the report.

    Args:
      config: what to race.
      report: where the figures go.
    """
    models = {name: _random_model(name, config) for name in config.shapes}
    first = models[config.shapes[0]]
    _report_bandwidth(models, config, report)
    costs = _report_nodes(models, config, report)
    _race_plain(first, config, report)
    trained, prompts = _trained(config, report)
    _race_lookup(trained, prompts, config, report)
    _race_recycling(models, costs, trained, prompts, config, report)


def _random_model(name: str, config: Config) -> jtok.models.Model:
    width, layers, heads, kv_heads, mlp, vocabulary = SHAPES[name]
    sizes = nn.DecoderConfig(
        vocab_size=vocabulary, width=width, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=width // heads, mlp_width=mlp,
        max_positions=config.capacity, tied=True, dtype=config.dtype,
    )  # fmt: skip
    return jtok.models.init(sizes, jax.random.key(config.seed))


# ---- races


@contextlib.contextmanager
def _peer(model: jtok.models.Model, config: Config, report: Any) -> Iterator[Any]:
    """The peer with this model, or None where it cannot run."""
    here = importlib.util.find_spec("torch") and importlib.util.find_spec(
        "transformers"
    )
    if not config.peer or (not config.peer_python and not here):
        report.text(f"{ABSENT}.")
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        jtok.models.save(model, f"{folder}/model")
        arguments = [f"{folder}/model"]
        try:
            peer = Peer(
                config.peer_python, "decode_with_transformers.py", arguments,
                threads=config.threads,
            )  # fmt: skip
        except PeerError as error:
            raise ArgumentError(f"peer_python: {error}.") from None
        with peer:
            for name, version in peer.versions.items():
                report.artifact(name, version)
            yield peer


def _race_plain(model: jtok.models.Model, config: Config, report: Any) -> None:
    """Greedy decoding, jtok and both modes of the peer in turns."""
    rows = []
    with _peer(model, config, report) as peer:
        for batch in report.progress(config.batches, "plain decoding"):
            rng = np.random.default_rng(config.seed)
            vocabulary = model.config.vocab_size
            prompts = rng.integers(0, vocabulary, (batch, config.cached)).tolist()
            runs = {"jtok": _ours(model, prompts, None, config)}
            if peer is not None:
                for mode in ("eager", "static"):
                    runs[mode] = _theirs(peer, mode, prompts, config)
            times, tokens = _in_turns(runs, config)
            rows.append(_row(f"batch {batch}", times, tokens))
            _claim_race(f"plain_over_peer_batch_{batch}", 2.5, rows[-1], times, report)
    report.table("Plain decoding, milliseconds a token (prompt excluded)", rows)


def _trained(config: Config, report: Any) -> tuple[jtok.models.Model, list[list[int]]]:
    """A trained model and real prompts for it."""
    model = load_target(config.lookup_model, report, small=config.small)
    domains = prompts_by_domain(
        model, report, count=config.lookup_prompts, tokens=64, seed=config.seed
    )
    return model, [ids.tolist() for some in domains.values() for ids in some]


def _race_lookup(
    model: jtok.models.Model, prompts: list[list[int]], config: Config, report: Any
) -> None:
    """Prompt lookup on real prompts, one at a time."""
    with _peer(model, config, report) as peer:
        drafter = prompt_lookup()
        runs = {"jtok": _each(_ours, model, prompts, drafter, config)}
        if peer is not None:
            runs["lookup"] = _each(_theirs, peer, "lookup", prompts, config)
        times, tokens = _in_turns(runs, config)
    row = _row(f"{len(prompts)} prompts", times, tokens)
    report.table("Prompt lookup, milliseconds a token (prompt excluded)", [row])
    _claim_race("lookup_over_peer_lookup", 1.0, row, times, report)


Timed = Callable[[int], tuple[float, Any]]


def _ours(model: Any, prompts: Any, drafter: Any, config: Config) -> Timed:
    def once(new_tokens: int) -> tuple[float, Any]:
        began = time.perf_counter()
        out = generate(
            model, [np.array(p, np.int32) for p in prompts],
            max_new_tokens=new_tokens, drafter=drafter, stop_ids=(),
            capacity=config.capacity,
        )  # fmt: skip
        return time.perf_counter() - began, [row.tolist() for row in out.tokens]

    return once


def _theirs(peer: Peer, mode: str, prompts: Any, config: Config) -> Timed:
    def once(new_tokens: int) -> tuple[float, Any]:
        answer = peer.run(
            mode=mode, prompts=prompts, new_tokens=new_tokens, capacity=config.capacity
        )
        return answer["seconds"], answer["tokens"]

    return once


def _each(make: Callable[..., Timed], *arguments: Any) -> Timed:
    """The same, one prompt at a time; the prompts are the one list of lists."""
    at = next(i for i, a in enumerate(arguments) if isinstance(a, list))
    runs = [
        make(*arguments[:at], [prompt], *arguments[at + 1 :])
        for prompt in arguments[at]
    ]

    def once(new_tokens: int) -> tuple[float, Any]:
        found = [run(new_tokens) for run in runs]
        return sum(seconds for seconds, _ in found), [
            row for _, t in found for row in t
        ]

    return once


def _in_turns(
    runs: dict[str, Timed], config: Config
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds a token of every contestant; the first turn compiles.

    A run of one token is taken off, and with it the prompt and all fixed costs.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, Any] = {}
    for turn in range(config.rounds + 1):
        for name, once in runs.items():
            short, _ = once(1)
            long, tokens[name] = once(1 + config.new_tokens)
            if turn:
                # Short runs are noise: a time is never below nothing.
                took = max(long - short, 1e-9)
                times[name].append(1e3 * took / config.new_tokens)
    return times, tokens


def _row(case: str, times: dict[str, list[float]], tokens: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case}
    for name, some in times.items():
        row[name] = round(float(np.median(some)), 4)
        row[f"{name}, spread"] = round(float(np.max(some) - np.min(some)), 4)
        same = [a == b for a, b in zip(tokens[name], tokens["jtok"], strict=True)]
        row[f"{name}, rows equal to ours"] = f"{sum(same)} of {len(same)}"
    return {**row, "load": round(os.getloadavg()[0], 2)}


def _claim_race(
    id_: str, bound: float, row: dict[str, Any], times: Any, report: Any
) -> None:
    if id_ not in CLAIMS:  # another batch than the two that are claimed
        return
    medians = {name: float(np.median(some)) for name, some in times.items()}
    ours = medians.pop("jtok")
    best = min(medians, key=lambda name: medians[name]) if medians else None
    pairs = np.array(times[best]) / np.array(times["jtok"]) if best else np.zeros(1)
    report.claim(
        id_,
        f"milliseconds a token of transformers ({best}) over ours, {row['case']}",
        paper="none: a strong peer in the same run",
        measured=round(medians[best] / ours, 3) if best else 0.0,
        unit="x",
        op=">=",
        bound=bound,
        ci95=(round(float(pairs.min()), 3), round(float(pairs.max()), 3)),
        n=len(pairs),
        reason="the peer reads the weights as fast" if best else ABSENT,
    )


def _race_recycling(
    models: Any, costs: Any, trained: jtok.models.Model, prompts: list[list[int]],
    config: Config, report: Any,
) -> None:  # fmt: skip
    """Token Recycling on every shape, with the acceptance it has on real text.

    Random weights have no text to recycle, so drafts are scripted there: each call
    finds the true continuation down to a depth drawn from what was measured.
    """
    full, state = recycling_template(), None
    hits = np.zeros(full.num_nodes, np.int64)
    for prompt in prompts:
        out = generate(
            trained, prompt, max_new_tokens=config.new_tokens,
            drafter=token_recycling(), drafter_state=state, stop_ids=(),
        )  # fmt: skip
        hits, state = hits + out.stats.node_hits, out.drafter_state
    rows = []
    for name, model in report.progress(models.items(), "recycling"):
        tree, expected = choose_template(full, hits, costs[name])
        prompt = (np.arange(config.cached) % model.config.vocab_size).tolist()
        plain = _ours(model, [prompt], None, config)
        truth = np.array(prompt + plain(1 + config.new_tokens)[1][0])
        law = depth_law(full, hits, tree)
        drafter = scripted_drafter(truth, tree, law, config.seed)
        runs = {"jtok": plain, "recycling": _ours(model, [prompt], drafter, config)}
        times, tokens = _in_turns(runs, config)
        row = _row(name, times, tokens)
        speedup = np.median(times["jtok"]) / np.median(times["recycling"])
        sizes = {"nodes": tree.num_nodes, "tokens per call": round(expected, 3)}
        rows.append({**row, **sizes, "speed-up": float(speedup)})
    report.table("Token Recycling with measured acceptance, milliseconds a token", rows)
    pairs = np.array(times["jtok"]) / np.array(times["recycling"])
    report.claim(
        "recycling_over_plain",
        f"milliseconds a token of plain decoding over Token Recycling's ({name}), with "
        "drafts scripted to the acceptance measured on a trained model",
        paper="2x on GPUs",
        measured=round(float(speedup), 3),
        unit="x",
        op=">=",
        bound=1.7,
        ci95=(round(float(pairs.min()), 3), round(float(pairs.max()), 3)),
        n=len(pairs),
        reason="a call of so many nodes costs more than one of one node",
    )


# ---- the hardware's limit


def _report_bandwidth(models: Any, config: Config, report: Any) -> None:
    """Plain decoding reads every weight once a token: how near is that to the limit?"""
    limit = _read_speed(config)
    device = jax.devices()[0].device_kind
    promised = DATASHEET.get(device)
    rows = []
    for name, model in models.items():
        prompt = np.arange(config.cached) % model.config.vocab_size
        once = _ours(model, [prompt.tolist()], None, config)
        times, _ = _in_turns({"jtok": once}, config)
        seconds = float(np.median(times["jtok"])) / 1e3
        size = model.num_params * jnp.dtype(config.dtype).itemsize
        rows.append(
            {
                "model": name,
                "parameters": model.num_params,
                "ms a token": seconds * 1e3,
                "GB/s": size / seconds / 1e9,
                "limit, GB/s": limit / 1e9,
                "share": size / seconds / limit,
                "share of the data sheet": size / seconds / (promised or np.nan),
            }
        )
    report.table("Plain decoding against the speed of the memory", rows)
    report.claim(
        "bandwidth_share",
        f"bytes of the weights ({rows[-1]['model']}) over time a token, as a share of "
        "the speed at which this device sums a large array",
        paper="none: the hardware's limit",
        measured=round(rows[-1]["share"], 3),
        unit="share",
        op=">=",
        bound=0.7,
        n=config.rounds,
        reason="kernels between the large products, and products that do not reach "
        "the memory's speed",
    )


def _read_speed(config: Config) -> float:
    """Bytes a second at which a large array is read once (summed)."""
    large = 2**30 if jax.default_backend() == "gpu" else 2**26
    size = 2**22 if config.rounds == 1 else large
    x = jnp.ones((size // 128, 128), jnp.float32)
    total = jax.jit(lambda x: jnp.sum(x))
    jax.block_until_ready(total(x))
    times = []
    for _ in range(config.rounds):
        began = time.perf_counter()
        jax.block_until_ready(total(x))
        times.append(time.perf_counter() - began)
    return 4 * size / float(np.min(times))


def _report_nodes(models: Any, config: Config, report: Any) -> dict[str, CostCurve]:
    """What a call costs by its nodes."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5, 3))
    axes = fig.add_subplot()
    rows, curves = [], {}
    tree = _wide_tree(max(config.nodes))
    for name, model in report.progress(models.items(), "nodes"):
        costs = cost_curve(
            model, template=tree, sizes=config.nodes, cached=config.cached,
            calls=config.new_tokens, repeats=min(3, config.rounds),
        )  # fmt: skip
        curves[name] = costs
        relative = np.array(costs.seconds) / costs.seconds[0]
        axes.plot(costs.nodes, relative, marker="o", label=name)
        for nodes, seconds in zip(costs.nodes, costs.seconds, strict=True):
            row = {"model": name, "nodes": nodes, "ms": seconds * 1e3}
            rows.append({**row, "relative": seconds / costs.seconds[0]})
    axes.set(xlabel="nodes of a call", ylabel="time over one node's", ylim=(0, None))
    axes.legend()
    report.figure("What a call costs by its nodes", fig)
    report.table("Cost of a call by its nodes", rows)
    return curves


def _wide_tree(nodes: int) -> Tree:
    """Eight candidates after every node, the first nodes in level order."""
    paths: list[tuple[int, ...]] = [()]
    for path in paths:
        if len(paths) >= nodes:
            break
        paths.extend((*path, rank) for rank in range(8))
    return Tree.from_paths(paths[1:nodes])
