"""Universal assisted decoding with `transformers`; needs torch and nothing of jtok.

`python assist_with_transformers.py TARGET DRAFT THREADS` reads requests from stdin:
`{"prompt", "new_tokens", "draft_tokens", "temperature", "seed"}`; `draft_tokens` 0
decodes plainly. The answer has seconds, tokens and calls of the target.
"""

import json
import sys
import time


def main() -> None:
    """Answers requests until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    import torch
    import transformers

    threads = int(sys.argv[3])
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models, tokenizers = [], []
    for folder in sys.argv[1:3]:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        models.append(model.to(device).eval())
        tokenizers.append(
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"torch": torch.__version__, "transformers": transformers.__version__})
    for line in sys.stdin:
        try:
            say(run(models, tokenizers, device, **json.loads(line)))
        except Exception as error:  # the asking side decides what to do
            say({"error": f"{type(error).__name__}: {error}"})


def run(
    models: list,
    tokenizers: list,
    device: str,
    prompt: list,
    new_tokens: int,
    draft_tokens: int,
    temperature: float,
    seed: int,
) -> dict:
    """One timed `generate` of one prompt."""
    import torch

    target, draft = models
    calls = [0]
    counting = target.register_forward_hook(
        lambda *_: calls.__setitem__(0, calls[0] + 1)
    )
    options = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": temperature > 0,
        "pad_token_id": 0,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    if draft_tokens:
        draft.generation_config.num_assistant_tokens = draft_tokens
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        options |= {
            "assistant_model": draft,
            "tokenizer": tokenizers[0],
            "assistant_tokenizer": tokenizers[1],
        }
    ids = torch.tensor([prompt], device=device)
    torch.manual_seed(seed)
    began = time.perf_counter()
    with torch.inference_mode():
        out = target.generate(ids, attention_mask=torch.ones_like(ids), **options)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    counting.remove()
    tokens = out[0, ids.shape[1] :].tolist()
    return {"seconds": seconds, "tokens": tokens, "calls": calls[0]}


if __name__ == "__main__":
    main()
