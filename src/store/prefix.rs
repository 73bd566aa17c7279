//! Prefix: where an archive is, as the operator writes it. An error never repeats what may hold a secret (a URL
//! can carry a password), so it names the scheme alone.

use crate::error::{Error, Kind, Result};
use std::fmt;
use std::path::PathBuf;

/// Where an archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// A directory of this machine, an absolute path.
    File(PathBuf),
    /// A bucket and the beginning of all keys in it, without slashes at its ends; it may be empty.
    S3 {
        /// The bucket.
        bucket: String,
        /// The beginning of all keys.
        path: String,
    },
}

impl Prefix {
    /// Reads `file:///dir`, `file://localhost/dir` (as WAL-E writes it) or `s3://bucket/path`. Nothing is
    /// percent-decoded. Everything else is `Kind::Config`.
    pub fn parse(text: &str) -> Result<Prefix> {
        if text.chars().any(char::is_control) {
            return Err(config("the prefix holds a control character")
                .hint("Look for a line end that was copied along."));
        }
        match text.split_once("://") {
            Some(("file", rest)) => file(rest),
            Some(("s3", rest)) => s3(rest),
            Some(("sftp", _)) => {
                Err(config("sftp:// is not in this release").hint("Use a file:// or s3:// prefix."))
            }
            Some((scheme, _)) => Err(config(format!("unknown prefix scheme \"{scheme}://\""))
                .hint("Write file:///directory or s3://bucket/path.")),
            None => Err(config("the prefix has no scheme")
                .hint("Write file:///directory or s3://bucket/path.")),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix::File(path) => write!(f, "file://{}", path.display()),
            Prefix::S3 { bucket, path } if path.is_empty() => write!(f, "s3://{bucket}"),
            Prefix::S3 { bucket, path } => write!(f, "s3://{bucket}/{path}"),
        }
    }
}

fn file(rest: &str) -> Result<Prefix> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(
            config("a file:// prefix needs an absolute path on this machine")
                .hint("Write file:///directory, with three slashes."),
        );
    }
    // An empty variable in a script ("file://$ARCHIVE/") would make an archive of the whole machine.
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return Err(config("the root directory cannot be an archive")
            .hint("Name a directory of its own, as in file:///srv/archive."));
    }
    if trimmed.split('/').any(|part| part == "." || part == "..") {
        return Err(
            config("the path of a file:// prefix has a part \".\" or \"..\"")
                .hint("Write the path without them, so that one archive has one name."),
        );
    }
    Ok(Prefix::File(PathBuf::from(trimmed)))
}

fn s3(rest: &str) -> Result<Prefix> {
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.is_empty() || !bucket.chars().all(fine) {
        return Err(config("an s3:// prefix needs the name of a bucket")
            .detail("A name has letters, digits, dots, hyphens and underscores.")
            .hint("Write s3://bucket/path; keys and endpoint are settings of their own."));
    }
    let path = path.trim_matches('/');
    // Proxies and servers fold such parts, and then two names mean one object or none.
    let folded = |part: &str| part.is_empty() || part == "." || part == "..";
    if !path.is_empty() && path.split('/').any(folded) {
        return Err(
            config("the path of an s3:// prefix has an empty part, \".\" or \"..\"")
                .hint("Write s3://bucket/path with single slashes."),
        );
    }
    Ok(Prefix::S3 {
        bucket: bucket.to_string(),
        path: path.to_string(),
    })
}

fn config(message: impl Into<String>) -> Error {
    Error::new(Kind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_are_read() {
        for (text, shown) in [
            ("file:///srv/archive", "file:///srv/archive"),
            ("file:///srv/archive//", "file:///srv/archive"),
            ("file://localhost/srv/a b%20", "file:///srv/a b%20"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bu-ck.et_1/a/b c/", "s3://bu-ck.et_1/a/b c"),
        ] {
            let prefix = Prefix::parse(text).unwrap();
            assert_eq!(prefix.to_string(), shown);
            assert_eq!(Prefix::parse(shown).unwrap(), prefix);
        }
        assert_eq!(
            Prefix::parse("s3://b/p/q").unwrap(),
            Prefix::S3 {
                bucket: "b".into(),
                path: "p/q".into()
            }
        );
    }

    #[test]
    fn prefixes_that_are_refused_without_telling_a_secret() {
        for text in [
            "",
            "/srv/archive",
            "file://srv/archive",
            "file://",
            "file:///",
            "file:///srv/../etc",
            "file://localhost",
            "file:///srv\n",
            "s3://",
            "s3:///path",
            "s3://key:hunter2@bucket/path",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "sftp://user:hunter2@host/dir",
            "gs://hunter2/x",
            "S3://bucket",
        ] {
            let error = Prefix::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(error.hint_text().is_some(), "{text}");
        }
    }
}
