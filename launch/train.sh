#!/usr/bin/env bash
# bash launch/train.sh ARGUMENTS: ssl_jax train ARGUMENTS, as one process of a run, for programs that start it again.
#
# Exits with 0 only if the run is finished. Exits with 75 if SIGTERM, which it passes on, stopped the run before its
# end: the same command continues it. Exits with 69 if other processes of the run did not come. Python is $PYTHON; else
# that of .venv, which launch/test.sh or quickstart.sh makes; else python3.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

use_cheap_memory
workdir=$(workdir_of "$@")
python=.venv/bin/python
[[ -x $python ]] || python=python3

"${PYTHON:-$python}" -m ssl_jax train "$@" &
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
