#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it, ships this checkout, launches on all its hosts, and starts again after preemption.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/tpu_pod.sh [--dry-run] COMMAND [-- FLAGS OF mem0-jax train]

  create    ask for the slice and wait until it is there
  ship      copy this checkout (what git tracks) to every host and install it
  launch    start "mem0-jax train FLAGS" on every host, detached from this terminal
  logs      follow the log of host 0
  status    the state of the slice, and of training on host 0
  run       all of it: create, ship, launch, watch; after preemption begin again until training has ended well
  delete    give the slice back

Settings come from the environment:
  NAME      of the slice                         (default mem0)
  TYPE      accelerator type, such as v5litepod-16, v6e-8, v5p-64    (required by create and run)
  ZONE      such as us-west4-a                   (required)
  PROJECT   Google Cloud project                 (default: gcloud's own)
  RUNTIME   TPU software version                 (default: by TYPE)
  SPOT      1 asks for a preemptible slice       (default 1)
  RETRIES   times run may begin again            (default 100)
  POLL      seconds between two looks            (default 60)

Checkpoints must outlive the slice, and every host reads and writes them: let --workdir lie on a disk that all mount.

  TYPE=v5litepod-16 ZONE=us-west4-a scripts/tpu_pod.sh run -- --config=m1_mix --config.hardware=v5e-16 --workdir=/mnt/m1
END
}

die() { echo "tpu_pod.sh: $*" >&2; exit 2; }

DRY=0
if [[ ${1:-} == --dry-run ]]; then DRY=1; shift; fi
COMMAND=${1:-help}
[[ $# -gt 0 ]] && shift
if [[ ${1:-} == -- ]]; then shift; fi
FLAGS=("$@")

NAME=${NAME:-mem0} TYPE=${TYPE:-} ZONE=${ZONE:-} SPOT=${SPOT:-1} RETRIES=${RETRIES:-100} POLL=${POLL:-60}
PLACE=(--zone "$ZONE")
[[ -n ${PROJECT:-} ]] && PLACE+=(--project "$PROJECT")

# Every command that changes something goes through here: a dry run prints it, ready to be pasted.
do_it() {
  if ((DRY)); then printf '%q ' "$@"; echo; else "$@"; fi
}

runtime() {
  case ${RUNTIME:-$TYPE} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *)
      [[ -n ${RUNTIME:-} ]] || die "TYPE '$TYPE' is unknown: set RUNTIME as well"
      echo "$RUNTIME"
      ;;
  esac
}

state() {
  if ((DRY)); then echo ACTIVE; return; fi
  gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT
}

on_hosts() {  # on_hosts all|0 COMMAND
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

create() {
  [[ -n $TYPE ]] || die "TYPE is not set, such as TYPE=v5litepod-16"
  local version
  version=$(runtime)
  local flags=(--node-id "$NAME" --accelerator-type "$TYPE" --runtime-version "$version")
  [[ $SPOT == 1 ]] && flags+=(--spot)
  do_it gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" "${flags[@]}"
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    [[ $now == FAILED ]] && die "the request failed: gcloud compute tpus queued-resources describe $NAME"
    echo "$(date +%T) $NAME is $now"
    sleep "$POLL"
  done
}

ship() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  do_it git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$NAME:mem0_jax.tar.gz" "${PLACE[@]}" --worker=all
  on_hosts all "mkdir -p mem0_jax && tar -xzf mem0_jax.tar.gz -C mem0_jax && make -C mem0_jax tpu"
  rm -f "$archive"
}

launch() {
  ((${#FLAGS[@]})) || die "launch needs the flags of mem0-jax train behind --"
  local words
  words=$(printf '%q ' "${FLAGS[@]}")
  # One process a host, all at once; they find each other. The exit code is left behind for "status" and "run".
  on_hosts all "cd mem0_jax && rm -f exit_code && (MEM0_CLUSTER=tpu setsid bash -c '.venv/bin/mem0-jax train ${words//\'/\'\\\'\'}; echo \$? > exit_code' > train.log 2>&1 < /dev/null &)"
}

training() {  # running, or the exit code
  if ((DRY)); then echo 0; return; fi
  gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 \
    --command='cat mem0_jax/exit_code 2>/dev/null || { pgrep -f "mem0-jax train" >/dev/null && echo running || echo lost; }' 2>/dev/null \
    || echo unreachable
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

run() {
  ((${#FLAGS[@]})) || die "run needs the flags of mem0-jax train behind --"
  local attempt now
  for ((attempt = 0; attempt <= RETRIES; attempt++)); do
    now=$(state)
    if [[ $now != ACTIVE && $now != ABSENT ]]; then delete; now=ABSENT; fi
    if [[ $now == ABSENT ]] || ((DRY)); then create; fi
    if ! { ship && launch; }; then
      echo "the slice went away while it was prepared"
      continue
    fi
    while now=$(training); [[ $now == running || ($now == unreachable && $(state) == ACTIVE) ]]; do sleep "$POLL"; done
    if [[ $now == 0 ]]; then echo "training has ended well"; return; fi
    if [[ $now =~ ^[0-9]+$ ]]; then die "training failed with exit code $now: scripts/tpu_pod.sh logs"; fi
    echo "$(date +%T) training is $now, the slice is $(state): beginning again from the last checkpoint"
  done
  die "gave up after $RETRIES attempts"
}

case $COMMAND in
  help | -h | --help) usage; exit 0 ;;
  create | ship | launch | logs | status | run | delete) [[ -n $ZONE ]] || die "ZONE is not set, such as ZONE=us-west4-a" ;;
  *) usage >&2; die "unknown command '$COMMAND'" ;;
esac
if ! ((DRY)) && ! command -v gcloud >/dev/null; then die "gcloud is not installed: https://cloud.google.com/sdk"; fi
case $COMMAND in
  logs) on_hosts 0 "tail -n 100 -f mem0_jax/train.log" ;;
  status) echo "slice: $(state), training: $(training)" ;;
  *) "$COMMAND" ;;
esac
