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
