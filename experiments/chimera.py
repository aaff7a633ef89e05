"""Chimera: drafts from the target's states and trigrams, against heads on one state.

On a frozen small language model (trained once, see `experiments/pretrain.py`) four
heads are trained in five ways of equal size: Medusa's residual blocks on the last
state, Chimera's stack, and that stack without trigrams, without the stream of states,
and without both. Measured on the target's own greedy continuations of held-out code
and English: how often the best (and the best five) candidates hold the target's token,
by offset, how often all best candidates in a row do, and tokens per call with the
paper's tree, at temperature 0 and 1. By offset, Chimera is given the target's own
tokens in between, which it reads and Medusa does not; in a row, both draft alone.

```
python -m experiments.run chimera
python -m experiments.run chimera --preset full
```

The paper (arXiv 2402.15758): 2.7x over plain decoding on Vicuna and LLaMA-2, and ahead
of Medusa. Its inference code was never released, and its speeds come from typical
acceptance, which is not lossless; drafts here are verified exactly. The full preset
trains both on ShareGPT and asks the questions of Spec-Bench, their first turns, in
Vicuna's words; it loads no released heads. In the others heads share the target's
readout ("light"), as readouts of their own would hide all else in a model
this small. About 10 minutes on 2 free CPU cores (an estimate), plus 4 to train the
target once.
"""

import dataclasses
import functools
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from experiments.cache import cached
from experiments.corpus import standard_library
from experiments.intervals import student_interval
from experiments.targets import load_target, prompts_by_domain, repeated_ngrams
from jtok import predict, testing, train
from jtok.decode import chimera, generate, medusa
from jtok.errors import DataNotFoundError, check
from jtok.predict import IGNORE, Objective

CLAIMS = (
    "lossless",
    "over_medusa_t0",
    "over_medusa_t1",
    "over_medusa_offset5",
    "over_medusa_in_a_row",
    "margin_grows",
    "trigrams_help",
    "states_help",
    "trigrams_help_most_without_states",
)
SOURCES = (
    "experiments/corpus.py",
    "experiments/targets.py",
    "jtok/decode/candidates.py",
    "jtok/decode/fusing.py",
    "jtok/decode/heads.py",
    "jtok/decode/loop.py",
    "jtok/decode/templates.py",
    "jtok/decode/verify.py",
    "jtok/nn/block.py",
    "jtok/predict/draft_training.py",
    "jtok/predict/fusing.py",
    "jtok/predict/fusing_draft.py",
    "jtok/predict/fusing_states.py",
    "jtok/predict/offset_losses.py",
    "jtok/predict/state_heads.py",
    "jtok/predict/targets.py",
)
MINUTES = {"smoke": 0.4, "small": 10, "full": 600}

_AT_A_TIME = 16  # questions in a batch, whose caches fit beside a model of 7 B

ARMS: dict[str, dict[str, Any]] = {
    "medusa": {},
    "chimera": {},
    "no trigrams": {"trigram": "token"},
    "no states": {"states": False},
    "neither": {"trigram": "token", "states": False},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and measured.

    Attributes:
      model: hub id or folder of the target; "" for the small model of `pretrain`.
      small: whether that small model is the real one or the smoke-sized one.
      seeds: of the trainings of Medusa and of the whole stack.
      part_seeds: of the stack without a part.
      arms: which of `ARMS`.
      chat: hub id of a data set of conversations to train on; "" takes the standard
        library.
      questions: "spec_bench" for its questions as Vicuna is asked them; "" takes
        held-out texts.
      heads: "light" or "full".
      num_heads: heads of an arm.
      labels: "teacher" or "data".
      rows: rows of text to train on, whose states are computed once; 0 computes them
        at every step.
      length: tokens of a row.
      batch: rows of a step.
      accumulate: micro-batches of a step.
      steps: updates.
      learning_rate: highest.
      weight_decay: of matrices.
      prompts: prompts of each domain.
      prompt_tokens: most tokens of a prompt; longer questions are left out.
      new_tokens: tokens to emit for each.
      dtype: of the target.
    """

    model: str = ""
    small: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    part_seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(ARMS)
    chat: str = ""
    questions: str = ""
    heads: str = "light"
    num_heads: int = 4
    labels: str = "teacher"
    rows: int = 2400
    length: int = 64
    batch: int = 4
    accumulate: int = 1
    steps: int = 1200
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    prompts: int = 16
    prompt_tokens: int = 32
    new_tokens: int = 64
    dtype: str = "float32"


PRESETS = {
    "smoke": Config(
        small=False, seeds=(0,), arms=("medusa", "chimera"), rows=16, length=16,
        num_heads=2, steps=4, prompts=1, prompt_tokens=12, new_tokens=12,
    ),
    "small": Config(),
    "full": Config(
        model="lmsys/vicuna-7b-v1.3", chat="Aeala/ShareGPT_Vicuna_unfiltered",
        questions="spec_bench", seeds=(0,), arms=("medusa", "chimera"), heads="full",
        labels="data", rows=0, length=1024, batch=32, accumulate=8, steps=5800,
        learning_rate=2e-4, prompts=80, prompt_tokens=1500, new_tokens=512,
        dtype="bfloat16",
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Trains every arm for every seed, or finds it in the cache, and measures it.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    model = load_target(config.model, report, small=config.small, dtype=config.dtype)
    check(config.questions in ("", "spec_bench"), "questions", config.questions,
          "'' or 'spec_bench'")  # fmt: skip
    if config.questions:
        groups = question_prompts(_spec_bench(report), model.vocabulary, config)
        report.table(
            "Questions", [{"group": k, "asked": len(v)} for k, v in groups.items()]
        )
        domains = {
            f"{kind}, {index}": some
            for kind, every in groups.items()
            for index, some in enumerate(_chunks(every, _AT_A_TIME))
        }
    else:
        domains = prompts_by_domain(
            model, report, count=config.prompts, tokens=config.prompt_tokens
        )
    data = _data(config, model, report)
    texts = _own_texts(model, domains, config, report)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    drafts = {}
    jobs = [(arm, seed) for arm in config.arms for seed in _seeds(config, arm)]
    for arm, seed in report.progress(jobs, "train and measure"):
        draft = _trained(config, model, arm, seed, data, report)
        drafts[arm] = draft
        found[arm, seed] = {
            **_agreement(model, draft, texts),
            **_decoded(model, draft, domains, config, seed),
        }
    _report_sizes(model, drafts, report)
    _report_agreement(found, config, report)
    _report_calls(found, config, report)
    _report_claims(found, config, report)


def _seeds(config: Config, *arms: str) -> tuple[int, ...]:
    """Those for which all of some arms are trained."""
    whole = all(arm in ("medusa", "chimera") for arm in arms)
    return config.seeds if whole else config.part_seeds


# ---- training


def _data(config: Config, model: Any, report: Any) -> Callable[[int], Any]:
    """A function from (seed, step) to a batch."""
    if config.chat:
        rows = chat_rows(_conversations(config.chat, report), model.vocabulary, config)
        return functools.partial(_batch, rows, config.batch)
    corpus = standard_library(None if config.small else 8)
    report.data("standard library", sha256=corpus.sha256)
    end = model.vocabulary.special["eos"]
    documents, needed = [], config.rows * config.length
    for pair in zip(corpus.train_code, corpus.train_english * 99):
        documents += [model.vocabulary.encode(text)[:2048] for text in pair]
        if sum(map(len, documents)) > needed:
            break
    ids = np.concatenate([[*some, end] for some in documents])[:needed]
    tokens = ids[: len(ids) // config.length * config.length]
    tokens = tokens.reshape(-1, config.length).astype(np.int32)
    states = jax.jit(lambda model, ids: model(ids, logits="none").hidden)
    hidden = [
        np.asarray(states(model, some)) for some in _chunks(tokens, 16 * config.batch)
    ]
    rows = {"tokens": tokens, "hidden": np.concatenate(hidden)}
    return functools.partial(_batch, rows, config.batch)


def _chunks(rows: Any, size: int) -> list[Any]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _batch(rows: dict[str, np.ndarray], size: int, seed: int, step: int) -> Any:
    """The rows of a step: a new order in every epoch."""
    count = len(rows["tokens"])
    epoch, at = divmod(step * size, count - count % size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return {name: values[order[at : at + size]] for name, values in rows.items()}


def _made(config: Config, model: Any, arm: str, seed: int) -> Any:
    """A new draft stack, of as many parameters as the whole of Chimera's has."""
    key = jax.random.key(seed)
    options = {"steps": config.num_heads, "heads": config.heads}
    whole = predict.fusing_config(model, **options)
    wanted = predict.init_fusing(model, key, whole).num_params
    if arm == "medusa":
        sizes = [
            predict.init_state_heads(model, blocks=blocks, **options).num_params
            for blocks in (1, 2)
        ]
        more = round((wanted - sizes[0]) / (sizes[1] - sizes[0]))
        return predict.init_state_heads(model, blocks=1 + max(0, more), **options)
    options |= ARMS[arm]
    own = predict.fusing_config(model, **options)
    missing = wanted - predict.init_fusing(model, key, own).num_params
    width = own.layer.mlp_width + round(missing / (3 * own.layer.width))
    sized = predict.fusing_config(model, mlp_width=width, **options)
    return predict.init_fusing(model, key, sized)


def _trained(
    config: Config, model: Any, arm: str, seed: int, data: Any, report: Any
) -> Any:
    names = ("heads", "num_heads", "labels", "rows", "length", "batch", "accumulate",
             "steps", "learning_rate", "weight_decay", "model", "small", "chat",
             "dtype")  # fmt: skip
    key = {name: getattr(config, name) for name in names}
    code = [Path(jtok.__file__).parent / "predict" / f"{n}.py" for n in _CODE]
    key |= {"arm": arm, "seed": seed, "code": [path.read_text() for path in code]}
    build = functools.partial(_train, config, model, arm, seed, data)
    folder = cached("chimera", key, build)
    report.artifact(f"{arm}, seed {seed}", folder.name)
    return predict.load_draft(folder / "draft", model)


_CODE = ("draft_training", "fusing", "fusing_states", "offset_losses", "state_heads")


def _train(
    config: Config, model: Any, arm: str, seed: int, data: Any, folder: Path
) -> None:
    draft = _made(config, model, arm, seed)
    key = (id(model), config, arm)
    if key not in _STEPS:
        _STEPS[key] = _step_of(config, model, arm, draft)
    loss_fn, optimizer = _STEPS[key]
    result = train.fit(
        loss_fn,
        draft.params,
        frozen=model.params,
        optimizer=optimizer,
        data=functools.partial(data, seed),
        steps=config.steps,
        key=jax.random.key(seed),
        accumulate=config.accumulate,
        folder=folder / "training",
        save_every=1000,
        keep=1,
        progress=False,
    )
    predict.save_draft(draft.replace(params=result.trainable), folder / "draft")


_STEPS: dict[Any, Any] = {}  # seeds of an arm share what is compiled


def _step_of(config: Config, model: Any, arm: str, draft: Any) -> Any:
    labels: Any = config.labels
    goal = Objective(labels=labels, hidden=0.0 if arm == "medusa" else 1.0)
    rate = train.schedule(
        "cosine", peak=config.learning_rate, steps=config.steps,
        warmup=max(1, config.steps // 100),
    )  # fmt: skip
    optimizer = train.adamw(rate, weight_decay=config.weight_decay)
    return predict.draft_loss(model, draft, objective=goal), optimizer


# ---- measures


def _own_texts(
    model: Any, domains: dict[str, list[Any]], config: Config, report: Any
) -> list[Any]:
    """The target's greedy continuations: tokens, states, and which are its own."""
    texts, repeats = [], []
    for prompts in domains.values():
        out = generate(model, prompts, max_new_tokens=config.new_tokens, stop_ids=())
        size = config.prompt_tokens + config.new_tokens
        ids = np.zeros((len(prompts), size), np.int32)
        own = np.zeros(ids.shape, bool)
        for row, (prompt, new) in enumerate(zip(prompts, out.tokens, strict=True)):
            whole = np.concatenate([prompt, new])
            ids[row, : len(whole)], own[row, len(prompt) : len(whole)] = whole, True
            repeats.append(repeated_ngrams(prompt, new))
        texts.append((jnp.asarray(ids), jnp.asarray(own)))
    share = f"{100 * float(np.mean(repeats)):.0f}"
    report.text(f"Of the target's own greedy 4-grams {share} % stood there before.")
    return texts


@functools.partial(jax.jit, static_argnames="top")
def _hits(model: Any, draft: Any, ids: Any, own: Any, top: int = 5) -> Any:
    """How often the target's token is among the best, of how many `[steps, 1]`.

    `[steps, top]`: each head alone, the true tokens between given; `[steps, 1]`: it and
    all heads before it have the token as their best, so that those are the true ones.
    One text at a time, as the logits of all heads are looked at.
    """

    def one(row: Any) -> Any:
        ids, own = row[0][None], row[1][None]
        mask = jnp.cumsum(own[:, ::-1], axis=1)[:, ::-1] > 0
        hidden = model(ids, mask=mask, logits="none").hidden
        labels = jnp.where(own, ids, IGNORE)
        # The root is the target's own, too, or there is nothing to draft after.
        _, rooted = predict.future_labels(labels, [1])
        wanted, real = predict.future_labels(labels, range(2, draft.config.steps + 2))
        logits = _logits(draft, hidden, ids, mask)
        _, best = jax.lax.top_k(logits, top)
        hit = best == jnp.moveaxis(wanted, -1, 0)[..., None]
        counts = jnp.moveaxis(real & rooted, -1, 0)[..., None]
        within = jnp.cumsum(hit, axis=-1) * counts
        row = jnp.cumprod(hit[..., :1], axis=0) * counts
        return tuple(jnp.sum(x, axis=(1, 2)) for x in (within, row, counts))

    return tuple(jnp.sum(x, axis=0) for x in jax.lax.map(one, (ids, own)))


def _logits(draft: Any, hidden: Any, ids: Any, mask: Any) -> Any:
    """Of all heads over one text, `[steps, 1, seq, vocab]`."""
    if isinstance(draft, predict.Fusing):
        states = predict.fuse(draft, hidden, ids, mask=mask)
        return predict.head_logits(draft, hidden, states)
    head, rows = predict.state_draft_head(draft.config), hidden[0]
    none, tokens = head.init(draft, rows), jnp.zeros((len(rows), 1), jnp.int32)
    every = []
    for step in range(draft.config.steps):
        made, _ = head.step(draft, rows, none, tokens, step)
        read = head.readout(draft, made, jtok.ops.Want(rows=True), step)
        every.append(read.rows[None, :, 0])
    return jnp.stack(every)


def _agreement(model: Any, draft: Any, texts: list[Any]) -> dict[str, Any]:
    """`top1`, `top5` and `in a row`, each `[steps]`, over all domains."""
    found = [_hits(model, draft, *text) for text in texts]
    hits, row, counts = (sum(map(np.asarray, each)) for each in zip(*found))
    each = np.asarray(hits / counts)
    return {"top1": each[:, 0], "top5": each[:, -1], "in a row": (row / counts)[:, 0]}


def _decoded(
    model: Any, draft: Any, domains: dict[str, list[Any]], config: Config, seed: int
) -> dict[str, Any]:
    """Tokens per call with the tree, and differences from plain decoding."""
    make: Any = chimera if isinstance(draft, predict.Fusing) else medusa
    drafter, found = make(draft), {}
    found["differences"] = []
    for temperature in (0.0, 1.0):
        emitted = calls = 0
        for name, prompts in domains.items():
            out = generate(
                model, prompts, max_new_tokens=config.new_tokens, drafter=drafter,
                temperature=temperature, seed=seed, stop_ids=(),
            )  # fmt: skip
            emitted, calls = emitted + out.stats.emitted, calls + out.stats.calls
            plain = _plain(model, name, domains, config.new_tokens, temperature, seed)
            found["differences"] += [d.gap for d in testing.compare(plain, out)]
        found[f"calls{temperature:g}"] = emitted / calls
    found["tokens"] = 2 * sum(map(len, domains.values())) * config.new_tokens
    return found


_PLAIN: dict[Any, Any] = {}


def _plain(
    model: Any, name: str, domains: Any, count: int, temperature: float, seed: int
) -> Any:
    key = (id(model), name, count, temperature, seed if temperature else 0)
    if key not in _PLAIN:
        _PLAIN[key] = generate(
            model, domains[name], max_new_tokens=count, temperature=temperature,
            seed=seed, stop_ids=(), gaps=True,
        )  # fmt: skip
    return _PLAIN[key]


# ---- report


def _report_sizes(model: Any, drafts: dict[str, Any], report: Any) -> None:
    rows = [
        {
            "arm": arm,
            "parameters": draft.num_params,
            "of the target's": f"{draft.num_params / model.num_params:.1%}",
        }
        for arm, draft in drafts.items()
    ]
    report.table("Parameters that train", rows)


def _each(found: Any, arm: str, config: Config, name: str) -> np.ndarray:
    return np.array([found[arm, seed][name] for seed in _seeds(config, arm)])


_MEASURES = ("top1", "top5", "in a row")


def _report_agreement(found: Any, config: Config, report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 3))
    for axes, name in zip(fig.subplots(1, 3, sharey=True), _MEASURES):
        rows = []
        for arm in config.arms:
            share = _each(found, arm, config, name).mean(axis=0)
            axes.plot(np.arange(len(share)) + 2, share, marker="o", label=arm)
            offsets = {
                f"offset {k + 2}": round(float(x), 4) for k, x in enumerate(share)
            }
            rows.append({"arm": arm, **offsets})
        axes.set(xlabel="offset", title=name, ylim=(0, 1))
        report.table(f"Agreement with the target's own token, {name}", rows)
    report.text(
        "top1 and top5 are of each head alone. All arms but Medusa read the target's "
        "own tokens between, which a draft has only where it is right so far: their "
        "figures are conditional, Medusa's are not. `in a row` is alike for all: how "
        "often this and all nearer best candidates are the target's."
    )
    fig.axes[0].set_ylabel("share of positions")
    fig.axes[0].legend(fontsize=6)
    report.figure("Agreement by offset", fig)


def _report_calls(found: Any, config: Config, report: Any) -> None:
    rows = []
    for arm in config.arms:
        row: dict[str, Any] = {"arm": arm}
        for temperature in (0, 1):
            each = _each(found, arm, config, f"calls{temperature}")
            row[f"T={temperature}"] = round(float(each.mean()), 3)
            row[f"T={temperature}, lowest"] = round(float(each.min()), 3)
            row[f"T={temperature}, highest"] = round(float(each.max()), 3)
        row["seeds"] = len(_seeds(config, arm))
        rows.append(row)
    report.table("Tokens per call with the tree", rows)


def _report_claims(found: Any, config: Config, report: Any) -> None:
    gaps = [gap for one in found.values() for gap in one["differences"]]
    report.claim(
        "lossless",
        "texts that differ from plain decoding where it had no near-tie (gap < 1e-4)",
        paper="lossless; its evaluation used typical acceptance, which is not",
        measured=sum(gap >= 1e-4 for gap in gaps),
        unit="texts", op="==", bound=0,
        n=sum(one["tokens"] for one in found.values()),
        reason="a bug: please report it",
    )  # fmt: skip

    def margin(name: str, one: str = "chimera", other: str = "medusa") -> np.ndarray:
        if not {one, other} <= set(config.arms):
            return np.zeros((0, config.num_heads))
        pairs = [
            (found[one, seed][name], found[other, seed][name])
            for seed in _seeds(config, one, other)
        ]
        return np.array([a - b for a, b in pairs])

    top1, row = margin("top1"), margin("in a row")
    with_states = margin("calls0", "chimera", "no trigrams")
    without_states = margin("calls0", "no states", "neither")
    both = len(with_states) and len(without_states)
    interaction = without_states - with_states if both else np.zeros((0, 1))
    for id_, claim, values, unit, reason in (
        ("over_medusa_t0", "tokens per call above Medusa's at T=0",
         margin("calls0"), "tokens/call", "see the agreement by offset"),
        ("over_medusa_t1", "tokens per call above Medusa's at T=1",
         margin("calls1"), "tokens/call", "see the agreement by offset"),
        ("over_medusa_offset5",
         "top-1 agreement at the last offset, given the true tokens between, above "
         "Medusa's, which reads none",
         top1[:, -1], "share", "the stack is trained too little to use its drafts"),
        ("over_medusa_in_a_row",
         "share of places where the best candidates of all heads in a row are the "
         "target's, above Medusa's: both draft alone",
         row[:, -1], "share", "the stack is trained too little to use its drafts"),
        ("margin_grows",
         "margin of top-1 agreement, given the true tokens between, over Medusa's at "
         "the last offset above that at offset 2",
         top1[:, -1] - top1[:, 0], "share",
         "agreement itself falls with the offset, and the margin with it"),
        ("trigrams_help", "tokens per call (T=0) lost without trigrams",
         with_states, "tokens/call",
         "one seed: attention to the path and to the target's states does better alone "
         "in a stack of this size"),
        ("states_help", "tokens per call (T=0) lost without the stream of states",
         margin("calls0", "chimera", "no states"), "tokens/call",
         "one seed: the heads still read the last state, which holds most of what is "
         "needed"),
        ("trigrams_help_most_without_states",
         "what trigrams bring without the states, above what they bring with them",
         interaction, "tokens/call",
         "the last state, which all heads read, stands in for the stream"),
    ):  # fmt: skip
        if not len(values):
            claim = f"not measured: {claim}"
            reason = "not measured: this preset leaves out an arm that it needs"
        report.claim(
            id_, claim, paper="2.7x over plain decoding; no figure for this",
            measured=round(float(values.mean()), 4) if len(values) else 0.0,
            unit=unit, op=">", bound=0.0,
            ci95=None if values.ndim > 1 else student_interval(values),
            n=len(values), reason=reason,
        )  # fmt: skip


# ---- conversations and questions


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def _asked(question: str) -> str:
    """What stands before an answer, after the system's words or the last answer."""
    return f"USER: {question} ASSISTANT:"


def _conversations(name: str, report: Any) -> list[Any]:
    """All conversations of a data set on the hub that is one JSON file or several."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns="*.json"))
    files = sorted(folder.rglob("*.json"))
    report.data(name, files)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [one for some in found if isinstance(some, list) for one in some]


def chat_rows(
    conversations: Sequence[Any], vocabulary: Any, config: Any
) -> dict[str, np.ndarray]:
    """Rows of conversations as Vicuna writes them; only answers are learnt.

    A question and its answer are encoded together, as they are when it is asked.

    Args:
      conversations: each with `conversations`, turns of `from` ("human" or "gpt") and
        `value`; what stands before the first question or after the last answer is
        left out.
      vocabulary: encodes.
      config: gives `length`.

    Returns:
      `tokens`, `labels` int32 and `mask` bool, `[rows, length]`.
    """
    length, end = config.length, vocabulary.special["eos"]
    rows: dict[str, list[Any]] = {"tokens": [], "labels": [], "mask": []}
    for one in conversations:
        ids: list[int] = []
        labels: list[int] = []
        asked = None
        for turn in one["conversations"]:
            if turn["from"] == "human":
                asked = (_SYSTEM if not ids else "") + _asked(turn["value"])
            elif turn["from"] == "gpt" and asked is not None:
                encode = functools.partial(vocabulary.encode, specials=not ids)
                whole = [int(x) for x in encode(f"{asked} {turn['value']}")]
                known = _shared(encode(asked), whole)
                ids += [*whole, end]
                labels += [*[IGNORE] * known, *whole[known:], end]
                asked = None
        if len(ids) < 3 or all(x == IGNORE for x in labels[:length]):
            continue
        fill = length - len(ids[:length])
        rows["tokens"].append(ids[:length] + [end] * fill)
        rows["labels"].append(labels[:length] + [IGNORE] * fill)
        rows["mask"].append([True] * (length - fill) + [False] * fill)
    kinds = {"tokens": np.int32, "labels": np.int32, "mask": bool}
    return {name: np.array(some, kinds[name]) for name, some in rows.items()}


def _shared(first: Any, second: Any) -> int:
    """How many ids two texts start with alike."""
    pairs = enumerate(zip(first, second))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


_SPEC_BENCH = (
    "https://raw.githubusercontent.com/hemingkyx/Spec-Bench/main/data/spec_bench/"
    "question.jsonl"
)
_GROUPS = ("translation", "summarization", "qa", "math_reasoning", "rag")


def _spec_bench(report: Any) -> list[Any]:
    """The questions of Spec-Bench, from this machine or from their repository."""
    try:
        content = testing.data("tasks/spec_bench_questions.jsonl").read_bytes()
    except DataNotFoundError:
        with urllib.request.urlopen(_SPEC_BENCH, timeout=60) as answer:
            content = answer.read()
    report.data("hemingkyx/Spec-Bench, questions", content)
    return [json.loads(line) for line in content.decode("utf-8").splitlines()]


def question_prompts(
    questions: Sequence[Any], vocabulary: Any, config: Any
) -> dict[str, list[np.ndarray]]:
    """First turns of questions in Vicuna's words, by the groups of Spec-Bench.

    Args:
      questions: each with `category` and `turns`; categories of MT-Bench, of which
        there are eight, are one group.
      vocabulary: encodes.
      config: gives `prompts`, the most of a group, and `prompt_tokens`: longer ones
        are left out.

    Returns:
      Group -> ids of its prompts, in the order of the questions.
    """
    found: dict[str, list[np.ndarray]] = {}
    for question in questions:
        kind = question["category"]
        some = found.setdefault(kind if kind in _GROUPS else "mt_bench", [])
        ids = vocabulary.encode(_SYSTEM + _asked(question["turns"][0]))
        if len(ids) <= config.prompt_tokens and len(some) < config.prompts:
            some.append(ids)
    return {kind: some for kind, some in found.items() if some}
