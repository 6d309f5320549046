#!/usr/bin/env bash
# Runs as a service of the copy that boot.sh made: what the package installed does there, and what systemd does to it.
set -euo pipefail
trap 'echo "package: failed in line $LINENO"' ERR

say() { echo "package: $*"; }
main_pid() { systemctl show --property=MainPID --value blockd.service; }
status_of() { awk -v "field=$1:" '$1 == field { print $2 }' "/proc/$(main_pid)/status"; }

# The watchdog within the patience of a test; lines where they can be read: there is no journal here.
mkdir -p /run/systemd/system/blockd.service.d
cat >/run/systemd/system/blockd.service.d/test.conf <<'UNIT'
[Service]
WatchdogSec=2s
TimeoutAbortSec=1s
StandardError=append:/result/blockd.log
UNIT
systemctl daemon-reload
systemd-analyze verify blockd.service blockd.socket
systemctl start blockd.socket blockd.service
[ "$(systemctl is-active blockd.socket blockd.service | sort -u)" = active ]
[ "$(systemctl is-enabled blockd.socket blockd.service | sort -u)" = enabled ]
/usr/sbin/blockd --version
tern --help >/dev/null
say "started, ready, enabled"

[ "$(status_of Uid)" = "$(id -u tern)" ]
[ "$(status_of CapPrm) $(status_of CapBnd)" = "0000000000000000 0000000000000000" ]
[ "$(status_of NoNewPrivs) $(status_of Seccomp)" = "1 2" ]
[ "$(stat --format %U:%G:%a /run/tern/blockd.sock)" = root:root:660 ]
[ "$(stat --format %U:%a /var/lib/tern)" = tern:700 ]
say "user tern, no capabilities, system calls filtered, admin socket for root only"

tern volume create vm1 --size 64M
tern volume export vm1 --nbd unix:/run/tern/vm1.sock
if tern volume create vm2 --size 64M --backing /opt/vm2.raw; then false; else [ $? = 1 ]; fi
[ "$(stat --format %G:%a /run/tern/vm1.sock)" = tern:660 ]
say "a volume is served, a path outside of the list refused"

# A client that waits for its server, as QEMU does for its guests: no error may reach it.
qemu-img bench -w -c 200000 -d 8 -s 4096 --image-opts \
    driver=nbd,server.type=unix,server.path=/run/tern/vm1.sock,export=vm1,reconnect-delay=30 >/result/load.log 2>&1 &
load=$!
attached() { until tern --json status vm1 | grep -q '"attached":\["nbd"\]'; do sleep 0.05; done; }
for _ in 1 2 3; do
    attached
    systemctl restart blockd.service
    # The socket is systemd's: a command finds somebody at any time.
    tern status >/dev/null
done
attached
systemctl kill --kill-whom=main --signal=KILL blockd.service
until [ "$(systemctl show --property=NRestarts --value blockd.service)" = 1 ]; do sleep 0.05; done
attached
kill -0 "$load"
wait "$load"
say "restarted three times and killed under load: the client saw a pause"

# It pings while it lives, and is replaced when it does not.
alive=$(main_pid)
sleep 5
[ "$(main_pid)" = "$alive" ]
kill -STOP "$alive"
until [ "$(systemctl show --property=NRestarts --value blockd.service)" = 2 ]; do sleep 0.05; done
tern status vm1 >/dev/null
say "hung, found out by the watchdog, replaced"

# dpkg does the same with a newer one.
echo '# by the operator' >>/etc/tern/blockd.toml
before=$(main_pid)
dpkg --install --force-depends /tern.deb >/dev/null
[ "$(main_pid)" != "$before" ]
tern status vm1 >/dev/null
grep -q '^# by the operator' /etc/tern/blockd.toml
say "upgraded: started anew, its configuration kept"

systemctl stop blockd.service
[ "$(systemctl show --property=Result --value blockd.service)" = success ]
if grep -E 'sandbox refused|panicked' /result/blockd.log; then false; fi
score=$(systemd-analyze security --no-pager blockd.service | tail -n 1)
say "${score#*→ }"
dpkg --purge tern
[ ! -e /usr/sbin/blockd ]
[ -d /var/lib/tern/catalogue ]
say "purged, its volumes kept"
echo passed
