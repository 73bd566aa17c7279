//! S3 against a server that lies, hesitates and breaks off.

use super::object::{crc_text, crc_value};
use super::script::{Act, Server, answer, s3_error, serve};
use super::*;
use std::io::Read;

const OBJECT: &str = "etag: \"e1\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

fn options(server: &Server) -> Options {
    Options {
        endpoint: Some(server.url.clone()),
        request_timeout: Duration::from_millis(400),
        credentials: Sources {
            access_key: Some("AK".into()),
            secret_key: Some(Secret::new("geheim")),
            ..Sources::default()
        },
        ..Options::default()
    }
}

fn store(server: &Server) -> S3 {
    S3::new("b", "p", &options(server)).unwrap()
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn say(status: u16, headers: &str, body: &str) -> Act {
    Act::Say(answer(status, headers, body))
}

/// The answer to a HEAD of an object of that size: a length, no body.
fn head_of(size: usize, more: &str) -> Act {
    Act::Say(format!(
        "HTTP/1.1 200 OK\r\n{OBJECT}{more}content-length: {size}\r\n\r\n"
    ))
}

fn head_status(status: u16, more: &str) -> Act {
    Act::Say(format!(
        "HTTP/1.1 {status} X\r\n{more}content-length: 0\r\n\r\n"
    ))
}

fn read(body: Body) -> Result<String> {
    let mut text = String::new();
    let mut reader = body.reader;
    reader
        .read_to_string(&mut text)
        .map_err(|e| crate::error::from_io("reading", e))?;
    Ok(text)
}

const PAGE: &str = "<!DOCTYPE html><html><body>Welcome</body></html>";
const HTML: &str = "content-type: text/html\r\n";

#[test]
fn a_put_is_whole_signed_and_verified() {
    let server = serve(vec![
        say(200, OBJECT, ""),
        head_of(5, "x-amz-checksum-crc32c: mnG7TA==\r\n"),
    ]);
    let mut options = options(&server);
    options.storage_class = Some("STANDARD_IA".into());
    options.sse = Some("aws:kms".into());
    options.sse_kms_key = Some("k1".into());
    options.credentials.session_token = Some(Secret::new("token"));
    let store = S3::new("b", "p", &options).unwrap();
    store.put(&key("a b+ü"), b"hello", When::Absent).unwrap();
    assert_eq!(
        server.lines(),
        ["PUT /b/p/a%20b%2B%C3%BC", "HEAD /b/p/a%20b%2B%C3%BC"]
    );
    assert_eq!(server.connections(), 1, "the HEAD uses the same connection");
    let put = &server.seen()[0];
    assert_eq!(put.body, b"hello");
    let rows = [
        ("content-length", "5"),
        ("if-none-match", "*"),
        ("x-amz-checksum-crc32c", "mnG7TA=="),
        (
            "x-amz-content-sha256",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "k1"),
        ("x-amz-security-token", "token"),
    ];
    for (name, value) in rows {
        assert_eq!(put.header(name), Some(value), "{name}");
    }
    let signed = put.header("authorization").unwrap();
    for name in [
        "host;if-none-match;",
        "x-amz-checksum-crc32c;",
        "x-amz-security-token;",
    ] {
        assert!(signed.contains(name), "{signed}");
    }
}

#[test]
fn an_empty_object_has_a_length_too() {
    let server = serve(vec![say(200, OBJECT, ""), head_of(0, "")]);
    store(&server).put(&key("k"), b"", When::Always).unwrap();
    let put = &server.seen()[0];
    assert_eq!(put.header("content-length"), Some("0"));
    assert_eq!(put.header("if-none-match"), None);
}

#[test]
fn the_condition_follows_what_a_probe_has_shown() {
    let rows = [
        (None, true, false),
        (Some(true), true, true),
        (Some(false), false, false),
    ];
    for (probed, sent, atomic) in rows {
        let server = serve(vec![say(200, OBJECT, ""), head_of(1, "")]);
        let options = Options {
            conditional_put: probed,
            ..options(&server)
        };
        let store = S3::new("b", "p", &options).unwrap();
        store.put(&key("k"), b"x", When::Absent).unwrap();
        assert_eq!(
            server.seen()[0].header("if-none-match").is_some(),
            sent,
            "{probed:?}"
        );
        assert_eq!(store.features().atomic_absent, atomic, "{probed:?}");
    }
}

#[test]
fn a_put_that_stores_nothing_or_something_else_is_an_error() {
    let rows: Vec<(&str, Vec<Act>)> = vec![
        (
            "nothing",
            vec![head_status(404, ""), Act::Say(s3_error(404, "NoSuchKey"))],
        ),
        (
            "a gateway",
            vec![head_status(404, ""), say(404, HTML, PAGE)],
        ),
        ("a page to everything", vec![say(200, HTML, "")]),
        ("a short object", vec![head_of(4, "")]),
        (
            "other bytes",
            vec![head_of(5, "x-amz-checksum-crc32c: AAAAAA==\r\n")],
        ),
    ];
    for (name, acts) in rows {
        let mut all = vec![say(200, HTML, PAGE)];
        all.extend(acts);
        let server = serve(all);
        let error = store(&server)
            .put(&key("k"), b"hello", When::Absent)
            .expect_err(name);
        assert_eq!(error.kind(), Kind::Unavailable, "{name}: {error}");
    }
}

#[test]
fn refused_puts() {
    let rows = [
        (412, "PreconditionFailed", Kind::Exists),
        (409, "ConditionalRequestConflict", Kind::Transient),
        (403, "AccessDenied", Kind::Denied),
        (404, "NoSuchBucket", Kind::Unavailable),
        (503, "SlowDown", Kind::Transient),
        (507, "XMinioStorageFull", Kind::Transient),
    ];
    for (status, code, kind) in rows {
        let server = serve(vec![Act::Say(s3_error(status, code))]);
        let error = store(&server)
            .put(&key("k"), b"x", When::Absent)
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{code}");
        assert!(!error.to_string().contains("geheim"));
        assert_eq!(
            server.lines().len(),
            1,
            "{code}: no backend retries by itself"
        );
    }
}

#[test]
fn what_a_get_may_say() {
    let deleted = "x-amz-delete-marker: true\r\n";
    let no_key = "<Error><Code>NoSuchKey</Code></Error>";
    let rows = [
        ("missing", s3_error(404, "NoSuchKey"), Kind::Missing),
        ("bare 404", answer(404, "", ""), Kind::Unavailable),
        ("a page", answer(404, HTML, PAGE), Kind::Unavailable),
        (
            "no bucket",
            s3_error(404, "NoSuchBucket"),
            Kind::Unavailable,
        ),
        ("deleted", answer(404, deleted, no_key), Kind::Hole),
        ("denied", s3_error(403, "AccessDenied"), Kind::Denied),
        ("a login page", answer(200, HTML, PAGE), Kind::Unavailable),
        (
            "a login page with an etag",
            answer(200, &format!("{HTML}etag: x\r\n"), PAGE),
            Kind::Unavailable,
        ),
        ("busy", answer(503, HTML, PAGE), Kind::Transient),
        (
            "redirect",
            answer(301, "x-amz-bucket-region: eu-west-1\r\n", ""),
            Kind::Unavailable,
        ),
        (
            "half an error",
            answer(404, "", "<Error><Code>NoSuchKey</Code>"),
            Kind::Unavailable,
        ),
    ];
    for (name, text, kind) in rows {
        let server = serve(vec![Act::Say(text)]);
        match store(&server).get(&key("k"), 0) {
            Ok(_) => panic!("{name} is an error"),
            Err(error) => assert_eq!(error.kind(), kind, "{name}: {error}"),
        }
    }
}

#[test]
fn a_refusal_that_breaks_off_proves_nothing() {
    let cut = "HTTP/1.1 404 X\r\ncontent-length: 90\r\n\r\n<Error><Code>NoSuchKey</Code></Error>";
    for act in [Act::SayAndClose(cut.into()), Act::SayAndHang(cut.into())] {
        let server = serve(vec![act]);
        let error = store(&server).get(&key("k"), 0).err().unwrap();
        assert_eq!(error.kind(), Kind::Transient, "{error}");
    }
    let long = format!("{PAGE}{}", " ".repeat(200_000));
    let server = serve(vec![say(503, HTML, &long)]);
    let error = store(&server).get(&key("k"), 0).err().unwrap();
    assert_eq!(error.kind(), Kind::Transient, "a long page: {error}");
}

#[test]
fn a_body_read_to_its_end_gives_its_connection_back() {
    let server = serve(vec![say(200, OBJECT, "fine"), say(200, OBJECT, "too")]);
    let store = store(&server);
    for wanted in ["fine", "too"] {
        let mut bytes = vec![0; wanted.len()];
        let mut body = store.get(&key("k"), 0).unwrap();
        // As callers do that know the size: they never ask for what is behind the end.
        body.reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, wanted.as_bytes());
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn broken_bodies_are_errors() {
    let part = format!("HTTP/1.1 200 X\r\n{OBJECT}content-length: 10\r\n\r\n12345");
    for act in [Act::SayAndClose(part.clone()), Act::SayAndHang(part)] {
        let server = serve(vec![act]);
        let body = store(&server).get(&key("k"), 0).unwrap();
        assert_eq!(body.size, 10);
        assert_eq!(read(body).unwrap_err().kind(), Kind::Transient);
    }
}

#[test]
fn ranges_however_they_are_answered() {
    let part = "etag: \"e1\"\r\ncontent-range: bytes 3-9/10\r\n";
    let rows: Vec<(&str, Vec<Act>)> = vec![
        ("as it should be", vec![say(206, part, "3456789")]),
        ("status 200 with the range", vec![say(200, part, "3456789")]),
        (
            "the range ignored",
            vec![say(200, OBJECT, "0123456789"), head_of(10, "")],
        ),
        (
            "a range that is not named",
            vec![say(200, OBJECT, "3456789"), head_of(10, "")],
        ),
        (
            "no length at all",
            vec![
                Act::SayAndClose(format!("HTTP/1.1 200 X\r\n{OBJECT}\r\n0123456789")),
                head_of(10, ""),
            ],
        ),
    ];
    for (name, acts) in rows {
        let server = serve(acts);
        let body = store(&server).get(&key("k"), 3).expect(name);
        assert_eq!(body.size, 10, "{name}");
        assert_eq!(body.version.as_deref(), Some("\"e1\""));
        assert_eq!(read(body).expect(name), "3456789", "{name}");
        assert_eq!(server.seen()[0].header("range"), Some("bytes=3-"));
    }
}

#[test]
fn ranges_that_cannot_be_right() {
    let rows: Vec<(&str, Vec<Act>, Kind)> = vec![
        (
            "another range",
            vec![say(
                206,
                "etag: x\r\ncontent-range: bytes 2-9/10\r\n",
                "23456789",
            )],
            Kind::Unavailable,
        ),
        (
            "a cut range",
            vec![say(
                206,
                "etag: x\r\ncontent-range: bytes 3-5/10\r\n",
                "345",
            )],
            Kind::Unavailable,
        ),
        (
            "a strange length",
            vec![say(200, OBJECT, "34"), head_of(10, "")],
            Kind::Unavailable,
        ),
        (
            "beyond the end",
            vec![Act::Say(s3_error(416, "InvalidRange")), head_of(2, "")],
            Kind::Mismatch,
        ),
    ];
    for (name, acts, kind) in rows {
        let server = serve(acts);
        match store(&server).get(&key("k"), 3) {
            Ok(_) => panic!("{name} is an error"),
            Err(error) => assert_eq!(error.kind(), kind, "{name}: {error}"),
        }
    }
    let server = serve(vec![
        Act::Say(s3_error(416, "InvalidRange")),
        head_of(3, ""),
    ]);
    let body = store(&server).get(&key("k"), 3).unwrap();
    assert_eq!((body.size, read(body).unwrap().as_str()), (3, ""));
}

#[test]
fn a_head_proves_absence_by_a_get() {
    let rows: Vec<(&str, Vec<Act>, std::result::Result<bool, Kind>)> = vec![
        ("there", vec![head_of(7, "")], Ok(true)),
        (
            "missing",
            vec![head_status(404, ""), Act::Say(s3_error(404, "NoSuchKey"))],
            Ok(false),
        ),
        (
            "no bucket",
            vec![
                head_status(404, ""),
                Act::Say(s3_error(404, "NoSuchBucket")),
            ],
            Err(Kind::Unavailable),
        ),
        (
            "a gateway",
            vec![head_status(404, ""), say(404, HTML, PAGE)],
            Err(Kind::Unavailable),
        ),
        (
            "deleted",
            vec![head_status(404, "x-amz-delete-marker: true\r\n")],
            Err(Kind::Hole),
        ),
        (
            "denied",
            vec![
                head_status(403, ""),
                Act::Say(s3_error(403, "AccessDenied")),
            ],
            Err(Kind::Denied),
        ),
        (
            "expired",
            vec![
                head_status(400, ""),
                Act::Say(s3_error(400, "ExpiredToken")),
            ],
            Err(Kind::Denied),
        ),
        ("busy", vec![head_status(503, "")], Err(Kind::Transient)),
        (
            "a page",
            vec![Act::Say(format!(
                "HTTP/1.1 200 X\r\n{HTML}content-length: 9\r\n\r\n"
            ))],
            Err(Kind::Unavailable),
        ),
        (
            "just made",
            vec![
                head_status(404, ""),
                say(206, "etag: x\r\ncontent-range: bytes 0-0/7\r\n", "a"),
            ],
            Ok(true),
        ),
        (
            "made empty",
            vec![
                head_status(404, ""),
                Act::Say(s3_error(416, "InvalidRange")),
            ],
            Ok(true),
        ),
    ];
    for (name, acts, wanted) in rows {
        let server = serve(acts);
        let found = store(&server).head(&key("k"));
        let found = found
            .map(|info| info.is_some())
            .map_err(|error| error.kind());
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn a_head_tells_size_time_and_checksum() {
    let checksum = "x-amz-checksum-crc32c: mnG7TA==\r\n";
    let composite = format!("{checksum}x-amz-checksum-type: COMPOSITE\r\n");
    let rows = [
        (checksum, Some(0x9a71_bb4c)),
        (composite.as_str(), None),
        ("x-amz-checksum-crc32c: mnG7TA==-3\r\n", None),
        ("", None),
    ];
    for (headers, crc32c) in rows {
        let server = serve(vec![head_of(5, headers)]);
        let info = store(&server).head(&key("k")).unwrap().unwrap();
        assert_eq!((info.size, info.crc32c), (5, crc32c), "{headers}");
        assert_eq!(info.modified.secs(), 784_111_777);
    }
    assert_eq!(crc32c::crc32c(b"hello"), 0x9a71_bb4c);
    for value in [0, 1, 0x9a71_bb4c, u32::MAX] {
        assert_eq!(crc_value(&crc_text(value)), Some(value));
    }
}

fn page(keys: &[&str], next: Option<&str>) -> Act {
    let mut text = String::from("<ListBucketResult>");
    for key in keys {
        text.push_str(&format!(
            "<Contents><Key>p/{key}</Key><Size>1</Size></Contents>"
        ));
    }
    match next {
        Some("") => text.push_str("<IsTruncated>true</IsTruncated>"),
        Some(next) => text.push_str(&format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>"
        )),
        None => {}
    }
    say(200, "", &format!("{text}</ListBucketResult>"))
}

fn listed(server: &Server, prefix: &str, after: &str) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    store(server).list(prefix, after, &mut |info| {
        keys.push(info.key.to_string());
        Ok(true)
    })?;
    Ok(keys)
}

#[test]
fn listings_go_on_to_the_end() {
    let server = serve(vec![
        page(&["w/a", "w/b"], Some("t/1")),
        page(&["w/c", "w//x", "w/d/"], None),
    ]);
    assert_eq!(listed(&server, "w/", "w/0").unwrap(), ["w/a", "w/b", "w/c"]);
    let common = "encoding-type=url&list-type=2&max-keys=1000&prefix=p%2Fw%2F";
    assert_eq!(
        server.lines(),
        [
            format!("GET /b?{common}&start-after=p%2Fw%2F0"),
            format!("GET /b?continuation-token=t%2F1&{common}"),
        ]
    );
    // Without a token the last key says where to go on; a server that ignores start-after repeats itself.
    let server = serve(vec![page(&["a", "b"], Some("")), page(&["c"], None)]);
    assert_eq!(listed(&server, "", "a").unwrap(), ["b", "c"]);
    assert!(
        server.lines()[1].ends_with("start-after=p%2Fb"),
        "{:?}",
        server.lines()
    );
}

#[test]
fn a_listing_without_end_is_given_up_for_now() {
    let max = limits::LIST_EMPTY_PAGES_MAX;
    let empty = |count: u32| (0..count).map(|number| page(&[], Some(&format!("t{number}"))));
    // A few pages without a key are a store's right; a key begins the count anew.
    let mut acts: Vec<Act> = empty(max - 1).collect();
    acts.push(page(&["a"], Some("a")));
    acts.extend(empty(max - 1));
    acts.push(page(&["b"], None));
    assert_eq!(listed(&serve(acts), "", "").unwrap(), ["a", "b"]);

    let server = serve(empty(max).collect());
    let error = listed(&server, "", "").unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert_eq!(server.lines().len(), max as usize);
}

#[test]
fn a_listing_may_be_ended_early() {
    let server = serve(vec![page(&["a", "b"], Some("t"))]);
    let mut count = 0;
    store(&server)
        .list("", "", &mut |_| {
            count += 1;
            Ok(false)
        })
        .unwrap();
    assert_eq!((count, server.lines().len()), (1, 1));
}

#[test]
fn what_is_no_listing() {
    let rows = [
        ("a page", say(200, HTML, PAGE), Kind::Unavailable),
        (
            "half",
            say(200, "", "<ListBucketResult><Contents>"),
            Kind::Unavailable,
        ),
        ("nothing", say(200, "", ""), Kind::Unavailable),
        (
            "no bucket",
            Act::Say(s3_error(404, "NoSuchBucket")),
            Kind::Unavailable,
        ),
        (
            "denied",
            Act::Say(s3_error(403, "AccessDenied")),
            Kind::Denied,
        ),
        (
            "no key?",
            Act::Say(s3_error(404, "NoSuchKey")),
            Kind::Unavailable,
        ),
        ("disorder", page(&["b", "a"], None), Kind::Unavailable),
        ("busy", Act::Say(s3_error(503, "SlowDown")), Kind::Transient),
    ];
    for (name, act, kind) in rows {
        let server = serve(vec![act]);
        let error = listed(&server, "", "").expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
    let server = serve(vec![
        page(&["a"], Some("t")),
        page(&["a"], Some("t")),
        page(&["a"], Some("t")),
    ]);
    assert!(
        listed(&server, "", "").is_err(),
        "a listing that turns in circles ends"
    );
}

#[test]
fn deleting_what_is_not_there_is_fine() {
    let rows = [
        (answer(204, "", ""), Ok(())),
        (s3_error(404, "NoSuchKey"), Ok(())),
        (s3_error(404, "NoSuchBucket"), Err(Kind::Unavailable)),
        (answer(404, HTML, PAGE), Err(Kind::Unavailable)),
        (s3_error(403, "AccessDenied"), Err(Kind::Denied)),
    ];
    for (text, wanted) in rows {
        let server = serve(vec![Act::Say(text)]);
        let done = store(&server)
            .delete(&key("k"))
            .map_err(|error| error.kind());
        assert_eq!(done, wanted);
    }
}

fn begun() -> Act {
    say(
        200,
        "",
        "<InitiateMultipartUploadResult><UploadId>u/1</UploadId></InitiateMultipartUploadResult>",
    )
}

const DONE: &str = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";

#[test]
fn an_upload_in_pieces() {
    let whole = crc_text(crc32c::crc32c(b"hello world"));
    let server = serve(vec![
        begun(),
        say(200, "etag: \"2\"\r\n", ""),
        say(200, "etag: \"1\"\r\n", ""),
        say(200, "", DONE),
        head_of(11, &format!("x-amz-checksum-crc32c: {whole}\r\n")),
    ]);
    let upload = store(&server).begin(&key("k"), When::Absent).unwrap();
    upload.piece(1, 6, b"world").unwrap();
    upload.piece(0, 0, b"hello ").unwrap();
    upload.finish(2, 11).unwrap();
    drop(upload);
    assert_eq!(
        server.lines(),
        [
            "POST /b/p/k?uploads=",
            "PUT /b/p/k?partNumber=2&uploadId=u%2F1",
            "PUT /b/p/k?partNumber=1&uploadId=u%2F1",
            "POST /b/p/k?uploadId=u%2F1",
            "HEAD /b/p/k",
        ]
    );
    assert_eq!(server.connections(), 1);
    let seen = server.seen();
    assert_eq!(seen[0].header("x-amz-checksum-algorithm"), Some("CRC32C"));
    assert_eq!(seen[0].header("content-length"), Some("0"));
    assert_eq!(seen[3].header("if-none-match"), Some("*"));
    assert_eq!(
        seen[3].header("x-amz-checksum-crc32c"),
        Some(whole.as_str())
    );
    let document = String::from_utf8(seen[3].body.clone()).unwrap();
    let first = document
        .find("<PartNumber>1</PartNumber><ETag>&quot;1&quot;")
        .unwrap();
    assert!(
        first < document.find("<PartNumber>2</PartNumber>").unwrap(),
        "{document}"
    );
}

#[test]
fn a_failed_upload_is_aborted() {
    let piece = || say(200, "etag: \"1\"\r\n", "");
    let aborted = || say(204, "", "");
    let failed = "<Error><Code>InternalError</Code></Error>";
    let rows: Vec<(&str, Vec<Act>, Kind)> = vec![
        (
            "an error in a 200",
            vec![begun(), piece(), say(200, "", failed), aborted()],
            Kind::Transient,
        ),
        (
            "a page",
            vec![begun(), piece(), say(200, HTML, PAGE), aborted()],
            Kind::Unavailable,
        ),
        (
            "it exists",
            vec![
                begun(),
                piece(),
                Act::Say(s3_error(412, "PreconditionFailed")),
                aborted(),
            ],
            Kind::Exists,
        ),
        (
            "conflict",
            vec![
                begun(),
                piece(),
                Act::Say(s3_error(409, "ConditionalRequestConflict")),
                aborted(),
            ],
            Kind::Transient,
        ),
        (
            "a lost upload",
            vec![
                begun(),
                piece(),
                Act::Say(s3_error(404, "NoSuchUpload")),
                head_of(1, ""),
                aborted(),
            ],
            Kind::Unavailable,
        ),
    ];
    for (name, acts, kind) in rows {
        let server = serve(acts);
        let upload = store(&server).begin(&key("k"), When::Absent).unwrap();
        upload.piece(0, 0, b"x").unwrap();
        let error = upload.finish(1, 1).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        drop(upload);
        assert_eq!(
            server.lines().last().unwrap(),
            "DELETE /b/p/k?uploadId=u%2F1",
            "{name}"
        );
    }
}

#[test]
fn a_dropped_upload_is_aborted_and_a_broken_one_never_completed() {
    let server = serve(vec![
        begun(),
        say(200, "etag: \"1\"\r\n", ""),
        say(204, "", ""),
    ]);
    let upload = store(&server).begin(&key("k"), When::Absent).unwrap();
    upload.piece(1, 5, b"x").unwrap();
    for (pieces, size) in [(1, 1), (2, 6), (1, 6)] {
        assert_eq!(upload.finish(pieces, size).unwrap_err().kind(), Kind::Bug);
    }
    drop(upload);
    assert_eq!(server.lines()[2], "DELETE /b/p/k?uploadId=u%2F1");
    assert_eq!(server.lines().len(), 3);
}

#[test]
fn a_lost_acknowledgement_is_found_again() {
    let server = serve(vec![
        begun(),
        say(200, "etag: \"1\"\r\n", ""),
        Act::SayAndHang(String::new()),
        Act::Say(s3_error(404, "NoSuchUpload")),
        head_of(1, ""),
        head_of(1, ""),
    ]);
    let upload = store(&server).begin(&key("k"), When::Absent).unwrap();
    upload.piece(0, 0, b"x").unwrap();
    assert_eq!(upload.finish(1, 1).unwrap_err().kind(), Kind::Transient);
    upload.finish(1, 1).unwrap();
    drop(upload);
    assert!(!server.lines().iter().any(|line| line.starts_with("DELETE")));
}

#[test]
fn an_upload_without_pieces_is_an_empty_object() {
    let server = serve(vec![
        begun(),
        say(204, "", ""),
        say(200, OBJECT, ""),
        head_of(0, ""),
    ]);
    let upload = store(&server).begin(&key("k"), When::Absent).unwrap();
    upload.finish(0, 0).unwrap();
    drop(upload);
    assert_eq!(server.lines()[2], "PUT /b/p/k");
    assert_eq!(server.lines().len(), 4);
}

#[test]
fn credentials_that_end_early_are_renewed_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credentials");
    std::fs::write(
        &file,
        "[default]\naws_access_key_id=OLD\naws_secret_access_key=s\n",
    )
    .unwrap();
    let server = serve(vec![
        Act::Say(s3_error(404, "NoSuchKey")),
        Act::Say(s3_error(400, "ExpiredToken")),
        say(200, OBJECT, "fine"),
        Act::Say(s3_error(400, "ExpiredToken")),
        Act::Say(s3_error(400, "ExpiredToken")),
    ]);
    let options = Options {
        credentials: Sources {
            credentials_file: Some(file.clone()),
            ..Sources::default()
        },
        ..options(&server)
    };
    let store = S3::new("b", "p", &options).unwrap();
    assert!(store.get(&key("k"), 0).is_err());
    std::fs::write(
        &file,
        "[default]\naws_access_key_id=NEW\naws_secret_access_key=s\n",
    )
    .unwrap();
    assert_eq!(read(store.get(&key("k"), 0).unwrap()).unwrap(), "fine");
    let used: Vec<bool> = server
        .seen()
        .iter()
        .map(|seen| {
            seen.header("authorization")
                .unwrap()
                .contains("Credential=NEW/")
        })
        .collect();
    assert_eq!(used, [false, false, true]);
    let error = store.get(&key("k"), 0).err().unwrap();
    assert_eq!((error.kind(), server.lines().len()), (Kind::Denied, 5));
}

#[test]
fn nothing_secret_is_shown() {
    let server = serve(vec![]);
    let mut options = options(&server);
    options.proxy = Some("http://u:geheim@h:1".into());
    let shown = format!("{options:?}");
    assert!(!shown.contains("geheim"), "{shown}");
    assert_eq!(store(&server).location(), "s3://b/p");
}
