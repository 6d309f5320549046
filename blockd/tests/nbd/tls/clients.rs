//! libnbd and QEMU.

use super::certificates::Certificates;
use crate::site::{Site, client, try_client};
use blockd::nbd::{ExportError, TlsPolicy};
use blockd::request::Access;
use blockd_api::NbdAddress;
use std::fs;
use std::net::SocketAddr;

const MIB: u64 = 1 << 20;

/// A volume `vm1` over TCP with TLS.
fn serve(certificates: &Certificates, policy: TlsPolicy) -> (Site, SocketAddr) {
    let site = Site::with(|options| options.tls = Some(certificates.tls(policy)));
    let volume = site.volume("vm1", 64 * MIB);
    let NbdAddress::Tcp(address) = site.export(&volume, &"tcp:127.0.0.1:0".parse().unwrap()) else { unreachable!("as asked for") };
    (site, address)
}

fn uri(address: SocketAddr, certificates: &Certificates) -> String {
    format!("nbds://{address}/vm1?tls-certificates={}", certificates.directory())
}

#[test]
fn nbdinfo_and_nbdcopy_work_in_tls() {
    let certificates = Certificates::new();
    let (site, address) = serve(&certificates, TlsPolicy::Required);
    let uri = uri(address, &certificates);
    let Some(shown) = client("nbdinfo", &[&uri]) else { return };
    for wanted in ["protocol: newstyle-fixed with TLS, using structured packets", "base:allocation", "export-size: 67108864"] {
        assert!(shown.contains(wanted), "{wanted} is not in {shown}");
    }
    let content: Vec<u8> = (0..20 * MIB as u32).flat_map(|at| (at.wrapping_mul(2_654_435_761) as u8).to_ne_bytes()).collect();
    let (source, copy) = (site.path("source"), site.path("copy"));
    fs::write(&source, &content).unwrap();
    client("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]);
    client("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap()[..content.len()] == content);
}

#[test]
fn qemu_works_in_tls() {
    let certificates = Certificates::new();
    let (site, address) = serve(&certificates, TlsPolicy::Required);
    let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=client,verify-peer=yes", certificates.directory());
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={},file.export=vm1,file.tls-creds=tls",
        address.port()
    );
    let commands = ["-c", "write -P 7 0 8M", "-c", "flush", "-c", "read -P 7 0 8M", "-c", "read -P 0 8M 1M"];
    let Some(said) = client("qemu-io", &[&["--object", &credentials, "--image-opts", &image], &commands[..]].concat()) else { return };
    assert!(!said.contains("failed") && said.matches("bytes at offset").count() == 3, "{said}");
    let copy = site.path("copy.qcow2");
    client("qemu-img", &["convert", "--object", &credentials, "--image-opts", &image, "-O", "qcow2", copy.to_str().unwrap()]);
    assert!((8 * MIB..10 * MIB).contains(&fs::metadata(&copy).unwrap().len()));
}

#[test]
fn clients_may_do_without_tls_only_where_it_is_offered() {
    let certificates = Certificates::new();
    for (policy, works) in [(TlsPolicy::Offered, true), (TlsPolicy::Required, false)] {
        let (_site, address) = serve(&certificates, policy);
        let Some(plain) = try_client("nbdinfo", &["--size", &format!("nbd://{address}/vm1")]) else { return };
        assert_eq!(plain.status.success(), works, "{plain:?}");
        assert!(works || String::from_utf8_lossy(&plain.stderr).contains("TLS"), "{plain:?}");
        assert_eq!(client("nbdinfo", &["--size", &uri(address, &certificates)]).unwrap().trim(), "67108864");
    }
}

#[test]
fn other_hosts_may_reach_what_tls_guards() {
    let certificates = Certificates::new();
    let anywhere = "tcp:0.0.0.0:0".parse().unwrap();
    for (policy, guarded) in [(TlsPolicy::Required, true), (TlsPolicy::Offered, false)] {
        let site = Site::with(|options| options.tls = Some(certificates.tls(policy)));
        let volume = site.volume("vm1", MIB);
        let exported = site.try_export(&volume, &anywhere, Access::ReadWrite);
        assert_eq!(exported.is_ok(), guarded);
        assert!(guarded || matches!(exported, Err(ExportError::Exposed(_))));
    }
}
