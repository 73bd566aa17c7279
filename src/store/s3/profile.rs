//! Profiles of AWS's shared files: `[name]` in the credentials file, `[profile name]` in the config file.
//!
//! Keys and web identity are read. What would run a program or another login (credential_process, SSO,
//! source_profile) is refused by name, so that nobody waits for it in vain.

use super::credentials::{Credentials, Secret, Sources};
use crate::disk;
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a profile holds.
pub enum Found {
    /// Keys.
    Keys(Credentials),
    /// A role to be assumed with a token.
    WebIdentity {
        /// The token's file.
        token_file: PathBuf,
        /// The role.
        role_arn: String,
        /// Its session name.
        session: Option<String>,
    },
}

type Profile = BTreeMap<String, String>;

/// Whether the files hold the default profile (asked when none was named) with anything about credentials.
pub fn exists(sources: &Sources) -> Result<bool> {
    let about = [
        "aws_access_key_id",
        "role_arn",
        "credential_process",
        "sso_session",
        "sso_start_url",
    ];
    Ok(load(sources)?.is_some_and(|profile| about.iter().any(|key| profile.contains_key(*key))))
}

/// Reads the profile that the sources name, or the default one.
pub fn read(sources: &Sources) -> Result<Found> {
    let name = sources.profile.as_deref().unwrap_or("default");
    let wrong = |what: &str| Error::new(Kind::Config, format!("the profile {name:?} {what}"));
    let profile = load(sources)?.ok_or_else(|| {
        wrong("is in neither of the shared files").hint(
            "Check AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE; the files must be readable by this user.",
        )
    })?;
    let field = |key: &str| profile.get(key).filter(|v| !v.is_empty()).cloned();
    if let Some(access_key) = field("aws_access_key_id") {
        let secret =
            field("aws_secret_access_key").ok_or_else(|| wrong("has no aws_secret_access_key"))?;
        return Ok(Found::Keys(Credentials {
            access_key,
            secret_key: Secret::new(secret),
            session_token: field("aws_session_token").map(Secret::new),
            expires: None,
        }));
    }
    if let (Some(token_file), Some(role_arn)) =
        (field("web_identity_token_file"), field("role_arn"))
    {
        return Ok(Found::WebIdentity {
            token_file: token_file.into(),
            role_arn,
            session: field("role_session_name"),
        });
    }
    for key in [
        "credential_process",
        "source_profile",
        "credential_source",
        "sso_session",
        "sso_start_url",
    ] {
        if profile.contains_key(key) {
            return Err(wrong(&format!("uses {key}, which seawall does not know"))
                .hint("Give it keys, a web identity, or unset AWS_PROFILE."));
        }
    }
    Err(wrong("holds no credentials"))
}

/// The profile from both files; the credentials file wins. `None` if neither has it.
fn load(sources: &Sources) -> Result<Option<Profile>> {
    let name = sources.profile.as_deref().unwrap_or("default");
    let mut found: Option<Profile> = None;
    let files = [
        (sources.config_file.as_deref(), true),
        (sources.credentials_file.as_deref(), false),
    ];
    for (file, is_config) in files {
        let Some(text) = file.map(text_of).transpose()?.flatten() else {
            continue;
        };
        if let Some(profile) = section(&text, name, is_config) {
            found.get_or_insert_with(Profile::new).extend(profile);
        }
    }
    Ok(found)
}

/// The text of a file that may be absent.
fn text_of(path: &Path) -> Result<Option<String>> {
    match disk::read_small(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == Kind::Missing => Ok(None),
        Err(error) => Err(error.with_kind(Kind::Config)),
    }
}

/// The keys of one section. Indented lines are nested settings of other services.
fn section(text: &str, name: &str, is_config: bool) -> Option<Profile> {
    let mut found: Option<Profile> = None;
    let mut inside = false;
    for line in text.lines() {
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            let title = title.trim();
            let own = match title.strip_prefix("profile ") {
                Some(rest) if is_config => rest.trim().trim_matches(['"', '\'']),
                _ => title,
            };
            inside = own == name;
            if inside {
                found.get_or_insert_with(Profile::new);
            }
        } else if inside
            && !nested
            && let (Some(profile), Some((key, value))) = (found.as_mut(), line.split_once('='))
        {
            profile.insert(key.trim().to_ascii_lowercase(), value.trim().to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# ours\n[default]\naws_access_key_id = AKD\naws_secret_access_key=s/+=d\n\n\
        [ops]\naws_access_key_id=AKO\naws_secret_access_key=so\naws_session_token=to\n[half]\naws_access_key_id=x\n";
    const CONFIG: &str = "[default]\nregion=eu-west-1\n[profile pod]\nrole_arn = arn:aws:iam::1:role/r\n\
        web_identity_token_file = /t\n[profile ops]\noutput=json\n[profile run]\ncredential_process = /bin/x\n\
        [profile empty]\ns3 =\n    aws_access_key_id = nested\n";

    fn sources(dir: &Path, profile: Option<&str>) -> Sources {
        std::fs::write(dir.join("credentials"), CREDENTIALS).unwrap();
        std::fs::write(dir.join("config"), CONFIG).unwrap();
        Sources {
            profile: profile.map(str::to_string),
            credentials_file: Some(dir.join("credentials")),
            config_file: Some(dir.join("config")),
            ..Sources::default()
        }
    }

    #[test]
    fn keys_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            (None, "AKD", "s/+=d", None),
            (Some("ops"), "AKO", "so", Some("to")),
        ];
        for (name, access, secret, token) in rows {
            let Found::Keys(keys) = read(&sources(dir.path(), name)).unwrap() else {
                panic!("{name:?} holds keys");
            };
            assert_eq!(keys.access_key, access);
            assert_eq!(keys.secret_key.expose(), secret);
            assert_eq!(keys.session_token.as_ref().map(Secret::expose), token);
        }
    }

    #[test]
    fn a_role_with_a_token_is_found() {
        let dir = tempfile::tempdir().unwrap();
        match read(&sources(dir.path(), Some("pod"))).unwrap() {
            Found::WebIdentity {
                token_file,
                role_arn,
                session,
            } => {
                assert_eq!(token_file, Path::new("/t"));
                assert_eq!(role_arn, "arn:aws:iam::1:role/r");
                assert_eq!(session, None);
            }
            Found::Keys(_) => panic!("no keys here"),
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            ("nobody", "neither of the shared files"),
            ("half", "aws_secret_access_key"),
            ("run", "credential_process"),
            ("empty", "no credentials"),
        ];
        for (name, wanted) in rows {
            let error = match read(&sources(dir.path(), Some(name))) {
                Err(error) => error,
                Ok(_) => panic!("{name} is wrong"),
            };
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.message().contains(wanted), "{error}");
        }
    }

    #[test]
    fn files_may_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = Sources {
            credentials_file: Some(dir.path().join("none")),
            ..Sources::default()
        };
        assert!(!exists(&nowhere).unwrap());
        assert!(exists(&sources(dir.path(), None)).unwrap());
    }
}
