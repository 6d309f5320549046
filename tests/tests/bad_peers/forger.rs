//! A site with a key of its own that writes what it likes to another one.

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::identity::{Identity, KEY_FILE};
use replicator::pairing::{PairingDesk, PeerBook};
use replicator::site_link::{REPLICATION, REQUEST};
use replicator::transport::{Closed, Settings, StreamKind, Transport};
use replicator_engine::generation::Id;
use replicator_engine::wire::{Envelope, Message, Refusal, Refused};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// No step takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The version of the link's protocol.
pub const VERSION: u16 = 1;

/// `future`, or a failed test.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// A catalogue that lives as long as the test.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Catalogue for Memory {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    fn apply(&self, changes: &[Change], _: Persist) -> io::Result<()> {
        let mut pairs = self.0.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => drop(pairs.insert(key.clone(), value.clone())),
                None => drop(pairs.remove(key)),
            }
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let pairs = self.0.lock().unwrap();
        Ok(pairs.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Whatever key the other side shows: it is not who is tested.
#[derive(Debug)]
struct AnyKey;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// See the module's documentation.
pub struct Forger {
    target: SocketAddr,
    endpoint: Endpoint,
}

impl Forger {
    /// A stranger.
    pub fn unknown(directory: &std::path::Path, target: &str) -> Self {
        Identity::load_or_create(directory).unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.join(KEY_FILE)).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let public = CertificateDer::from(key.public_key().unwrap().as_ref().to_vec());
        let provider = Arc::new(ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![public], key)))));
        tls.alpn_protocols = vec![b"tern/1".to_vec()];
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
        Self { target: target.parse().unwrap(), endpoint }
    }

    /// A peer, paired as any site is.
    pub async fn paired(directory: &std::path::Path, name: &str, target: &str, token: &str) -> Self {
        let identity = Identity::load_or_create(directory).unwrap();
        let catalogue = Arc::new(Memory::default());
        let book = Arc::new(PeerBook::open(catalogue.clone()).unwrap());
        let desk = Arc::new(PairingDesk::open(identity.id(), name.into(), catalogue, book).unwrap());
        let transport = Transport::bind("127.0.0.1:0".parse().unwrap(), identity, desk.clone(), Settings::default()).unwrap();
        soon(desk.join(&transport, token, Vec::new())).await.unwrap();
        // From here on it speaks for itself.
        transport.stop().await;
        Self::unknown(directory, target)
    }

    /// A connection on which nothing was said.
    pub async fn connect(&self) -> Connection {
        soon(self.endpoint.connect(self.target, "tern").unwrap()).await.unwrap()
    }

    /// A link, after the hellos.
    pub async fn link(&self) -> Connection {
        let connection = self.connect().await;
        let (mut send, mut recv) = soon(connection.open_bi()).await.unwrap();
        soon(send.write_all(&framed(&hello(VERSION)))).await.unwrap();
        send.finish().unwrap();
        soon(recv.read_to_end(4096)).await.unwrap();
        connection
    }
}

/// What a site of this protocol version says first.
pub fn hello(version: u16) -> Vec<u8> {
    let versions = [version.to_le_bytes(), version.to_le_bytes()].concat();
    let (features, instance) = ([0; 8], [7; 8]);
    [&b"TERNLINK"[..], &versions, &features, &instance, &[1, b'x'], &[1, b'y']].concat()
}

/// A frame.
pub fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_le_bytes(), content].concat()
}

/// Opens a stream with its kind and header.
pub async fn open(connection: &Connection, kind: StreamKind, header: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, recv) = soon(connection.open_bi()).await.unwrap();
    soon(send.write_all(&framed(&[&kind.0.to_le_bytes(), header].concat()))).await.unwrap();
    (send, recv)
}

/// Asks a question; the answer is a JSON document.
pub async fn ask(connection: &Connection, question: &[u8]) -> serde_json::Value {
    let (mut send, mut recv) = open(connection, REQUEST, question).await;
    send.finish().unwrap();
    let answer = soon(recv.read_to_end(1 << 20)).await.unwrap();
    serde_json::from_slice(&answer[4..]).unwrap()
}

/// A replication stream.
pub struct Replication {
    pub send: SendStream,
    pub recv: RecvStream,
}

impl Replication {
    pub async fn open(connection: &Connection, volume: Id) -> Self {
        let (send, recv) = open(connection, REPLICATION, &volume.0).await;
        Self { send, recv }
    }

    /// Sends a frame; whether anybody still reads is the other side's to say.
    pub async fn send(&mut self, frame: &[u8]) {
        let _ = soon(self.send.write_all(&framed(frame))).await;
    }

    /// The next message.
    pub async fn receive(&mut self) -> Message {
        let mut len = [0; 4];
        soon(self.recv.read_exact(&mut len)).await.unwrap();
        let mut frame = vec![0; u32::from_le_bytes(len) as usize];
        soon(self.recv.read_exact(&mut frame)).await.unwrap();
        Envelope::decode(frame.into()).unwrap().message
    }

    /// The stream is refused, for this reason, and ends.
    pub async fn expect_refusal(mut self, reason: Refusal, words: &str) {
        let Message::Refused(Refused { reason: found, text, .. }) = self.receive().await else { panic!("not refused: {words}") };
        assert!(found == reason && text.contains(words), "{found:?} {text}, not {reason:?} {words}");
        assert_eq!(soon(self.recv.read_to_end(1)).await.unwrap(), b"", "the stream ends");
    }
}

/// How the other side ended the connection.
pub async fn end_of(connection: &Connection) -> Closed {
    soon(connection.closed()).await.into()
}
