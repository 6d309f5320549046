#!/bin/bash
# Shows that the guest does what run.sh says, on back ends that are not ours: a raw file, qemu-nbd, and the vhost-user-blk of
# qemu-storage-daemon. Needs no privilege; takes about a minute. Exit 0 only if all holds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
# Generous: without KVM, on a machine that also builds.
limit_seconds=180
started=()

clean_up() {
    stop_all
    rm -rf "$work"
}
trap clean_up EXIT

stop_all() {
    local pid
    for pid in "${started[@]}"; do
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    started=()
}

fail() {
    echo "selftest: $*" >&2
    [[ ! -f $work/console ]] || cat "$work/console" >&2
    exit 1
}

guest() {
    timeout "$limit_seconds" "$here/run.sh" "$@" </dev/null >"$work/console"
}

expect() {
    grep -qx "tern: $1" "$work/console" || fail "no line \"tern: $1\""
}

refuse() {
    ! grep -qx "tern: $1" "$work/console" || fail "unexpected line \"tern: $1\""
}

# until_true SECONDS COMMAND…: looks again and again, for at most so long.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "waited in vain for: $*"
        sleep 0.1
    done
}

raw() {
    echo "-drive file=$1,if=virtio,format=raw"
}

# check BACK-END-NAME QEMU-ARGUMENT…: the files of one boot are whole in the next, and a second run goes on.
check_back_end() {
    local name=$1
    shift
    guest "tern.job=write tern.files=3 tern.kib=64 tern.seed=7" "$@"
    expect "made file system"
    expect "synced 3"
    guest "tern.job=write tern.files=1 tern.kib=64" "$@"
    refuse "made file system"
    expect "synced 4"
    cp "$work/console" "$work/written"
    guest "tern.job=check" "$@"
    expect "fsck clean"
    expect "file file-000004 ok"
    expect "checked 4 ok 0 bad"
    echo "$name: ok"
}

check_raw() {
    truncate -s 64M "$work/raw.img"
    # shellcheck disable=SC2046
    check_back_end "raw file" $(raw "$work/raw.img")
}

# What the manifest says of two files is changed under the guest: one checksum, one name.
check_damage() {
    local sum
    sum=$(awk '$2 == "wrote" && $3 == "file-000004" { print $5 }' "$work/written")
    overwrite "$sum  file-000004" "${sum%?}x"
    overwrite "  file-000002" "  file-999999"
    # shellcheck disable=SC2046
    guest "tern.job=check" $(raw "$work/raw.img")
    expect "file file-000004 bad"
    expect "file file-999999 missing"
    expect "checked 2 ok 2 bad"
    echo "damage is found: ok"
}

# overwrite OLD NEW: in the raw image, from the only place where OLD begins.
overwrite() {
    local at
    at=$(grep -obUaF "$1" "$work/raw.img" | cut -d: -f1)
    [[ $at =~ ^[0-9]+$ ]] || fail "\"$1\" is not at one place in the image: $at"
    printf '%s' "$2" | dd of="$work/raw.img" bs=1 seek="$at" conv=notrunc status=none
}

check_empty() {
    "$here/build.sh" disk "$work/empty.img" 16M
    # shellcheck disable=SC2046
    guest "tern.job=check" $(raw "$work/empty.img")
    expect "fsck clean"
    expect "error no-manifest"
    head -c 16M /dev/urandom >"$work/empty.img"
    # shellcheck disable=SC2046
    guest "tern.job=check" $(raw "$work/empty.img")
    expect "fsck dirty"
    expect "error no-mount"
    guest "tern.job=root"
    expect "error no-disk"
    echo "nothing to check: ok"
}

start_nbd() {
    qemu-nbd --persistent --shared=4 --format=raw --export-name=disk --socket="$2" "$1" &
    started+=($!)
    until_true 20 test -S "$2"
}

check_nbd() {
    truncate -s 64M "$work/nbd.img"
    start_nbd "$work/nbd.img" "$work/nbd.sock"
    check_back_end "NBD" -drive "file=nbd+unix:///disk?socket=$work/nbd.sock,if=virtio,format=raw"
}

# A vhost-user back end serves one connection at a time and then the next.
start_vhost_user() {
    qemu-storage-daemon --blockdev "driver=file,node-name=file,filename=$1" \
        --export "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=$2,writable=on" &
    started+=($!)
    until_true 20 test -S "$2"
}

check_vhost_user() {
    truncate -s 64M "$work/vhost.img"
    start_vhost_user "$work/vhost.img" "$work/vhost.sock"
    check_back_end "vhost-user-blk" -chardev "socket,id=disk,path=$work/vhost.sock" -device vhost-user-blk-pci,chardev=disk
}

check_root() {
    "$here/build.sh" root "$work/root.img" 64M
    start_vhost_user "$work/root.img" "$work/root.sock"
    guest "tern.job=root tern.after=write tern.files=2 tern.kib=64" \
        -chardev "socket,id=disk,path=$work/root.sock" -device vhost-user-blk-pci,chardev=disk
    expect "booted from disk"
    expect "synced 2"
    stop_all
    start_nbd "$work/root.img" "$work/root-nbd.sock"
    guest "tern.job=root tern.after=check" -drive "file=nbd+unix:///disk?socket=$work/root-nbd.sock,if=virtio,format=raw"
    expect "fsck clean"
    expect "booted from disk"
    expect "checked 2 ok 0 bad"
    echo "boot from disk: ok"
}

check_kill() {
    local pid synced
    truncate -s 64M "$work/kill.img"
    # shellcheck disable=SC2046
    "$here/run.sh" "tern.job=write tern.kib=64" $(raw "$work/kill.img") </dev/null >"$work/console" &
    pid=$!
    started+=("$pid")
    until_true "$limit_seconds" grep -q "^tern: synced 5" "$work/console"
    kill -9 "$pid"
    wait "$pid" 2>/dev/null || true
    synced=$(sed -n 's/^tern: synced //p' "$work/console" | tail -n 1)
    # shellcheck disable=SC2046
    guest "tern.job=check" $(raw "$work/kill.img")
    expect "fsck clean"
    expect "file $(printf 'file-%06d' "$synced") ok"
    ! grep -Eq '^tern: file .* (bad|missing)$' "$work/console" || fail "a file is not whole"
    echo "killed while it wrote: ok"
}

check_raw
check_damage
check_empty
check_nbd
check_vhost_user
check_root
check_kill
