//! Clients that misuse STARTTLS or TLS.

use super::certificates::{Authority, Certificates, Validity};
use super::logged;
use crate::raw::Raw;
use crate::site::{Site, eventually};
use blockd::nbd::wire::{command, option, option_reply};
use blockd::nbd::{NbdOptions, TlsPolicy};
use blockd::volume::Volume;
use blockd_api::NbdAddress;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A site whose volume `vm1` cannot be had without TLS.
struct Guarded {
    site: Site,
    volume: Arc<Volume>,
    address: NbdAddress,
    certificates: Certificates,
}

impl Guarded {
    fn new(change: impl FnOnce(&mut NbdOptions)) -> Self {
        Self::by(Certificates::new(), change)
    }

    fn by(certificates: Certificates, change: impl FnOnce(&mut NbdOptions)) -> Self {
        logged::begin();
        let site = Site::with(|options| {
            options.tls = Some(certificates.tls(TlsPolicy::Required));
            change(options);
        });
        let volume = site.volume("vm1", 64 * MIB);
        let address = site.export(&volume, &"tcp:127.0.0.1:0".parse().unwrap());
        Self { site, volume, address, certificates }
    }

    fn socket_address(&self) -> SocketAddr {
        match &self.address {
            NbdAddress::Tcp(address) => *address,
            NbdAddress::Unix(_) => unreachable!("exported over TCP"),
        }
    }

    /// A client whose STARTTLS was acknowledged.
    fn starttls(&self) -> Raw {
        let mut client = Raw::connect_tcp(self.socket_address()).greeted();
        client.option(option::STARTTLS, 0, &[]);
        assert_eq!(client.option_reply(), (option_reply::ACK, vec![]));
        client
    }

    /// A client in transmission.
    fn attach(&self) -> StreamOwned<ClientConnection, UnixStream> {
        let mut client = StreamOwned::new(tls_client(&self.certificates), self.starttls().0);
        client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
        client
    }

    fn attached(&self) -> u64 {
        self.volume.clients.nbd.load(SeqCst)
    }
}

/// A client that shows its certificate, if it has one.
fn tls_client(certificates: &Certificates) -> ClientConnection {
    let read = |name| CertificateDer::from_pem_file(certificates.path(name));
    let mut roots = RootCertStore::empty();
    roots.add(read("ca-cert.pem").unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match (read("client-cert.pem"), PrivateKeyDer::from_pem_file(certificates.path("client-key.pem"))) {
        (Ok(certificate), Ok(key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        _ => builder.with_no_client_auth(),
    };
    ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap()
}

fn request(kind: u16, offset: u64, len_bytes: u32) -> Vec<u8> {
    let head = [&b"\x25\x60\x95\x13\0\0"[..], &kind.to_be_bytes(), b"cookie!!"].concat();
    [&head[..], &offset.to_be_bytes(), &len_bytes.to_be_bytes()].concat()
}

/// Lesson: state kept across STARTTLS (CVE-2021-3716).
#[test]
fn what_is_sent_between_starttls_and_tls_ends_the_connection() {
    let guarded = Guarded::new(|_| {});
    let mut client = Raw::connect_tcp(guarded.socket_address()).greeted();
    // In one segment, as an attacker would put it in front of the client's TLS.
    client.send(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x08\0\0\0\0");
    client.expect_end();
    eventually("logged", || logged::has(guarded.socket_address(), "between STARTTLS and TLS"));
    let mut late = guarded.starttls();
    late.send(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    late.expect_end();
}

/// Lesson: downgrade (CVE-2019-14842): the old way to choose an export cannot get around TLS.
#[test]
fn no_export_is_had_without_tls() {
    let guarded = Guarded::new(|_| {});
    let mut client = Raw::connect_tcp(guarded.socket_address()).greeted();
    client.option(option::GO, 6, b"\0\0\0\0\0\0");
    assert_eq!(client.option_reply().0, option_reply::ERR_TLS_REQD);
    client.option(option::EXPORT_NAME, 3, b"vm1");
    client.expect_end();
    assert_eq!(guarded.attached(), 0);
}

/// Lesson: a refused connection says at both ends which check failed; a certificate is verified (CVE-2024-7383).
#[test]
fn a_refused_certificate_is_named_at_both_ends() {
    let authority = Authority::new("Tern test");
    let guarded = Guarded::by(Certificates::of(&authority, Validity::Now), |_| {});
    let stranger = Authority::new("nobody knows it");
    let foreign = Certificates::of(&stranger, Validity::Now);
    std::fs::copy(guarded.certificates.path("ca-cert.pem"), foreign.path("ca-cert.pem")).unwrap();
    for (theirs, alert, in_log) in [
        (Certificates::of(&authority, Validity::Now).without_client(), "CertificateRequired", "peer sent no certificates"),
        (Certificates::of(&authority, Validity::Over), "CertificateExpired", "certificate expired"),
        (foreign, "UnknownCA", "UnknownIssuer"),
    ] {
        let mut client = StreamOwned::new(tls_client(&theirs), guarded.starttls().0);
        // The client is done with the handshake before the server has seen its certificate: it learns the answer where it waits for another.
        let told = client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").and_then(|()| client.read_exact(&mut [0; 10])).unwrap_err();
        assert!(format!("{told:?}").contains(alert), "{told:?}");
        eventually(in_log, || logged::has(guarded.socket_address(), in_log));
    }
    // Here it is the client that refuses.
    let mut client = StreamOwned::new(tls_client(&Certificates::of(&stranger, Validity::Now)), guarded.starttls().0);
    let told = client.write_all(b"IHAVEOPT").unwrap_err();
    assert!(format!("{told:?}").contains("UnknownIssuer"), "{told:?}");
    eventually("the client's reason", || logged::has(guarded.socket_address(), "TLS: received fatal alert: UnknownCA"));
    assert_eq!(guarded.attached(), 0);
}

/// Lesson: a deadline on handshakes, of TLS too; the place is free after it.
#[test]
fn clients_that_say_nothing_in_the_tls_handshake_are_cut_off_at_the_deadline() {
    let guarded = Guarded::new(|options| {
        options.handshake_timeout = Duration::from_millis(400);
        options.max_connections = 2;
    });
    let mut silent = [guarded.starttls(), guarded.starttls()];
    // Half a ClientHello.
    silent[1].send(&[0x16, 3, 1, 2, 0, 1, 0]);
    silent.iter_mut().for_each(Raw::expect_end);
    eventually("a place is free again", || {
        let mut client = Raw::connect_tcp(guarded.socket_address());
        client.receive(18).is_ok()
    });
}

#[test]
fn a_tls_client_that_vanishes_or_sends_nonsense_leaves_nothing_behind() {
    let guarded = Guarded::new(|_| {});
    for round in 0..6 {
        let mut client = guarded.attach();
        for at in 0..32 {
            client.write_all(&request(command::READ, at * MIB, MIB as u32)).unwrap();
        }
        if round % 2 == 0 {
            client.sock.write_all(b"nonsense, where a TLS record is due").unwrap();
            let _ = client.read_to_end(&mut Vec::new());
        }
    }
    eventually("nobody is attached", || guarded.attached() == 0);
}

/// Through the tunnel, too, a client that takes no answers stands still, holds up nobody and goes when the export ends.
#[test]
fn a_tls_client_that_takes_no_answers_is_bounded_and_ends_with_its_export() {
    let guarded = Guarded::new(|_| {});
    let mut idle = guarded.attach();
    let mut client = guarded.attach();
    client.sock.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let request = request(command::READ, 0, 32 << 20);
    let mut sent = 0;
    while sent < 1_000_000 && client.write_all(&request).is_ok() {
        sent += 1;
    }
    assert!(sent < 1_000_000, "the server does not take requests without end");
    assert_eq!(guarded.attached(), 2);
    assert!(guarded.site.wait(guarded.site.service.unexport("vm1", &guarded.address)));
    assert_eq!(guarded.attached(), 0);
    assert!(matches!(idle.read(&mut [0]), Ok(0) | Err(_)), "hung up");
}

#[test]
fn an_orderly_end_is_one_in_tls_too() {
    let guarded = Guarded::new(|_| {});
    let mut client = guarded.attach();
    client.write_all(&request(command::FLUSH, 0, 0)).unwrap();
    client.write_all(&request(command::DISC, 0, 0)).unwrap();
    let mut answers = Vec::new();
    let end: io::Result<usize> = client.read_to_end(&mut answers);
    assert_eq!((end.unwrap(), &answers[..8]), (16, &b"\x67\x44\x66\x98\0\0\0\0"[..]), "an answer, then the end of TLS");
}
