"""Speculative decoding gives what plain decoding gives: every drafter, rule and batch.

Prompts of Python code and English are continued plainly and with every drafter,
greedily and sampled, one at a time and in ragged batches of eight. Outputs must be
equal token by token; where one differs, plain decoding's two best (noised) scores
must have been closer than 1e-4 there, and each such near-tie is listed with its gap.

```
python -m experiments.run speculative_verification
```

`--quick` keeps the two main drafters, prompt lookup and 17 nodes of Token Recycling;
the committed run was made so, and its "every drafter" means these two.

This is no paper but the ground that all drafters share (Leviathan et al. 2023, arXiv
2211.17192). About 10 minutes on 2 CPU cores, plus 4 to train the small model once.
"""

import dataclasses
from typing import Any

import numpy as np

import jtok
from experiments.pretrain import PRESETS as PRETRAIN
from experiments.pretrain import held_out_prompts, small_lm
from jtok.decode import (
    Drafter,
    Generated,
    generate,
    prompt_lookup,
    recycling_template,
    token_recycling,
)
from jtok.ops import Tree

CLAIMS = ("lossless_t0", "lossless_t1", "near_ties")
SOURCES = (
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
    "jtok/models/model.py",
    "jtok/models/target.py",
)
MINUTES = {"smoke": 0.5, "small": 10, "full": 120}
GAP = {"float32": 1e-4, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
      model: hub id or folder; "" for the small model of `pretrain`.
      small: whether that small model is the real one or the smoke-sized one.
      prompts: number of prompts, half code and half English.
      new_tokens: most tokens to emit for each.
      prompt_tokens: tokens of the longest prompt; they are cut to several lengths.
      batch: rows of the batched runs.
      quick: only the two main drafters.
      dtype: of the parameters.
      seed: of prompts and sampling.
    """

    model: str = ""
    small: bool = True
    prompts: int = 200
    new_tokens: int = 128
    prompt_tokens: int = 64
    batch: int = 8
    quick: bool = False
    dtype: str = "float32"
    seed: int = 0


PRESETS = {
    "smoke": Config(
        small=False, prompts=4, new_tokens=16, prompt_tokens=24, batch=2,
        quick=True,
    ),
    "small": Config(),
    "full": Config(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", new_tokens=512),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Runs all comparisons and writes the report.

    Args:
      config: what to compare.
      report: where the figures go.
    """
    model = _model(config, report)
    prompts = _prompts(model, config, report)
    rows, ties = [], []
    for temperature in (0.0, 1.0):
        plain = _run(model, prompts, None, config, temperature, batch=1)
        cases = [
            (name, drafter, batch)
            for batch in (1, config.batch)
            for name, drafter in _drafters(config).items()
        ]
        for name, drafter, batch in report.progress(cases, f"T={temperature:g}"):
            made = _run(model, prompts, drafter, config, temperature, batch=batch)
            case = {"temperature": temperature, "batch": batch, "drafter": name}
            found = _differences(plain, made, case)
            ties += found
            rows.append({**case, **_counts(made), "differences": len(found)})
    report.table("Every case", rows)
    report.table("Differences from plain decoding", ties)
    _claims(rows, ties, config, report)


def _model(config: Config, report: Any) -> jtok.models.Model:
    if config.model:
        report.artifact("model", config.model)
        return jtok.models.load(config.model, dtype=config.dtype)
    folder = small_lm(PRETRAIN["small" if config.small else "smoke"])
    report.artifact("small_lm", folder.parent.name)
    return jtok.models.load(folder, dtype=config.dtype)


def _prompts(model: jtok.models.Model, config: Config, report: Any) -> list[np.ndarray]:
    """Prompts of both kinds in turns, cut to different lengths."""
    texts = []
    for kind in ("code", "english"):
        some = held_out_prompts(kind, count=config.prompts // 2, seed=config.seed)
        report.data(f"standard library, held-out {kind}", "\n".join(some).encode())
        texts.append(some)
    turns = [text for pair in zip(*texts, strict=True) for text in pair]
    lengths = np.random.default_rng(config.seed).integers(
        2, config.prompt_tokens + 1, len(turns)
    )
    encoded = [model.vocabulary.encode(text) for text in turns]
    return [ids[-n:] for ids, n in zip(encoded, lengths, strict=True)]


def _drafters(config: Config) -> dict[str, Drafter | None]:
    small = Tree.from_paths(recycling_template().paths[:16])
    drafters: dict[str, Drafter | None] = {
        "none": None,
        "prompt lookup": prompt_lookup(),
        "prompt lookup, official": prompt_lookup(compat="official"),
        "recycling, 17 nodes": token_recycling(template=small),
        "recycling, 17 nodes, a table a row, prompts": token_recycling(
            template=small, per_row=True, update_from_prefill=True, min_accept=1.05
        ),
    }
    if config.quick:
        return {
            name: drafters[name] for name in ("prompt lookup", "recycling, 17 nodes")
        }
    return {**drafters, "recycling, 81 nodes": token_recycling()}


def _run(
    model: jtok.models.Model,
    prompts: list[np.ndarray],
    drafter: Drafter | None,
    config: Config,
    temperature: float,
    *,
    batch: int,
) -> list[Generated]:
    """Decodes all prompts, `batch` at a time; row i always has seed i."""
    outs, state = [], None
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        out = generate(
            model,
            some,
            max_new_tokens=config.new_tokens,
            drafter=drafter,
            drafter_state=state,
            temperature=temperature,
            seed=config.seed + first,
            gaps=drafter is None,
        )
        outs.append(out)
        if drafter is not None and drafter.inherit is not None:
            state = out.drafter_state
    return outs


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


def _counts(made: list[Generated]) -> dict[str, Any]:
    emitted = sum(out.stats.emitted for out in made)
    calls = sum(out.stats.calls for out in made)
    slots = sum(out.stats.slots for out in made)
    return {
        "prompts": sum(len(out.tokens) for out in made),
        "tokens": emitted,
        "tokens per call": round(emitted / calls, 3),
        "query slots per call": round(slots / calls, 1),
    }


def _claims(rows: Any, ties: Any, config: Config, report: Any) -> None:
    bound = GAP[config.dtype]
    for temperature in (0.0, 1.0):
        mine = [tie for tie in ties if tie["temperature"] == temperature]
        cases = [row for row in rows if row["temperature"] == temperature]
        report.claim(
            f"lossless_t{temperature:g}",
            f"differences from plain decoding at T={temperature:g} whose gap is not "
            f"below {bound:g}, over every drafter and batch",
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
