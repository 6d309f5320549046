#!/usr/bin/env bash
# Runs in place of inside.sh (`check.sh PACKAGE guest.sh`): the unit is restarted, RESTARTS times (10), then killed, while a guest of
# tests/guest works on its disk over vhost-user.
set -euo pipefail
trap 'echo "package: failed in line $LINENO"' ERR

# Bash does not end for a command after `!`.
never() { if grep -E "$1" "$2"; then false; fi; }
say() { echo "package: $*"; }
main_pid() { systemctl show --property=MainPID --value blockd.service; }
synced() { grep --count '^tern: synced ' /result/guest.log || true; }

# More files durable than before: what was asked of the disk at the daemon's end is done, and more.
goes_on() {
    local until=$(($(synced) + 2))
    until [ "$(synced)" -ge "$until" ]; do
        kill -0 "$guest"
        sleep 0.05
    done
}

mkdir -p /run/systemd/system/blockd.service.d
printf '[Service]\nStandardError=append:/result/blockd.log\n' >/run/systemd/system/blockd.service.d/test.conf
systemctl daemon-reload
systemctl start blockd.socket blockd.service
tern volume create vm1 --size 512M
tern volume export vm1 --vhost-user /run/tern/vm1.sock

disk=(-smp 2 -chardev "socket,id=disk,path=/run/tern/vm1.sock,reconnect=1" -device "vhost-user-blk-pci,chardev=disk,num-queues=2")
/tests/guest/run.sh "tern.job=write tern.kib=512 tern.readers=1 tern.rewriters=3 loglevel=6" "${disk[@]}" >/result/guest.log 2>&1 &
guest=$!
goes_on
longest_ms=0
for ((restart = 1; restart <= ${RESTARTS:-10}; restart++)); do
    before=$(main_pid) began_ms=$(date +%s%3N)
    systemctl restart blockd.service
    [ "$(main_pid)" != "$before" ]
    goes_on
    round_ms=$(($(date +%s%3N) - began_ms))
    longest_ms=$((round_ms > longest_ms ? round_ms : longest_ms))
done
# What ends in order leaves nothing in flight.
never 'taking over what another daemon left in flight' /result/blockd.log
systemctl kill --kill-whom=main --signal=KILL blockd.service
until [ "$(systemctl show --property=NRestarts --value blockd.service)" = 1 ]; do sleep 0.05; done
goes_on
say "restarted ${RESTARTS:-10} times and killed under a guest's load, longest round $longest_ms ms"

# The plug is pulled. Another VM finds what was reported as durable.
kill -KILL "$guest"
wait "$guest" || true
durable=$(synced)
never 'I/O error|EXT4-fs (error|warning)|timed out|blocked for more than|read-only|tern: error' /result/guest.log
/tests/guest/run.sh "tern.job=check" "${disk[@]}" >/result/check.log 2>&1
grep -qx 'tern: fsck clean' /result/check.log
whole=$(sed -n 's/^tern: checked \([0-9]*\) ok 0 bad$/\1/p' /result/check.log)
[ "$whole" -ge "$durable" ]
systemctl stop blockd.service
never 'sandbox refused|panicked' /result/blockd.log
say "no error in the guest, its file system is clean, $durable durable files are whole"
echo passed
