//! The one table of settings: parser, unknown-name errors, manual pages and messages are made from it.
//!
//! A setting is known by its TOML key and by its environment name. Names of WAL-E, WAL-G, AWS and libpq stand in
//! `also` (older names for the same thing) or have a row of their own where they are the name.

/// How the text of a setting is checked when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Any text; whoever uses it checks it.
    Text,
    /// A path.
    Path,
    /// `http://` or `https://`, without user and password; not repeated in messages, in case it has them.
    Url,
    /// A whole number within the bounds.
    Count(i64, i64),
    /// `ms s min h d`; a bare number is seconds.
    Duration,
    /// Bytes with K, M, G or T (powers of 1024).
    Bytes,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One or more of these words, joined by commas.
    Words(&'static [&'static str]),
}

/// What holds when nobody set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This value.
    Value(&'static str),
    /// A rule, told in words for the manual; the code that reads the setting follows it.
    Rule(&'static str),
    /// Nothing.
    None,
}

/// Which part of the manual a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Where the archive is, how objects are made, how long to try.
    Archive,
    /// S3 and its credentials.
    S3,
    /// The connection to PostgreSQL.
    Postgres,
    /// Messages.
    Log,
    /// What seawall takes from the system's environment.
    System,
}

/// One row of the table.
#[derive(Debug)]
pub struct Setting {
    /// The dotted TOML key; empty where there is only an environment name.
    pub key: &'static str,
    /// The environment name.
    pub env: &'static str,
    /// Other environment names for it; the first that is set wins, after `env`.
    pub also: &'static [&'static str],
    /// What holds when it is not set.
    pub fallback: Fallback,
    /// How it is checked.
    pub unit: Unit,
    /// Never printed, never on the command line; has a `_FILE` and a `-file` form.
    pub secret: bool,
    /// Its part of the manual.
    pub group: Group,
    /// One line for the manual.
    pub doc: &'static str,
}

use Group::{Archive, Log, Postgres, S3, System};

/// A row with any text, no other names and no fallback; the methods below say what differs.
const fn row(group: Group, key: &'static str, env: &'static str) -> Setting {
    Setting {
        key,
        env,
        also: &[],
        fallback: Fallback::None,
        unit: Unit::Text,
        secret: false,
        group,
        doc: "",
    }
}

impl Setting {
    const fn doc(mut self, line: &'static str) -> Setting {
        self.doc = line;
        self
    }

    const fn also(mut self, names: &'static [&'static str]) -> Setting {
        self.also = names;
        self
    }

    const fn unit(mut self, unit: Unit) -> Setting {
        self.unit = unit;
        self
    }

    const fn value(mut self, text: &'static str) -> Setting {
        self.fallback = Fallback::Value(text);
        self
    }

    const fn rule(mut self, words: &'static str) -> Setting {
        self.fallback = Fallback::Rule(words);
        self
    }

    const fn secret(mut self) -> Setting {
        self.secret = true;
        self
    }
}

/// Longest sensible number of threads; above it the machine only switches contexts.
const THREADS_MAX: i64 = 256;

/// Every setting, once.
pub const SETTINGS: &[Setting] = &[
    row(Archive, "prefix", "SEAWALL_PREFIX")
        .doc(
            "Where the archive is: file:///DIR or s3://BUCKET/PATH. Two different \
         prefixes under two names are an error.",
        )
        .also(&[
            "WALE_S3_PREFIX",
            "WALE_FILE_PREFIX",
            "WALG_S3_PREFIX",
            "WALG_FILE_PREFIX",
            "WALG_SSH_PREFIX",
        ]),
    row(Archive, "", "SEAWALL_CONFIG")
        .doc("The TOML file to read, as --config.")
        .unit(Unit::Path),
    row(Archive, "state-dir", "SEAWALL_STATE_DIR")
        .doc(
            "Where seawall remembers what it learnt of an archive; one directory per \
         prefix inside it. Never inside PGDATA.",
        )
        .unit(Unit::Path)
        .rule(
            "/var/lib/seawall if it is there and writable, else $XDG_STATE_HOME/seawall, \
         else ~/.local/state/seawall",
        ),
    row(Archive, "compression.method", "SEAWALL_COMPRESSION")
        .doc("How new objects are compressed. Every method is read, whatever this says.")
        .also(&["WALG_COMPRESSION_METHOD"])
        .unit(Unit::Word(&["zstd", "gzip", "lz4"]))
        .value("zstd"),
    row(Archive, "compression.level", "SEAWALL_COMPRESSION_LEVEL")
        .doc("Compression level: -7 to 19 for zstd, 1 to 9 for gzip; lz4 has one level only.")
        .unit(Unit::Count(-7, 19))
        .value("1"),
    row(Archive, "upload.threads", "SEAWALL_UPLOAD_THREADS")
        .doc("How many threads read, compress and send at the same time.")
        .also(&["WALG_UPLOAD_CONCURRENCY"])
        .unit(Unit::Count(1, THREADS_MAX))
        .rule("the number of cores, at least 2, at most 8"),
    row(Archive, "download.threads", "SEAWALL_DOWNLOAD_THREADS")
        .doc("How many threads fetch, decompress and write at the same time.")
        .also(&["WALG_DOWNLOAD_CONCURRENCY"])
        .unit(Unit::Count(1, THREADS_MAX))
        .rule("the number of cores, at least 2, at most 8"),
    row(Archive, "wal.ahead", "SEAWALL_WAL_AHEAD")
        .doc(
            "Segments that one wal-push archives beyond the one it is asked for, if they \
         wait behind it; 0 is none.",
        )
        .unit(Unit::Count(0, 1024))
        .value("8"),
    row(Archive, "wal.prefetch", "SEAWALL_PREFETCH")
        .doc(
            "Segments that wal-fetch may fetch ahead of PostgreSQL's request. Accepted \
         and checked; this release fetches the one it is asked for.",
        )
        .unit(Unit::Count(0, 1024))
        .value("8"),
    row(Archive, "retry.timeout", "SEAWALL_RETRY_TIMEOUT")
        .doc(
            "Total time given to the passing failures of one object. WALE_RETRIES is a \
         number of tries; it is taken as the time they need.",
        )
        .also(&["WALE_RETRIES"])
        .unit(Unit::Duration)
        .rule("60s for wal-push and wal-fetch, 10min for the backup verbs"),
    row(Archive, "retry.request-timeout", "SEAWALL_REQUEST_TIMEOUT")
        .doc("How long a request may make no progress before it counts as failed.")
        .unit(Unit::Duration)
        .value("30s"),
    row(Archive, "rate-limit", "SEAWALL_RATE_LIMIT")
        .doc(
            "Most bytes per second that backup-push reads from the cluster, all threads \
         together; 0 is no limit.",
        )
        .also(&["WALG_NETWORK_RATE_LIMIT"])
        .unit(Unit::Bytes),
    row(S3, "s3.endpoint", "SEAWALL_S3_ENDPOINT")
        .doc(
            "URL of the S3 server, http:// or https://. WALE_S3_ENDPOINT may have the \
         form https+path://HOST:PORT.",
        )
        .also(&[
            "AWS_ENDPOINT_URL_S3",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT",
            "WALE_S3_ENDPOINT",
        ])
        .rule("AWS, in the region")
        .unit(Unit::Url),
    row(S3, "s3.region", "SEAWALL_S3_REGION")
        .doc("Region that requests are signed for.")
        .also(&["AWS_REGION", "AWS_DEFAULT_REGION"])
        .value("us-east-1"),
    row(S3, "s3.addressing", "SEAWALL_S3_ADDRESSING")
        .doc(
            "Whether the bucket stands in the path or in the host name; auto is path when \
         an endpoint is set.",
        )
        .also(&["AWS_S3_FORCE_PATH_STYLE", "WALE_S3_ENDPOINT"])
        .unit(Unit::Word(&["auto", "path", "virtual"]))
        .value("auto"),
    row(S3, "s3.ca-file", "SEAWALL_S3_CA_FILE")
        .doc(
            "PEM file of the certificate authorities that may sign the server's \
         certificate.",
        )
        .also(&["AWS_CA_BUNDLE", "WALG_S3_CA_CERT_FILE"])
        .unit(Unit::Path)
        .rule("the system's roots"),
    row(S3, "s3.storage-class", "SEAWALL_S3_STORAGE_CLASS")
        .doc("Storage class of new objects.")
        .also(&["WALE_S3_STORAGE_CLASS", "WALG_S3_STORAGE_CLASS"]),
    row(S3, "s3.sse", "SEAWALL_S3_SSE")
        .doc("Server-side encryption of new objects: AES256 or aws:kms.")
        .also(&["WALG_S3_SSE"]),
    row(S3, "s3.sse-kms-key", "SEAWALL_S3_SSE_KMS_KEY")
        .doc("Key id for aws:kms.")
        .also(&["WALG_S3_SSE_KMS_ID"]),
    row(S3, "s3.checksums", "SEAWALL_S3_CHECKSUMS")
        .doc("Whether checksums are sent and asked for; off only for servers that refuse them.")
        .unit(Unit::Word(BOOLEAN))
        .value("on"),
    row(S3, "s3.proxy", "SEAWALL_S3_PROXY")
        .doc(
            "Proxy for S3, a URL, before HTTPS_PROXY and HTTP_PROXY. A secret because it \
         may carry a password.",
        )
        .secret(),
    row(S3, "s3.access-key-id", "AWS_ACCESS_KEY_ID").doc("Access key, as -k."),
    row(S3, "s3.secret-access-key", "AWS_SECRET_ACCESS_KEY")
        .doc("Secret key of the access key.")
        .secret(),
    row(S3, "s3.session-token", "AWS_SESSION_TOKEN")
        .doc("Token of temporary credentials.")
        .secret()
        .also(&["AWS_SECURITY_TOKEN"]),
    row(S3, "s3.profile", "AWS_PROFILE")
        .doc("Profile in the shared credentials file.")
        .also(&["AWS_DEFAULT_PROFILE"])
        .value("default"),
    row(S3, "s3.credentials-file", "AWS_SHARED_CREDENTIALS_FILE")
        .doc("The shared credentials file.")
        .unit(Unit::Path)
        .rule("~/.aws/credentials"),
    row(S3, "", "AWS_CONFIG_FILE")
        .doc("The shared configuration file.")
        .unit(Unit::Path)
        .rule("~/.aws/config"),
    row(S3, "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        .doc("Path of the container's credentials endpoint (ECS)."),
    row(S3, "", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
        .doc("URL of the container's credentials endpoint (EKS).")
        .unit(Unit::Url),
    row(S3, "", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
        .doc("What the container's endpoint wants in the Authorization header.")
        .secret(),
    row(S3, "", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        .doc("File with that token; read again before each use.")
        .unit(Unit::Path),
    row(S3, "", "AWS_WEB_IDENTITY_TOKEN_FILE")
        .doc("File with a web identity token, exchanged for credentials at STS.")
        .unit(Unit::Path),
    row(S3, "", "AWS_ROLE_ARN").doc("Role to assume with the web identity."),
    row(S3, "", "AWS_ROLE_SESSION_NAME")
        .doc("Session name of the assumed role.")
        .value("seawall"),
    row(S3, "", "AWS_ENDPOINT_URL_STS")
        .doc("URL of the STS server.")
        .unit(Unit::Url),
    row(S3, "", "AWS_EC2_METADATA_DISABLED")
        .doc("Whether to leave the instance's metadata service alone.")
        .unit(Unit::Word(BOOLEAN))
        .value("false"),
    row(S3, "", "AWS_EC2_METADATA_SERVICE_ENDPOINT")
        .doc("URL of the instance's metadata service.")
        .unit(Unit::Url),
    row(Postgres, "postgres.host", "PGHOST").doc("Host name or directory of the socket."),
    row(Postgres, "postgres.hostaddr", "PGHOSTADDR").doc("Address, which saves the look-up."),
    row(Postgres, "postgres.port", "PGPORT").doc("Port."),
    row(Postgres, "postgres.dbname", "PGDATABASE").doc("Database."),
    row(Postgres, "postgres.user", "PGUSER").doc("Role."),
    row(Postgres, "postgres.password", "PGPASSWORD")
        .doc("Password; a password file is better.")
        .secret(),
    row(Postgres, "postgres.passfile", "PGPASSFILE").doc("Password file, ~/.pgpass if not set."),
    row(Postgres, "postgres.service", "PGSERVICE").doc("Service in the service file."),
    row(Postgres, "postgres.servicefile", "PGSERVICEFILE")
        .doc("Service file, ~/.pg_service.conf if not set."),
    row(Postgres, "", "PGSYSCONFDIR").doc("Directory of the system's pg_service.conf."),
    row(Postgres, "postgres.options", "PGOPTIONS").doc("Options for the server's session."),
    row(Postgres, "postgres.application_name", "PGAPPNAME").doc("What pg_stat_activity shows."),
    row(Postgres, "postgres.sslmode", "PGSSLMODE")
        .doc("disable, allow, prefer, require, verify-ca or verify-full."),
    row(Postgres, "", "PGREQUIRESSL").doc("Old form of sslmode=require."),
    row(Postgres, "postgres.sslrootcert", "PGSSLROOTCERT")
        .doc("Certificate authorities, or system."),
    row(Postgres, "postgres.sslcert", "PGSSLCERT").doc("Client certificate."),
    row(Postgres, "postgres.sslkey", "PGSSLKEY").doc("Key of the client certificate."),
    row(Postgres, "postgres.channel_binding", "PGCHANNELBINDING")
        .doc("disable, prefer or require."),
    row(Postgres, "postgres.connect_timeout", "PGCONNECT_TIMEOUT")
        .doc("Seconds to wait for a connection."),
    row(
        Postgres,
        "postgres.target_session_attrs",
        "PGTARGETSESSIONATTRS",
    )
    .doc("Which of several hosts is wanted."),
    row(Postgres, "postgres.client_encoding", "PGCLIENTENCODING")
        .doc("Accepted without effect: seawall speaks UTF-8."),
    row(
        Postgres,
        "postgres.load_balance_hosts",
        "PGLOADBALANCEHOSTS",
    )
    .doc("Accepted without effect: hosts are tried in their order."),
    row(Postgres, "postgres.sslcompression", "PGSSLCOMPRESSION").doc("Accepted without effect."),
    row(Postgres, "postgres.sslsni", "PGSSLSNI")
        .doc("Accepted without effect: the server's name is sent."),
    row(Postgres, "postgres.krbsrvname", "PGKRBSRVNAME").doc("Accepted without effect."),
    row(Postgres, "postgres.gsslib", "PGGSSLIB").doc("Accepted without effect."),
    row(Postgres, "postgres.gssdelegation", "PGGSSDELEGATION").doc("Accepted without effect."),
    row(Postgres, "postgres.gssencmode", "PGGSSENCMODE")
        .doc("Only disable and prefer: seawall does not speak GSSAPI."),
    row(Postgres, "postgres.sslnegotiation", "PGSSLNEGOTIATION").doc("Only postgres."),
    row(Postgres, "postgres.sslcertmode", "PGSSLCERTMODE").doc("Only allow."),
    row(
        Postgres,
        "postgres.ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
    )
    .doc("Only TLSv1.2 and below: 1.2 is the lowest that is spoken."),
    row(
        Postgres,
        "postgres.ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
    )
    .doc("Only TLSv1.3."),
    row(
        Postgres,
        "postgres.min_protocol_version",
        "PGMINPROTOCOLVERSION",
    )
    .doc("Only 3.0."),
    row(
        Postgres,
        "postgres.max_protocol_version",
        "PGMAXPROTOCOLVERSION",
    )
    .doc("Accepted without effect: seawall speaks 3.0."),
    row(Postgres, "postgres.sslcrl", "PGSSLCRL").doc("Refused: revocation lists are not checked."),
    row(Postgres, "postgres.sslcrldir", "PGSSLCRLDIR")
        .doc("Refused: revocation lists are not checked."),
    row(Postgres, "postgres.requirepeer", "PGREQUIREPEER")
        .doc("Refused: the owner of the server is not checked."),
    row(Postgres, "postgres.require_auth", "PGREQUIREAUTH")
        .doc("Refused: the method of authentication cannot be prescribed."),
    row(Log, "log.level", "SEAWALL_LOG_LEVEL")
        .doc("Which messages are written.")
        .unit(Unit::Word(&["error", "warn", "info", "debug", "trace"]))
        .value("info"),
    row(Log, "log.format", "SEAWALL_LOG_FORMAT")
        .doc("How they are written.")
        .unit(Unit::Word(&["text", "json"]))
        .value("text"),
    row(Log, "log.destination", "SEAWALL_LOG_DESTINATION")
        .doc("Where they go: stderr, syslog, or both joined by a comma.")
        .also(&["WALE_LOG_DESTINATION"])
        .unit(Unit::Words(&["stderr", "syslog"]))
        .value("stderr"),
    row(Log, "log.syslog-facility", "SEAWALL_LOG_SYSLOG_FACILITY")
        .doc("Facility of syslog messages.")
        .also(&["WALE_SYSLOG_FACILITY"])
        .unit(Unit::Word(&[
            "user", "daemon", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
            "local7",
        ]))
        .value("user"),
    row(System, "", "HTTPS_PROXY")
        .doc("Proxy for https:// endpoints.")
        .secret()
        .also(&["https_proxy"]),
    row(System, "", "HTTP_PROXY")
        .doc("Proxy for http:// endpoints.")
        .secret()
        .also(&["http_proxy"]),
    row(System, "", "ALL_PROXY")
        .doc("Proxy for both.")
        .secret()
        .also(&["all_proxy"]),
    row(System, "", "NO_PROXY")
        .doc("Hosts and domains that are reached without proxy, joined by commas.")
        .also(&["no_proxy"]),
    row(System, "", "SSL_CERT_FILE")
        .doc("PEM file of the system's certificate authorities, if not in the usual place.")
        .unit(Unit::Path),
    row(System, "", "SSL_CERT_DIR")
        .doc("Directory of the system's certificate authorities, if not in the usual place.")
        .unit(Unit::Path),
    row(System, "", "HOME")
        .doc("Where ~ is.")
        .unit(Unit::Path)
        .rule("from /etc/passwd"),
    row(System, "", "XDG_STATE_HOME")
        .doc("Where the state directory is if /var/lib/seawall is not.")
        .unit(Unit::Path)
        .rule("~/.local/state"),
    row(System, "", "USER")
        .doc("Role to connect as if nothing else names one and /etc/passwd does not know us.")
        .also(&["LOGNAME"])
        .rule("from /etc/passwd"),
];

/// Words for yes and no.
pub const BOOLEAN: &[&str] = &["true", "false", "on", "off", "yes", "no", "1", "0"];

/// Names that other tools or later releases read and this one must not pass over in silence, with the reason.
pub const REFUSED: &[(&str, &str)] = &[
    ("SEAWALL_ENCRYPTION_KEY", ENCRYPTION),
    ("SEAWALL_ENCRYPTION_KEY_FILE", ENCRYPTION),
    ("SEAWALL_ENCRYPTION_RECIPIENT", ENCRYPTION),
    ("SEAWALL_ENCRYPTION_IDENTITY", ENCRYPTION),
    ("SEAWALL_DECRYPTION_KEYS_FILE", ENCRYPTION),
    ("WALE_GPG_KEY_ID", ENCRYPTION),
    ("WALG_GPG_KEY_ID", ENCRYPTION),
    ("WALG_PGP_KEY", ENCRYPTION),
    ("WALG_PGP_KEY_PATH", ENCRYPTION),
    ("WALG_LIBSODIUM_KEY", ENCRYPTION),
    ("WALG_LIBSODIUM_KEY_PATH", ENCRYPTION),
    ("SEAWALL_SFTP_KEY_FILE", SFTP),
    ("SEAWALL_SFTP_KEY_PASSPHRASE", SFTP),
    ("SEAWALL_SFTP_KNOWN_HOSTS", SFTP),
    ("WALE_GS_PREFIX", STORE),
    ("WALE_WABS_PREFIX", STORE),
    ("WALE_SWIFT_PREFIX", STORE),
    ("WALG_GS_PREFIX", STORE),
    ("WALG_AZ_PREFIX", STORE),
    ("WALG_SWIFT_PREFIX", STORE),
];

const ENCRYPTION: &str = "This release stores objects unencrypted, so a key that is set would promise \
         what does not happen.";
const SFTP: &str = "This release does not speak SFTP.";
const STORE: &str = "This release stores in directories and on S3 only.";

/// The row with this TOML key or environment name.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|s| s.env == name || (s.key == name && !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_documented() {
        let mut seen = BTreeSet::new();
        for setting in SETTINGS {
            assert!(seen.insert(setting.env), "{} twice", setting.env);
            assert!(
                setting.key.is_empty() || seen.insert(setting.key),
                "{} twice",
                setting.key
            );
            assert!(setting.doc.ends_with('.'), "{}", setting.env);
        }
        for (name, why) in REFUSED {
            assert!(seen.insert(name), "{name} is refused and accepted");
            assert!(why.ends_with('.'));
        }
    }

    #[test]
    fn the_connection_finds_all_of_its_variables() {
        for name in crate::pg::conninfo::environment() {
            assert!(find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn an_other_name_is_never_the_name_of_another_setting() {
        for setting in SETTINGS {
            for also in setting.also {
                assert!(find(also).is_none(), "{also} is a row of its own");
            }
        }
    }
}
