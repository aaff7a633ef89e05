"""Times a transformer in PyTorch with ToMe's official functions in it; needs torch.

Reads one request from stdin, `{"tome", "width", "leaving", "seq", "batch", "rounds",
"threads", "seed"}`: a checkout of facebookresearch/ToMe, the model's width, and how
many tokens leave each of its layers. Answers with seconds of every round, with all
tokens and with merging, in turns. The blocks are plain ones of ViT's kind, as timm's
are, which the official patch changes at the same places; timm itself is not needed.
"""

import json
import sys
import time


def main() -> None:
    """Answers one request."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    request = json.load(sys.stdin)
    try:
        answer = race(request)
    except ImportError as error:
        answer = {"error": f"it needs torch, and ToMe at tome_path ({error})"}
    print(json.dumps(answer), file=answers)


def race(request: dict) -> dict:
    """Seconds of both models, in turns."""
    import torch
    from torch import nn
    from torch.nn import functional

    # The package imports what patching models needs; its functions need nothing.
    sys.path.insert(0, f"{request['tome']}/tome")
    from merge import bipartite_soft_matching, merge_wavg

    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    width, heads = request["width"], request["width"] // 64

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = (
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )

        def forward(self, x, size, leaving):
            batch, seq, _ = x.shape
            qkv = self.qkv(self.first(x)).reshape(batch, seq, 3, heads, 64)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            bias = None if size is None else size.log()[:, None, None, :, 0]
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias
            )
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width))
            if leaving:
                merge, _ = bipartite_soft_matching(key.mean(1), leaving, True, False)
                x, size = merge_wavg(merge, x, size)
            return x + self.down(functional.gelu(self.up(self.second(x)))), size

    blocks = nn.ModuleList(Block() for _ in request["leaving"]).eval()
    x = torch.randn(request["batch"], request["seq"], width)
    seconds: dict = {"plain": [], "merged": []}
    with torch.inference_mode():
        for turn in range(request["rounds"] + 1):  # the first warms up
            for name, some in seconds.items():
                began = time.perf_counter()
                y, size = x, None
                for block, leaving in zip(blocks, request["leaving"]):
                    y, size = block(y, size, leaving if name == "merged" else 0)
                if turn:
                    some.append(time.perf_counter() - began)
    return {"torch": torch.__version__, **seconds}


if __name__ == "__main__":
    main()
