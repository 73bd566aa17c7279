//! Configuration: one table (`settings`), four sources (flag, environment, TOML file, fallback), every value with its
//! origin, so that a message can say where a wrong one came from. The only door to the process environment.
//!
//! Promise: nothing is passed over in silence. An unknown key or `SEAWALL_*` name, two prefixes under two names, a
//! value that its unit does not allow: each is an error before any work begins. No secret is ever shown.

mod handed;
mod load;
mod settings;
#[cfg(test)]
mod tests;
mod values;
mod views;

pub use handed::HandedOn;
pub use load::{Given, Inputs};
pub use settings::{Fallback, Group, SETTINGS, Setting, Unit, find};
pub use values::{bytes, count, duration};
pub use views::LogOptions;

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option of the command line, by its name.
    Flag(String),
    /// A variable of the process environment, by its name.
    Environment(String),
    /// A file of the `--envdir` directory.
    Envdir(PathBuf),
    /// A key of the TOML file.
    Toml(String, PathBuf),
    /// A file that holds the secret.
    SecretFile {
        /// What pointed to it.
        pointer: Box<Origin>,
        /// The file.
        path: PathBuf,
    },
    /// The table.
    Fallback(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "{name} (command line)"),
            Origin::Environment(name) => write!(f, "{name} (environment)"),
            Origin::Envdir(path) => write!(f, "{} (envdir)", path.display()),
            Origin::Toml(key, path) => write!(f, "{key} ({})", path.display()),
            Origin::SecretFile { pointer, path } => match &**pointer {
                Origin::Envdir(name) => write!(f, "{} ({})", name.display(), path.display()),
                Origin::Environment(name) | Origin::Toml(name, _) => {
                    write!(f, "{name} ({})", path.display())
                }
                other => write!(f, "{other}"),
            },
            Origin::Fallback(name) => write!(f, "{name} (default)"),
        }
    }
}

impl Origin {
    /// Whether another process would not find the value.
    fn is_passing(&self) -> bool {
        match self {
            Origin::Flag(_) | Origin::Environment(_) => true,
            Origin::SecretFile { pointer, .. } => pointer.is_passing(),
            Origin::Envdir(_) | Origin::Toml(..) | Origin::Fallback(_) => false,
        }
    }

    fn is_of_envdir(&self) -> bool {
        match self {
            Origin::Envdir(_) => true,
            Origin::SecretFile { pointer, .. } => pointer.is_of_envdir(),
            _ => false,
        }
    }
}

/// A checked text and where it came from.
#[derive(Clone)]
struct Value {
    text: String,
    origin: Origin,
    secret: bool,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.secret { "***" } else { &self.text };
        write!(f, "{}: {shown:?}", self.origin)
    }
}

/// All settings of this run. `Debug` shows what somebody set, without secrets.
#[derive(Clone)]
pub struct Config {
    /// By environment name, which every row has.
    values: BTreeMap<&'static str, Value>,
    warnings: Vec<String>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = |v: &&Value| !matches!(v.origin, Origin::Fallback(_));
        f.debug_list()
            .entries(self.values.values().filter(given))
            .finish()
    }
}

impl Config {
    /// Reads every source, checks every name and value. `Kind::Config` names the origin of what is wrong.
    pub fn load(inputs: &Inputs) -> Result<Config> {
        load::load(inputs)
    }

    /// What an operator should know although work goes on; for the log, once it is open.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The value of a setting, by TOML key or environment name; the fallback's, if it is a plain value.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).map(|v| v.text.as_str())
    }

    /// The same, only if somebody set it: what code that has its own fallbacks (libpq's, AWS's) asks for. A name that
    /// is not in the table has no value.
    pub fn given(&self, env: &str) -> Option<&str> {
        let value = self.values.get(find(env)?.env)?;
        (!matches!(value.origin, Origin::Fallback(_))).then_some(value.text.as_str())
    }

    /// Whether a setting was given to this process alone, on its command line or in its environment, so that another
    /// process would not find it.
    pub fn is_passing(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v.origin.is_passing())
    }

    /// `Kind::Config`: the value of this setting cannot be used, because of `reason`, the end of the sentence.
    pub fn bad(&self, name: &str, reason: impl fmt::Display) -> Error {
        match self.value(name) {
            Some(value) => bad_value(&value.origin, value.secret, &value.text, reason),
            None => Error::new(Kind::Config, format!("{name} {reason}")),
        }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        let setting = find(name).expect("only names of the table are asked for");
        self.values.get(setting.env)
    }
}

/// `SEAWALL_UPLOAD_THREADS (environment): "x" is not a count`; a secret is not repeated.
fn bad_value(origin: &Origin, secret: bool, text: &str, reason: impl fmt::Display) -> Error {
    let shown = if secret {
        "the value".to_string()
    } else {
        format!("{text:?}")
    };
    Error::new(Kind::Config, format!("{origin}: {shown} {reason}"))
}

/// The arguments of this process, without its name. Bytes that are not UTF-8 are kept: paths may have them.
pub fn process_arguments() -> Vec<std::ffi::OsString> {
    std::env::args_os().skip(1).collect()
}
