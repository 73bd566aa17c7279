//! `rclone serve s3`: the S3 server that ignores `If-None-Match` and overwrites. Its buckets are directories and its
//! objects plain files, so a test can look at them, or damage them, on the disk.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::certs::Ca;
use super::minio::{ACCESS_KEY, SECRET_KEY, Witness, s3_env};
use super::proxy::Proxy;
use super::{PATH, Scratch, Server, as_postgres, ports, tool, wait_for};

/// A running rclone; ends when dropped.
pub struct Rclone {
    port: u16,
    data: PathBuf,
    ca_pem: Option<String>,
    plain_door: Option<Proxy>,
    server: Server,
}

impl Rclone {
    /// With plain HTTP or with TLS, on a directory of its own under the scratch one.
    pub fn start(scratch: &Scratch, tls: bool) -> Rclone {
        let dir = scratch.dir("rclone");
        let data = scratch.dir("rclone/data");
        let port = ports::free_port();
        let mut args: Vec<String> = [
            "serve",
            "s3",
            "--addr",
            &format!("127.0.0.1:{port}"),
            "--auth-key",
            &format!("{ACCESS_KEY},{SECRET_KEY}"),
            "--config",
            "/dev/null",
            "--dir-cache-time",
            "100ms", // with 0 it forgets in an endless loop that starves the requests
            "--log-file",
            &dir.join("log").display().to_string(),
        ]
        .map(String::from)
        .to_vec();
        let mut ca_pem = None;
        if tls {
            let ca = Ca::new("seawall test authority");
            let pair = ca.server(&["localhost", "127.0.0.1"]);
            let (cert, key) = pair.write(&dir, "server");
            args.extend(["--cert".into(), cert.display().to_string()]);
            args.extend(["--key".into(), key.display().to_string()]);
            ca_pem = Some(ca.pem().to_string());
        }
        args.push(data.display().to_string());
        let server = Server::start(&dir, "TERM", None, &tool("rclone"), &args, |command| {
            command
                .env("PATH", PATH)
                .env("HOME", &dir)
                .current_dir(&dir);
            as_postgres(command);
        });
        let plain_door = ca_pem.as_deref().map(|pem| Proxy::to_tls(port, pem));
        wait_for(Duration::from_secs(30), "rclone", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Rclone {
            port,
            data,
            ca_pem,
            plain_door,
            server,
        }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, with http or https.
    pub fn endpoint(&self) -> String {
        match self.ca_pem {
            Some(_) => format!("https://localhost:{}", self.port),
            None => format!("http://127.0.0.1:{}", self.port),
        }
    }

    /// The authority behind its certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.ca_pem.as_deref().expect("a server with TLS")
    }

    /// The directory in which each bucket is a directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A new bucket, and the witness that looks into it.
    pub fn bucket(&self, name: &str) -> Witness {
        let port = self.plain_door.as_ref().map_or(self.port, Proxy::port);
        let witness = Witness::new(port, name, ACCESS_KEY, SECRET_KEY);
        witness.create(); // a directory made beside it would be seen only later
        witness
    }

    /// What seawall needs in its environment to use a bucket here.
    pub fn env(&self, bucket: &str) -> Vec<(String, String)> {
        s3_env(&self.endpoint(), bucket)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }
}
