//! A foolscap tub: its name, which is the hash of its certificate, and what its key can show.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use sha1::{Digest, Sha1};

use crate::sniff::TubId;
use crate::tls::x509;
use crate::wiped;

/// What a tub's key may sign by, the first choice first. SHA-1, and RSA's older padding, are not among them.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The name of the tub with this certificate: base32 of its SHA-1, in lower case.
pub fn tub_of(certificate: &[u8]) -> String {
    data_encoding::BASE32_NOPAD
        .encode(&Sha1::digest(certificate))
        .to_ascii_lowercase()
}

/// Did the key of this certificate sign the message? rustls reads no certificates of version 1, and foolscap makes such.
/// None if there is no key in it.
pub(crate) fn signed_by(
    provider: &CryptoProvider,
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Option<bool> {
    let (kind, key) = x509::key(certificate)?;
    let known = provider.signature_verification_algorithms.mapping;
    let mut fit = known
        .iter()
        .filter(|(one, _)| *one == scheme)
        .flat_map(|(_, all)| all.iter())
        .filter(|one| one.public_key_alg_id().as_ref() == kind);
    Some(fit.any(|one| one.verify_signature(&key, message, signature).is_ok()))
}

/// Did the tub of this name sign the message? `certificate` is what it is the hash of.
pub fn is_signed(
    tub: TubId,
    certificate: &[u8],
    scheme: u16,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let scheme = SignatureScheme::from(scheme);
    let certificate = CertificateDer::from(certificate);
    SCHEMES.contains(&scheme)
        && tub_of(&certificate) == tub.as_str()
        && signed_by(
            &aws_lc_rs::default_provider(),
            &certificate,
            scheme,
            message,
            signature,
        ) == Some(true)
}

/// A node's certificate with its key, as foolscap keeps them: `private/node.pem` of a Tahoe node.
#[derive(Clone)]
pub struct TubKey {
    certificate: CertificateDer<'static>,
    key: Arc<dyn SigningKey>,
}

/// Why a file is no [`TubKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTubKey {
    /// No certificate.
    #[error("it has no certificate")]
    NoCertificate,
    /// No key, or one of a kind that cannot be used.
    #[error("it has no private key that can be used")]
    NoKey,
    /// The two are not of one pair.
    #[error("its key is not its certificate's")]
    Apart,
}

impl TubKey {
    /// Reads both from PEM.
    pub fn read(pem: &[u8]) -> Result<Self, BadTubKey> {
        let certificate =
            CertificateDer::from_pem_slice(pem).map_err(|_| BadTubKey::NoCertificate)?;
        let key = wiped::private_key(pem).ok_or(BadTubKey::NoKey)?;
        let key = PrivateKeyDer::try_from(&key[..]).map_err(|_| BadTubKey::NoKey)?;
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| BadTubKey::NoKey)?;
        let read = Self { certificate, key };
        let (scheme, signature) = read.sign(b"").ok_or(BadTubKey::NoKey)?;
        let fits = signed_by(
            &aws_lc_rs::default_provider(),
            &read.certificate,
            scheme.into(),
            b"",
            &signature,
        );
        match fits {
            Some(true) => Ok(read),
            _ => Err(BadTubKey::Apart),
        }
    }

    /// Its name.
    pub fn tub(&self) -> Option<TubId> {
        TubId::from_bytes(tub_of(&self.certificate).as_bytes())
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs: the TLS number of the scheme, and the signature.
    pub fn sign(&self, message: &[u8]) -> Option<(u16, Vec<u8>)> {
        let signer = self.key.choose_scheme(&SCHEMES)?;
        let signature = signer.sign(message).ok()?;
        Some((signer.scheme().into(), signature))
    }
}

/// Says whose it is, and nothing of the key.
impl fmt::Debug for TubKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TubKey({:?})", self.tub())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["newpb_thingy".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_tub_signs_for_itself_and_for_nobody_else() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let (certificate, key) = pem(algorithm);
            let ours = TubKey::read((certificate.clone() + &key).as_bytes()).expect("a tub");
            let (_, other) = pem(algorithm);
            let apart = TubKey::read((certificate.clone() + &other).as_bytes());
            assert_eq!(apart.err(), Some(BadTubKey::Apart));
            let tub = ours.tub().expect("a name");
            let (scheme, mut signature) = ours.sign(b"this").expect("signed");
            let says = |tub, message: &[u8], signature: &[u8]| {
                is_signed(tub, ours.certificate(), scheme, message, signature)
            };
            assert!(says(tub, b"this", &signature));
            assert!(!says(tub, b"that", &signature));
            assert!(!says(TubId::from_random([0; 32]), b"this", &signature));
            assert!(!is_signed(
                tub,
                ours.certificate(),
                0x0401,
                b"this",
                &signature
            ));
            signature[8] ^= 1;
            assert!(!says(tub, b"this", &signature));
            assert!(!format!("{ours:?}").contains(&key));
        }
        assert_eq!(TubKey::read(b"x").err(), Some(BadTubKey::NoCertificate));
        let (certificate, _) = pem(&rcgen::PKCS_ED25519);
        assert_eq!(
            TubKey::read(certificate.as_bytes()).err(),
            Some(BadTubKey::NoKey)
        );
    }
}
