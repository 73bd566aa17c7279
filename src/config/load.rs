//! From the four sources to one checked value per setting.

use super::settings::{Fallback, REFUSED, SETTINGS, Setting, Unit, find};
use super::{Config, Origin, Value, bad_value, values};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::store::Prefix;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A setting given on the command line.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its TOML key or environment name.
    pub setting: &'static str,
    /// The option as typed, for messages.
    pub flag: String,
    /// Its text.
    pub value: String,
}

/// Everything a configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Options, in any order.
    pub flags: Vec<Given>,
    /// The environment: what `process_environment` gives, or a test.
    pub env: BTreeMap<String, String>,
    /// `--envdir`: a directory as envdir(8) reads it. Its values take the place of the environment's.
    pub envdir: Option<PathBuf>,
    /// `--config`; else `SEAWALL_CONFIG` counts.
    pub config_file: Option<PathBuf>,
}

/// Texts by name, each with where it stood.
type Texts = BTreeMap<String, (String, Origin)>;

impl Inputs {
    /// The variables of this process that seawall reads. One that is not UTF-8 is an error, any other variable is
    /// never looked at.
    pub fn process_environment() -> Result<BTreeMap<String, String>> {
        relevant(std::env::vars_os())
    }
}

fn relevant(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|n| is_ours(n)) else {
            continue;
        };
        let text = value
            .into_string()
            .map_err(|_| Error::new(Kind::Config, format!("{name} (environment) is not UTF-8")))?;
        env.insert(name.to_string(), text);
    }
    Ok(env)
}

pub(super) fn load(inputs: &Inputs) -> Result<Config> {
    let mut warnings = Vec::new();
    let mut env: Texts = (inputs.env.iter())
        .map(|(name, text)| {
            let origin = Origin::Environment(name.clone());
            (name.clone(), (text.clone(), origin))
        })
        .collect();
    if let Some(dir) = &inputs.envdir {
        read_envdir(dir, &mut env, &mut warnings)?;
    }
    check_names(&env)?;
    let named = env.get("SEAWALL_CONFIG").map(|(text, _)| text.into());
    let toml = match inputs.config_file.clone().or(named) {
        Some(path) => read_toml(&path, &mut warnings)?,
        None => Texts::new(),
    };
    let mut values = BTreeMap::new();
    for setting in SETTINGS {
        let chosen = match from_flags(setting, &inputs.flags)? {
            Some(value) => Some(value),
            None => match from_env(setting, &env, &mut warnings)? {
                Some(value) => Some(value),
                None => from_toml(setting, &toml, &mut warnings)?,
            },
        };
        if let Some(value) = chosen.or_else(|| fallback(setting)) {
            values::check(setting, &value.text)
                .map_err(|reason| bad_value(&value.origin, hide(setting), &value.text, reason))?;
            values.insert(setting.env, value);
        }
    }
    Ok(Config { values, warnings })
}

/// Whether a wrong value is kept out of messages: a URL may hold a password.
fn hide(setting: &Setting) -> bool {
    setting.secret || setting.unit == Unit::Url
}

fn value(setting: &Setting, text: &str, origin: Origin) -> Value {
    let secret = setting.secret;
    let text = text.to_string();
    Value {
        text,
        origin,
        secret,
    }
}

fn fallback(setting: &'static Setting) -> Option<Value> {
    match setting.fallback {
        Fallback::Value(text) => Some(value(setting, text, Origin::Fallback(setting.env))),
        Fallback::Rule(_) | Fallback::None => None,
    }
}

fn from_flags(setting: &Setting, flags: &[Given]) -> Result<Option<Value>> {
    let candidates = flags
        .iter()
        .filter(|given| find(given.setting).is_some_and(|s| s.env == setting.env))
        .map(|given| value(setting, &given.value, Origin::Flag(given.flag.clone())))
        .collect();
    choose(setting, candidates)
}

/// The own name, then the others in the order of the table; each secret also as `…_FILE`.
fn from_env(setting: &Setting, env: &Texts, warnings: &mut Vec<String>) -> Result<Option<Value>> {
    let mut candidates = Vec::new();
    for name in std::iter::once(&setting.env).chain(setting.also) {
        let direct = env.get(*name).filter(|(text, _)| !text.is_empty());
        let file_name = format!("{name}_FILE");
        let by_file = match find(&file_name) {
            None if setting.secret => env.get(&file_name).filter(|(text, _)| !text.is_empty()),
            _ => None,
        };
        match (direct, by_file) {
            (Some(_), Some(_)) => return Err(twice(name, &file_name)),
            (Some((text, origin)), None) => {
                let meaning = values::translate(setting.key, name, text)
                    .map_err(|reason| bad_value(origin, hide(setting), text, reason))?;
                if let Some(text) = meaning {
                    candidates.push(value(setting, &text, origin.clone()));
                }
            }
            (None, Some((path, origin))) => {
                candidates.push(read_secret(setting, path, origin, warnings)?);
            }
            (None, None) => {}
        }
    }
    choose(setting, candidates)
}

fn from_toml(setting: &Setting, toml: &Texts, warnings: &mut Vec<String>) -> Result<Option<Value>> {
    if setting.key.is_empty() {
        return Ok(None);
    }
    let file_key = format!("{}-file", setting.key);
    match (toml.get(setting.key), toml.get(&file_key)) {
        (Some(_), Some(_)) => Err(twice(setting.key, &file_key)),
        (Some((text, origin)), None) => Ok(Some(value(setting, text, origin.clone()))),
        (None, Some((path, origin))) => read_secret(setting, path, origin, warnings).map(Some),
        (None, None) => Ok(None),
    }
}

fn twice(name: &str, file_name: &str) -> Error {
    Error::new(Kind::Config, format!("both {name} and {file_name} are set"))
        .hint("Keep one of them.")
}

/// The first candidate. For the prefix all must mean the same place: a variable that was left behind must not send
/// the archive somewhere else, and the operator knows which one is the old one, not we.
fn choose(setting: &Setting, candidates: Vec<Value>) -> Result<Option<Value>> {
    if setting.key == "prefix"
        && let Some((first, rest)) = candidates.split_first()
    {
        let place = |v: &Value| {
            Prefix::parse(&v.text).map_err(|e| e.context(format!("{} is not usable", v.origin)))
        };
        let wanted = place(first)?;
        for other in rest {
            let found = place(other)?;
            if found != wanted {
                return Err(Error::new(
                    Kind::Config,
                    format!(
                        "{} and {} name different archives",
                        first.origin, other.origin
                    ),
                )
                .detail(format!("One says {wanted}, the other {found}."))
                .hint("Remove the one that is out of date."));
            }
        }
    }
    Ok(candidates.into_iter().next())
}

fn read_secret(
    setting: &Setting,
    path: &str,
    origin: &Origin,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let path = Path::new(path);
    let bytes = disk::read_bounded(path, SMALL_FILE_BYTES_MAX)
        .map_err(|e| config_error(e).context(format!("{origin}: the secret could not be read")))?;
    let text = utf8(bytes, path)?;
    warn_if_open(path, warnings)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let origin = Origin::SecretFile {
        pointer: Box::new(origin.clone()),
        path: path.to_path_buf(),
    };
    Ok(value(setting, line, origin))
}

/// The directory as envdir(8) reads it: one file per variable; the first line counts, without blanks and tabs at its
/// end; a zero byte stands for a line end; an empty file removes the variable. Files that are not ours are not
/// opened: they may be unreadable and none of our business.
fn read_envdir(dir: &Path, env: &mut Texts, warnings: &mut Vec<String>) -> Result<()> {
    let failed = |e: Error| {
        config_error(e).context(format!("could not read the envdir \"{}\"", dir.display()))
    };
    for entry in disk::tree::walk_dir(dir).map_err(failed)? {
        let Some(name) = entry.name.to_str().filter(|n| is_ours(n)) else {
            continue;
        };
        let path = dir.join(name);
        let bytes = disk::read_bounded(&path, SMALL_FILE_BYTES_MAX).map_err(failed)?;
        if bytes.is_empty() {
            env.remove(name);
            continue;
        }
        let text = utf8(bytes, &path)?;
        let line = text.split('\n').next().unwrap_or_default();
        let line = line.trim_end_matches([' ', '\t', '\r']).replace('\0', "\n");
        if setting_of(name).is_some_and(|s| s.secret) && !name.ends_with("_FILE") {
            warn_if_open(&path, warnings)?;
        }
        env.insert(name.to_string(), (line, Origin::Envdir(path)));
    }
    Ok(())
}

fn read_toml(path: &Path, warnings: &mut Vec<String>) -> Result<Texts> {
    let failed = || {
        format!(
            "could not read the configuration file \"{}\"",
            path.display()
        )
    };
    let bytes = disk::read_bounded(path, SMALL_FILE_BYTES_MAX)
        .map_err(|e| config_error(e).context(failed()))?;
    let text = utf8(bytes, path)?;
    // Only the parser's own sentence: its full text repeats the line, which may hold a secret.
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        let before = e.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..before]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        Error::new(Kind::Config, failed()).detail(format!("Line {line}: {}.", e.message()))
    })?;
    let mut texts = Texts::new();
    flatten("", &table, path, &mut texts)?;
    let mut open = false;
    for key in texts.keys() {
        check_key(key, path)?;
        open |= find(key).is_some_and(|s| s.secret);
    }
    if open {
        warn_if_open(path, warnings)?;
    }
    Ok(texts)
}

/// Tables to dotted keys.
fn flatten(above: &str, table: &toml::Table, path: &Path, texts: &mut Texts) -> Result<()> {
    for (name, item) in table {
        let key = match above {
            "" => name.clone(),
            _ => format!("{above}.{name}"),
        };
        let text = match item {
            toml::Value::Table(inner) => {
                flatten(&key, inner, path, texts)?;
                continue;
            }
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            _ => {
                check_key(&key, path)?;
                let origin = Origin::Toml(key, path.to_path_buf());
                let message = format!("{origin} is neither a string nor a whole number");
                return Err(Error::new(Kind::Config, message));
            }
        };
        let origin = Origin::Toml(key.clone(), path.to_path_buf());
        texts.insert(key, (text, origin));
    }
    Ok(())
}

fn check_key(key: &str, path: &Path) -> Result<()> {
    let known = |s: &&Setting| s.key == key || s.secret && file_of(key, "-file") == Some(s.key);
    if !key.is_empty() && SETTINGS.iter().any(|s| known(&s)) {
        return Ok(());
    }
    let place = path.display();
    let error = Error::new(
        Kind::Config,
        format!("unknown setting {key:?} in \"{place}\""),
    );
    let keys = SETTINGS.iter().map(|s| s.key).filter(|k| !k.is_empty());
    Err(hint_nearest(error, values::nearest(key, keys)))
}

/// No `SEAWALL_*` name that the table does not know, and none that promises what this release does not do.
fn check_names(env: &Texts) -> Result<()> {
    for (name, (text, origin)) in env {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name)
            && !text.is_empty()
        {
            return Err(
                Error::new(Kind::Config, format!("{origin} is not supported"))
                    .detail(*why)
                    .hint("Remove it."),
            );
        }
        if name.starts_with("SEAWALL_") && setting_of(name).is_none() && !is_kubernetes(name) {
            let error = Error::new(Kind::Config, format!("unknown setting {origin}"));
            let names = SETTINGS.iter().map(|s| s.env);
            let names = names.filter(|n| n.starts_with("SEAWALL_"));
            return Err(hint_nearest(error, values::nearest(name, names)));
        }
    }
    Ok(())
}

fn hint_nearest(error: Error, nearest: Option<&str>) -> Error {
    match nearest {
        Some(name) => error.hint(format!("Perhaps {name} is meant.")),
        None => error.hint("See seawall.toml(5) for all settings."),
    }
}

/// What Kubernetes sets in every pod when a service has the name `seawall`: addresses, not settings.
fn is_kubernetes(name: &str) -> bool {
    let rest = name.strip_prefix("SEAWALL_").unwrap_or(name);
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

/// Whether this variable is read at all.
fn is_ours(name: &str) -> bool {
    name.starts_with("SEAWALL_")
        || setting_of(name).is_some()
        || REFUSED.iter().any(|(refused, _)| *refused == name)
}

/// The row that a variable belongs to: by its name, another name, or the `_FILE` form of a secret's.
fn setting_of(name: &str) -> Option<&'static Setting> {
    let of = |n: &str| SETTINGS.iter().find(|s| s.env == n || s.also.contains(&n));
    of(name).or_else(|| of(file_of(name, "_FILE")?).filter(|s| s.secret))
}

fn file_of<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    name.strip_suffix(ending).filter(|n| !n.is_empty())
}

/// A secret in a file that everyone may read is worth a word. The group may read: root:postgres 0640 is the custom.
fn warn_if_open(path: &Path, warnings: &mut Vec<String>) -> Result<()> {
    let open = disk::stat(path)?.is_some_and(|stat| stat.mode & 0o004 != 0);
    let warning = format!(
        "\"{}\" holds a secret and everyone may read it",
        path.display()
    );
    if open && !warnings.contains(&warning) {
        warnings.push(warning);
    }
    Ok(())
}

/// Whatever is wrong with a file of the configuration, it is the configuration that is wrong.
fn config_error(error: Error) -> Error {
    error.with_kind(Kind::Config)
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|_| Error::new(Kind::Config, format!("\"{}\" is not UTF-8", path.display())))
}
