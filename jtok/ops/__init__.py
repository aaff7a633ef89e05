"""Array-to-array primitives: no model, no vocabulary, no state."""

from jtok.ops.attention import attention, cached_attention, write_rows
from jtok.ops.readouts import Draw, Readout, Want, readout_logits
from jtok.ops.sampling import filter_logits, gumbel_at, row_keys
from jtok.ops.selective_scan import advance_state, selective_scan
from jtok.ops.tree import Tree, ancestor_mask, ancestor_path
from jtok.ops.unembed import cross_entropy, readout

__all__ = [
    "Draw",
    "Readout",
    "Tree",
    "Want",
    "advance_state",
    "ancestor_mask",
    "ancestor_path",
    "attention",
    "cached_attention",
    "cross_entropy",
    "filter_logits",
    "gumbel_at",
    "readout",
    "readout_logits",
    "row_keys",
    "selective_scan",
    "write_rows",
]
