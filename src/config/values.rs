//! Texts to values: durations, sizes, words, and the other tools' ways of writing them. Pure; errors are the end
//! of a sentence that begins with the name of the setting.

use super::settings::{BOOLEAN, Setting, Unit};
use crate::limits;
use std::time::Duration;

/// Checks a text against the unit of its setting.
pub fn check(setting: &Setting, text: &str) -> Result<(), String> {
    match setting.unit {
        Unit::Text | Unit::Path if text.contains('\0') => Err("contains a zero byte".into()),
        Unit::Text | Unit::Path => Ok(()),
        Unit::Url => url(text),
        Unit::Count(low, high) => count(text, low, high).map(drop),
        Unit::Duration => duration(text).map(drop),
        Unit::Bytes => bytes(text).map(drop),
        Unit::Word(words) => word(text, words).map(drop),
        Unit::Words(words) => text
            .split(',')
            .try_for_each(|part| word(part.trim(), words).map(drop)),
    }
}

/// A URL of a server. User and password would end up in logs.
fn url(text: &str) -> Result<(), String> {
    match text.split_once("://") {
        Some(("http" | "https", "")) => Err("names no host".into()),
        Some(("http" | "https", rest)) if rest.contains('@') => {
            Err("holds a user or password, which it must not".into())
        }
        Some(("http" | "https", _)) => Ok(()),
        _ => Err("is neither http:// nor https://".into()),
    }
}

/// A whole number within `low..=high`.
pub fn count(text: &str, low: i64, high: i64) -> Result<i64, String> {
    let number: i64 = text.trim().parse().map_err(|_| "is not a count")?;
    if (low..=high).contains(&number) {
        Ok(number)
    } else {
        Err(format!("is not between {low} and {high}"))
    }
}

/// A number with `ms s min h d`; without a unit, seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text).ok_or("is not a duration")?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("is not a duration (units: ms s min h d)".into()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(|| "is too long".into())
}

/// A number of bytes, with K, M, G or T as powers of 1024 (`10M`, `10MB` and `10MiB` are the same), and perhaps
/// `/s` at the end of a rate.
pub fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let text = text.strip_suffix("/s").unwrap_or(text);
    let (number, unit) = number_and_unit(text).ok_or("is not a size")?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("is not a size (units: K M G T)".into()),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "is too large".into())
}

/// Digits, then letters.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

/// One of `words`, letter case aside; gives it back as the table spells it.
pub fn word(text: &str, words: &[&'static str]) -> Result<&'static str, String> {
    words
        .iter()
        .find(|w| w.eq_ignore_ascii_case(text.trim()))
        .copied()
        .ok_or_else(|| format!("is none of {}", words.join(", ")))
}

/// Yes or no.
pub fn boolean(text: &str) -> Result<bool, String> {
    word(text, BOOLEAN).map(|w| matches!(w, "true" | "on" | "yes" | "1"))
}

/// What a text under another tool's name means for the setting `key`; `None` if it says nothing about it.
pub fn translate(key: &str, name: &str, whole: &str) -> Result<Option<String>, String> {
    let text = whole.trim();
    Ok(Some(match (key, name) {
        ("prefix", "WALG_FILE_PREFIX") if text.starts_with('/') => format!("file://{text}"),
        ("prefix", "WALG_SSH_PREFIX") => match text.strip_prefix("ssh://") {
            Some(rest) => format!("sftp://{rest}"),
            None => text.to_string(),
        },
        ("s3.endpoint", "WALE_S3_ENDPOINT") => wale_endpoint(text)?.0,
        ("s3.addressing", "WALE_S3_ENDPOINT") => match wale_endpoint(text)?.1 {
            Some(addressing) => addressing.to_string(),
            None => return Ok(None),
        },
        ("s3.addressing", "AWS_S3_FORCE_PATH_STYLE") => {
            (if boolean(text)? { "path" } else { "auto" }).to_string()
        }
        ("retry.timeout", "WALE_RETRIES") => {
            let pauses = time_of_tries(count(text, 0, 10_000)?);
            format!("{}ms", pauses.as_millis())
        }
        // Untouched: a password may end with a blank.
        _ => whole.to_string(),
    }))
}

/// WAL-E's `https+path://host:port` as a URL and an addressing. A plain URL says nothing about the addressing.
fn wale_endpoint(text: &str) -> Result<(String, Option<&'static str>), String> {
    let (scheme, rest) = text.split_once("://").ok_or("is not a URL")?;
    let (protocol, style) = match scheme.split_once('+') {
        None => (scheme, None),
        Some((protocol, "path")) => (protocol, Some("path")),
        Some((protocol, "virtualhost" | "subdomain")) => (protocol, Some("virtual")),
        Some((_, _)) => {
            return Err("has a calling format that is none of path, virtualhost, subdomain".into());
        }
    };
    if !matches!(protocol, "http" | "https") {
        return Err("is neither http nor https".into());
    }
    Ok((format!("{protocol}://{rest}"), style))
}

/// How long that many tries last with the pauses of `limits`.
fn time_of_tries(tries: i64) -> Duration {
    let mut pause = limits::RETRY_PAUSE_FIRST;
    let mut total = Duration::ZERO;
    for _ in 0..tries {
        total += pause;
        pause = (pause * 2).min(limits::RETRY_PAUSE_MAX);
    }
    total
}

/// The candidate that differs least from `name`, if it is near enough to be what was meant.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.len() / 3 + 1;
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance (Levenshtein), letter case aside, `-` and `_` the same; rows of the table, one at a time.
fn distance(a: &str, b: &str) -> usize {
    let fold = |c: u8| match c.to_ascii_lowercase() {
        b'_' => b'-',
        other => other,
    };
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(fold(x) != fold(y));
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let good = [
            ("30", 30_000),
            ("30s", 30_000),
            (" 2 min ", 120_000),
            ("250ms", 250),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ];
        for (text, milliseconds) in good {
            let expected = Duration::from_millis(milliseconds);
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "s",
            "1.5s",
            "-1",
            "10 minutes",
            "1h30min",
            "99999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("123", 123),
            ("10k", 10 << 10),
            ("10MB", 10 << 20),
            ("10 MiB/s", 10 << 20),
            ("2G", 2 << 30),
        ];
        for (text, expected) in good {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "1.5M", "-1", "1X", "99999999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_tools_words() {
        let t = |key, name, text| translate(key, name, text);
        let some = |text: &str| Ok(Some(text.to_string()));
        let endpoint = "https+path://minio.example:9000";
        assert_eq!(
            t("s3.endpoint", "WALE_S3_ENDPOINT", endpoint),
            some("https://minio.example:9000")
        );
        assert_eq!(
            t("s3.addressing", "WALE_S3_ENDPOINT", endpoint),
            some("path")
        );
        assert_eq!(
            t("s3.addressing", "WALE_S3_ENDPOINT", "http+virtualhost://h"),
            some("virtual")
        );
        assert_eq!(t("s3.addressing", "WALE_S3_ENDPOINT", "http://h"), Ok(None));
        assert!(t("s3.endpoint", "WALE_S3_ENDPOINT", "ftp+path://h").is_err());
        assert!(t("s3.endpoint", "WALE_S3_ENDPOINT", "http+funny://h").is_err());
        assert_eq!(
            t("s3.addressing", "AWS_S3_FORCE_PATH_STYLE", "true"),
            some("path")
        );
        assert_eq!(
            t("s3.addressing", "AWS_S3_FORCE_PATH_STYLE", "0"),
            some("auto")
        );
        assert_eq!(t("prefix", "WALG_FILE_PREFIX", "/a"), some("file:///a"));
        assert_eq!(
            t("prefix", "WALG_SSH_PREFIX", "ssh://h/a"),
            some("sftp://h/a")
        );
        assert_eq!(t("retry.timeout", "WALE_RETRIES", "3"), some("700ms"));
        assert!(t("retry.timeout", "WALE_RETRIES", "often").is_err());
    }

    #[test]
    fn nearest_name() {
        let names = [
            "SEAWALL_PREFIX",
            "SEAWALL_PREFETCH",
            "SEAWALL_UPLOAD_THREADS",
        ];
        let near = |text| nearest(text, names.into_iter());
        assert_eq!(near("SEAWALL_PERFIX"), Some("SEAWALL_PREFIX"));
        assert_eq!(
            near("SEAWALL_UPLOAD_THREAD"),
            Some("SEAWALL_UPLOAD_THREADS")
        );
        assert_eq!(near("QQQ"), None);
        assert_eq!(distance("upload_threads", "upload-threads"), 0);
        assert_eq!(distance("", "abc"), 3);
    }
}
