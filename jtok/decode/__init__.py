"""From predictions to emitted tokens, losslessly and in fewer calls."""

from jtok.decode.ahead import lower_decode
from jtok.decode.calibrate import (
    CostCurve,
    Tuned,
    choose_template,
    cost_curve,
    prune_template,
    tune_template,
)
from jtok.decode.drafters import find_continuation, no_drafter, prompt_lookup
from jtok.decode.generate import Generated, Stats, generate
from jtok.decode.metrics import SpecBenchSummary, spec_bench_summary
from jtok.decode.recycling import (
    RecyclingState,
    draft_tokens,
    load_table,
    save_table,
    token_recycling,
    update_table,
)
from jtok.decode.templates import recycling_template
from jtok.decode.types import (
    Accepted,
    Drafter,
    Needs,
    Proposal,
    Rule,
    Sampling,
    Tokens,
    Verdict,
)
from jtok.decode.verify import EXACT, accept, truncate

__all__ = [
    "EXACT",
    "Accepted",
    "CostCurve",
    "Drafter",
    "Generated",
    "Needs",
    "Proposal",
    "RecyclingState",
    "Rule",
    "Sampling",
    "SpecBenchSummary",
    "Stats",
    "Tokens",
    "Tuned",
    "Verdict",
    "accept",
    "choose_template",
    "cost_curve",
    "draft_tokens",
    "find_continuation",
    "generate",
    "load_table",
    "lower_decode",
    "no_drafter",
    "prompt_lookup",
    "prune_template",
    "recycling_template",
    "save_table",
    "spec_bench_summary",
    "token_recycling",
    "truncate",
    "tune_template",
    "update_table",
]
