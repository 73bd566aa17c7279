//! S3 and what speaks like it. Every request is signed in its header and carries its length; every object carries
//! its CRC-32C; no acknowledgement of a write is believed until a HEAD shows the object (proxies that say 200 and
//! store nothing exist).
//!
//! * A key is missing only by a 404 with the code `NoSuchKey`; a HEAD has no body, so its 404 is asked again as GET.
//! * `If-None-Match: *` is sent for `When::Absent` but believed only where `Options::conditional_put` says that a
//!   probe has shown it to work.
//! * Bodies are borrowed and streamed: memory does not grow with objects.

mod client;
mod credentials;
mod endpoint;
mod error;
mod http;
mod object;
mod profile;
#[cfg(test)]
mod script;
mod sign;
mod tcp;
#[cfg(test)]
mod tests;
mod track;
mod upload;
mod xml;

pub use credentials::{Secret, Sources};
pub use endpoint::Addressing;

use super::{Body, Features, Key, ObjectInfo, Store, Upload, When};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::work::stop::Stop;
use client::{Ask, Client, Failure};
use credentials::Provider;
use endpoint::Endpoint;
use http::{Http, HttpOptions};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
    /// What ends requests under way.
    pub stop: Stop,
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
            stop: Stop::new(),
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
            stop: options.stop.clone(),
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
        let mut empty_pages = 0;
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
            if last != before {
                empty_pages = 0;
            } else if page.next.is_none() || page.next == token {
                return Err(out_of_order(&client.location, &before, &last));
            } else {
                empty_pages += 1;
            }
            if empty_pages == limits::LIST_EMPTY_PAGES_MAX {
                return Err(endless(&client.location, &last));
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

impl Client {
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

fn out_of_order(location: &str, last: &str, key: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("the listing of {location} is not in order"),
    )
    .detail(format!("After {last:?} came {key:?}."))
}

/// Pages without keys promise more again and again: a store may be busy with many deleted keys, or out of order.
fn endless(location: &str, last: &str) -> Error {
    let pages = limits::LIST_EMPTY_PAGES_MAX;
    Error::new(
        Kind::Transient,
        format!("the listing of {location} does not come to its end"),
    )
    .detail(format!(
        "After {last:?} came {pages} pages without a key, each of which said that there are more."
    ))
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
