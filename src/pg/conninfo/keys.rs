//! The settings of libpq's connection strings: their names, their environment variables, and what becomes of each.

use super::Origin;
use crate::error::{Error, Kind, Result};

/// What seawall does with a setting of libpq's.
#[derive(Clone, Copy)]
pub(super) enum Treatment {
    /// It is obeyed.
    Obeyed,
    /// It has no bearing on what seawall does.
    Ignored,
    /// Only these values describe what seawall does; any other asks for something that it cannot do. Passing over
    /// such a wish would weaken a connection that somebody meant to be strict.
    Only(&'static [&'static str]),
}

/// One setting.
pub(super) struct Key {
    pub name: &'static str,
    pub env: Option<&'static str>,
    pub secret: bool,
    treatment: Treatment,
}

use Treatment::{Ignored, Obeyed, Only};

const fn key(name: &'static str, env: &'static str, treatment: Treatment) -> Key {
    Key {
        name,
        env: Some(env),
        secret: false,
        treatment,
    }
}

const fn plain(name: &'static str, treatment: Treatment) -> Key {
    Key {
        name,
        env: None,
        secret: false,
        treatment,
    }
}

const fn secret(name: &'static str, env: Option<&'static str>, treatment: Treatment) -> Key {
    Key {
        name,
        env,
        secret: true,
        treatment,
    }
}

/// As of PostgreSQL 18.
pub(super) const KEYS: &[Key] = &[
    key("service", "PGSERVICE", Obeyed),
    key("host", "PGHOST", Obeyed),
    key("hostaddr", "PGHOSTADDR", Obeyed),
    key("port", "PGPORT", Obeyed),
    key("dbname", "PGDATABASE", Obeyed),
    key("user", "PGUSER", Obeyed),
    secret("password", Some("PGPASSWORD"), Obeyed),
    key("passfile", "PGPASSFILE", Obeyed),
    key("channel_binding", "PGCHANNELBINDING", Obeyed),
    key("connect_timeout", "PGCONNECT_TIMEOUT", Obeyed),
    key("options", "PGOPTIONS", Obeyed),
    key("application_name", "PGAPPNAME", Obeyed),
    plain("fallback_application_name", Obeyed),
    plain("keepalives", Obeyed),
    plain("keepalives_idle", Obeyed),
    plain("keepalives_interval", Obeyed),
    plain("keepalives_count", Obeyed),
    plain("tcp_user_timeout", Obeyed),
    key("sslmode", "PGSSLMODE", Obeyed),
    key("sslcert", "PGSSLCERT", Obeyed),
    key("sslkey", "PGSSLKEY", Obeyed),
    key("sslrootcert", "PGSSLROOTCERT", Obeyed),
    key("target_session_attrs", "PGTARGETSESSIONATTRS", Obeyed),
    key("client_encoding", "PGCLIENTENCODING", Ignored),
    key("load_balance_hosts", "PGLOADBALANCEHOSTS", Ignored),
    key("sslcompression", "PGSSLCOMPRESSION", Ignored),
    key("sslsni", "PGSSLSNI", Ignored),
    key("krbsrvname", "PGKRBSRVNAME", Ignored),
    key("gsslib", "PGGSSLIB", Ignored),
    key("gssdelegation", "PGGSSDELEGATION", Ignored),
    plain("replication", Ignored),
    key("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"])),
    key("sslnegotiation", "PGSSLNEGOTIATION", Only(&["postgres"])),
    key("sslcertmode", "PGSSLCERTMODE", Only(&["allow"])),
    key(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Only(&["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ),
    key(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Only(&["TLSv1.3"]),
    ),
    key(
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Only(&["3.0"]),
    ),
    key(
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Only(&["3.0", "3.2", "latest"]),
    ),
    key("sslcrl", "PGSSLCRL", Only(&[])),
    key("sslcrldir", "PGSSLCRLDIR", Only(&[])),
    key("requirepeer", "PGREQUIREPEER", Only(&[])),
    key("require_auth", "PGREQUIREAUTH", Only(&[])),
    plain("sslkeylogfile", Only(&[])),
    secret("sslpassword", None, Only(&[])),
    secret("scram_client_key", None, Only(&[])),
    secret("scram_server_key", None, Only(&[])),
    plain("oauth_issuer", Only(&[])),
    plain("oauth_client_id", Only(&[])),
    plain("oauth_scope", Only(&[])),
    secret("oauth_client_secret", None, Only(&[])),
];

/// The environment variables that `ConnInfo::resolve` asks for: libpq's, and those that lead to its files.
pub fn environment() -> impl Iterator<Item = &'static str> {
    let files = ["PGSERVICEFILE", "PGSYSCONFDIR", "PGREQUIRESSL"];
    KEYS.iter().filter_map(|key| key.env).chain(files)
}

/// The setting of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// `Kind::Config`: there is no such setting.
///
/// What follows a secret, or does not look like a name, may be a part of a secret that was not quoted: it is not
/// repeated.
pub(super) fn unknown(name: &str, after_secret: bool, origin: &Origin) -> Error {
    let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if after_secret || !word || name.is_empty() {
        return Error::new(
            Kind::Config,
            format!("{origin}: it has a word that is not the name of a setting"),
        )
        .hint("Quote values with spaces, as in password='a b'; in a URI write % and two digits for special characters.");
    }
    let error = Error::new(
        Kind::Config,
        format!("{origin}: \"{name}\" is not the name of a setting"),
    );
    match nearest(name) {
        Some(near) => error.hint(format!("Perhaps you meant \"{near}\".")),
        None => error.hint("The names are libpq's: host, port, user, dbname, sslmode, ...."),
    }
}

impl Key {
    /// Refuses a value that asks for what seawall cannot do.
    pub fn check(&self, value: &str, origin: &Origin) -> Result<()> {
        let Only(values) = self.treatment else {
            return Ok(());
        };
        let known = values.iter().any(|v| v.eq_ignore_ascii_case(value));
        if value.is_empty() || known {
            return Ok(());
        }
        let shown = match self.secret {
            true => String::new(),
            false => format!("=\"{value}\""),
        };
        let error = Error::new(
            Kind::Config,
            format!(
                "{}: {}{shown} is not supported by seawall",
                origin.named(self),
                self.name
            ),
        );
        Err(match values {
            [] => error.hint("Leave it out for this connection."),
            _ => error.hint(format!("It may be {}.", values.join(" or "))),
        })
    }

    /// Whether the setting is read at all.
    pub fn is_obeyed(&self) -> bool {
        matches!(self.treatment, Obeyed)
    }
}

/// The known name that differs least, if it does not differ much.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    KEYS.iter()
        .map(|key| (distance(key.name, &name), key.name))
        .min()
        .filter(|(edits, near)| *edits <= (near.len() / 3).max(1))
        .map(|(_, near)| near)
}

/// Levenshtein's distance: how many letters must be added, dropped or changed.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        let cases = [
            ("hosts", Some("host")),
            ("hots", None), // two edits are too many for four letters
            ("pasword", Some("password")),
            ("ssl_mode", Some("sslmode")),
            ("database", None),
            ("PORT", Some("port")),
            ("xyzzy", None),
        ];
        for (name, near) in cases {
            assert_eq!(nearest(name), near, "{name}");
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..index].iter().all(|k| k.name != key.name));
            assert!(
                key.env.is_none() || KEYS[..index].iter().all(|k| k.env != key.env),
                "{}",
                key.name
            );
        }
        assert!(environment().any(|name| name == "PGSERVICEFILE"));
    }
}
