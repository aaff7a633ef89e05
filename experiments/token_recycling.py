"""Token Recycling: real text as plain decoding gives it, in a fraction of the calls.

A small language model (trained once, see `experiments/pretrain.py`) or any model given
by `--model` continues prompts of Python code, English and school maths: plainly, with
prompt lookup, and with Token Recycling from a cold table, an inherited table, and one
that also learns from prompts. Counted are tokens per call, at temperature 0 and 1;
then a tree is chosen for this machine and the wall clock is compared with plain
decoding, run in turns.

```
python -m experiments.run token_recycling
python -m experiments.run token_recycling --preset full --model Qwen/Qwen2.5-7B-Instruct
```

The paper (arXiv 2408.08696): 2.70 tokens per call and 2.03x on Spec-Bench with
Vicuna 7B, where prompt lookup has 1.75 and 1.53x. A small model repeats itself more
than a large one, which flatters every drafter; the share of repeated 4-grams stands
beside each figure. Measured: 2.98 to 4.39 tokens per call on the small model at
temperature 0 (inherited table); wall clock 0.92x on two CPU cores, 2.12x for 31 M
random weights with the small model's acceptance. About 3.5 minutes on 2 CPU cores, plus
4 to train the model once.
"""

import dataclasses
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import jtok
from experiments.scripted import depth_law, scripted_drafter
from experiments.targets import load_target, prompts_by_domain, repeated_ngrams
from jtok import nn, testing
from jtok.decode import (
    Drafter,
    Generated,
    choose_template,
    cost_curve,
    generate,
    prompt_lookup,
    recycling_template,
    token_recycling,
    tune_template,
)
from jtok.ops import Tree

CLAIMS = (
    "lossless",
    "cold_over_lookup_t0",
    "cold_over_lookup_t1",
    "inherited_over_lookup_t0",
    "inherited_over_lookup_t1",
    "inherited_over_cold_t0",
    "wall_clock_t0",
    "wall_clock_30m",
)
SOURCES = (
    "experiments/scripted.py",
    "experiments/targets.py",
    "jtok/decode/calibrate.py",
    "jtok/decode/drafters.py",
    "jtok/decode/generate.py",
    "jtok/decode/loop.py",
    "jtok/decode/recycling.py",
    "jtok/decode/templates.py",
    "jtok/decode/types.py",
    "jtok/decode/verify.py",
    "jtok/ops/attention/*.py",
    "jtok/ops/sampling.py",
    "jtok/ops/tree.py",
    "jtok/ops/unembed/*.py",
    "jtok/models/cache.py",
    "jtok/models/model.py",
    "jtok/models/target.py",
)
MINUTES = {"smoke": 0.5, "small": 3, "target_7m": 6, "full": 60}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is decoded and how much of it.

    Attributes:
      model: hub id or folder; "" for the small model of `pretrain`, "data:NAME" for a
        folder among the real data.
      small: whether that small model is the real one or the smoke-sized one.
      prompts: prompts of each domain.
      new_tokens: most tokens to emit for each.
      prompt_tokens: tokens of a prompt at most.
      prompts_too: also a table that learns from prompts.
      ablate: sizes of trees to compare, the root not counted.
      tune_prompts: prompts (of their own) that choose the tree.
      timed_prompts: prompts of the timed runs.
      rounds: timed runs of each method, in turns.
      sizes: numbers of nodes whose cost is measured.
      random_width: width of the random model with scripted drafts.
      random_layers: its layers.
      dtype: of the parameters.
      seed: of prompts and sampling.
    """

    model: str = ""
    small: bool = True
    prompts: int = 6
    new_tokens: int = 128
    prompt_tokens: int = 64
    prompts_too: bool = True
    ablate: tuple[int, ...] = (8, 20, 40)
    tune_prompts: int = 4
    timed_prompts: int = 3
    rounds: int = 7
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 81)
    random_width: int = 512
    random_layers: int = 8
    dtype: str = "float32"
    seed: int = 0


PRESETS = {
    "smoke": Config(
        small=False, prompts=2, new_tokens=24, prompt_tokens=24, ablate=(),
        prompts_too=False,
        tune_prompts=1, timed_prompts=1, rounds=1, sizes=(1, 8),
        random_width=64, random_layers=2,
    ),
    "small": Config(),
    "target_7m": Config(model="data:checkpoints/target-7m", prompts=10),
    "full": Config(
        model="lmsys/vicuna-7b-v1.3", prompts=160, new_tokens=1024, dtype="bfloat16",
        prompt_tokens=1024, tune_prompts=20, timed_prompts=20,
    ),
}  # fmt: skip


class Run(NamedTuple):
    """One method over one list of prompts."""

    outs: list[Generated]

    @property
    def per_prompt(self) -> np.ndarray:
        """`[prompts, 2]` emitted tokens and calls."""
        return np.array([(o.stats.emitted, o.stats.calls) for o in self.outs])

    @property
    def tokens_per_call(self) -> float:
        """Emitted tokens over calls, summed."""
        emitted, calls = self.per_prompt.sum(axis=0)
        return float(emitted / calls)

    @property
    def seconds(self) -> float:
        """Wall time of all prompts, prefill included."""
        return sum(o.stats.prefill_seconds + o.stats.decode_seconds for o in self.outs)


def run(config: Config, report: Any) -> None:
    """Runs the comparison and writes the report.

    Args:
      config: what to decode.
      report: where the figures go.
    """
    model = load_target(config.model, report, small=config.small, dtype=config.dtype)
    if not config.model:
        _report_bits(model, report)
    # The first prompts of a domain are for choosing the tree.
    count = config.prompts + config.tune_prompts
    domains = prompts_by_domain(
        model, report, count=count, tokens=config.prompt_tokens, seed=config.seed
    )
    runs: dict[tuple[float, str, str], Run] = {}
    for temperature in (0.0, 1.0):
        for name, prompts in report.progress(
            list(domains.items()), f"decode at T={temperature:g}"
        ):
            for method, made in _methods(model, prompts, temperature, config).items():
                runs[temperature, name, method] = made
    _report_calls(runs, domains, config, report)
    _report_lossless(runs, report)
    _report_pictures(model, runs, domains, report)
    _report_ablation(model, domains, config, report)
    hits = _report_wall_clock(model, domains, config, report)
    _report_oracle(hits, config, report)


def _report_bits(model: jtok.models.Model, report: Any) -> None:
    """The held-out quality of the small model stands beside what it shows."""
    from experiments.corpus import standard_library
    from jtok import train

    corpus = standard_library()
    row = {}
    for kind in ("code", "english"):
        texts = [text[:4000] for text in corpus.held_out(kind)[:10]]
        bits = train.bits_per_byte(model, model.vocabulary, texts, length=256)
        row[f"{kind}, bits per byte"] = round(bits, 3)
    row["parameters"] = model.num_params
    report.table("The small model on held-out text", [row])


def _decode(
    model: jtok.models.Model,
    prompts: list[np.ndarray],
    drafter: Drafter | None,
    config: Config,
    *,
    temperature: float,
    inherit: bool = False,
    gaps: bool = False,
    state: Any = None,
) -> Run:
    """Decodes prompts one after the other, as a user at a desk would."""
    outs = []
    for index, prompt in enumerate(prompts):
        out = generate(
            model,
            prompt,
            max_new_tokens=config.new_tokens,
            drafter=drafter,
            drafter_state=state,
            temperature=temperature,
            seed=config.seed + index,
            gaps=gaps,
        )
        outs.append(out)
        state = out.drafter_state if inherit else state
    return Run(outs)


def _methods(
    model: jtok.models.Model, prompts: list[Any], temperature: float, config: Config
) -> dict[str, Run]:
    prompts = prompts[config.tune_prompts :]
    recycling, warm = token_recycling(), token_recycling(update_from_prefill=True)
    table: dict[str, tuple[Drafter | None, bool]] = {
        "plain": (None, False),
        "prompt lookup": (prompt_lookup(), False),
        "recycling, cold": (recycling, False),
        "recycling, inherited": (recycling, True),
    }
    if config.prompts_too:
        table["recycling, inherited + prompts"] = (warm, True)
    return {
        name: _decode(
            model, prompts, drafter, config, temperature=temperature,
            inherit=inherit, gaps=drafter is None,
        )
        for name, (drafter, inherit) in table.items()
    }  # fmt: skip


def _ratio(first: list[Run], second: list[Run], seed: int = 0) -> tuple[float, Any]:
    """Ratio of tokens per call, with a 95 % bootstrap interval over prompts."""
    one = np.concatenate([r.per_prompt for r in first])
    two = np.concatenate([r.per_prompt for r in second])
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(one), (2000, len(one)))

    def rate(rows: np.ndarray) -> np.ndarray:
        emitted, calls = rows[..., 0].sum(-1), rows[..., 1].sum(-1)
        return emitted / calls

    spread = np.quantile(rate(one[picks]) / rate(two[picks]), (0.025, 0.975))
    return float(rate(one) / rate(two)), tuple(float(x) for x in spread)


def _report_calls(runs: Any, domains: Any, config: Config, report: Any) -> None:
    rows = []
    for (temperature, domain, method), made in runs.items():
        plain = runs[temperature, domain, "plain"]
        prompts = domains[domain][config.tune_prompts :]
        slots = sum(o.stats.slots for o in made.outs)
        repeated = np.mean(
            [repeated_ngrams(p, o.tokens) for p, o in zip(prompts, plain.outs)]
        )
        rows.append(
            {
                "temperature": temperature,
                "domain": domain,
                "method": method,
                "tokens per call": round(made.tokens_per_call, 3),
                "query slots per call": slots / int(made.per_prompt[:, 1].sum()),
                "tokens": int(made.per_prompt[:, 0].sum()),
                "repeated 4-grams": round(float(repeated), 3),
            }
        )
    report.table("Tokens per call", rows)

    def pooled(temperature: float, method: str) -> list[Run]:
        return [runs[temperature, domain, method] for domain in domains]

    lookup, cold, inherited = (
        "prompt lookup",
        "recycling, cold",
        "recycling, inherited",
    )
    for id_, first, second, temperature, op, bound in (
        ("cold_over_lookup_t0", cold, lookup, 0.0, ">", 1.0),
        ("cold_over_lookup_t1", cold, lookup, 1.0, ">", 1.0),
        ("inherited_over_lookup_t0", inherited, lookup, 0.0, ">=", 1.25),
        ("inherited_over_lookup_t1", inherited, lookup, 1.0, ">=", 1.25),
        ("inherited_over_cold_t0", inherited, cold, 0.0, ">", 1.0),
    ):
        ratio, spread = _ratio(pooled(temperature, first), pooled(temperature, second))
        report.claim(
            id_,
            f"{first} against {second}: tokens per call at T={temperature:g}",
            paper="2.70 against 1.75 tokens per call, Vicuna 7B on Spec-Bench, T=0",
            measured=round(ratio, 4),
            unit="ratio",
            op=op,
            bound=bound,
            ci95=spread,
            n=sum(len(r.outs) for r in pooled(temperature, first)),
            reason="see the repeated 4-grams: text that repeats whole phrases of the "
            "prompt favours prompt lookup, and one short prompt hardly fills a table",
        )


def _report_lossless(runs: Any, report: Any) -> None:
    """Every output against plain decoding; a difference must be a near-tie."""
    unexplained, ties, count = 0, [], 0
    for (temperature, domain, method), made in runs.items():
        if method == "plain":
            continue
        plain = runs[temperature, domain, "plain"]
        for index, (a, b) in enumerate(zip(plain.outs, made.outs, strict=True)):
            count += len(a.tokens)
            for found in testing.compare(a, b):
                ties.append(
                    {"method": method, "domain": domain, "T": temperature,
                     "prompt": index, "token": found.index, "gap": found.gap}
                )  # fmt: skip
                unexplained += found.gap >= 1e-4
    report.table("Differences from plain decoding (near-ties)", ties)
    report.claim(
        "lossless",
        "tokens that differ from plain decoding where it had no near-tie (gap < 1e-4)",
        paper="lossless",
        measured=unexplained,
        unit="tokens",
        op="==",
        bound=0,
        n=count,
        reason="a bug: please report it",
    )


def _report_pictures(model: Any, runs: Any, domains: Any, report: Any) -> None:
    from matplotlib.figure import Figure

    for domain in domains:
        out = runs[0.0, domain, "recycling, inherited"].outs[-1]
        spelled = [model.vocabulary.decode([int(t)]) for t in out.tokens]
        pieces = [
            (text, int(call)) for text, call in zip(spelled, out.call_of, strict=True)
        ]
        report.tokens(f"One colour a call: {domain}", pieces)
    fig = Figure(figsize=(9, 3))
    depth, learning = fig.subplots(1, 2)
    for temperature in (0.0, 1.0):
        for method in ("prompt lookup", "recycling, inherited"):
            outs = [o for d in domains for o in runs[temperature, d, method].outs]
            calls = sum(o.stats.calls for o in outs)
            kept = sum(o.stats.accepted_by_depth * o.stats.calls for o in outs) / calls
            label = f"{method}, T={temperature:g}"
            depth.plot(np.arange(1, len(kept) + 1), kept, marker="o", label=label)
    depth.set(xlabel="depth of the draft", ylabel="share of calls that kept it")
    depth.legend(fontsize=6)
    for domain in domains:
        rows = runs[0.0, domain, "recycling, inherited"].per_prompt
        learning.plot(rows[:, 0] / rows[:, 1], marker="o", label=domain)
    learning.set(xlabel="prompt, in order", ylabel="tokens per call, T=0")
    learning.legend(fontsize=6)
    report.figure("Acceptance by depth, and how the table learns", fig)


def _report_ablation(model: Any, domains: Any, config: Config, report: Any) -> None:
    """Trees of several sizes: the first nodes of the paper's template."""
    domain = next(iter(domains))
    rows = []
    for size in report.progress(config.ablate, "tree sizes"):
        template = Tree.from_paths(recycling_template().paths[:size])
        made = _decode(
            model, domains[domain][config.tune_prompts :],
            token_recycling(template=template), config,
            temperature=0.0, inherit=True,
        )  # fmt: skip
        calls = round(made.tokens_per_call, 3)
        rows.append({"drafts": size, "domain": domain, "tokens per call": calls})
    report.table("Tokens per call by tree size, inherited, T=0", rows)


def _report_wall_clock(
    model: Any, domains: Any, config: Config, report: Any
) -> np.ndarray:
    """Chooses a tree for this machine and races it against plain decoding."""
    tune = [p for some in domains.values() for p in some[: config.tune_prompts]]
    timed = [
        p
        for some in domains.values()
        for p in some[config.tune_prompts :][: config.timed_prompts]
    ]
    costs = cost_curve(
        model, sizes=config.sizes, cached=config.prompt_tokens,
        calls=min(64, config.new_tokens),
    )  # fmt: skip
    rows, hits = [], None
    for temperature in (0.0, 1.0):
        tuned = tune_template(
            model, tune, costs=costs, max_new_tokens=config.new_tokens,
            temperature=temperature,
        )  # fmt: skip
        drafter = token_recycling(template=tuned.template)
        if temperature == 0:
            hits = tuned.node_hits
            _plot_costs(costs, tuned, report)
        # The table is warm, as in a session; nobody tunes on the timed prompts.
        warm = _decode(
            model, tune, drafter, config, temperature=temperature, inherit=True
        )
        state = warm.outs[-1].drafter_state
        times = _race(
            {"plain": (None, None), "recycling": (drafter, state)},
            lambda d, s, t=temperature: _decode(
                model, timed, d, config, temperature=t, inherit=d is not None, state=s
            ),
            config.rounds,
        )
        speedup = np.median(times["plain"]) / np.median(times["recycling"])
        pairs = np.array(times["plain"]) / np.array(times["recycling"])
        rows.append(
            {
                "temperature": temperature,
                "nodes": tuned.template.num_nodes,
                "predicted tokens per call": round(tuned.expected, 3),
                "predicted speed-up": round(tuned.speedup, 3),
                "plain, s": round(float(np.median(times["plain"])), 4),
                "recycling, s": round(float(np.median(times["recycling"])), 4),
                "speed-up": round(float(speedup), 3),
                "lowest": round(float(pairs.min()), 3),
                "highest": round(float(pairs.max()), 3),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    report.table("Wall clock against compiled plain decoding", rows)
    _claim_speed("wall_clock_t0", rows[0], config.rounds, report)
    return np.asarray(hits)


def _race(entries: dict[str, Any], once: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of every entry, run in turns, after one turn that compiles."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name, (drafter, state) in entries.items():
            began = time.perf_counter()
            once(drafter, state)
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def _claim_speed(id_: str, row: dict[str, Any], rounds: int, report: Any) -> None:
    report.claim(
        id_,
        f"wall clock of plain decoding over Token Recycling, {row['nodes']} nodes",
        paper="2.03x with 81 nodes, Vicuna 7B on one GPU",
        measured=row["speed-up"],
        unit="x",
        op=">=",
        bound=1.7,
        ci95=(row["lowest"], row["highest"]),
        n=rounds,
        reason="a call with several nodes costs more than plain decoding's here (see "
        "the cost curve), so fewer calls do not become as much less time",
    )


def _plot_costs(costs: Any, tuned: Any, report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5, 3))
    axes = fig.add_subplot()
    axes.plot(costs.nodes, np.array(costs.seconds) * 1e3, marker="o")
    axes.axvline(tuned.template.num_nodes, ls=":", color="grey")
    axes.set(xlabel="nodes of a call", ylabel="milliseconds", ylim=(0, None))
    report.figure("What a call costs by its nodes", fig)
    report.table(
        "Cost curve",
        [
            {
                "nodes": nodes,
                "ms": seconds * 1e3,
                "relative": seconds / costs.seconds[0],
            }
            for nodes, seconds in zip(costs.nodes, costs.seconds, strict=True)
        ],
    )


def _report_oracle(hits: np.ndarray, config: Config, report: Any) -> None:
    """A model of about 30 M random weights, with the acceptance measured above.

    Random weights have no text to recycle, so drafts are scripted: each call finds
    the true continuation down to a depth drawn from the measured acceptance.
    """
    model = _random_model(config)
    prompt = np.arange(1, 65) * 37 % model.config.vocab_size
    costs = cost_curve(model, sizes=config.sizes, calls=48)
    tree, expected = choose_template(recycling_template(), hits, costs)
    kept = depth_law(recycling_template(), hits, tree)
    plain = generate(model, prompt, max_new_tokens=config.new_tokens, stop_ids=())
    drafter = scripted_drafter(
        np.concatenate([prompt, plain.tokens]), tree, kept, config.seed
    )
    last: dict[str, Generated] = {}

    def once(drafter: Any, name: str) -> None:
        last[name] = generate(
            model,
            prompt,
            max_new_tokens=config.new_tokens,
            drafter=drafter,
            stop_ids=(),
        )

    entries = {"plain": (None, "plain"), "scripted": (drafter, "scripted")}
    times = _race(entries, once, config.rounds)
    pairs = np.array(times["plain"]) / np.array(times["scripted"])
    speedup = np.median(times["plain"]) / np.median(times["scripted"])
    row = {
        "parameters": model.num_params,
        "nodes": tree.num_nodes,
        "expected tokens per call": round(expected, 3),
        "tokens per call": round(last["scripted"].stats.tokens_per_call, 3),
        "equal": bool((last["scripted"].tokens == plain.tokens).all()),
        "plain, s": round(float(np.median(times["plain"])), 4),
        "scripted, s": round(float(np.median(times["scripted"])), 4),
        "speed-up": round(float(speedup), 3),
        "lowest": round(float(pairs.min()), 3),
        "highest": round(float(pairs.max()), 3),
        "load": round(os.getloadavg()[0], 2),
    }
    report.table("A random model with the measured acceptance", [row])
    _claim_speed("wall_clock_30m", row, config.rounds, report)


def _random_model(config: Config) -> jtok.models.Model:
    width = config.random_width
    sizes = nn.DecoderConfig(
        vocab_size=8192, width=width, num_layers=config.random_layers, num_heads=8,
        num_kv_heads=8, head_dim=width // 8, mlp_width=3 * width, max_positions=1024,
        tied=True, dtype=config.dtype,
    )  # fmt: skip
    return jtok.models.init(sizes, jax.random.key(config.seed))
