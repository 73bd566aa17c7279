//! What another process must be told to find the same archive: one that runs in another directory, with another
//! environment, as the `restore_command` of a copy does.

use super::settings::{Group, SETTINGS, Setting, Unit};
use super::{Config, Origin, Value};
use crate::error::{Error, Result};
use crate::store::Prefix;
use std::path::Path;

/// Settings for the command line of that process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandedOn {
    /// Variables that it must be given; paths are absolute, none is a secret.
    pub variables: Vec<(String, String)>,
    /// Variables with secrets, and what belongs to them, which its own environment must have.
    pub secrets: Vec<&'static str>,
    /// Where relative paths stand that it will read elsewhere, and that no variable can correct.
    pub misread: Vec<Origin>,
}

/// Among the options that the process is given.
const OPTIONS: &[&str] = &["SEAWALL_PREFIX", "SEAWALL_CONFIG"];

/// Who runs the process, not what it shall do.
const OF_THE_USER: &[&str] = &["HOME", "XDG_STATE_HOME", "USER"];

impl Config {
    /// What was given to this process alone, on its command line or in its environment, and paths that depend on the
    /// directory that it runs in.
    pub fn handed_on(&self) -> Result<HandedOn> {
        let s3 = matches!(self.prefix()?, Prefix::S3 { .. });
        let counts = |setting: &Setting| match setting.group {
            Group::Archive => !OPTIONS.contains(&setting.env),
            Group::S3 => s3,
            Group::System => s3 && !OF_THE_USER.contains(&setting.env),
            Group::Postgres | Group::Log => false,
        };
        let mut handed = HandedOn::default();
        for setting in SETTINGS.iter().filter(|setting| counts(setting)) {
            if let Some(value) = self.values.get(setting.env) {
                handed.add(setting, value)?;
            }
        }
        handed.keep_key_and_secret_together();
        Ok(handed)
    }
}

impl HandedOn {
    /// The name of a key beside the secret of another one would spoil both.
    fn keep_key_and_secret_together(&mut self) {
        let [key, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let at = self.variables.iter().position(|(name, _)| name == key);
        if let Some(at) = at.filter(|_| self.secrets.contains(&secret)) {
            self.variables.remove(at);
            self.secrets.insert(0, key);
        }
    }

    fn add(&mut self, setting: &Setting, value: &Value) -> Result<()> {
        let (name, text, path) = match &value.origin {
            Origin::SecretFile { path, .. } => {
                (format!("{}_FILE", setting.env), path.as_path(), true)
            }
            _ => {
                let path = setting.unit == Unit::Path;
                (setting.env.to_string(), Path::new(&value.text), path)
            }
        };
        let relative = path && text.is_relative();
        match &value.origin {
            Origin::Fallback(_) => return Ok(()),
            Origin::Flag(_) if setting.key == "s3.access-key-id" => return Ok(()),
            // The directory's files count before the environment.
            origin if relative && origin.is_of_envdir() => {
                self.misread.push(value.origin.clone());
                return Ok(());
            }
            origin if !origin.is_passing() && !relative => return Ok(()),
            _ => {}
        }
        if !path && is_secret(setting, &value.text) {
            self.secrets.push(setting.env);
            return Ok(());
        }
        let text = match relative {
            true => std::path::absolute(text)
                .map_err(|e| Error::io(format!("{name}: the path cannot be made absolute"), e))?
                .display()
                .to_string(),
            false => text.display().to_string(),
        };
        self.variables.push((name, text));
        Ok(())
    }
}

/// The URL of a proxy is a secret when it has a user or password in it.
fn is_secret(setting: &Setting, text: &str) -> bool {
    setting.secret && (!setting.env.ends_with("_PROXY") || text.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;
    use std::path::PathBuf;

    fn inputs(pairs: &[(&str, &str)]) -> Inputs {
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
        Inputs {
            env: pairs.iter().map(own).collect(),
            ..Inputs::default()
        }
    }

    fn handed(inputs: &Inputs) -> HandedOn {
        Config::load(inputs).unwrap().handed_on().unwrap()
    }

    fn here(name: &str) -> String {
        std::path::absolute(name).unwrap().display().to_string()
    }

    const S3: (&str, &str) = ("SEAWALL_PREFIX", "s3://bucket/path");

    #[test]
    fn paths_are_absolute_and_proxies_come_along() {
        let handed = handed(&inputs(&[
            S3,
            ("SEAWALL_RETRY_TIMEOUT", "5s"),
            ("SEAWALL_S3_CA_FILE", "ca.pem"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token"),
            ("SSL_CERT_FILE", "../certs.pem"),
            ("http_proxy", "http://proxy:3128"),
            ("HTTPS_PROXY", "http://user:topsecret@proxy:3128"),
            ("NO_PROXY", "localhost,.example"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "topsecret"),
            ("HOME", "/root"),
            ("PGHOST", "production"),
        ]));
        let variables = [
            ("SEAWALL_RETRY_TIMEOUT", "5s".to_string()),
            ("SEAWALL_S3_CA_FILE", here("ca.pem")),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token".into()),
            ("HTTP_PROXY", "http://proxy:3128".into()),
            ("NO_PROXY", "localhost,.example".into()),
            ("SSL_CERT_FILE", here("../certs.pem")),
        ];
        let variables = variables.map(|(name, text)| (name.to_string(), text));
        assert_eq!(handed.variables, variables);
        assert_eq!(
            handed.secrets,
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"]
        );
        assert_eq!(handed.misread, []);
    }

    #[test]
    fn a_directory_needs_nothing_of_s3() {
        let prefix = ("SEAWALL_PREFIX", "file:///archive");
        let proxy = ("HTTPS_PROXY", "http://u:topsecret@proxy");
        let ca = ("SEAWALL_S3_CA_FILE", "ca.pem");
        assert_eq!(handed(&inputs(&[prefix, proxy, ca])), HandedOn::default());
    }

    #[test]
    fn files_are_read_where_this_process_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let up = std::env::current_dir().unwrap().components().count() - 1;
        let base = PathBuf::from("../".repeat(up)).join(dir.path().strip_prefix("/").unwrap());
        let write = |name: &str, text: &str| {
            std::fs::write(base.join(name), text).unwrap();
            base.join(name).display().to_string()
        };
        let secret = write("secret", "topsecret");
        let toml = write(
            "seawall.toml",
            &format!("s3.ca-file = \"toml.pem\"\ns3.secret-access-key-file = \"{secret}\"\n"),
        );
        let variable = |name: &str, path: &str| (name.to_string(), here(path));

        // A secret that stands in a file is no secret that the server's environment must have.
        let by_env = handed(&inputs(&[
            S3,
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY_FILE", &secret),
        ]));
        let expected = variable("AWS_SECRET_ACCESS_KEY_FILE", &secret);
        let key = ("AWS_ACCESS_KEY_ID".to_string(), "key".to_string());
        assert_eq!(by_env.variables, [key, expected.clone()]);
        assert_eq!(by_env.secrets, [""; 0]);

        // Relative paths of a configuration file are relative to this directory.
        let by_toml = handed(&Inputs {
            config_file: Some(toml.into()),
            ..inputs(&[S3])
        });
        let ca = variable("SEAWALL_S3_CA_FILE", "toml.pem");
        assert_eq!(by_toml.variables, [ca, expected]);

        // What an envdir says cannot be corrected.
        std::fs::create_dir(base.join("env")).unwrap();
        let named = write("env/SEAWALL_S3_CA_FILE", "envdir.pem");
        let by_envdir = handed(&Inputs {
            envdir: Some(base.join("env")),
            ..inputs(&[S3])
        });
        assert_eq!(by_envdir.variables, []);
        assert_eq!(by_envdir.misread, [Origin::Envdir(named.into())]);
    }
}
