#!/usr/bin/env bash
# Copies the reports of the first worker, which is the one that writes, to this machine.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'TEXT'
usage: tpu/collect.sh --project P --zone Z --name N [options]
  --from FOLDER     folder below the checkout on the worker (runs)
  --into FOLDER     folder here (runs/N)
  --dry-run         print the commands only
TEXT
}

FROM=runs INTO=""
parse_common "$@"
set -- ${REST[@]+"${REST[@]}"}
while (($# > 0)); do
  case "$1" in
    --from) FROM="${2:?--from needs a value}"; shift 2 ;;
    --into) INTO="${2:?--into needs a value}"; shift 2 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
done
need_target
INTO="${INTO:-runs/$NAME}"
run mkdir -p "$INTO"
run gcloud compute tpus tpu-vm scp --recurse --worker=0 \
  --project="$PROJECT" --zone="$ZONE" "$NAME:jtok/$FROM" "$INTO"
