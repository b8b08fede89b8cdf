#!/usr/bin/env bash
# bash launch/test_versions.sh [--help | --prepare | pytest arguments]: runs tests on the newest Python of Debian, with
# the newest JAX and other packages that requirements-test.txt allows. Without arguments, a quick selection of each part
# of ssl_jax.
#
#     bash launch/test_versions.sh
#     bash launch/test_versions.sh tests/methods -k simclr
#     bash launch/test_versions.sh --prepare               # only what the first run would make
#
# Makes a root directory of Debian by debootstrap, once, and installs the packages there, once a week or if the
# requirements change (3 GB in all). The tests run in it, on this clone. Needs root on Debian or Ubuntu.
#   $RELEASE      Debian's release: trixie, which has Python 3.13
#   $ROOT_CACHE   where the root directory stays: ~/.cache/ssl_jax/roots
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

if [[ ${1:-} == --help ]]; then
    sed -n '2,/^set/s/^# \?//p' launch/test_versions.sh
    exit
fi
# Of each part, what may differ between versions: 180 s of processor time.
readonly QUICK=(
    tests/dist/test_sharded_state.py tests/dist/test_sums.py tests/training/test_checkpoint.py tests/training/test_step.py
    tests/losses/test_contrastive.py tests/models/test_attention.py tests/models/test_norm.py tests/models/test_vit.py
    tests/methods/test_simclr.py tests/methods/test_mae.py tests/methods/test_traffic.py tests/evaluation/test_sweep.py
    tests/data/test_records.py tests/data/test_photometric.py tests/workdir tests/test_compile_cache.py
    tests/test_numerics.py tests/test_onnx_graph.py tests/test_optim.py
)
release=${RELEASE:-trixie}
root=${ROOT_CACHE:-$HOME/.cache/ssl_jax/roots}/$release
(($# > 0)) || set -- "${QUICK[@]}"

can_apt || fail "another Python is installed by debootstrap, as root on Debian or Ubuntu; elsewhere, run launch/test.sh" \
    "in a machine or container that has it"
unshare --mount true 2>/dev/null || fail "this container may not mount; run launch/test.sh in one that has another Python"

# Mounts are seen by this command only, and end with it, so that nothing of the machine is below the directory later.
in_root() { # in_root COMMAND
    # shellcheck disable=SC2016  # for the inner shell
    unshare --mount bash -euo pipefail -c '
        root=$1 clone=$2
        shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount --rbind /sys "$root/sys"
        mount --bind "$clone" "$root/ssl_jax"
        exec env --unset=LD_PRELOAD --unset=TMPDIR --unset=PYTHONPATH --unset=PYTHONHOME PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            chroot "$root" /usr/bin/env --chdir=/ssl_jax "$@"' - "$root" "$PWD" "$@"
}

if [[ ! -d $root ]]; then
    command -v debootstrap >/dev/null || apt_install debootstrap debian-archive-keyring
    # shellcheck disable=SC2016  # for apt-get
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' | sed -n 1p)
    say "making Debian $release in $root"
    rm --recursive --force --one-file-system "$root.partial"
    mkdir --parents "$root.partial"
    unshare --mount debootstrap --variant=minbase --include=ca-certificates,dataset-fashion-mnist,git,python3,python3-venv \
        --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$release" "$root.partial" "${mirror:-http://deb.debian.org/debian}" >"$root.log" ||
        fail "debootstrap failed; the end of $root.log: $(tail -n 3 "$root.log")"
    mkdir "$root.partial/ssl_jax"
    mv "$root.partial" "$root"
fi
# How this machine reaches the packages: names, certificates, pip's settings.
for file in /etc/{hosts,resolv.conf,pip.conf} /etc/xdg/pip/* "$HOME"/.{config/pip,pip}/pip.conf \
    /etc/ssl/certs/ca-certificates.crt "${PIP_CERT:-}" "${SSL_CERT_FILE:-}"; do
    [[ ! -f $file ]] || install -D --mode=644 "$file" "$root$file"
done

[[ -x $root/venv/bin/pip ]] || in_root python3 -m venv --clear /venv
stamp=$(date +%G-%V | cat - requirements.txt requirements-test.txt)
if [[ $stamp != "$(cat "$root/venv/installed" 2>/dev/null)" ]]; then
    say "installing the newest packages of requirements-test.txt"
    in_root pip install --disable-pip-version-check --quiet --quiet --upgrade --upgrade-strategy eager \
        --requirement requirements-test.txt
    echo "$stamp" >"$root/venv/installed"
fi
[[ ${1:-} != --prepare ]] || exit 0
say "testing on $(in_root python --version), $(in_root pip freeze | grep -E '^(jax|flax|optax|orbax-checkpoint|numpy)=' | xargs)"
in_root python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
