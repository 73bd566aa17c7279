//! The S3 store on real servers: MinIO with TLS, which honours `If-None-Match`, and rclone with plain HTTP, which
//! does not. The conformance suite, and what only a real server can show: whom it refuses, what it leaves behind,
//! what an independent client reads back.

use crate::support::minio::{ACCESS_KEY, Minio, REGION, SECRET_KEY, Witness};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::rclone::Rclone;
use crate::support::{Scratch, unique};
use seawall::error::{Error, Kind};
use seawall::limits::UPLOAD_PIECE_BYTES;
use seawall::store::retry::{Policy, Retry};
use seawall::store::s3::{Addressing, Options, S3, Secret, Sources};
use seawall::store::{Key, Store, When, suite};
use seawall::work::stop::Stop;
use std::io::Read;
use std::time::Duration;

fn options(endpoint: String) -> Options {
    Options {
        endpoint: Some(endpoint),
        region: REGION.into(),
        request_timeout: Duration::from_secs(10),
        credentials: Sources {
            access_key: Some(ACCESS_KEY.into()),
            secret_key: Some(Secret::new(SECRET_KEY)),
            ..Sources::default()
        },
        ..Options::default()
    }
}

/// Options for the MinIO with TLS; the certificate's file stands in the scratch directory.
fn tls_options(scratch: &Scratch) -> Options {
    let minio = Minio::tls();
    Options {
        ca_file: Some(scratch.file("ca.pem", minio.ca_pem())),
        ..options(minio.endpoint())
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn read(store: &dyn Store, name: &str, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut body = store.get(&key(name), offset).unwrap();
    body.reader.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn minio_over_tls_conforms() {
    let scratch = Scratch::new();
    let options = Options {
        conditional_put: Some(true),
        ..tls_options(&scratch)
    };
    suite::run(&|| {
        let bucket = Minio::tls().bucket("suite").name();
        Box::new(S3::new(&bucket, "pre/fix ü", &options).unwrap())
    });
}

/// The store as commands use it.
fn patient(store: S3) -> Box<dyn Store> {
    let policy = Policy {
        total: Duration::from_secs(20),
        request_idle: Duration::from_secs(10),
    };
    Box::new(Retry::new(Box::new(store), policy, Stop::new()))
}

#[test]
fn rclone_conforms_but_for_the_condition() {
    let scratch = Scratch::new();
    let rclone = Rclone::start(&scratch, false);
    let options = options(rclone.endpoint());
    let make: suite::Make = &|| {
        let bucket = rclone.bucket(&format!("suite-{}", unique())).name();
        // While directories come and go rclone answers 500 now and then.
        patient(S3::new(&bucket, "", &options).unwrap())
    };
    for (name, case) in suite::CASES {
        // rclone loses a key for a moment while several write it: its own race, not ours.
        if *name != "of many writers one wins" {
            case(&suite::Subject::new(make));
        }
    }
}

#[test]
fn minio_conforms_behind_faults() {
    let proxy = Proxy::start(Minio::plain().port());
    let faults = [
        Fault::LoseAck,
        Fault::DropBeforeBody,
        Fault::CutBodyAt(1000),
        Fault::Reset,
        Fault::s3_error(503, "SlowDown"),
    ];
    // The suite makes a few thousand requests; some are hit, never so many in a row as to use up the patience.
    for (number, fault) in (0..).zip(faults) {
        for start in [5, 17, 40, 41, 90, 200, 400, 800] {
            proxy.rule(Rule::new(fault.clone()).after(start + 3 * number).times(1));
        }
    }
    let options = Options {
        conditional_put: Some(true),
        ..options(proxy.endpoint())
    };
    suite::run(&|| {
        let bucket = Minio::plain().bucket("faults").name();
        patient(S3::new(&bucket, "p", &options).unwrap())
    });
}

/// What the independent client finds is what was stored, in one request and in pieces, with its checksum.
#[test]
fn another_client_reads_what_was_stored() {
    let scratch = Scratch::new();
    let witness = Minio::tls().bucket("witness");
    let store = S3::new(&witness.name(), "archive", &tls_options(&scratch)).unwrap();
    let bytes: Vec<u8> = (0..UPLOAD_PIECE_BYTES + 777)
        .map(|i| ((i * 7) >> 3) as u8)
        .collect();
    store
        .put(&key("wal_005/a b"), &bytes[..1000], When::Absent)
        .unwrap();
    let (head, tail) = bytes.split_at(UPLOAD_PIECE_BYTES);
    let upload = store.begin(&key("base/part"), When::Absent).unwrap();
    upload.piece(0, 0, head).unwrap();
    upload.piece(1, head.len() as u64, tail).unwrap();
    upload.finish(2, bytes.len() as u64).unwrap();
    assert_eq!(
        witness.keys(""),
        ["archive/base/part", "archive/wal_005/a b"]
    );
    assert!(witness.get("archive/base/part").unwrap() == bytes);
    assert_eq!(witness.get("archive/wal_005/a b").unwrap(), &bytes[..1000]);
    assert!(read(&store, "base/part", 12_345) == bytes[12_345..]);
    for (name, stored) in [("wal_005/a b", &bytes[..1000]), ("base/part", &bytes[..])] {
        let info = store.head(&key(name)).unwrap().unwrap();
        assert_eq!(info.crc32c, Some(crc32c::crc32c(stored)), "{name}");
    }
}

#[test]
fn nothing_is_left_of_a_dropped_upload() {
    let scratch = Scratch::new();
    let witness = Minio::tls().bucket("dropped");
    let store = S3::new(&witness.name(), "", &tls_options(&scratch)).unwrap();
    let upload = store.begin(&key("x"), When::Absent).unwrap();
    upload.piece(0, 0, &vec![1; UPLOAD_PIECE_BYTES]).unwrap();
    assert_eq!(witness.unfinished_uploads("x"), ["x"]);
    drop(upload);
    assert!(witness.unfinished_uploads("x").is_empty());
    assert!(witness.keys("").is_empty());
}

#[test]
fn a_delete_marker_is_a_hole() {
    let scratch = Scratch::new();
    let witness = Minio::tls().bucket("versions");
    witness.keep_versions();
    let store = S3::new(&witness.name(), "", &tls_options(&scratch)).unwrap();
    store.put(&key("x"), b"x", When::Absent).unwrap();
    witness.delete("x");
    assert_eq!(store.head(&key("x")).unwrap_err().kind(), Kind::Hole);
    assert_eq!(store.get(&key("x"), 0).err().unwrap().kind(), Kind::Hole);
    assert_eq!(store.head(&key("y")).unwrap(), None, "never there");
}

/// Each wrong setting and what the server makes of it.
#[test]
fn refusals_by_name() {
    let scratch = Scratch::new();
    let bucket = Minio::tls().bucket("refusals").name();
    let good = tls_options(&scratch);
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    let other_ca = scratch.file("other.pem", crate::support::certs::Ca::new("other").pem());
    let plain_on_tls = Minio::tls().endpoint().replace("https:", "http:");
    let tls_on_plain = Minio::plain().endpoint().replace("http:", "https:");
    let rows: Vec<(&str, &str, Options, Kind, &str)> = vec![
        (
            "wrong secret",
            &bucket,
            with(&|o| o.credentials.secret_key = Some(Secret::new("no"))),
            Kind::Denied,
            "SignatureDoesNotMatch",
        ),
        (
            "wrong key",
            &bucket,
            with(&|o| o.credentials.access_key = Some("nobody".into())),
            Kind::Denied,
            "InvalidAccessKeyId",
        ),
        (
            "no bucket",
            "no-such-bucket",
            good.clone(),
            Kind::Unavailable,
            "NoSuchBucket",
        ),
        (
            "a foreign CA",
            &bucket,
            with(&|o| o.ca_file = Some(other_ca.clone())),
            Kind::Unavailable,
            "SEAWALL_S3_CA_FILE",
        ),
        (
            "http to TLS",
            &bucket,
            with(&|o| o.endpoint = Some(plain_on_tls.clone())),
            Kind::Unavailable,
            "SEAWALL_S3_ENDPOINT",
        ),
        (
            "TLS to http",
            &bucket,
            with(&|o| o.endpoint = Some(tls_on_plain.clone())),
            Kind::Unavailable,
            "SEAWALL_S3_ENDPOINT",
        ),
    ];
    for (name, bucket, options, kind, wanted) in rows {
        let store = S3::new(bucket, "p", &options).unwrap();
        let errors: Vec<Error> = vec![
            store.head(&key("k")).expect_err(name),
            store.get(&key("k"), 0).err().unwrap(),
            store.put(&key("k"), b"x", When::Absent).unwrap_err(),
            store.list("", "", &mut |_| Ok(true)).unwrap_err(),
            store.begin(&key("k"), When::Absent).err().unwrap(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{name}: {error}");
            assert!(error.to_string().contains(wanted), "{name}: {error}");
            assert!(!error.to_string().contains(SECRET_KEY), "{name}: {error}");
        }
    }
}

/// The bucket in the host name: MinIO takes it when its domain is known; here the proxy shows what was asked.
#[test]
fn the_bucket_in_the_host_name() {
    let proxy = Proxy::start(Minio::plain().port());
    let endpoint = proxy.endpoint().replace("127.0.0.1", "localhost");
    let options = Options {
        addressing: Addressing::Virtual,
        ..options(endpoint)
    };
    let store = S3::new("bucket", "p", &options).unwrap();
    // Names below localhost are this host's by RFC 6761, but not every resolver knows it.
    if let Err(error) = store.head(&key("k")) {
        assert!(
            matches!(
                error.kind(),
                Kind::Transient | Kind::Unavailable | Kind::Denied
            ),
            "{error}"
        );
    }
    for request in proxy.requests() {
        assert!(
            request
                .header("host")
                .unwrap()
                .starts_with("bucket.localhost")
        );
        assert_eq!(request.path, "/p/k");
    }
}

/// rclone sends ranges with status 200, and its objects are plain files.
#[test]
fn rclone_sends_the_right_bytes() {
    let scratch = Scratch::new();
    let rclone = Rclone::start(&scratch, false);
    let witness: Witness = rclone.bucket("plain");
    let store = S3::new(&witness.name(), "p", &options(rclone.endpoint())).unwrap();
    store
        .put(&key("wal/x"), b"0123456789", When::Absent)
        .unwrap();
    assert_eq!(
        std::fs::read(rclone.data().join("plain/p/wal/x")).unwrap(),
        b"0123456789"
    );
    for offset in 0..=10 {
        assert_eq!(
            read(&store, "wal/x", offset),
            &b"0123456789"[offset as usize..]
        );
    }
}
