"""AIM on LLaVA-1.5 and the questions of LLaVA-Bench (In-the-Wild).

Answers are long and free, so two figures are taken that need no judge: the bits a byte
of GPT-4's reference answers under the model that saw fewer tokens, and how often its
own first words are those of the whole model.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.web_text import hub_lines
from jtok import compress, models
from jtok.compress import AimScore, LastTokenScore
from jtok.decode import Session, generate
from jtok.models import StepInput
from jtok.ops import Want

__all__ = ["measure"]

_BENCH = "liuhaotian/llava-bench-in-the-wild"
_PROMPT = "USER: <image>\n{} ASSISTANT:"
_WORDS = 24


def measure(name: str, pairs: int, report: Any) -> dict[str, Any]:
    """Runs each setting on the questions.

    Args:
      name: of the model on the hub.
      pairs: questions, at most.
      report: where data and progress go.

    Returns:
      What `experiments.aim` reports: `rows` with "accuracy", the share of first words
      that are as without pruning, and "flops"; `same` and `difference` of the modes.
    """
    model = models.load(name, dtype="bfloat16")
    config = model.config.text
    items = _items(pairs)
    report.data(_BENCH, "".join(item["text"] for item in items).encode())
    layers = config.num_layers
    rows: dict[str, Any] = {}
    words: dict[str, list[np.ndarray]] = {}
    same, difference = [], []
    for setting, (removed, schedule, score) in _settings(layers).items():
        nats, size, costs, words[setting] = 0.0, 0, [], []
        for item in report.progress(items, setting):
            decoder, ids = _prompt(model, item, removed)
            prunable = ids[None] >= config.vocab_size
            ask = functools.partial(
                compress.prefill, decoder, jnp.asarray(ids[None]), prunable=prunable,
                schedule=schedule, score=score,
            )  # fmt: skip
            out = ask()
            nats += _reference_nats(decoder, out, item["answer"])
            size += len(item["answer"].encode())
            words[setting].append(_first_words(decoder, out))
            visual = int(prunable.sum())
            counts = schedule.token_counts(visual, len(ids) - visual)
            costs.append(compress.flops(config, counts, where="layer").flops)
            if setting.startswith("AIM, 252") and len(same) < 4:
                masked = ask(mode="mask")
                same.append(float(jnp.mean(out.kept == masked.kept)))
                forced = ask(kept=masked.kept)
                gap = jnp.max(jnp.abs(forced.logits - masked.logits))
                difference.append(float(gap))
        agree = [_agreement(a, b) for a, b in zip(words[setting], words["base"])]
        rows[setting] = {
            "accuracy": float(np.mean(agree)), "flops": float(np.mean(costs)),
            "bits a byte": nats / np.log(2) / size,
        }  # fmt: skip
    return {
        "seed": 0, "rows": rows, "same": float(np.mean(same)),
        "difference": max(difference),
    }  # fmt: skip


def _settings(layers: int) -> dict[str, Any]:
    """Names as in `experiments.aim`; tokens removed step by step, schedule, score."""
    never = compress.ramp_schedule(layers, layers, layers + 1)
    ramp, last = compress.ramp_schedule(layers, 13, 21), LastTokenScore()
    late, early = ramp, compress.ramp_schedule(layers, 4, 12)
    fastv = compress.fastv_schedule(layers, 2, 0.5)
    found = {
        "base": ((), never, None),
        "merged to 50 %": ((288,), never, None),
        "merged to 25 %": ((288, 144), never, None),
        "AIM: 50 % and late ramp": ((288, 36), ramp, AimScore()),
        "AIM: 25 % and late ramp": ((288, 144, 72), ramp, AimScore()),
        "AIM, 252 tokens": ((288, 36), ramp, AimScore()),
        "VTW": ((), compress.vtw_schedule(layers, 16), None),
        "PyramidDrop": ((), compress.pyramid_schedule(layers), last),
        "FastV, layer 1": ((), fastv, last),
    }
    for name, schedule in (("late", late), ("middle", ramp), ("early", early)):
        for score, how in (
            ("PageRank", AimScore()), ("last token", last),
            ("random", compress.RandomScore()),
        ):  # fmt: skip
            found[f"{name} ramp, {score}"] = ((), schedule, how)
    return found


def _items(pairs: int) -> list[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    answers = {row["question_id"]: row["text"] for row in
               hub_lines(_BENCH, "answers_gpt4.jsonl")}  # fmt: skip
    found = []
    for row in list(hub_lines(_BENCH, "questions.jsonl"))[:pairs]:
        image = hf_hub_download(_BENCH, f"images/{row['image']}", repo_type="dataset")
        answer = answers[row["question_id"]]
        found.append({"image": image, "text": row["text"], "answer": answer})
    return found


def _prompt(
    model: Any, item: dict[str, Any], removed: tuple[int, ...]
) -> tuple[Any, np.ndarray]:
    """A decoder that has seen the picture, merged, and the ids of the prompt."""
    from PIL import Image

    with Image.open(item["image"]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    text = _PROMPT.format(item["text"])
    prepared = model.processor(text, pixels)
    features = models.image_features(model, jnp.asarray(prepared.images))
    tokens = compress.merge_frames(features.tokens, removed).tokens
    features = features.replace(tokens=tokens, plan=None)
    # One image token, whatever the processor made of it.
    ids = np.asarray(prepared.ids[0])
    own = ids == model.processor.image_token_id
    ids = ids[~own | (np.cumsum(own) == 1)]
    decoder, prompts = models.with_images(model, [ids], features)
    return decoder, prompts[0]


def _first_words(decoder: Any, out: Any) -> np.ndarray:
    made = generate(
        out.target, out.prompts(), params=models.split_layers(decoder.params),
        cache=Session(**out.session()), max_new_tokens=_WORDS, stop_ids=(),
    )  # fmt: skip
    return np.asarray(made.tokens[0])


def _agreement(one: np.ndarray, two: np.ndarray) -> float:
    """Share of the tokens up to the first that differs."""
    differ = np.flatnonzero(one != two)
    return float(differ[0] if differ.size else len(one)) / len(one)


def _reference_nats(decoder: Any, out: Any, answer: str) -> float:
    """Nats of an answer after the prompt, in one step of the target."""
    ids = np.asarray(decoder.vocabulary.encode(answer, specials=False), np.int32)
    params = models.split_layers(decoder.params)
    length = int(out.cache.length[0])
    nodes = StepInput(
        jnp.asarray(ids[None]), length + jnp.arange(len(ids))[None],
        jnp.tril(jnp.ones((len(ids), len(ids)), bool))[None],
        jnp.ones((1, len(ids)), bool),
    )  # fmt: skip
    step, _ = out.target.step(params, out.cache, nodes)
    rows: Any = out.target.readout(params, step.hidden[:, :-1], Want(rows=True)).rows
    logits = jnp.concatenate([out.logits[:, None], rows.astype(jnp.float32)], 1)
    logs = jax.nn.log_softmax(logits, axis=-1)[0]
    return -float(jnp.sum(jnp.take_along_axis(logs, ids[:, None], axis=1)))
