//! Given sources, when they are loaded, then one value or one error that names its origin.

use super::*;
use crate::error::Kind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn env(pairs: &[(&str, &str)]) -> Inputs {
    let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
    Inputs {
        env: pairs.iter().map(own).collect(),
        ..Inputs::default()
    }
}

fn flag(mut inputs: Inputs, setting: &'static str, flag: &str, value: &str) -> Inputs {
    inputs.flags.push(Given {
        setting,
        flag: flag.to_string(),
        value: value.to_string(),
    });
    inputs
}

fn file(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn toml(dir: &Path, text: &str) -> Inputs {
    Inputs {
        config_file: Some(file(dir, "seawall.toml", text, 0o644)),
        ..Inputs::default()
    }
}

fn error(inputs: &Inputs) -> String {
    let error = Config::load(inputs).expect_err("this must not load");
    assert_eq!(error.kind(), Kind::Config, "{error}");
    error.to_string()
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let dir = tempfile::tempdir().unwrap();
    let text = "upload.threads = 3\n[retry]\nrequest-timeout = \"5s\"\n[compression]\nlevel = -2\n";
    let mut inputs = toml(dir.path(), text);
    let threads = |inputs: &Inputs| Config::load(inputs).unwrap().upload_threads();
    assert_eq!(threads(&inputs), 3);
    inputs
        .env
        .insert("WALG_UPLOAD_CONCURRENCY".into(), "4".into());
    assert_eq!(threads(&inputs), 4);
    inputs
        .env
        .insert("SEAWALL_UPLOAD_THREADS".into(), "5".into());
    assert_eq!(threads(&inputs), 5);
    let inputs = flag(inputs, "upload.threads", "--pool-size", "6");
    let config = Config::load(&inputs).unwrap();
    assert_eq!(config.upload_threads(), 6);
    assert_eq!(config.request_timeout(), Duration::from_secs(5));
    assert_eq!(config.text("compression.level"), Some("-2"));
    assert_eq!(config.text("compression.method"), Some("zstd"));
    assert_eq!(config.given("SEAWALL_COMPRESSION"), None);
    assert!((2..=8).contains(&config.download_threads()));
}

#[test]
fn a_wrong_value_names_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        error(&env(&[("SEAWALL_UPLOAD_THREADS", "x")])),
        "SEAWALL_UPLOAD_THREADS (environment): \"x\" is not a count"
    );
    let text = error(&flag(env(&[]), "rate-limit", "--rate-limit", "fast"));
    assert_eq!(text, "--rate-limit (command line): \"fast\" is not a size");
    let text = error(&toml(dir.path(), "log.level = \"loud\""));
    assert!(text.starts_with("log.level ("), "{text}");
    assert!(text.contains("is none of error, warn"), "{text}");
    let text = error(&toml(dir.path(), "upload.threads = [1]"));
    assert!(
        text.contains("neither a string nor a whole number"),
        "{text}"
    );
}

#[test]
fn unknown_names_are_errors_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let text = error(&env(&[("SEAWALL_PERFIX", "file:///a")]));
    assert!(
        text.starts_with("unknown setting SEAWALL_PERFIX (environment)"),
        "{text}"
    );
    assert!(text.contains("SEAWALL_PREFIX"), "{text}");
    let text = error(&toml(dir.path(), "[upload]\nthread = 3"));
    assert!(text.contains("\"upload.thread\""), "{text}");
    assert!(text.contains("upload.threads"), "{text}");
    // No secret: no -file form.
    error(&toml(dir.path(), "prefix-file = \"/x\""));
    error(&env(&[("SEAWALL_PREFIX_FILE", "/x")]));
}

#[test]
fn what_this_release_does_not_do_is_refused_not_ignored() {
    for name in [
        "WALE_GPG_KEY_ID",
        "SEAWALL_ENCRYPTION_KEY",
        "WALG_LIBSODIUM_KEY",
    ] {
        let text = error(&env(&[(name, "topsecret")]));
        assert!(
            text.contains(name) && text.contains("unencrypted"),
            "{text}"
        );
        assert!(!text.contains("topsecret"), "{text}");
    }
}

#[test]
fn names_of_a_kubernetes_service_are_not_settings() {
    let inputs = env(&[
        ("SEAWALL_SERVICE_HOST", "10.0.0.1"),
        ("SEAWALL_PORT", "tcp://10.0.0.1:80"),
        ("SEAWALL_PORT_80_TCP_ADDR", "10.0.0.1"),
    ]);
    Config::load(&inputs).unwrap();
}

#[test]
fn two_prefixes_are_an_error_unless_they_are_one_place() {
    let text = error(&env(&[
        ("SEAWALL_PREFIX", "file:///new"),
        ("WALE_S3_PREFIX", "s3://old/path"),
    ]));
    assert!(
        text.contains("SEAWALL_PREFIX") && text.contains("WALE_S3_PREFIX"),
        "{text}"
    );
    let same = env(&[
        ("SEAWALL_PREFIX", "file:///a/"),
        ("WALE_FILE_PREFIX", "file://localhost/a"),
        ("WALG_FILE_PREFIX", "/a"),
    ]);
    assert_eq!(
        Config::load(&same).unwrap().prefix().unwrap().to_string(),
        "file:///a"
    );
    let flags = flag(env(&[]), "prefix", "--prefix", "file:///a");
    let flags = flag(flags, "prefix", "--s3-prefix", "s3://b");
    assert!(error(&flags).contains("--s3-prefix"));
    // A flag is typed on purpose: it wins over a variable.
    let over = flag(
        env(&[("WALE_S3_PREFIX", "s3://old")]),
        "prefix",
        "--prefix",
        "file:///a",
    );
    assert_eq!(
        Config::load(&over).unwrap().prefix().unwrap().to_string(),
        "file:///a"
    );
}

#[test]
fn no_prefix_and_a_strange_prefix() {
    let none = Config::load(&env(&[])).unwrap().prefix().unwrap_err();
    assert_eq!(none.kind(), Kind::Config);
    assert!(none.hint_text().unwrap().contains("SEAWALL_PREFIX"));
    let text = error(&env(&[("SEAWALL_PREFIX", "gopher://x")]));
    assert!(
        text.contains("SEAWALL_PREFIX (environment)") && text.contains("gopher"),
        "{text}"
    );
}

#[test]
fn an_envdir_is_read_as_envdir_does_and_wins() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "SEAWALL_UPLOAD_THREADS",
        "7 \t\nsecond line\n",
        0o640,
    );
    file(dir.path(), "WALE_S3_PREFIX", "", 0o640);
    file(dir.path(), "AWS_SECRET_ACCESS_KEY", "a b", 0o644);
    file(dir.path(), "UNRELATED", "x", 0o000);
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let mut inputs = env(&[
        ("SEAWALL_UPLOAD_THREADS", "2"),
        ("WALE_S3_PREFIX", "s3://old"),
        ("SEAWALL_PREFIX", "file:///a"),
    ]);
    inputs.envdir = Some(dir.path().to_path_buf());
    let config = Config::load(&inputs).unwrap();
    assert_eq!(config.upload_threads(), 7);
    // The empty file removed the old variable, else this were an error.
    assert_eq!(config.prefix().unwrap().to_string(), "file:///a");
    assert_eq!(config.text("AWS_SECRET_ACCESS_KEY"), Some("a b"));
    assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
    file(dir.path(), "SEAWALL_UPLOAD_THREADS", "many\n", 0o640);
    let text = error(&inputs);
    assert!(
        text.contains("SEAWALL_UPLOAD_THREADS (envdir): \"many\""),
        "{text}"
    );
    inputs.envdir = Some("/nonexistent/envdir".into());
    assert!(error(&inputs).contains("/nonexistent/envdir"));
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let secret = file(dir.path(), "secret", "hush hush \n", 0o600);
    let path = secret.to_str().unwrap();
    let by_env = env(&[("AWS_SECRET_ACCESS_KEY_FILE", path)]);
    let by_toml = toml(dir.path(), &format!("s3.secret-access-key-file = {path:?}"));
    for inputs in [by_env.clone(), by_toml] {
        let config = Config::load(&inputs).unwrap();
        assert_eq!(config.text("s3.secret-access-key"), Some("hush hush "));
        assert!(config.warnings().is_empty());
        assert!(!format!("{config:?}").contains("hush"));
    }
    let mut both = by_env;
    both.env
        .insert("AWS_SECRET_ACCESS_KEY".into(), "hush".into());
    let text = error(&both);
    assert!(
        text.contains("AWS_SECRET_ACCESS_KEY_FILE") && !text.contains("hush"),
        "{text}"
    );
    let missing = error(&env(&[("PGPASSWORD_FILE", "/nonexistent/secret")]));
    assert!(missing.contains("PGPASSWORD_FILE"), "{missing}");
    let open = toml(dir.path(), "s3.secret-access-key = \"hush\"");
    let config = Config::load(&open).unwrap();
    assert!(config.warnings()[0].contains("everyone may read it"));
    // The parser's own message would repeat the line.
    let broken = error(&toml(dir.path(), "\ns3.secret-access-key = \"hush"));
    assert!(
        broken.contains("Line 2") && !broken.contains("hush"),
        "{broken}"
    );
    // A URL may carry a password.
    let url = error(&env(&[("SEAWALL_S3_ENDPOINT", "https://user:hush@host")]));
    assert!(!url.contains("hush"), "{url}");
}

#[test]
fn the_names_of_other_tools() {
    let config = Config::load(&env(&[
        ("WALE_S3_ENDPOINT", "http+path://minio:9000"),
        ("WALE_RETRIES", "3"),
        ("WALE_LOG_DESTINATION", "stderr,syslog"),
        ("WALE_SYSLOG_FACILITY", "LOCAL3"),
        ("WALG_NETWORK_RATE_LIMIT", "1048576"),
        ("AWS_REGION", ""),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
    ]));
    let config = config.unwrap();
    assert_eq!(config.text("s3.endpoint"), Some("http://minio:9000"));
    assert_eq!(config.text("s3.addressing"), Some("path"));
    assert_eq!(config.text("s3.region"), Some("eu-west-1"));
    assert_eq!(config.text("retry.timeout"), Some("700ms"));
    assert_eq!(config.rate_limit(), Some(1 << 20));
    let log = config.log_options();
    assert!(log.stderr && log.syslog && !log.json);
    assert_eq!(log.facility, "local3");
    let text = error(&env(&[("WALG_COMPRESSION_METHOD", "brotli")]));
    assert!(text.contains("is none of zstd, gzip, lz4"), "{text}");
}
