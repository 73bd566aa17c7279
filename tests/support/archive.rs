//! An archive under test: where it is, how seawall is told, and a look into it that does not go through seawall.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::cluster::{Builder, Cluster};
use super::minio::{Minio, Witness};
use super::seawall::Seawall;
use super::{Scratch, give_to_postgres, judges, unique};

/// An archive in a directory or in a bucket.
pub struct Archive<'a> {
    scratch: &'a Scratch,
    env: Vec<(String, String)>,
    objects: Objects,
}

enum Objects {
    Directory(PathBuf),
    Bucket(Box<Witness>),
}

impl<'a> Archive<'a> {
    /// A new directory under the scratch one.
    pub fn directory(scratch: &'a Scratch, name: &str) -> Archive<'a> {
        let path = scratch.dir(name);
        Archive {
            scratch,
            env: vec![(
                "SEAWALL_PREFIX".into(),
                format!("file://{}", path.display()),
            )],
            objects: Objects::Directory(path),
        }
    }

    /// A copy of the newest backup that backup-fetch prepares with these options, not started.
    pub fn copy(&self, options: &[&str]) -> Cluster {
        let data = self.scratch.join(format!("copy-{}", unique()));
        // An outage that is waited for ends the test late.
        let fetch = self.seawall_by_envdir().env("SEAWALL_RETRY_TIMEOUT", "2s");
        let fetch = fetch.arg("backup-fetch");
        fetch.arg(&data).arg("LATEST").args(options).run().ok();
        let name = format!("server-{}", unique());
        Cluster::builder(self.scratch, &name).on(&data)
    }

    /// A new bucket of the MinIO that speaks TLS.
    pub fn bucket(scratch: &'a Scratch, hint: &str) -> Archive<'a> {
        let minio = Minio::tls();
        let witness = minio.bucket(hint);
        let ca = scratch.file(format!("{hint}-ca.pem"), minio.ca_pem());
        give_to_postgres(&ca, 0o644);
        let mut env = minio.env(&witness.name());
        env.push(("SEAWALL_S3_CA_FILE".into(), ca.display().to_string()));
        Archive {
            scratch,
            env,
            objects: Objects::Bucket(Box::new(witness)),
        }
    }

    /// A bucket of another server, with the environment that leads there.
    pub fn of_witness(
        scratch: &'a Scratch,
        env: Vec<(String, String)>,
        witness: Witness,
    ) -> Archive<'a> {
        Archive {
            scratch,
            env,
            objects: Objects::Bucket(Box::new(witness)),
        }
    }

    /// seawall as user postgres, told by its environment where the archive is.
    pub fn seawall(&self) -> Seawall {
        let env = self.env.iter().cloned();
        Seawall::new(self.scratch).envs(env)
    }

    /// The same, told by an envdir: what it writes as restore_command then holds all that it needs.
    pub fn seawall_by_envdir(&self) -> Seawall {
        let dir = self.scratch.dir(format!("envdir-{}", super::unique()));
        for (name, value) in &self.env {
            self.scratch.file(dir.join(name), value);
        }
        Seawall::new(self.scratch).arg("--envdir").arg(dir)
    }

    /// The same, told how to reach this server.
    pub fn seawall_for(&self, cluster: &Cluster) -> Seawall {
        self.seawall().envs(cluster.client_env())
    }

    /// An archive_command that fills this archive.
    pub fn archive_command(&self) -> String {
        self.seawall().args(["wal-push", "%p"]).shell_line()
    }

    /// A server that archives here, not started.
    pub fn builder(&self, name: &str) -> Builder<'a> {
        Cluster::builder(self.scratch, name).archive_command(self.archive_command())
    }

    /// The directory, of an archive that is one.
    pub fn path(&self) -> &Path {
        match &self.objects {
            Objects::Directory(path) => path,
            Objects::Bucket(_) => panic!("the archive is in a bucket"),
        }
    }

    /// Keys relative to the prefix that begin so, in order.
    pub fn keys(&self, begin: &str) -> Vec<String> {
        match &self.objects {
            Objects::Directory(path) => {
                let mut found = Vec::new();
                files_below(path, path, &mut found);
                found.retain(|key| key.starts_with(begin));
                found.sort();
                found
            }
            Objects::Bucket(witness) => {
                let keys = witness.keys(&format!("archive/{begin}"));
                keys.iter()
                    .map(|key| key["archive/".len()..].to_string())
                    .collect()
            }
        }
    }

    /// An object's bytes.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        match &self.objects {
            Objects::Directory(path) => fs::read(path.join(key)).ok(),
            Objects::Bucket(witness) => witness.get(&format!("archive/{key}")),
        }
    }

    /// Replaces or makes an object.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        match &self.objects {
            Objects::Directory(path) => {
                let path = path.join(key);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                give_to_postgres(path.parent().expect("a directory"), 0o700);
                fs::write(&path, bytes).expect("an object");
                give_to_postgres(&path, 0o600);
            }
            Objects::Bucket(witness) => witness.put(&format!("archive/{key}"), bytes),
        }
    }

    /// Makes the bucket keep old versions, so that a delete leaves a marker.
    pub fn keep_versions(&self) {
        match &self.objects {
            Objects::Directory(_) => panic!("the archive is in a directory"),
            Objects::Bucket(witness) => witness.keep_versions(),
        }
    }

    /// Removes an object.
    pub fn delete(&self, key: &str) {
        match &self.objects {
            Objects::Directory(path) => fs::remove_file(path.join(key)).expect("an object"),
            Objects::Bucket(witness) => witness.delete(&format!("archive/{key}")),
        }
    }

    /// An object that is JSON.
    pub fn json(&self, key: &str) -> Value {
        let bytes = self.get(key).unwrap_or_else(|| panic!("no object {key}"));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{key}: {e}"))
    }

    /// Complete backups as backup-list tells, oldest first; none in an archive that is not begun yet.
    pub fn backups(&self) -> Vec<String> {
        let out = self.seawall().args(["backup-list", "--json"]).run();
        if out.code == Some(8) && out.stderr.contains("does not show itself") {
            return Vec::new();
        }
        let out = out.ok();
        let listed: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let listed = listed.as_array().expect("an array");
        let name = |backup: &Value| backup["name"].as_str().expect("a name").to_string();
        listed.iter().map(name).collect()
    }

    /// The newest of them.
    pub fn latest(&self) -> String {
        self.backups().pop().expect("a backup")
    }

    /// A backup's sentinel.
    pub fn sentinel(&self, backup: &str) -> Value {
        self.json(&sentinel_key(backup))
    }

    /// Fetches the WAL that a backup needs into a new directory.
    pub fn fetch_wal_of(&self, backup: &str) -> PathBuf {
        let dir = self.scratch.dir(format!("wal-{}", super::unique()));
        for segment in segments_of(&self.sentinel(backup)) {
            let fetch = self.seawall().arg("wal-fetch").arg(&segment);
            fetch.arg(dir.join(&segment)).run().ok();
        }
        dir
    }
}

/// `…_backup_stop_sentinel.json`.
pub fn sentinel_key(backup: &str) -> String {
    format!("basebackups_005/{backup}_backup_stop_sentinel.json")
}

/// The WAL segments with bytes in start..stop, worked out from the sentinel without seawall's help.
pub fn segments_of(sentinel: &Value) -> Vec<String> {
    let ours = &sentinel["seawall"];
    let size = ours["segment_size"].as_u64().expect("segment_size");
    let timeline = ours["timeline"].as_u64().expect("timeline");
    let (start, stop) = (lsn(&ours["start_lsn"]), lsn(&ours["stop_lsn"]));
    let per_id = (1u64 << 32) / size;
    let name = |n: u64| format!("{timeline:08X}{:08X}{:08X}", n / per_id, n % per_id);
    (start / size..=(stop - 1) / size).map(name).collect()
}

/// A position as text, `1/A0`, as a number.
pub fn lsn(text: &Value) -> u64 {
    let (high, low) = text
        .as_str()
        .and_then(|t| t.split_once('/'))
        .expect("an LSN");
    let number = |digits| u64::from_str_radix(digits, 16).expect("hexadecimal");
    number(high) << 32 | number(low)
}

/// The judges' opinion of a restored directory that was not started yet: alone, and with its WAL.
pub fn verify(data: &Path, wal: &Path) {
    judges::assert_verified(data);
    judges::assert_wal_verified(data, wal);
}

/// amcheck's opinion of all databases of a server.
pub fn amcheck(cluster: &Cluster) {
    judges::assert_sound(cluster);
}

/// Decompresses with zstd(1).
pub fn unzstd(bytes: &[u8]) -> Vec<u8> {
    filter(
        Command::new("zstd").args(["--decompress", "--stdout"]),
        bytes,
    )
}

/// Compresses with zstd(1).
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    filter(Command::new("zstd").args(["--stdout"]), bytes)
}

/// The lower-case hexadecimal SHA-256 by sha256sum(1).
pub fn sha256(bytes: &[u8]) -> String {
    let out = filter(&mut Command::new("sha256sum"), bytes);
    String::from_utf8_lossy(&out[..64]).into_owned()
}

/// What a program makes of its standard input.
pub fn filter(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("could not start {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let out = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input).expect("a reader"));
        child.wait_with_output().expect("its output")
    });
    assert!(out.status.success(), "{command:?}: {}", out.status);
    out.stdout
}

fn files_below(root: &Path, directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(root, &path, found);
        } else {
            let key = path.strip_prefix(root).expect("below the root");
            found.push(key.to_str().expect("keys are text").to_string());
        }
    }
}

/// What `tar --list --verbose` says of an archive in memory.
pub fn tar_list(bytes: &[u8]) -> String {
    let out = filter(
        Command::new("tar").args(["--list", "--verbose", "--quoting-style=literal", "--file=-"]),
        bytes,
    );
    String::from_utf8_lossy(&out).into_owned()
}
