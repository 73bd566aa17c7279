//! The client below the store: signs a request, sends it, and tells a refusal from silence.

use super::Options;
use super::credentials::{Credentials, Provider};
use super::endpoint::Endpoint;
use super::error::Refusal;
use super::http::{Answer, Call, Http};
use super::sign;
use crate::codec::digest;
use crate::error::{Error, Result};
use crate::pg::timestamp::Timestamp;
use crate::store::{Key, When};
use std::time::{SystemTime, UNIX_EPOCH};

/// The header that makes a PUT create-only.
const CONDITION: &str = "if-none-match";

/// What all requests share; uploads hold it too.
pub(super) struct Client {
    pub(super) http: Http,
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Provider,
    pub(super) location: String,
    /// The path of the prefix with its final slash, or nothing.
    pub(super) base: String,
    pub(super) options: Options,
}

/// One request, before it is signed. A key is relative to the prefix; none means the bucket.
pub(super) struct Ask<'a> {
    pub(super) method: &'static str,
    pub(super) key: Option<&'a Key>,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<&'a [u8]>,
}

impl<'a> Ask<'a> {
    pub(super) fn of(method: &'static str, key: &'a Key) -> Ask<'a> {
        Ask {
            method,
            key: Some(key),
            query: &[],
            headers: Vec::new(),
            body: None,
        }
    }
}

impl Client {
    /// `GET s3://bucket/path/key`, for messages.
    pub(super) fn doing(&self, ask: &Ask<'_>) -> String {
        let slash = if ask.key.is_some() { "/" } else { "" };
        let key = ask.key.map_or("", Key::as_str);
        format!("{} {}{slash}{key}", ask.method, self.location)
    }

    /// Sends a request; any status is an answer.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer> {
        let now = now();
        let credentials = self.credentials.get(&self.http, now)?;
        self.send(ask, &credentials, now)
    }

    /// Sends a request; anything but success is an error. Credentials that ended early are renewed once.
    pub(super) fn demand(&self, ask: &Ask<'_>) -> std::result::Result<Answer, Failure> {
        let now = now();
        let used = self.credentials.get(&self.http, now)?;
        let answer = self.send(ask, &used, now)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let refusal = Refusal::read(answer)?;
        if !(refusal.is_expired() && self.credentials.forget(&used)) {
            return Err(Failure::Refused(refusal));
        }
        let answer = self.ask(ask)?;
        match (200..300).contains(&answer.status) {
            true => Ok(answer),
            false => Err(Failure::Refused(Refusal::read(answer)?)),
        }
    }

    /// Like `demand`, with the error made.
    pub(super) fn want(&self, ask: &Ask<'_>) -> Result<Answer> {
        self.demand(ask).map_err(|f| f.error(&self.doing(ask)))
    }

    fn send(&self, ask: &Ask<'_>, credentials: &Credentials, now: Timestamp) -> Result<Answer> {
        let path = match ask.key {
            Some(key) => self.endpoint.key_path(&format!("{}{key}", self.base)),
            None => self.endpoint.bucket_path().to_string(),
        };
        let query = sign::canonical_query(ask.query);
        let payload = match ask.body {
            None | Some([]) => sign::EMPTY_SHA256.to_string(),
            Some(_) if self.endpoint.is_tls() => sign::UNSIGNED_PAYLOAD.to_string(),
            Some(body) => digest::hex(&digest::sha256(body)),
        };
        let date = now.compact();
        let mut headers: Vec<(&str, &str)> = ask
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        headers.push(("x-amz-date", &date));
        headers.push(("x-amz-content-sha256", &payload));
        if let Some(token) = &credentials.session_token {
            headers.push(("x-amz-security-token", token.expose()));
        }
        headers.push(("host", &self.endpoint.authority));
        let authorization = sign::authorization(
            &sign::Signable {
                method: ask.method,
                path: &path,
                query: &query,
                headers: &headers,
                payload: &payload,
            },
            &sign::Scope {
                region: &self.options.region,
                service: "s3",
                time: now,
            },
            &credentials.access_key,
            credentials.secret_key.expose(),
        );
        headers.push(("authorization", &authorization));
        self.http.send(&Call {
            method: ask.method,
            url: &self.endpoint.url(&path, &query),
            headers: &headers,
            body: ask.body,
            local: None,
            repeatable: ask.method != "POST"
                && !ask.headers.iter().any(|(name, _)| *name == CONDITION),
        })
    }

    /// Headers that say how a new object is kept.
    pub(super) fn keeping(&self) -> Vec<(&'static str, String)> {
        let options = &self.options;
        let pairs = [
            ("x-amz-storage-class", &options.storage_class),
            ("x-amz-server-side-encryption", &options.sse),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                &options.sse_kms_key,
            ),
        ];
        let mut headers = vec![("content-type", "application/octet-stream".to_string())];
        headers.extend(
            pairs
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.clone()?))),
        );
        headers
    }

    /// The header that forbids overwriting, unless it is known to be ignored.
    pub(super) fn condition(&self, when: When) -> Option<(&'static str, String)> {
        let asked = when == When::Absent && self.options.conditional_put != Some(false);
        asked.then(|| (CONDITION, "*".to_string()))
    }
}

/// Why a request failed: the store answered with a refusal, or nobody answered.
pub(super) enum Failure {
    Refused(Refusal),
    Lost(Error),
}

impl Failure {
    pub(super) fn error(self, doing: &str) -> Error {
        match self {
            Failure::Refused(refusal) => refusal.error(doing),
            Failure::Lost(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Lost(error)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
