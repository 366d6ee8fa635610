#!/bin/bash
# bash eval.sh TASK --server ws://127.0.0.1:8000 [--action_horizon 30 ...]: one evaluation as released, 100 episodes.
# Every further argument overrides an entry of deploy_policy.yml.
set -euo pipefail

policy_name=$(basename "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -L)")
task_name=${1:?usage: bash eval.sh TASK --server ws://HOST:PORT [--NAME VALUE ...]}
shift

cd "$(dirname "${BASH_SOURCE[0]}")/../.." # RMBench's root
exec env PYTHONWARNINGS=ignore::UserWarning \
    python script/eval_policy.py --config "policy/$policy_name/deploy_policy.yml" \
    --overrides --policy_name "$policy_name" --task_name "$task_name" "$@"
