# shellcheck shell=bash
# The scripts beside it source this file. It has messages, the Python environment in .venv, and the quickstart's images.
# These scripts set -euo pipefail and run in the directory of the clone.

# Exit codes of train.sh, in addition to 0 (the run is finished) and those of errors.
# shellcheck disable=SC2034  # read by the scripts
readonly STOPPED=75 NOT_MET=69 # stopped by SIGTERM before the last step; other processes of the run did not come

# For GLIBC_TUNABLES: memory from the heap alone, which is never given back, in large pages.
readonly KEEP_PAGES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000

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

# Makes memory cheaper for XLA's CPU backend, which asks the system for the same pages again in each step: some 20 % more
# images a second on two cores. tcmalloc keeps pages, if it is installed and nothing else is preloaded. Otherwise glibc
# (from 2.35 on) is told to keep them, and to take large ones.
use_cheap_memory() {
    local library
    library=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | awk '/libtcmalloc(_minimal)?\.so\.4 / {print $NF; exit}') || true
    if [[ -n ${LD_PRELOAD:-} ]]; then
        return
    elif [[ -f $library ]]; then
        export LD_PRELOAD=$library
    else
        export GLIBC_TUNABLES=${GLIBC_TUNABLES:-$KEEP_PAGES}
    fi
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

# Runs the command. With dry_run=yes, which --dry-run of the scripts sets, prints it instead.
run() {
    if [[ ${dry_run:-} == yes ]]; then
        printf '%s\n' "${*@Q}"
    else
        "$@"
    fi
}
