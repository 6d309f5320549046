//! TLS for NBD over TCP (`STARTTLS`): what the configuration's files make of it.
//!
//! TLS 1.3 only, and no session is ever resumed: every connection shows its certificate anew.

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether clients may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// They may.
    Offered,
    /// Nothing but `STARTTLS` is answered before it.
    Required,
}

/// Where the server's side of TLS lies: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// Authorities of the clients' certificates; without them clients need none.
    pub client_ca: Option<PathBuf>,
}

/// TLS as TCP clients are offered it.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) policy: TlsPolicy,
    clients: Clients,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    Anonymous,
    Certified,
}

/// A file that does not serve.
#[derive(Debug, thiserror::Error)]
#[error("nbd.{key} {path}: {why}", path = path.display())]
pub struct TlsError {
    key: &'static str,
    path: PathBuf,
    why: String,
}

impl Tls {
    /// Reads the files.
    pub fn load(files: &TlsFiles, policy: TlsPolicy) -> Result<Self, TlsError> {
        let chain = certificates("tls_certificate", &files.certificate)?;
        let key = key(&files.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3");
        let (builder, clients) = match &files.client_ca {
            None => (builder.with_no_client_auth(), Clients::Anonymous),
            Some(path) => (builder.with_client_cert_verifier(verifier(path)?), Clients::Certified),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let cure = format_args!("{error}: give the key that belongs to {}", files.certificate.display());
            wrong("tls_key", &files.key, cure)
        })?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), policy, clients })
    }

    /// Whether a client is known to be one of the authority's before it may ask for anything.
    pub(super) fn authenticates(&self) -> bool {
        self.policy == TlsPolicy::Required && self.clients == Clients::Certified
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("policy", &self.policy).field("clients", &self.clients).finish_non_exhaustive()
    }
}

fn wrong(key: &'static str, path: &Path, why: impl fmt::Display) -> TlsError {
    TlsError { key, path: path.to_owned(), why: why.to_string() }
}

fn verifier(path: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    const KEY: &str = "tls_client_ca";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(KEY, path)? {
        roots.add(certificate).map_err(|error| wrong(KEY, path, format_args!("{error}: give certificates of authorities")))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
    builder.build().map_err(|error| wrong(KEY, path, error))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, pem::Error>>();
    match read() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong(key, path, "there is no certificate in it: give a PEM file with BEGIN CERTIFICATE")),
        Err(error) => Err(unreadable(key, path, error)),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const KEY: &str = "tls_key";
    let found = PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(KEY, path, error))?;
    let metadata = path.metadata().map_err(|error| unreadable(KEY, path, pem::Error::Io(error)))?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(wrong(KEY, path, "everybody on this host can read it: take that away with chmod o-rwx"));
    }
    Ok(found)
}

fn unreadable(key: &'static str, path: &Path, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(error) => wrong(key, path, format_args!("{error}: give the path of a PEM file that the daemon may read")),
        error => wrong(key, path, format_args!("{error}: give a PEM file")),
    }
}
