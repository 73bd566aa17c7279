//! Settings with their origin: gathered in the order of precedence, then read as hosts, numbers and choices.

use super::keys::{self, KEYS, Key};
use super::{
    DEFAULT_PORT, Error, Host, HostPort, Kind, Result, SOCKET_DIRECTORIES, SSL_MODES,
    SYSTEM_CONFIG_DIRECTORY, Sources, SslMode,
};
use super::{parse, service};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a value came from, for messages.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    CommandLine,
    ConnectionString,
    Service(String),
    Environment,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine => f.write_str("command line"),
            Origin::ConnectionString => f.write_str("connection string"),
            Origin::Service(name) => write!(f, "service \"{name}\""),
            Origin::Environment => f.write_str("environment"),
        }
    }
}

impl Origin {
    /// `PGPORT (environment)`, `port (connection string)`.
    pub fn named(&self, key: &Key) -> String {
        let name = match (self, key.env) {
            (Origin::Environment, Some(env)) => env,
            _ => key.name,
        };
        format!("{name} ({self})")
    }
}

struct Setting {
    value: String,
    origin: Origin,
}

/// The settings that were given, by name. An empty value hides those of later sources and then means the default.
pub(super) struct Settings {
    given: BTreeMap<&'static str, Setting>,
}

impl Settings {
    /// Collects all sources, the first one that has a setting winning.
    pub fn gather(sources: &Sources<'_>) -> Result<Settings> {
        let mut settings = Settings {
            given: BTreeMap::new(),
        };
        let text = sources.conninfo.unwrap_or_default();
        settings.replace(parse::parse(text)?, &Origin::ConnectionString)?;
        settings.add_overrides(&sources.overrides)?;
        settings.add_service(sources)?;
        settings.add_environment(sources)?;
        Ok(settings)
    }

    /// Later ones of the same source count.
    fn replace(&mut self, pairs: parse::Pairs, origin: &Origin) -> Result<()> {
        let mut after_secret = false;
        for (name, value) in pairs {
            let key =
                keys::find(&name).ok_or_else(|| keys::unknown(&name, after_secret, origin))?;
            key.check(&value, origin)?;
            let origin = origin.clone();
            self.given.insert(key.name, Setting { value, origin });
            after_secret = key.secret;
        }
        Ok(())
    }

    fn add_overrides(&mut self, overrides: &[(&'static str, String)]) -> Result<()> {
        let is_string =
            |(name, value): &&(&str, String)| *name == "dbname" && parse::is_conninfo(value);
        for (_, text) in overrides.iter().filter(is_string) {
            self.replace(parse::parse(text)?, &Origin::CommandLine)?;
        }
        let single = overrides.iter().filter(|pair| !is_string(pair));
        let pairs = single.map(|(name, value)| (name.to_string(), value.clone()));
        self.replace(pairs.collect(), &Origin::CommandLine)
    }

    fn add_if_absent(&mut self, key: &'static Key, value: String, origin: &Origin) -> Result<()> {
        if !self.given.contains_key(key.name) {
            key.check(&value, origin)?;
            let origin = origin.clone();
            self.given.insert(key.name, Setting { value, origin });
        }
        Ok(())
    }

    /// The group of `service` or `PGSERVICE`, in the user's file or else in the system's.
    fn add_service(&mut self, sources: &Sources<'_>) -> Result<()> {
        let given = self.given.get("service").map(|s| s.value.clone());
        let Some(name) = given.or_else(|| (sources.env)("PGSERVICE")) else {
            return Ok(());
        };
        let origin = Origin::Service(name.clone());
        let mut after_secret = false;
        for (word, value) in find_service(&name, sources)? {
            let key =
                keys::find(&word).ok_or_else(|| keys::unknown(&word, after_secret, &origin))?;
            self.add_if_absent(key, value, &origin)?;
            after_secret = key.secret;
        }
        Ok(())
    }

    fn add_environment(&mut self, sources: &Sources<'_>) -> Result<()> {
        for key in KEYS {
            if let Some(value) = key.env.and_then(sources.env) {
                self.add_if_absent(key, value, &Origin::Environment)?;
            }
        }
        // The forerunner of sslmode, still honoured by libpq: to pass over it would weaken the connection.
        let required = (sources.env)("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'));
        match keys::find("sslmode").filter(|_| required) {
            Some(key) => self.add_if_absent(key, "require".to_string(), &Origin::Environment),
            None => Ok(()),
        }
    }

    /// The value of a setting, if there is one and it is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        debug_assert!(keys::find(name).is_some_and(Key::is_obeyed), "{name}");
        let setting = self.given.get(name)?;
        (!setting.value.is_empty()).then_some(setting.value.as_str())
    }

    /// A whole number, blanks around it allowed.
    pub fn number(&self, name: &str) -> Result<Option<i64>> {
        let parse = |text: &str| {
            let number = text.trim().parse::<i32>().map(i64::from);
            number.map_err(|_| self.bad(name, "is not a whole number"))
        };
        self.text(name).map(parse).transpose()
    }

    /// A positive number; libpq takes others for "not given".
    pub fn count(&self, name: &str) -> Result<Option<u32>> {
        let number = self.number(name)?;
        Ok(number
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0))
    }

    /// A time in seconds; 0 and less mean "not given".
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>> {
        Ok(self.count(name)?.map(|n| Duration::from_secs(n.into())))
    }

    /// A time in milliseconds; 0 and less mean "not given".
    pub fn milliseconds(&self, name: &str) -> Result<Option<Duration>> {
        Ok(self.count(name)?.map(|n| Duration::from_millis(n.into())))
    }

    /// One of several words, the default if none is given.
    pub fn choice<T: Copy + Default>(&self, name: &str, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.text(name) else {
            return Ok(T::default());
        };
        let found = choices.iter().find(|(word, _)| *word == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.bad(name, "is not one of its values")
                .hint(format!("It may be {}.", words.join(", ")))
        })
    }

    /// The mode given; the system's authorities, who certify anyone, need the strictest and imply it.
    pub fn ssl_mode(&self) -> Result<SslMode> {
        let mode = self.choice("sslmode", SSL_MODES)?;
        if self.text("sslrootcert") != Some("system") {
            return Ok(mode);
        }
        match (self.text("sslmode"), mode) {
            (None, _) | (_, SslMode::VerifyFull) => Ok(SslMode::VerifyFull),
            _ => Err(self
                .bad("sslmode", "is too weak for sslrootcert=system")
                .hint("Use sslmode=verify-full.")),
        }
    }

    /// The places to try: each of `host` and `hostaddr` with its port, or one port for all.
    pub fn hosts(&self) -> Result<Vec<HostPort>> {
        let list = |name: &str| -> Vec<&str> {
            let text = self.text(name);
            text.map_or(Vec::new(), |text| text.split(',').map(str::trim).collect())
        };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            let why = format!("does not fit the {} of host", names.len());
            return Err(self.bad("hostaddr", &why));
        }
        let places = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != places {
            return Err(self.bad(
                "port",
                &format!("does not fit the number of hosts, {places}"),
            ));
        }
        let mut hosts = Vec::new();
        for index in 0..places {
            let port = ports.get(index).or(ports.first()).copied();
            let port = self.port(port.unwrap_or_default())?;
            let hostaddr = self.address(addresses.get(index).copied().unwrap_or_default())?;
            let name = names.get(index).copied().unwrap_or_default();
            for host in host(name, hostaddr) {
                hosts.push(HostPort {
                    host,
                    hostaddr,
                    port,
                    password: None,
                });
            }
        }
        Ok(hosts)
    }

    fn port(&self, text: &str) -> Result<u16> {
        if text.is_empty() {
            return Ok(DEFAULT_PORT);
        }
        let port = text.parse().ok().filter(|port| *port > 0);
        port.ok_or_else(|| self.bad("port", "is not a port, 1 to 65535"))
    }

    fn address(&self, text: &str) -> Result<Option<IpAddr>> {
        let parse = |text: &str| {
            let address = text.parse();
            address.map_err(|_| self.bad("hostaddr", "is not an IP address"))
        };
        (!text.is_empty()).then(|| parse(text)).transpose()
    }

    /// `Kind::Config`: the value of a setting cannot be used.
    fn bad(&self, name: &str, why: &str) -> Error {
        let message = match (keys::find(name), self.given.get(name)) {
            (Some(key), Some(setting)) if !key.secret => {
                let named = setting.origin.named(key);
                format!("{named}: \"{}\" {why}", setting.value)
            }
            _ => format!("{name} {why}"),
        };
        Error::new(Kind::Config, message)
    }
}

/// What a host's name means; without name and address, the default sockets one after the other.
fn host(name: &str, address: Option<IpAddr>) -> Vec<Host> {
    match (name, address) {
        ("", Some(address)) => vec![Host::Tcp(address.to_string())],
        ("", None) => SOCKET_DIRECTORIES
            .map(|directory| Host::Unix(PathBuf::from(directory)))
            .to_vec(),
        (name, None) if name.starts_with(['/', '@']) => vec![Host::Unix(PathBuf::from(name))],
        (name, _) => vec![Host::Tcp(name.to_string())],
    }
}

/// The settings of a service.
fn find_service(name: &str, sources: &Sources<'_>) -> Result<parse::Pairs> {
    let given = (sources.env)("PGSERVICEFILE").map(PathBuf::from);
    let own = sources
        .home
        .as_ref()
        .map(|home| home.join(".pg_service.conf"));
    let system = (sources.env)("PGSYSCONFDIR");
    let system = Path::new(system.as_deref().unwrap_or(SYSTEM_CONFIG_DIRECTORY));
    let must_exist = given.is_some();
    let mut looked = Vec::new();
    for file in given
        .or(own)
        .into_iter()
        .chain([system.join("pg_service.conf")])
    {
        let told = must_exist && looked.is_empty();
        let found = match told {
            true => (sources.read_file)(&file)?,
            false => sources.read_usual(&file)?,
        };
        match found {
            Some((bytes, _)) => {
                if let Some(pairs) = service::group(&bytes, name, &file)? {
                    return Ok(pairs);
                }
            }
            None if told => {
                return Err(Error::new(
                    Kind::Config,
                    format!(
                        "PGSERVICEFILE (environment): \"{}\" does not exist",
                        file.display()
                    ),
                ));
            }
            None => {}
        }
        looked.push(format!("\"{}\"", file.display()));
    }
    Err(
        Error::new(Kind::Config, format!("there is no service \"{name}\""))
            .detail(format!("Looked into {}.", looked.join(" and "))),
    )
}
