"""The models and prompts that decoding experiments share."""

import json
from typing import Any

import numpy as np

import jtok
from experiments.pretrain import PRESETS as PRETRAIN
from experiments.pretrain import held_out_prompts, small_lm
from jtok import testing
from jtok.errors import DataNotFoundError

__all__ = ["load_target", "prompts_by_domain", "repeated_ngrams"]


def load_target(
    name: str, report: Any, *, small: bool = True, dtype: str = "float32"
) -> jtok.models.Model:
    """Loads the model that an experiment decodes, and records which it is.

    Args:
      name: hub id or folder; "" for the small model of `pretrain` (trained on first
        use), "data:NAME" for a folder among the real data.
      report: where it is recorded.
      small: whether that small model is the real one or the smoke-sized one.
      dtype: of the parameters.

    Returns:
      The model.

    Raises:
      DataNotFoundError: "data:NAME" is not on this machine.
    """
    if not name:
        folder: Any = small_lm(PRETRAIN["small" if small else "smoke"])
        report.artifact("small_lm", folder.parent.name)
    elif name.startswith("data:"):
        folder = testing.data(name.removeprefix("data:"))
        report.data(name.removeprefix("data:"), folder / "model.safetensors")
    else:
        folder = name
        report.artifact("model", name)
    return jtok.models.load(folder, dtype=dtype)


def prompts_by_domain(
    model: jtok.models.Model, report: Any, *, count: int, tokens: int, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Held-out code and English, and school maths where its file is there.

    Args:
      model: whose vocabulary encodes them.
      report: where their hashes are recorded.
      count: prompts of each domain.
      tokens: most tokens of a prompt; the last are kept.
      seed: of the choice.

    Returns:
      Domain -> ids of its prompts.
    """
    texts = {}
    for kind in ("code", "english"):
        texts[kind] = held_out_prompts(kind, count=count, seed=seed)
        report.data(
            f"standard library, held-out {kind}", "\n".join(texts[kind]).encode()
        )
    try:
        path = testing.data("tasks/gsm8k_train.jsonl")
    except DataNotFoundError:
        report.text("School maths (GSM8K) is left out: its file is not there.")
    else:
        report.data("tasks/gsm8k_train.jsonl", path)
        lines = path.read_text(encoding="utf-8").splitlines()
        # Checkpoints among the data were trained on GSM8K, maybe on these questions.
        texts["maths"] = [
            f"Question: {json.loads(line)['question']}\nAnswer:"
            for line in lines[-count:]
        ]
    encode = lambda text: model.vocabulary.encode(text)[-tokens:]
    return {kind: [encode(text) for text in some] for kind, some in texts.items()}


def repeated_ngrams(prompt: Any, tokens: Any, *, size: int = 4) -> float:
    """Share of emitted n-grams that stood before, in prompt or output.

    Text that loops flatters every drafter, so this stands beside its figures.

    Args:
      prompt: ids.
      tokens: ids that were emitted.
      size: tokens of an n-gram.

    Returns:
      Between 0 and 1.
    """
    ids = np.concatenate([prompt, tokens]).tolist()
    seen: set[tuple[int, ...]] = set()
    repeats = 0
    for end in range(size, len(ids) + 1):
        gram = tuple(ids[end - size : end])
        repeats += end > len(prompt) and gram in seen
        seen.add(gram)
    return repeats / max(len(tokens), 1)
