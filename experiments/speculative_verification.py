"""Speculative decoding gives what plain decoding gives: every drafter, rule and batch.

Prompts of Python code, English and school maths are continued plainly and with every
drafter under every rule, greedily and sampled, one at a time and in ragged batches of
eight. Under the rules that promise it, outputs must be equal token by token; where one
differs, plain decoding's two best (noised) scores must have been closer than 1e-4
there, and each such near-tie is listed with its gap. Rejection sampling promises the
law only, so the laws of three tokens are compared; typical acceptance promises
nothing, and its differences are counted.

```
python -m experiments.run speculative_verification
```

This is no paper but the ground that all drafters share (Leviathan et al. 2023, arXiv
2211.17192). A draft model of one layer is trained on first use. About 20 minutes on 2
CPU cores (it sweeps more than 10,000 cases), plus 5 to train both models once.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

import jtok
from experiments.pretrain import PRESETS as PRETRAIN
from experiments.pretrain import small_lm
from experiments.targets import load_target, prompts_by_domain, repeated_ngrams
from jtok.decode import (
    Drafter,
    Generated,
    Rule,
    draft_model,
    dynamic,
    generate,
    prompt_lookup,
    recycling_template,
    token_recycling,
    typical,
)
from jtok.ops import Tree
from jtok.testing import oracle_drafter, random_drafter

CLAIMS = (
    "lossless_t0",
    "lossless_t1",
    "near_ties",
    "cases",
    "oracle",
    "tree_over_chain",
    "rejection_law",
)
SOURCES = (
    "experiments/targets.py",
    "jtok/decode/candidates.py",
    "jtok/decode/draft_model.py",
    "jtok/decode/drafters.py",
    "jtok/decode/dynamic.py",
    "jtok/decode/loop.py",
    "jtok/decode/recycling.py",
    "jtok/decode/rejection.py",
    "jtok/decode/rules.py",
    "jtok/decode/shaping.py",
    "jtok/decode/templates.py",
    "jtok/decode/types.py",
    "jtok/decode/typical.py",
    "jtok/decode/verify.py",
    "jtok/ops/attention/*.py",
    "jtok/ops/sampling.py",
    "jtok/ops/tree.py",
    "jtok/ops/unembed/*.py",
    "jtok/models/cache.py",
    "jtok/models/model.py",
    "jtok/models/target.py",
)
MINUTES = {"smoke": 0.5, "small": 20, "full": 240}
GAP = {"float32": 1e-4, "bfloat16": 1e-1}
_ORACLE_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
      model: hub id or folder; "" for the small model of `pretrain`.
      draft: the same for the draft model; "" for the one-layer model of `pretrain`.
      small: whether these small models are the real ones or the smoke-sized ones.
      prompts: number of prompts, over all domains.
      new_tokens: most tokens to emit for each.
      prompt_tokens: tokens of the longest prompt; they are cut to several lengths.
      batch: rows of the batched runs.
      draws: sampled texts of the comparison of laws.
      quick: only the two main drafters.
      dtype: of the parameters.
      seed: of prompts and sampling.
    """

    model: str = ""
    draft: str = ""
    small: bool = True
    prompts: int = 200
    new_tokens: int = 128
    prompt_tokens: int = 64
    batch: int = 8
    draws: int = 8192
    quick: bool = False
    dtype: str = "float32"
    seed: int = 0


PRESETS = {
    "smoke": Config(
        small=False, prompts=4, new_tokens=12, prompt_tokens=24, batch=2, draws=64,
        quick=True,
    ),
    "small": Config(),
    "full": Config(
        model="meta-llama/Llama-3.1-8B-Instruct",
        draft="meta-llama/Llama-3.2-1B-Instruct", dtype="bfloat16", new_tokens=512,
    ),
}  # fmt: skip


class Method(NamedTuple):
    """A drafter under a rule; None takes the rule that fits the drafter."""

    drafter: Drafter
    rule: Rule | None = None


def run(config: Config, report: Any) -> None:
    """Runs all comparisons and writes the report.

    Args:
      config: what to compare.
      report: where the figures go.
    """
    model = load_target(config.model, report, small=config.small, dtype=config.dtype)
    draft = _draft(config, report)
    prompts = _prompts(model, config, report)
    rows, ties, loose = [], [], []
    for temperature in (0.0, 1.0):
        plain = _run(model, prompts, None, config, temperature, batch=1)
        rows.append(_case(plain, {"temperature": temperature, "batch": 1}, "plain"))
        rows[-1]["repeated 4-grams"] = _repeated(prompts, plain)
        methods = _methods(draft, config)
        cases = [(name, batch) for batch in (1, config.batch) for name in methods]
        for name, batch in report.progress(cases, f"T={temperature:g}"):
            made = _run(model, prompts, methods[name], config, temperature, batch=batch)
            case = {"temperature": temperature, "batch": batch}
            rows.append(_case(made, case, name))
            found = _differences(plain, made, {**case, "method": name})
            # Greedy rejection takes the arg-max, so there it promises tokens, too.
            promised = rows[-1]["guarantee"] == "token" or (
                rows[-1]["guarantee"] == "distribution" and temperature == 0
            )
            (ties if promised else loose).extend(found)
            rows[-1]["rows that differ"] = len(found)
        _oracle(model, prompts, plain, temperature, config, report, rows)
    report.table("Every case", rows)
    report.table("Differences where equality was promised", ties)
    report.text(
        f"Where only the law or nothing was promised, {len(loose)} rows differ from "
        "plain decoding, as they may."
    )
    _plot(rows, report)
    _claims(rows, ties, config, report)
    _claim_law(model, draft, prompts, config, report)


# ---- what is compared


def _draft(config: Config, report: Any) -> jtok.models.Model:
    if config.draft:
        return load_target(config.draft, report, dtype=config.dtype)
    folder = small_lm(PRETRAIN["draft" if config.small else "smoke"])
    report.artifact("draft_lm", folder.parent.name)
    return jtok.models.load(folder, dtype=config.dtype)


def _prompts(model: jtok.models.Model, config: Config, report: Any) -> list[np.ndarray]:
    """Prompts of all domains in turns, cut to different lengths."""
    domains = prompts_by_domain(
        model, report, count=-(-config.prompts // 2), tokens=config.prompt_tokens,
        seed=config.seed,
    )  # fmt: skip
    turns = [ids for group in zip(*domains.values(), strict=True) for ids in group]
    turns = turns[: config.prompts]
    rng = np.random.default_rng(config.seed)
    lengths = rng.integers(2, config.prompt_tokens + 1, len(turns))
    return [ids[-n:] for ids, n in zip(turns, lengths, strict=True)]


def _methods(draft: jtok.models.Model, config: Config) -> dict[str, Method]:
    few = Tree.from_paths(recycling_template().paths[:16])
    main = {
        "prompt lookup": Method(prompt_lookup()),
        "recycling, 17 nodes": Method(token_recycling(template=few)),
        "draft model, chain of 4": Method(draft_model(draft, depth=4)),
        "draft model, own draws": Method(draft_model(draft, depth=4, draw="own")),
    }
    if config.quick:
        return main
    bushy = Tree.from_paths(
        [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0,) * 4]
    )
    pairs = Tree.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)])
    return {
        **main,
        "prompt lookup, official": Method(prompt_lookup(compat="official")),
        "recycling, a table a row, prompts, gives up": Method(
            token_recycling(
                template=few, per_row=True, update_from_prefill=True, min_accept=1.05
            )
        ),
        "recycling, 81 nodes": Method(token_recycling()),
        "draft model, tree of 10": Method(draft_model(draft, tree=bushy)),
        "draft model, dynamic tree of 16": Method(
            draft_model(draft, tree=dynamic(beam=4, expansions=3, num_nodes=16))
        ),
        "draft model, own draws, tree": Method(
            draft_model(draft, tree=pairs, draw="own")
        ),
        "recycling, 17 nodes, typical": Method(
            token_recycling(template=few), typical()
        ),
        "draft model, chain of 4, typical": Method(
            draft_model(draft, depth=4), typical()
        ),
        "random trees": Method(random_drafter(depth=3, width=4)),
    }


def _run(
    model: jtok.models.Model,
    prompts: list[np.ndarray],
    method: Method | None,
    config: Config,
    temperature: float,
    *,
    batch: int,
) -> list[Generated]:
    """Decodes all prompts, `batch` at a time; row i always has seed i."""
    outs, state = [], None
    drafter = None if method is None else method.drafter
    for first in range(0, len(prompts), batch):
        out = generate(
            model,
            prompts[first : first + batch],
            max_new_tokens=config.new_tokens,
            drafter=drafter,
            rule=None if method is None else method.rule,
            drafter_state=state,
            temperature=temperature,
            seed=config.seed + first,
            gaps=drafter is None,
        )
        outs.append(out)
        if drafter is not None and drafter.inherit is not None:
            state = out.drafter_state
    return outs


def _oracle(
    model: Any, prompts: Any, plain: Any, temperature: float, config: Config,
    report: Any, rows: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Drafts of the true continuation: the most that a chain can give."""
    truth = [row for out in plain for row in out.tokens]
    outs = []
    for index in range(min(len(prompts), 16)):
        drafter = oracle_drafter([truth[index]], _ORACLE_DEPTH)
        method = Method(drafter)
        one = dataclasses.replace(config, seed=config.seed + index)
        outs += _run(model, [prompts[index]], method, one, temperature, batch=1)
    row = _case(outs, {"temperature": temperature, "batch": 1}, "oracle")
    # Each row needs this many calls: only its last one may emit fewer tokens.
    row["fewest calls"] = sum(
        -(-len(out.tokens[0]) // (_ORACLE_DEPTH + 1)) for out in outs
    )
    rows.append(row)


# ---- what is counted


def _case(made: list[Generated], case: dict[str, Any], name: str) -> dict[str, Any]:
    emitted = sum(out.stats.emitted for out in made)
    calls = sum(out.stats.calls for out in made)
    slots = sum(out.stats.slots for out in made)
    histogram = sum(out.stats.emitted_per_call for out in made)
    return {
        **case,
        "method": name,
        "guarantee": made[0].guarantee,
        "prompts": sum(len(out.tokens) for out in made),
        "tokens": emitted,
        "calls": calls,
        "tokens per call": round(emitted / calls, 3),
        "query slots per call": round(slots / calls, 1),
        "calls that emitted 1, 2, ...": " ".join(map(str, histogram[1:])),
    }


def _repeated(prompts: list[np.ndarray], plain: list[Generated]) -> float:
    rows = [row for out in plain for row in out.tokens]
    shares = [repeated_ngrams(p, r) for p, r in zip(prompts, rows, strict=True)]
    return round(float(np.mean(shares)), 3)


def _differences(
    plain: list[Generated], made: list[Generated], case: dict[str, Any]
) -> list[dict[str, Any]]:
    """First differences of every row, with plain decoding's gap there."""
    expected = [row for out in plain for row in out.tokens]
    gaps = [row for out in plain for row in out.gaps]
    got = [row for out in made for row in out.tokens]
    found = []
    for index, (a, b, gap) in enumerate(zip(expected, got, gaps, strict=True)):
        place = _first_difference(a, b)
        if place is not None:
            # Past the end of the plain row there is no gap: nothing excuses that.
            size = float(gap[place]) if place < len(gap) else float("inf")
            found.append({**case, "prompt": index, "token": place, "gap": size})
    return found


def _first_difference(a: np.ndarray, b: np.ndarray) -> int | None:
    shared = min(len(a), len(b))
    places = np.flatnonzero(a[:shared] != b[:shared])
    if places.size:
        return int(places[0])
    return None if len(a) == len(b) else shared


def _plot(rows: list[dict[str, Any]], report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 5))
    axes = fig.add_subplot()
    names = list(dict.fromkeys(row["method"] for row in rows))
    for shift, temperature in ((-0.2, 0.0), (0.2, 1.0)):
        some = {
            row["method"]: row["tokens per call"]
            for row in rows
            if row["temperature"] == temperature and row["batch"] == 1
        }
        places = [i + shift for i, name in enumerate(names) if name in some]
        axes.barh(places, list(some.values()), 0.4, label=f"T={temperature:g}")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="tokens per call")
    axes.legend()
    report.figure("Tokens per call, one prompt at a time", fig)


# ---- claims


def _claims(rows: Any, ties: Any, config: Config, report: Any) -> None:
    bound = GAP[config.dtype]
    for temperature in (0.0, 1.0):
        mine = [tie for tie in ties if tie["temperature"] == temperature]
        cases = [row for row in rows if row["temperature"] == temperature]
        report.claim(
            f"lossless_t{temperature:g}",
            f"differences from plain decoding at T={temperature:g} whose gap is not "
            f"below {bound:g}, wherever equality is promised",
            paper="none: the guarantee of the library",
            measured=sum(tie["gap"] >= bound for tie in mine),
            unit="rows",
            op="==",
            bound=0,
            n=sum(row["prompts"] for row in cases),
            reason="a bug: please report it",
        )
    tokens = sum(row["tokens"] for row in rows)
    report.claim(
        "near_ties",
        "near-ties at which an output left plain decoding, per 50,000 tokens",
        paper="none: the guarantee of the library",
        measured=round(len(ties) * 50_000 / tokens, 4),
        unit="per 50,000 tokens",
        op="<=",
        bound=1.0 if config.dtype == "float32" else 1e9,
        n=tokens,
        reason="float32 sums of this model differ more between shapes",
    )
    cases = sum(row["prompts"] for row in rows)
    report.claim(
        "cases",
        "cases of prompt, method, temperature and batch that were decoded",
        paper="none: how much was tried",
        measured=cases,
        unit="cases",
        op=">=",
        bound=10_000,
        n=cases,
        reason="this preset tries fewer",
    )
    _claim_calls(rows, config, report)


def _claim_calls(rows: Any, config: Config, report: Any) -> None:
    oracle = [row for row in rows if row["method"] == "oracle"]
    report.claim(
        "oracle",
        "calls of the oracle beyond the fewest that its depth allows",
        paper="none: what the loop must reach",
        measured=sum(row["calls"] - row["fewest calls"] for row in oracle),
        unit="calls",
        op="==",
        bound=0,
        n=sum(row["calls"] for row in oracle),
        reason="a bug: please report it",
    )
    of = {
        row["method"]: row["tokens per call"]
        for row in rows
        if row["temperature"] == 0 and row["batch"] == 1
    }
    chain = of["draft model, chain of 4"]
    tree = of.get("draft model, tree of 10", chain)
    report.claim(
        "tree_over_chain",
        "tokens per call of a draft tree of depth 4 over a chain of 4, T=0",
        paper="Spec-Bench and EAGLE-2: trees accept more than chains",
        measured=round(tree / chain, 4),
        unit="ratio",
        op=">",
        bound=1.0,
        n=config.prompts,
        reason="the smoke preset drafts no tree",
    )


def _claim_law(
    model: jtok.models.Model, draft: jtok.models.Model, prompts: Any, config: Config,
    report: Any,
) -> None:  # fmt: skip
    """Two samples of three tokens: drawn plainly, and by rejection."""
    from scipy import stats

    chain, rows = draft_model(draft, depth=4, draw="own"), min(256, config.draws)
    counts: list[dict[Any, int]] = []
    for which, drafter in enumerate((None, chain)):
        seen: dict[Any, int] = {}
        for first in range(0, config.draws, rows):
            out = generate(
                model, [prompts[0]] * rows, max_new_tokens=3, drafter=drafter,
                temperature=1.0, stop_ids=(),
                # Seeds of their own: the two samples must be independent.
                seed=1_000_000 + 10_000_000 * which + first,
            )  # fmt: skip
            for row in out.tokens:
                key = tuple(row.tolist())
                seen[key] = seen.get(key, 0) + 1
        counts.append(seen)
    tables, value = [], 1.0
    for place in (1, 2, 3):
        table = _cells(counts, place)
        p = float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0
        value = min(value, p)
        tables.append({"tokens": place, "cells": table.shape[1], "p": round(p, 4)})
    report.table("Laws of plain sampling and of rejection, compared", tables)
    report.claim(
        "rejection_law",
        "smallest p-value of three two-sample chi-square tests, on the law of 1, 2 "
        "and 3 tokens (false alarms: 0.3 %)",
        paper="Leviathan et al. 2023: the law is unchanged",
        measured=round(value, 5),
        unit="p",
        op=">=",
        bound=0.001,
        n=config.draws,
        reason="a bug, or the false alarm that comes once in 330 runs",
    )


def _cells(counts: list[dict[Any, int]], place: int) -> np.ndarray:
    """`[2, cells]` counts of the first tokens; rare ones share a cell."""
    tables: list[dict[Any, int]] = [{}, {}]
    for table, seen in zip(tables, counts, strict=True):
        for key, count in seen.items():
            table[key[:place]] = table.get(key[:place], 0) + count
    keys = sorted(set(tables[0]) | set(tables[1]))
    pairs = np.array([[table.get(key, 0) for key in keys] for table in tables])
    common = pairs.sum(axis=0) >= 20
    rest = pairs[:, ~common].sum(axis=1, keepdims=True)
    kept = pairs[:, common]
    return np.concatenate([kept, rest], axis=1) if rest.sum() >= 20 else kept
