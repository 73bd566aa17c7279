//! Credentials for S3, from the places where AWS's tools look, in their order: given keys (environment), web
//! identity, profile (shared files), container, instance metadata (IMDSv2). The first place that is configured
//! decides; a failure there is an error and not a reason to look on, because other keys may belong to others.
//!
//! * C1 Credentials that end are renewed before they do, once for all threads; as long as the old ones hold, a
//!   failed renewal is only a warning.
//! * C2 No secret leaves this file but as a header of a signed request.

use super::http::{Answer, Call, Http};
use super::{profile, xml};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::ERROR_BODY_BYTES_MAX;
use crate::pg::timestamp::Timestamp;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Renewal begins this long before the end. AWS hands out new instance credentials at least five minutes before.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// After a failed renewal, or for files that may be rewritten at any time: when to look again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Patience with services of the own host. Elsewhere than on EC2 nobody answers at the metadata address.
const LOCAL_PATIENCE: Duration = Duration::from_secs(2);

const IMDS: &str = "http://169.254.169.254";
const CONTAINER_HOST: &str = "http://169.254.170.2";

/// Text that Debug does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// What signs a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: Secret,
    /// Session token, of temporary credentials.
    pub session_token: Option<Secret>,
    /// When they end, if that is known.
    pub expires: Option<Timestamp>,
}

/// Everything that the search looks at, collected by whoever may read the environment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// AWS_ACCESS_KEY_ID.
    pub access_key: Option<String>,
    /// AWS_SECRET_ACCESS_KEY.
    pub secret_key: Option<Secret>,
    /// AWS_SESSION_TOKEN.
    pub session_token: Option<Secret>,
    /// AWS_PROFILE; `default` if none.
    pub profile: Option<String>,
    /// AWS_SHARED_CREDENTIALS_FILE, or ~/.aws/credentials; may be absent.
    pub credentials_file: Option<PathBuf>,
    /// AWS_CONFIG_FILE, or ~/.aws/config; may be absent.
    pub config_file: Option<PathBuf>,
    /// AWS_WEB_IDENTITY_TOKEN_FILE.
    pub web_identity_token_file: Option<PathBuf>,
    /// AWS_ROLE_ARN.
    pub role_arn: Option<String>,
    /// AWS_ROLE_SESSION_NAME.
    pub role_session_name: Option<String>,
    /// AWS_ENDPOINT_URL_STS; the region's STS if none.
    pub sts_endpoint: Option<String>,
    /// AWS_CONTAINER_CREDENTIALS_RELATIVE_URI.
    pub container_relative_uri: Option<String>,
    /// AWS_CONTAINER_CREDENTIALS_FULL_URI.
    pub container_full_uri: Option<String>,
    /// AWS_CONTAINER_AUTHORIZATION_TOKEN.
    pub container_token: Option<Secret>,
    /// AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE.
    pub container_token_file: Option<PathBuf>,
    /// AWS_EC2_METADATA_SERVICE_ENDPOINT.
    pub imds_endpoint: Option<String>,
    /// AWS_EC2_METADATA_DISABLED.
    pub imds_disabled: bool,
}

/// A place where credentials come from.
#[derive(Clone, Debug)]
enum Place {
    Given(Credentials),
    WebIdentity {
        token_file: PathBuf,
        role_arn: String,
        session: String,
    },
    Profile,
    Container {
        url: String,
    },
    Instance,
}

/// Finds credentials and keeps them fresh.
pub struct Provider {
    sources: Sources,
    region: String,
    /// One thread renews while the others wait for it: they could not go on without.
    held: Mutex<Option<Held>>,
}

struct Held {
    credentials: Arc<Credentials>,
    /// When to renew; never if none.
    renew_at: Option<Timestamp>,
}

impl Provider {
    /// `region` chooses the STS endpoint.
    pub fn new(sources: Sources, region: &str) -> Provider {
        Provider {
            sources,
            region: region.to_string(),
            held: Mutex::new(None),
        }
    }

    /// Credentials that hold at `now`.
    pub fn get(&self, http: &Http, now: Timestamp) -> Result<Arc<Credentials>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*held
            && held.renew_at.is_none_or(|at| now < at)
        {
            return Ok(held.credentials.clone());
        }
        match self.find(http) {
            Ok((credentials, renewable)) => {
                let credentials = Arc::new(credentials);
                *held = Some(Held {
                    renew_at: renewable.then(|| renewal(&credentials, now)),
                    credentials: credentials.clone(),
                });
                Ok(credentials)
            }
            Err(error) => match held.as_mut() {
                Some(old) if old.credentials.expires.is_none_or(|end| now < end) => {
                    log::warn!("credentials were not renewed yet: {}", error.one_line());
                    old.renew_at = Some(later(now, LOOK_AGAIN));
                    Ok(old.credentials.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// Forgets credentials that the store calls expired. Says whether others may come: not for given keys.
    pub fn forget(&self, used: &Credentials) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_ref() {
            Some(now) if now.renew_at.is_none() => false,
            // Another thread has renewed them already.
            Some(now) if *now.credentials != *used => true,
            _ => {
                *held = None;
                true
            }
        }
    }

    /// Credentials of the first configured place, and whether they may change.
    fn find(&self, http: &Http) -> Result<(Credentials, bool)> {
        Ok(match self.place()? {
            Place::Given(credentials) => (credentials, false),
            Place::WebIdentity {
                token_file,
                role_arn,
                session,
            } => (
                self.web_identity(http, &token_file, &role_arn, &session)?,
                true,
            ),
            Place::Profile => (self.profile(http)?, true),
            Place::Container { url } => (self.container(http, &url)?, true),
            Place::Instance => (self.instance(http)?, true),
        })
    }

    fn place(&self) -> Result<Place> {
        let s = &self.sources;
        if s.access_key.is_some() || s.secret_key.is_some() {
            return Ok(Place::Given(given(s)?));
        }
        if let Some(token_file) = &s.web_identity_token_file {
            let role_arn = s.role_arn.clone().ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    "AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not",
                )
            })?;
            return Ok(Place::WebIdentity {
                token_file: token_file.clone(),
                role_arn,
                session: s
                    .role_session_name
                    .clone()
                    .unwrap_or_else(|| "seawall".into()),
            });
        }
        if s.profile.is_some() || profile::exists(s)? {
            return Ok(Place::Profile);
        }
        if let Some(path) = &s.container_relative_uri {
            let url = format!("{CONTAINER_HOST}{path}");
            return Ok(Place::Container { url });
        }
        if let Some(url) = &s.container_full_uri {
            may_hold_credentials(url)?;
            return Ok(Place::Container { url: url.clone() });
        }
        if s.imds_disabled {
            return Err(none_found("the instance metadata service is switched off"));
        }
        Ok(Place::Instance)
    }

    /// STS AssumeRoleWithWebIdentity. The token goes in the body: a URL would end in logs.
    fn web_identity(
        &self,
        http: &Http,
        file: &Path,
        role: &str,
        session: &str,
    ) -> Result<Credentials> {
        let token = read_token(file)?;
        let base = match &self.sources.sts_endpoint {
            Some(url) => url.trim_end_matches('/').to_string(),
            None if self.region.starts_with("cn-") => {
                format!("https://sts.{}.amazonaws.com.cn", self.region)
            }
            None => format!("https://sts.{}.amazonaws.com", self.region),
        };
        let form = super::sign::canonical_query(&[
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", session),
            ("WebIdentityToken", token.expose()),
        ]);
        let what = format!("AssumeRoleWithWebIdentity of {role}");
        let text = fetch(
            http,
            &what,
            &Call {
                method: "POST",
                url: &format!("{base}/"),
                headers: &[("content-type", "application/x-www-form-urlencoded")],
                body: Some(form.as_bytes()),
                local: None,
                repeatable: true,
            },
        )?;
        let role = xml::assumed_role(&text).map_err(|reason| unreadable(&what, &reason))?;
        temporary(
            &what,
            role.access_key,
            role.secret_key,
            role.session_token,
            &role.expiration,
        )
    }

    fn profile(&self, http: &Http) -> Result<Credentials> {
        match profile::read(&self.sources)? {
            profile::Found::Keys(credentials) => Ok(credentials),
            profile::Found::WebIdentity {
                token_file,
                role_arn,
                session,
            } => self.web_identity(
                http,
                &token_file,
                &role_arn,
                session.as_deref().unwrap_or("seawall"),
            ),
        }
    }

    /// The endpoint that ECS and EKS offer to a container.
    fn container(&self, http: &Http, url: &str) -> Result<Credentials> {
        let token = match (
            &self.sources.container_token_file,
            &self.sources.container_token,
        ) {
            (Some(file), _) => Some(read_token(file)?),
            (None, token) => token.clone(),
        };
        let mut headers = Vec::new();
        if let Some(token) = &token {
            headers.push(("authorization", token.expose()));
        }
        let what = "the container's credentials";
        let text = fetch(http, what, &local("GET", url, &headers, None))?;
        from_json(what, &text)
    }

    /// Instance metadata, version 2: a session token first, then the role, then its keys.
    fn instance(&self, http: &Http) -> Result<Credentials> {
        let base = self.sources.imds_endpoint.as_deref().unwrap_or(IMDS);
        let base = base.trim_end_matches('/');
        let what = "the instance metadata service";
        let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let url = format!("{base}/latest/api/token");
        let answer = http
            .send(&local("PUT", &url, &ttl, Some(b"")))
            .map_err(|error| self.no_instance(error))?;
        let token = accept(what, answer)?;
        let headers = [("x-aws-ec2-metadata-token", token.trim())];
        let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
        let role = fetch(http, what, &local("GET", &roles, &headers, None))?;
        let role = role.lines().next().unwrap_or_default().trim();
        if role.is_empty() {
            return Err(none_found("the instance has no role"));
        }
        let url = format!("{roles}{}", super::sign::encode(role, false));
        let text = fetch(http, what, &local("GET", &url, &headers, None))?;
        from_json(what, &text)
    }

    /// Where nobody answers there is no instance metadata, unless its address was given.
    fn no_instance(&self, error: Error) -> Error {
        match self.sources.imds_endpoint {
            Some(_) => error,
            None => none_found("nothing answers as instance metadata service").because(error),
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(by.as_micros() as i64))
}

/// When credentials are looked at again: before their end, and if that is near already, soon.
fn renewal(credentials: &Credentials, now: Timestamp) -> Timestamp {
    let soon = later(now, LOOK_AGAIN);
    match credentials.expires {
        Some(end) => soon.max(Timestamp(
            end.0.saturating_sub(RENEW_BEFORE.as_micros() as i64),
        )),
        None => soon,
    }
}

fn given(s: &Sources) -> Result<Credentials> {
    let missing = |set: &str, unset: &str| {
        Error::new(Kind::Config, format!("{set} is set, but {unset} is not"))
    };
    match (&s.access_key, &s.secret_key) {
        (Some(access_key), Some(secret_key)) => Ok(Credentials {
            access_key: access_key.trim().to_string(),
            secret_key: Secret::new(secret_key.expose().trim()),
            session_token: s.session_token.clone(),
            expires: None,
        }),
        (Some(_), None) => Err(missing("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        _ => Err(missing("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")),
    }
}

fn none_found(reason: &str) -> Error {
    Error::new(Kind::Config, "no credentials for s3 were found")
        .detail(format!(
            "There are no AWS_ACCESS_KEY_ID, web identity, profile or container credentials, and {reason}."
        ))
        .hint("Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.")
}

/// A full URI may only lead to the own host or be encrypted: the answer holds keys.
fn may_hold_credentials(url: &str) -> Result<()> {
    const HOSTS: [&str; 6] = [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "169.254.170.2",
        "169.254.170.23",
        "[fd00:ec2::23]",
    ];
    let rest = url.strip_prefix("http://");
    let own = rest.is_some_and(|rest| {
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        HOSTS.iter().any(|host| {
            authority
                .strip_prefix(host)
                .is_some_and(|port| port.is_empty() || port.starts_with(':'))
        })
    });
    if own || url.starts_with("https://") {
        return Ok(());
    }
    let message = "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor an address of this host";
    Err(Error::new(Kind::Config, message))
}

fn read_token(file: &Path) -> Result<Secret> {
    let bytes = disk::read_small(file).map_err(|e| {
        e.with_kind(Kind::Config)
            .context("could not read the token for credentials")
    })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::new(Kind::Config, format!("{file:?} does not hold a token")))?;
    Ok(Secret::new(text.trim()))
}

fn local<'a>(
    method: &'a str,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Option<&'a [u8]>,
) -> Call<'a> {
    Call {
        method,
        url,
        headers,
        body,
        local: Some(LOCAL_PATIENCE),
        repeatable: true,
    }
}

fn fetch(http: &Http, what: &str, call: &Call<'_>) -> Result<String> {
    accept(what, http.send(call)?)
}

/// The body of a 200. Of any other answer only S3's kind of error is repeated: the rest may hold keys.
fn accept(what: &str, answer: Answer) -> Result<String> {
    let status = answer.status;
    let text = answer.text(ERROR_BODY_BYTES_MAX)?;
    if status == 200 {
        return Ok(text);
    }
    let error = xml::error(&text);
    let code = error
        .as_ref()
        .map_or(String::new(), |e| format!(" {}", e.code));
    let busy = matches!(status, 408 | 429 | 500..=599)
        || matches!(
            error.as_ref().map(|e| e.code.as_str()),
            Some("IDPCommunicationError" | "Throttling")
        );
    let kind = if busy { Kind::Transient } else { Kind::Denied };
    let refused = Error::new(kind, format!("{what} answered {status}{code}"))
        .hint("Check the role, its trust policy and that it is attached here.");
    Err(match error {
        Some(error) if !error.message.is_empty() => refused.detail(error.message),
        _ => refused,
    })
}

fn unreadable(what: &str, reason: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("could not read the answer of {what}"),
    )
    .detail(format!("{reason}."))
}

/// The JSON form that container and instance services share.
fn from_json(what: &str, text: &str) -> Result<Credentials> {
    // The parser's message is not repeated: it may quote the text.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|_| unreadable(what, "it is not JSON"))?;
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_string();
    if let Some(code) = value["Code"].as_str()
        && code != "Success"
    {
        let message = format!("{what} has no credentials: {code}");
        return Err(Error::new(Kind::Denied, message));
    }
    temporary(
        what,
        field("AccessKeyId"),
        field("SecretAccessKey"),
        field("Token"),
        &field("Expiration"),
    )
}

fn temporary(
    what: &str,
    access: String,
    secret: String,
    token: String,
    end: &str,
) -> Result<Credentials> {
    if access.is_empty() || secret.is_empty() {
        return Err(unreadable(what, "it holds no credentials"));
    }
    let expires = match end {
        "" => None,
        end => Some(
            Timestamp::parse_rfc3339(end)
                .map_err(|_| unreadable(what, "it names no readable expiration"))?,
        ),
    };
    Ok(Credentials {
        access_key: access,
        secret_key: Secret::new(secret),
        session_token: (!token.is_empty()).then(|| Secret::new(token)),
        expires,
    })
}

#[cfg(test)]
mod tests;
