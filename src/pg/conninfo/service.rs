//! Service files: named groups of settings (`~/.pg_service.conf`, `pg_service.conf` of the system).

use super::parse::Pairs;
use crate::error::{Error, Kind, Result};
use std::path::Path;

/// The settings of group `[service]`, or `None` if the file has no such group. Groups of other names are not
/// looked into.
pub(super) fn group(bytes: &[u8], service: &str, file: &Path) -> Result<Option<Pairs>> {
    let text = String::from_utf8_lossy(bytes);
    let mut found: Option<Pairs> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let ours = name.strip_prefix(service);
            found = ours
                .is_some_and(|rest| rest.starts_with(']'))
                .then(Pairs::new);
            continue;
        }
        if let Some(pairs) = &mut found {
            let pair = setting(line).map_err(|detail| {
                let place = format!("Line {} {detail}", index + 1);
                Error::new(
                    Kind::Config,
                    format!("service file \"{}\" cannot be used", file.display()),
                )
                .detail(place)
            })?;
            pairs.push(pair);
        }
    }
    Ok(found)
}

/// `key=value`; the value goes to the end of the line and has no quotes.
fn setting(line: &str) -> std::result::Result<(String, String), &'static str> {
    if line.starts_with("ldap") {
        return Err("asks an LDAP server, which seawall does not do.");
    }
    match line.split_once('=') {
        Some(("service", _)) => Err("names another service, which is not allowed."),
        Some((key, value)) => Ok((key.to_string(), value.to_string())),
        None => Err("has no \"=\"."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\nbroken line that nobody asks for\n[one]\nhost = kept as it is\nport=1\n\n\
        [two]\n  host=b  \r\npassword=a=b 'c'\n# dbname=x\n[three]\nbroken\n[four]\nservice=one\n[five]\nldap://x\n";

    fn find(service: &str) -> Result<Option<Pairs>> {
        group(FILE.as_bytes(), service, Path::new("/etc/s.conf"))
    }

    #[test]
    fn finds_one_group() {
        let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
        assert_eq!(
            find("two").unwrap().unwrap(),
            [pair("host", "b"), pair("password", "a=b 'c'")]
        );
        assert_eq!(find("thre").unwrap(), None);
        assert_eq!(find("six").unwrap(), None);
    }

    #[test]
    fn a_broken_group_is_an_error_with_its_line() {
        for (service, line) in [
            ("three", "Line 12 "),
            ("four", "Line 14 "),
            ("five", "Line 16 "),
        ] {
            let error = find(service).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(line), "{error}");
        }
    }
}
