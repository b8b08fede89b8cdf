#!/usr/bin/env bash
# bash launch/gpu_node.sh [--dry-run] [--one_process] ARGUMENTS: ssl_jax train ARGUMENTS on all GPUs of this machine.
#
#     bash launch/gpu_node.sh --config simclr:imagenet_r50 --workdir runs/first
#
# There is one process for each GPU; with --one_process, a single one has all, for runs whose images fit in memory. Takes
# the GPUs of CUDA_VISIBLE_DEVICES, else all that the machine has. If one process fails, the others are stopped. If the
# run was stuck, or was stopped by another than this script, it is started again (RESTARTS in common.sh). SIGTERM
# is passed on to all, and ends it. The exit code is that of launch/train.sh. --dry-run prints the commands.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=no one=no
while [[ ${1:-} == --dry-run || ${1:-} == --one_process ]]; do
    [[ $1 == --dry-run ]] && dry_run=yes || one=yes
    shift
done
workdir_of "$@" >/dev/null

if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
else
    mapfile -t gpus < <(compgen -G "${DEVICE_FILES:-/dev}/nvidia[0-9]*" | sed 's/.*nvidia//' | sort -n)
fi
((${#gpus[@]} > 0)) || fail "this machine has no device file of an NVIDIA GPU; for its CPUs: bash launch/local.sh"
[[ $one == no ]] || gpus=("$(IFS=, && echo "${gpus[*]}")")

start() { # start ATTEMPT ARGUMENTS: each attempt has its own port, because the last one's may still be taken
    local port=$((${PORT:-$((20000 + $$ % 10000))} + $1)) index command
    shift
    for index in "${!gpus[@]}"; do
        command=(env "CUDA_VISIBLE_DEVICES=${gpus[index]}" bash launch/train.sh "$@" --platform gpu)
        ((${#gpus[@]} == 1)) ||
            command+=(--coordinator "127.0.0.1:$port" --num_processes "${#gpus[@]}" --process_id "$index")
        if [[ $dry_run == yes ]]; then
            run "${command[@]}"
        else
            "${command[@]}" & # not within `run`: its shell would not pass the signals on
            started+=($!)
        fi
    done
}

asked_to_stop=no
stop() {
    asked_to_stop=yes
    stop_all
}
trap stop TERM INT
attempt=0
while true; do
    begun=$SECONDS code=0
    start "$attempt" "$@"
    wait_for_started || code=$?
    attempt=$((attempt + 1))
    if [[ $asked_to_stop == yes || $dry_run == yes ]] || ! may_restart "$code" $((SECONDS - begun)); then
        exit "$code"
    fi
    wait_to_restart "$code"
    [[ $asked_to_stop == no ]] || exit "$STOPPED"
done
