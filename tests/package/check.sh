#!/usr/bin/env bash
# Looks into a Debian package of ours, then installs it below a copy of this system and boots that: `check.sh PACKAGE.deb [CHECKS]`, as root.
#
# The copy is an overlay in memory with a systemd of its own, in namespaces of its own: nothing of this system changes. What systemd and
# the daemon do there is checked by inside.sh, or by another script of this directory: guest.sh.
set -euo pipefail

package=$(realpath "${1:?usage: check.sh PACKAGE.deb [CHECKS]}")
checks=${2:-inside.sh}
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# Installation, boot, a dozen restarts; those under a guest take longer.
limit_s=$((120 + 6 * ${RESTARTS:-10}))

contents=$(dpkg-deb --contents "$package")
for file in ./usr/sbin/blockd ./usr/bin/tern ./usr/share/man/man8/blockd.8.gz ./usr/share/man/man1/tern-promote.1.gz \
    ./usr/share/bash-completion/completions/tern ./usr/share/zsh/vendor-completions/_tern ./usr/share/fish/vendor_completions.d/tern.fish \
    ./usr/lib/systemd/system/blockd.service ./usr/lib/systemd/system/blockd.socket ./usr/lib/sysusers.d/tern.conf ./etc/tern/blockd.toml; do
    grep -q " $file\$" <<<"$contents" || { echo "package: $file is missing" >&2; exit 1; }
done
dpkg-deb --ctrl-tarfile "$package" | tar --extract --to-stdout ./conffiles | grep -qx /etc/tern/blockd.toml
echo "package: contents are complete"

if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error --suppress-tags no-changelog,wrong-name-for-upstream-changelog "$package"
    echo "package: lintian has no errors"
else
    echo "package: lintian is not installed, left out"
fi

if [ "$(id -u)" != 0 ] || ! [ -x /lib/systemd/systemd ] || ! unshare --mount --pid --fork --cgroup true; then
    echo "package: not root, or no systemd or namespaces here: installation left out"
    exit 0
fi
result=$(mktemp -d)
trap 'rm -rf "$result"' EXIT
if ! timeout --kill-after=5 "$limit_s" unshare --mount --pid --fork --kill-child=SIGKILL --cgroup --ipc --uts --net \
    "$here/boot.sh" "$package" "$here/$checks" "$result" >"$result/boot.log" 2>&1 || ! grep -qx passed "$result/checks.log"; then
    tail -n 40 "$result"/*.log >&2
    echo "package: the installed system is not as it should be" >&2
    exit 1
fi
grep '^package:' "$result/checks.log"
