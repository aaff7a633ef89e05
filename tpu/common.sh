# Shared by the scripts of this folder; not run by itself.
# shellcheck shell=bash

die() {
  echo "error: $*" >&2
  exit 2
}

# What the caller chose: options win over the environment; nothing has a name built in.
PROJECT="${TPU_PROJECT:-}"
ZONE="${TPU_ZONE:-}"
NAME="${TPU_NAME:-}"
DRY_RUN=false
REST=()

# parse_common "$@": takes the common options out, leaves the others in REST.
parse_common() {
  while (($# > 0)); do
    case "$1" in
      --project) PROJECT="${2:?--project needs a value}"; shift 2 ;;
      --zone) ZONE="${2:?--zone needs a value}"; shift 2 ;;
      --name) NAME="${2:?--name needs a value}"; shift 2 ;;
      --dry-run) DRY_RUN=true; shift ;;
      -h | --help) usage; exit 0 ;;
      --) shift; REST+=("$@"); break ;;
      *) REST+=("$1"); shift ;;
    esac
  done
}

need_target() {
  [[ -n "$PROJECT" ]] || die "give --project, or set TPU_PROJECT"
  [[ -n "$ZONE" ]] || die "give --zone, or set TPU_ZONE"
  [[ -n "$NAME" ]] || die "give --name, or set TPU_NAME"
  $DRY_RUN || command -v gcloud > /dev/null || die "gcloud is not installed"
}

# Prints a command as one could type it, and runs it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  $DRY_RUN || "$@"
}

tpu_vm() {
  run gcloud compute tpus tpu-vm "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

# on_workers WORKERS SECONDS COMMAND: runs a command, and ends it when time is up.
on_workers() {
  tpu_vm ssh --worker="$1" --command="timeout --signal=INT --kill-after=60 $2 bash -c $(printf '%q' "$3")"
}
