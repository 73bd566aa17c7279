//! MinIO, the S3 server that honours conditional PUT; and the witness, an S3 client that is not ours.
//!
//! One server with plain HTTP and one with TLS serve the whole test program, each started when first asked for; every
//! test takes a bucket of its own.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use s3::creds::Credentials;
use s3::error::S3Error;
use s3::{Bucket, BucketConfiguration, Region};

use super::certs::Ca;
use super::proxy::Proxy;
use super::{
    PATH, Scratch, Server, as_postgres, give_to_postgres, ports, send_signal, tool, unique,
    wait_for,
};

/// The key id of the servers' owner.
pub const ACCESS_KEY: &str = "seawalltestowner";
/// Its secret, which must show up in no output.
pub const SECRET_KEY: &str = "S3cret-of-the-test-owner";
/// The servers' region.
pub const REGION: &str = "us-east-1";

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running MinIO.
pub struct Minio {
    place: Place,
    ca_pem: Option<String>,
    /// Before a server with TLS: the way in for clients without.
    plain_door: Option<Proxy>,
    server: Mutex<Server>,
}

/// Where a server lives.
struct Place {
    dir: PathBuf,
    /// Whether the directory is to be removed when the server ends.
    passing: bool,
    port: u16,
    console: u16,
}

impl Minio {
    /// The one with plain HTTP.
    pub fn plain() -> &'static Minio {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(|| Minio::start(false))
    }

    /// The one with TLS, its certificate for `localhost` and 127.0.0.1 signed by an authority of our own.
    pub fn tls() -> &'static Minio {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(|| Minio::start(true))
    }

    /// A server of one's own, for tests that stop it.
    pub fn start(tls: bool) -> Minio {
        // Statics are never dropped: the watchdog removes this directory when the test process is gone.
        let made = tempfile::Builder::new()
            .prefix("seawall-test-minio-")
            .tempdir();
        Minio::start_in(made.expect("a temporary directory").keep(), true, tls)
    }

    /// One with plain HTTP that keeps what it has when it is killed, and comes again.
    pub fn lasting(scratch: &Scratch) -> Minio {
        let dir = scratch.dir(format!("minio-{}", unique()));
        Minio::start_in(dir, false, false)
    }

    fn start_in(dir: PathBuf, passing: bool, tls: bool) -> Minio {
        give_to_postgres(&dir, 0o700);
        for name in ["data", "certs", "home"] {
            let path = dir.join(name);
            std::fs::create_dir(&path).expect("a directory");
            give_to_postgres(&path, 0o700);
        }
        let ca_pem = tls.then(|| write_certificates(&dir.join("certs")));
        let place = Place {
            dir,
            passing,
            port: ports::free_port(),
            console: ports::free_port(),
        };
        let plain_door = ca_pem.as_deref().map(|pem| Proxy::to_tls(place.port, pem));
        let minio = Minio {
            server: Mutex::new(place.launch()),
            place,
            ca_pem,
            plain_door,
        };
        minio.wait_ready();
        minio
    }

    /// It says it is ready before it takes buckets: only a bucket proves it.
    fn wait_ready(&self) {
        let name = format!("ready-{}", unique());
        let first = Witness::new(self.plain_port(), &name, ACCESS_KEY, SECRET_KEY);
        wait_for(PATIENCE, "MinIO", || first.try_create().is_ok());
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// Its URL, with http or https.
    pub fn endpoint(&self) -> String {
        match self.ca_pem {
            Some(_) => format!("https://localhost:{}", self.place.port),
            None => format!("http://127.0.0.1:{}", self.place.port),
        }
    }

    /// The authority behind its certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.ca_pem.as_deref().expect("a server with TLS")
    }

    fn plain_port(&self) -> u16 {
        self.plain_door
            .as_ref()
            .map_or(self.place.port, Proxy::port)
    }

    /// A new bucket, and the witness that looks into it.
    pub fn bucket(&self, hint: &str) -> Witness {
        let name = format!("{hint}-{}-{}", std::process::id(), unique());
        let witness = Witness::new(self.plain_port(), &name, ACCESS_KEY, SECRET_KEY);
        witness.create();
        witness
    }

    /// What seawall needs in its environment to use a bucket here, the prefix's path `archive` in it.
    pub fn env(&self, bucket: &str) -> Vec<(String, String)> {
        s3_env(&self.endpoint(), bucket)
    }

    /// Ends this server; only for one of one's own.
    pub fn stop(&self) {
        let mut server = self.server.lock().unwrap_or_else(|e| e.into_inner());
        server.end();
    }

    /// Ends a lasting one as the death of its machine would.
    pub fn kill9(&self) {
        let mut server = self.server.lock().unwrap_or_else(|e| e.into_inner());
        send_signal(server.pid(), Signal::KILL);
        server.wait(PATIENCE);
    }

    /// Starts a lasting one that was killed.
    pub fn start_again(&self) {
        *self.server.lock().unwrap_or_else(|e| e.into_inner()) = self.place.launch();
        self.wait_ready();
    }
}

impl Place {
    fn launch(&self) -> Server {
        let of = |name: &str| self.dir.join(name).display().to_string();
        let args: Vec<String> = [
            "server",
            "--quiet",
            "--certs-dir",
            &of("certs"),
            "--address",
            &format!("127.0.0.1:{}", self.port),
            "--console-address",
            &format!("127.0.0.1:{}", self.console),
            &of("data"),
        ]
        .map(String::from)
        .to_vec();
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("minio.log"))
            .expect("a log file");
        let remove = self.passing.then_some(self.dir.as_path());
        Server::start(
            &self.dir,
            "TERM",
            remove,
            &tool("minio"),
            &args,
            |command| {
                command
                    .env("PATH", PATH)
                    .env("HOME", of("home"))
                    .env("MINIO_ROOT_USER", ACCESS_KEY)
                    .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
                    .env("MINIO_REGION_NAME", REGION)
                    .env("MINIO_BROWSER", "off")
                    .env("MINIO_UPDATE", "off")
                    .env("MINIO_CI_CD", "1") // a directory will do, it need not be a disk of its own
                    .current_dir(of("home"))
                    .stdout(log.try_clone().expect("a descriptor"))
                    .stderr(log);
                as_postgres(command);
            },
        )
    }
}

/// The environment of seawall for an S3 server at this URL (a proxy's, perhaps) and a bucket.
pub fn s3_env(endpoint: &str, bucket: &str) -> Vec<(String, String)> {
    [
        ("SEAWALL_PREFIX", format!("s3://{bucket}/archive")),
        ("SEAWALL_S3_ENDPOINT", endpoint.to_string()),
        ("SEAWALL_S3_REGION", REGION.to_string()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_string()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_string()),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .to_vec()
}

fn write_certificates(dir: &Path) -> String {
    let ca = Ca::new("seawall test authority");
    let pair = ca.server(&["localhost", "127.0.0.1"]);
    for (name, text) in [("public.crt", &pair.cert), ("private.key", &pair.key)] {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("a certificate file");
        give_to_postgres(&path, 0o600);
    }
    ca.pem().to_string()
}

/// The `rust-s3` crate looking at a bucket over plain HTTP: a second opinion on what our own client did there.
#[derive(Clone)]
pub struct Witness {
    bucket: Box<Bucket>,
    region: Region,
    credentials: Credentials,
}

impl Witness {
    /// A client for a bucket of a server on 127.0.0.1 that speaks plain HTTP.
    pub fn new(port: u16, bucket: &str, key: &str, secret: &str) -> Witness {
        s3::set_retries(0);
        let region = Region::Custom {
            region: REGION.into(),
            endpoint: format!("http://127.0.0.1:{port}"),
        };
        let credentials = Credentials::new(Some(key), Some(secret), None, None, None);
        let credentials = credentials.expect("keys");
        let made = Bucket::new(bucket, region.clone(), credentials.clone()).expect("a bucket");
        Witness {
            bucket: made.with_path_style(),
            region,
            credentials,
        }
    }

    /// The bucket's name.
    pub fn name(&self) -> String {
        self.bucket.name()
    }

    /// Makes the bucket.
    pub fn create(&self) {
        self.try_create().expect("the server makes the bucket");
    }

    fn try_create(&self) -> Result<(), String> {
        let made = Bucket::create_with_path_style(
            &self.bucket.name(),
            self.region.clone(),
            self.credentials.clone(),
            BucketConfiguration::default(),
        );
        match made {
            Ok(answer) if answer.success() => Ok(()),
            Ok(answer) => Err(answer.response_text),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Keys and sizes below a prefix, in the order of the keys.
    pub fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let pages = self.bucket.list(prefix.into(), None).expect("a listing");
        let objects = pages.into_iter().flat_map(|page| page.contents);
        let mut found: Vec<_> = objects.map(|o| (o.key, o.size)).collect();
        found.sort();
        found
    }

    /// Only the keys.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.list(prefix).into_iter().map(|(key, _)| key).collect()
    }

    /// An object's bytes, if it is there.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.bucket.get_object(key) {
            Ok(answer) if answer.status_code() == 200 => Some(answer.to_vec()),
            Ok(answer) if answer.status_code() == 404 => None,
            Err(S3Error::HttpFailWithBody(404, _)) => None,
            other => panic!("get {key}: {other:?}"),
        }
    }

    /// Stores an object, over whatever is there.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let answer = self.bucket.put_object(key, bytes).expect("a put");
        assert_eq!(answer.status_code(), 200, "put {key}");
    }

    /// Removes an object (in a bucket with versions: lays a delete marker over it).
    pub fn delete(&self, key: &str) {
        self.bucket.delete_object(key).expect("a delete");
    }

    /// Keys of multipart uploads that were neither finished nor aborted. MinIO lists those of one whole key only.
    pub fn unfinished_uploads(&self, key: &str) -> Vec<String> {
        let pages = self.bucket.list_multiparts_uploads(Some(key), None);
        let pages = pages.expect("a listing of uploads");
        let uploads = pages.into_iter().flat_map(|page| page.uploads);
        uploads.map(|upload| upload.key).collect()
    }

    /// Makes the bucket keep old versions, so that a delete leaves a marker.
    pub fn keep_versions(&self) {
        let query = [("versioning".to_string(), String::new())];
        let bucket = self.bucket.with_extra_query(query.into());
        let body = b"<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Status>Enabled</Status></VersioningConfiguration>";
        let answer = bucket.expect("a bucket").put_object("", body);
        assert_eq!(answer.expect("versioning").status_code(), 200);
    }
}
