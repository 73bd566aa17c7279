//! S3 and what speaks like it. Every request is signed in its header and carries its length; every object carries
//! its CRC-32C; no acknowledgement of a write is believed until a HEAD shows the object (proxies that say 200 and
//! store nothing exist).
//!
//! * A key is missing only by a 404 with the code `NoSuchKey`; a HEAD has no body, so its 404 is asked again as GET.
//! * `If-None-Match: *` is sent for `When::Absent` but believed only where `Options::conditional_put` says that a
//!   probe has shown it to work.
//! * Bodies are borrowed and streamed: memory does not grow with objects.

mod credentials;
mod endpoint;
mod error;
mod http;
mod profile;
#[cfg(test)]
mod script;
mod sign;
#[cfg(test)]
mod tests;
mod upload;
mod xml;

pub use credentials::{Secret, Sources};
pub use endpoint::Addressing;

use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::codec::digest;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::pg::timestamp::Timestamp;
use credentials::{Credentials, Provider};
use endpoint::Endpoint;
use error::Refusal;
use http::{Answer, BodyReader, Call, Http, HttpOptions};
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How to use S3. `Options::default()` is AWS in us-east-1.
#[derive(Clone)]
pub struct Options {
    /// `https://host[:port]`; AWS if none.
    pub endpoint: Option<String>,
    /// Region, also of stores that do not care.
    pub region: String,
    /// Where the bucket's name stands.
    pub addressing: Addressing,
    /// PEM file of the only trusted CAs; the system's if none.
    pub ca_file: Option<PathBuf>,
    /// Where the system's certificates are, if not in the usual place (SSL_CERT_FILE, SSL_CERT_DIR).
    pub system_certs_file: Option<PathBuf>,
    /// The same as a directory.
    pub system_certs_dir: Option<PathBuf>,
    /// `x-amz-storage-class` of new objects.
    pub storage_class: Option<String>,
    /// `x-amz-server-side-encryption` of new objects: `AES256`, `aws:kms`.
    pub sse: Option<String>,
    /// The KMS key, for `aws:kms`.
    pub sse_kms_key: Option<String>,
    /// How long a request may make no progress.
    pub request_timeout: Duration,
    /// How long resolving a name may take, and connecting.
    pub connect_timeout: Duration,
    /// `http://[user:password@]host:port`.
    pub proxy: Option<String>,
    /// Threads that use this store: so many connections are kept.
    pub threads: usize,
    /// Where credentials come from.
    pub credentials: Sources,
    /// What a probe of `If-None-Match: *` has shown: honoured, or ignored (then it is not sent); `None` is unknown.
    pub conditional_put: Option<bool>,
    /// Whether checksum headers are sent and asked for. Off only for stores that refuse them.
    pub checksums: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoint: None,
            region: "us-east-1".to_string(),
            addressing: Addressing::Auto,
            ca_file: None,
            system_certs_file: None,
            system_certs_dir: None,
            storage_class: None,
            sse: None,
            sse_kms_key: None,
            request_timeout: Duration::from_secs(30),
            connect_timeout: limits::CONNECT_TIMEOUT,
            proxy: None,
            threads: 2,
            credentials: Sources::default(),
            conditional_put: None,
            checksums: true,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy may hold a password, the endpoint by mistake too.
        f.debug_struct("Options")
            .field("region", &self.region)
            .field("addressing", &self.addressing)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// A bucket, or the part of one below a path.
pub struct S3 {
    client: Arc<Client>,
}

impl S3 {
    /// The store of `s3://bucket/path`. Asks nobody yet.
    pub fn new(bucket: &str, path: &str, options: &Options) -> Result<S3> {
        let endpoint = Endpoint::new(
            options.endpoint.as_deref(),
            &options.region,
            options.addressing,
            bucket,
        )?;
        let http = Http::new(HttpOptions {
            request_timeout: options.request_timeout,
            connect_timeout: options.connect_timeout,
            proxy: options.proxy.clone(),
            ca_file: options.ca_file.clone(),
            system_certs_file: options.system_certs_file.clone(),
            system_certs_dir: options.system_certs_dir.clone(),
            connections: options.threads,
        })?;
        let path = path.trim_matches('/');
        let base = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let client = Client {
            http,
            endpoint,
            credentials: Provider::new(options.credentials.clone(), &options.region),
            location: format!("s3://{bucket}/{path}")
                .trim_end_matches('/')
                .to_string(),
            base,
            options: options.clone(),
        };
        Ok(S3 {
            client: Arc::new(client),
        })
    }
}

/// What all requests share; uploads hold it too.
struct Client {
    http: Http,
    endpoint: Endpoint,
    credentials: Provider,
    location: String,
    /// The path of the prefix with its final slash, or nothing.
    base: String,
    options: Options,
}

/// One request, before it is signed. A key is relative to the prefix; none means the bucket.
struct Ask<'a> {
    method: &'static str,
    key: Option<&'a Key>,
    query: &'a [(&'a str, &'a str)],
    headers: Vec<(&'static str, String)>,
    body: Option<&'a [u8]>,
}

impl<'a> Ask<'a> {
    fn of(method: &'static str, key: &'a Key) -> Ask<'a> {
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
    fn doing(&self, ask: &Ask<'_>) -> String {
        let slash = if ask.key.is_some() { "/" } else { "" };
        let key = ask.key.map_or("", Key::as_str);
        format!("{} {}{slash}{key}", ask.method, self.location)
    }

    /// Sends a request; any status is an answer.
    fn ask(&self, ask: &Ask<'_>) -> Result<Answer> {
        let now = now();
        let credentials = self.credentials.get(&self.http, now)?;
        self.send(ask, &credentials, now)
    }

    /// Sends a request; anything but success is an error. Credentials that ended early are renewed once.
    fn demand(&self, ask: &Ask<'_>) -> std::result::Result<Answer, Failure> {
        let now = now();
        let used = self.credentials.get(&self.http, now)?;
        let answer = self.send(ask, &used, now)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let refusal = Refusal::read(answer);
        if !(refusal.is_expired() && self.credentials.forget(&used)) {
            return Err(Failure::Refused(refusal));
        }
        let answer = self.ask(ask)?;
        match (200..300).contains(&answer.status) {
            true => Ok(answer),
            false => Err(Failure::Refused(Refusal::read(answer))),
        }
    }

    /// Like `demand`, with the error made.
    fn want(&self, ask: &Ask<'_>) -> Result<Answer> {
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
        })
    }

    /// Headers that say how a new object is kept.
    fn keeping(&self) -> Vec<(&'static str, String)> {
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
    fn condition(&self, when: When) -> Option<(&'static str, String)> {
        let asked = when == When::Absent && self.options.conditional_put != Some(false);
        asked.then(|| ("if-none-match", "*".to_string()))
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        let crc32c = crc32c::crc32c(bytes);
        let mut ask = Ask::of("PUT", key);
        ask.body = Some(bytes);
        ask.headers = self.keeping();
        ask.headers.extend(self.condition(when));
        if self.options.checksums {
            ask.headers
                .push(("x-amz-checksum-crc32c", crc_text(crc32c)));
        }
        // The body of the answer says nothing; reading it gives the connection back.
        self.want(&ask)?.text(limits::ERROR_BODY_BYTES_MAX)?;
        self.verify(key, bytes.len() as u64, Some(crc32c))
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let mut ask = Ask::of("HEAD", key);
        if self.options.checksums {
            ask.headers
                .push(("x-amz-checksum-mode", "ENABLED".to_string()));
        }
        let answer = self.ask(&ask)?;
        let doing = self.doing(&ask);
        match answer.status {
            200 => {
                let size = answer.length();
                check_object(&answer, &doing)?;
                let size = size.ok_or_else(|| error::not_s3(200, &doing, "it tells no length"))?;
                Ok(Some(info(key, size, &answer)))
            }
            408 | 429 | 500..=599 => Err(Refusal::read(answer).error(&doing)),
            _ if answer.header("x-amz-delete-marker") == Some("true") => {
                Err(Refusal::read(answer).error(&doing))
            }
            _ => self.ask_again(key),
        }
    }

    /// What a HEAD could not say for want of a body, asked as GET of one byte.
    fn ask_again(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let mut ask = Ask::of("GET", key);
        ask.headers.push(("range", "bytes=0-0".to_string()));
        let doing = self.doing(&ask);
        match self.demand(&ask) {
            Ok(answer) => {
                check_object(&answer, &doing)?;
                let total = content_range(&answer).map(|range| range.total);
                let size = total.or(answer.length().filter(|_| answer.status == 200));
                let size =
                    size.ok_or_else(|| error::not_s3(answer.status, &doing, "it tells no length"))?;
                Ok(Some(info(key, size, &answer)))
            }
            Err(Failure::Refused(refusal)) if refusal.is_missing_key() => Ok(None),
            Err(Failure::Refused(refusal)) if refusal.status == 416 => Ok(Some(ObjectInfo {
                key: key.clone(),
                size: 0,
                modified: Timestamp::default(),
                crc32c: None,
            })),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Believes a write only when the object shows itself, with its size and, where it is told, its checksum.
    fn verify(&self, key: &Key, size: u64, crc32c: Option<u32>) -> Result<()> {
        let lie = |what: String| {
            Error::new(
                Kind::Unavailable,
                format!("the store acknowledged {}/{key} but {what}", self.location),
            )
            .hint("Something between answers in place of the store, or the store loses writes: do not trust it.")
        };
        let Some(found) = self.head(key)? else {
            return Err(lie("does not have it".to_string()));
        };
        if found.size != size {
            return Err(lie(format!("has {} bytes of {size}", found.size)));
        }
        match (found.crc32c, crc32c) {
            (Some(found), Some(sent)) if found != sent => Err(lie(format!(
                "has other bytes: CRC-32C {found:08x}, not {sent:08x}"
            ))),
            _ => Ok(()),
        }
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        let mut ask = Ask::of("GET", key);
        if offset > 0 {
            ask.headers.push(("range", format!("bytes={offset}-")));
        }
        let doing = self.doing(&ask);
        match self.demand(&ask) {
            Ok(answer) => self.open(key, offset, answer, &doing),
            Err(Failure::Refused(refusal)) if refusal.status == 416 && offset > 0 => {
                self.open_at_end(key, offset, &doing)
            }
            Err(Failure::Refused(refusal)) => Err(refusal.error_of_key(&doing)),
            Err(failure) => Err(failure.error(&doing)),
        }
    }

    /// Finds out which bytes an answer holds: some servers send a range with status 200, some ignore the wish.
    fn open(&self, key: &Key, offset: u64, answer: Answer, doing: &str) -> Result<Body> {
        check_object(&answer, doing)?;
        let (size, skip) = match (content_range(&answer), answer.length()) {
            (Some(range), _) if range.start == offset && range.end + 1 == range.total => {
                (range.total, 0)
            }
            (Some(_), _) => {
                return Err(error::not_s3(
                    answer.status,
                    doing,
                    "it is another range than asked for",
                ));
            }
            (None, Some(length)) if offset == 0 => (length, 0),
            (None, length) => self.guess_range(key, offset, length, doing)?,
        };
        let version = answer.header("etag").map(str::to_string);
        let mut reader = ObjectReader {
            left: size - offset + skip,
            inner: answer.into_reader(),
            doing: doing.to_string(),
        };
        if skip > 0 {
            let skipped = std::io::copy(&mut (&mut reader).take(skip), &mut std::io::sink());
            skipped.map_err(|e| crate::error::from_io("could not skip to the offset", e))?;
        }
        Ok(Body {
            size,
            version,
            reader: Box::new(reader),
        })
    }

    /// Size and bytes to skip of an answer that does not say which bytes it holds.
    fn guess_range(
        &self,
        key: &Key,
        offset: u64,
        length: Option<u64>,
        doing: &str,
    ) -> Result<(u64, u64)> {
        let size = match self.head(key)? {
            Some(info) => info.size,
            None => return Err(error::not_s3(200, doing, "HEAD does not know the object")),
        };
        match length {
            _ if offset > size => Err(beyond(key, offset, size)),
            Some(length) if length == size => Ok((size, offset)),
            Some(length) if length == size - offset => Ok((size, 0)),
            None => Ok((size, offset)),
            Some(_) => Err(error::not_s3(
                200,
                doing,
                "its length fits neither the object nor the range",
            )),
        }
    }

    fn open_at_end(&self, key: &Key, offset: u64, doing: &str) -> Result<Body> {
        match self.head(key)? {
            Some(info) if info.size == offset => Ok(Body {
                size: offset,
                version: None,
                reader: Box::new(std::io::empty()),
            }),
            Some(info) => Err(beyond(key, offset, info.size)),
            None => Err(error::not_s3(416, doing, "HEAD does not know the object")),
        }
    }

    fn list_page(&self, prefix: &str, after: &str, token: Option<&str>) -> Result<xml::ListPage> {
        let page_keys = limits::LIST_PAGE_KEYS.to_string();
        let mut query = vec![
            ("list-type", "2"),
            ("encoding-type", "url"),
            ("max-keys", page_keys.as_str()),
            ("prefix", prefix),
        ];
        match token {
            Some(token) => query.push(("continuation-token", token)),
            None if !after.is_empty() => query.push(("start-after", after)),
            None => {}
        }
        let ask = Ask {
            method: "GET",
            key: None,
            query: &query,
            headers: Vec::new(),
            body: None,
        };
        let doing = format!("LIST {}", self.location);
        let answer = self.demand(&ask).map_err(|f| f.error(&doing))?;
        let status = answer.status;
        let text = answer.text(limits::LIST_PAGE_BYTES_MAX)?;
        xml::list_page(&text).map_err(|reason| error::not_s3(status, &doing, &reason))
    }
}

/// Why a request failed: the store answered with a refusal, or nobody answered.
enum Failure {
    Refused(Refusal),
    Lost(Error),
}

impl Failure {
    fn error(self, doing: &str) -> Error {
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

impl Store for S3 {
    fn location(&self) -> String {
        self.client.location.clone()
    }

    fn features(&self) -> Features {
        Features {
            atomic_absent: self.client.options.conditional_put == Some(true),
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], when: When) -> Result<()> {
        self.client.put(key, bytes, when)
    }

    fn begin(&self, key: &Key, when: When) -> Result<Box<dyn Upload>> {
        Ok(Box::new(upload::S3Upload::begin(
            self.client.clone(),
            key.clone(),
            when,
        )?))
    }

    fn get(&self, key: &Key, offset: u64) -> Result<Body> {
        self.client.get(key, offset)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        self.client.head(key)
    }

    fn list(
        &self,
        prefix: &str,
        after: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<bool>,
    ) -> Result<()> {
        let client = &self.client;
        let whole_prefix = format!("{}{prefix}", client.base);
        let relative_after = after;
        let mut last = if after.is_empty() {
            String::new()
        } else {
            format!("{}{after}", client.base)
        };
        let mut token: Option<String> = None;
        loop {
            let page = client.list_page(&whole_prefix, &last, token.as_deref())?;
            let before = last.clone();
            for object in page.objects {
                if let Some(info) = relative(&client.base, &whole_prefix, &object)
                    && info.key.as_str() > relative_after
                {
                    if object.key <= last {
                        return Err(out_of_order(&client.location, &last, &object.key));
                    }
                    if !each(info)? {
                        return Ok(());
                    }
                }
                last = last.max(object.key);
            }
            if !page.truncated {
                return Ok(());
            }
            if last == before && (page.next.is_none() || page.next == token) {
                return Err(out_of_order(&client.location, &before, &last));
            }
            token = page.next;
        }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let ask = Ask::of("DELETE", key);
        match self.client.demand(&ask) {
            Ok(answer) => answer.text(limits::ERROR_BODY_BYTES_MAX).map(drop),
            Err(Failure::Refused(refusal)) if refusal.is_missing_key() => Ok(()),
            Err(failure) => Err(failure.error(&self.client.doing(&ask))),
        }
    }

    /// What S3 has acknowledged is durable: the object need only be there.
    fn settle(&self, key: &Key) -> Result<()> {
        match self.client.head(key)? {
            Some(_) => Ok(()),
            None => Err(Error::new(
                Kind::Missing,
                format!("{key} is not in {}", self.client.location),
            )),
        }
    }
}

/// An object's bytes, exactly as many as it has.
struct ObjectReader {
    inner: BodyReader,
    left: u64,
    doing: String,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            let message = format!(
                "the answer to {} ended {} bytes early",
                self.doing, self.left
            );
            return Err(Error::new(Kind::Transient, message).into());
        }
        self.left -= count as u64;
        if self.left == 0 {
            // Seeing the end gives the connection back to the pool. An error here no longer matters.
            let _ = self.inner.read(&mut [0]);
        }
        Ok(count)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Whether a success comes from an object: S3 always tells an ETag, and pages of gateways are HTML.
fn check_object(answer: &Answer, doing: &str) -> Result<()> {
    let page = answer
        .header("content-type")
        .is_some_and(|t| t.starts_with("text/html"));
    let reason = if answer.header("etag").is_none() {
        "it has no ETag"
    } else if page && answer.header("x-amz-request-id").is_none() {
        "it is HTML"
    } else {
        return Ok(());
    };
    Err(error::not_s3(answer.status, doing, reason))
}

fn info(key: &Key, size: u64, answer: &Answer) -> ObjectInfo {
    let modified = answer
        .header("last-modified")
        .and_then(Timestamp::http_date);
    // A checksum of checksums (composite, of uploads in pieces) says nothing that we could compare.
    let whole = answer.header("x-amz-checksum-type") != Some("COMPOSITE");
    let crc32c = answer.header("x-amz-checksum-crc32c").filter(|_| whole);
    ObjectInfo {
        key: key.clone(),
        size,
        modified: modified.unwrap_or_default(),
        crc32c: crc32c.and_then(crc_value),
    }
}

struct ContentRange {
    start: u64,
    end: u64,
    total: u64,
}

/// `Content-Range: bytes 5-9/10`.
fn content_range(answer: &Answer) -> Option<ContentRange> {
    let text = answer.header("content-range")?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let range = ContentRange {
        start: start.trim().parse().ok()?,
        end: end.trim().parse().ok()?,
        total: total.trim().parse().ok()?,
    };
    (range.start <= range.end && range.end < range.total).then_some(range)
}

fn beyond(key: &Key, offset: u64, size: u64) -> Error {
    let message = format!("{key} has {size} bytes and cannot be read from {offset}");
    Error::new(Kind::Mismatch, message)
}

fn out_of_order(location: &str, last: &str, key: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("the listing of {location} is not in order"),
    )
    .detail(format!("After {last:?} came {key:?}."))
}

/// A listed object as ours; `None` for what is not below the prefix or has a name that no object of ours has.
fn relative(base: &str, whole_prefix: &str, object: &xml::Listed) -> Option<ObjectInfo> {
    if !object.key.starts_with(whole_prefix) {
        return None;
    }
    Some(ObjectInfo {
        key: Key::new(object.key.strip_prefix(base)?).ok()?,
        size: object.size,
        modified: object.modified,
        crc32c: None,
    })
}

/// A CRC-32C as S3 writes it: base64 of its four bytes, highest first.
fn crc_text(crc32c: u32) -> String {
    digest::base64(&crc32c.to_be_bytes())
}

/// The opposite; `None` for checksums of checksums (`…-7`) and anything else.
fn crc_value(text: &str) -> Option<u32> {
    let digits = text.strip_suffix("==").filter(|d| d.len() == 6)?;
    let mut bits = 0u64;
    for byte in digits.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(digit);
    }
    u32::try_from(bits >> 4).ok()
}
