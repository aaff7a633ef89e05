#!/usr/bin/env bash
# Runs the same experiment on all workers of a TPU; the first one writes.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'TEXT'
usage: tpu/run.sh --project P --zone Z --name N [options] -- EXPERIMENT [its options]
  --limit SECONDS   end the run after so long (86400)
  --wait SECONDS    how long each process waits for the others at the start (300)
  --dry-run         print the commands only

Everything after -- goes to `python -m experiments.run`, with --distributed added: e.g.
  tpu/run.sh --name pod -- token_recycling --preset full --mesh data=32,model=8
TEXT
}

LIMIT=86400 WAIT=300 OWN=() EXPERIMENT=()
# What stands after -- is the experiment's, whatever it is called.
while (($# > 0)); do
  case "$1" in
    --) shift; EXPERIMENT=("$@"); break ;;
    *) OWN+=("$1"); shift ;;
  esac
done
parse_common ${OWN[@]+"${OWN[@]}"}
set -- ${REST[@]+"${REST[@]}"}
while (($# > 0)); do
  case "$1" in
    --limit) LIMIT="${2:?--limit needs a value}"; shift 2 ;;
    --wait) WAIT="${2:?--wait needs a value}"; shift 2 ;;
    *) usage >&2; die "unknown option $1; the experiment stands after --" ;;
  esac
done
need_target
((${#EXPERIMENT[@]} > 0)) || die "give an experiment after --"
[[ "$LIMIT" =~ ^[1-9][0-9]*$ ]] || die "--limit: got $LIMIT, expected seconds"
[[ "$WAIT" =~ ^[1-9][0-9]*$ ]] || die "--wait: got $WAIT, expected seconds"

# Every worker prints `process i of n`; a worker that is missing ends the others after
# WAIT seconds, so nothing hangs.
WORDS="$(printf ' %q' "${EXPERIMENT[@]}")"
on_workers all "$LIMIT" "cd jtok && exec .venv/bin/python -u -m experiments.run$WORDS --distributed --wait $WAIT"
