//! What comes out of all sources together. The order and the odd cases are those that psql 15 shows.

use super::*;
use std::collections::HashMap;

/// A machine with a user, an environment and files.
#[derive(Default)]
struct Machine {
    env: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, (&'static str, u32)>,
}

impl Machine {
    fn env(mut self, name: &'static str, value: &'static str) -> Machine {
        self.env.insert(name, value);
        self
    }

    fn file(mut self, path: &'static str, text: &'static str, mode: u32) -> Machine {
        self.files.insert(path, (text, mode));
        self
    }

    fn resolve_with(&self, conninfo: &str, overrides: &[(&'static str, &str)]) -> Result<ConnInfo> {
        let overrides = overrides.iter().map(|(k, v)| (*k, v.to_string()));
        ConnInfo::resolve(&Sources {
            conninfo: Some(conninfo),
            overrides: overrides.collect(),
            env: &|name| self.env.get(name).map(|value| value.to_string()),
            read_file: &|path| {
                let file = self.files.get(path.to_str().unwrap());
                match file {
                    Some((_, 0)) => Err(Error::new(Kind::Denied, "could not open it")),
                    file => Ok(file.map(|(text, mode)| (text.as_bytes().to_vec(), *mode))),
                }
            },
            os_user: "me".to_string(),
            home: Some(PathBuf::from("/home/me")),
        })
    }

    fn resolve(&self, conninfo: &str) -> ConnInfo {
        self.resolve_with(conninfo, &[]).unwrap()
    }

    fn refusal(&self, conninfo: &str) -> String {
        let error = self.resolve_with(conninfo, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        error.to_string()
    }
}

fn places(info: &ConnInfo) -> Vec<String> {
    info.hosts.iter().map(HostPort::to_string).collect()
}

fn password(info: &ConnInfo) -> Option<&str> {
    info.hosts[0].password.as_deref()
}

#[test]
fn without_anything_the_sockets_of_this_machine() {
    let info = Machine::default().resolve("");
    assert_eq!(
        places(&info),
        [
            "socket directory \"/var/run/postgresql\", port 5432",
            "socket directory \"/tmp\", port 5432"
        ]
    );
    assert_eq!((info.user.as_str(), info.database()), ("me", "me"));
    assert_eq!(info.dbname, None);
    assert_eq!(info.ssl_mode, SslMode::Prefer);
    assert_eq!(info.channel_binding, ChannelBinding::Prefer);
    assert_eq!(info.target_session_attrs, TargetSessionAttrs::Any);
    assert!(info.keepalives && info.connect_timeout.is_none());
    assert_eq!(password(&info), None);
}

#[test]
fn the_first_source_that_has_it_counts() {
    let machine = Machine::default()
        .env("PGSERVICE", "s")
        .env("PGAPPNAME", "environment")
        .env("PGUSER", "environment")
        .file(
            "/home/me/.pg_service.conf",
            "[s]\napplication_name=service\nuser=service\ndbname=service\n",
            0o644,
        );
    let info = machine
        .resolve_with("user=string dbname=string host=h", &[("dbname", "option")])
        .unwrap();
    assert_eq!(info.application_name.as_deref(), Some("service"));
    assert_eq!(info.user, "string");
    assert_eq!(info.dbname.as_deref(), Some("option"));

    let no_service = Machine::default()
        .env("PGUSER", "environment")
        .resolve("user='' host=h");
    // An empty value hides the environment and then means the default.
    assert_eq!(no_service.user, "me");
}

#[test]
fn a_database_option_may_be_a_connection_string() {
    let info = Machine::default()
        .resolve_with(
            "host=a port=1 user=x",
            &[("port", "3"), ("dbname", "postgresql://b:2/d")],
        )
        .unwrap();
    assert_eq!(places(&info), ["host \"b\", port 3"]);
    assert_eq!((info.user.as_str(), info.database()), ("x", "d"));
}

#[test]
fn hosts_addresses_and_ports() {
    let cases: [(&str, &[&str]); 8] = [
        (
            "host=a,b port=1,2",
            &["host \"a\", port 1", "host \"b\", port 2"],
        ),
        (
            "host=a,b port=7",
            &["host \"a\", port 7", "host \"b\", port 7"],
        ),
        (
            "host=a,b port=,2",
            &["host \"a\", port 5432", "host \"b\", port 2"],
        ),
        ("hostaddr=127.0.0.1", &["host \"127.0.0.1\", port 5432"]),
        ("hostaddr=::1 host=n", &["host \"n\", port 5432"]),
        (
            "host=/run/pg port=6",
            &["socket directory \"/run/pg\", port 6"],
        ),
        ("host=@x", &["socket directory \"@x\", port 5432"]),
        (
            "host=a, port=1",
            &[
                "host \"a\", port 1",
                "socket directory \"/var/run/postgresql\", port 1",
                "socket directory \"/tmp\", port 1",
            ],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(
            places(&Machine::default().resolve(text)),
            expected,
            "{text}"
        );
    }
    let info = Machine::default().resolve("hostaddr=127.0.0.1,::1 host=a,b");
    let addresses: Vec<String> = info
        .hosts
        .iter()
        .map(|h| h.hostaddr.unwrap().to_string())
        .collect();
    assert_eq!(addresses, ["127.0.0.1", "::1"]);
}

#[test]
fn numbers_and_choices() {
    let info = Machine::default().resolve(
        "connect_timeout=' 5 ' keepalives=0 keepalives_idle=60 keepalives_interval=7 keepalives_count=3 \
         tcp_user_timeout=1500 target_session_attrs=prefer-standby channel_binding=require \
         fallback_application_name=f options='-c geqo=off'",
    );
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(5)));
    assert!(!info.keepalives);
    assert_eq!(info.keepalives_idle, Some(Duration::from_secs(60)));
    assert_eq!(info.keepalives_interval, Some(Duration::from_secs(7)));
    assert_eq!(info.keepalives_count, Some(3));
    assert_eq!(info.tcp_user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(info.target_session_attrs, TargetSessionAttrs::PreferStandby);
    assert_eq!(info.channel_binding, ChannelBinding::Require);
    assert_eq!(info.application_name.as_deref(), Some("f"));
    assert_eq!(info.options.as_deref(), Some("-c geqo=off"));
    assert_eq!(
        Machine::default()
            .resolve("connect_timeout=-1")
            .connect_timeout,
        None
    );
}

#[test]
fn what_cannot_be_used_is_named_with_its_origin() {
    let machine = Machine::default();
    let cases = [
        ("port=x", "port (connection string): \"x\" is not a port"),
        ("port=65536", "\"65536\" is not a port"),
        ("port=1,2 host=a,b,c", "does not fit the number of hosts, 3"),
        ("host=a hostaddr=::1,::2", "does not fit the 1 of host"),
        (
            "postgresql://[::1]:9,b:8/d?host=a",
            "does not fit the number of hosts, 1",
        ),
        ("hostaddr=name", "\"name\" is not an IP address"),
        ("connect_timeout=5s", "\"5s\" is not a whole number"),
        ("sslmode=verify", "It may be disable, allow, prefer"),
        (
            "sslmode=require sslrootcert=system",
            "Use sslmode=verify-full",
        ),
        ("hosts=a", "Perhaps you meant \"host\""),
        ("xyzzy=a", "\"xyzzy\" is not the name of a setting"),
        ("sslcrl=/x", "sslcrl=\"/x\" is not supported"),
        ("gssencmode=require", "It may be disable or prefer"),
        (
            "require_auth=scram-sha-256",
            "require_auth=\"scram-sha-256\" is not supported",
        ),
        ("service=none", "there is no service \"none\""),
    ];
    for (text, expected) in cases {
        let message = machine.refusal(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
    let message = Machine::default().env("PGPORT", "x").refusal("");
    assert!(
        message.starts_with("PGPORT (environment): \"x\" is not a port"),
        "{message}"
    );
    let message = Machine::default().env("PGSSLCRL", "/x").refusal("");
    assert!(message.starts_with("PGSSLCRL (environment): "), "{message}");
    let message = Machine::default()
        .env("PGSERVICEFILE", "/no")
        .refusal("service=s");
    assert!(message.contains("\"/no\" does not exist"), "{message}");
}

#[test]
fn wishes_that_change_nothing_are_let_through() {
    let info = Machine::default().resolve(
        "gssencmode=prefer sslcrl='' sslsni=1 client_encoding=LATIN1 ssl_min_protocol_version=TLSv1.2 \
         replication=database max_protocol_version=latest sslnegotiation=postgres",
    );
    assert_eq!(info.hosts.len(), 2);
}

#[test]
fn services_are_looked_for_in_two_files() {
    let machine = Machine::default()
        .file("/home/me/.pg_service.conf", "[a]\nhost=own\n", 0o644)
        .file(
            "/etc/postgresql-common/pg_service.conf",
            "[a]\nhost=system\n[b]\nhost=system\nhost=second\n",
            0o644,
        )
        .file("/c/pg_service.conf", "[b]\nhost=elsewhere\n", 0o644);
    assert_eq!(
        places(&machine.resolve("service=a")),
        ["host \"own\", port 5432"]
    );
    assert_eq!(
        places(&machine.resolve("service=b")),
        ["host \"system\", port 5432"]
    );
    let machine = machine.env("PGSYSCONFDIR", "/c");
    assert_eq!(
        places(&machine.resolve("service=b")),
        ["host \"elsewhere\", port 5432"]
    );
}

#[test]
fn passwords_are_looked_for_place_by_place() {
    let machine = Machine::default().file(
        "/home/me/.pgpass",
        "a:5432:d:me:one\nb:*:replication:me:two\nlocalhost:*:*:me:three\n/run/pg:*:*:me:four\nc:*:*:*:\n",
        0o600,
    );
    let passwords = |text: &str| -> Vec<Option<String>> {
        let info = machine.resolve(text);
        assert!(info.warnings.is_empty());
        let hosts = info.hosts.iter();
        hosts
            .map(|host| host.password.as_deref().map(str::to_string))
            .collect()
    };
    let some = |text: &str| Some(text.to_string());
    assert_eq!(
        passwords("host=a,b,c,localhost dbname=d"),
        [some("one"), some("two"), None, some("three")]
    );
    assert_eq!(passwords("dbname=d"), [some("three"), some("three")]);
    assert_eq!(passwords("host=/run/pg"), [some("four")]);
    assert_eq!(passwords("host=a dbname=d port=1"), [None]);
    assert_eq!(passwords("host=a dbname=d password=given"), [some("given")]);
    assert_eq!(passwords("host=a dbname=d passfile=/none"), [None]);
}

#[test]
fn a_password_file_for_everyone_is_ignored_with_a_warning() {
    for (mode, why) in [
        (0o644, "0644 and must be 0600"),
        (0o100640, "0640 and must be 0600"),
    ] {
        let machine = Machine::default().file("/home/me/.pgpass", "*:*:*:*:S3CRET", mode);
        let info = machine.resolve("host=a");
        assert_eq!(password(&info), None);
        assert!(info.warnings[0].contains(why), "{:?}", info.warnings);
    }
    // What we may not see is absent, unless we were told to look there.
    let machine = Machine::default().file("/home/me/.pgpass", "", 0);
    assert!(machine.resolve("host=a").warnings.is_empty());
    let machine = Machine::default().file("/p", "", 0);
    let info = machine.resolve("host=a passfile=/p");
    assert!(info.warnings[0].contains("could not open it"));

    let machine = Machine::default()
        .env("PGPASSFILE", "/p")
        .file("/p", "*:*:*:*:S3CRET", 0o100600);
    assert_eq!(password(&machine.resolve("host=a")), Some("S3CRET"));
}

#[test]
fn certificates_of_the_home_directory() {
    let machine = Machine::default()
        .file("/home/me/.postgresql/root.crt", "", 0o644)
        .file("/home/me/.postgresql/postgresql.crt", "", 0o644);
    let info = machine.resolve("host=a");
    let root = PathBuf::from("/home/me/.postgresql/root.crt");
    assert_eq!(info.ssl_root_cert, Some(RootCert::File(root)));
    assert_eq!(
        info.ssl_key,
        Some(PathBuf::from("/home/me/.postgresql/postgresql.key"))
    );

    let info = machine.resolve("host=a sslrootcert=/r sslcert=/c sslkey=/k");
    assert_eq!(
        info.ssl_root_cert,
        Some(RootCert::File(PathBuf::from("/r")))
    );
    assert_eq!(info.ssl_cert, Some(PathBuf::from("/c")));
    assert_eq!(info.ssl_key, Some(PathBuf::from("/k")));

    let unseen = Machine::default().file("/home/me/.postgresql/root.crt", "", 0);
    assert_eq!(unseen.resolve("host=a").ssl_root_cert, None);
    let info = Machine::default().resolve("host=a sslkey=/k");
    assert_eq!((info.ssl_cert, info.ssl_key), (None, None));
    assert_eq!(machine.resolve("sslmode=disable").ssl_root_cert, None);

    let info = Machine::default().resolve("host=a sslrootcert=system");
    assert_eq!(info.ssl_mode, SslMode::VerifyFull);
    assert_eq!(info.ssl_root_cert, Some(RootCert::System));
}

#[test]
fn the_old_wish_for_ssl_is_kept() {
    let machine = Machine::default().env("PGREQUIRESSL", "1");
    assert_eq!(machine.resolve("").ssl_mode, SslMode::Require);
    let machine = machine.env("PGSSLMODE", "verify-ca");
    assert_eq!(machine.resolve("").ssl_mode, SslMode::VerifyCa);
    for (name, mode) in SSL_MODES {
        assert_eq!(mode.to_string(), *name);
    }
}

#[test]
fn secrets_are_never_shown() {
    let machine = Machine::default();
    let info = machine.resolve("password=S3CRET host=a");
    assert_eq!(password(&info), Some("S3CRET"));
    assert!(!format!("{info:?}").contains("S3CRET"));
    assert!(format!("{info:?}").contains("(secret)"));
    for text in [
        "password=a S3CRET=b",
        "user:S3CRET=x@host",
        "sslpassword=S3CRET",
        "oauth_client_secret=S3CRET",
        "postgresql://h?password=a&S3CRET=b",
        "POSTGRESQL://u:S3CRET@h/d?a=b",
    ] {
        let message = machine.refusal(text);
        assert!(!message.contains("S3CRET"), "{message}");
    }
    let machine = Machine::default().env("PGSERVICE", "s").file(
        "/home/me/.pg_service.conf",
        "[s]\npassword=x\nS3CRET=y\n",
        0o600,
    );
    assert!(!machine.refusal("").contains("S3CRET"));
}
