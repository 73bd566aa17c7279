//! A server that does what the test says: one act for each request, in order, over any number of connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does with the next request.
pub enum Act {
    /// Reads it, answers and keeps the connection.
    Say(String),
    /// Reads it, answers and closes.
    SayAndClose(String),
    /// Reads it, sends these parts with this pause before each, and closes.
    Drip(Vec<String>, Duration),
    /// Reads it, sends this, and then nothing any more.
    SayAndHang(String),
    /// Reads it and closes without a word.
    Close,
    /// Reads the head and then nothing any more, while the connection stays.
    StopReading,
    /// Answers when it has the head, and closes with the body unread: the client sees a reset.
    RefuseBody(String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The request lines, for comparison.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

/// Starts the server. After the last act it closes every connection.
pub fn serve(acts: Vec<Act>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let acts = Arc::new(Mutex::new(acts.into_iter()));
    let server = Server {
        url,
        seen: seen.clone(),
        connections: Arc::default(),
    };
    let connections = server.connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            connections.fetch_add(1, Ordering::SeqCst);
            let (acts, seen) = (acts.clone(), seen.clone());
            std::thread::spawn(move || {
                let _ = talk(stream, || acts.lock().unwrap().next(), &seen);
            });
        }
    });
    server
}

fn talk(
    mut stream: TcpStream,
    mut next: impl FnMut() -> Option<Act>,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some((mut request, length, mut body)) = head(&mut stream)? {
        let Some(act) = next() else {
            return Ok(());
        };
        if !matches!(act, Act::RefuseBody(_) | Act::StopReading) {
            let have = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[have..])?;
        }
        request.body = body;
        seen.lock().unwrap().push(request);
        match act {
            Act::Say(text) => stream.write_all(text.as_bytes())?,
            Act::SayAndClose(text) | Act::RefuseBody(text) => {
                return stream.write_all(text.as_bytes());
            }
            Act::Drip(parts, pause) => {
                for part in parts {
                    std::thread::sleep(pause);
                    stream.write_all(part.as_bytes())?;
                }
                return Ok(());
            }
            Act::SayAndHang(text) => {
                stream.write_all(text.as_bytes())?;
                // Until the client has had enough.
                stream.read_exact(&mut [0])?;
            }
            Act::StopReading => loop {
                std::thread::park();
            },
            Act::Close => return Ok(()),
        }
    }
    Ok(())
}

/// Reads a head: the request, the length of its body, and what of the body came along.
fn head(stream: &mut TcpStream) -> std::io::Result<Option<(Seen, usize, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_string();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()))
        .collect();
    let seen = Seen {
        line: line.trim_end_matches(" HTTP/1.1").to_string(),
        headers,
        body: Vec::new(),
    };
    let length = seen
        .header("content-length")
        .map_or(0, |v| v.parse().unwrap());
    Ok(Some((seen, length, bytes[end + 4..].to_vec())))
}

/// An answer with its length.
pub fn answer(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// S3's error body.
pub fn s3_error(status: u16, code: &str) -> String {
    let body =
        format!("<Error><Code>{code}</Code><Message>m</Message><RequestId>R</RequestId></Error>");
    answer(status, "content-type: application/xml\r\n", &body)
}
