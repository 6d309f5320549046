//! How a VM gets a volume: QEMU's arguments and libvirt's XML.
//!
//! vhost-user needs the guest's memory to be shared with the daemon, hence the memory backend next to the disk. Of several exports one that
//! can be written to is preferred, and then the vhost-user one. With what is printed a restart of the daemon is a pause to the guest.

use crate::qemu_version::QemuVersion;
use blockd_api::{ApiError, ErrorCode, Export, ExportAccess, NbdAddress, Size, VolumeInfo, VolumeName};

/// How long QEMU keeps requests back while an NBD server is away; then the guest sees errors. Longer than any restart or upgrade, but QEMU
/// itself cannot end in an orderly way for as long.
const NBD_RECONNECT_SECONDS: u32 = 300;

/// The export that a VM should use.
pub fn preferred(volume: &VolumeInfo) -> Result<&Export, ApiError> {
    let rank = |export: &&Export| (export.access(), matches!(export, Export::Nbd { .. }));
    volume.exports.iter().min_by_key(rank).ok_or_else(|| {
        let message = format!("{} cannot be attached: it has no export", volume.name);
        let hint = format!("make one with `tern volume export {} --vhost-user PATH`", volume.name);
        ApiError::new(ErrorCode::WrongState, message).with_hint(hint)
    })
}

/// QEMU's arguments, one a string.
pub fn qemu(volume: &VolumeName, export: &Export, memory: Size, version: QemuVersion) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    match export {
        Export::VhostUser { path, .. } => {
            let mib = memory.bytes() >> 20;
            add("-m", format!("{mib}M"));
            add("-object", format!("memory-backend-memfd,id=tern-memory,size={mib}M,share=on"));
            add("-machine", "memory-backend=tern-memory".to_owned());
            let reconnect = if version < QemuVersion::RECONNECT_MS { "reconnect=1" } else { "reconnect-ms=200" };
            add("-chardev", format!("socket,id=tern-{volume},path={},{reconnect}", escaped(path.as_str())));
            add("-device", format!("vhost-user-blk-pci,chardev=tern-{volume}"));
        }
        Export::Nbd { address, access } => {
            let server = match address {
                NbdAddress::Unix(path) => format!("server.type=unix,server.path={}", escaped(path.as_str())),
                NbdAddress::Tcp(address) => format!("server.type=inet,server.host={},server.port={}", address.ip(), address.port()),
            };
            let reconnect = format!("reconnect-delay={NBD_RECONNECT_SECONDS}");
            let read_only = if *access == ExportAccess::ReadOnly { ",read-only=on" } else { "" };
            add("-drive", format!("driver=nbd,{server},export={volume},if=virtio,discard=unmap,{reconnect}{read_only}"));
        }
    }
    arguments
}

/// A comma within a value is written twice (qemu(1), "-object").
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// Arguments as lines for a shell script.
pub fn for_shell(arguments: &[String]) -> String {
    arguments.chunks(2).map(|pair| pair.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(" \\\n")
}

fn quoted(word: &str) -> String {
    let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=,[]+@".contains(&byte));
    if plain && !word.contains('[') { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// libvirt's domain XML: the parts of a domain that attach the volume.
pub fn libvirt(export: &Export, volume: &VolumeName) -> String {
    let read_only = if export.access() == ExportAccess::ReadOnly { "\n      <readonly/>" } else { "" };
    match export {
        Export::VhostUser { path, .. } => format!(
            "<domain>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw'/>
      <source type='unix' path='{path}'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target dev='vda' bus='virtio'/>{read_only}
    </disk>
  </devices>
</domain>
",
            path = xml(path.as_str())
        ),
        Export::Nbd { address, .. } => {
            let host = match address {
                NbdAddress::Unix(path) => format!("<host transport='unix' socket='{}'/>", xml(path.as_str())),
                NbdAddress::Tcp(address) => format!("<host name='{}' port='{}' transport='tcp'/>", address.ip(), address.port()),
            };
            format!(
                "<domain>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source protocol='nbd' name='{volume}'>
        {host}
        <reconnect delay='{NBD_RECONNECT_SECONDS}'/>
      </source>
      <target dev='vda' bus='virtio'/>{read_only}
    </disk>
  </devices>
</domain>
"
            )
        }
    }
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(export: &str) -> String {
        arguments_for("7.2", export)
    }

    fn arguments_for(version: &str, export: &str) -> String {
        for_shell(&qemu(&"vm1".parse().unwrap(), &export.parse().unwrap(), Size::gib(2), version.parse().unwrap()))
    }

    #[test]
    fn vhost_user_shares_the_guests_memory() {
        let expected = "-m 2048M \\\n-object memory-backend-memfd,id=tern-memory,size=2048M,share=on \\\n\
            -machine memory-backend=tern-memory \\\n-chardev socket,id=tern-vm1,path=/run/vm1.sock,reconnect=1 \\\n\
            -device vhost-user-blk-pci,chardev=tern-vm1";
        assert_eq!(arguments("vhost-user:/run/vm1.sock"), expected);
    }

    #[test]
    fn each_version_of_qemu_is_told_to_reconnect_in_words_that_it_knows() {
        for (version, expected) in
            [("7.2", ",reconnect=1 "), ("9.1", ",reconnect=1 "), ("9.2", ",reconnect-ms=200 "), ("11.0", ",reconnect-ms=200 ")]
        {
            let printed = arguments_for(version, "vhost-user:/run/vm1.sock");
            assert!(printed.contains(expected), "{version}: {printed}");
            assert!(arguments_for(version, "nbd:unix:/run/vm1.nbd").ends_with(",reconnect-delay=300"), "{version}");
        }
    }

    #[test]
    fn nbd_names_the_server_and_the_export() {
        let unix = arguments("nbd:unix:/run/a,b c.sock");
        assert!(unix.starts_with("-drive 'driver=nbd,server.type=unix,server.path=/run/a,,b c.sock,export=vm1,"), "{unix}");
        let tcp = arguments("nbd:tcp:[::1]:10809");
        assert!(tcp.contains("server.type=inet,server.host=::1,server.port=10809,export=vm1"), "{tcp}");
    }

    #[test]
    fn what_is_read_only_is_so_to_the_guest_and_preferred_last() {
        assert!(arguments("read-only:nbd:unix:/run/vm1.nbd").ends_with(",read-only=on"));
        let libvirt = |export: &str| libvirt(&export.parse().unwrap(), &"vm1".parse().unwrap());
        for export in ["vhost-user:/run/a", "nbd:unix:/run/a"] {
            assert!(!libvirt(export).contains("<readonly/>") && libvirt(&format!("read-only:{export}")).contains("<readonly/>"));
        }
        let preferred = |exports: &[&str]| {
            let exports: Vec<_> = exports.iter().map(|export| export.parse::<Export>().unwrap()).collect();
            let volume = serde_json::json!({
                "name": "vm1", "size_bytes": 4096, "backing": "/x", "exports": exports, "role": "primary", "allocated_bytes": 0
            });
            preferred(&serde_json::from_value(volume).unwrap()).unwrap().to_string()
        };
        assert_eq!(preferred(&["read-only:vhost-user:/a", "nbd:unix:/b", "vhost-user:/c"]), "vhost-user:/c");
        assert_eq!(preferred(&["read-only:vhost-user:/a", "nbd:unix:/b"]), "nbd:unix:/b");
    }

    #[test]
    fn paths_cannot_break_out_of_the_xml() {
        let text = libvirt(&"vhost-user:/run/a'b<c&d.sock".parse().unwrap(), &"vm1".parse().unwrap());
        assert!(text.contains("path='/run/a&apos;b&lt;c&amp;d.sock'"), "{text}");
    }

    #[test]
    fn shell_words_stay_words() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("a$b"), "'a$b'");
        assert_eq!(quoted("-m"), "-m");
    }
}
