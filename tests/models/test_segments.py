"""A decoder in segments: the same numbers as in one piece."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import (
    commit,
    cut_layers,
    embed_ids,
    final_norm,
    init_cache,
    run_segment,
    segment_config,
    stack_layers,
)
from jtok.testing import assert_close, tiny_config, tiny_model

IDS = jnp.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
POSITIONS = jnp.broadcast_to(jnp.arange(5), (2, 5))
FAMILIES = (
    "llama",
    "gemma2",
    "gpt2",
    pytest.param("mixtral", marks=pytest.mark.medium),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_give_what_the_whole_gives(family):
    """With caches of their own, the second behind the first by some tokens."""
    model = tiny_model(family=family)
    params, config = model.params, model.config
    x = embed_ids(params, config, IDS, POSITIONS)
    caches = [init_cache(segment_config(config, i, i + 1), 2, 8) for i in range(2)]
    order = jnp.broadcast_to(jnp.arange(5), (2, 5))
    middle = []
    for start, stop in ((0, 2), (2, 5)):
        part = np.s_[:, start:stop]
        out, cache = run_segment(
            params, config, x[part], POSITIONS[part], first=0, last=1, cache=caches[0]
        )
        count = jnp.full(2, stop - start)
        caches[0] = commit(cache, order[part] - start, count)
        middle.append(out)
    out, _ = run_segment(
        params, config, jnp.concatenate(middle, 1), POSITIONS, first=1, last=2,
        cache=caches[1],
    )  # fmt: skip
    assert_close(final_norm(params, config, out), model(IDS).hidden)


def test_stacked_layers_run_in_segments():
    model = tiny_model()
    params = stack_layers(model.params)
    x = embed_ids(params, model.config, IDS, POSITIONS)
    for i in range(2):
        x, cache = run_segment(params, model.config, x, POSITIONS, first=i, last=i + 1)
        assert cache is None
    assert_close(final_norm(params, model.config, x), model(IDS).hidden)


def test_a_cut_model_is_a_model(tmp_path):
    model = cut_layers(tiny_model(family="gemma2"), 1)
    models.save(model, tmp_path / "cut")
    again = models.load(tmp_path / "cut")
    assert again.config.num_layers == 1 and again.config.windows == (6,)
    assert_close(again(IDS).logits, model(IDS).logits)


def test_segments_keep_what_a_layer_is():
    config = dataclasses.replace(
        tiny_config(), num_layers=4, windows=(3, None, 5, None), num_experts=2,
        experts_per_token=1, expert_width=8, dense_layers=(0, 2),
    )  # fmt: skip
    part = segment_config(config, 1, 3)
    assert part.windows == (None, 5) and part.dense_layers == (1,)


def test_bad_input_is_refused():
    for count in (0, 3):
        with pytest.raises(ArgumentError, match=f"num_layers: got {count}, expected 1"):
            cut_layers(tiny_model(), count)
    with pytest.raises(ArgumentError, match="num_layers: got \\(2, 1\\)"):
        segment_config(tiny_config(), 2, 1)
    with pytest.raises(ArgumentTypeError, match="model: got a MambaConfig"):
        cut_layers(tiny_model(family="mamba"), 1)
