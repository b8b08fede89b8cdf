#!/usr/bin/env bash
# bash launch/tpu_pod.sh [--dry-run] NAME TYPE ZONE ARGUMENTS: ssl_jax train ARGUMENTS on all workers of a TPU slice.
#
#     export SETUP='sudo mkdir -p /nfs; mountpoint -q /nfs || sudo mount -o nolock 10.0.0.2:/share /nfs'
#     bash launch/tpu_pod.sh first v5litepod-256 us-west4-a \
#         --config simclr:imagenet_r50 --workdir /nfs/first --config.data.path=/nfs/imagenet
#
# Asks for the slice as a queued resource and waits for it. Then installs the commit of this clone on its workers, with
# Python 3.11 and the packages of requirements.lock, and trains. If the slice is taken away, it is asked for again. If a
# connection breaks or the training is stuck, it is started again, at most RESTARTS times in a row (common.sh). When the
# training is finished, the slice is deleted. Any other failure ends this script with an error. Then the slice stays, so that you can look at it; each worker's last output is
# in its train.log. gcloud reaches several workers after `ssh-add ~/.ssh/google_compute_engine`. --dry-run prints the
# commands.
#   $SETUP          run first on each worker: mounts the file system that holds --workdir and the data, shared by all
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
changed=$(git status --porcelain)
[[ -z $changed ]] || fail "what is not committed would not be sent to the workers; commit it first:
$(head -n 5 <<<"$changed")"
# The commit of now is installed, even if the clone has changed when the slice comes.
commit=$(git rev-parse HEAD)
jax=$(sed -n 's/^jax==/jax[tpu]==/p' requirements.lock)

# Prints the request's state, or NONE if there is no such request. Other errors say nothing about the slice.
state() {
    local try error
    for try in {1..10}; do
        if error=$(gcloud compute tpus queued-resources describe "$name" --zone "$zone" \
            --format 'value(state.state)' 2>&1 >&3); then
            return
        elif [[ $error == *NOT_FOUND* ]]; then
            echo NONE
            return
        fi
        say "the state of $name could not be read ($try of 10): $error" >&2
        sleep 20
    done
    fail "the state of $name could not be read, and nothing was done to it; the same command goes on"
} 3>&1

on_all() { # on_all COMMAND
    run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"
}

create() {
    say "asking for $type as $name in $zone"
    run gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
        --accelerator-type "$type" --runtime-version "${RUNTIME:-v2-alpha-tpuv5-lite}" ${provisioning:+"$provisioning"}
}

delete() {
    run gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet
}

# gcloud repeats a command if its connection broke, while the first one may still be running.
alone="exec 9>ssl_jax.lock; flock -n 9 || { echo 'an earlier start is still running here' >&2; exit $STOPPED; }"

# Python comes from uv: the one in the machines' software is too old for JAX, and has no venv.
install() {
    say "installing on all workers"
    run git archive --format tar.gz --output "/tmp/$name.tar.gz" "$commit" &&
        run gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:/tmp/" --zone "$zone" --worker all &&
        on_all "set -e; (${SETUP:-true}); $alone; mkdir -p ssl_jax; tar -xzf /tmp/$name.tar.gz -C ssl_jax; \
[ -x uv/bin/uv ] || python3 -m pip install -q --target uv uv==0.13.9; cd ssl_jax; \
[ -x .venv/bin/python ] || ../uv/bin/uv venv -q --clear --python 3.11; \
../uv/bin/uv pip install -q -r requirements.lock '$jax' -e ."
}

# The output goes into a file, because a training that writes into a broken connection would fail.
train() {
    on_all "$alone; : >train.log; cd ssl_jax; bash launch/train.sh ${*@Q} >>../train.log 2>&1 & \
tail -n +1 -f --pid=\$! ../train.log; wait \$!"
}

if [[ $dry_run == yes ]]; then
    create && install && train "$@" && delete
    exit
fi
now=$(state)
[[ $now != NONE ]] || create
while true; do
    now=$(state)
    case $now in
        ACTIVE)
            code=0 begun=$SECONDS
            { install && train "$@"; } || code=$?
            if ((code == 0)); then
                say "finished; deleting $name"
                delete
                exit
            fi
            say "exit code $code; looking at $name again in a minute"
            sleep 60 # SIGTERM comes some 30 s before the slice is gone
            # A connection that broke (255) may have ended the training of one worker, for which the others then wait.
            ((code != 255)) || code=$NOT_MET
            now=$(state)
            [[ $now == ACTIVE ]] || continue # taken away; that counts for no restart
            may_restart "$code" $((SECONDS - begun)) ||
                fail "the run has ended with an error, and $name is there still: see above"
            wait_to_restart "$code"
            ;;
        FAILED | SUSPENDED)
            say "$name is $now; asking again"
            delete
            sleep 60 # some requests fail at once
            create
            ;;
        NONE) fail "$name is not there any more: deleted, but not by this script" ;;
        *)
            say "$name is $now"
            sleep 60
            ;;
    esac
done
