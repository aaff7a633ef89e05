"""Decodes with `transformers`, as its users do; needs torch and nothing of jtok.

`python decode_with_transformers.py FOLDER THREADS` reads requests from stdin:
`{"mode", "prompts", "new_tokens", "capacity"}`; modes are "eager" (`generate` as it
is), "static" (static cache, `torch.compile`) and "lookup" (its prompt lookup).
"""

import json
import sys
import time


def main() -> None:
    """Answers requests until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    import torch
    import transformers

    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True
    )
    model = model.to(device).eval()

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"torch": torch.__version__, "transformers": transformers.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(run(model, device, **request))
        except Exception as error:  # the asking side decides what to do
            say({"error": f"{type(error).__name__}: {error}"})


def run(
    model, device: str, mode: str, prompts: list, new_tokens: int, capacity: int
) -> dict:
    """One timed `generate`; prompts have one length."""
    import torch
    import transformers

    ids = torch.tensor(prompts, device=device)
    options = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    if mode == "static":
        compiled = transformers.CompileConfig(fullgraph=False, mode="default")
        compiled._compile_all_devices = True  # else it compiles on GPUs only
        options["compile_config"] = compiled
        options["past_key_values"] = transformers.StaticCache(
            config=model.config, max_cache_len=capacity
        )
    if mode == "lookup":
        options["prompt_lookup_num_tokens"] = 10
        options["max_matching_ngram_size"] = 3
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": out[:, ids.shape[1] :].tolist()}


if __name__ == "__main__":
    main()
