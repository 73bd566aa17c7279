//! Where requests go: the endpoint's URL, and whether the bucket stands in the path or in the host name.

use super::sign;
use crate::error::{Error, Kind, Result};

/// Where the bucket's name stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the path when an endpoint is set or the name cannot be part of a host name, else in the host.
    #[default]
    Auto,
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    Virtual,
}

/// The place of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port as in the Host header.
    pub authority: String,
    /// Encoded path before the key, with its final slash.
    base: String,
}

impl Endpoint {
    /// Works out the place of `bucket`. `url` may have WAL-E's form `https+path://host`; without it the place is
    /// AWS in `region`.
    pub fn new(
        url: Option<&str>,
        region: &str,
        addressing: Addressing,
        bucket: &str,
    ) -> Result<Endpoint> {
        let (scheme, mut authority, path, told) = match url {
            Some(url) => parse(url)?,
            None => ("https", aws_host(region), String::new(), None),
        };
        let addressing = match (addressing, told) {
            (Addressing::Auto, Some(told)) => told,
            (Addressing::Auto, None) if url.is_some() || !fits_host(bucket) => Addressing::Path,
            (Addressing::Auto, None) => Addressing::Virtual,
            (asked, _) => asked,
        };
        let base = if addressing == Addressing::Virtual {
            authority = format!("{bucket}.{authority}");
            format!("{path}/")
        } else {
            format!("{path}/{}/", sign::encode(bucket, false))
        };
        Ok(Endpoint {
            scheme,
            authority,
            base,
        })
    }

    /// The encoded path of a key of the bucket.
    pub fn key_path(&self, key: &str) -> String {
        format!("{}{}", self.base, sign::encode(key, true))
    }

    /// The encoded path of the bucket itself.
    pub fn bucket_path(&self) -> &str {
        match self.base.strip_suffix('/') {
            Some(path) if !path.is_empty() => path,
            _ => "/",
        }
    }

    /// The URL of an encoded path and query.
    pub fn url(&self, path: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}://{}{path}{mark}{query}", self.scheme, self.authority)
    }

    /// Whether TLS protects what is sent.
    pub fn is_tls(&self) -> bool {
        self.scheme == "https"
    }
}

fn aws_host(region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{china}")
}

/// Whether a bucket's name can be part of a host name that a wildcard certificate covers.
fn fits_host(bucket: &str) -> bool {
    bucket
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

type Parsed = (&'static str, String, String, Option<Addressing>);

/// Scheme, authority, path without final slash, and the addressing that WAL-E's scheme asks for.
fn parse(url: &str) -> Result<Parsed> {
    let wrong = |why: &str| {
        // The URL may hold a password: only what stands behind it is shown.
        let shown = url.rsplit('@').next().unwrap_or_default();
        Error::new(Kind::Config, format!("the s3 endpoint {shown:?} {why}"))
            .hint("Give it as https://host[:port] or http://host[:port].")
    };
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| wrong("has no scheme"))?;
    let (scheme, style) = scheme.split_once('+').unwrap_or((scheme, ""));
    let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => ("http", ":80"),
        "https" => ("https", ":443"),
        _ => return Err(wrong("is neither http nor https")),
    };
    let told = match style {
        "" => None,
        "path" => Some(Addressing::Path),
        "virtualhost" | "subdomain" => Some(Addressing::Virtual),
        _ => return Err(wrong("has an unknown style of addressing")),
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, String::new()),
    };
    if authority.contains('@') {
        return Err(wrong("holds a user; keys are given by AWS_ACCESS_KEY_ID"));
    }
    let fine = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#\\\"<>".contains(&b))
    };
    if authority.is_empty() || !fine(authority) || !fine(&path) {
        return Err(wrong("is not a URL of a host"));
    }
    // Host headers leave the default port out, and so must the signature.
    let authority = authority.strip_suffix(default_port).unwrap_or(authority);
    let path = path.trim_end_matches('/').to_string();
    Ok((scheme, authority.to_ascii_lowercase(), path, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Addressing::{Auto, Path, Virtual};

    #[test]
    fn places_of_a_bucket() {
        let rows: [(Option<&str>, &str, Addressing, &str, &str); 11] = [
            (
                None,
                "eu-west-1",
                Auto,
                "b",
                "https://b.s3.eu-west-1.amazonaws.com/k",
            ),
            (
                None,
                "eu-west-1",
                Auto,
                "a.b",
                "https://s3.eu-west-1.amazonaws.com/a.b/k",
            ),
            (
                None,
                "cn-north-1",
                Path,
                "b",
                "https://s3.cn-north-1.amazonaws.com.cn/b/k",
            ),
            (
                Some("http://minio:9000"),
                "r",
                Auto,
                "b",
                "http://minio:9000/b/k",
            ),
            (
                Some("http://minio:9000/"),
                "r",
                Virtual,
                "b",
                "http://b.minio:9000/k",
            ),
            (
                Some("https+path://host:443"),
                "r",
                Auto,
                "b",
                "https://host/b/k",
            ),
            (
                Some("http+subdomain://host:80"),
                "r",
                Auto,
                "b",
                "http://b.host/k",
            ),
            (
                Some("https+virtualhost://h"),
                "r",
                Path,
                "b",
                "https://h/b/k",
            ),
            (
                Some("https://x.example/storage/v1/s3"),
                "r",
                Auto,
                "b",
                "https://x.example/storage/v1/s3/b/k",
            ),
            (
                Some("HTTPS://Host:8443"),
                "r",
                Auto,
                "b",
                "https://host:8443/b/k",
            ),
            (
                Some("http://[::1]:9000"),
                "r",
                Auto,
                "b",
                "http://[::1]:9000/b/k",
            ),
        ];
        for (url, region, addressing, bucket, wanted) in rows {
            let endpoint = Endpoint::new(url, region, addressing, bucket).unwrap();
            assert_eq!(endpoint.url(&endpoint.key_path("k"), ""), wanted, "{url:?}");
        }
    }

    #[test]
    fn the_bucket_itself() {
        let rows = [(Path, "/b"), (Virtual, "/")];
        for (addressing, wanted) in rows {
            let endpoint = Endpoint::new(Some("http://h"), "r", addressing, "b").unwrap();
            assert_eq!(endpoint.bucket_path(), wanted);
        }
    }

    #[test]
    fn what_is_no_endpoint() {
        let rows = [
            "minio:9000",
            "ftp://h",
            "https://",
            "https://u:geheim@h",
            "https+x://h",
            "https://a b",
            "http://h/?x",
        ];
        for url in rows {
            let error = Endpoint::new(Some(url), "r", Auto, "b").unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
    }
}
