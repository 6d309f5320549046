//! Who a site is: a key pair made at the first start, and the id that follows from its public half.
//!
//! Sites pin each other's public key, so nothing but the key counts: there is no certificate, no name and no date that could expire. The
//! key lives in the state directory as PKCS#8 in PEM, readable by its owner only. It is written once, durably, and never replaced: a file
//! that cannot be read is an error, because a new key would be another site.

mod key_file;
mod site_id;

pub use key_file::IdentityError;
pub use site_id::{SiteId, SiteIdError};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Name of the key's file in the state directory.
pub const KEY_FILE: &str = "site.key";

/// This site's key pair and the id that follows from it.
#[derive(Clone)]
pub struct Identity {
    id: SiteId,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// Reads the key from `state_dir`, or makes one, durable on return, where there is none.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = state_dir.join(KEY_FILE);
        match key_file::read(&path)? {
            Some(key) => Self::from_key(&key).map_err(|source| IdentityError::Key { path, source }),
            None => {
                let pem = new_key()?;
                key_file::create(&path, &pem)?;
                Self::from_pem(&path, &pem)
            }
        }
    }

    /// A key pair that is not stored anywhere, for a site that lives as long as the process.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::from_pem(Path::new(KEY_FILE), &new_key()?)
    }

    /// The id that peers pin.
    pub fn id(&self) -> SiteId {
        self.id
    }

    /// What TLS presents: the raw public key (RFC 7250) and the means to sign with it.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    fn from_pem(path: &Path, pem: &str) -> Result<Self, IdentityError> {
        let key = key_file::parse(path, pem.as_bytes())?;
        Self::from_key(&key).map_err(|source| IdentityError::Key { path: path.to_owned(), source })
    }

    fn from_key(key: &PrivateKeyDer<'static>) -> Result<Self, rustls::Error> {
        let signing_key = rustls::crypto::ring::sign::any_supported_type(key)?;
        let public_key: SubjectPublicKeyInfoDer<'_> =
            signing_key.public_key().ok_or_else(|| rustls::Error::General("the key has no public half".to_owned()))?;
        let public_key = public_key.as_ref().to_vec();
        let id = SiteId::of_public_key(&public_key);
        let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public_key)], signing_key));
        Ok(Self { id, key })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

fn new_key() -> Result<String, IdentityError> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(IdentityError::Generate)?;
    Ok(pair.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        let second = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.id(), second.id());
        assert_ne!(first.id(), Identity::ephemeral().unwrap().id());
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays behind");
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        Identity::load_or_create(dir.path()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let flipped = good.replacen("\nM", "\nN", 1);
        assert_ne!(good, flipped);
        for damaged in ["", "no key", &good[..good.len() / 2], &flipped] {
            fs::write(&path, damaged).unwrap();
            let error = Identity::load_or_create(dir.path()).unwrap_err();
            assert!(error.to_string().contains("site.key"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn every_altered_byte_of_the_key_is_noticed() {
        let pem = new_key().unwrap();
        let PrivateKeyDer::Pkcs8(key) = key_file::parse(Path::new(KEY_FILE), pem.as_bytes()).unwrap() else { panic!("not PKCS#8") };
        let id = Identity::from_pem(Path::new(KEY_FILE), &pem).unwrap().id();
        for at in 0..key.secret_pkcs8_der().len() {
            let mut altered = key.secret_pkcs8_der().to_vec();
            altered[at] ^= 1;
            if let Ok(other) = Identity::from_key(&PrivateKeyDer::Pkcs8(altered.into())) {
                assert_eq!(other.id(), id, "byte {at} changed the key unnoticed");
            }
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::Exposed { mode: 0o640, .. })));
    }
}
