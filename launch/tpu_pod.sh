#!/usr/bin/env bash
# bash launch/tpu_pod.sh [--dry-run] NAME TYPE ZONE ARGUMENTS: ssl_jax.train ARGUMENTS on all workers of a TPU slice.
#
#     export SETUP='sudo mkdir -p /nfs; mountpoint -q /nfs || sudo mount -o nolock 10.0.0.2:/share /nfs'
#     bash launch/tpu_pod.sh first v5litepod-256 us-west4-a \
#         --config configs/simclr.py:imagenet_r50 --workdir /nfs/first --config.data.path=/nfs/imagenet
#
# Asks for the slice as a queued resource, waits for it, installs this clone on its workers, with Python 3.11 and the
# packages of requirements.lock, and trains. Where the slice is taken away it is asked for again, until the run is finished;
# then it is deleted. What fails for another reason ends this with an error, and the slice stays, to be looked at. gcloud
# reaches several workers after `ssh-add ~/.ssh/google_compute_engine`. --dry-run prints the commands.
#   $SETUP          done on each worker first: mounts the file system that holds --workdir and the data, shared by all
#   $RUNTIME        the machines' software (v2-alpha-tpuv5-lite; v2-alpha-tpuv6e for v6e, tpu-ubuntu2204-base for v4)
#   $PROVISIONING   --spot, the default; empty for a slice that is not taken away
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=no
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
(($# > 3)) || fail "usage: bash launch/tpu_pod.sh [--dry-run] NAME TYPE ZONE ARGUMENTS"
name=$1 type=$2 zone=$3
shift 3
workdir=$(workdir_of "$@")
[[ $workdir == /* ]] || fail "--workdir=$workdir must be the full name of a directory that all workers share"
[[ $dry_run == yes ]] || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk"
provisioning=${PROVISIONING---spot}

queued() {
    gcloud compute tpus queued-resources "$1" "$name" --zone "$zone" "${@:2}"
}

state() {
    queued describe --format 'value(state.state)' 2>/dev/null || echo NONE
}

on() { # on WORKER COMMAND
    run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker "$1" --command "$2"
}

create() {
    say "asking for $type as $name in $zone"
    run gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
        --accelerator-type "$type" --runtime-version "${RUNTIME:-v2-alpha-tpuv5-lite}" ${provisioning:+"$provisioning"}
}

delete() {
    run gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet
}

wait_for_slice() {
    local now
    [[ $dry_run == no ]] || return 0
    until now=$(state) && [[ $now == ACTIVE ]]; do
        case $now in
            FAILED | SUSPENDED | NONE) fail "the request $name is $now" ;;
        esac
        say "$name is $now"
        sleep 60
    done
}

# Python is uv's: that of the machines' software is older than JAX needs, and has no venv.
install() {
    local jax
    jax=$(sed -n 's/^jax==/jax[tpu]==/p' requirements.lock)
    say "installing on all workers"
    run git archive --format tar.gz --output "/tmp/$name.tar.gz" HEAD &&
        run gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:/tmp/" --zone "$zone" --worker all &&
        on all "set -e; (${SETUP:-true}); mkdir -p ssl_jax; tar -xzf /tmp/$name.tar.gz -C ssl_jax; \
[ -x uv/bin/uv ] || python3 -m pip install -q --target uv uv==0.13.9; cd ssl_jax; \
[ -x .venv/bin/python ] || ../uv/bin/uv venv -q --clear --python 3.11; \
../uv/bin/uv pip install -q -r requirements.lock '$jax' -e ."
}

while true; do
    if [[ $dry_run == yes || $(state) == NONE ]]; then
        create
    fi
    wait_for_slice
    if install && on all "cd ssl_jax && bash launch/train.sh ${*@Q}"; then
        say "finished; deleting $name"
        delete
        exit 0
    fi
    case $(state) in
        ACTIVE)
            # SIGTERM comes some 30 s before the slice is gone.
            sleep 60
            [[ $(state) != ACTIVE ]] || fail "the run has ended with an error, and $name is there still: see above"
            ;;
    esac
    say "$name was taken away"
    delete
done
