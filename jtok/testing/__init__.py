"""What tests need, shipped because users' tests need it too."""

from jtok.testing.compiled import (
    Collective,
    argument_copies,
    collectives,
    tpu_devices,
)
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
    drawn_drafter,
    dynamic_drafter,
    extra_slots_drafter,
    oracle_drafter,
    random_drafter,
)
from jtok.testing.goldens import Golden, load_golden
from jtok.testing.grams import tiny_grams
from jtok.testing.laws import (
    CandidateLaw,
    ChainLaw,
    candidate_law,
    chain_law,
    try_candidates,
)
from jtok.testing.recurrent import RecurrentCache, recurrent_target
from jtok.testing.tiny import tiny_config, tiny_model, tiny_vocabulary
from jtok.testing.tolerances import assert_close, tolerance

__all__ = [
    "BigramCache",
    "CandidateLaw",
    "ChainLaw",
    "Collective",
    "CountingCache",
    "Difference",
    "Golden",
    "RecurrentCache",
    "adversary_drafter",
    "argument_copies",
    "assert_close",
    "assert_token_guarantee",
    "bigram_target",
    "candidate_law",
    "chain_law",
    "collectives",
    "compare",
    "counting_target",
    "data",
    "drawn_drafter",
    "dynamic_drafter",
    "extra_slots_drafter",
    "load_golden",
    "oracle_drafter",
    "random_drafter",
    "recurrent_target",
    "steps",
    "tiny_config",
    "tiny_grams",
    "tiny_model",
    "tiny_vocabulary",
    "tolerance",
    "tpu_devices",
    "try_candidates",
]
