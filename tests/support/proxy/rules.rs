//! What is to happen to which request, and what the proxy remembers of each.

use std::time::{Duration, Instant};

use super::http::find_header;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is reset and the port refuses all further ones until `Proxy::listen`.
    Refuse,
    /// Reset before a byte of the request's body is read. Nothing is forwarded.
    Reset,
    /// Reset after so many bytes of the request's body. Nothing is forwarded.
    CutRequestAt(u64),
    /// This answer, not forwarded: status, headers, body.
    Status(u16, Vec<(String, String)>, String),
    /// 200 to a request whose body is thrown away.
    Swallow,
    /// Forwarded and done, then a reset in place of the answer.
    LoseAck,
    /// The answer's head, then a reset.
    DropBeforeBody,
    /// The answer's head, so many bytes of its body, then a reset.
    CutBodyAt(u64),
    /// As CutBodyAt, but the connection is closed in good order: only the length tells.
    EndBodyAt(u64),
    /// The whole request is read and forwarded after so long a time, unless the client has gone by then.
    Late(Duration),
    /// The request is read; no answer comes while the proxy and the client are there. Not forwarded.
    Silence,
    /// The answer's head and so many bytes of its body, then nothing.
    SilenceAt(u64),
    /// The body comes in pieces of so many bytes with a pause after each.
    SlowBody(usize, Duration),
    /// One bit of this byte of the answer's body is turned.
    FlipBitAt(u64),
}

impl Fault {
    /// An answer with S3's error body.
    pub fn s3_error(status: u16, code: &str) -> Fault {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>planted by the test</Message>\
             <RequestId>0123456789ABCDEF</RequestId></Error>"
        );
        let headers = vec![("Content-Type".into(), "application/xml".into())];
        Fault::Status(status, headers, body)
    }

    /// An answer with a gateway's page.
    pub fn html(status: u16) -> Fault {
        let headers = vec![("Content-Type".into(), "text/html; charset=utf-8".into())];
        let body = "<html><head><title>gateway</title></head><body>Please log in.</body></html>";
        Fault::Status(status, headers, body.into())
    }
}

/// Which requests, and what happens to them.
pub struct Rule {
    method: Option<String>,
    path: Option<String>,
    query: Option<String>,
    without_query: Option<String>,
    after: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// All requests, for ever; the other methods narrow it.
    pub fn new(fault: Fault) -> Rule {
        Rule {
            method: None,
            path: None,
            query: None,
            without_query: None,
            after: 0,
            times: u64::MAX,
            fault,
        }
    }

    /// Only this method.
    pub fn method(mut self, method: &str) -> Rule {
        self.method = Some(method.into());
        self
    }

    /// Only paths (as sent, percent-encoded) that contain this.
    pub fn path(mut self, part: &str) -> Rule {
        self.path = Some(part.into());
        self
    }

    /// Only query strings that contain this.
    pub fn query(mut self, part: &str) -> Rule {
        self.query = Some(part.into());
        self
    }

    /// Only query strings that do not contain this.
    pub fn without_query(mut self, part: &str) -> Rule {
        self.without_query = Some(part.into());
        self
    }

    /// Lets so many matching requests pass first.
    pub fn after(mut self, count: u64) -> Rule {
        self.after = count;
        self
    }

    /// Hits so many requests, then no more.
    pub fn times(mut self, count: u64) -> Rule {
        self.times = count;
        self
    }

    fn matches(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|m| *m == request.method)
            && self.path.as_ref().is_none_or(|p| request.path.contains(p))
            && self
                .query
                .as_ref()
                .is_none_or(|q| request.query.contains(q))
            && self
                .without_query
                .as_ref()
                .is_none_or(|q| !request.query.contains(q))
    }

    /// Counts a matching request down; the fault, if this one is hit.
    pub fn strike(&mut self, request: &Request) -> Option<Fault> {
        if self.times == 0 || !self.matches(request) {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        if self.times != u64::MAX {
            self.times -= 1;
        }
        Some(self.fault.clone())
    }
}

/// A request as the proxy saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, PUT …
    pub method: String,
    /// As sent, percent-encoded, without the query.
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The fault that hit it.
    pub fault: Option<String>,
    /// The status that went back to the client, if one did.
    pub status: Option<u16>,
    /// When its head was read.
    pub came: Instant,
    /// How long after that its status went back.
    pub took: Option<Duration>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}
