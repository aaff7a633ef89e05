"""What tests need, shipped because users' tests need it too."""

from jtok.testing.data import data
from jtok.testing.decoding import Difference, assert_token_guarantee, compare
from jtok.testing.goldens import Golden, load_golden
from jtok.testing.tiny import tiny_config, tiny_model, tiny_vocabulary
from jtok.testing.tolerances import assert_close, tolerance

__all__ = [
    "Difference",
    "Golden",
    "assert_close",
    "assert_token_guarantee",
    "compare",
    "data",
    "load_golden",
    "tiny_config",
    "tiny_model",
    "tiny_vocabulary",
    "tolerance",
]
