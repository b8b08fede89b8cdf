#!/usr/bin/env bash
# bash launch/test.sh [pytest arguments]: makes .venv if needed and runs the tests in up to four processes. Without
# arguments it runs the default tier (CONTRIBUTING.md has the others).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

make_environment requirements-test.txt
get_fashion_mnist || say "the tests on real images will fail without it"
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
