#!/bin/bash
# Makes a disk that the firmware of a PC boots from, old (SeaBIOS) or new (UEFI): GRUB for both, and a FAT file system with what it reads.
# Needs grub-pc-bin, grub-efi-amd64-bin and mtools.
#
#   boot-disk.sh FILE           make FILE such a disk of 64 MiB
#   boot-disk.sh mark FILE      print what GRUB wrote into it last
#
# GRUB reads and writes through the firmware's own driver. What it says on the serial console:
#   grub: up on pc|efi | grub: files ok|bad | grub: mark was WORDS | grub: done        and powers off
# It leaves "mark=written-by-pc" or "mark=written-by-efi" on the disk.
set -euo pipefail

modules=(serial terminal echo part_msdos fat hashsum gcry_sha256 loadenv halt test normal)
size_mib=64

# The first partition begins at 1 MiB; mtools take it as file system at an offset.
partition() {
    echo "$1@@1M"
}

make_disk() {
    local file=$1 work
    work=$(mktemp -d)
    # The rescue parser of a first configuration knows no "if".
    printf 'set root=(hd0,msdos1)\nnormal /boot.cfg\n' >"$work/early.cfg"
    boot_configuration >"$work/boot.cfg"
    grub-mkimage -O i386-pc -o "$work/core.img" -c "$work/early.cfg" -p / "${modules[@]}" biosdisk
    grub-mkimage -O x86_64-efi -o "$work/bootx64.efi" -c "$work/early.cfg" -p / "${modules[@]}"
    head -c 3000000 "$work/core.img" /usr/lib/grub/x86_64-efi/*.mod | head -c 3000000 >"$work/data"
    (cd "$work" && sha256sum data | sed 's# data# /data#' >sums)
    { printf '# GRUB Environment Block\n' && printf '#%.0s' {1..999}; } >"$work/grubenv"

    rm -f "$file"
    truncate -s "${size_mib}M" "$file"
    patch 0 < <(head -c 440 /usr/lib/grub/i386-pc/boot.img)
    # One active partition of type EF from sector 2048 to the end; the boot record's signature.
    patch 446 < <(printf '\x80\xfe\xff\xff\xef\xfe\xff\xff\x00\x08\x00\x00\x00\xf8\x01\x00')
    patch 510 < <(printf '\x55\xaa')
    # Where boot.img expects it; it knows its own length.
    patch 512 <"$work/core.img"
    mformat -i "$(partition "$file")" -F -T $(((size_mib - 1) * 2048)) -h 64 -s 32 ::
    mmd -i "$(partition "$file")" ::/EFI ::/EFI/BOOT
    mcopy -i "$(partition "$file")" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$(partition "$file")" "$work"/{boot.cfg,data,sums,grubenv} ::
    rm -r "$work"
}

# patch OFFSET: puts standard input there.
patch() {
    dd of="$file" bs=1M seek="$1" oflag=seek_bytes conv=notrunc status=none
}

boot_configuration() {
    cat <<'END'
serial --unit=0
terminal_output serial
echo "grub: up on $grub_platform"
if hashsum --hash sha256 --check /sums; then echo "grub: files ok"; else echo "grub: files bad"; fi
load_env -f /grubenv
echo "grub: mark was $mark"
set mark=written-by-$grub_platform
save_env -f /grubenv mark
echo "grub: done"
halt
END
}

case "$*" in
"mark "?*) mtype -i "$(partition "$2")" ::/grubenv | sed -n 's/^mark=//p' ;;
?*) make_disk "$1" ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
