//! The client against a server that hesitates, breaks off and lies about itself.

use super::*;
use crate::store::s3::script::{Act, answer, serve};
use std::io::Write;

const IDLE: Duration = Duration::from_millis(1200);

fn client(ca_file: Option<PathBuf>) -> Http {
    client_until(ca_file, IDLE, Stop::new())
}

fn client_until(ca_file: Option<PathBuf>, idle: Duration, stop: Stop) -> Http {
    Http::new(HttpOptions {
        request_timeout: idle,
        connect_timeout: Duration::from_secs(5),
        proxy: None,
        ca_file,
        system_certs_file: None,
        system_certs_dir: None,
        connections: 2,
        stop,
    })
    .unwrap()
}

fn send(http: &Http, url: &str, body: Option<&[u8]>) -> Result<Answer> {
    http.send(&Call {
        method: if body.is_some() { "PUT" } else { "GET" },
        url,
        headers: &[],
        body,
        local: None,
        repeatable: true,
    })
}

fn text(http: &Http, url: &str) -> Result<String> {
    send(http, url, None)?.text(1000)
}

#[test]
fn faults_of_a_connection_may_pass() {
    let part = "HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n12345";
    let rows: [(&str, Act, &str); 7] = [
        (
            "silence",
            Act::SayAndHang(String::new()),
            "made no progress",
        ),
        (
            "silence within the body",
            Act::SayAndHang(part.into()),
            "made no progress",
        ),
        (
            "silence within the head",
            Act::SayAndHang("HTTP/1.1 2".into()),
            "made no progress",
        ),
        ("closed", Act::Close, "failed"),
        (
            "closed within the head",
            Act::SayAndClose("HTTP/1.1 200 X\r\nct: 1".into()),
            "failed",
        ),
        ("a short body", Act::SayAndClose(part.into()), "failed"),
        (
            "another protocol",
            Act::SayAndClose("SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
            "HTTP",
        ),
    ];
    for (name, act, wanted) in rows {
        let server = serve(vec![act]);
        let error = text(&client(None), &server.url).expect_err(name);
        assert_eq!(error.kind(), Kind::Transient, "{name}: {error}");
        assert!(error.message().contains(wanted), "{name}: {error}");
        assert_eq!(
            server.lines().len(),
            1,
            "{name}: nothing is retried on a fresh connection"
        );
    }
}

#[test]
fn a_slow_answer_that_moves_is_not_cut() {
    let mut parts = vec!["HTTP/1.1 200 X\r\ncontent-length: 12\r\n\r\n".to_string()];
    parts.extend((0..6).map(|_| "ab".to_string()));
    let server = serve(vec![Act::Drip(parts, IDLE / 4)]);
    assert_eq!(text(&client(None), &server.url).unwrap(), "abababababab");
}

#[test]
fn nobody_listens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = text(&client(None), &url).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert!(
        error.message().starts_with("could not reach http://127."),
        "{error}"
    );
}

#[test]
fn a_name_that_nobody_knows() {
    let error = text(&client(None), "http://seawall.invalid/").unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert!(error.message().contains("could not reach"), "{error}");
}

#[test]
fn a_dead_kept_connection_is_replaced_once() {
    let ok = || Act::Say(answer(200, "", "fine"));
    let server = serve(vec![ok(), Act::Close, ok()]);
    let http = client(None);
    assert_eq!(text(&http, &server.url).unwrap(), "fine");
    // The second request meets a connection that dies, the third act answers it.
    assert_eq!(text(&http, &server.url).unwrap(), "fine");
    assert_eq!(server.lines().len(), 3);

    let server = serve(vec![ok(), Act::Close, Act::Close, ok()]);
    let http = client(None);
    text(&http, &server.url).unwrap();
    let error = text(&http, &server.url).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "only once: {error}");
    assert_eq!(server.lines().len(), 3);
}

#[test]
fn what_may_be_done_once_only_is_not_repeated_in_silence() {
    let server = serve(vec![Act::Say(answer(200, "", "fine")), Act::Close]);
    let http = client(None);
    text(&http, &server.url).unwrap();
    let once = Call {
        method: "PUT",
        url: &server.url,
        headers: &[],
        body: Some(b"x"),
        local: None,
        repeatable: false,
    };
    assert_eq!(http.send(&once).err().unwrap().kind(), Kind::Transient);
    assert_eq!(server.lines().len(), 2);
}

#[test]
fn a_request_that_was_answered_is_not_repeated() {
    let part = "HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n12345";
    let server = serve(vec![
        Act::Say(answer(200, "", "fine")),
        Act::SayAndClose(part.into()),
    ]);
    let http = client(None);
    text(&http, &server.url).unwrap();
    assert_eq!(
        text(&http, &server.url).unwrap_err().kind(),
        Kind::Transient
    );
    assert_eq!(server.lines().len(), 2);
}

#[test]
fn connections_are_kept() {
    let acts = (0..5).map(|_| Act::Say(answer(200, "", "fine"))).collect();
    let server = serve(acts);
    let http = client(None);
    for _ in 0..5 {
        let answer = send(&http, &server.url, Some(b"body")).unwrap();
        answer.text(10).unwrap();
    }
    assert!(server.seen().iter().all(|seen| seen.body == b"body"));
    assert_eq!((server.lines().len(), server.connections()), (5, 1));
}

#[test]
fn a_refusal_of_a_large_body_is_read() {
    let server = serve(vec![Act::RefuseBody(answer(
        403,
        "connection: close\r\n",
        "no",
    ))]);
    let body = vec![7u8; 64 << 20];
    let answer = send(&client(None), &server.url, Some(&body)).unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.text(10).unwrap(), "no");
}

#[test]
fn a_server_that_stops_reading_is_given_up() {
    let server = serve(vec![Act::StopReading]);
    let body = vec![7u8; 64 << 20];
    let error = send(&client(None), &server.url, Some(&body)).err().unwrap();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert!(error.message().contains("made no progress"), "{error}");
}

#[test]
fn a_stop_ends_every_wait() {
    const LONG: Duration = Duration::from_secs(600);
    let part = "HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n12345";
    let body = vec![7u8; 64 << 20];
    let rows: [(&str, Act, Option<&[u8]>); 3] = [
        ("silence", Act::SayAndHang(String::new()), None),
        (
            "silence within the body",
            Act::SayAndHang(part.into()),
            None,
        ),
        ("a server that stops reading", Act::StopReading, Some(&body)),
    ];
    for (name, act, body) in rows {
        let server = serve(vec![act]);
        let stop = Stop::new();
        let http = client_until(None, LONG, stop.within(Duration::from_millis(300)));
        let answer = send(&http, &server.url, body).and_then(|answer| answer.text(1000));
        assert_eq!(answer.unwrap_err().kind(), Kind::Interrupted, "{name}");
    }
}

#[test]
fn after_a_stop_a_last_request_has_a_moment() {
    let server = serve(vec![Act::Say(answer(200, "", "taken back"))]);
    let stop = Stop::new();
    stop.set();
    let http = client_until(None, IDLE, stop);
    assert_eq!(text(&http, &server.url).unwrap(), "taken back");
}

#[test]
fn a_proxy_is_asked_for_what_is_not_local() {
    let proxy = serve(vec![
        Act::Say("HTTP/1.1 200 OK\r\n\r\n".into()),
        Act::Say(answer(200, "", "through")),
        Act::SayAndClose(answer(407, "", "")),
    ]);
    let mut options = client(None).options;
    options.proxy = Some(proxy.url.clone());
    let http = Http::new(options).unwrap();
    let near = serve(vec![Act::Say(answer(200, "", "near"))]);
    let call = Call {
        method: "GET",
        url: &near.url,
        headers: &[],
        body: None,
        local: Some(Duration::from_secs(5)),
        repeatable: true,
    };
    assert_eq!(http.send(&call).unwrap().text(10).unwrap(), "near");
    // The proxy resolves the name, not this host.
    let far = "http://store.invalid:9000/x";
    assert_eq!(text(&http, far).unwrap(), "through");
    assert_eq!(proxy.lines(), ["CONNECT store.invalid:9000", "GET /x"]);
    let error = text(&http, "http://other.invalid/").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.message().contains("proxy"), "{error}");
}

#[test]
fn redirects_are_answers() {
    let server = serve(vec![Act::Say(answer(
        301,
        "location: http://127.0.0.1:1/\r\n",
        "",
    ))]);
    assert_eq!(send(&client(None), &server.url, None).unwrap().status, 301);
}

#[test]
fn a_body_larger_than_its_bound_is_refused() {
    let server = serve(vec![Act::Say(answer(200, "", &"x".repeat(1001)))]);
    let error = text(&client(None), &server.url).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[test]
fn a_proxy_is_checked_and_not_shown() {
    for proxy in ["socks5://u:geheim@h:1", "u:geheim@h", "http://u:geheim@"] {
        let mut options = client(None).options;
        options.proxy = Some(proxy.into());
        let error = Http::new(options).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
}

/// A server with a certificate that no system knows, and the certificate's file.
fn tls_server(dir: &Path) -> (String, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()]).unwrap();
    let file = dir.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).is_ok() {
                let _ = stream.write_all(answer(200, "", "secret").as_bytes());
                let _ = stream.flush();
            }
        }
    });
    (url, file)
}

#[test]
fn certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (url, ca_file) = tls_server(dir.path());
    let (_, other_file) = {
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        tls_server(&other)
    };
    assert_eq!(
        text(&client(Some(ca_file.clone())), &url).unwrap(),
        "secret"
    );
    let error = text(&client(Some(other_file)), &url).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(
        error.hint_text().unwrap().contains("SEAWALL_S3_CA_FILE"),
        "{error}"
    );
}

#[test]
fn certificate_files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pem");
    assert_eq!(certificates_of(&file).unwrap_err().kind(), Kind::Config);
    std::fs::write(&file, "no certificate").unwrap();
    assert_eq!(certificates_of(&file).unwrap_err().kind(), Kind::Config);
}

#[test]
fn origins() {
    let rows = [
        ("https://h:1/a?b", "https://h:1"),
        ("http://h", "http://h"),
        ("http://h?x", "http://h"),
    ];
    for (url, wanted) in rows {
        assert_eq!(origin_of(url), wanted);
    }
}
