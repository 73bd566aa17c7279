//! What S3 and the network said, as our errors: by name, never by status alone where a name is given.
//!
//! Two rules of safety: only a 404 with the code `NoSuchKey` says that a key is missing (a gateway, a mistyped
//! endpoint and a missing bucket answer 404 as well), and nothing is `Transient` that waiting does not mend.

use super::http::Answer;
use super::xml;
use crate::error::{Error, Kind, Result};
use crate::limits::ERROR_BODY_BYTES_MAX;
use std::io::ErrorKind;

/// Longest sentence of a store that is repeated.
const MESSAGE_CHARS_MAX: usize = 300;

/// An answer that is not what was asked for, with what is known of it.
#[derive(Debug, Default)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// S3's code, if the body held one.
    pub code: Option<String>,
    /// S3's sentence.
    pub message: String,
    /// For the store's operator.
    pub request_id: Option<String>,
    /// The region that would have been right.
    pub region: Option<String>,
    /// `x-amz-delete-marker: true`: the key was there and has been deleted.
    pub delete_marker: bool,
}

impl Refusal {
    /// Reads the body of an answer. One that breaks off proves nothing, whatever its status: that may pass.
    pub fn read(answer: Answer) -> Result<Refusal> {
        let header = |name| answer.header(name).map(str::to_string);
        let mut refusal = Refusal {
            status: answer.status,
            request_id: header("x-amz-request-id"),
            region: header("x-amz-bucket-region"),
            delete_marker: answer.header("x-amz-delete-marker") == Some("true"),
            ..Refusal::default()
        };
        let body = answer.beginning(ERROR_BODY_BYTES_MAX)?;
        match xml::error(&body) {
            Some(error) => refusal.take(error),
            None => refusal.message = first_line(&body),
        }
        Ok(refusal)
    }

    /// A refusal that came within an answer of status 200.
    pub fn within(status: u16, error: xml::ErrorBody) -> Refusal {
        let mut refusal = Refusal {
            status,
            ..Refusal::default()
        };
        refusal.take(error);
        refusal
    }

    fn take(&mut self, error: xml::ErrorBody) {
        self.code = Some(error.code);
        self.message = plain(&error.message);
        self.request_id = error.request_id.or(self.request_id.take());
        self.region = error.region.or(self.region.take());
    }

    /// Whether it carries this code.
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// The proof that a key is not there.
    pub fn is_missing_key(&self) -> bool {
        self.status == 404 && self.is("NoSuchKey") && !self.delete_marker
    }

    /// Whether other credentials may be accepted: those in use have run out.
    pub fn is_expired(&self) -> bool {
        [
            "ExpiredToken",
            "ExpiredTokenException",
            "TokenRefreshRequired",
        ]
        .iter()
        .any(|code| self.is(code))
    }

    /// The error. `doing` says what was asked, as in `GET s3://bucket/key`.
    pub fn error(&self, doing: &str) -> Error {
        let (kind, hint) = self.judge();
        let name = self
            .code
            .as_deref()
            .map_or(String::new(), |c| format!(" {c}"));
        let mut error = Error::new(
            kind,
            format!("s3 answered {}{name} to {doing}", self.status),
        );
        let mut detail = self.message.clone();
        if let Some(id) = &self.request_id {
            let space = if detail.is_empty() { "" } else { " " };
            detail.push_str(&format!("{space}(request id {})", plain(id)));
        }
        if !detail.is_empty() {
            error = error.detail(detail);
        }
        if self.delete_marker {
            error = error.also("The object was deleted in a versioned bucket.");
        }
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// The error of reading one key: here, and only here, `NoSuchKey` means that the key is missing.
    pub fn error_of_key(&self, doing: &str) -> Error {
        let error = self.error(doing);
        match self.is_missing_key() {
            true => error.with_kind(Kind::Missing),
            false => error,
        }
    }

    fn judge(&self) -> (Kind, Option<String>) {
        if self.delete_marker {
            let hint = "Restore the last version of the object.";
            return (Kind::Hole, Some(hint.to_string()));
        }
        if let Some(verdict) = self.judge_region() {
            return verdict;
        }
        match self.code.as_deref() {
            Some(code) => match judge_code(code) {
                Some((kind, hint)) => (kind, (!hint.is_empty()).then(|| hint.to_string())),
                None => judge_status(self.status, true),
            },
            None => judge_status(self.status, false),
        }
    }

    /// Answers that send us to another region or address.
    fn judge_region(&self) -> Option<(Kind, Option<String>)> {
        const CODES: [&str; 5] = [
            "PermanentRedirect",
            "TemporaryRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "Redirect",
        ];
        let named = CODES.iter().any(|code| self.is(code));
        if !named && !(300..400).contains(&self.status) {
            return None;
        }
        let hint = match &self.region {
            Some(region) => {
                let region = plain(region);
                format!("The bucket is in {region}: set SEAWALL_S3_REGION={region}.")
            }
            None => {
                "Set SEAWALL_S3_REGION to the bucket's region, and check SEAWALL_S3_ENDPOINT and SEAWALL_S3_ADDRESSING."
                    .to_string()
            }
        };
        Some((Kind::Unavailable, Some(hint)))
    }
}

/// The kind and hint of a code; a hint may be empty. `None`: the status decides.
fn judge_code(code: &str) -> Option<(Kind, &'static str)> {
    if code.contains("Throttl") {
        return Some((Kind::Transient, ""));
    }
    Some(match code {
        "NoSuchBucket" => (
            Kind::Unavailable,
            "Create the bucket, or check the name in SEAWALL_PREFIX and the endpoint.",
        ),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidSecurity" => (
            Kind::Denied,
            "The key needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on the prefix, and \
             s3:ListBucket on the bucket: without s3:ListBucket a key that is not there is answered with 403 as well.",
        ),
        "SignatureDoesNotMatch" => (
            Kind::Denied,
            "Check the secret key and the region; a proxy that changes headers or paths breaks signatures as well.",
        ),
        "InvalidAccessKeyId" => (
            Kind::Denied,
            "Check the access key id: the store does not know it.",
        ),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => (
            Kind::Denied,
            "Renew the session token, or let seawall fetch credentials by itself (profile, container, instance, web identity).",
        ),
        "InvalidToken" | "InvalidIdentityToken" => (
            Kind::Denied,
            "Check the session token: it does not belong to this access key.",
        ),
        "RequestTimeTooSkewed" | "RequestExpired" => (
            Kind::Denied,
            "Set the clock of this host: it differs too much from the store's.",
        ),
        "InvalidObjectState" => (
            Kind::Unavailable,
            "The object is in an archive storage class: restore it there first.",
        ),
        "NotImplemented" => (
            Kind::Unavailable,
            "The store does not know a header or request of seawall.",
        ),
        "NoSuchUpload" => (
            Kind::Unavailable,
            "The unfinished upload was removed from the store, perhaps by a lifecycle rule; start again.",
        ),
        "PreconditionFailed" => (Kind::Exists, ""),
        "ConditionalRequestConflict" | "OperationAborted" => (Kind::Transient, ""),
        // What arrived was not what was sent: sending again mends it.
        "BadDigest"
        | "IncompleteBody"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "InvalidChecksum" => (Kind::Transient, ""),
        "InternalError"
        | "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "ServerBusy"
        | "XMinioServerNotInitialized"
        | "Busy" => (Kind::Transient, ""),
        "XMinioStorageFull" | "QuotaExceeded" => {
            (Kind::Transient, "The store is full: make room there.")
        }
        _ => return None,
    })
}

/// The kind of an answer whose code is unknown or that has none.
fn judge_status(status: u16, from_s3: bool) -> (Kind, Option<String>) {
    const PAGE: &str = "The answer does not come from S3: check SEAWALL_S3_ENDPOINT, SEAWALL_S3_ADDRESSING and any proxy between.";
    let hint = |text: &str| Some(text.to_string());
    match status {
        408 | 429 | 500 | 502 | 503 | 504 => (Kind::Transient, None),
        507 => (Kind::Transient, hint("The store is full: make room there.")),
        412 => (Kind::Exists, None),
        401 | 403 => (
            Kind::Denied,
            hint("Check the credentials, and any proxy between."),
        ),
        407 => (Kind::Denied, hint("The proxy wants a user and a password.")),
        501 => (
            Kind::Unavailable,
            hint("The store does not know a header or request of seawall."),
        ),
        505..=599 => (Kind::Transient, None),
        _ if from_s3 => (Kind::Unavailable, None),
        _ => (Kind::Unavailable, hint(PAGE)),
    }
}

/// A success that is not an S3 answer: a login page, a console, a proxy's greeting.
pub fn not_s3(status: u16, doing: &str, reason: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("{doing} was answered with {status}, but not by S3"),
    )
    .detail(format!("The answer is a gateway's page: {reason}."))
    .hint("Check SEAWALL_S3_ENDPOINT (the console has another port than the store) and any proxy between.")
}

/// A failure of the connection itself. `when` says how far the request was.
pub fn transport(origin: &str, when: &str, cause: ureq::Error) -> Error {
    let lost = || format!("the connection to {origin} failed {when}");
    match cause {
        ureq::Error::Timeout(ureq::Timeout::Connect) => {
            transient(origin, "connecting took too long")
        }
        ureq::Error::Timeout(ureq::Timeout::Resolve) => {
            transient(origin, "its name was not resolved in time")
        }
        ureq::Error::Timeout(_) => Error::new(
            Kind::Transient,
            format!("{origin} made no progress {when} and was given up"),
        )
        .hint("SEAWALL_REQUEST_TIMEOUT says how long a request may be silent."),
        ureq::Error::HostNotFound => transient(origin, "its name is not known"),
        ureq::Error::ConnectionFailed => transient(origin, "no address accepted the connection"),
        ureq::Error::ConnectProxyFailed(reason) => proxy(origin, &reason),
        ureq::Error::Rustls(cause) => tls(origin, cause),
        ureq::Error::Io(cause) => io(origin, lost(), cause),
        ureq::Error::Other(cause) => Error::new(Kind::Transient, lost()).because(cause),
        cause @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl) => {
            Error::new(Kind::Config, format!("could not ask {origin}")).because(cause)
        }
        cause @ (ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)) => Error::new(
            Kind::Transient,
            format!("{origin} does not answer with HTTP"),
        )
        .because(cause)
        .hint("Check the scheme and the port of SEAWALL_S3_ENDPOINT."),
        cause @ (ureq::Error::Tls(_) | ureq::Error::TlsRequired | ureq::Error::Pem(_)) => {
            Error::new(Kind::Unavailable, format!("no TLS with {origin}")).because(cause)
        }
        cause => Error::new(Kind::Transient, lost()).because(cause),
    }
}

fn transient(origin: &str, reason: &str) -> Error {
    Error::new(Kind::Transient, format!("could not reach {origin}")).detail(format!("{reason}."))
}

fn proxy(origin: &str, reason: &str) -> Error {
    let lasting = ["407", "403", "401"]
        .iter()
        .any(|code| reason.contains(code));
    let kind = if lasting {
        Kind::Unavailable
    } else {
        Kind::Transient
    };
    Error::new(kind, format!("could not reach {origin} through the proxy"))
        .detail(format!("{}.", plain(reason)))
}

fn io(origin: &str, lost: String, cause: std::io::Error) -> Error {
    if cause.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
        let inner = cause.into_inner().expect("checked above");
        return tls(origin, *inner.downcast().expect("checked above"));
    }
    let unreached = matches!(
        cause.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::AddrNotAvailable
    );
    // Name resolution reports as an uncategorised error ("failed to lookup address information").
    let message = if unreached || cause.to_string().contains("lookup address") {
        format!("could not reach {origin}")
    } else {
        lost
    };
    Error::new(Kind::Transient, message).because(cause)
}

fn tls(origin: &str, cause: rustls::Error) -> Error {
    use rustls::Error as E;
    let (kind, hint) = match &cause {
        E::InvalidCertificate(_) | E::NoCertificatesPresented => (
            Kind::Unavailable,
            "If the store has a certificate of your own CA, set SEAWALL_S3_CA_FILE to that CA's certificate.",
        ),
        E::InvalidMessage(_) => (
            Kind::Unavailable,
            "Check the scheme and the port of SEAWALL_S3_ENDPOINT: this port does not speak TLS.",
        ),
        E::AlertReceived(_) | E::PeerIncompatible(_) => (
            Kind::Unavailable,
            "The server refuses this TLS connection: check its versions and whether it wants a client certificate.",
        ),
        _ => (Kind::Transient, ""),
    };
    let error = Error::new(kind, format!("no TLS with {origin}")).because(cause);
    if hint.is_empty() {
        error
    } else {
        error.hint(hint)
    }
}

/// The first line of a page, without tags: enough to recognise whose it is.
fn first_line(body: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in body.chars().take(2000) {
        match c {
            '<' => inside = true,
            '>' => {
                inside = false;
                out.push(' ');
            }
            c if !inside => out.push(c),
            _ => {}
        }
    }
    plain(&out).chars().take(120).collect()
}

/// One line without control characters, bounded.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(MESSAGE_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Denied, Exists, Hole, Missing, Transient, Unavailable};

    fn refusal(status: u16, code: &str) -> Refusal {
        Refusal {
            status,
            code: (!code.is_empty()).then(|| code.to_string()),
            ..Refusal::default()
        }
    }

    #[test]
    fn every_answer_has_its_kind() {
        let rows = [
            (404, "NoSuchKey", Missing),
            (400, "NoSuchKey", Unavailable),
            (404, "", Unavailable),
            (404, "NotFound", Unavailable),
            (404, "NoSuchBucket", Unavailable),
            (404, "NoSuchUpload", Unavailable),
            (403, "AccessDenied", Denied),
            (403, "SignatureDoesNotMatch", Denied),
            (403, "InvalidAccessKeyId", Denied),
            (400, "ExpiredToken", Denied),
            (403, "RequestTimeTooSkewed", Denied),
            (403, "", Denied),
            (401, "", Denied),
            (407, "", Denied),
            (301, "PermanentRedirect", Unavailable),
            (307, "TemporaryRedirect", Unavailable),
            (302, "", Unavailable),
            (400, "AuthorizationHeaderMalformed", Unavailable),
            (412, "PreconditionFailed", Exists),
            (412, "", Exists),
            (409, "ConditionalRequestConflict", Transient),
            (409, "BucketAlreadyExists", Unavailable),
            (400, "RequestTimeout", Transient),
            (400, "BadDigest", Transient),
            (500, "InternalError", Transient),
            (200, "InternalError", Transient),
            (503, "SlowDown", Transient),
            (503, "", Transient),
            (500, "", Transient),
            (502, "", Transient),
            (504, "", Transient),
            (507, "", Transient),
            (507, "XMinioStorageFull", Transient),
            (429, "", Transient),
            (408, "", Transient),
            (400, "KMS.ThrottlingException", Transient),
            (400, "KMS.DisabledException", Unavailable),
            (501, "NotImplemented", Unavailable),
            (403, "InvalidObjectState", Unavailable),
            (400, "InvalidArgument", Unavailable),
            (400, "", Unavailable),
            (405, "MethodNotAllowed", Unavailable),
        ];
        for (status, code, kind) in rows {
            let error = refusal(status, code).error_of_key("GET s3://b/k");
            assert_eq!(error.kind(), kind, "{status} {code}: {error}");
        }
        let deleted = Refusal {
            delete_marker: true,
            ..refusal(404, "NoSuchKey")
        };
        assert_eq!(deleted.error("GET s3://b/k").kind(), Hole);
        assert_eq!(deleted.error_of_key("GET s3://b/k").kind(), Hole);
        let elsewhere = refusal(404, "NoSuchKey").error("LIST s3://b");
        assert_eq!(elsewhere.kind(), Unavailable);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let rows = [
            (403, "AccessDenied", "s3:ListBucket"),
            (403, "SignatureDoesNotMatch", "secret key"),
            (403, "InvalidAccessKeyId", "access key id"),
            (400, "ExpiredToken", "session token"),
            (403, "RequestTimeTooSkewed", "clock"),
            (404, "NoSuchBucket", "bucket"),
            (404, "", "SEAWALL_S3_ENDPOINT"),
            (301, "PermanentRedirect", "SEAWALL_S3_REGION"),
        ];
        for (status, code, wanted) in rows {
            let error = refusal(status, code).error("GET s3://b/k");
            let hint = error.hint_text().unwrap_or_default();
            assert!(hint.contains(wanted), "{code}: {hint}");
        }
    }

    #[test]
    fn the_right_region_is_named() {
        let mut moved = refusal(301, "PermanentRedirect");
        moved.region = Some("eu-central-1".into());
        let error = moved.error("GET s3://b/k");
        assert!(
            error
                .hint_text()
                .unwrap()
                .contains("SEAWALL_S3_REGION=eu-central-1"),
            "{error}"
        );
    }

    #[test]
    fn an_error_reads_well() {
        let refusal = Refusal {
            message: "Access\n Denied."
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            request_id: Some("R1".into()),
            ..refusal(403, "AccessDenied")
        };
        let text = refusal.error("PUT s3://b/k").to_string();
        assert!(
            text.starts_with("s3 answered 403 AccessDenied to PUT s3://b/k\ndetail: Access Denied. (request id R1)\nhint: "),
            "{text}"
        );
    }

    #[test]
    fn pages_are_shortened() {
        assert_eq!(
            first_line("<html><head><title>Not\n found</title>"),
            "Not found"
        );
        assert_eq!(plain("a\u{1b}[31m\tb"), "a[31m b");
        assert_eq!(plain(&"x".repeat(1000)).len(), MESSAGE_CHARS_MAX);
    }
}
