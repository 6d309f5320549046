#!/bin/sh
# shellcheck disable=SC3040  # busybox has pipefail
# What the guest can do, for the init of the initramfs and for that of the disk. What it says to a machine are lines that
# begin with "tern: "; run.sh lists them.
set -o pipefail

disk=/dev/vda
manifest=MANIFEST

say() {
    echo "tern: $*"
}

# parameter NAME DEFAULT: the value of tern.NAME on the kernel's command line.
parameter() {
    value=$2
    # Splitting the command line into words is what is wanted.
    # shellcheck disable=SC2013
    for word in $(cat /proc/cmdline); do
        case $word in
        "tern.$1="*) value=${word#*=} ;;
        esac
    done
    echo "$value"
}

finish() {
    say "done"
    poweroff -f
}

# stop REASON: the job cannot go on.
stop() {
    say "error $*"
    poweroff -f
}

load_modules() {
    while read -r module; do
        insmod "/modules/$module.ko"
    done <"$1"
}

interactive() {
    stty onlcr
    setsid cttyhack sh
}

# The QEMU guest agent at the second serial port, if the initrd has it.
guest_agent() {
    [ "$(parameter agent none)" = serial ] || return 0
    qemu-ga --daemonize --method=isa-serial --path=/dev/ttyS1 --statedir=/run --pidfile=/run/qemu-ga.pid || stop "no-agent"
}

wait_for_disk() {
    tries=100
    until [ -b "$disk" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || stop "no-disk"
        usleep 100000
    done
}

# The kernel's own NBD client takes the host's export for the guest's disk. The address is that of QEMU's user network.
attach_nbd() {
    ifconfig eth0 10.0.2.15 up
    disk=/dev/nbd0
    nbd-client 10.0.2.2 "$(parameter port 10809)" "$disk" -name vm1 -connections 2 >/tmp/nbd 2>&1 || {
        sed 's/^/nbd-client: /' /tmp/nbd
        stop "no-nbd"
    }
    wait_for_disk
    say "nbd attached $(blockdev --getsize64 "$disk")"
}

detach_nbd() {
    nbd-client -d "$disk" >/dev/null || stop "no-nbd"
    say "nbd detached"
}

# An ext4 file system says so in two bytes of its superblock.
has_file_system() {
    [ "$(dd if="$disk" bs=2 skip=540 count=1 2>/dev/null | xxd -p)" = 53ef ]
}

make_file_system() {
    has_file_system && return
    # Not the applet of this name, which the shell would prefer.
    /sbin/mke2fs -q -F -t ext4 "$disk" || stop "no-mkfs"
    say "made file system"
}

# Replays the journal, as any boot after a crash does, then has every structure checked.
check_file_system() {
    if [ "$(blockdev --getro "$disk")" = 0 ]; then
        mount -t ext4 "$disk" /mnt && umount /mnt
    fi
    if e2fsck -f -n "$disk" >/tmp/fsck 2>&1; then
        say "fsck clean"
    else
        sed 's/^/fsck: /' /tmp/fsck
        say "fsck dirty"
    fi
}

# Keeps readers busy with the whole disk, past the page cache. The kernel makes many requests of one read.
read_disk() {
    readers=$(parameter readers 0)
    while [ "$readers" -gt 0 ]; do
        readers=$((readers - 1))
        while :; do
            dd if="$disk" of=/dev/null bs=4M iflag=direct 2>/dev/null || stop "no-read"
        done &
    done
}

# Keeps writing the same blocks anew past the page cache, durable each time, and reads them back: what is carried out twice, late, or not
# at all shows.
rewrite_files() {
    rewriters=$(parameter rewriters 0)
    while [ "$rewriters" -gt 0 ]; do
        rewrite "$1/rewritten-$rewriters" "/tmp/rewritten-$rewriters" &
        rewriters=$((rewriters - 1))
    done
}

rewrite() {
    generation=0
    while :; do
        generation=$((generation + 1))
        yes "$(printf %07d "$generation")" | head -c 4194304 >"$2"
        dd if="$2" of="$1" bs=4M oflag=direct conv=notrunc,fsync 2>/dev/null || stop "no-write ${1##*/}"
        dd if="$1" of="$2.read" bs=4M iflag=direct 2>/dev/null || stop "no-read"
        cmp -s "$2" "$2.read" || stop "read-back ${1##*/}"
        say "rewrote ${1##*/} $generation"
    done
}

# Writes files of data that looks random until there are enough, and a checksum of each. A file is durable before the
# manifest names it, so that a manifest never promises too much; "synced N" says that both are.
write_files() {
    files=$(parameter files 0)
    kib=$(parameter kib 256)
    seed=$(parameter seed 0)
    pause_ms=$(parameter pause_ms 0)
    read_disk
    rewrite_files "$1"
    cd "$1" || stop "no-directory"
    touch "$manifest"
    number=$(wc -l <"$manifest")
    last=$((number + files))
    while [ "$files" = 0 ] || [ "$number" -lt "$last" ]; do
        number=$((number + 1))
        write_file "$(printf 'file-%06d' "$number")"
        say "synced $number"
        [ "$pause_ms" = 0 ] || usleep $((pause_ms * 1000))
    done
    cd /
}

write_file() {
    # aespipe wants at least 20 characters.
    echo "a replicated file; seed $seed; $1" >/tmp/key
    sum=$(head -c $((kib * 1024)) /dev/zero | aespipe -e AES128 -P /tmp/key | tee "$1" | sha256sum) || stop "no-write $1"
    sum=${sum%% *}
    make_durable "$1"
    echo "$sum  $1" >>"$manifest" || stop "no-write $manifest"
    make_durable "$manifest"
    say "wrote $1 $((kib * 1024)) $sum"
}

# fsync, which unlike sync tells when the disk failed.
make_durable() {
    dd if=/dev/null of="$1" conv=notrunc,fsync 2>/dev/null || stop "no-write $1"
}

# Compares every file that the manifest names. A last line without its end is a promise that was never made.
check_files() {
    ok=0
    bad=0
    cd "$1" || stop "no-directory"
    [ -f "$manifest" ] || stop "no-manifest"
    while read -r sum name; do
        verdict=ok
        if [ ! -f "$name" ]; then
            verdict=missing
        elif [ "$(sha256sum <"$name")" != "$sum  -" ]; then
            verdict=bad
        fi
        say "file $name $verdict"
        if [ "$verdict" = ok ]; then ok=$((ok + 1)); else bad=$((bad + 1)); fi
    done <"$manifest"
    for name in rewritten-*; do
        [ ! -f "$name" ] || say "holds $name $(uniq "$name" | sort -u | xargs)"
    done
    say "checked $ok ok $bad bad"
    cd /
}

# Lines end as a machine expects, and do not begin behind what the firmware printed.
stty -onlcr 2>/dev/null
echo
