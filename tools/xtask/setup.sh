#!/usr/bin/env bash
# Installs the Debian packages of packages.txt that are missing: as root by itself, otherwise it prints the line to run.
#
#   setup.sh build   what compiling needs
#   setup.sh tests   the same, and what tests drive; an ordinary user goes on without the latter
#   setup.sh demo    the same, and all of it is needed
set -euo pipefail

purpose=${1:?"usage: setup.sh build|tests|demo"}
case $purpose in build | tests | demo) ;; *) echo "setup: $purpose is none of build, tests, demo" >&2; exit 2 ;; esac
list=$(dirname "${BASH_SOURCE[0]}")/packages.txt
# From the first byte of an update to the last package, on a slow mirror.
install_limit_s=1800
apt=(apt-get -y -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
export DEBIAN_FRONTEND=noninteractive

packages_for() { awk -v kind="$1" '$1 == kind { print $2 }' "$list"; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing_of() {
    local package
    for package in $(packages_for "$1"); do installed "$package" || echo "$package"; done
}

# name=version as the archive has it, or "name-" (remove) for an installed part of QEMU that the archive no longer has.
archive_version() {
    local version
    version=$(apt-cache madison "$1" 2>/dev/null | awk 'NR == 1 { print $3 }')
    if [ -n "$version" ]; then echo "$1=$version"; else echo "$1-"; fi
}

# All of QEMU comes from one source package, and its parts refuse each other's versions. Where some were installed from an
# archive that is gone or has a lower priority (backports), a new part can only come together with all others in its version.
qemu_in_one_version() {
    local package
    {
        dpkg-query -W -f '${source:Package} ${db:Status-Status} ${Package}\n' | awk '$1 == "qemu" && $2 == "installed" { print $3 }'
        printf '%s\n' "$@" | grep '^qemu-' || true
    } | sort -u | while read -r package; do archive_version "$package"; done
}

# Sets plan to arguments of `apt-get install` with which a simulation succeeds, and takes nothing away that the list names.
find_plan() {
    local -a qemu
    plan=("$@")
    simulate && ! takes_away && return 0
    mapfile -t qemu < <(qemu_in_one_version "$@")
    plan=(--allow-downgrades "$@" "${qemu[@]}")
    if simulate; then
        echo "setup: QEMU's packages are of several versions; bringing them to one: ${qemu[*]}"
        return 0
    fi
    echo "setup: apt-get cannot install: $*" >&2
    "${apt[@]}" --simulate --no-install-recommends install "$@" >&2 || true
    return 1
}

# Whether the plan removes a package of the list: another version of it may be in the way of a missing one.
takes_away() {
    "${apt[@]}" --simulate --no-install-recommends install "${plan[@]}" 2>/dev/null \
        | awk 'NR == FNR { listed[$2]; next } $1 == "Remv" && $2 in listed { found = 1 } END { exit !found }' "$list" -
}

simulate() { "${apt[@]}" --simulate --no-install-recommends install "${plan[@]}" >/dev/null 2>&1; }

install_packages() {
    echo "setup: installing $*"
    timeout "$install_limit_s" "${apt[@]}" update || echo "setup: apt-get update failed; going on with the lists that are there" >&2
    find_plan "$@" || return 1
    timeout "$install_limit_s" "${apt[@]}" --no-install-recommends install "${plan[@]}"
}

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is not on the path: install Rust 1.95 or later with rustup (https://rustup.rs)" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "setup: this is no Debian; going on with what is installed. Needed: $(awk '!/^#/ { print $2 }' "$list" | xargs)" >&2
    exit 0
fi

mapfile -t missing_build < <(missing_of build)
missing_tests=()
[ "$purpose" = build ] || mapfile -t missing_tests < <(missing_of tests)
missing=("${missing_build[@]}" "${missing_tests[@]}")
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ]; then
    install_packages "${missing[@]}"
    exit
fi
echo "setup: Debian packages are missing. As root, run:" >&2
echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
if [ "$purpose" = demo ] || [ ${#missing_build[@]} -gt 0 ]; then
    exit 1
fi
echo "setup: going on without them; the summary says which tests were left out" >&2
