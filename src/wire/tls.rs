//! TLS by libpq's settings: which roots, which client certificate, whether the name is checked.
//!
//! rustls always runs with the ring provider named here, never with whatever the process installed.

use super::verify::Verifier;
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::pg::conninfo::{RootCert, SslMode};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// What the connection string says about TLS.
pub(super) struct TlsSettings<'a> {
    /// How much is asked.
    pub mode: SslMode,
    /// The authorities to trust.
    pub root: Option<&'a RootCert>,
    /// The client's certificate with its chain.
    pub certificate: Option<&'a Path>,
    /// The client's key.
    pub key: Option<&'a Path>,
}

/// The configuration for one connection attempt, files and all.
pub(super) fn client_config(settings: &TlsSettings<'_>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(match roots(settings)? {
        None => Verifier::anyone(provider.clone()),
        Some(roots) => trusting(roots, settings.mode == SslMode::VerifyFull, &provider)?,
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Kind::Bug, "the TLS library knows no protocol version").because(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (settings.certificate, settings.key) {
        (Some(certificate), Some(key)) => {
            let chain = read_certificates(certificate)?;
            builder
                .with_client_auth_cert(chain, read_key(key)?)
                .map_err(|e| {
                    Error::new(
                        Kind::Config,
                        format!(
                            "could not use the client certificate \"{}\"",
                            certificate.display()
                        ),
                    )
                    .detail(format!("Its key is \"{}\".", key.display()))
                    .because(e)
                })?
        }
        (Some(certificate), None) => {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the client certificate \"{}\" has no key",
                    certificate.display()
                ),
            )
            .hint("Set sslkey to the file of its private key."));
        }
        (None, _) => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The name to ask for and to check. A host that is no DNS name can only be used where the name is not checked.
pub(super) fn server_name(host: &str, mode: SslMode) -> Result<ServerName<'static>> {
    match ServerName::try_from(host.to_string()) {
        Ok(name) => Ok(name),
        Err(_) if mode != SslMode::VerifyFull => {
            Ok(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4]))))
        }
        Err(cause) => Err(Error::new(
            Kind::Config,
            format!("\"{host}\" is not a host name that a certificate can carry"),
        )
        .because(cause)),
    }
}

/// The roots to verify against; none means that the certificate is not verified, as libpq does when the mode does
/// not ask for it and no root certificate is given.
fn roots(settings: &TlsSettings<'_>) -> Result<Option<Vec<CertificateDer<'static>>>> {
    let verifies = matches!(settings.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    match settings.root {
        Some(RootCert::System) if settings.mode != SslMode::VerifyFull => Err(Error::new(
            Kind::Config,
            format!("sslrootcert=system cannot be used with sslmode={}", settings.mode),
        )
        .detail("The system's authorities certify anyone, so the name must be checked.")
        .hint("Use sslmode=verify-full.")),
        Some(RootCert::System) => system_roots().map(Some),
        Some(RootCert::File(path)) => read_certificates(path).map(Some),
        None if verifies => Err(Error::new(
            Kind::Config,
            format!("sslmode={} needs a root certificate", settings.mode),
        )
        .hint("Set sslrootcert to the file of the server's authority, or to \"system\" with verify-full.")),
        None => Ok(None),
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let error = Error::new(Kind::Config, "the system has no root certificates");
        let error = match found.errors.into_iter().next() {
            Some(cause) => error.because(cause),
            None => error,
        };
        return Err(
            error.hint("Install the ca-certificates package, or set sslrootcert to a file.")
        );
    }
    Ok(found.certs)
}

fn trusting(
    roots: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Verifier> {
    let mut store = RootCertStore::empty();
    let (usable, _) = store.add_parsable_certificates(roots.iter().cloned());
    if usable == 0 {
        return Err(Error::new(Kind::Config, "no root certificate can be used")
            .hint("Root certificates must be of X.509 version 3."));
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|e| Error::new(Kind::Config, "no root certificate can be used").because(e))?;
    Ok(Verifier::trusting(
        provider.clone(),
        chain,
        roots,
        check_name,
    ))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = || {
        Error::new(
            Kind::Config,
            format!("could not use the certificate file \"{}\"", path.display()),
        )
        .hint("It must hold certificates in PEM.")
    };
    let pem = disk::read_small(path).map_err(|e| e.with_kind(Kind::Config))?;
    let certificates: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|e| unusable().because(e))?;
    if certificates.is_empty() {
        return Err(unusable().detail("It holds none."));
    }
    Ok(certificates)
}

/// Reads a private key in PEM: PKCS#8, PKCS#1 or SEC1.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let unusable = || {
        Error::new(
            Kind::Config,
            format!("could not use the private key \"{}\"", path.display()),
        )
    };
    check_key_mode(path)?;
    let pem = disk::read_small(path).map_err(|e| e.with_kind(Kind::Config))?;
    if [&b"ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|window| window == *mark))
    {
        return Err(unusable()
            .detail("It is protected by a passphrase.")
            .hint("Give seawall an unprotected key of its own, readable by its user alone."));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| {
        unusable()
            .hint("It must be in PEM, of kind PKCS#8, PKCS#1 or SEC1.")
            .because(e)
    })
}

/// libpq's rule: nobody but the owner, or root's key readable by its group.
fn check_key_mode(path: &Path) -> Result<()> {
    let Some(stat) = disk::stat(path)? else {
        return Ok(());
    };
    let forbidden = if stat.uid == 0 { 0o027 } else { 0o077 };
    if stat.mode & forbidden == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Config,
        format!("private key file \"{}\" is open to others", path.display()),
    )
    .detail(format!("Its mode is {:04o}.", stat.mode & 0o7777))
    .hint("Set mode 0600, or 0640 if root owns it."))
}

/// What rustls refused, in the operator's words.
pub(super) fn refused(cause: rustls::Error) -> Error {
    use rustls::Error as E;
    let (kind, message, hint) = match &cause {
        E::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            Kind::Unavailable,
            "the server's certificate is for another host",
            "Connect by a name in the certificate, or use sslmode=verify-ca.",
        ),
        E::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => (
            Kind::Unavailable,
            "the server's certificate has expired",
            "Renew the server's certificate, and check the clock of this machine.",
        ),
        E::InvalidCertificate(CertificateError::UnknownIssuer) => (
            Kind::Unavailable,
            "the server's certificate is not signed by a trusted authority",
            "Check that sslrootcert is the authority of this server.",
        ),
        E::InvalidCertificate(_) => (
            Kind::Unavailable,
            "the server's certificate cannot be verified",
            "It must be of X.509 version 3; check it and its authority with \"openssl x509 -text\".",
        ),
        E::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => (
            Kind::Denied,
            "the server refused our client certificate",
            "Check sslcert and sslkey, and the server's ssl_ca_file.",
        ),
        _ => (
            Kind::Unavailable,
            "TLS with the server failed",
            "The server's log tells its side.",
        ),
    };
    Error::new(kind, message).hint(hint).because(cause)
}

/// The server closed the connection inside the handshake.
pub(super) fn hung_up() -> Error {
    Error::new(
        Kind::Transient,
        "the server closed the connection during the TLS handshake",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn settings(mode: SslMode, root: Option<&RootCert>) -> TlsSettings<'_> {
        TlsSettings {
            mode,
            root,
            certificate: None,
            key: None,
        }
    }

    #[test]
    fn what_is_verified_follows_mode_and_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.crt");
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        let file = RootCert::File(path);
        use SslMode::*;
        let cases = [
            (Prefer, None, Ok(false)),
            (Require, None, Ok(false)),
            (Require, Some(&file), Ok(true)),
            (VerifyCa, None, Err(Kind::Config)),
            (VerifyFull, None, Err(Kind::Config)),
            (VerifyFull, Some(&file), Ok(true)),
            (Require, Some(&RootCert::System), Err(Kind::Config)),
            (VerifyCa, Some(&RootCert::System), Err(Kind::Config)),
        ];
        for (mode, root, want) in cases {
            let got = roots(&settings(mode, root)).map(|roots| roots.is_some());
            assert_eq!(got.map_err(|e| e.kind()), want, "{mode} {}", root.is_some());
        }
        assert!(client_config(&settings(VerifyFull, Some(&file))).is_ok());
    }

    #[test]
    fn keys_by_form_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let locked = pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let owned_by_root = rustix::process::geteuid().is_root();
        let cases = [
            (pem.as_str(), 0o600, true),
            (pem.as_str(), 0o400, true),
            (pem.as_str(), 0o640, owned_by_root),
            (pem.as_str(), 0o644, false),
            (pem.as_str(), 0o660, false),
            (locked.as_str(), 0o600, false),
            ("", 0o600, false),
        ];
        for (text, mode, fine) in cases {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_key(&path).is_ok(), fine, "{mode:o} {}", text.len());
        }
        assert!(read_key(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_certificate_without_key_is_refused() {
        let error = client_config(&TlsSettings {
            certificate: Some(Path::new("/absent")),
            ..settings(SslMode::Require, None)
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn odd_host_names_pass_unless_they_are_checked() {
        assert!(server_name("db.example", SslMode::VerifyFull).is_ok());
        assert!(server_name("::1", SslMode::VerifyFull).is_ok());
        assert!(server_name("not a name", SslMode::Require).is_ok());
        assert!(server_name("not a name", SslMode::VerifyFull).is_err());
    }
}
