#!/usr/bin/env bash
# Trains on the GPUs of this host, or of a SLURM job: installs, checks the GPUs, launches, starts again after a crash.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/gpu_host.sh [--dry-run] COMMAND [-- FLAGS OF mem0-jax train]

  install   make gpu: JAX for NVIDIA GPUs into .venv
  check     what nvidia-smi and JAX see
  launch    start training in the background; its log is LOG
  run       the same in the foreground; after a crash it goes on from the last checkpoint
  slurm     print a batch script for sbatch: one process a GPU node

Settings come from the environment:
  LOG       (default train.log)
  RETRIES   times run may start again        (default 5)
  NODES     of the SLURM job                 (default 1)
  HOURS     of the SLURM job                 (default 24)

  scripts/gpu_host.sh launch -- --config=m1_mix --config.hardware=gpu8 --workdir=runs/m1
  scripts/gpu_host.sh slurm -- --config=m1_mix --config.hardware=gpu8 --workdir=/shared/m1 > m1.sbatch
END
}

die() { echo "gpu_host.sh: $*" >&2; exit 2; }

DRY=0
if [[ ${1:-} == --dry-run ]]; then DRY=1; shift; fi
COMMAND=${1:-help}
[[ $# -gt 0 ]] && shift
if [[ ${1:-} == -- ]]; then shift; fi
FLAGS=("$@")
LOG=${LOG:-train.log} RETRIES=${RETRIES:-5} NODES=${NODES:-1} HOURS=${HOURS:-24}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PROGRAM=$ROOT/.venv/bin/mem0-jax

do_it() {
  if ((DRY)); then printf '%q ' "$@"; echo; else "$@"; fi
}

need_flags() { ((${#FLAGS[@]})) || die "$COMMAND needs the flags of mem0-jax train behind --"; }

check() {
  do_it nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv
  do_it "$ROOT/.venv/bin/python" -c 'import jax; print(jax.devices()); assert jax.default_backend() == "gpu", "JAX sees no GPU"'
}

run() {
  need_flags
  local attempt code=0
  for ((attempt = 0; attempt <= RETRIES; attempt++)); do
    code=0
    do_it "$PROGRAM" train "${FLAGS[@]}" || code=$?
    # 0: done; 2: wrong flags; 130, 143: somebody stopped it. Anything else may go better from the last checkpoint.
    case $code in 0 | 2 | 130 | 143) return "$code" ;; esac
    echo "$(date +%T) training ended with exit code $code, attempt $((attempt + 1)) of $((RETRIES + 1))" >&2
    sleep 5
  done
  return "$code"
}

launch() {
  need_flags
  if ((DRY)); then
    printf 'setsid %q run -- ' "${BASH_SOURCE[0]}"
    printf '%q ' "${FLAGS[@]}"
    echo "> $LOG"
    return
  fi
  RETRIES=$RETRIES setsid "${BASH_SOURCE[0]}" run -- "${FLAGS[@]}" >"$LOG" 2>&1 </dev/null &
  echo "training runs as process $!; follow it with: tail -f $LOG"
}

slurm() {
  need_flags
  cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=mem0_jax
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=$HOURS:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
# The processes find each other by SLURM's own variables; SIGTERM two minutes before the end saves a checkpoint.
srun --kill-on-bad-exit=1 $(printf '%q ' "$PROGRAM" train "${FLAGS[@]}")
END
}

case $COMMAND in
  help | -h | --help) usage ;;
  install) do_it make -C "$ROOT" gpu ;;
  check | run | launch | slurm) "$COMMAND" ;;
  *) usage >&2; die "unknown command '$COMMAND'" ;;
esac
