#!/usr/bin/env bash
# Asks for a TPU, waits until it is there, and installs jtok on every worker.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'TEXT'
usage: tpu/create.sh --project P --zone Z --name N --type v5litepod-256 [options]
  --type TYPE       accelerator type, as `gcloud compute tpus accelerator-types list` says
  --version VERSION runtime of the TPU VM (v2-alpha-tpuv5-lite)
  --spot            a cheaper machine that may be taken away
  --wait SECONDS    how long to wait for it (7200)
  --no-install      do not copy this checkout and install it
  --dry-run         print the commands only
TEXT
}

TYPE="" VERSION="v2-alpha-tpuv5-lite" SPOT=() WAIT=7200 INSTALL=true
parse_common "$@"
set -- ${REST[@]+"${REST[@]}"}
while (($# > 0)); do
  case "$1" in
    --type) TYPE="${2:?--type needs a value}"; shift 2 ;;
    --version) VERSION="${2:?--version needs a value}"; shift 2 ;;
    --spot) SPOT=(--spot); shift ;;
    --wait) WAIT="${2:?--wait needs a value}"; shift 2 ;;
    --no-install) INSTALL=false; shift ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
done
need_target
[[ -n "$TYPE" ]] || die "give --type"
[[ "$WAIT" =~ ^[1-9][0-9]*$ ]] || die "--wait: got $WAIT, expected seconds"

run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
  --project="$PROJECT" --zone="$ZONE" --accelerator-type="$TYPE" \
  --runtime-version="$VERSION" ${SPOT[@]+"${SPOT[@]}"}

state() {
  gcloud compute tpus queued-resources describe "$NAME" \
    --project="$PROJECT" --zone="$ZONE" --format='value(state.state)'
}

echo "waiting up to $WAIT s for $NAME to be ACTIVE"
if ! $DRY_RUN; then
  deadline=$((SECONDS + WAIT))
  until [[ "$(state)" == ACTIVE ]]; do
    case "$(state)" in
      FAILED | SUSPENDED) die "$NAME is $(state); remove it with tpu/delete.sh" ;;
    esac
    ((SECONDS < deadline)) || die "$NAME is $(state) after $WAIT s; it stays queued, tpu/delete.sh removes it"
    sleep 20
  done
fi

$INSTALL || exit 0
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ARCHIVE="$(mktemp -d)/jtok.tar.gz"
trap 'rm -rf "$(dirname "$ARCHIVE")"' EXIT
run git -C "$ROOT" archive --format=tar.gz --prefix=jtok/ --output="$ARCHIVE" HEAD
run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:jtok.tar.gz" --worker=all \
  --project="$PROJECT" --zone="$ZONE"
on_workers all 1800 'set -e; tar xzf jtok.tar.gz; cd jtok
python3 -m venv .venv
.venv/bin/python -m pip install --quiet -e ".[tpu,experiments]"'
echo "ready: tpu/run.sh --name $NAME -- --list"
