#!/usr/bin/env bash
# bash launch/train.sh ARGUMENTS: ssl_jax train ARGUMENTS, as one process of a run, for what starts it again.
#
# Exits with 0 only where the run is finished; with 75 where SIGTERM, which it passes on, has stopped it before: the same
# command goes on; with 69 where other processes of the run did not come. Python is $PYTHON; else that of .venv, made by
# launch/test.sh or quickstart.sh; else python3.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

workdir=$(workdir_of "$@")
python=.venv/bin/python
[[ -x $python ]] || python=python3

"${PYTHON:-$python}" -m ssl_jax train "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM
code=0
wait "$child" || code=$?
while ((code > 128)) && kill -0 "$child" 2>/dev/null; do # it was the signal that ended `wait`
    code=0
    wait "$child" || code=$?
done
((code == 0)) || exit "$code"
[[ -f $workdir/backbone.safetensors ]] || exit "$STOPPED"
