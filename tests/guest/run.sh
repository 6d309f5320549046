#!/bin/bash
# Boots the guest that build.sh makes, under QEMU without KVM, its console on standard output. It takes about three seconds.
#
#   run.sh 'PARAMETERS' QEMU-ARGUMENT…
#
# The first virtio disk in QEMU-ARGUMENT… is the guest's /dev/vda. This script becomes QEMU: its process id is QEMU's.
#   a raw file        -drive file=FILE,if=virtio,format=raw,cache=none
#   NBD               -drive file=nbd+unix:///EXPORT?socket=PATH,if=virtio,format=raw,cache=none
#   vhost-user-blk    -chardev socket,id=disk,path=PATH -device vhost-user-blk-pci,chardev=disk
#
# PARAMETERS are for the kernel's command line:
#   tern.job=shell    (default) a shell on the console
#   tern.job=write    make an ext4 on the disk if it has none, then write files and their checksums, durable one by one.
#                     tern.files=N of them (0, the default, never ends), tern.kib=N each (256), tern.seed=N,
#                     tern.pause_ms=N after each. A second run goes on where the first stopped.
#                     tern.readers=N of the whole disk (0) and tern.rewriters=N (0) besides, until the guest ends: a
#                     rewriter writes one file of 4 MiB again and again, and reads it back
#                     tern.agent=serial starts the QEMU guest agent at the second serial port; it needs an -initrd of its own, with
#                     qemu-ga in it, and -serial chardev:ID
#   tern.job=check    replay the journal, check the file system, compare every file with its checksum
#   tern.job=root     boot the system on the disk (build.sh root, or a copy of rootfs.img); then tern.after=write or
#                     tern.after=check, as above but in /data of that system, or tern.after=shell
#   tern.job=nbd      write (tern.files=N), discard what is free, and check, on the export vm1 at tern.port=N of the host, by the
#                     kernel's NBD client and over two connections. It needs an -initrd of its own, with nbd-client in it,
#                     and -netdev user,id=net -device virtio-net-pci,netdev=net,romfile=
#
# All but the shell end by powering off. What a program may read, each at the beginning of a line:
#   tern: guest up | tern: made file system | tern: booted from disk
#   tern: wrote NAME BYTES SHA256             written and durable
#   tern: synced N                            N files and their checksums are durable
#   tern: rewrote NAME N                      generation N of it is durable, and was read back
#   tern: holds NAME N…                       at a check: the generations in it
#   tern: fsck clean | tern: fsck dirty       dirty: e2fsck's words stand before it, each after "fsck: "
#   tern: nbd attached BYTES | tern: nbd detached
#   tern: file NAME ok|bad|missing
#   tern: checked N ok M bad                  missing ones are bad
#   tern: error REASON                        the job could not go on: no-disk, no-mkfs, no-mount, no-system, no-manifest,
#                                             no-directory, no-write NAME, no-read, read-back NAME, no-nbd, no-trim, no-agent,
#                                             unknown-job
#   tern: done                                the job went to its end
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ $# -ge 1 ]] || {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
guest=$("$here/build.sh")
parameters=$1
shift
# Shared memory is what a vhost-user back end needs.
exec qemu-system-x86_64 -accel tcg -m 256 -nodefaults -no-user-config -no-reboot -display none -serial stdio -net none \
    -object memory-backend-memfd,id=mem,size=256M,share=on -machine q35,memory-backend=mem \
    -kernel "$guest/vmlinuz" -initrd "$guest/initrd.gz" -append "console=ttyS0 quiet panic=-1 $parameters" "$@"
