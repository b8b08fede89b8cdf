#!/usr/bin/env bash
# bash launch/quickstart.sh [WORKDIR]: pre-trains on Fashion-MNIST, evaluates, and writes WORKDIR/report.html
# (WORKDIR: runs/quickstart). Takes some seven minutes on two CPU cores. Started again after a kill, it continues.
set -euo pipefail

workdir=$(realpath --canonicalize-missing "${1:-"$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart"}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

make_environment requirements.txt
get_plugin
say "getting the images"
get_fashion_mnist

say "pre-training into $workdir"
.venv/bin/ssl_jax train --config simclr:tiny --config.augment.view.size=24,24 --config.steps=4000 \
    --workdir "$workdir"
weights=$workdir/backbone.safetensors
[[ -f $weights ]] || fail "the training was stopped before its last step; the same command goes on from there"

# The checksum of the weights that evaluation.json belongs to.
evaluated=$workdir/evaluated.sha256
if [[ -f $workdir/evaluation.json ]] && sha256sum --check --status "$evaluated" 2>/dev/null; then
    say "evaluated already: $workdir/evaluation.json"
else
    say "evaluating, beside random networks and raw pixels"
    .venv/bin/ssl_jax evaluate --workdir "$workdir"
    sha256sum "$weights" >"$evaluated"
fi

say "writing the report"
.venv/bin/ssl_jax report "$workdir"
say "done; open $workdir/report.html"
