"""Times a transformer in PyTorch with official merge functions in it; needs torch.

Reads one request from stdin, `{"tome", "pitome", "width", "leaving", "keep", "seq",
"batch", "rounds", "threads", "seed"}`: checkouts of facebookresearch/ToMe and of
hchautran/PiToMe ("" for none), the model's width, and how many tokens leave each of its
layers, or which share stays. Answers with seconds of every round, with all tokens and
with each way of merging, in turns, and with the tokens that were left. The blocks are
plain ones of ViT's kind, as timm's are, which the official patches change at the same
places; timm itself is not needed. PiToMe's patch leaves sizes out of attention, though
its attention takes them; here they count for all, as they do for the other side.
"""

import functools
import importlib.util
import json
import sys
import time

MARGIN = 0.75  # the official one of the first layer, and the other side's


def main() -> None:
    """Answers one request."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    request = json.load(sys.stdin)
    try:
        answer = race(request)
    except (ImportError, OSError) as error:
        lacks = "it needs torch, and ToMe at tome_path, PiToMe at pitome_path"
        answer = {"error": f"{lacks} ({error})"}
    print(json.dumps(answer), file=answers)


def functions(path: str):
    """The module of official functions; what patches models is not imported."""
    found = importlib.util.spec_from_file_location("official", path)
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def merges(request: dict) -> dict:
    """By name, what makes `(x, size)` of keys, `(x, size)` and how many leave."""
    made = {}
    if request["tome"]:
        tome = functions(f"{request['tome']}/tome/merge.py")
        made["tome"] = lambda key, x, size, leaving: tome.merge_wavg(
            tome.bipartite_soft_matching(key, leaving, True, False)[0], x, size
        )
    if not request["pitome"]:
        return made
    pitome = functions(f"{request['pitome']}/algo/pitome/merge.py")
    shared = {"ratio": request["keep"], "margin": MARGIN, "class_token": True}
    for name, rule in {
        "pitome": pitome.pitome_vision,
        "pitome bsm": functools.partial(pitome.pitome_vision, use_bsm_pitome=True),
        "pitome text": pitome.pitome_text,
    }.items():
        made[name] = lambda key, x, size, leaving, rule=rule: pitome.merge_wavg(
            rule(key, **shared), x, size
        )
    return made


def block_of(width: int):
    """A block of ViT's kind that may merge between attention and MLP."""
    from torch import nn
    from torch.nn import functional

    heads = width // 64

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

        def forward(self, x, size, leaving, merge):
            batch, seq, _ = x.shape
            qkv = self.qkv(self.first(x)).reshape(batch, seq, 3, heads, 64)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            bias = None if size is None else size.log()[:, None, None, :, 0]
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias
            )
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width))
            if merge and leaving:
                x, size = merge(key.mean(1), x, size, leaving)
            return x + self.down(functional.gelu(self.up(self.second(x)))), size

    return Block


def race(request: dict) -> dict:
    """Seconds of all models, in turns, and the tokens that they leave."""
    import torch
    from torch import nn

    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    block = block_of(request["width"])
    blocks = nn.ModuleList(block() for _ in request["leaving"]).eval()
    x = torch.randn(request["batch"], request["seq"], request["width"])
    every = {"all tokens": None, **merges(request)}
    seconds: dict = {name: [] for name in every}
    left = {}
    with torch.inference_mode():
        for turn in range(request["rounds"] + 1):  # the first warms up
            for name, merge in every.items():
                began = time.perf_counter()
                y, size = x, None
                for some, leaving in zip(blocks, request["leaving"]):
                    y, size = some(y, size, leaving, merge)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                left[name] = y.shape[1]
    return {"torch": torch.__version__, "seconds": seconds, "left": left}


if __name__ == "__main__":
    main()
