//! What the rooms below need, made from the texts: each gets a small struct of its own, none sees `Config`.

use super::{Config, values};
use crate::codec::{Compression, Method, digest};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::limits::{CONNECT_TIMEOUT, SMALL_FILE_BYTES_MAX};
use crate::pg::conninfo::{self, ConnInfo};
use crate::store::s3::{Secret, Sources};
use crate::store::{self, Prefix, retry};
use crate::work::stop::Stop;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How messages are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// `error` to `trace`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// To standard error.
    pub stderr: bool,
    /// To syslog.
    pub syslog: bool,
    /// Facility of syslog messages, as syslog.conf names it.
    pub facility: String,
}

impl Config {
    /// Where the archive is.
    pub fn prefix(&self) -> Result<Prefix> {
        let text = self.text("prefix").ok_or_else(|| {
            Error::new(Kind::Config, "no archive is named").hint(
                "Set SEAWALL_PREFIX, or give --prefix, as in file:///srv/archive or s3://bucket/path.",
            )
        })?;
        let origin = &self.value("prefix").expect("found above").origin;
        Prefix::parse(text).map_err(|e| e.context(format!("{origin} is not usable")))
    }

    /// Everything a store needs. `retry_default` is the verb's: short where PostgreSQL waits, long for backups.
    pub fn store_options(&self, retry_default: Duration, stop: &Stop) -> Result<store::Options> {
        Ok(store::Options {
            prefix: self.prefix()?,
            s3: self.s3_options()?,
            retry: retry::Policy {
                total: self.duration("retry.timeout").unwrap_or(retry_default),
                request_idle: self.request_timeout(),
            },
            stop: stop.clone(),
            until: None,
        })
    }

    /// How new objects are compressed.
    pub fn compression(&self) -> Result<Compression> {
        let method: Method = self
            .text("compression.method")
            .unwrap_or("zstd")
            .parse()
            .map_err(|_| self.bad("compression.method", "is not a compression method"))?;
        let set = self.given("SEAWALL_COMPRESSION_LEVEL");
        let level = set.and_then(|text| text.trim().parse().ok());
        Compression::new(method, level).map_err(|e| {
            e.with_kind(Kind::Config)
                .context(match self.value("compression.level") {
                    Some(value) => format!("{} is not usable", value.origin),
                    None => "the compression is not usable".to_string(),
                })
        })
    }

    /// Threads that read, compress and send.
    pub fn upload_threads(&self) -> usize {
        self.threads("upload.threads")
    }

    /// How many segments a wal-push may archive ahead.
    pub fn wal_ahead(&self) -> usize {
        let set = self.text("wal.ahead");
        set.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Threads that fetch, decompress and write.
    pub fn download_threads(&self) -> usize {
        self.threads("download.threads")
    }

    fn threads(&self, name: &str) -> usize {
        let set = self.text(name).and_then(|text| text.trim().parse().ok());
        set.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
            cores.clamp(2, 8)
        })
    }

    /// Most bytes per second to read from the cluster; `None` for no limit.
    pub fn rate_limit(&self) -> Option<u64> {
        let text = self.text("rate-limit")?;
        values::bytes(text).ok().filter(|rate| *rate > 0)
    }

    /// How long a request may make no progress.
    pub fn request_timeout(&self) -> Duration {
        self.duration("retry.request-timeout")
            .expect("the table has a value for it")
    }

    /// How messages are written.
    pub fn log_options(&self) -> LogOptions {
        let word = |name| self.text(name).unwrap_or_default().trim().to_lowercase();
        let destinations = word("log.destination");
        let has = |wanted| destinations.split(',').any(|d| d.trim() == wanted);
        LogOptions {
            level: word("log.level"),
            json: word("log.format") == "json",
            stderr: has("stderr"),
            syslog: has("syslog"),
            facility: word("log.syslog-facility"),
        }
    }

    /// The connection to PostgreSQL: `conninfo` (`--dbname`) and the single options before the environment, which
    /// comes before the service file and libpq's defaults.
    pub fn conninfo(
        &self,
        conninfo: Option<&str>,
        overrides: Vec<(&'static str, String)>,
    ) -> Result<ConnInfo> {
        ConnInfo::resolve(&conninfo::Sources {
            conninfo,
            overrides,
            env: &|name| self.given(name).map(str::to_string),
            read_file: &read_with_mode,
            os_user: self.os_user()?,
            home: self.home(),
        })
    }

    /// The home directory: `HOME`, else what /etc/passwd says.
    pub fn home(&self) -> Option<PathBuf> {
        match self.given("HOME") {
            Some(home) => Some(PathBuf::from(home)),
            None => passwd_entry().map(|(_, home)| home),
        }
    }

    /// The name of the user we run as, as libpq takes it for a role.
    fn os_user(&self) -> Result<String> {
        match (passwd_entry(), self.given("USER")) {
            (Some((name, _)), _) => Ok(name),
            (None, Some(name)) => Ok(name.to_string()),
            (None, None) => {
                let uid = rustix::process::geteuid().as_raw();
                Err(Error::new(Kind::Config, format!("user {uid} has no name"))
                    .hint("Set PGUSER to the role to connect as."))
            }
        }
    }

    /// The state directory of this archive, made if need be (mode 0700) and tried for writing. Its name tells the
    /// archive to a human; the digest in it keeps two archives apart whose names look alike.
    pub fn state_dir(&self) -> Result<PathBuf> {
        let mut last = None;
        for dir in self.state_dirs()? {
            refuse_inside_cluster(&dir)?;
            match disk::create_dirs(&dir, 0o700).and_then(|()| disk::hidden_temp(&dir)) {
                Ok(_) => return Ok(dir),
                Err(e) => last = Some(e.context("the state directory is not usable")),
            }
        }
        let error = last.unwrap_or_else(|| {
            Error::new(Kind::Config, "there is no place for the state directory")
        });
        Err(error.hint("Set SEAWALL_STATE_DIR to a directory that seawall may write."))
    }

    /// Where the state directory of this archive may be, best first.
    pub fn state_dirs(&self) -> Result<Vec<PathBuf>> {
        let name = state_name(
            &self.prefix()?,
            self.text("s3.endpoint").unwrap_or_default(),
        );
        let bases = self.state_bases()?;
        Ok(bases.into_iter().map(|base| base.join(&name)).collect())
    }

    /// Where the state directories of all archives may be. /var/lib/seawall only if an administrator made it: what root
    /// would create by the way, the server's user could not write later.
    fn state_bases(&self) -> Result<Vec<PathBuf>> {
        if let Some(dir) = self.text("state-dir") {
            let dir = PathBuf::from(dir);
            return match dir.is_absolute() {
                true => Ok(vec![dir]),
                false => Err(self.bad("state-dir", "is not an absolute path")),
            };
        }
        let mut bases = Vec::new();
        let system = PathBuf::from("/var/lib/seawall");
        if disk::stat(&system)?.is_some() {
            bases.push(system);
        }
        match (self.given("XDG_STATE_HOME"), self.home()) {
            (Some(dir), _) if dir.starts_with('/') => bases.push(Path::new(dir).join("seawall")),
            (_, Some(home)) => bases.push(home.join(".local/state/seawall")),
            _ => {}
        }
        Ok(bases)
    }

    fn is_on(&self, name: &str) -> bool {
        let text = self.text(name).unwrap_or_default();
        values::boolean(text) == Ok(true)
    }

    fn duration(&self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        Some(values::duration(text).expect("checked when it was loaded"))
    }

    fn s3_options(&self) -> Result<store::s3::Options> {
        let some = |name| self.text(name).map(str::to_string);
        let path = |name| self.text(name).map(PathBuf::from);
        let addressing = match self.text("s3.addressing").unwrap_or("auto") {
            text if text.eq_ignore_ascii_case("path") => store::s3::Addressing::Path,
            text if text.eq_ignore_ascii_case("virtual") => store::s3::Addressing::Virtual,
            _ => store::s3::Addressing::Auto,
        };
        Ok(store::s3::Options {
            endpoint: some("s3.endpoint"),
            region: some("s3.region").unwrap_or_default(),
            addressing,
            ca_file: path("s3.ca-file"),
            system_certs_file: path("SSL_CERT_FILE"),
            system_certs_dir: path("SSL_CERT_DIR"),
            storage_class: some("s3.storage-class"),
            sse: some("s3.sse"),
            sse_kms_key: some("s3.sse-kms-key"),
            request_timeout: self.request_timeout(),
            connect_timeout: CONNECT_TIMEOUT,
            proxy: self.proxy(),
            threads: self.upload_threads().max(self.download_threads()),
            credentials: self.credentials(),
            conditional_put: None,
            checksums: self.is_on("s3.checksums"),
            stop: Stop::new(),
        })
    }

    /// What the standard chain of credentials looks at. A value of the table's own counts as not given where the
    /// chain has a rule for that.
    fn credentials(&self) -> Sources {
        let some = |name| self.text(name).map(str::to_string);
        let secret = |name| self.text(name).map(Secret::new);
        let path = |name| self.text(name).map(PathBuf::from);
        let at_home = |name: &str| self.home().map(|home| home.join(name));
        Sources {
            access_key: some("AWS_ACCESS_KEY_ID"),
            secret_key: secret("AWS_SECRET_ACCESS_KEY"),
            session_token: secret("AWS_SESSION_TOKEN"),
            profile: self.given("AWS_PROFILE").map(str::to_string),
            credentials_file: path("AWS_SHARED_CREDENTIALS_FILE")
                .or_else(|| at_home(".aws/credentials")),
            config_file: path("AWS_CONFIG_FILE").or_else(|| at_home(".aws/config")),
            web_identity_token_file: path("AWS_WEB_IDENTITY_TOKEN_FILE"),
            role_arn: some("AWS_ROLE_ARN"),
            role_session_name: some("AWS_ROLE_SESSION_NAME"),
            sts_endpoint: some("AWS_ENDPOINT_URL_STS"),
            container_relative_uri: some("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
            container_full_uri: some("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            container_token: secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
            container_token_file: path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            imds_endpoint: some("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
            imds_disabled: self.is_on("AWS_EC2_METADATA_DISABLED"),
        }
    }

    /// The proxy for the endpoint: our own setting, else the system's variable for the scheme, unless `NO_PROXY`
    /// names the host.
    fn proxy(&self) -> Option<String> {
        if let Some(proxy) = self.text("s3.proxy") {
            return Some(proxy.to_string());
        }
        let endpoint = self.text("s3.endpoint").unwrap_or("https://amazonaws.com");
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
        let host = host_of(rest);
        if no_proxy(self.text("NO_PROXY").unwrap_or_default(), host) {
            return None;
        }
        let name = match scheme {
            "http" => "HTTP_PROXY",
            _ => "HTTPS_PROXY",
        };
        let proxy = self.text(name).or_else(|| self.text("ALL_PROXY"));
        proxy.map(str::to_string)
    }
}

/// `host`, from `user@host:port/path`.
fn host_of(rest: &str) -> &str {
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    }
}

/// Whether a `NO_PROXY` list names the host: `*`, the host itself, or a domain above it.
fn no_proxy(list: &str, host: &str) -> bool {
    list.split(',').map(str::trim).any(|entry| {
        let domain = entry.trim_start_matches('.');
        let below = |h: &str| {
            h.len() > domain.len()
                && h.as_bytes()[h.len() - domain.len() - 1] == b'.'
                && h.to_lowercase().ends_with(&domain.to_lowercase())
        };
        entry == "*" || (!domain.is_empty() && (host.eq_ignore_ascii_case(domain) || below(host)))
    })
}

/// `bucket-path-1a2b3c4d`: what a human recognises, then the digest of what tells archives apart.
fn state_name(prefix: &Prefix, endpoint: &str) -> String {
    let text = prefix.to_string();
    let readable: String = text
        .split_once("://")
        .map_or(text.as_str(), |(_, rest)| rest)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(60)
        .collect();
    let place = match prefix {
        Prefix::S3 { .. } => format!("{text}\n{endpoint}"),
        Prefix::File(_) => text,
    };
    let digest = digest::hex(&digest::sha256(place.as_bytes())[..4]);
    format!("{}-{digest}", readable.trim_matches('-'))
}

/// A state directory inside a data directory would be backed up, restored and deleted with it.
fn refuse_inside_cluster(dir: &Path) -> Result<()> {
    let Some(around) = disk::tree::data_directory_around(dir) else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Config,
        format!(
            "the state directory \"{}\" is inside a data directory",
            dir.display()
        ),
    )
    .detail(format!("\"{}\" belongs to PostgreSQL.", around.display()))
    .hint("Set SEAWALL_STATE_DIR to a directory outside."))
}

/// A file with its permissions, for password files; `None` if it is not there.
fn read_with_mode(path: &Path) -> Result<Option<(Vec<u8>, u32)>> {
    match disk::stat(path)? {
        None => Ok(None),
        Some(stat) => {
            let bytes = disk::read_bounded(path, SMALL_FILE_BYTES_MAX)?;
            Ok(Some((bytes, stat.mode)))
        }
    }
}

/// Name and home directory of the user we run as, from /etc/passwd.
fn passwd_entry() -> Option<(String, PathBuf)> {
    let bytes = disk::read_bounded(Path::new("/etc/passwd"), SMALL_FILE_BYTES_MAX).ok()?;
    let uid = rustix::process::geteuid().as_raw();
    find_passwd(&String::from_utf8_lossy(&bytes), uid)
}

fn find_passwd(passwd: &str, uid: u32) -> Option<(String, PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.len() >= 6 && fields[2].parse() == Ok(uid);
        found.then(|| (fields[0].to_string(), PathBuf::from(fields[5])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
        let inputs = Inputs {
            env: pairs.iter().map(own).collect(),
            ..Inputs::default()
        };
        Config::load(&inputs).unwrap()
    }

    #[test]
    fn each_archive_has_a_state_directory_of_its_own() {
        let s3 = |path: &str| Prefix::parse(path).unwrap();
        let one = state_name(&s3("s3://bucket/a/b"), "");
        assert!(one.starts_with("bucket-a-b-"), "{one}");
        assert_eq!(one, state_name(&s3("s3://bucket/a/b/"), ""));
        assert_ne!(one, state_name(&s3("s3://bucket/a-b"), ""));
        assert_ne!(one, state_name(&s3("s3://bucket/a/b"), "http://minio"));
        let file = state_name(&s3("file:///srv/archive"), "http://minio");
        assert_eq!(file, state_name(&s3("file:///srv/archive"), ""));
        assert!(file.starts_with("srv-archive-"), "{file}");
    }

    #[test]
    fn the_state_directory_is_made_where_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("state");
        let settings = [
            ("SEAWALL_PREFIX", "file:///srv/archive"),
            ("SEAWALL_STATE_DIR", base.to_str().unwrap()),
        ];
        let made = config(&settings).state_dir().unwrap();
        assert!(made.starts_with(&base) && made.is_dir());
        // Inside a data directory it would be backed up and restored with it.
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        let error = config(&settings).state_dir().unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.message().contains("inside a data directory"));
        let relative = [("SEAWALL_PREFIX", "file:///a"), ("SEAWALL_STATE_DIR", "x")];
        assert!(config(&relative).state_dir().is_err());
    }

    #[test]
    fn proxies() {
        let proxy = |pairs: &[(&str, &str)]| config(pairs).proxy();
        let some = |text: &str| Some(text.to_string());
        assert_eq!(proxy(&[]), None);
        assert_eq!(proxy(&[("https_proxy", "http://p:1")]), some("http://p:1"));
        let endpoint = ("SEAWALL_S3_ENDPOINT", "http://minio.example:9000");
        assert_eq!(proxy(&[endpoint, ("HTTPS_PROXY", "http://p:1")]), None);
        assert_eq!(
            proxy(&[endpoint, ("HTTP_PROXY", "http://p:2")]),
            some("http://p:2")
        );
        for exempt in ["*", "minio.example", "x, .example", "EXAMPLE"] {
            let pairs = [endpoint, ("ALL_PROXY", "http://p:3"), ("NO_PROXY", exempt)];
            assert_eq!(proxy(&pairs), None, "{exempt}");
        }
        let pairs = [endpoint, ("ALL_PROXY", "http://p:3"), ("NO_PROXY", "ample")];
        assert_eq!(proxy(&pairs), some("http://p:3"));
    }

    #[test]
    fn hosts() {
        assert_eq!(host_of("a.b:9000/c"), "a.b");
        assert_eq!(host_of("[::1]:9000"), "::1");
        assert_eq!(host_of("a?x"), "a");
    }

    #[test]
    fn a_user_in_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n\nbroken\npostgres:x:101:1:P:/var/lib/p:/bin/sh\n";
        let found = find_passwd(passwd, 101);
        assert_eq!(found, Some(("postgres".into(), "/var/lib/p".into())));
        assert_eq!(find_passwd(passwd, 7), None);
    }
}
