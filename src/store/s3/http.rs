//! HTTP for S3 and its credential services, over ureq: a pool of kept-alive connections, TLS with ring, and a
//! clock that measures silence, not duration.
//!
//! * H1 A request that makes no progress for the idle time is cut, while sending, while waiting and within the body;
//!   a slow one that moves is not.
//! * H2 A kept-alive connection that turns out dead before the first byte of an answer is replaced once, silently,
//!   if the request may be repeated.
//!   Nothing else is retried here.
//! * H3 Certificates are loaded with the first https request, not before: they cost milliseconds.
//! * H4 Nothing is taken from the environment: no proxy, unless it is given.
//! * H5 A stop ends every wait, and what fails after it is `Kind::Interrupted`.

use super::error;
use super::tcp::{Dial, Resolve};
use super::track::{Stale, Track};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::work::stop::Stop;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ureq::http;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};
use ureq::{Agent, Proxy};

/// How long a kept-alive connection may wait for its next request. Servers close after 5 to 60 s; a dead one
/// costs one more connection, so this need not be exact.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(15);

/// How to reach servers.
#[derive(Clone)]
pub struct HttpOptions {
    /// Longest silence within a request.
    pub request_timeout: Duration,
    /// Longest time for name resolution, and again for TCP and TLS together.
    pub connect_timeout: Duration,
    /// `http://[user:password@]host:port`, or none.
    pub proxy: Option<String>,
    /// PEM file whose certificates alone are trusted; the system's if none.
    pub ca_file: Option<PathBuf>,
    /// Where the system's certificates are, if not in the usual place (SSL_CERT_FILE).
    pub system_certs_file: Option<PathBuf>,
    /// The same as a directory (SSL_CERT_DIR).
    pub system_certs_dir: Option<PathBuf>,
    /// How many threads send requests: as many connections are kept.
    pub connections: usize,
    /// What ends requests under way.
    pub stop: Stop,
}

/// One request. The body is borrowed: nothing copies it.
pub struct Call<'a> {
    /// GET, PUT…
    pub method: &'a str,
    /// The whole URL, encoded.
    pub url: &'a str,
    /// Headers; Host, Content-Length and User-Agent come by themselves.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; its length is sent as Content-Length.
    pub body: Option<&'a [u8]>,
    /// For services of the own machine or host (instance metadata): no proxy, and this patience instead.
    pub local: Option<Duration>,
    /// Doing it twice has the answer of doing it once. A create-only PUT has not: the second one is refused because
    /// of the first, and whoever counts its tries must know that there were two.
    pub repeatable: bool,
}

/// The head of an answer, any status, with its body still to be read.
pub struct Answer {
    /// 200…
    pub status: u16,
    /// Headers.
    pub headers: http::HeaderMap,
    body: ureq::Body,
    origin: String,
    stop: Stop,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Content-Length, if there is one.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The body as a reader; its errors are already ours.
    pub fn into_reader(self) -> BodyReader {
        BodyReader {
            inner: self.body.into_with_config().limit(u64::MAX).reader(),
            origin: self.origin,
            stop: self.stop,
        }
    }

    /// The whole body as text, at most `max` bytes. Reading to the end gives the connection back to the pool.
    pub fn text(self, max: u64) -> Result<String> {
        let origin = self.origin.clone();
        let text = self.beginning(max + 1)?;
        if text.len() as u64 > max {
            let message = format!("{origin} answered with more than {max} bytes");
            return Err(Error::new(Kind::Unavailable, message));
        }
        Ok(text)
    }

    /// The first `max` bytes of the body, or all.
    pub fn beginning(self, max: u64) -> Result<String> {
        let mut bytes = Vec::new();
        self.into_reader()
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(|e| crate::error::from_io("could not read an answer", e))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A body being received.
pub struct BodyReader {
    inner: ureq::BodyReader<'static>,
    origin: String,
    stop: Stop,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buffer).map_err(|cause| {
            let cause = ureq::Error::from(cause);
            let failed = || error::transport(&self.origin, "while its answer was read", cause);
            self.stop.check().err().unwrap_or_else(failed).into()
        })
    }
}

/// The client. Shared by all threads.
pub struct Http {
    options: HttpOptions,
    /// Made when first needed. A mutex because making the second one can fail, which `OnceLock` cannot express.
    plain: Mutex<Option<Agent>>,
    tls: Mutex<Option<Agent>>,
}

impl Http {
    /// Checks the proxy; opens nothing and reads nothing.
    pub fn new(options: HttpOptions) -> Result<Http> {
        if let Some(proxy) = &options.proxy {
            parse_proxy(proxy)?;
        }
        Ok(Http {
            options,
            plain: Mutex::new(None),
            tls: Mutex::new(None),
        })
    }

    /// Sends a request and returns the head of the answer, whatever its status.
    pub fn send(&self, call: &Call<'_>) -> Result<Answer> {
        let agent = self.agent(call.url)?;
        let origin = origin_of(call.url).to_string();
        let failed = |cause| {
            let failed = || error::transport(&origin, "before it answered", cause);
            self.options.stop.check().err().unwrap_or_else(failed)
        };
        let mut outcome = self.try_once(&agent, call, IDLE_CONNECTION_MAX)?;
        let stale = matches!(&outcome, Err(ureq::Error::Other(cause)) if cause.is::<Stale>());
        if stale && call.repeatable {
            outcome = self.try_once(&agent, call, Duration::ZERO)?;
        }
        let (head, body) = outcome.map_err(failed)?.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            origin,
            stop: self.options.stop.clone(),
        })
    }

    fn try_once(
        &self,
        agent: &Agent,
        call: &Call<'_>,
        connection_age_max: Duration,
    ) -> Result<std::result::Result<http::Response<ureq::Body>, ureq::Error>> {
        let mut request = http::Request::builder().method(call.method).uri(call.url);
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        let refused = |cause: http::Error| {
            let what = format!("could not make a request to {}", origin_of(call.url));
            Error::new(Kind::Config, what).because(cause)
        };
        Ok(match call.body {
            Some(body) => {
                let request = request.body(body).map_err(refused)?;
                agent.run(self.configure(agent, request, call, connection_age_max))
            }
            None => {
                let request = request.body(()).map_err(refused)?;
                agent.run(self.configure(agent, request, call, connection_age_max))
            }
        })
    }

    fn configure<B: ureq::AsSendBody>(
        &self,
        agent: &Agent,
        request: http::Request<B>,
        call: &Call<'_>,
        connection_age_max: Duration,
    ) -> http::Request<B> {
        let config = agent
            .configure_request(request)
            .max_idle_age(connection_age_max);
        match call.local {
            None => config.build(),
            Some(patience) => config
                .proxy(None)
                .timeout_connect(Some(patience))
                .timeout_per_read(Some(patience))
                .timeout_per_write(Some(patience))
                .build(),
        }
    }

    fn agent(&self, url: &str) -> Result<Agent> {
        // A proxy that is itself reached by TLS needs certificates for plain targets too.
        let proxy_tls = self.options.proxy.as_deref().is_some_and(is_https);
        let tls = is_https(url) || proxy_tls;
        let slot = if tls { &self.tls } else { &self.plain };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = &*slot {
            return Ok(agent.clone());
        }
        let roots = if tls { self.roots()? } else { Vec::new() };
        Ok(slot.insert(self.new_agent(roots)?).clone())
    }

    fn new_agent(&self, roots: Vec<Certificate<'static>>) -> Result<Agent> {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let proxy = self.options.proxy.as_deref().map(parse_proxy).transpose()?;
        let idle = Some(self.options.request_timeout);
        let connections = self.options.connections.max(1);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("seawall/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .accept_encoding("identity")
            .proxy(proxy)
            .timeout_resolve(Some(self.options.connect_timeout))
            .timeout_connect(Some(self.options.connect_timeout))
            .timeout_per_read(idle)
            .timeout_per_write(idle)
            .max_idle_connections(connections * 2)
            .max_idle_connections_per_host(connections)
            .max_idle_age(IDLE_CONNECTION_MAX)
            .tls_config(tls)
            .build();
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(Dial(self.options.stop.clone()))
                .chain(RustlsConnector::default())
                .chain(Track);
        Ok(Agent::with_parts(
            config,
            connector,
            Resolve(self.options.stop.clone()),
        ))
    }

    fn roots(&self) -> Result<Vec<Certificate<'static>>> {
        if let Some(path) = &self.options.ca_file {
            return certificates_of(path);
        }
        let (file, dir) = (
            self.options.system_certs_file.as_deref(),
            self.options.system_certs_dir.as_deref(),
        );
        let found = match (file, dir) {
            (None, None) => rustls_native_certs::load_native_certs(),
            _ => rustls_native_certs::load_certs_from_paths(file, dir),
        };
        if found.certs.is_empty() {
            let error = Error::new(Kind::Config, "could not find the system's certificates")
                .hint("Install the package ca-certificates, or set SEAWALL_S3_CA_FILE.");
            return Err(match found.errors.into_iter().next() {
                Some(cause) => error.because(cause),
                None => error,
            });
        }
        for error in &found.errors {
            log::warn!("a system certificate could not be read: {error}");
        }
        Ok(found
            .certs
            .iter()
            .map(|c| Certificate::from_der(c).to_owned())
            .collect())
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy may hold a password.
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

/// `scheme://host:port` of a URL.
pub fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    match url[start..].find(['/', '?']) {
        Some(end) => &url[..start + end],
        None => url,
    }
}

fn parse_proxy(text: &str) -> Result<Proxy> {
    let known = text.starts_with("http://") || text.starts_with("https://");
    let parsed = known.then(|| Proxy::new(text).ok()).flatten();
    // The text is not shown: it may hold a password.
    parsed.ok_or_else(|| {
        Error::new(Kind::Config, "the proxy is not a URL that can be used")
            .hint("Give it as http://host:port; SOCKS is not supported.")
    })
}

/// The certificates of a PEM file.
fn certificates_of(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let bytes = disk::read_small(path).map_err(|e| e.with_kind(Kind::Config))?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(cause) => {
                let message = format!("could not read the certificates in {path:?}");
                return Err(Error::new(Kind::Config, message).because(cause));
            }
        }
    }
    if found.is_empty() {
        let message = format!("there is no certificate in {path:?}");
        return Err(Error::new(Kind::Config, message).hint("Give a PEM file of CA certificates."));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
