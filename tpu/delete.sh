#!/usr/bin/env bash
# Gives a TPU back, together with its place in the queue; what it held is lost.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'TEXT'
usage: tpu/delete.sh --project P --zone Z --name N [options]
  --yes             do not ask
  --dry-run         print the commands only
TEXT
}

YES=()
parse_common "$@"
set -- ${REST[@]+"${REST[@]}"}
while (($# > 0)); do
  case "$1" in
    --yes) YES=(--quiet); shift ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
done
need_target
run gcloud compute tpus queued-resources delete "$NAME" --force \
  --project="$PROJECT" --zone="$ZONE" ${YES[@]+"${YES[@]}"}
