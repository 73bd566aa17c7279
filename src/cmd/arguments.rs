//! Small helpers for the verbs' command lines.
//!
//! An option that is a setting has the setting's key as its id; `settings_of` finds those by the table, so that a verb
//! names the option once and never reads it: it reads the configuration.

use crate::config::{Given, SETTINGS, find};
use crate::error::{Error, Kind, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An option that gives the setting `key`. Its help, unless the verb has a better one, is the table's.
pub fn setting_option(key: &'static str, long: &'static str, value: &'static str) -> Arg {
    let setting = find(key).expect("only settings of the table are options");
    assert!(!setting.secret, "a secret is never on the command line");
    Arg::new(key).long(long).value_name(value).help(setting.doc)
}

/// Every setting that these matches were given, with the option's name.
pub fn settings_of(command: &clap::Command, matches: &ArgMatches) -> Vec<Given> {
    let mut given = Vec::new();
    for setting in SETTINGS {
        for id in [setting.key, setting.env] {
            let arg = command.get_arguments().find(|a| a.get_id() == id);
            let Some(arg) = arg.filter(|_| !id.is_empty()) else {
                continue;
            };
            if matches.value_source(id) == Some(ValueSource::CommandLine)
                && let Some(value) = text(matches, id)
            {
                given.push(Given {
                    setting: setting.env,
                    flag: format!("--{}", arg.get_long().unwrap_or(id)),
                    value,
                });
            }
        }
    }
    given
}

/// The text of an argument.
pub fn text(matches: &ArgMatches, id: &str) -> Option<String> {
    matches.try_get_one::<String>(id).ok().flatten().cloned()
}

/// A word with a default or a choice, which is always there.
pub fn word<'a>(matches: &'a ArgMatches, id: &str) -> &'a str {
    matches.get_one::<String>(id).map_or("", String::as_str)
}

/// A path that is required.
pub fn path(matches: &ArgMatches, id: &str) -> PathBuf {
    optional_path(matches, id).unwrap_or_default()
}

/// A path that may be missing.
pub fn optional_path(matches: &ArgMatches, id: &str) -> Option<PathBuf> {
    matches.get_one::<PathBuf>(id).cloned()
}

/// The path seen from the root, without `.` and a slash at the end: as it will be stored, shown and compared.
pub fn absolute_path(path: &Path) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(path).map_err(|e| Error::io("the path cannot be made absolute", e))?;
    Ok(absolute.components().collect())
}

/// A value that its type reads; `Kind::Usage` names the option.
pub fn parsed<T: FromStr<Err = Error>>(
    matches: &ArgMatches,
    id: &str,
    option: &str,
) -> Result<Option<T>> {
    let Some(text) = text(matches, id) else {
        return Ok(None);
    };
    let wrong = |e: Error| {
        e.with_kind(Kind::Usage)
            .context(format!("{option} is not usable"))
    };
    text.parse().map(Some).map_err(wrong)
}

/// `Kind::Usage`.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

/// Options of the connection, which go before the environment.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// `--dbname`: a connection string or a database name, without password.
    pub conninfo: Option<String>,
    /// `--host`, `--port` and `--username` by libpq's keyword.
    pub overrides: Vec<(&'static str, String)>,
}

/// The options of the connection. pg_receivewal's letters for host and port are used where the verb has no others for
/// them.
pub fn connection_options(letters: bool) -> [Arg; 4] {
    let letter = |arg: Arg, letter: char| if letters { arg.short(letter) } else { arg };
    [
        letter(Arg::new("host"), 'h')
            .long("host")
            .value_name("HOST")
            .help("Host of the server, or the directory of its socket"),
        letter(Arg::new("port"), 'p')
            .long("port")
            .value_name("PORT")
            .help("Port of the server"),
        Arg::new("username")
            .long("username")
            .short('U')
            .value_name("ROLE")
            .help("Role to connect as"),
        Arg::new("dbname")
            .long("dbname")
            .short('d')
            .value_name("CONNINFO")
            .help("Connection string or database name; a password in it is refused"),
    ]
}

/// Reads them.
pub fn connection(matches: &ArgMatches) -> Result<Connection> {
    let conninfo = text(matches, "dbname");
    if conninfo.as_deref().is_some_and(has_password) {
        return Err(usage("--dbname holds a password")
            .detail("Everyone on this host can see the arguments of a process.")
            .hint("Use a password file (~/.pgpass), PGPASSWORD or PGPASSWORD_FILE."));
    }
    let options = [("host", "host"), ("port", "port"), ("username", "user")];
    let overrides = options.into_iter();
    Ok(Connection {
        conninfo,
        overrides: overrides
            .filter_map(|(id, keyword)| Some((keyword, text(matches, id)?)))
            .collect(),
    })
}

/// Whether a connection string gives a password: `password=…` or `sslpassword=…`, also after `?` and `&` of a URI,
/// or `user:password@` in one. Rather too many than too few: the error names a better way.
fn has_password(conninfo: &str) -> bool {
    let lower = conninfo.to_ascii_lowercase();
    let keyword = lower.match_indices("password").any(|(at, word)| {
        let rest = lower[at + word.len()..].trim_start();
        rest.starts_with('=')
    });
    let user_part = match lower.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?']).next().unwrap_or_default(),
        None => "",
    };
    let in_user_part = user_part
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.contains(':'));
    keyword || in_user_part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_taken_from_the_command_line() {
        let with = [
            "host=a password=x",
            "host=a password = 'x y'",
            "sslpassword=x",
            "postgresql://u:p@h/d",
            "postgres://h/d?password=x",
            "PASSWORD=x",
        ];
        for conninfo in with {
            assert!(has_password(conninfo), "{conninfo}");
        }
        let without = [
            "production",
            "host=a port=5433 user=b",
            "postgresql://u@h:5433/d",
            "postgresql://[::1]:5433/d",
            "passfile=/x",
            "password_reset",
        ];
        for conninfo in without {
            assert!(!has_password(conninfo), "{conninfo}");
        }
        let matches = clap::Command::new("verb")
            .args(connection_options(false))
            .try_get_matches_from(["verb", "-d", "password=topsecret"])
            .unwrap();
        let error = connection(&matches).unwrap_err().to_string();
        assert!(!error.contains("topsecret"), "{error}");
    }
}
