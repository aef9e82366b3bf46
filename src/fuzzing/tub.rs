//! A node's tub: its file, its certificate, and what is said to be signed by it.

use std::sync::LazyLock;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::sniff::TubId;
use crate::tls::x509;
use crate::tub::{TubKey, is_signed, tub_of};

/// A node that is nobody's, whose key nobody uses here.
static CERTIFICATE: LazyLock<CertificateDer<'static>> = LazyLock::new(|| {
    CertificateDer::from_pem_slice(include_bytes!("node.pem")).expect("a certificate")
});
const MESSAGE: &[u8] = b"what the tub has not signed";

/// The first byte says what the others are: a node's file, a signature with its scheme, a certificate.
pub fn tub(bytes: &[u8]) {
    match bytes {
        [0, pem @ ..] => node(pem),
        [1, high, low, signature @ ..] => {
            let scheme = u16::from_be_bytes([*high, *low]);
            assert!(!signed(
                tub_id(&CERTIFICATE),
                &CERTIFICATE,
                scheme,
                signature
            ));
        }
        [2, high, low, certificate @ ..] => {
            let scheme = u16::from_be_bytes([*high, *low]);
            // Only who has this very certificate has this name, and the certificate says more than its key.
            assert!(!signed(
                tub_id(&CERTIFICATE),
                certificate,
                scheme,
                &[1; 256]
            ));
            let _ = signed(tub_id(certificate), certificate, scheme, &[1; 256]);
            if let Some((kind, key)) = x509::key(&CertificateDer::from(certificate)) {
                assert!(kind.len() + key.len() < certificate.len());
            }
        }
        _ => {}
    }
}

/// What is taken for a node's key signs as it, and shows nothing of itself.
fn node(pem: &[u8]) {
    let Ok(key) = TubKey::read(pem) else { return };
    let tub = key.tub().expect("a hash is a name");
    let (scheme, signature) = key.sign(MESSAGE).expect("it has signed before");
    assert!(signed(tub, key.certificate(), scheme, &signature));
    assert!(!is_signed(
        tub,
        key.certificate(),
        scheme,
        b"another",
        &signature
    ));
}

fn signed(tub: TubId, certificate: &[u8], scheme: u16, signature: &[u8]) -> bool {
    is_signed(tub, certificate, scheme, MESSAGE, signature)
}

fn tub_id(certificate: &[u8]) -> TubId {
    TubId::from_bytes(tub_of(certificate).as_bytes()).expect("a hash is a name")
}
