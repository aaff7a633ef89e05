"""The counter of arithmetic, against figures of papers and products that are run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jtok import nn
from jtok.compress import flops
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.testing import tiny_config, tiny_model

QWEN = nn.DecoderConfig(
    vocab_size=1, width=3584, num_layers=28, num_heads=28, num_kv_heads=4,
    head_dim=128, mlp_width=18944, max_positions=1, dtype="bfloat16",
)  # fmt: skip
VICUNA = dataclasses.replace(
    QWEN, width=4096, num_layers=32, num_heads=32, num_kv_heads=32, mlp_width=11008
)


def aim(visual, words, num_layers, first, last):
    """Tokens of each layer as AIM's table counts them."""
    rate = lambda layer: min(1.0, max(0.0, 1 - (layer - first + 1) / (last - first)))
    return [int(rate(layer) * visual) + words for layer in range(num_layers)]


@pytest.mark.parametrize(
    "config, counts, tera",
    [
        (QWEN, [6272 + 100] * 28, 99.46),
        (QWEN, aim(1568, 100, 28, 14, 22), 14.75),
        (VICUNA, [576 + 40] * 32, 8.18),
        (VICUNA, aim(252, 40, 32, 13, 21), 2.22),
        (VICUNA, aim(72, 40, 32, 13, 21), 1.00),
    ],
)
def test_the_figures_of_aim(config, counts, tera):
    assert flops(config, counts, tokens="entering").flops == pytest.approx(
        tera * 1e12, rel=0.01
    )


def vit(num_layers=12, width=768):
    return nn.EncoderConfig(
        vocab_size=1, width=width, num_layers=num_layers, num_heads=12,
        head_dim=width // 12, mlp_width=4 * width, max_positions=197,
    )  # fmt: skip


def test_conventions():
    counts = (197, 178, 161)
    block = lambda n, rows, c=768: 4 * n * c * c + 2 * n * n * c + 8 * rows * c * c
    macs = lambda **options: flops(vit(2), counts, **options).macs
    assert macs(tokens="entering") == block(197, 197) + block(178, 178)
    assert macs(tokens="leaving") == block(178, 178) + block(161, 161)
    assert macs() == block(197, 178) + block(178, 161)
    assert macs(where="layer") == macs(tokens="entering")
    # ViT-B's blocks are known to take 17.4 G multiply-adds at 197 tokens.
    assert flops(vit(), (197,) * 13).macs == pytest.approx(17.4e9, rel=0.01)


def test_keys_and_values():
    # 2 (key, value) x 28 layers x 4 heads x 128 x 2 bytes
    assert flops(QWEN, [10] * 29).kv_bytes == 10 * 2 * 28 * 4 * 128 * 2
    step = flops(QWEN, [1] * 29, keys=[1000] * 28)
    assert step.kv_bytes == 1000 * 2 * 28 * 4 * 128 * 2
    alone = flops(QWEN, [1] * 29)
    assert step.flops - alone.flops == 28 * 4 * 999 * 3584


def test_experts():
    config = dataclasses.replace(
        QWEN, num_layers=2, num_experts=8, experts_per_token=2, expert_width=64,
        dense_layers=(0,),
    )  # fmt: skip
    dense, sparse = flops(config, [1, 1, 1]).layers
    assert dense - sparse == 2 * 3584 * (3 * 18944 - (3 * 2 * 64 + 8))


def test_it_counts_what_xla_counts():
    model = tiny_model(family="bert")
    run = lambda ids: model(ids, logits="none").hidden
    ids = jnp.ones((1, 32), int)
    seen = jax.jit(run).lower(ids).compile().cost_analysis()["flops"]
    counted = flops(model.config, (32,) * (model.config.num_layers + 1)).flops
    assert 1.0 < seen / counted < 1.5  # norms and activations beside it


def test_bad_input():
    with pytest.raises(ArgumentError, match="counts"):
        flops(tiny_config(), (9, 9))
    with pytest.raises(ArgumentError, match="counts"):
        flops(tiny_config(), (9, 9, -1))
    with pytest.raises(ArgumentError, match="keys"):
        flops(tiny_config(), (9, 9, 9), keys=(9,))
    with pytest.raises((ArgumentError, TypeError), match="tokens"):
        flops(tiny_config(), (9, 9, 9), tokens="all")
    with pytest.raises(ArgumentTypeError, match="no num_heads"):
        flops(tiny_config(family="mamba"), (9, 9, 9))
