//! ConnInfo: how to reach PostgreSQL, worked out as libpq does.
//!
//! 1. A setting comes from the first of: command line, connection string, service file, environment, default (the
//!    order that psql shows; a service file goes before the environment).
//! 2. Pure: the environment and the files are given by the caller.
//! 3. No password is in any `Debug` output or error, nor any piece of text that might be one.
//! 4. A setting that asks for what seawall cannot do is refused, never passed over.

use crate::error::{Error, Kind, Result};
use settings::Settings;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod keys;
mod parse;
mod passfile;
mod service;
mod settings;
#[cfg(test)]
mod tests;

pub use keys::environment;
use settings::Origin;

/// Where servers on this machine listen, if no host is given: Debian's directory, then PostgreSQL's own.
pub const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The port, if none is given.
pub const DEFAULT_PORT: u16 = 5432;

/// Where Debian keeps the system's `pg_service.conf`, unless `PGSYSCONFDIR` says otherwise.
const SYSTEM_CONFIG_DIRECTORY: &str = "/etc/postgresql-common";

/// Permissions of a password file that make it useless: anything for group or others.
const OTHERS_MODE: u32 = 0o077;

/// The contents of a file and its permissions.
pub type FileAndMode = (Vec<u8>, u32);

/// Everything that a connection may be made from.
pub struct Sources<'a> {
    /// A connection string or URI, or just the name of a database.
    pub conninfo: Option<&'a str>,
    /// Single settings from the command line (`host`, `port`, `user`, `dbname`); they go before all else. A
    /// `dbname` may be a connection string.
    pub overrides: Vec<(&'static str, String)>,
    /// Looks up an environment variable; `environment()` lists those that are asked for.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a small file with its permissions; `None` if it is not there.
    pub read_file: &'a dyn Fn(&Path) -> Result<Option<FileAndMode>>,
    /// The name of the user we run as: the role, if none is given.
    pub os_user: String,
    /// Its home directory.
    pub home: Option<PathBuf>,
}

/// How to reach PostgreSQL.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Where to try, in order; never empty.
    pub hosts: Vec<HostPort>,
    /// The role.
    pub user: String,
    /// The database, if one is given; else it has the name of the role.
    pub dbname: Option<String>,
    /// How much TLS is asked for.
    pub ssl_mode: SslMode,
    /// The authorities to trust: the file given, else `~/.postgresql/root.crt` if it is there.
    pub ssl_root_cert: Option<RootCert>,
    /// The client's certificate: the file given, else `~/.postgresql/postgresql.crt` if it is there.
    pub ssl_cert: Option<PathBuf>,
    /// The key of `ssl_cert`: the file given, else `~/.postgresql/postgresql.key`.
    pub ssl_key: Option<PathBuf>,
    /// Whether the login must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// How long connecting to one address may take; `None` if it is not given or given as "for ever".
    pub connect_timeout: Option<Duration>,
    /// Whether TCP asks an idle peer whether it is there.
    pub keepalives: bool,
    /// After how much silence it asks; `None` leaves it to the system, as with the next three.
    pub keepalives_idle: Option<Duration>,
    /// How long it waits before it asks again.
    pub keepalives_interval: Option<Duration>,
    /// How often it asks before it gives up.
    pub keepalives_count: Option<u32>,
    /// How long sent data may stay without acknowledgement.
    pub tcp_user_timeout: Option<Duration>,
    /// Which sort of server is wanted.
    pub target_session_attrs: TargetSessionAttrs,
    /// The name shown in `pg_stat_activity`, if one is given.
    pub application_name: Option<String>,
    /// Options for the server, as in `-c geqo=off`.
    pub options: Option<String>,
    /// What the operator should be told: a password file that is ignored.
    pub warnings: Vec<String>,
}

/// One place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name, an address, or the directory of a socket.
    pub host: Host,
    /// The address to use instead of looking the name up.
    pub hostaddr: Option<IpAddr>,
    /// The port, which is also a part of the socket's name.
    pub port: u16,
    /// The password there: the one given, else what the password file has for this place.
    pub password: Option<Secret>,
}

/// What kind of place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or IP address.
    Tcp(String),
    /// The directory of a Unix socket; a name that begins with `@` is in Linux's abstract name space.
    Unix(PathBuf),
}

/// A password. It shows itself only through `Deref`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses without.
    Allow,
    /// If the server can.
    #[default]
    Prefer,
    /// Always, with anyone.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for this name.
    VerifyFull,
}

/// libpq's `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// The authorities of this machine.
    System,
    /// Those in this PEM file.
    File(PathBuf),
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If TLS and the server's method have it.
    #[default]
    Prefer,
    /// Always.
    Require,
}

/// libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Any server.
    #[default]
    Any,
    /// One where transactions may write.
    ReadWrite,
    /// One where they may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// One in recovery, else any.
    PreferStandby,
}

impl ConnInfo {
    /// Works out the connection. `Kind::Config` names the setting and where it came from.
    pub fn resolve(sources: &Sources<'_>) -> Result<ConnInfo> {
        let settings = Settings::gather(sources)?;
        let user = settings
            .text("user")
            .map_or_else(|| sources.os_user.clone(), str::to_string);
        let mut info = ConnInfo {
            hosts: settings.hosts()?,
            user,
            dbname: settings.text("dbname").map(str::to_string),
            ssl_mode: settings.ssl_mode()?,
            ssl_root_cert: None,
            ssl_cert: None,
            ssl_key: None,
            channel_binding: settings.choice("channel_binding", CHANNEL_BINDINGS)?,
            connect_timeout: settings.seconds("connect_timeout")?,
            keepalives: settings.number("keepalives")?.unwrap_or(1) != 0,
            keepalives_idle: settings.seconds("keepalives_idle")?,
            keepalives_interval: settings.seconds("keepalives_interval")?,
            keepalives_count: settings.count("keepalives_count")?,
            tcp_user_timeout: settings.milliseconds("tcp_user_timeout")?,
            target_session_attrs: settings.choice("target_session_attrs", SESSIONS)?,
            application_name: settings
                .text("application_name")
                .or_else(|| settings.text("fallback_application_name"))
                .map(str::to_string),
            options: settings.text("options").map(str::to_string),
            warnings: Vec::new(),
        };
        info.find_certificates(&settings, sources)?;
        info.find_passwords(&settings, sources);
        Ok(info)
    }

    /// The database to connect to.
    pub fn database(&self) -> &str {
        self.dbname.as_deref().unwrap_or(&self.user)
    }

    /// The files given, else those in `~/.postgresql` that are there.
    fn find_certificates(&mut self, settings: &Settings, sources: &Sources<'_>) -> Result<()> {
        if self.ssl_mode == SslMode::Disable {
            return Ok(());
        }
        let usual = |name: &str| Some(sources.home.as_ref()?.join(".postgresql").join(name));
        let there = |name: &str| -> Result<Option<PathBuf>> {
            match usual(name) {
                Some(path) => Ok(sources.read_usual(&path)?.map(|_| path)),
                None => Ok(None),
            }
        };
        self.ssl_root_cert = match settings.text("sslrootcert") {
            Some("system") => Some(RootCert::System),
            Some(file) => Some(RootCert::File(PathBuf::from(file))),
            None => there("root.crt")?.map(RootCert::File),
        };
        self.ssl_cert = match settings.text("sslcert") {
            Some(file) => Some(PathBuf::from(file)),
            None => there("postgresql.crt")?,
        };
        if self.ssl_cert.is_some() {
            let given = settings.text("sslkey").map(PathBuf::from);
            self.ssl_key = given.or_else(|| usual("postgresql.key"));
        }
        Ok(())
    }

    /// The password given counts everywhere; without one, the password file has one for each place.
    fn find_passwords(&mut self, settings: &Settings, sources: &Sources<'_>) {
        if let Some(password) = settings.text("password") {
            for host in &mut self.hosts {
                host.password = Some(Secret::from(password.to_string()));
            }
            return;
        }
        let Some(file) = self.read_passfile(settings, sources) else {
            return;
        };
        let (user, dbname) = (self.user.clone(), self.database().to_string());
        for host in &mut self.hosts {
            let place = host.passfile_name();
            // A physical replication connection has no database: libpq's tools look for this name instead.
            host.password = [dbname.as_str(), "replication"]
                .into_iter()
                .find_map(|dbname| {
                    let wanted = passfile::Wanted {
                        host: &place,
                        port: host.port,
                        dbname,
                        user: &user,
                    };
                    passfile::password(&file, &wanted).filter(|password| !password.is_empty())
                });
        }
    }

    /// The password file, unless it is missing or others can read it. As with libpq, neither is an error.
    fn read_passfile(&mut self, settings: &Settings, sources: &Sources<'_>) -> Option<Vec<u8>> {
        let (path, found) = match settings.text("passfile") {
            Some(path) => (PathBuf::from(path), (sources.read_file)(Path::new(path))),
            None => {
                let path = sources.home.as_ref()?.join(".pgpass");
                let found = sources.read_usual(&path);
                (path, found)
            }
        };
        let why = match found {
            Ok(None) => return None,
            Ok(Some((bytes, mode))) if mode & OTHERS_MODE == 0 => return Some(bytes),
            Ok(Some((_, mode))) => format!(
                "its permissions are {:04o} and must be 0600 or less",
                mode & 0o7777
            ),
            Err(error) => error.one_line(),
        };
        let warning = format!("password file \"{}\" is ignored: {why}", path.display());
        self.warnings.push(warning);
        None
    }
}

impl Sources<'_> {
    /// Reads a file at a place where nobody told us to look. One that we may not see counts as absent: commands
    /// started by `su` or `runuser` often have root's home directory.
    fn read_usual(&self, path: &Path) -> Result<Option<FileAndMode>> {
        match (self.read_file)(path) {
            Err(error) if error.kind() == Kind::Denied => Ok(None),
            outcome => outcome,
        }
    }
}

const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] = &[
    ("prefer", ChannelBinding::Prefer),
    ("disable", ChannelBinding::Disable),
    ("require", ChannelBinding::Require),
];

const SESSIONS: &[(&str, TargetSessionAttrs)] = &[
    ("any", TargetSessionAttrs::Any),
    ("read-write", TargetSessionAttrs::ReadWrite),
    ("read-only", TargetSessionAttrs::ReadOnly),
    ("primary", TargetSessionAttrs::Primary),
    ("standby", TargetSessionAttrs::Standby),
    ("prefer-standby", TargetSessionAttrs::PreferStandby),
];

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl HostPort {
    /// How the password file calls this place: the default sockets are `localhost`.
    fn passfile_name(&self) -> String {
        match &self.host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => match path.to_str() {
                Some(text) if SOCKET_DIRECTORIES.contains(&text) => "localhost".to_string(),
                _ => path.display().to_string(),
            },
        }
    }
}

impl fmt::Display for HostPort {
    /// As messages name the place; never with the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) => write!(f, "host \"{name}\", port {}", self.port),
            Host::Unix(path) => {
                write!(
                    f,
                    "socket directory \"{}\", port {}",
                    path.display(),
                    self.port
                )
            }
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SSL_MODES.iter().find(|(_, mode)| mode == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
