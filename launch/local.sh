#!/usr/bin/env bash
# bash launch/local.sh [--dry-run] PROCESSES ARGUMENTS: ssl_jax train ARGUMENTS as PROCESSES processes on this machine.
#
#     bash launch/local.sh 2 --config simclr:tiny --workdir runs/two
#
# For tests, on CPUs. Each process has $DEVICES simulated devices (1). If one process fails, the others are stopped.
# SIGTERM is passed on to all. The exit code is that of launch/train.sh. --dry-run prints the commands.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=no
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "the first argument is the number of processes, got '$processes'"
shift
workdir_of "$@" >/dev/null

port=${PORT:-$((20000 + $$ % 10000))}
trap stop_all TERM INT
for ((index = 0; index < processes; index++)); do
    command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=${DEVICES:-1}"
        bash launch/train.sh "$@" --coordinator "127.0.0.1:$port" --num_processes "$processes" --process_id "$index")
    if [[ $dry_run == yes ]]; then
        run "${command[@]}"
    else
        "${command[@]}" & # not within `run`: its shell would not pass the signals on
        started+=($!)
    fi
done

wait_for_started
