//! Each place of credentials as a scripted server, and time as an argument.

use super::*;
use crate::store::s3::http::HttpOptions;
use crate::store::s3::script::{Act, Server, answer, serve};

fn http() -> Http {
    Http::new(HttpOptions {
        request_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        proxy: None,
        ca_file: None,
        system_certs_file: None,
        system_certs_dir: None,
        connections: 1,
        stop: crate::work::stop::Stop::new(),
    })
    .unwrap()
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).unwrap()
}

fn keys_json(access: &str, end: &str) -> Act {
    let body = format!(
        r#"{{"Code":"Success","AccessKeyId":"{access}","SecretAccessKey":"s","Token":"t","Expiration":"{end}"}}"#
    );
    Act::Say(answer(200, "", &body))
}

fn get(sources: Sources) -> Result<Arc<Credentials>> {
    Provider::new(sources, "us-east-1").get(&http(), at("2026-01-01T00:00:00Z"))
}

fn container(server: &Server) -> Sources {
    Sources {
        container_full_uri: Some(format!("{}/creds?x=1", server.url)),
        ..Sources::default()
    }
}

#[test]
fn given_keys_come_first_and_whole() {
    let mut sources = Sources {
        access_key: Some(" AK\n".into()),
        secret_key: Some(Secret::new("geheim\n")),
        session_token: Some(Secret::new("token")),
        imds_disabled: true,
        ..Sources::default()
    };
    let found = get(sources.clone()).unwrap();
    assert_eq!(found.access_key, "AK");
    assert_eq!(found.secret_key.expose(), "geheim");
    assert!(!format!("{found:?} {sources:?}").contains("geheim"));
    sources.secret_key = None;
    let error = get(sources).unwrap_err();
    assert!(error.message().contains("AWS_SECRET_ACCESS_KEY"), "{error}");
}

#[test]
fn nothing_configured_is_said() {
    let error = get(Sources {
        imds_disabled: true,
        ..Sources::default()
    })
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.hint_text().unwrap().contains("AWS_ACCESS_KEY_ID"));
}

#[test]
fn a_container_shows_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "from the file\n").unwrap();
    let server = serve(vec![keys_json("AKC", "2026-01-01T06:00:00Z")]);
    let sources = Sources {
        container_token: Some(Secret::new("given")),
        container_token_file: Some(file),
        ..container(&server)
    };
    let found = get(sources).unwrap();
    assert_eq!(found.access_key, "AKC");
    assert_eq!(found.expires, Some(at("2026-01-01T06:00:00Z")));
    assert_eq!(server.lines(), ["GET /creds?x=1"]);
    assert_eq!(
        server.seen()[0].header("authorization"),
        Some("from the file")
    );
}

#[test]
fn keys_are_not_taken_from_strangers() {
    let rows = [
        ("http://127.0.0.1:80/x", true),
        ("http://localhost/x", true),
        ("http://169.254.170.23/v1", true),
        ("https://example.org/x", true),
        ("http://example.org/x", false),
        ("http://127.0.0.1.example.org/", false),
        ("http://localhost@example.org/", false),
        ("ftp://127.0.0.1/", false),
    ];
    for (url, allowed) in rows {
        assert_eq!(may_hold_credentials(url).is_ok(), allowed, "{url}");
    }
}

#[test]
fn instance_metadata_in_its_second_version() {
    let server = serve(vec![
        Act::Say(answer(200, "", "TOKEN")),
        Act::Say(answer(200, "", "role one\n")),
        keys_json("AKI", "2026-01-01T06:00:00Z"),
    ]);
    let sources = Sources {
        imds_endpoint: Some(format!("{}/", server.url)),
        ..Sources::default()
    };
    assert_eq!(get(sources).unwrap().access_key, "AKI");
    let path = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(
        server.lines(),
        [
            "PUT /latest/api/token".to_string(),
            format!("GET {path}"),
            format!("GET {path}role%20one")
        ]
    );
    let seen = server.seen();
    assert_eq!(
        seen[0].header("x-aws-ec2-metadata-token-ttl-seconds"),
        Some("21600")
    );
    assert_eq!(seen[2].header("x-aws-ec2-metadata-token"), Some("TOKEN"));
}

#[test]
fn a_web_identity_goes_in_the_body() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "a+token\n").unwrap();
    let server = serve(vec![Act::Say(answer(
        200,
        "",
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <AccessKeyId>AKW</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
         <Expiration>2026-01-01T01:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>",
    ))]);
    let sources = Sources {
        web_identity_token_file: Some(file),
        role_arn: Some("arn:aws:iam::1:role/r".into()),
        sts_endpoint: Some(server.url.clone()),
        ..Sources::default()
    };
    let found = get(sources.clone()).unwrap();
    assert_eq!(found.access_key, "AKW");
    assert_eq!(found.session_token, Some(Secret::new("t")));
    let seen = &server.seen()[0];
    assert_eq!(seen.line, "POST /");
    let body = String::from_utf8(seen.body.clone()).unwrap();
    assert!(body.contains("WebIdentityToken=a%2Btoken"), "{body}");
    assert!(
        body.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr"),
        "{body}"
    );
    let without = Sources {
        role_arn: None,
        ..sources
    };
    assert_eq!(get(without).unwrap_err().kind(), Kind::Config);
}

#[test]
fn renewal_comes_before_the_end_and_failures_are_survived() {
    let server = serve(vec![
        keys_json("AK1", "2026-01-01T01:00:00Z"),
        keys_json("AK2", "2026-01-01T02:00:00Z"),
        Act::Say(answer(500, "", "")),
        Act::Say(answer(500, "", "")),
    ]);
    let provider = Provider::new(container(&server), "r");
    let rows = [
        ("2026-01-01T00:00:00Z", "AK1", 1),
        ("2026-01-01T00:54:59Z", "AK1", 1),
        ("2026-01-01T00:55:00Z", "AK2", 2),
        ("2026-01-01T01:56:00Z", "AK2", 3),
        ("2026-01-01T01:56:59Z", "AK2", 3),
    ];
    for (now, access, requests) in rows {
        let found = provider.get(&http(), at(now)).unwrap();
        assert_eq!(
            (found.access_key.as_str(), server.lines().len()),
            (access, requests),
            "{now}"
        );
    }
    let error = provider
        .get(&http(), at("2026-01-01T02:00:00Z"))
        .unwrap_err();
    assert_eq!(
        error.kind(),
        Kind::Transient,
        "ended and not renewed: {error}"
    );
}

#[test]
fn many_threads_ask_once() {
    let server = serve(vec![keys_json("AK1", "2026-01-01T01:00:00Z")]);
    let provider = Provider::new(container(&server), "r");
    let http = http();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| provider.get(&http, at("2026-01-01T00:00:00Z")).unwrap());
        }
    });
    assert_eq!(server.lines().len(), 1);
}

#[test]
fn answers_that_hold_no_keys() {
    let denied = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not you</Message></Error></ErrorResponse>";
    let rows = [
        (answer(200, "", "geheim, not JSON"), Kind::Unavailable),
        (answer(200, "", "{}"), Kind::Unavailable),
        (answer(200, "", r#"{"Code":"Failed"}"#), Kind::Denied),
        (
            answer(
                200,
                "",
                r#"{"AccessKeyId":"a","SecretAccessKey":"geheim","Expiration":"soon"}"#,
            ),
            Kind::Unavailable,
        ),
        (answer(403, "", denied), Kind::Denied),
        (answer(404, "", "geheim"), Kind::Denied),
        (answer(503, "", ""), Kind::Transient),
    ];
    for (text, kind) in rows {
        let server = serve(vec![Act::Say(text.clone())]);
        let error = get(container(&server)).unwrap_err();
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
}

#[test]
fn a_profile_that_is_named_is_used_before_a_container() {
    let sources = Sources {
        profile: Some("nobody".into()),
        container_full_uri: Some("http://127.0.0.1:1/".into()),
        ..Sources::default()
    };
    assert_eq!(get(sources).unwrap_err().kind(), Kind::Config);
}
