//! What is written in a certificate (RFC 5280 §4.1), as far as a frontend has to know of its own and of a
//! stranger's: for which names it is, how long, and with which key. rustls checks certificates, and does
//! not tell what is in them.

use std::time::{Duration, SystemTime};

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, ObjectIdentifier, OctetStringRef, UtcTime};
use der::{Decode, Reader, Result, SliceReader, Tag, TagNumber};
use rustls::pki_types::CertificateDer;

use crate::kite::KiteName;

/// commonName (RFC 5280 A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// subjectAltName (RFC 5280 §4.2.1.6).
const ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// dNSName among the kinds of GeneralName (RFC 5280 §4.2.1.6).
const DNS_NAME: Tag = Tag::ContextSpecific {
    constructed: false,
    number: TagNumber::N2,
};
/// Version in a TBSCertificate (RFC 5280 §4.1).
const VERSION: Tag = Tag::ContextSpecific {
    constructed: true,
    number: TagNumber::N0,
};
/// Extensions in a TBSCertificate (RFC 5280 §4.1).
const EXTENSIONS: Tag = Tag::ContextSpecific {
    constructed: true,
    number: TagNumber::N3,
};

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
    let read = || {
        let mut fields = to_be_signed(certificate)?;
        skip(&mut fields, ["serial", "algorithm", "issuer"].len())?;
        let mut validity = inside(&mut fields, Tag::Sequence)?;
        let (from, until) = (time(&mut validity)?, time(&mut validity)?);
        let common = common_names(inside(&mut fields, Tag::Sequence)?)?;
        skip(&mut fields, ["key"].len())?;
        let mut names = alternative_names(fields)?;
        if names.is_empty() {
            names = common;
        }
        validity.finish(Contents { names, from, until })
    };
    read().ok()
}

/// A certificate's key: what its AlgorithmIdentifier holds, and the key's bits. Strangers' certificates come here.
pub(crate) fn key(certificate: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let read = || {
        let mut fields = to_be_signed(certificate)?;
        let before = ["serial", "algorithm", "issuer", "validity", "subject"];
        skip(&mut fields, before.len())?;
        let mut key = inside(&mut fields, Tag::Sequence)?;
        let algorithm = any(&mut key, Tag::Sequence)?.value().to_vec();
        let bits = BitStringRef::decode(&mut key)?.raw_bytes().to_vec();
        while !fields.is_finished() {
            skip(&mut fields, 1)?;
        }
        key.finish((algorithm, bits))
    };
    read().ok()
}

/// What a certificate's signature is over, from the serial number on; what stands behind it is there, and nothing else.
fn to_be_signed<'a>(certificate: &'a CertificateDer<'_>) -> Result<SliceReader<'a>> {
    let mut file = SliceReader::new(certificate)?;
    let mut whole = inside(&mut file, Tag::Sequence)?;
    let mut fields = inside(&mut whole, Tag::Sequence)?;
    skip(&mut whole, ["algorithm", "signature"].len())?;
    whole.finish(())?;
    file.finish(())?;
    if fields.peek_tag()? == VERSION {
        skip(&mut fields, 1)?;
    }
    Ok(fields)
}

/// The names among the last fields. issuerUniqueID and subjectUniqueID may stand before the extensions; nobody uses them.
fn alternative_names(mut fields: SliceReader<'_>) -> Result<Vec<KiteName>> {
    let mut names = Vec::new();
    while !fields.is_finished() {
        let field = AnyRef::decode(&mut fields)?;
        if der::Tagged::tag(&field) != EXTENSIONS {
            continue;
        }
        let mut field = SliceReader::new(field.value())?;
        let mut extensions = inside(&mut field, Tag::Sequence)?;
        field.finish(())?;
        while !extensions.is_finished() {
            let mut extension = inside(&mut extensions, Tag::Sequence)?;
            let kind = ObjectIdentifier::decode(&mut extension)?;
            if extension.peek_tag()? == Tag::Boolean {
                bool::decode(&mut extension)?;
            }
            let value = OctetStringRef::decode(&mut extension)?;
            extension.finish(())?;
            if kind != ALTERNATIVE_NAME {
                continue;
            }
            let mut value = SliceReader::new(value.as_bytes())?;
            let mut general = inside(&mut value, Tag::Sequence)?;
            value.finish(())?;
            while !general.is_finished() {
                let one = AnyRef::decode(&mut general)?;
                if der::Tagged::tag(&one) == DNS_NAME {
                    names.extend(name(one.value()));
                }
            }
        }
    }
    Ok(names)
}

/// The common names in a subject that are DNS names.
fn common_names(mut subject: SliceReader<'_>) -> Result<Vec<KiteName>> {
    let mut names = Vec::new();
    while !subject.is_finished() {
        let mut relative = inside(&mut subject, Tag::Set)?;
        while !relative.is_finished() {
            let mut pair = inside(&mut relative, Tag::Sequence)?;
            let kind = ObjectIdentifier::decode(&mut pair)?;
            let value = AnyRef::decode(&mut pair)?;
            pair.finish(())?;
            if kind == COMMON_NAME {
                names.extend(name(value.value()));
            }
        }
    }
    Ok(names)
}

/// One of the two forms of a time (RFC 5280 §4.1.2.5).
fn time(fields: &mut SliceReader<'_>) -> Result<SystemTime> {
    let since: Duration = if fields.peek_tag()? == Tag::UtcTime {
        UtcTime::decode(fields)?.to_unix_duration()
    } else {
        GeneralizedTime::decode(fields)?.to_unix_duration()
    };
    Ok(SystemTime::UNIX_EPOCH + since)
}

fn any<'a>(fields: &mut SliceReader<'a>, tag: Tag) -> Result<AnyRef<'a>> {
    let any = AnyRef::decode(fields)?;
    der::Tagged::tag(&any).assert_eq(tag)?;
    Ok(any)
}

fn inside<'a>(fields: &mut SliceReader<'a>, tag: Tag) -> Result<SliceReader<'a>> {
    SliceReader::new(any(fields, tag)?.value())
}

fn skip(fields: &mut SliceReader<'_>, count: usize) -> Result<()> {
    for _ in 0..count {
        AnyRef::decode(fields)?;
    }
    Ok(())
}

fn name(text: &[u8]) -> Option<KiteName> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "common.example");
        params.not_before = rcgen::date_time_ymd(2020, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 1, 2);
        let made = params.self_signed(&key).expect("a certificate");
        assert_eq!(
            super::key(made.der()).map(|(_, bits)| bits),
            Some(key.public_key_raw().to_vec())
        );
        made.der().clone()
    }

    #[test]
    fn names_and_both_forms_of_dates_are_read() {
        let read = contents(&made(&["a.example", "b.example"])).expect("a certificate");
        let names: Vec<_> = read.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.example", "b.example"]);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(read.from, at(1_582_934_400));
        assert_eq!(read.until, at(2_556_230_400));
        let read = contents(&made(&[])).expect("a certificate");
        let names: Vec<_> = read.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["common.example"]);
    }

    #[test]
    fn what_was_cut_or_goes_on_is_no_certificate() {
        let whole = made(&["a.example"]);
        for end in 0..whole.len() {
            let cut = CertificateDer::from(&whole[..end]);
            assert_eq!((contents(&cut), key(&cut)), (None, None), "{end}");
        }
        let more = CertificateDer::from([&whole[..], &[0]].concat());
        assert_eq!((contents(&more), key(&more)), (None, None));
    }

    /// Lengths that overflow a position, of up to as many bytes as there can be: a stranger's certificate may hold them.
    #[test]
    fn a_length_that_leads_round_is_no_certificate() {
        for bytes in 1..=16 {
            for last in 0..=255 {
                let mut length = vec![0x80 | bytes];
                length.resize(usize::from(bytes), 0xff);
                length.push(last);
                for tag in [0x02, 0x30, 0x31, 0xa0, 0xa3, 0x82] {
                    let field = [&[tag], &length[..]].concat();
                    let wrap = |inner: &[u8]| {
                        [&[0x30, u8::try_from(inner.len()).expect("short")], inner].concat()
                    };
                    for made in [
                        field.clone(),
                        wrap(&field),
                        wrap(&wrap(&field)),
                        wrap(&wrap(&[&[0x02, 1, 1], &field[..]].concat())),
                    ] {
                        let made = CertificateDer::from(made);
                        assert_eq!((contents(&made), key(&made)), (None, None));
                    }
                }
            }
        }
    }
}
