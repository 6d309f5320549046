#!/bin/bash
# The main job, before your eyes: two sites in network namespaces, 85 Mbit/s and 27 ms apart. A VM boots from a disk that site osaka
# serves over vhost-user-blk, and writes files. Then osaka is killed, VM and all. Site oregon is promoted, the VM boots there, and every
# file that was durable before the last recovery point must have its checksum. Needs root; exit 0 only if all holds.
#
# $TERN_BIN_DIR has the release programs; `make demo` builds them and calls this.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${TERN_BIN_DIR:?"where blockd, tern and wanem are: run \`make demo\`"}
rate=85Mbit
round_trip=27ms
rpo_seconds=2
write_seconds=${DEMO_WRITE_SECONDS:-15}
limit_seconds=120

[[ $(id -u) = 0 ]] || {
    echo "demo: network namespaces need root: run it as root" >&2
    exit 1
}

work=$(mktemp -d)
osaka=tern-osaka-$$
oregon=tern-oregon-$$
declare -A pid=()

clean_up() {
    local name
    for name in vm osaka oregon wan; do stop "$name" KILL; done
    ip netns delete "$osaka" 2>/dev/null || true
    ip netns delete "$oregon" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

stop() { # NAME SIGNAL
    [[ -n ${pid[$1]:-} ]] || return 0
    kill "-$2" "${pid[$1]}" 2>/dev/null || true
    wait "${pid[$1]}" 2>/dev/null || true
    pid[$1]=
}

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
say() { printf '%6.1f s  %s\n' "$(since "$began")" "$*"; }
now() { date +%s.%N; }
since() { echo "$(now) - $1" | bc; }

fail() {
    echo "demo: FAILED: $*" >&2
    tail -n 5 "$work"/*.log "$work"/console.* >&2 2>/dev/null || true
    exit 1
}

until_true() { # SECONDS WHAT COMMAND…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what did not happen in time"
        sleep 0.05
    done
}

at() { # SITE VERB…
    local site=$1
    shift
    timeout "$limit_seconds" "$bin/tern" --admin "$work/$site.sock" "$@"
}

start_site() { # SITE NAMESPACE ADDRESS
    ip netns exec "$2" "$bin/blockd" --site "$1" --state-dir "$work/$1" --listen "$3" --admin "$work/$1.sock" 2>"$work/$1.log" &
    pid[$1]=$!
    until_true 20 "$1's start" at "$1" status
}

boot() { # SOCKET CONSOLE PARAMETERS
    "$here/../guest/run.sh" "$3" -chardev "socket,id=disk,path=$1" -device vhost-user-blk-pci,chardev=disk \
        </dev/null > >(while IFS= read -r line; do printf '%s %s\n' "$(now)" "$line"; done >"$2") 2>"$work/vm.log" &
    pid[vm]=$!
}

field() { at osaka status vm1 --json | jq -r ".volumes[0].$1"; }
connected() { [[ $(at osaka peer list --json | jq -r '.peers[0].connected') = true ]]; }
human() { numfmt --to=iec --suffix=B "$1"; }

show() {
    at osaka status vm1 --json | jq -r '.volumes[0] | [.state, .changed_bytes, .wire_bytes_sent, .backlog_bytes, (.rpo_seconds // 0)] | @tsv' |
        while IFS=$'\t' read -r state changed wire backlog rpo; do
            say "$(printf 'osaka ══%s══► oregon   %-12s written %-7s on the wire %-7s backlog %-7s RPO %.1f s' \
                "$rate" "$state" "$(human "$changed")" "$(human "$wire")" "$(human "$backlog")" "$rpo")"
        done
}

began=$(now)
guest=$("$here/../guest/build.sh")

bold "Two sites, $rate and $round_trip apart"
"$bin/wanem" run --a "$osaka" --b "$oregon" --rate "$rate" --rtt "$round_trip" --create-namespaces >"$work/wan.out" 2>"$work/wan.log" &
pid[wan]=$!
until_true 10 "the WAN" grep -q ready "$work/wan.out"
for namespace in "$osaka" "$oregon"; do ip -n "$namespace" link set lo up; done
start_site osaka "$osaka" 10.99.0.1:7447
start_site oregon "$oregon" 10.99.0.2:7447
at oregon peer join "$(at osaka peer invite --json | jq -r .token)" >/dev/null
until_true 20 "a connection of the sites" connected
say "paired: $(at osaka peer list --json | jq -r '.peers[0] | "\(.name) at \(.address), \(.rtt_ms | round) ms"')"

bold "A VM at osaka, replicated to oregon"
at osaka volume create vm1 --import "$guest/rootfs.img" >/dev/null
at osaka volume export vm1 --vhost-user "$work/osaka.disk" >/dev/null
at osaka replicate vm1 --to oregon --rpo "${rpo_seconds}s" >/dev/null
at oregon volume export vm1 --vhost-user "$work/oregon.disk" >/dev/null
boot "$work/osaka.disk" "$work/console.osaka" 'tern.job=root tern.after=write tern.kib=256 tern.pause_ms=100'
until_true 60 "the VM's boot" grep -q 'tern: booted from disk' "$work/console.osaka"
say "the VM has booted from osaka's disk"
until_true 60 "the first sync" at osaka wait vm1 --for in-sync --timeout 60s
say "first sync done; the VM writes files"
for ((second = 0; second < write_seconds; second += 2)); do
    show
    sleep 2
done
show

bold "osaka is lost: kill -9 of the VM and of blockd"
kill -9 "${pid[vm]}" "${pid[osaka]}"
killed=$(now)
stop vm KILL
stop osaka KILL
say "$(grep -c 'tern: wrote' "$work/console.osaka") files were written and durable at osaka"

bold "oregon takes over"
promoting=$(now)
at oregon promote vm1 --force
rto_service=$(since "$promoting")
boot "$work/oregon.disk" "$work/console.oregon" 'tern.job=root tern.after=check'
until_true 60 "the VM's boot at oregon" grep -q 'tern: booted from disk' "$work/console.oregon"
rto_boot=$(since "$promoting")
say "the VM has booted from oregon's disk"
until_true 90 "the check" grep -q 'tern: done' "$work/console.oregon"
wait "${pid[vm]}" || true
pid[vm]=

grep -q 'tern: fsck clean' "$work/console.oregon" || fail "the file system is not clean"
checked=$(sed -n 's/.*tern: checked \([0-9]*\) ok \([0-9]*\) bad.*/\1 \2/p' "$work/console.oregon")
read -r good bad <<<"${checked:-0 0}"
# Of the files that the VM knew to be durable, in their order: when was the first one written that is not there?
first_lost=$(grep 'tern: wrote' "$work/console.osaka" | sed -n "$((good + 1))p" | cut -d ' ' -f 1)
rpo=$([[ -z $first_lost ]] && echo 0 || echo "$killed - $first_lost" | bc)

bold "What it cost"
printf '  files with their checksum at oregon   %s, and %s bad\n' "$good" "$bad"
printf '  RPO, seen by the VM                   %.2f s (%s s were asked for)\n' "$rpo" "$rpo_seconds"
printf '  RTO until the disk is served          %.2f s\n' "$rto_service"
printf '  RTO until the VM has booted from it   %.2f s (without hardware virtualisation)\n' "$rto_boot"
[[ $bad = 0 && $good -gt 0 ]] || fail "$bad files are bad, $good good"
(($(echo "$rpo <= $rpo_seconds" | bc))) || fail "more was lost than $rpo_seconds s"
say "all holds"
