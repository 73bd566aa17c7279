//! AWS Signature Version 4 in the Authorization header (never in the URL, where logs would see it).
//!
//! The recipe is the one of AWS's "Authenticating Requests (AWS Signature Version 4)": canonical request, string to
//! sign, a key derived from date, region and service. S3 takes the path as it was sent: encoded once, not normalised.

use crate::codec::digest;
use crate::pg::timestamp::Timestamp;
use ring::hmac;
use std::fmt::Write;

/// SHA-256 of no bytes: the payload hash of every request without a body.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Stands for the payload's hash where TLS protects the payload.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// What the signature covers. `path` and `query` are encoded as they are sent; `headers` include `host`.
pub struct Signable<'a> {
    /// GET, PUT…
    pub method: &'a str,
    /// The path of the request line.
    pub path: &'a str,
    /// The query of the request line, from `canonical_query`.
    pub query: &'a str,
    /// Every header that is signed, in any order and case.
    pub headers: &'a [(&'a str, &'a str)],
    /// Hexadecimal SHA-256 of the body, or `UNSIGNED_PAYLOAD`.
    pub payload: &'a str,
}

/// Where and when the signature holds.
pub struct Scope<'a> {
    /// Region, as in `us-east-1`.
    pub region: &'a str,
    /// Service, `s3`.
    pub service: &'a str,
    /// The time that also stands in `x-amz-date`.
    pub time: Timestamp,
}

/// The value of the Authorization header.
pub fn authorization(
    request: &Signable<'_>,
    scope: &Scope<'_>,
    access_key: &str,
    secret: &str,
) -> String {
    let (canonical, signed_headers) = canonical_request(request);
    let date = scope.time.date();
    let place = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let hash = digest::hex(&digest::sha256(canonical.as_bytes()));
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{place}\n{hash}",
        scope.time.compact()
    );
    let signature = digest::hex(
        mac(
            &signing_key(secret, &date, scope.region, scope.service),
            &text,
        )
        .as_ref(),
    );
    format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{place}, SignedHeaders={signed_headers}, Signature={signature}"
    )
}

/// The canonical request and the list of signed header names.
fn canonical_request(request: &Signable<'_>) -> (String, String) {
    let mut headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), squeeze(value)))
        .collect();
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let mut text = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    for (name, value) in &headers {
        let _ = writeln!(text, "{name}:{value}");
    }
    let _ = write!(text, "\n{names}\n{}", request.payload);
    (text, names)
}

/// Trimmed, with runs of spaces made one.
fn squeeze(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn signing_key(secret: &str, date: &str, region: &str, service: &str) -> hmac::Tag {
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    let mut key = hmac::sign(&first, date.as_bytes());
    for step in [region, service, "aws4_request"] {
        key = mac(&key, step);
    }
    key
}

fn mac(key: &hmac::Tag, text: &str) -> hmac::Tag {
    hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()),
        text.as_bytes(),
    )
}

/// Percent-encodes every byte but the unreserved ones (RFC 3986); `/` stays as it is only in a path.
pub fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            b'/' if keep_slash => out.push('/'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Encoded `name=value` pairs in the order of the encoded names, as both the request line and the signature want.
pub fn canonical_query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<(String, String)> = pairs
        .iter()
        .map(|(name, value)| (encode(name, false), encode(value, false)))
        .collect();
    encoded.sort();
    let joined: Vec<String> = encoded
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    joined.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector {
        name: &'static str,
        method: &'static str,
        path: &'static str,
        query: &'static [(&'static str, &'static str)],
        headers: &'static [(&'static str, &'static str)],
        payload: &'static str,
        signature: &'static str,
    }

    /// "Examples: Signature Calculations" of the S3 API reference: key AKIAIOSFODNN7EXAMPLE, us-east-1,
    /// 24 May 2013.
    #[test]
    fn the_examples_of_the_s3_reference() {
        let vectors = [
            Vector {
                name: "GET object with a range",
                method: "GET",
                path: "/test.txt",
                query: &[],
                headers: &[
                    ("Host", "examplebucket.s3.amazonaws.com"),
                    ("Range", "bytes=0-9"),
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", "20130524T000000Z"),
                ],
                payload: EMPTY_SHA256,
                signature: "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            },
            Vector {
                name: "PUT object",
                method: "PUT",
                path: "/test%24file.text",
                query: &[],
                headers: &[
                    ("Date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("Host", "examplebucket.s3.amazonaws.com"),
                    ("x-amz-date", "20130524T000000Z"),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                    (
                        "x-amz-content-sha256",
                        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                    ),
                ],
                payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                signature: "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            },
            Vector {
                name: "GET bucket lifecycle",
                method: "GET",
                path: "/",
                query: &[("lifecycle", "")],
                headers: &[
                    ("Host", "examplebucket.s3.amazonaws.com"),
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", "20130524T000000Z"),
                ],
                payload: EMPTY_SHA256,
                signature: "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            },
            Vector {
                name: "GET bucket, list objects",
                method: "GET",
                path: "/",
                query: &[("prefix", "J"), ("max-keys", "2")],
                headers: &[
                    ("Host", "examplebucket.s3.amazonaws.com"),
                    ("x-amz-content-sha256", EMPTY_SHA256),
                    ("x-amz-date", "20130524T000000Z"),
                ],
                payload: EMPTY_SHA256,
                signature: "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            },
        ];
        let time = Timestamp::parse_rfc3339("2013-05-24T00:00:00Z").unwrap();
        for vector in vectors {
            let query = canonical_query(vector.query);
            let request = Signable {
                method: vector.method,
                path: vector.path,
                query: &query,
                headers: vector.headers,
                payload: vector.payload,
            };
            let scope = Scope {
                region: "us-east-1",
                service: "s3",
                time,
            };
            let value = authorization(
                &request,
                &scope,
                "AKIAIOSFODNN7EXAMPLE",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            );
            let wanted = format!("Signature={}", vector.signature);
            assert!(value.ends_with(&wanted), "{}: {value}", vector.name);
        }
    }

    /// AWS's Signature Version 4 test suite: service "service", 30 August 2015.
    #[test]
    fn the_vectors_of_the_test_suite() {
        const HOST_DATE: Pairs = &[
            ("Host", "example.amazonaws.com"),
            ("X-Amz-Date", "20150830T123600Z"),
        ];
        type Pairs = &'static [(&'static str, &'static str)];
        let rows: [(&str, Pairs, Pairs, &str); 4] = [
            (
                "GET",
                &[],
                HOST_DATE,
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "GET",
                &[("Param2", "value2"), ("Param1", "value1")],
                HOST_DATE,
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "POST",
                &[],
                HOST_DATE,
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "GET",
                &[],
                &[
                    ("Host", "example.amazonaws.com"),
                    ("My-Header1", " value1"),
                    ("My-Header2", " \"a   b   c\""),
                    ("X-Amz-Date", "20150830T123600Z"),
                ],
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
        ];
        let time = Timestamp::parse_rfc3339("2015-08-30T12:36:00Z").unwrap();
        for (method, query, headers, signature) in rows {
            let query = canonical_query(query);
            let request = Signable {
                method,
                path: "/",
                query: &query,
                headers,
                payload: EMPTY_SHA256,
            };
            let scope = Scope {
                region: "us-east-1",
                service: "service",
                time,
            };
            let value = authorization(
                &request,
                &scope,
                "AKIDEXAMPLE",
                "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            );
            assert!(
                value.ends_with(&format!("Signature={signature}")),
                "{method} {query}: {value}"
            );
        }
    }

    #[test]
    fn every_byte_of_a_key_is_encoded() {
        let rows = [
            ("wal_005/0000~-._", true, "wal_005/0000~-._"),
            ("a b+c=ü/%", true, "a%20b%2Bc%3D%C3%BC/%25"),
            ("a/b", false, "a%2Fb"),
            (
                "!'()*;:@&,?#[]\u{1}",
                true,
                "%21%27%28%29%2A%3B%3A%40%26%2C%3F%23%5B%5D%01",
            ),
        ];
        for (text, keep, wanted) in rows {
            assert_eq!(encode(text, keep), wanted);
        }
        assert_eq!(
            canonical_query(&[("uploads", ""), ("b", "x y")]),
            "b=x%20y&uploads="
        );
    }
}
