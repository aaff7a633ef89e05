"""From predictions to emitted tokens, losslessly and in fewer calls."""

from jtok.decode.ahead import lower_decode
from jtok.decode.auxiliary import HeadsState, auxiliary_heads
from jtok.decode.byte_ensemble import ByteEnsemble, byte_ensemble
from jtok.decode.byte_level import ByteLevel, ByteState, byte_level
from jtok.decode.byte_model import ByteModel
from jtok.decode.byte_sampling import nucleus, scale_temperature
from jtok.decode.calibrate import (
    CostCurve,
    Tuned,
    choose_template,
    cost_curve,
    prune_template,
    tune_template,
)
from jtok.decode.draft_model import DraftState, draft_model
from jtok.decode.drafters import find_continuation, no_drafter, prompt_lookup
from jtok.decode.dynamic import Dynamic, dynamic, grow_tree, grow_tree_with
from jtok.decode.fill_in import FillTokens, fill_in_middle, middle_state
from jtok.decode.fusing import LastState, chimera, medusa
from jtok.decode.future import FutureState, future_blocks, future_drafter, unverified
from jtok.decode.generate import Generated, Stats, generate
from jtok.decode.heads import draft_tree
from jtok.decode.heal import token_healing, token_prompt
from jtok.decode.host import HostTree, host_drafter
from jtok.decode.mask_tokens import MaskState, mtp
from jtok.decode.metrics import SpecBenchSummary, spec_bench_summary
from jtok.decode.other_vocabulary import Translator, draft_across
from jtok.decode.processors import Processor, allow_tokens, dfa, spelling_dfa
from jtok.decode.recycling import (
    RecyclingState,
    draft_tokens,
    load_table,
    save_table,
    token_recycling,
    update_table,
)
from jtok.decode.rejection import (
    Walk,
    check_q,
    node_laws,
    rejection,
    sequential,
    walk_drafts,
)
from jtok.decode.rules import exact, rule_for
from jtok.decode.serve import serve
from jtok.decode.sessions import Session
from jtok.decode.sorted import Lengths, SortedState, lengths, sorted_chain, sorted_tree
from jtok.decode.stream import Event, stream
from jtok.decode.templates import chimera_template, recycling_template
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
from jtok.decode.typical import accept_typical, typical
from jtok.decode.verify import EXACT, accept, truncate

__all__ = [
    "EXACT",
    "Accepted",
    "ByteEnsemble",
    "ByteLevel",
    "ByteModel",
    "ByteState",
    "CostCurve",
    "DraftState",
    "Drafter",
    "Dynamic",
    "Event",
    "FillTokens",
    "FutureState",
    "Generated",
    "HeadsState",
    "HostTree",
    "LastState",
    "Lengths",
    "MaskState",
    "Needs",
    "Processor",
    "Proposal",
    "RecyclingState",
    "Rule",
    "Sampling",
    "Session",
    "SortedState",
    "SpecBenchSummary",
    "Stats",
    "Tokens",
    "Translator",
    "Tuned",
    "Verdict",
    "Walk",
    "accept",
    "accept_typical",
    "allow_tokens",
    "auxiliary_heads",
    "byte_ensemble",
    "byte_level",
    "check_q",
    "chimera",
    "chimera_template",
    "choose_template",
    "cost_curve",
    "dfa",
    "draft_across",
    "draft_model",
    "draft_tokens",
    "draft_tree",
    "dynamic",
    "exact",
    "fill_in_middle",
    "find_continuation",
    "future_blocks",
    "future_drafter",
    "generate",
    "grow_tree",
    "grow_tree_with",
    "host_drafter",
    "lengths",
    "load_table",
    "lower_decode",
    "medusa",
    "middle_state",
    "mtp",
    "no_drafter",
    "node_laws",
    "nucleus",
    "prompt_lookup",
    "prune_template",
    "recycling_template",
    "rejection",
    "rule_for",
    "save_table",
    "scale_temperature",
    "sequential",
    "serve",
    "sorted_chain",
    "sorted_tree",
    "spec_bench_summary",
    "spelling_dfa",
    "stream",
    "token_healing",
    "token_prompt",
    "token_recycling",
    "truncate",
    "tune_template",
    "typical",
    "unverified",
    "update_table",
    "walk_drafts",
]
