//! A forwarder for HTTP/1.1 that does to single requests what networks, gateways and stores do on bad days.
//!
//! It stands before a server of ours and speaks plain HTTP to the client; the Host header goes through as it came, so
//! signatures stay good. A rule says which requests (method, part of the path, part of the query, how many to let pass,
//! how many to hit) and which fault. Every request is logged with its headers, and with what became of it.

mod http;
mod rules;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::ports;
use http::{
    Framing, bad, body_framing, copy_body, find_header, finish_body, parse_headers, read_head,
    status_of, write_piece,
};
pub use rules::{Fault, Request, Rule};

const BUFFER_BYTES: usize = 64 * 1024;

enum Upstream {
    Plain(u16),
    Tls(u16, Arc<rustls::ClientConfig>),
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}
type Connection = BufReader<Box<dyn Stream>>;

struct Inner {
    upstream: Upstream,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Request>>,
    clients: Mutex<Vec<TcpStream>>,
    /// While the port is open.
    listener: Mutex<Option<TcpListener>>,
    refusing: AtomicBool,
    ended: AtomicBool,
}

/// The forwarder; ends when dropped, and with it all that it holds in silence.
pub struct Proxy {
    inner: Arc<Inner>,
    port: u16,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// Before a plain HTTP server on 127.0.0.1.
    pub fn start(upstream_port: u16) -> Proxy {
        Proxy::before(Upstream::Plain(upstream_port))
    }

    /// Before a server that speaks TLS, whose certificate for `localhost` this authority signed: so clients that
    /// know no TLS reach it.
    pub fn to_tls(upstream_port: u16, ca_pem: &str) -> Proxy {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a PEM certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Proxy::before(Upstream::Tls(upstream_port, Arc::new(config)))
    }

    fn before(upstream: Upstream) -> Proxy {
        let proxy = Proxy {
            inner: Arc::new(Inner {
                upstream,
                rules: Mutex::default(),
                log: Mutex::default(),
                clients: Mutex::default(),
                listener: Mutex::default(),
                refusing: AtomicBool::new(true),
                ended: AtomicBool::new(false),
            }),
            port: ports::free_port(),
            acceptor: Mutex::new(None),
        };
        proxy.listen();
        proxy
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Adds a rule. The first rule that hits a request decides.
    pub fn rule(&self, rule: Rule) {
        lock(&self.inner.rules).push(rule);
    }

    /// Takes all rules away.
    pub fn clear(&self) {
        lock(&self.inner.rules).clear();
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.inner.log).clone()
    }

    /// The requests so far; the log begins anew.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.inner.log))
    }

    /// Closes the port: connections are refused.
    pub fn refuse(&self) {
        self.inner.close();
        self.join_acceptor();
        self.inner.reset_clients();
    }

    /// Opens the port again.
    pub fn listen(&self) {
        self.join_acceptor();
        let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("our own port");
        let closing = listener.try_clone().expect("a descriptor");
        *lock(&self.inner.listener) = Some(closing);
        self.inner.refusing.store(false, Ordering::SeqCst);
        let inner = Arc::clone(&self.inner);
        *lock(&self.acceptor) = Some(thread::spawn(move || accept(listener, &inner)));
    }

    fn join_acceptor(&self) {
        if let Some(thread) = lock(&self.acceptor).take() {
            self.inner.close();
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::SeqCst);
        self.refuse();
    }
}

/// A test that panicked while it held the lock has failed already; what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn accept(listener: TcpListener, inner: &Arc<Inner>) {
    while !inner.refusing.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((client, _)) if inner.refusing.load(Ordering::SeqCst) => reset(&client),
            Ok((client, _)) => {
                let inner = Arc::clone(inner);
                thread::spawn(move || {
                    if let Ok(keep) = client.try_clone() {
                        inner.remember(keep);
                        // An error here is a connection that ended: the client's business.
                        let _ = serve(&client, &inner);
                    }
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl Inner {
    fn remember(&self, client: TcpStream) {
        let mut clients = lock(&self.clients);
        clients.retain(|c| c.peer_addr().is_ok());
        clients.push(client);
    }

    /// Closes the port and wakes the acceptor: accept(2) on a socket that was shut down fails.
    fn close(&self) {
        self.refusing.store(true, Ordering::SeqCst);
        if let Some(listener) = lock(&self.listener).take() {
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }

    fn reset_clients(&self) {
        for client in lock(&self.clients).drain(..) {
            reset(&client);
        }
    }

    /// Logs the request and finds the fault that hits it.
    fn judge(&self, mut request: Request) -> (usize, Option<Fault>) {
        let mut rules = lock(&self.rules);
        let fault = rules.iter_mut().find_map(|rule| rule.strike(&request));
        request.fault = fault.as_ref().map(|f| format!("{f:?}"));
        let mut log = lock(&self.log);
        log.push(request);
        (log.len() - 1, fault)
    }

    fn note_status(&self, index: usize, status: u16) {
        if let Some(request) = lock(&self.log).get_mut(index) {
            request.status = Some(status);
            request.took = Some(request.came.elapsed());
        }
    }

    fn connect(&self) -> io::Result<Connection> {
        let tcp = |port: u16| -> io::Result<TcpStream> {
            let socket = TcpStream::connect(("127.0.0.1", port))?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let stream: Box<dyn Stream> = match &self.upstream {
            Upstream::Plain(port) => Box::new(tcp(*port)?),
            Upstream::Tls(port, config) => {
                let name = ServerName::try_from("localhost").expect("a host name");
                let session = rustls::ClientConnection::new(Arc::clone(config), name)
                    .map_err(io::Error::other)?;
                Box::new(rustls::StreamOwned::new(session, tcp(*port)?))
            }
        };
        Ok(BufReader::with_capacity(BUFFER_BYTES, stream))
    }
}

/// Makes the client see ECONNRESET instead of an orderly end: connecting a TCP socket to nothing dissolves the
/// connection with an RST, however many copies of the descriptor there are (a linger time of zero waits for the last).
fn reset(client: &TcpStream) {
    let _ = rustix::net::connect_unspec(client);
}

/// A reset that leaves what was sent time to arrive: at once, it would throw that away on the way.
fn reset_after_delivery(client: &TcpStream) {
    thread::sleep(Duration::from_millis(50));
    reset(client);
}

/// Serves one client connection to its end.
fn serve(client: &TcpStream, inner: &Inner) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, client.try_clone()?);
    let mut upstream: Option<Connection> = None;
    while let Some(head) = read_head(&mut reader)? {
        let request = parse_request(&head)?;
        let framing = body_framing(&request.headers).unwrap_or(Framing::Length(0));
        let (index, fault) = inner.judge(request.clone());
        let exchange = Exchange {
            client,
            inner,
            request,
            head,
            framing,
            index,
        };
        let keep = match fault {
            Some(
                fault @ (Fault::Refuse
                | Fault::Reset
                | Fault::CutRequestAt(_)
                | Fault::Status(..)
                | Fault::Swallow
                | Fault::Silence),
            ) => exchange.answer_alone(fault, &mut reader)?,
            Some(Fault::Late(pause)) => exchange.forward_late(pause, &mut reader, &mut upstream)?,
            other => exchange.forward(other, &mut reader, &mut upstream)?,
        };
        if !keep {
            break;
        }
    }
    Ok(())
}

/// One request and its answer.
struct Exchange<'a> {
    client: &'a TcpStream,
    inner: &'a Inner,
    request: Request,
    head: Vec<u8>,
    framing: Framing,
    index: usize,
}

impl Exchange<'_> {
    /// The faults that never reach the server. True: the connection may go on.
    fn answer_alone(&self, fault: Fault, reader: &mut impl BufRead) -> io::Result<bool> {
        match fault {
            Fault::Refuse => {
                self.inner.close();
                self.inner.reset_clients();
                return Ok(false);
            }
            Fault::Reset => {
                reset(self.client);
                return Ok(false);
            }
            Fault::CutRequestAt(limit) => {
                self.expect_continue()?;
                let mut left = limit;
                copy_body(reader, self.framing, &mut |piece| {
                    left = left.saturating_sub(piece.len() as u64);
                    if left == 0 { Err(cut()) } else { Ok(()) }
                })
                .ok();
                reset(self.client);
                return Ok(false);
            }
            _ => {}
        }
        self.expect_continue()?;
        copy_body(reader, self.framing, &mut |_| Ok(()))?;
        match fault {
            Fault::Status(status, headers, body) => self.respond(status, &headers, &body)?,
            Fault::Swallow => {
                let etag = ("ETag".to_string(), format!("\"{:032x}\"", self.index));
                self.respond(200, &[etag], "")?;
            }
            _ => {
                self.hold();
                return Ok(false);
            }
        }
        Ok(self.request.header("connection") != Some("close"))
    }

    fn expect_continue(&self) -> io::Result<()> {
        if self.request.header("expect").is_some() {
            let mut client = self.client;
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(())
    }

    fn respond(&self, status: u16, headers: &[(String, String)], body: &str) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} Planted\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        if self.request.method != "HEAD" {
            text.push_str(body);
        }
        self.inner.note_status(self.index, status);
        let mut client = self.client;
        client.write_all(text.as_bytes())
    }

    /// Keeps the connection open and says nothing, until the client or the proxy goes.
    fn hold(&self) {
        self.hold_until(None);
    }

    /// The same, but not for ever. True: the time has come, and the client is there.
    fn hold_until(&self, end: Option<Instant>) -> bool {
        let _ = self
            .client
            .set_read_timeout(Some(Duration::from_millis(20)));
        let mut byte = [0u8; 1];
        while !self.inner.ended.load(Ordering::SeqCst) {
            if end.is_some_and(|end| Instant::now() >= end) {
                return true;
            }
            match self.client.peek(&mut byte) {
                Ok(0) => return false,
                Ok(_) => thread::sleep(Duration::from_millis(20)),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Reads the request to its end, and sends it on later.
    fn forward_late(
        &self,
        pause: Duration,
        reader: &mut impl BufRead,
        upstream: &mut Option<Connection>,
    ) -> io::Result<bool> {
        let Framing::Length(_) = self.framing else {
            return Err(bad("a body without length cannot be late"));
        };
        self.expect_continue()?;
        let mut body = Vec::new();
        copy_body(reader, self.framing, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        if !self.hold_until(Some(Instant::now() + pause)) {
            return Ok(false);
        }
        self.client.set_read_timeout(None)?;
        self.connect(upstream)?;
        self.pass_on(None, &mut &body[..], upstream)
    }

    /// Sends the request on and the answer back, with the fault that hits the answer.
    fn forward(
        &self,
        fault: Option<Fault>,
        reader: &mut impl BufRead,
        upstream: &mut Option<Connection>,
    ) -> io::Result<bool> {
        self.connect(upstream)?;
        self.expect_continue()?;
        self.pass_on(fault, reader, upstream)
    }

    fn connect(&self, upstream: &mut Option<Connection>) -> io::Result<()> {
        if upstream.is_none() {
            *upstream = Some(self.inner.connect().inspect_err(|_| reset(self.client))?);
        }
        Ok(())
    }

    fn pass_on(
        &self,
        fault: Option<Fault>,
        reader: &mut impl BufRead,
        upstream: &mut Option<Connection>,
    ) -> io::Result<bool> {
        let server = upstream.as_mut().expect("the caller has connected");
        let done = self.exchange_with(server, fault, reader);
        if !matches!(done, Ok(true)) {
            *upstream = None;
        }
        if done.is_err() {
            reset(self.client);
        }
        done
    }

    fn exchange_with(
        &self,
        server: &mut Connection,
        fault: Option<Fault>,
        reader: &mut impl BufRead,
    ) -> io::Result<bool> {
        server
            .get_mut()
            .write_all(&without_expect(&self.head, &self.request))?;
        let chunked = self.framing == Framing::Chunked;
        let sink = server.get_mut();
        copy_body(reader, self.framing, &mut |piece| {
            write_piece(sink, chunked, piece)
        })?;
        finish_body(sink, chunked)?;
        sink.flush()?;
        let mut head = read_head(server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        while status_of(&head)? / 100 == 1 {
            head = read_head(server)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        let status = status_of(&head)?;
        let headers = parse_headers(&head);
        let framing = match status {
            _ if self.request.method == "HEAD" => Framing::Length(0),
            204 | 304 => Framing::Length(0),
            _ => body_framing(&headers).unwrap_or(Framing::ToEnd),
        };
        let mut bender = Bender::new(self, fault, framing == Framing::Chunked);
        if !bender.head(&head, status)? {
            copy_body(server, framing, &mut |_| Ok(()))?; // lost on the way, but done
            reset_after_delivery(self.client);
            return Ok(false);
        }
        match copy_body(server, framing, &mut |piece| bender.body(piece)) {
            Err(error) if is_cut(&error) => return Ok(false),
            other => other?,
        }
        finish_body(&mut { self.client }, framing == Framing::Chunked)?;
        let close = find_header(&headers, "connection").is_some_and(|v| v == "close");
        Ok(framing != Framing::ToEnd && !close)
    }
}

/// Lets an answer through to the client, bent by the fault.
struct Bender<'a> {
    exchange: &'a Exchange<'a>,
    fault: Option<Fault>,
    chunked: bool,
    sent: u64,
}

impl<'a> Bender<'a> {
    fn new(exchange: &'a Exchange<'a>, fault: Option<Fault>, chunked: bool) -> Bender<'a> {
        Bender {
            exchange,
            fault,
            chunked,
            sent: 0,
        }
    }

    /// False: the answer is lost altogether.
    fn head(&mut self, head: &[u8], status: u16) -> io::Result<bool> {
        if matches!(self.fault, Some(Fault::LoseAck)) {
            return Ok(false);
        }
        let mut client = self.exchange.client;
        client.write_all(head)?;
        self.exchange.inner.note_status(self.exchange.index, status);
        Ok(!matches!(self.fault, Some(Fault::DropBeforeBody)))
    }

    fn body(&mut self, piece: &[u8]) -> io::Result<()> {
        let client = self.exchange.client;
        match self.fault.clone() {
            Some(
                fault @ (Fault::CutBodyAt(limit)
                | Fault::EndBodyAt(limit)
                | Fault::SilenceAt(limit)),
            ) => {
                let room = (limit - self.sent).min(piece.len() as u64) as usize;
                self.send(&piece[..room])?;
                if room == piece.len() {
                    return Ok(());
                }
                match fault {
                    Fault::CutBodyAt(_) => reset_after_delivery(client),
                    Fault::SilenceAt(_) => self.exchange.hold(),
                    _ => {}
                }
                Err(cut())
            }
            Some(Fault::SlowBody(bytes, pause)) => {
                for slice in piece.chunks(bytes.max(1)) {
                    self.send(slice)?;
                    thread::sleep(pause);
                }
                Ok(())
            }
            Some(Fault::FlipBitAt(offset)) => {
                let mut bent = piece.to_vec();
                if let Some(inside) = offset.checked_sub(self.sent)
                    && let Some(byte) = bent.get_mut(inside as usize)
                {
                    *byte ^= 0x10;
                }
                self.send(&bent)
            }
            _ => self.send(piece),
        }
    }

    fn send(&mut self, piece: &[u8]) -> io::Result<()> {
        self.sent += piece.len() as u64;
        write_piece(&mut { self.exchange.client }, self.chunked, piece)
    }
}

/// The error that ends a body on purpose.
fn cut() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionAborted)
}

fn is_cut(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted
}

fn parse_request(head: &[u8]) -> io::Result<Request> {
    let text = String::from_utf8_lossy(head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(bad("request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        headers: parse_headers(head),
        fault: None,
        status: None,
        came: Instant::now(),
        took: None,
    })
}

/// The head without `Expect`, which the proxy has answered itself.
fn without_expect(head: &[u8], request: &Request) -> Vec<u8> {
    if request.header("expect").is_none() {
        return head.to_vec();
    }
    let lines = head.split_inclusive(|b| *b == b'\n');
    let is_expect = |line: &[u8]| line.to_ascii_lowercase().starts_with(b"expect:");
    lines.filter(|l| !is_expect(l)).flatten().copied().collect()
}
