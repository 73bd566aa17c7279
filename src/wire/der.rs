//! The few facts of an X.509 certificate (DER, RFC 5280) that TLS libraries keep to themselves: the hash for channel
//! binding, the public key, the common name. Nothing here decides about trust.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const CONTEXT_0: u8 = 0xA0;

/// 1.2.840.113549.1.1: RSA with …
const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1];
/// 1.2.840.10045.4.3: ECDSA with SHA-2
const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3];
/// 1.2.840.10045.4.1: ECDSA with SHA-1
const ECDSA_SHA1: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1];
/// 2.16.840.1.101.3.4.2: hash functions of NIST
const HASH: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
/// 2.5.4.3: common name
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

/// The `tls-server-end-point` of a certificate (RFC 5929 section 4.1): its hash by the hash function of its
/// signature, SHA-256 in place of MD5 and SHA-1. `None` where the signature has no such function, as Ed25519.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (outer, _) = expect(certificate, SEQUENCE)?;
    let (_, rest) = expect(outer, SEQUENCE)?;
    let (signature, _) = expect(rest, SEQUENCE)?;
    let hash = signature_hash(signature)?;
    Some(digest(hash, certificate).as_ref().to_vec())
}

/// The SubjectPublicKeyInfo, with its header.
pub(super) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, key) = subject_and_rest(certificate)?;
    let (_, after) = expect(key, SEQUENCE)?;
    key.get(..key.len() - after.len())
}

/// The first common name of the subject.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (mut subject, _) = subject_and_rest(certificate)?;
    while !subject.is_empty() {
        let (mut names, next) = expect(subject, SET)?;
        while !names.is_empty() {
            let (name, further) = expect(names, SEQUENCE)?;
            let (oid, value) = expect(name, OID)?;
            if oid == COMMON_NAME {
                let (_, text, _) = element(value)?;
                return String::from_utf8(text.to_vec()).ok();
            }
            names = further;
        }
        subject = next;
    }
    None
}

/// The hash function inside an AlgorithmIdentifier of a signature.
fn signature_hash(algorithm: &[u8]) -> Option<&'static Algorithm> {
    let (oid, parameters) = expect(algorithm, OID)?;
    if oid == ECDSA_SHA1 {
        return Some(&SHA256);
    }
    if let Some(&[which]) = oid.strip_prefix(ECDSA) {
        return sha2(which, [2, 3, 4]);
    }
    match *oid.strip_prefix(RSA)? {
        [4 | 5] => Some(&SHA256),
        [10] => pss_hash(parameters),
        [which] => sha2(which, [11, 12, 13]),
        _ => None,
    }
}

/// RSASSA-PSS names its hash in the parameters (RFC 4055); SHA-1 is its default.
fn pss_hash(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (fields, _) = expect(parameters, SEQUENCE)?;
    let Some((field, _)) = expect(fields, CONTEXT_0) else {
        return Some(&SHA256);
    };
    let (hash, _) = expect(field, SEQUENCE)?;
    let (oid, _) = expect(hash, OID)?;
    match oid.strip_prefix(HASH) {
        Some(&[which]) => sha2(which, [1, 2, 3]),
        _ => None,
    }
}

fn sha2(which: u8, [sha256, sha384, sha512]: [u8; 3]) -> Option<&'static Algorithm> {
    match which {
        w if w == sha256 => Some(&SHA256),
        w if w == sha384 => Some(&SHA384),
        w if w == sha512 => Some(&SHA512),
        _ => None,
    }
}

/// The content of the subject, and what follows it: the public key. A first version certificate has no version field.
fn subject_and_rest(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let (outer, _) = expect(certificate, SEQUENCE)?;
    let (mut fields, _) = expect(outer, SEQUENCE)?;
    if let Some((_, rest)) = expect(fields, CONTEXT_0) {
        fields = rest;
    }
    for _serial_signature_issuer_validity in 0..4 {
        fields = element(fields)?.2;
    }
    expect(fields, SEQUENCE)
}

/// The content of the first element, which must have this tag, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Tag, content and rest. Lengths over four bytes are no certificate.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, bytes) = bytes.split_first()?;
    let (&first, bytes) = bytes.split_first()?;
    let (length, bytes) = match first {
        0..=0x7F => (usize::from(first), bytes),
        0x81..=0x84 => {
            let (long, bytes) = bytes.split_at_checked(usize::from(first & 0x7F))?;
            let length = long
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, bytes)
        }
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["db.example".into()]).unwrap();
        let name = &mut params.distinguished_name;
        name.push(rcgen::DnType::OrganizationName, "x".repeat(300));
        name.push(rcgen::DnType::CommonName, "db.example");
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point(&p256).unwrap(), digest(&SHA256, &p256).as_ref());
        assert_eq!(end_point(&p384).unwrap(), digest(&SHA384, &p384).as_ref());
        assert_eq!(end_point(&certificate(&rcgen::PKCS_ED25519)), None);
    }

    #[test]
    fn signature_algorithms() {
        let rsa = |last| [&[OID, 9][..], RSA, &[last]].concat();
        let pss = |hash: &[u8]| {
            let oid = [&[OID, hash.len() as u8][..], hash].concat();
            let inner = [&[SEQUENCE, oid.len() as u8][..], &oid].concat();
            let field = [&[CONTEXT_0, inner.len() as u8][..], &inner].concat();
            [rsa(10), vec![SEQUENCE, field.len() as u8], field].concat()
        };
        let sha = |last| [HASH, &[last]].concat();
        let cases = [
            (rsa(4), Some(&SHA256)),
            (rsa(5), Some(&SHA256)),
            (rsa(11), Some(&SHA256)),
            (rsa(12), Some(&SHA384)),
            (rsa(13), Some(&SHA512)),
            (rsa(14), None),
            ([&[OID, 7][..], ECDSA_SHA1].concat(), Some(&SHA256)),
            ([&[OID, 8][..], ECDSA, &[4]].concat(), Some(&SHA512)),
            ([&[OID, 8][..], ECDSA, &[1]].concat(), None),
            (pss(&sha(1)), Some(&SHA256)),
            (pss(&sha(3)), Some(&SHA512)),
            (pss(&sha(4)), None),
            ([rsa(10), vec![SEQUENCE, 0]].concat(), Some(&SHA256)),
        ];
        for (bytes, want) in cases {
            assert_eq!(signature_hash(&bytes), want, "{bytes:02x?}");
        }
    }

    #[test]
    fn finds_key_and_name() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let name = &mut params.distinguished_name;
        name.push(rcgen::DnType::CommonName, "db.example");
        let der = params.self_signed(&key).unwrap().der().to_vec();
        use rcgen::PublicKeyData as _;
        assert_eq!(public_key(&der).unwrap(), key.subject_public_key_info());
        assert_eq!(common_name(&der).as_deref(), Some("db.example"));
    }

    #[test]
    fn a_cut_certificate_is_none_and_no_panic() {
        let der = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        for length in 0..der.len() {
            let cut = &der[..length];
            assert_eq!(end_point(cut), None, "{length}");
            assert_eq!(public_key(cut), None, "{length}");
            assert_eq!(common_name(cut), None, "{length}");
        }
        assert_eq!(element(&[0x30, 0x85, 1, 1, 1, 1, 1]), None);
        assert_eq!(element(&[0x30, 0x80]), None);
    }
}
