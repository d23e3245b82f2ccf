//! Ed25519 signatures over the content id of a file. A file's code is a program; a signature by
//! a key that the user configured is what makes it one's own.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::codec::Reader;
use crate::error::{Error, Result};

const CONTEXT: &[u8] = b"fqbin content id v1\0";
const ALGORITHM_ED25519: u32 = 1;

/// A public key, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A secret key, made from 32 random bytes that the caller draws and keeps.
pub struct SecretKey(SigningKey);

impl SecretKey {
    pub fn from_bytes(seed: &[u8; 32]) -> SecretKey {
        SecretKey(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }
}

/// The payload of a signature section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSignature {
    pub key: PublicKey,
    pub bytes: [u8; 64],
}

impl FileSignature {
    /// Length of the section.
    pub const LEN: usize = 4 + 32 + 64;

    pub fn sign(key: &SecretKey, content_id: &[u8; 32]) -> FileSignature {
        let bytes = key.0.sign(&message(content_id)).to_bytes();
        FileSignature { key: key.public(), bytes }
    }

    /// Whether the signature over this content id is the key's.
    pub fn verify(&self, content_id: &[u8; 32]) -> bool {
        VerifyingKey::from_bytes(&self.key.0).is_ok_and(|key| {
            key.verify_strict(&message(content_id), &Signature::from_bytes(&self.bytes)).is_ok()
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = ALGORITHM_ED25519.to_le_bytes().to_vec();
        out.extend(self.key.0);
        out.extend(self.bytes);
        out
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<FileSignature> {
        let mut r = Reader::new(payload, "the signature section");
        let algorithm = r.u32()?;
        if algorithm != ALGORITHM_ED25519 {
            let what = format!("the file is signed by the unknown algorithm {algorithm}");
            return Err(Error::Untrusted(what));
        }
        let signature = FileSignature { key: PublicKey(r.array()?), bytes: r.array()? };
        r.finish()?;
        Ok(signature)
    }
}

fn message(content_id: &[u8; 32]) -> Vec<u8> {
    [CONTEXT, content_id].concat()
}
