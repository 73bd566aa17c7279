//! One socket to PostgreSQL, TCP or Unix, plain or under TLS. It never blocks in the kernel: each wait is a poll
//! that ends by its deadline or, within `STOP_SLICE`, by a stop.

use super::tls;
use crate::error::{Error, Kind};
use crate::limits::COPY_BUFFER_BYTES;
use crate::work::stop::Stop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one poll sleeps before it looks at the stop again.
const STOP_SLICE: Duration = Duration::from_millis(100);

/// Why a wait or a transfer ended without its bytes.
#[derive(Debug)]
pub(super) enum Fault {
    /// Somebody asked us to stop.
    Stopped,
    /// The deadline passed.
    TimedOut,
    /// TLS could not be established or broke.
    Tls(Error),
    /// The connection is gone.
    Lost(Error),
}

/// What may end a wait.
#[derive(Clone)]
pub(super) struct Wait {
    /// Ends it early.
    pub stop: Stop,
    /// Ends it late; none means that only the peer, TCP or the stop does.
    pub deadline: Option<Instant>,
}

impl Wait {
    /// Waits until the socket can be read or written, as `events` asks.
    fn ready(&self, socket: BorrowedFd<'_>, events: PollFlags) -> Result<(), Fault> {
        loop {
            let slice = self.slice()?;
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(slice.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&socket, events)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(cause) => return Err(lost("could not wait for PostgreSQL", cause.into())),
            }
        }
    }

    /// The time until the next look at stop and deadline; the fault if there is none left.
    fn slice(&self) -> Result<Duration, Fault> {
        if self.stop.is_set() {
            return Err(Fault::Stopped);
        }
        let left = self.deadline.map_or(STOP_SLICE, |at| {
            at.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Err(Fault::TimedOut);
        }
        // A poll of less than a millisecond would spin.
        Ok(left.clamp(Duration::from_millis(1), STOP_SLICE))
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// An address of a host, resolved.
    Tcp(SocketAddr),
    /// The socket file.
    Unix(PathBuf),
}

/// TCP settings of the connection string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TcpOptions {
    /// Whether the kernel probes an idle connection.
    pub keepalives: bool,
    /// Idle time before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Probes that may stay unanswered.
    pub count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&mut &*socket).read(into),
            Socket::Unix(socket) => (&mut &*socket).read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&mut &*socket).write(bytes),
            Socket::Unix(socket) => (&mut &*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The TLS session with the bytes of it that are not decrypted yet.
struct Tls {
    session: ClientConnection,
    cipher: Vec<u8>,
    start: usize,
    end: usize,
}

/// What a thread needs to wait for bytes of a stream that another one may be using meanwhile. It keeps the descriptor
/// open, so it never waits for a stranger's.
pub(super) struct Readable(Arc<Socket>);

impl Readable {
    /// Waits until there is something to read, be it the end. Bytes that TLS has taken off the socket already do not
    /// show here: try to read first.
    pub fn wait(&self, wait: &Wait) -> Result<(), Fault> {
        wait.ready(self.0.fd(), PollFlags::IN)
    }
}

/// A connected socket, under TLS once `start_tls` was called.
pub(super) struct Stream {
    socket: Arc<Socket>,
    tls: Option<Box<Tls>>,
}

impl Stream {
    /// Connects; the wait's deadline is the connect timeout.
    pub fn dial(address: &Address, options: &TcpOptions, wait: &Wait) -> Result<Stream, Fault> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(dial_tcp(address, options, wait)?),
            Address::Unix(path) => Socket::Unix(dial_unix(path, wait)?),
        };
        Ok(Stream {
            socket: Arc::new(socket),
            tls: None,
        })
    }

    /// One end of a socket pair, so that tests can be the server.
    #[cfg(test)]
    pub fn over(socket: UnixStream) -> Stream {
        socket.set_nonblocking(true).expect("a socket");
        Stream {
            socket: Arc::new(Socket::Unix(socket)),
            tls: None,
        }
    }

    /// Lets another thread wait for what comes.
    pub fn readable(&self) -> Readable {
        Readable(self.socket.clone())
    }

    /// Whether TLS is on.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The server's certificate, once TLS is on.
    pub fn server_certificate(&self) -> Option<&[u8]> {
        let certificates = self.tls.as_ref()?.session.peer_certificates()?;
        certificates.first().map(|certificate| certificate.as_ref())
    }

    /// Reads one byte and not one more, so that nothing sent before the TLS handshake can be taken for an answer
    /// under it.
    pub fn read_one(&mut self, wait: &Wait) -> Result<u8, Fault> {
        assert!(self.tls.is_none(), "asked for before TLS");
        let mut byte = [0u8; 1];
        match receive(&self.socket, &mut byte, wait)? {
            0 => Err(closed()),
            _ => Ok(byte[0]),
        }
    }

    /// The TLS handshake.
    pub fn start_tls(
        &mut self,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
        wait: &Wait,
    ) -> Result<(), Fault> {
        let mut session =
            ClientConnection::new(config, name).map_err(|e| Fault::Tls(tls::refused(e)))?;
        // What we send is small, and it must go out whole.
        session.set_buffer_limit(None);
        let mut tls = Tls {
            session,
            cipher: vec![0; COPY_BUFFER_BYTES],
            start: 0,
            end: 0,
        };
        loop {
            tls.flush(&self.socket, wait)?;
            if !tls.session.is_handshaking() {
                break;
            }
            if !tls.feed(&self.socket)? && tls.receive(&self.socket, wait)? == 0 {
                return Err(Fault::Tls(tls::hung_up()));
            }
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Sends all of it.
    pub fn send(&mut self, mut bytes: &[u8], wait: &Wait) -> Result<(), Fault> {
        if let Some(tls) = &mut self.tls {
            let queued = tls.session.writer().write_all(bytes);
            queued.map_err(|cause| lost("could not encrypt for PostgreSQL", cause))?;
            return tls.flush(&self.socket, wait);
        }
        while !bytes.is_empty() {
            match (&mut &*self.socket).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(cause) => wait_to_send(cause, &self.socket, wait)?,
            }
        }
        Ok(())
    }

    /// Reads what there is, at least one byte; 0 when the server has closed the connection.
    pub fn receive(&mut self, into: &mut [u8], wait: &Wait) -> Result<usize, Fault> {
        loop {
            // A fast server never makes us wait, and a stop must be seen all the same.
            wait.slice()?;
            match self.try_receive(into)? {
                Some(count) => return Ok(count),
                None => wait.ready(self.socket.fd(), PollFlags::IN)?,
            }
        }
    }

    /// Reads what there is now, without waiting: `None` if that is nothing, 0 when the server has closed the
    /// connection.
    pub fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, Fault> {
        let Some(tls) = &mut self.tls else {
            return read_now(&self.socket, into);
        };
        loop {
            match tls.session.reader().read(into) {
                Ok(count) => return Ok(Some(count)),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                // The server does not always say goodbye in TLS; a cut is noticed by our own framing.
                Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(cause) => return Err(lost("could not read from PostgreSQL", cause)),
            }
            if tls.feed(&self.socket)? {
                continue;
            }
            match tls.refill(&self.socket)? {
                Some(0) => return Ok(Some(0)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Ends the connection in both directions, so that the server's session ends too.
    pub fn hang_up(&mut self) {
        // It may be gone already.
        let _ = rustix::net::shutdown(self.socket.fd(), rustix::net::Shutdown::Both);
    }

    /// Sends last words if the socket takes them at once; nobody waits for that.
    pub fn part(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => drop((&mut &*self.socket).write(bytes)),
            Some(tls) => {
                drop(tls.session.writer().write_all(bytes));
                tls.session.send_close_notify();
                drop(tls.session.write_tls(&mut &*self.socket));
            }
        }
    }
}

impl Tls {
    /// Sends what the session wants to send.
    fn flush(&mut self, socket: &Socket, wait: &Wait) -> Result<(), Fault> {
        while !self.flush_now(socket)? {
            wait.ready(socket.fd(), PollFlags::OUT)?;
        }
        Ok(())
    }

    /// Sends of it what the socket takes now; false if that was not all.
    fn flush_now(&mut self, socket: &Socket) -> Result<bool, Fault> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut &*socket) {
                Ok(_) => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(lost("lost the connection to PostgreSQL", cause)),
            }
        }
        Ok(true)
    }

    /// Waits for encrypted bytes; 0 at the end of the connection.
    fn receive(&mut self, socket: &Socket, wait: &Wait) -> Result<usize, Fault> {
        loop {
            match self.refill(socket)? {
                Some(count) => return Ok(count),
                None => wait.ready(socket.fd(), PollFlags::IN)?,
            }
        }
    }

    /// Fetches the encrypted bytes that are there now, if any; 0 at the end of the connection.
    fn refill(&mut self, socket: &Socket) -> Result<Option<usize>, Fault> {
        assert!(self.start == self.end, "all of the last read is used");
        let count = read_now(socket, &mut self.cipher)?;
        (self.start, self.end) = (0, count.unwrap_or(0));
        Ok(count)
    }

    /// Gives the session a piece of the encrypted bytes at hand; false if there are none. The caller must read the
    /// plain text after each call: the session buffers few records and fails when it cannot take more.
    fn feed(&mut self, socket: &Socket) -> Result<bool, Fault> {
        if self.start == self.end {
            return Ok(false);
        }
        let mut piece = &self.cipher[self.start..self.end];
        let taken = self.session.read_tls(&mut piece);
        self.start += taken.map_err(|cause| lost("could not decrypt from PostgreSQL", cause))?;
        if let Err(cause) = self.session.process_new_packets() {
            // The alert tells the server's log what was wrong; our error is the one that counts.
            drop(self.session.write_tls(&mut &*socket));
            return Err(Fault::Tls(tls::refused(cause)));
        }
        // What TLS has to answer goes out now, or with what is sent next: reading must not wait for writing.
        self.flush_now(socket)?;
        Ok(true)
    }
}

fn dial_tcp(address: &SocketAddr, options: &TcpOptions, wait: &Wait) -> Result<TcpStream, Fault> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = open_socket(family)?;
    match rustix::net::connect(&socket, address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            wait.ready(socket.as_fd(), PollFlags::OUT)?;
            let outcome = sockopt::socket_error(&socket).and_then(|outcome| outcome);
            outcome.map_err(|cause| lost("could not connect", cause.into()))?;
        }
        Err(cause) => return Err(lost("could not connect", cause.into())),
    }
    set_options(&socket, options)
        .map_err(|cause| lost("could not set TCP options", cause.into()))?;
    Ok(TcpStream::from(socket))
}

fn set_options(socket: &OwnedFd, options: &TcpOptions) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    if let Some(limit) = options.user_timeout {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, millis)?;
    }
    if !options.keepalives {
        return Ok(());
    }
    sockopt::set_socket_keepalive(socket, true)?;
    if let Some(idle) = options.idle {
        sockopt::set_tcp_keepidle(socket, idle)?;
    }
    if let Some(interval) = options.interval {
        sockopt::set_tcp_keepintvl(socket, interval)?;
    }
    options
        .count
        .map_or(Ok(()), |count| sockopt::set_tcp_keepcnt(socket, count))
}

fn dial_unix(path: &Path, wait: &Wait) -> Result<UnixStream, Fault> {
    // A name that begins with @ is not in the file system but in Linux's abstract name space.
    let address = match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
        _ => SocketAddrUnix::new(path),
    };
    let address = address.map_err(|cause| lost("could not connect", cause.into()))?;
    let socket = open_socket(AddressFamily::UNIX)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            // The queue of the listening socket is full, and the kernel offers nothing to poll for.
            Err(Errno::AGAIN) => drop(wait.stop.wait(wait.slice()?)),
            Err(Errno::INTR) => {}
            Err(cause) => return Err(lost("could not connect", cause.into())),
        }
    }
}

fn open_socket(family: AddressFamily) -> Result<OwnedFd, Fault> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|cause| lost("could not open a socket", cause.into()))
}

fn receive(socket: &Socket, into: &mut [u8], wait: &Wait) -> Result<usize, Fault> {
    loop {
        match read_now(socket, into)? {
            Some(count) => return Ok(count),
            None => wait.ready(socket.fd(), PollFlags::IN)?,
        }
    }
}

/// Reads what there is, without waiting.
fn read_now(socket: &Socket, into: &mut [u8]) -> Result<Option<usize>, Fault> {
    loop {
        match (&mut &*socket).read(into) {
            Ok(count) => return Ok(Some(count)),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(lost("lost the connection to PostgreSQL", cause)),
        }
    }
}

/// Waits if the socket only was not ready; anything else ends the connection.
fn wait_to_send(cause: std::io::Error, socket: &Socket, wait: &Wait) -> Result<(), Fault> {
    match cause.kind() {
        ErrorKind::WouldBlock => wait.ready(socket.fd(), PollFlags::OUT),
        ErrorKind::Interrupted => Ok(()),
        _ => Err(lost("lost the connection to PostgreSQL", cause)),
    }
}

fn lost(doing: &str, cause: std::io::Error) -> Fault {
    Fault::Lost(Error::new(Kind::Transient, doing).because(cause))
}

/// The server hung up.
pub(super) fn closed() -> Fault {
    Fault::Lost(
        Error::new(
            Kind::Transient,
            "PostgreSQL closed the connection unexpectedly",
        )
        .hint("Look into the server's log for the reason."),
    )
}
