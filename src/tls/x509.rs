//! What is written in a certificate (RFC 5280 §4.1), as far as a frontend has to know of its own: for
//! which names it is, and how long. rustls checks certificates, and does not tell what is in them.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Result, BERReader, BERReaderSeq, Tag, parse_der};

use crate::kite::KiteName;

/// commonName (RFC 5280 A.1).
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
/// subjectAltName (RFC 5280 §4.2.1.6).
const ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
/// dNSName among the kinds of GeneralName (RFC 5280 §4.2.1.6).
const DNS_NAME: u64 = 2;
/// Extensions in a TBSCertificate (RFC 5280 §4.1).
const EXTENSIONS: u64 = 3;

/// What a certificate says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Its DNS names; where there are none, as in old self-made ones, its common name if that is one.
    pub(super) names: Vec<KiteName>,
    /// The first moment of its life.
    pub(super) from: SystemTime,
    /// The last moment of its life.
    pub(super) until: SystemTime,
}

/// Reads a certificate. None if it is none.
pub(crate) fn contents(certificate: &CertificateDer<'_>) -> Option<Contents> {
    let read = parse_der(certificate, |reader| {
        reader.read_sequence(|whole| {
            let contents = whole.next().read_sequence(to_be_signed)?;
            let _algorithm = whole.next().read_der()?;
            let _signature = whole.next().read_der()?;
            Ok(contents)
        })
    });
    read.ok()
}

/// A certificate's key: what its AlgorithmIdentifier holds, and the key's bits.
pub(crate) fn key(certificate: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = parse_der(certificate, |reader| {
        reader.read_sequence(|whole| {
            let key = whole.next().read_sequence(|fields| {
                fields.read_optional(|r| r.read_tagged(Tag::context(0), |r| r.read_der()))?;
                // Serial, algorithm, issuer, validity, subject.
                for _ in 0..5 {
                    fields.next().read_der()?;
                }
                let key = fields.next().read_sequence(|key| {
                    let algorithm = key.next().read_tagged_der()?.value().to_vec();
                    let (bits, _) = key.next().read_bitvec_bytes()?;
                    Ok((algorithm, bits))
                })?;
                while let Some(()) = fields.read_optional(|r| r.read_der().map(drop))? {}
                Ok(key)
            })?;
            let _algorithm = whole.next().read_der()?;
            let _signature = whole.next().read_der()?;
            Ok(key)
        })
    });
    read.ok()
}

fn to_be_signed(fields: &mut BERReaderSeq<'_, '_>) -> ASN1Result<Contents> {
    let _version = fields.read_optional(|r| r.read_tagged(Tag::context(0), |r| r.read_der()))?;
    let _serial = fields.next().read_der()?;
    let _algorithm = fields.next().read_der()?;
    let _issuer = fields.next().read_der()?;
    let (from, until) = fields
        .next()
        .read_sequence(|validity| Ok((time(validity)?, time(validity)?)))?;
    let mut common = Vec::new();
    fields.next().read_sequence_of(|relative| {
        relative.read_set_of(|attribute| {
            attribute.read_sequence(|pair| {
                let kind = pair.next().read_oid()?;
                let value = pair.next().read_tagged_der()?;
                if is(&kind, COMMON_NAME) {
                    common.extend(name(value.value()));
                }
                Ok(())
            })
        })
    })?;
    let _key = fields.next().read_der()?;
    let mut names = Vec::new();
    // issuerUniqueID and subjectUniqueID may stand before the extensions; nobody uses them.
    while let Some(()) = fields.read_optional(|r| match r.lookahead_tag()? {
        tag if tag == Tag::context(EXTENSIONS) => r.read_tagged(tag, |r| extensions(r, &mut names)),
        _ => r.read_der().map(drop),
    })? {}
    if names.is_empty() {
        names = common;
    }
    Ok(Contents { names, from, until })
}

fn extensions(all: BERReader<'_, '_>, names: &mut Vec<KiteName>) -> ASN1Result<()> {
    all.read_sequence_of(|extension| {
        extension.read_sequence(|fields| {
            let kind = fields.next().read_oid()?;
            let _critical = fields.read_default(false, |r| r.read_bool())?;
            let value = fields.next().read_bytes()?;
            if !is(&kind, ALTERNATIVE_NAME) {
                return Ok(());
            }
            parse_der(&value, |general| {
                general.read_sequence_of(|one| {
                    let one = one.read_tagged_der()?;
                    if one.tag() == Tag::context(DNS_NAME) {
                        names.extend(name(one.value()));
                    }
                    Ok(())
                })
            })
        })
    })
}

/// One of the two forms of a time (RFC 5280 §4.1.2.5).
fn time(fields: &mut BERReaderSeq<'_, '_>) -> ASN1Result<SystemTime> {
    let utc = fields.read_optional(|r| r.read_utctime())?;
    let seconds = match utc {
        Some(time) => time.datetime().unix_timestamp(),
        None => fields
            .next()
            .read_generalized_time()?
            .datetime()
            .unix_timestamp(),
    };
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Ok(SystemTime::UNIX_EPOCH + seconds)
}

fn is(kind: &ObjectIdentifier, wanted: &[u64]) -> bool {
    kind.components().as_slice() == wanted
}

fn name(text: &[u8]) -> Option<KiteName> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
