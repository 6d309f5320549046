#!/usr/bin/env bash
# Within fresh namespaces: makes the copy, installs PACKAGE there, becomes its systemd: `boot.sh PACKAGE CHECKS RESULT`. Called by check.sh.
set -euo pipefail

package=$1 checks=$2 result=$3
mount --make-rprivate /
scratch=$(mktemp -d)
mount -t tmpfs -o size=2g tmpfs "$scratch"
mkdir "$scratch"/{upper,work,root}
root=$scratch/root
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$root"
mount -t proc proc "$root/proc"
# The kernel's settings are not the copy's to change.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
mkdir "$root/result"
mount --bind "$result" "$root/result"
# The guest's scripts and parts, for those checks that have one.
mkdir -p "$root"/{tests,guest-cache}
mount --bind "$(dirname "$checks")/.." "$root/tests"
mkdir -p "${TERN_CACHE:=$HOME/.cache/tern}"
mount --bind "$TERN_CACHE" "$root/guest-cache"
ip link set lo up

# Only what the package brings: no hardware, no kernel settings, nobody else's services.
rm -rf "$root"/etc/systemd/system/*
rm -rf "$root"/{usr/,}lib/systemd/system/{sysinit,local-fs,sockets,basic,multi-user}.target.wants
# Images of containers have one that forbids to start anything.
rm -f "$root/usr/sbin/policy-rc.d"
cp "$package" "$root/tern.deb"
chroot "$root" dpkg --install --force-depends /tern.deb
cp "$checks" "$root/checks"
cat >"$root/etc/systemd/system/checks.service" <<UNIT
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=TERN_CACHE=/guest-cache RESTARTS=${RESTARTS:-}
ExecStart=/checks
StandardOutput=append:/result/checks.log
StandardError=append:/result/checks.log
UNIT
exec env --ignore-environment container=tern PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" /lib/systemd/systemd --system --unit=checks.service --log-target=console --show-status=0
