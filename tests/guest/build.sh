#!/bin/bash
# Makes a small Linux guest from Debian's packages: kernel, busybox, e2fsprogs. Nothing is installed and no privilege is
# needed; the packages are downloaded and unpacked beside the result.
#
#   build.sh                    make the guest if it is not cached; print its directory, which holds
#                               vmlinuz, initrd.gz and rootfs.img
#   build.sh disk FILE SIZE     make FILE a sparse raw image of SIZE (as mke2fs takes it: 64M, 1G) with an empty ext4
#   build.sh root FILE SIZE     the same with an operating system in it: see tern.job=root in run.sh
#   build.sh initrd FILE PROGRAM…  make FILE the guest's initrd.gz with programs of this host in it, and their libraries
#
# The cache is ${TERN_CACHE:-$HOME/.cache/tern}: guest-packages-KEY by the packages' versions, guest-KEY by the files here and
# the release of Debian. So a guest that is cached needs no network, and keeps its packages until its directory is removed.
# A directory appears whole or not at all, and two builds at once do not disturb each other.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TERN_CACHE:-$HOME/.cache/tern}
sources=(build.sh init jobs.sh rootfs-init)
# In this order: each needs those before it.
modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk)
# For those jobs that need them: the network, and the kernel's NBD client.
more_modules=(failover net_failover virtio_net nbd)
# aespipe turns zeroes into a stream that looks random, fast and by a seed.
tools=(mke2fs e2fsck aespipe)
rootfs_size=64M

fail() {
    echo "guest: $*" >&2
    exit 1
}

main() {
    local guest
    case "$*" in
    "") build ;;
    "disk "?*" "?*)
        guest=$(build)
        image "$guest/rootfs" "$2" "$3" /dev/null
        ;;
    "root "?*" "?*)
        guest=$(build)
        image "$guest/rootfs" "$2" "$3" "$guest/rootfs"
        ;;
    "initrd "?*" "?*)
        guest=$(build)
        initrd_with "$guest/initrd.gz" "${@:2}"
        ;;
    *) fail "usage: build.sh [disk FILE SIZE | root FILE SIZE | initrd FILE PROGRAM…]" ;;
    esac
}

# Prints the guest's directory.
build() {
    local guest packages
    mkdir -p "$cache"
    exec 9>"$cache/guest.lock"
    flock 9
    guest=$cache/guest-$(cd "$here" && sha256sum "${sources[@]}" | cat - /etc/os-release | short_hash)
    if [[ ! -d $guest ]]; then
        packages=$(fetch_packages "$(package_versions)")
        assemble "$packages" "$guest"
    fi
    flock -u 9
    echo "$guest"
}

short_hash() {
    sha256sum | cut -c1-16
}

# The packages as "NAME=VERSION", one a line.
package_versions() {
    local kernel versions
    type -P apt-get dpkg-deb >/dev/null || fail "needs apt-get and dpkg-deb (Debian or a descendant)"
    [[ $(dpkg --print-architecture) == amd64 ]] || fail "the guest is made for amd64 only"
    kernel=$(kernel_package)
    if [[ ! $kernel ]]; then
        refresh_lists
        kernel=$(kernel_package)
    fi
    # libext2fs2t64 is what Debian 13 calls libext2fs2: one of the two has no candidate.
    versions=$(apt-cache policy "$kernel" busybox-static aespipe e2fsprogs libblkid1 libc6 libcom-err2 libuuid1 libext2fs2 \
        libext2fs2t64 | awk '/^[^ ]/ { sub(":$", ""); name = $0 } $1 == "Candidate:" && $2 != "(none)" { print name "=" $2 }')
    (($(wc -l <<<"$versions") == 9)) || fail "the package lists offer only: $versions"
    echo "$versions"
}

kernel_package() {
    apt-cache depends --important linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p'
}

refresh_lists() {
    [[ $(id -u) == 0 ]] || fail "no package lists: run 'apt-get update' as root first"
    apt-get update -qq >&2
}

# Downloads and unpacks the packages; prints the directory.
fetch_packages() {
    local versions=$1 directory work deb
    directory=$cache/guest-packages-$(short_hash <<<"$versions")
    if [[ ! -d $directory ]]; then
        work=$(mktemp -d "$cache/tmp.XXXXXX")
        # apt's own download user cannot write to a home directory, and says so at length.
        (cd "$work" && mapfile -t list <<<"$versions" && apt-get download -qq -o APT::Sandbox::User=root "${list[@]}") >&2 ||
            fail "apt-get download failed; are the package lists current (apt-get update)?"
        for deb in "$work"/*.deb; do
            dpkg-deb -x "$deb" "$work/root"
            rm "$deb"
        done
        mv "$work/root" "$directory"
        rmdir "$work"
    fi
    echo "$directory"
}

# Puts the guest together from unpacked packages.
assemble() {
    local packages=$1 guest=$2 work
    work=$(mktemp -d "$cache/tmp.XXXXXX")
    mkdir -p "$work/guest/rootfs"
    cp "$packages"/boot/vmlinuz-* "$work/guest/vmlinuz"
    userland "$packages" "$work/initramfs"
    cp "$here/init" "$work/initramfs/init"
    kernel_modules "$packages" "$work/initramfs/modules"
    chmod 755 "$work/initramfs/init"
    archive "$work/initramfs" "$work/initramfs/bin/busybox" >"$work/guest/initrd.gz"
    userland "$packages" "$work/guest/rootfs"
    cp "$here/rootfs-init" "$work/guest/rootfs/sbin/init"
    chmod 755 "$work/guest/rootfs/sbin/init"
    image "$work/guest/rootfs" "$work/guest/rootfs.img" "$rootfs_size" "$work/guest/rootfs"
    mv "$work/guest" "$guest"
    rm -r "$work"
}

# Prints a directory as an initramfs.
archive() {
    (cd "$1" && find . | LC_ALL=C sort | "$2" cpio -o -H newc -R 0:0 2>/dev/null | gzip -n -1)
}

# Archives one after the other are unpacked over each other.
initrd_with() {
    local base=$1 file=$2 root program library
    root=$(mktemp -d)
    mkdir -p "$root/sbin" "$root/lib64" "$root/lib/x86_64-linux-gnu"
    for program in "${@:3}"; do
        program=$(PATH=$PATH:/usr/sbin:/sbin type -P "$program") || fail "$program is not installed"
        cp "$program" "$root/sbin/"
        ldd "$program" | sed -n 's/.*=> \(\/.*\) (.*/\1/p' | while read -r library; do
            cp -L "$library" "$root/lib/x86_64-linux-gnu/"
        done
    done
    cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
    { cat "$base" && archive "$root" "${base%/*}/rootfs/bin/busybox"; } >"$file"
    rm -r "$root"
}

# A root directory with busybox, the tools and their libraries, and the jobs.
userland() {
    local packages=$1 root=$2 tool library loader
    # Debian 12 has some libraries in /lib and some in /usr/lib.
    local libraries=$packages/lib/x86_64-linux-gnu:$packages/usr/lib/x86_64-linux-gnu
    mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,mnt,data,etc,lib64,lib/x86_64-linux-gnu,lib/tern}
    cp "$(find "$packages" -path '*bin/busybox' -type f)" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r tool; do
        [[ $tool == busybox || $tool == mke2fs ]] || ln -s busybox "$root/bin/$tool"
    done
    loader=$(find "$packages" -name ld-linux-x86-64.so.2 -path '*x86_64-linux-gnu*' | head -n 1)
    cp -L "$loader" "$root/lib64/ld-linux-x86-64.so.2"
    for tool in "${tools[@]}"; do
        tool=$(find "$packages" -path "*bin/$tool" -type f)
        cp "$tool" "$root/sbin/"
        "$loader" --library-path "$libraries" --list "$tool" | sed -n 's/.* => \(.*\) (.*/\1/p' |
            while read -r library; do
                cp -L "$library" "$root/lib/x86_64-linux-gnu/"
            done
    done
    cp "$packages/etc/mke2fs.conf" "$root/etc/"
    cp "$here/jobs.sh" "$root/lib/tern/"
}

kernel_modules() {
    local packages=$1 to=$2 module
    mkdir -p "$to"
    for module in "${modules[@]}" "${more_modules[@]}"; do
        cp "$(find "$packages" -name "$module.ko")" "$to/"
    done
    printf '%s\n' "${modules[@]}" >"$to/order"
    printf '%s\n' "${more_modules[@]}" >"$to/more"
}

# image USERLAND FILE SIZE DIRECTORY: makes FILE an ext4 image of SIZE; the contents are those of DIRECTORY, or none for
# /dev/null. The userland's own mke2fs does it: the host's may be of another age, or absent.
image() {
    local root=$1 file=$2 size=$3 directory=$4 contents=()
    [[ $directory == /dev/null ]] || contents=(-d "$directory")
    rm -f "$file"
    truncate -s "$size" "$file"
    MKE2FS_CONFIG=$root/etc/mke2fs.conf "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib/x86_64-linux-gnu" \
        "$root/sbin/mke2fs" -q -F -t ext4 -E root_owner=0:0 "${contents[@]}" "$file"
}

main "$@"
