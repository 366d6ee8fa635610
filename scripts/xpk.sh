#!/usr/bin/env bash
# Trains on Cloud TPU slices of a Kubernetes cluster, by xpk (github.com/AI-Hypercomputer/xpk): pip install xpk
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/xpk.sh [--dry-run] COMMAND [-- FLAGS OF mem0-jax train]

  cluster   make the cluster with its slices, and a disk that all hosts mount at MOUNT
  launch    put what git tracks of this checkout onto IMAGE and queue "mem0-jax train FLAGS"; after preemption, or when a
            host breaks, it starts again from its last checkpoint
  logs      follow the log of host 0
  status    the queue of the cluster
  stop      take the run out of the queue; the cluster stays
  delete    give the cluster back; the disk stays

Settings come from the environment:
  NAME      of the run                           (default mem0)
  CLUSTER   of the cluster                       (default mem0)
  TYPE      accelerator type, such as v5litepod-16, v6e-8, v5p-64    (required by cluster and launch)
  ZONE      such as us-west4-a                   (required)
  PROJECT   Google Cloud project                 (required)
  SPOT      1 asks for preemptible slices        (default 1)
  SLICES    of the cluster                       (default 1)
  RETRIES   times a run may start again          (default 100)
  IMAGE     with make and Python 3.11 to 3.13    (default python:3.12)
  MOUNT     of the disk                          (default /data)
  DISK_GB   its size                             (default 1024)

  export TYPE=v5litepod-16 ZONE=us-west4-a PROJECT=lab
  scripts/xpk.sh cluster
  scripts/xpk.sh launch -- --config=m1_mix --config.hardware=v5e-16 --workdir=/data/m1
END
}

die() { echo "xpk.sh: $*" >&2; exit 2; }

DRY=0
if [[ ${1:-} == --dry-run ]]; then DRY=1; shift; fi
COMMAND=${1:-help}
[[ $# -gt 0 ]] && shift
if [[ ${1:-} == -- ]]; then shift; fi
FLAGS=("$@")

NAME=${NAME:-mem0} CLUSTER=${CLUSTER:-mem0} TYPE=${TYPE:-} ZONE=${ZONE:-} PROJECT=${PROJECT:-} SPOT=${SPOT:-1}
SLICES=${SLICES:-1} RETRIES=${RETRIES:-100} IMAGE=${IMAGE:-python:3.12} MOUNT=${MOUNT:-/data} DISK_GB=${DISK_GB:-1024}
PLACE=(--cluster "$CLUSTER" --zone "$ZONE" --project "$PROJECT")

# Every command that changes something goes through here: a dry run prints it, ready to be pasted.
do_it() {
  if ((DRY)); then printf '%q ' "$@"; echo; else "$@"; fi
}

need_type() { [[ -n $TYPE ]] || die "TYPE is not set, such as TYPE=v5litepod-16"; }

cluster() {
  need_type
  local flags=(--tpu-type="$TYPE" --num-slices="$SLICES" --enable-workload-identity --enable-gcpfilestore-csi-driver)
  if [[ $SPOT == 1 ]]; then flags+=(--spot); else flags+=(--on-demand); fi
  do_it xpk cluster create "${PLACE[@]}" "${flags[@]}"
  do_it xpk storage create "$CLUSTER-disk" "${PLACE[@]}" --type=gcpfilestore --size="$DISK_GB" --tier=BASIC_HDD \
    --vol=default --access-mode=ReadWriteMany --mount-point="$MOUNT" --readonly=false --auto-mount=true
}

launch() {
  need_type
  ((${#FLAGS[@]})) || die "launch needs the flags of mem0-jax train behind --"
  local words
  words=$(printf '%q ' "${FLAGS[@]}")
  checkout=$(mktemp --directory)
  trap 'rm -rf "$checkout"' EXIT
  do_it git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$checkout/checkout.tar" HEAD
  do_it tar -xf "$checkout/checkout.tar" -C "$checkout"
  do_it rm "$checkout/checkout.tar"
  # The processes find each other by what Kubernetes tells them. A host that is taken away gets SIGTERM first, and
  # training, in the place of the shell by "exec", saves a checkpoint in the time it is given.
  do_it xpk workload create "${PLACE[@]}" --workload "$NAME" --tpu-type="$TYPE" --num-slices=1 \
    --base-docker-image="$IMAGE" --script-dir="$checkout" --max-restarts="$RETRIES" \
    --termination-grace-period-seconds=300 --command="make tpu && exec .venv/bin/mem0-jax train $words"
}

logs() {
  local host0="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
  do_it kubectl logs --follow --tail=100 --selector="$host0"
}

status() { do_it xpk workload list "${PLACE[@]}"; }

stop() { do_it xpk workload delete "${PLACE[@]}" --workload "$NAME"; }

delete() { do_it xpk cluster delete "${PLACE[@]}"; }

case $COMMAND in
  help | -h | --help) usage; exit 0 ;;
  cluster | launch | logs | status | stop | delete) ;;
  *) usage >&2; die "unknown command '$COMMAND'" ;;
esac
[[ -n $ZONE ]] || die "ZONE is not set, such as ZONE=us-west4-a"
[[ -n $PROJECT ]] || die "PROJECT is not set: the Google Cloud project"
if ! ((DRY)) && ! command -v xpk >/dev/null; then die "xpk is not installed: pip install xpk"; fi
"$COMMAND"
