//! Whether a server's certificate is to be trusted, by libpq's rules: the chain whenever there is a root
//! certificate, the name with verify-full alone.
//!
//! 1. The handshake signature is always checked: without it channel binding would mean nothing.
//! 2. A chain that does not end in a given root is never accepted when roots were given.

use super::der;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// The rules of one connection.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl Verifier {
    /// Accepts any certificate whose key the server has.
    pub fn anyone(provider: Arc<CryptoProvider>) -> Verifier {
        Verifier {
            provider,
            chain: None,
            roots: Vec::new(),
            check_name: false,
        }
    }

    /// Accepts certificates that `chain` accepts; `roots` are the certificates behind it.
    pub fn trusting(
        provider: Arc<CryptoProvider>,
        chain: Arc<WebPkiServerVerifier>,
        roots: Vec<CertificateDer<'static>>,
        check_name: bool,
    ) -> Verifier {
        Verifier {
            provider,
            chain: Some(chain),
            roots,
            check_name,
        }
    }

    /// A self-signed server certificate that is itself the given root, as PostgreSQL's manual makes one: OpenSSL
    /// accepts it, webpki objects that an authority is used as a server. Its dates were checked before that.
    fn is_the_root_itself(&self, certificate: &CertificateDer<'_>, refusal: &Error) -> bool {
        matches!(refusal, Error::InvalidCertificate(CertificateError::Other(other))
            if format!("{other:?}").contains("CaUsedAsEndEntity"))
            && self
                .roots
                .iter()
                .any(|root| root.as_ref() == certificate.as_ref())
    }

    /// The name, after the chain was found good.
    fn verify_name(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), Error> {
        if !self.check_name {
            return Ok(());
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        let refusal = match rustls::client::verify_server_name(&parsed, name) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        // Without alternative names the common name counts, as in libpq: many private authorities set no other.
        let nameless = matches!(&refusal, Error::InvalidCertificate(
            CertificateError::NotValidForNameContext { presented, .. }) if presented.is_empty());
        let common = der::common_name(certificate).filter(|_| nameless);
        match common {
            Some(common) if matches_host(&common, &name.to_str()) => Ok(()),
            _ => Err(refusal),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Ok(_) => {}
            // The name is looked at last; whoever fails there has a good chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => self.verify_name(certificate, name)?,
            Err(refusal) if self.is_the_root_itself(certificate, &refusal) => {
                self.verify_name(certificate, name)?;
            }
            Err(refusal) => return Err(refusal),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        // A certificate of X.509 version 1, as `openssl x509 -req` makes without extensions, cannot be parsed by
        // webpki; where nobody asks who the server is, its key is all that counts.
        match (&self.chain, der::public_key(certificate)) {
            (None, Some(key)) => rustls::crypto::verify_tls13_signature_with_raw_key(
                message,
                &SubjectPublicKeyInfoDer::from(key),
                signature,
                algorithms,
            ),
            _ => verify_tls13_signature(message, certificate, signature, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether a common name covers a host: equal but for case, or `*.` for exactly the first label.
fn matches_host(common: &str, host: &str) -> bool {
    let (common, host) = (common.to_ascii_lowercase(), host.to_ascii_lowercase());
    if common.contains('\0') {
        return false;
    }
    match (common.strip_prefix("*."), host.split_once('.')) {
        (Some(pattern), Some((label, domain))) => {
            !label.is_empty() && pattern.contains('.') && pattern == domain
        }
        (Some(_), None) => false,
        (None, _) => common == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    /// A self-signed certificate and its root store.
    fn verifier(root: &CertificateDer<'static>, check_name: bool) -> Verifier {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut store = rustls::RootCertStore::empty();
        store.add(root.clone()).unwrap();
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build();
        Verifier::trusting(provider, chain.unwrap(), vec![root.clone()], check_name)
    }

    fn accepts(verifier: &Verifier, certificate: &CertificateDer<'_>, host: &str) -> bool {
        let name = ServerName::try_from(host.to_string()).unwrap();
        verifier
            .verify_server_cert(certificate, &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    fn named(alternative: &[&str], common: &str, is_ca: IsCa) -> CertificateParams {
        let names: Vec<String> = alternative.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.is_ca = is_ca;
        params
    }

    #[test]
    fn chain_and_name_by_table() {
        let ca_key = KeyPair::generate().unwrap();
        let ca_params = named(&[], "our ca", IsCa::Ca(BasicConstraints::Unconstrained));
        let ca = ca_params.self_signed(&ca_key).unwrap().der().clone();
        let issuer = Issuer::new(ca_params, ca_key);
        let stranger_key = KeyPair::generate().unwrap();
        let stranger = named(&["db.example"], "x", IsCa::NoCa);
        let stranger = stranger.self_signed(&stranger_key).unwrap().der().clone();
        let signed = |params: CertificateParams| {
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &issuer).unwrap().der().clone()
        };
        let good = signed(named(&["db.example", "127.0.0.1"], "other", IsCa::NoCa));
        let common = signed(named(&[], "*.db.example", IsCa::NoCa));
        let mut old = named(&["db.example"], "x", IsCa::NoCa);
        old.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let old = signed(old);
        // certificate, host, accepted by verify-ca, accepted by verify-full
        let cases = [
            (&good, "db.example", true, true),
            (&good, "127.0.0.1", true, true),
            (&good, "other", true, false),
            (&good, "127.0.0.2", true, false),
            (&common, "a.db.example", true, true),
            (&common, "db.example", true, false),
            (&common, "a.b.db.example", true, false),
            (&stranger, "db.example", false, false),
            (&old, "db.example", false, false),
        ];
        for (certificate, host, by_ca, by_full) in cases {
            assert_eq!(
                accepts(&verifier(&ca, false), certificate, host),
                by_ca,
                "{host}"
            );
            assert_eq!(
                accepts(&verifier(&ca, true), certificate, host),
                by_full,
                "{host}"
            );
        }
    }

    #[test]
    fn the_root_itself_may_be_the_server() {
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let key = KeyPair::generate().unwrap();
            let params = named(&["db.example"], "db.example", is_ca);
            let own = params.self_signed(&key).unwrap().der().clone();
            assert!(accepts(&verifier(&own, true), &own, "db.example"));
            assert!(!accepts(&verifier(&own, true), &own, "other.example"));
            // The same name under another key is somebody else.
            let key = KeyPair::generate().unwrap();
            let other = params.self_signed(&key).unwrap().der().clone();
            assert!(!accepts(&verifier(&own, false), &other, "db.example"));
            let mut old = params.clone();
            old.not_after = rcgen::date_time_ymd(2001, 1, 1);
            let old = old.self_signed(&key).unwrap().der().clone();
            assert!(!accepts(&verifier(&old, false), &old, "db.example"));
        }
    }

    #[test]
    fn common_names() {
        let cases = [
            ("db.example", "DB.example", true),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.org", "example.org", false),
            ("*", "a", false),
            ("db.example\0.evil", "db.example", false),
        ];
        for (common, host, fits) in cases {
            assert_eq!(matches_host(common, host), fits, "{common} {host}");
        }
    }
}
