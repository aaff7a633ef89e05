"""A draft model of another vocabulary saves calls and changes no token.

A model of 7 M weights and 4,096 tokens decodes real prompts; a model of 3 M weights and
3,000 other tokens drafts for it: text is what they share. Beside it, plain decoding of
both kinds, and `transformers`' universal assisted decoding with the same two models,
as many drafts a step and as many threads (one prompt at a time: it takes no more).

```
python -m experiments.run bench_draft_across --peer-python path/to/python
```

`--peer-python` is a Python with torch and transformers (`pip install jtok[peers]` in an
environment of its own); without one the comparison says so and fails. About 3 minutes
on 2 CPU cores. Models of this size live in the processor's cache, where a draft model
cannot save time; what carries over to larger ones is the number of calls.
"""

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import jtok
from experiments.peers.process import Peer, PeerError
from experiments.targets import load_target, prompts_by_domain
from jtok import testing
from jtok.decode import draft_across, generate
from jtok.errors import ArgumentError

CLAIMS = (
    "outputs_that_differ",
    "tokens_per_call",
    "tokens_per_call_sampled",
    "calls_of_peer_over_ours",
    "time_of_peer_over_ours",
    "batch_saves_calls_alike",
)
SOURCES = (
    "experiments/peers/*.py",
    "experiments/targets.py",
    "jtok/decode/generate.py",
    "jtok/decode/host.py",
    "jtok/decode/loop.py",
    "jtok/decode/other_vocabulary.py",
    "jtok/decode/verify.py",
)
MINUTES = {"smoke": 0.3, "small": 3, "full": 30}
ABSENT = "torch and transformers are not here, or not asked for: nothing was compared"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is decoded by what.

    Attributes:
      model: what verifies, a hub id or folder, "data:NAME" among the real data, or ""
        for the small model of `pretrain`.
      draft: what drafts, named alike; its vocabulary is another one.
      prompts: of each domain.
      prompt_tokens: most tokens of a prompt.
      new_tokens: tokens to emit.
      draft_tokens: tokens that the draft model writes before a step.
      rounds: timed runs of each, in turns.
      threads: of the peer; JAX uses the machine's.
      peer: race against transformers, where it can be run.
      peer_python: a Python that has torch and transformers; "" is this one.
      dtype: of the parameters.
      small: whether the trained small model is the real one or the smoke-sized one.
      seed: of prompts and draws.
    """

    model: str = "data:checkpoints/target-7m"
    draft: str = "data:checkpoints/draft-3m"
    prompts: int = 4
    prompt_tokens: int = 160
    new_tokens: int = 96
    draft_tokens: int = 6
    rounds: int = 3
    threads: int = 2
    peer: bool = True
    peer_python: str = ""
    dtype: str = "float32"
    small: bool = True
    seed: int = 0


PRESETS = {
    "smoke": Config(model="", draft="", prompts=1, new_tokens=8, rounds=1, small=False),
    "small": Config(),
    "full": Config(
        model="Qwen/Qwen2.5-7B-Instruct", draft="HuggingFaceTB/SmolLM2-135M",
        dtype="bfloat16", prompts=10, new_tokens=256,
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Decodes with and without the draft model, and with the peer.

    Args:
      config: what is decoded by what.
      report: where the figures go.
    """
    target = load_target(config.model, report, small=config.small, dtype=config.dtype)
    draft = load_target(config.draft, report, small=config.small, dtype=config.dtype)
    domains = prompts_by_domain(
        target, report, count=config.prompts, tokens=config.prompt_tokens,
        seed=config.seed,
    )  # fmt: skip
    with _peer(config, report) as peer:
        rows = [
            _race(target, draft, kind, prompts, temperature, peer, config)
            for kind, prompts in report.progress(list(domains.items()), "domains")
            for temperature in (0.0, 1.0)
        ]
    report.table("One prompt at a time", rows)
    together = _together(target, draft, domains, config)
    report.table("All prompts of a domain at once", together)
    _claims(rows, together, config, report)


@contextlib.contextmanager
def _peer(config: Config, report: Any) -> Iterator[Any]:
    """The peer with both models, or None where it cannot run."""
    packages = ("torch", "transformers")
    here = all(importlib.util.find_spec(name) for name in packages)
    named = all(name.startswith("data:") for name in (config.model, config.draft))
    if not config.peer or not named or (not config.peer_python and not here):
        report.text(f"{ABSENT}.")
        yield None
        return
    folders = [
        str(testing.data(name.removeprefix("data:")))
        for name in (config.model, config.draft)
    ]
    try:
        peer = Peer(
            config.peer_python, "assist_with_transformers.py", folders,
            threads=config.threads,
        )  # fmt: skip
    except PeerError as error:
        raise ArgumentError(f"peer_python: {error}.") from None
    with peer:
        for name, version in peer.versions.items():
            report.artifact(name, version)
        yield peer


def _race(
    target: jtok.models.Model, draft: jtok.models.Model, kind: str, prompts: list,
    temperature: float, peer: Any, config: Config,
) -> dict[str, Any]:  # fmt: skip
    """Every way to decode, one prompt at a time, in turns."""
    across = draft_across(draft, target.vocabulary, draft_tokens=config.draft_tokens)
    times: dict[str, list[float]] = {}
    tokens: dict[str, list[list[int]]] = {}
    calls: dict[str, int] = {}
    failed: dict[str, str] = {}
    for turn in range(config.rounds + 1):
        for name, drafter in (("plain", None), ("across", across)):
            began, made, count = time.perf_counter(), [], 0
            for prompt in prompts:
                out = generate(
                    target, prompt, max_new_tokens=config.new_tokens, drafter=drafter,
                    temperature=temperature, seed=config.seed, stop_ids=(),
                    capacity=_capacity(config),
                )  # fmt: skip
                made.append(out.tokens.tolist())
                count += int(out.stats.calls)
            if turn:  # the first one compiles
                times.setdefault(name, []).append(time.perf_counter() - began)
            tokens[name], calls[name] = made, count
        for name, drafts in (("peer plain", 0), ("peer across", config.draft_tokens)):
            if peer is None or name in failed:
                continue
            found = _peer_answers(peer, prompts, drafts, temperature, config)
            if isinstance(found, str):
                failed[name] = found
                times.pop(name, None)
                continue
            if turn:
                seconds = sum(answer["seconds"] for answer in found)
                times.setdefault(name, []).append(seconds)
            tokens[name] = [answer["tokens"] for answer in found]
            calls[name] = sum(answer["calls"] for answer in found)
    emitted = len(prompts) * config.new_tokens
    row: dict[str, Any] = {"prompts": kind, "temperature": temperature}
    for name, some in times.items():
        row[f"{name}, tokens a call"] = round(emitted / calls[name], 3)
        row[f"{name}, ms a token"] = round(1e3 * float(np.median(some)) / emitted, 3)
        row[f"{name}, nats a token"] = _nats(target, prompts, tokens[name])
    differ = zip(tokens["plain"], tokens["across"], strict=True)
    row["rows that differ"] = sum(one != other for one, other in differ)
    return row | {f"{name}, failed": why for name, why in failed.items()}


def _nats(target: jtok.models.Model, prompts: list, tokens: list) -> float:
    """How unlikely the target finds what was emitted: a sample's own law shows here."""
    rows = [[*p.tolist(), *t] for p, t in zip(prompts, tokens, strict=True)]
    both = jtok.models.score(target, rows + [p.tolist() for p in prompts])
    whole, before = np.split(np.asarray(both.log_likelihood), 2)
    return round(float((before - whole).sum() / sum(map(len, tokens))), 3)


def _peer_answers(
    peer: Any, prompts: list, drafts: int, temperature: float, config: Config
) -> Any:
    """What the peer made of every prompt, or why it could not."""
    try:
        return [
            peer.run(
                prompt=prompt.tolist(), new_tokens=config.new_tokens,
                draft_tokens=drafts, temperature=temperature, seed=config.seed,
            )
            for prompt in prompts
        ]  # fmt: skip
    except PeerError as error:
        return str(error)[:120]


def _capacity(config: Config) -> int:
    """One for all prompts, so that they share what is compiled."""
    return -(-(config.prompt_tokens + config.new_tokens + 256) // 128) * 128


def _together(
    target: jtok.models.Model, draft: jtok.models.Model, domains: dict, config: Config
) -> list[dict[str, Any]]:
    """All prompts of a domain as one batch."""
    across = draft_across(draft, target.vocabulary, draft_tokens=config.draft_tokens)
    rows = []
    for kind, prompts in domains.items():
        for temperature in (0.0, 1.0):
            options = {
                "max_new_tokens": config.new_tokens, "temperature": temperature,
                "seed": config.seed, "stop_ids": (), "capacity": _capacity(config),
            }  # fmt: skip
            plain = generate(target, prompts, **options)
            out = generate(target, prompts, drafter=across, **options)
            pairs = zip(plain.tokens, out.tokens, strict=True)
            rows.append(
                {
                    "prompts": kind,
                    "temperature": temperature,
                    "tokens a call": round(float(out.stats.tokens_per_call), 3),
                    "rows that differ": sum(
                        not np.array_equal(one, other) for one, other in pairs
                    ),
                }
            )
    return rows


def _peer_reason(rows: list) -> str:
    failed = [row["prompts"] for row in rows if "peer across, failed" in row]
    where = f"; it failed on {', '.join(failed)}" if failed else ""
    return f"of the kinds of prompts that the peer could do{where}"


def _claims(rows: list, together: list, config: Config, report: Any) -> None:
    by = lambda temperature, name, some=rows: [
        row[name] for row in some if row["temperature"] == temperature and name in row
    ]
    differ = sum(row["rows that differ"] for row in [*rows, *together])
    report.claim(
        "outputs_that_differ", "rows that differ from plain decoding",
        paper="none: the guarantee", measured=differ, unit="rows", op="==", bound=0,
        n=2 * len(rows) * config.prompts,
    )  # fmt: skip
    for id_, temperature in (
        ("tokens_per_call", 0.0),
        ("tokens_per_call_sampled", 1.0),
    ):
        found = by(temperature, "across, tokens a call")
        report.claim(
            id_, f"least tokens a call of the kinds of prompts at T={temperature:g}",
            paper="none: beyond the paper", measured=min(found), unit="tokens",
            op=">", bound=1.0, n=len(found),
        )  # fmt: skip
    for id_, name, what in (
        ("calls_of_peer_over_ours", "tokens a call", "calls"),
        ("time_of_peer_over_ours", "ms a token", "time"),
    ):
        both = [row for row in rows if f"peer across, {name}" in row]
        ours = np.array(by(0.0, f"across, {name}", both))
        theirs = np.array(by(0.0, f"peer across, {name}", both))
        ratio = 0.0
        if theirs.size:
            share = theirs / ours if what == "time" else ours / theirs
            ratio = round(float(np.exp(np.mean(np.log(share)))), 3)
        report.claim(
            id_,
            f"{what} of transformers' universal assisted decoding over ours at T=0, "
            "geometric mean of the kinds of prompts",
            paper="none: a strong peer in the same run", measured=ratio, unit="x",
            op=">=", bound=1.0, n=int(ours.size),
            reason=_peer_reason(rows) if theirs.size else ABSENT,
        )  # fmt: skip
    single = by(0.0, "across, tokens a call")
    batch = by(0.0, "tokens a call", together)
    report.claim(
        "batch_saves_calls_alike",
        "tokens a call of a batch over those of single prompts at T=0, the least",
        paper="none: batches",
        measured=round(min(b / s for b, s in zip(batch, single, strict=True)), 3),
        unit="x", op=">=", bound=0.99, n=len(single),
    )  # fmt: skip
