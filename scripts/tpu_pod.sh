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
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format='value(state.state)' 2>&1); then
    echo "${said##*$'\n'}"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo UNKNOWN  # a network that fails for a while takes no slice away
  fi
}

on_hosts() {  # on_hosts all|0 COMMAND
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

create() {
  [[ -n $TYPE ]] || die "TYPE is not set, such as TYPE=v5litepod-16"
  local version
  version=$(runtime) || exit
  local flags=(--node-id "$NAME" --accelerator-type "$TYPE" --runtime-version "$version")
  [[ $SPOT == 1 ]] && flags+=(--spot)
  do_it gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" "${flags[@]}" || die "the request was refused"
  wait_for_slice
}

wait_for_slice() {  # false where waiting is in vain
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    if gone "$now"; then
      echo "$NAME is $now: gcloud compute tpus queued-resources describe $NAME" >&2
      return 1
    fi
    echo "$(date +%T) $NAME is $now"
    sleep "$POLL"
  done
}

gone() { [[ $1 == ABSENT || $1 == FAILED || $1 == SUSPEND* || $1 == DELETING ]]; }

ship() {
  local archive done=0
  archive=$(mktemp --suffix=.tar.gz)
  do_it git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$archive" HEAD &&
    do_it gcloud compute tpus tpu-vm scp "$archive" "$NAME:mem0_jax.tar.gz" "${PLACE[@]}" --worker=all &&
    on_hosts all "mkdir -p mem0_jax && tar -xzf mem0_jax.tar.gz -C mem0_jax && make -C mem0_jax tpu" || done=1
  rm -f "$archive"
  return "$done"
}

launch() {
  ((${#FLAGS[@]})) || die "launch needs the flags of mem0-jax train behind --"
  local words
  words=$(printf '%q ' "${FLAGS[@]}")
  # One process a host, all at once; they find each other. What a launch before left running would keep the chips. The
  # exit code is left behind for "status" and "run".
  on_hosts all "cd mem0_jax && { kill -9 -- -\$(cat process); rm -f exit_code process; } 2>/dev/null; (MEM0_CLUSTER=tpu setsid bash -c 'echo \$\$ > process; .venv/bin/mem0-jax train ${words//\'/\'\\\'\'}; echo \$? > exit_code' > train.log 2>&1 < /dev/null &) && until [ -s process ]; do sleep 0.1; done"
}

training() {  # running, or the exit code
  if ((DRY)); then echo 0; return; fi
  # shellcheck disable=SC2016  # the host expands it
  local ask='cat exit_code || { kill -0 -- -$(cat process) && echo running; } || echo lost'
  gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 --command="{ cd mem0_jax; $ask; } 2>/dev/null" 2>/dev/null \
    || echo unreachable
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

run() {
  ((${#FLAGS[@]})) || die "run needs the flags of mem0-jax train behind --"
  local attempt now
  for ((attempt = 0; attempt <= RETRIES; attempt++)); do
    if ((attempt)); then sleep "$POLL"; fi
    now=$(state)
    if gone "$now" && [[ $now != ABSENT ]]; then delete || continue; now=ABSENT; fi
    if [[ $now == ABSENT ]] || ((DRY)); then create || continue; else wait_for_slice || continue; fi
    # A terminal that was closed comes back to the run it started.
    if ((DRY)) || [[ $(training) != running ]]; then
      if ! { ship && launch; }; then
        echo "$(date +%T) the slice could not be prepared: trying again"
        continue
      fi
    fi
    while now=$(training); [[ $now == running || ($now == unreachable && $(state) == ACTIVE) ]]; do sleep "$POLL"; done
    case $now in
      0) echo "training has ended well"; return ;;
      # A slice that is taken away lets training save first, which ends with these codes.
      130 | 143 | lost | unreachable)
        echo "$(date +%T) training is $now, the slice is $(state): beginning again from the last checkpoint" ;;
      *) die "training failed with exit code $now: scripts/tpu_pod.sh logs" ;;
    esac
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
