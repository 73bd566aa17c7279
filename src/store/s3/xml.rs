//! The XML that S3 speaks: listings, multipart answers, errors, STS. Read by pulling, never as a tree.
//!
//! A document counts only when it is well formed up to the end of its root: half a listing is an error, not a
//! short listing. Depth is bounded here, bytes are bounded by whoever read the document.

use crate::pg::timestamp::Timestamp;
use quick_xml::Reader;
use quick_xml::events::Event;
use std::fmt::Write;

/// Deepest nesting accepted; S3 needs five.
const DEPTH_MAX: usize = 16;

/// One object of a listing.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// The whole key in the bucket.
    pub key: String,
    /// Stored bytes.
    pub size: u64,
    /// When it was stored.
    pub modified: Timestamp,
}

/// One page of ListObjectsV2.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// The objects in the store's order.
    pub objects: Vec<Listed>,
    /// Whether there are more.
    pub truncated: bool,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// The body of an S3 error. Only these parts are read: others repeat what was signed, tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// `NoSuchKey`…
    pub code: String,
    /// The store's sentence.
    pub message: String,
    /// What the store's operator asks for.
    pub request_id: Option<String>,
    /// The region that would have been right.
    pub region: Option<String>,
}

/// Credentials from AssumeRoleWithWebIdentity.
#[derive(Default)]
pub struct AssumedRole {
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Session token.
    pub session_token: String,
    /// RFC 3339.
    pub expiration: String,
}

type Visit<'a> = &'a mut dyn FnMut(&[String], Option<&str>) -> Result<(), String>;

/// Calls `each` when an element ends: with its text if it has no children, with `None` if it has. The path holds
/// local names from the root. Returns the name of the root.
fn walk(document: &str, each: Visit<'_>) -> Result<String, String> {
    let mut reader = Reader::from_str(document);
    let mut path: Vec<String> = Vec::new();
    let mut root = None;
    let mut text = String::new();
    let mut leaf = false;
    loop {
        match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_string());
                if path.len() > DEPTH_MAX {
                    return Err("it is nested too deeply".to_string());
                }
                text.clear();
                leaf = true;
            }
            Event::End(_) => {
                each(&path, leaf.then_some(text.as_str()))?;
                leaf = false;
                let name = path.pop();
                if path.is_empty() {
                    root = name;
                    break;
                }
            }
            Event::Empty(empty) => {
                path.push(empty.local_name().as_ref().to_string());
                each(&path, Some(""))?;
                leaf = false;
                let name = path.pop();
                if path.is_empty() {
                    root = name;
                    break;
                }
            }
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(name) => text.push(reference(&name)?),
            Event::Eof => break,
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::DocType(_) => return Err("it has a document type".to_string()),
        }
    }
    root.ok_or_else(|| "it ends early".to_string())
}

/// The character that `&name;` stands for.
fn reference(name: &quick_xml::events::BytesRef<'_>) -> Result<char, String> {
    if let Some(c) = name.resolve_char_ref().map_err(|e| e.to_string())? {
        return Ok(c);
    }
    match &*name.xml10_content() {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        other => Err(format!("it has the unknown entity {other:?}")),
    }
}

/// Reads a page of ListObjectsV2.
pub fn list_page(document: &str) -> Result<ListPage, String> {
    let mut page = ListPage::default();
    let mut encoded = false;
    let (mut key, mut size, mut modified) = (None, None, Timestamp::default());
    let root = walk(document, &mut |path, text| {
        let [_, name] = match path {
            [root, name] => [root.as_str(), name.as_str()],
            [_, contents, name] if contents == "Contents" => {
                let text = text.unwrap_or_default();
                match name.as_str() {
                    "Key" => key = Some(text.to_string()),
                    "Size" => size = Some(text.parse().map_err(|_| format!("size {text:?}"))?),
                    "LastModified" => {
                        modified = Timestamp::parse_rfc3339(text).map_err(|e| e.to_string())?;
                    }
                    _ => {}
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        match name {
            "Contents" => page.objects.push(Listed {
                key: key.take().ok_or("an entry has no key")?,
                size: size.take().ok_or("an entry has no size")?,
                modified: std::mem::take(&mut modified),
            }),
            "IsTruncated" => page.truncated = text == Some("true"),
            "NextContinuationToken" => page.next = text.map(str::to_string),
            "EncodingType" => encoded = text == Some("url"),
            _ => {}
        }
        Ok(())
    })?;
    if root != "ListBucketResult" {
        return Err(format!("it is a {root}, not a listing"));
    }
    if encoded {
        for object in &mut page.objects {
            object.key = decode_url(&object.key)?;
        }
    }
    Ok(page)
}

/// Undoes `encoding-type=url`, where a plus sign is a space.
fn decode_url(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
                    _ => return Err(format!("the key {text:?} is not encoded as it says")),
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).map_err(|_| format!("the key {text:?} is not UTF-8"))
}

/// The id of an upload that CreateMultipartUpload has begun.
pub fn upload_id(document: &str) -> Result<String, String> {
    let mut id = None;
    walk(document, &mut |path, text| {
        // rclone leaves the "Result" away.
        if let [root, name] = path
            && root.starts_with("InitiateMultipartUpload")
            && name == "UploadId"
        {
            id = text.map(str::to_string);
        }
        Ok(())
    })?;
    id.filter(|id| !id.is_empty())
        .ok_or_else(|| "it names no upload".to_string())
}

/// The answer to CompleteMultipartUpload: S3 may say 200 first and fail afterwards in the body.
pub enum Completed {
    /// The object is there.
    Done,
    /// It is not, and why.
    Failed(ErrorBody),
}

/// Reads the answer to CompleteMultipartUpload.
pub fn completed(document: &str) -> Result<Completed, String> {
    if let Some(error) = error(document) {
        return Ok(Completed::Failed(error));
    }
    match walk(document, &mut |_, _| Ok(()))?.as_str() {
        "CompleteMultipartUploadResult" => Ok(Completed::Done),
        other => Err(format!("it is a {other}")),
    }
}

/// An S3 or STS error body, if the document is one.
pub fn error(document: &str) -> Option<ErrorBody> {
    let mut found = ErrorBody::default();
    let root = walk(document, &mut |path, text| {
        let text = text.unwrap_or_default().to_string();
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["Error", "Code"] | ["ErrorResponse", "Error", "Code"] => found.code = text,
            ["Error", "Message"] | ["ErrorResponse", "Error", "Message"] => found.message = text,
            ["Error", "RequestId"] | ["ErrorResponse", "RequestId"] => {
                found.request_id = Some(text);
            }
            ["Error", "Region"] => found.region = Some(text),
            _ => {}
        }
        Ok(())
    })
    .ok()?;
    let known = root == "Error" || root == "ErrorResponse";
    (known && !found.code.is_empty()).then_some(found)
}

/// Credentials of AssumeRoleWithWebIdentity.
pub fn assumed_role(document: &str) -> Result<AssumedRole, String> {
    let mut role = AssumedRole::default();
    walk(document, &mut |path, text| {
        if let [.., parent, name] = path
            && parent == "Credentials"
        {
            let text = text.unwrap_or_default().to_string();
            match name.as_str() {
                "AccessKeyId" => role.access_key = text,
                "SecretAccessKey" => role.secret_key = text,
                "SessionToken" => role.session_token = text,
                "Expiration" => role.expiration = text,
                _ => {}
            }
        }
        Ok(())
    })?;
    if role.access_key.is_empty() || role.secret_key.is_empty() {
        return Err("it holds no credentials".to_string());
    }
    Ok(role)
}

/// A part of a completion: number (from 1), ETag and, where checksums are in use, CRC-32C in base64.
pub type Part = (u32, String, Option<String>);

/// The body of CompleteMultipartUpload.
pub fn complete_request(parts: &[Part]) -> String {
    let mut out =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, etag, checksum) in parts {
        let etag = quick_xml::escape::escape(etag.as_str());
        let _ = write!(
            out,
            "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>"
        );
        if let Some(checksum) = checksum {
            let _ = write!(out, "<ChecksumCRC32C>{checksum}</ChecksumCRC32C>");
        }
        out.push_str("</Part>");
    }
    out.push_str("</CompleteMultipartUpload>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>
<KeyCount>2</KeyCount><IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>
<Contents><Key>p/a &lt;&#252;&gt;+.zst</Key><LastModified>2026-11-21T03:40:00.000Z</LastModified>
<ETag>&quot;x&quot;</ETag><Size>17</Size><Owner><ID>o</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/b</Key><Size>0</Size></Contents></ListBucketResult>"#;

    #[test]
    fn a_page_is_read() {
        let page = list_page(PAGE).unwrap();
        assert!(page.truncated);
        assert_eq!(page.next.as_deref(), Some("t&1"));
        let modified = Timestamp::parse_rfc3339("2026-11-21T03:40:00Z").unwrap();
        assert_eq!(
            page.objects,
            [
                Listed {
                    key: "p/a <ü>+.zst".into(),
                    size: 17,
                    modified
                },
                Listed {
                    key: "p/b".into(),
                    size: 0,
                    modified: Timestamp::default()
                },
            ]
        );
    }

    #[test]
    fn a_page_cut_anywhere_is_no_page() {
        for end in (0..PAGE.len()).filter(|&at| PAGE.is_char_boundary(at)) {
            assert!(list_page(&PAGE[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn other_documents_are_no_page() {
        let rows = [
            "",
            "hello",
            "<html><body>Welcome</body></html>",
            "<!DOCTYPE html><html><head><meta charset=x></head></html>",
            "<Error><Code>SlowDown</Code></Error>",
            "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
            "<ListBucketResult><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>",
            "<ListBucketResult><Contents><Key>&bomb;</Key><Size>1</Size></Contents></ListBucketResult>",
        ];
        for text in rows {
            assert!(list_page(text).is_err(), "{text}");
        }
        assert_eq!(
            list_page("<ListBucketResult/>").unwrap(),
            ListPage::default()
        );
    }

    #[test]
    fn encoded_keys_are_decoded_only_when_the_page_says_so() {
        let page = |extra: &str| {
            format!(
                "<ListBucketResult>{extra}<Contents><Key>a+b%2Bc%C3%BC</Key><Size>1</Size></Contents></ListBucketResult>"
            )
        };
        let plain = list_page(&page("")).unwrap();
        assert_eq!(plain.objects[0].key, "a+b%2Bc%C3%BC");
        let encoded = list_page(&page("<EncodingType>url</EncodingType>")).unwrap();
        assert_eq!(encoded.objects[0].key, "a b+cü");
        assert!(decode_url("a%2").is_err());
        assert!(decode_url("%ff").is_err());
    }

    #[test]
    fn errors_are_read_and_pages_are_not_errors() {
        let error = error(
            "<Error><Code>PermanentRedirect</Code><Message>Go &amp; see</Message><Region>eu-west-1</Region>\
             <RequestId>R1</RequestId><Token-0>secret</Token-0></Error>",
        )
        .unwrap();
        assert_eq!(error.code, "PermanentRedirect");
        assert_eq!(error.message, "Go & see");
        assert_eq!(error.region.as_deref(), Some("eu-west-1"));
        assert_eq!(error.request_id.as_deref(), Some("R1"));
        for text in [
            "<html/>",
            "",
            "<Error/>",
            "<Error><Code>NoSuchKey</Code>",
            "{}",
        ] {
            assert_eq!(super::error(text), None, "{text}");
        }
    }

    #[test]
    fn multipart_answers() {
        let begun = "<InitiateMultipartUploadResult><Bucket>b</Bucket><UploadId>u+/=1</UploadId></InitiateMultipartUploadResult>";
        assert_eq!(upload_id(begun).unwrap(), "u+/=1");
        assert!(upload_id("<InitiateMultipartUploadResult/>").is_err());
        let done = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
        assert!(matches!(completed(done), Ok(Completed::Done)));
        let failed = "\n  <Error><Code>InternalError</Code><Message>m</Message></Error>";
        assert!(matches!(completed(failed), Ok(Completed::Failed(e)) if e.code == "InternalError"));
        for text in [
            "",
            "   ",
            "<html></html>",
            "<CompleteMultipartUploadResult>",
        ] {
            assert!(completed(text).is_err(), "{text}");
        }
        let parts = [
            (1, "\"e\"".to_string(), Some("AAAAAA==".to_string())),
            (2, "f".to_string(), None),
        ];
        assert_eq!(
            complete_request(&parts),
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Part><PartNumber>1</PartNumber><ETag>&quot;e&quot;</ETag><ChecksumCRC32C>AAAAAA==</ChecksumCRC32C></Part>\
             <Part><PartNumber>2</PartNumber><ETag>f</ETag></Part></CompleteMultipartUpload>"
        );
    }
}
