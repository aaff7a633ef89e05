"""What tests need, shipped because users' tests need it too."""

from jtok.testing.data import data
from jtok.testing.decoding import (
    BigramCache,
    CountingCache,
    Difference,
    assert_token_guarantee,
    bigram_target,
    compare,
    counting_target,
    steps,
)
from jtok.testing.drafters import (
    adversary_drafter,
    dynamic_drafter,
    extra_slots_drafter,
    oracle_drafter,
    random_drafter,
)
from jtok.testing.goldens import Golden, load_golden
from jtok.testing.recurrent import RecurrentCache, recurrent_target
from jtok.testing.tiny import tiny_config, tiny_model, tiny_vocabulary
from jtok.testing.tolerances import assert_close, tolerance

__all__ = [
    "BigramCache",
    "CountingCache",
    "Difference",
    "Golden",
    "RecurrentCache",
    "adversary_drafter",
    "assert_close",
    "assert_token_guarantee",
    "bigram_target",
    "compare",
    "counting_target",
    "data",
    "dynamic_drafter",
    "extra_slots_drafter",
    "load_golden",
    "oracle_drafter",
    "random_drafter",
    "recurrent_target",
    "steps",
    "tiny_config",
    "tiny_model",
    "tiny_vocabulary",
    "tolerance",
]
