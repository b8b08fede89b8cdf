#!/usr/bin/env bash
# bash launch/train.sh ARGUMENTS: ssl_jax train ARGUMENTS, as one process of a run, for programs that start it again.
#
# Exits with 0 only if the run is finished. Exits with 75 if SIGTERM, which it passes on, stopped the run before its
# end: the same command continues it. Exits with 69 if other processes of the run did not come, with 70 if a step was
# stuck. Python is $PYTHON; else that of .venv, which launch/test.sh or quickstart.sh makes; else python3. On GPUs, it
# prints the XLA flags that it sets (use_gpu_flags). A cluster that counts restarts, but does not wait longer before each,
# gives their number in $RESTART_ATTEMPT.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

workdir=$(workdir_of "$@")
python=.venv/bin/python
[[ -x $python ]] || python=python3
python=${PYTHON:-$python}
use_gpu_flags "$python"

stopped() { # before the training has begun
    exit "$STOPPED"
}
trap stopped TERM
if ((${RESTART_ATTEMPT:-0} > 0)); then
    sleep "$(back_off $((RESTART_ATTEMPT - 1)))" &
    wait $!
fi

"$python" -m ssl_jax train "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM
code=0
wait "$child" || code=$?
while ((code > 128)) && kill -0 "$child" 2>/dev/null; do # the signal ended `wait`, not the child
    code=0
    wait "$child" || code=$?
done
((code == 0)) || exit "$code"
[[ -f $workdir/backbone.safetensors ]] || exit "$STOPPED"
