# shellcheck shell=bash
# The scripts beside it source this file. It has messages, the Python environment in .venv, and the quickstart's images.
# These scripts set -euo pipefail and run in the directory of the clone.

# Exit codes of train.sh, in addition to 0 (the run is finished) and those of errors.
# shellcheck disable=SC2034  # read by the scripts
readonly STOPPED=75 NOT_MET=69 # stopped by SIGTERM before the last step; other processes of the run did not come
# shellcheck disable=SC2034
readonly STUCK=70 ABORTED=134 # the run's own watchdog ended it; JAX did, after it lost the other processes

# Training that ends with one of these codes is started again, after 10, 20, 40, ... s, at most 600 s. After so many
# times in a row it is given up. A training that lasted for half an hour begins a new row.
readonly RESTARTS=${RESTARTS:-10} FIRST_WAIT=${FIRST_WAIT:-10} LONGEST_WAIT=600 STEADY=1800
restarts=0

say() {
    printf '[%02d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Whether Debian packages can be installed here without asking the user.
can_apt() {
    [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null
}

apt_install() {
    say "installing $* with apt-get"
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}

# Prints the first Python of 3.11 or newer.
find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer (python3 is $(python3 --version 2>&1 || true)); on Debian 12, Ubuntu 24.04 or newer:" \
        "apt-get install python3 python3-venv"
}

# make_environment REQUIREMENTS: makes .venv with what the file lists, and the clone itself. Installs again only if a
# requirements file or pyproject.toml, which names the commands, has changed.
make_environment() {
    local python stamp=".venv/installed-$1"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            can_apt || fail "$python has no venv module; on Debian or Ubuntu: apt-get install python3-venv"
            apt_install "$(basename "$(readlink -f "$(command -v "$python")")")-venv"
        fi
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    if ! cmp --silent "$stamp" <(cat requirements.txt "$1" pyproject.toml); then
        say "installing $1 into .venv (once; JAX and what it needs take 1.3 GB)"
        .venv/bin/python -m pip install --disable-pip-version-check --requirement "$1" --editable .
        cat requirements.txt "$1" pyproject.toml >"$stamp"
    fi
}

# Installs JAX's plugin into .venv for a GPU or TPU of this machine, unless JAX_PLATFORMS is cpu.
get_plugin() {
    local plugin
    plugin=$(.venv/bin/python -c 'from ssl_jax import dist; print(dist.missing_plugin())')
    [[ -z $plugin ]] || { say "installing $plugin" && .venv/bin/python -m pip install --disable-pip-version-check "$plugin"; }
}

# If TFDS has not prepared Fashion-MNIST and Debian's package is not installed, installs the package if it can. If it
# cannot, the program that reads the images says what to do.
get_fashion_mnist() {
    local prepared="${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}/fashion_mnist"
    if [[ ! -d $prepared ]] && ! dpkg --status dataset-fashion-mnist >/dev/null 2>&1 && can_apt; then
        apt_install dataset-fashion-mnist
    fi
    .venv/bin/python - <<'EOF'
import sys
from ssl_jax.data import opening
try:
    print(f"Fashion-MNIST: {len(opening.load('fashion_mnist', channels=1)):,} images")
except (OSError, ValueError, ImportError) as error:
    sys.exit(f"error: {error}")
EOF
}

# Prints the value of --workdir among the arguments of ssl_jax train.
workdir_of() {
    while (($#)); do
        case $1 in
            --workdir=?*) echo "${1#*=}" && return ;;
            --workdir) [[ -z ${2:-} ]] || { echo "$2" && return; } ;;
        esac
        shift
    done
    fail "--workdir is missing; it says where the run's files go"
}

# back_off N: prints the seconds to wait before the restart after N restarts in a row.
back_off() {
    local wait=$((FIRST_WAIT << ($1 < 10 ? $1 : 10)))
    echo $((wait < LONGEST_WAIT ? wait : LONGEST_WAIT))
}

# may_restart CODE SECONDS: whether a training that lasted for so long, and ended with CODE, is started again.
may_restart() {
    (($1 == STOPPED || $1 == NOT_MET || $1 == STUCK || $1 == ABORTED)) || return 1
    (($2 < STEADY)) || restarts=0
    if ((restarts >= RESTARTS)); then
        say "exit code $1, after $RESTARTS restarts in a row: see above for the cause; the same command goes on"
        return 1
    fi
}

# Waits before a restart that may_restart allows. A signal that the script traps ends the wait.
wait_to_restart() {
    local wait
    wait=$(back_off "$restarts")
    restarts=$((restarts + 1))
    say "exit code $1; restart $restarts of $RESTARTS in $wait s"
    sleep "$wait" &
    wait $! || true
}

# Sets XLA's flags for the GPUs of this machine, and the share of their memory that JAX takes, which `ssl_jax plan`
# counts on. A flag that XLA_FLAGS has already is left as it is there. XLA aborts if it does not know a flag, so JAX is
# asked first; jaxlib's CPU client reads the same flags as the GPUs' plugin. The scheduler lets collectives run beside
# the arithmetic (JAX's GPU performance tips; off by default in jaxlib 0.10). Its other tip, Triton for any product, is
# the default. TPUs need none: libtpu's own scheduler does so.
use_gpu_flags() { # use_gpu_flags PYTHON
    local flag=--xla_gpu_enable_latency_hiding_scheduler=true
    compgen -G "${DEVICE_FILES:-/dev}/nvidia[0-9]*" >/dev/null && [[ ${JAX_PLATFORMS:-} != cpu ]] || return 0
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
    if [[ ${XLA_FLAGS:-} != *"${flag%=*}"* ]] &&
        XLA_FLAGS=$flag JAX_PLATFORMS=cpu "$1" -c 'import jax; jax.devices()' 2>/dev/null; then
        export XLA_FLAGS="$flag${XLA_FLAGS:+ $XLA_FLAGS}"
    fi
    say "XLA_FLAGS=${XLA_FLAGS:-} XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
}

started=() # the numbers of processes that run in the background

stop_all() {
    ((${#started[@]} == 0)) || kill -TERM "${started[@]}" 2>/dev/null || true
}

# Waits for all of `started`, and stops the others if one fails, because they would wait for it. Returns the exit code
# of the first that failed, or STOPPED if one was stopped.
wait_for_started() {
    local result=0 code index
    while ((${#started[@]} > 0)); do
        for index in "${!started[@]}"; do
            if kill -0 "${started[index]}" 2>/dev/null; then
                continue
            fi
            code=0
            wait "${started[index]}" || code=$?
            unset 'started[index]'
            ((code == 0 || result != 0 && result != STOPPED)) || result=$code
            ((code == 0 || code == STOPPED)) || stop_all
        done
        sleep 0.2
    done
    return "$result"
}

# Runs the command. With dry_run=yes, which --dry-run of the scripts sets, prints it instead.
run() {
    if [[ ${dry_run:-} == yes ]]; then
        printf '%s\n' "${*@Q}"
    else
        "$@"
    fi
}
