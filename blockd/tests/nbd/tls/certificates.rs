//! Authorities and certificates in files, as an operator would make them.

use blockd::nbd::{Tls, TlsFiles, TlsPolicy};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// How long a certificate serves.
pub enum Validity {
    Now,
    Over,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes `NAME-cert.pem` and `NAME-key.pem`.
    fn issue(&self, directory: &Path, name: &str, usage: ExtendedKeyUsagePurpose, validity: Validity) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        if matches!(validity, Validity::Over) {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(directory.join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
        write_secret(&directory.join(format!("{name}-key.pem")), &key.serialize_pem());
    }
}

fn write_secret(path: &Path, text: &str) {
    use std::io::Write;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A directory in the layout that libnbd and QEMU expect: `ca-cert.pem`, `client-cert.pem`, `server-cert.pem` and the keys.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// Everything of one authority.
    pub fn new() -> Self {
        Self::of(&Authority::new("Tern test"), Validity::Now)
    }

    /// Both ends have certificates of `authority`, the client's with that validity.
    pub fn of(authority: &Authority, client: Validity) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("ca-cert.pem"), authority.0.pem()).unwrap();
        authority.issue(path, "server", ExtendedKeyUsagePurpose::ServerAuth, Validity::Now);
        authority.issue(path, "client", ExtendedKeyUsagePurpose::ClientAuth, client);
        Self(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn directory(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// The same without a certificate for the client.
    pub fn without_client(self) -> Self {
        ["client-cert.pem", "client-key.pem"].iter().for_each(|name| fs::remove_file(self.path(name)).unwrap());
        self
    }

    pub fn files(&self) -> TlsFiles {
        let [certificate, key, ca] = ["server-cert.pem", "server-key.pem", "ca-cert.pem"].map(|name| self.path(name));
        TlsFiles { certificate, key, client_ca: Some(ca) }
    }

    pub fn tls(&self, policy: TlsPolicy) -> Tls {
        Tls::load(&self.files(), policy).unwrap()
    }
}

fn error_of(files: &TlsFiles) -> String {
    let error = Tls::load(files, TlsPolicy::Required).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn files_that_do_not_serve_are_named_with_their_key_and_the_cure() {
    let ours = Certificates::new();
    let path = |name| ours.path(name).display().to_string();
    let (certificate, key, ca) = (path("server-cert.pem"), path("server-key.pem"), path("ca-cert.pem"));
    let expect = |files: TlsFiles, wanted: &[&str]| {
        let error = error_of(&files);
        wanted.iter().for_each(|wanted| assert!(error.contains(wanted), "{wanted} is not in {error}"));
    };
    expect(
        TlsFiles { certificate: "/nonexistent".into(), ..ours.files() },
        &["nbd.tls_certificate /nonexistent: No such file", "PEM file"],
    );
    expect(TlsFiles { certificate: key.clone().into(), ..ours.files() }, &["nbd.tls_certificate ", &key, "no certificate in it"]);
    expect(TlsFiles { key: certificate.into(), ..ours.files() }, &["nbd.tls_key ", "give a PEM file"]);
    expect(TlsFiles { client_ca: Some(key.clone().into()), ..ours.files() }, &["nbd.tls_client_ca ", "no certificate in it"]);
    let other = Certificates::new();
    expect(TlsFiles { key: other.path("server-key.pem"), ..ours.files() }, &["nbd.tls_key ", "give the key that belongs to"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    expect(ours.files(), &["nbd.tls_key ", &key, "chmod o-rwx"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    expect(ours.files(), &["nbd.tls_client_ca ", &ca, "give certificates of authorities"]);
}
