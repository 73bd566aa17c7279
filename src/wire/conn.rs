//! Conn: one logged-in session, and the rules under which statements run on it.
//!
//! A statement begins with `begin` and ends with the server's ReadyForQuery; in between the connection is busy, and
//! when it does not end in order it stays so and takes no further statement. A stop or a passed deadline sends a
//! cancel request first, so that the server does not go on for nobody.

use super::codec::{self, Frame, Inbox};
use super::connect::{self, ConnectOptions, Route};
use super::notice::{Notice, Notices};
use super::stream::{self, Fault, Stream, Wait};
use crate::error::{Error, Kind, Result};
use crate::limits::{CANCEL_TIMEOUT, PARAMETERS_MAX};
use crate::pg::conninfo::ConnInfo;
use crate::pg::version::ServerVersion;
use crate::work::stop::Stop;
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Why the stream is there.
const NOT_LENT: &str = "whoever borrows the stream keeps the session to himself";

/// What the connection can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for a statement.
    Idle,
    /// A statement runs, or login does.
    Busy,
    /// Nothing more can be done with it.
    Broken,
}

/// A session with PostgreSQL.
pub struct Conn {
    /// None while it is lent to a copy in both directions.
    stream: Option<Stream>,
    inbox: Inbox,
    route: Route,
    wait: Wait,
    statement_timeout: Option<Duration>,
    state: State,
    parameters: BTreeMap<String, String>,
    notices: Notices,
    cancel_key: Option<(i32, i32)>,
}

impl Conn {
    /// Connects to the first host that will do, and logs in.
    ///
    /// `Kind::Denied` if the server refuses us, `Kind::Transient` if no host can be reached now,
    /// `Kind::Unavailable` if TLS cannot be had as asked for.
    pub fn connect(info: &ConnInfo, options: &ConnectOptions, stop: &Stop) -> Result<Conn> {
        connect::connect(info, options, stop)
    }

    /// A stream that is connected but not logged in; `wait` holds for the login.
    pub(super) fn new(stream: Stream, route: Route, wait: Wait) -> Conn {
        Conn {
            stream: Some(stream),
            inbox: Inbox::new(),
            route,
            wait,
            statement_timeout: None,
            state: State::Busy,
            parameters: BTreeMap::new(),
            notices: Notices::default(),
            cancel_key: None,
        }
    }

    /// The version that the server told at login.
    pub fn server_version(&self) -> ServerVersion {
        ServerVersion(self.parameter("server_version").map_or(0, version_number))
    }

    /// A parameter that the server reports by itself, as `server_version` or `in_hot_standby`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The notices since the last call, at most `limits::NOTICES_MAX` of them.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// Whether the connection is under TLS.
    pub fn is_encrypted(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::is_encrypted)
    }

    /// Where the server is, for messages: `host "x", port 5432`.
    pub fn server(&self) -> &str {
        &self.route.place
    }

    /// From now on a statement may take so long; `None` is without limit. Copies have none ever.
    pub fn set_statement_timeout(&mut self, limit: Option<Duration>) {
        self.statement_timeout = limit;
    }

    /// Begins a statement: sends `bytes`, with the statement timeout running.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> Result<()> {
        match self.state {
            State::Idle => {}
            State::Broken => {
                return Err(Error::new(
                    Kind::Transient,
                    "the connection to PostgreSQL was lost before",
                ));
            }
            State::Busy => {
                return Err(Error::new(
                    Kind::Bug,
                    "a statement was begun before the last one had ended",
                ));
            }
        }
        self.wait.deadline = self.statement_timeout.map(|limit| Instant::now() + limit);
        self.state = State::Busy;
        self.send(bytes)
    }

    /// A copy began: it may take as long as it takes.
    pub(super) fn lift_deadline(&mut self) {
        self.wait.deadline = None;
    }

    /// Sends inside a statement or the login.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let stream = self.stream.as_mut().expect(NOT_LENT);
        let sent = stream.send(bytes, &self.wait);
        sent.map_err(|fault| self.fail(fault))
    }

    /// The next message that belongs to the statement. Notices, parameters and notifications are taken care of here,
    /// wherever they arrive; ReadyForQuery makes the connection idle.
    pub(super) fn next(&mut self) -> Result<Frame> {
        let outcome = self.next_frame();
        if outcome.is_err() {
            self.state = State::Broken;
        }
        outcome
    }

    /// The body of a frame, until the next call of `next`.
    pub(super) fn body(&self, frame: &Frame) -> &[u8] {
        self.inbox.body(frame)
    }

    /// A frame as a parsed message.
    pub(super) fn message(&self, frame: &Frame) -> Result<Message> {
        self.inbox.message(frame)
    }

    /// Ends the login: messages may be of any size now, and statements may begin.
    pub(super) fn logged_in(&mut self, statement_timeout: Option<Duration>) {
        self.inbox.logged_in();
        self.statement_timeout = statement_timeout;
        self.wait.deadline = None;
        self.state = State::Idle;
    }

    /// Keeps what is needed to cancel a statement.
    pub(super) fn keep_cancel_key(&mut self, process: i32, secret: i32) {
        self.cancel_key = Some((process, secret));
    }

    /// The server's certificate under TLS.
    pub(super) fn server_certificate(&self) -> Option<&[u8]> {
        self.stream.as_ref()?.server_certificate()
    }

    /// Gives the running statement up: asks the server to cancel it. The connection is of no use afterwards.
    pub(super) fn abandon(&mut self) {
        if self.state == State::Busy {
            self.cancel();
            self.state = State::Broken;
            self.hang_up();
        }
    }

    /// What ends waits of this session early.
    pub(super) fn stop(&self) -> &Stop {
        &self.wait.stop
    }

    /// Gives the stream away for a copy in both directions, where one thread reads and others write. Until it is
    /// given back only `buffered`, `space` and `filled` may be used.
    pub(super) fn lend_stream(&mut self) -> Stream {
        self.stream.take().expect(NOT_LENT)
    }

    /// Takes the stream back; what is left of the statement may take until `deadline`.
    pub(super) fn take_back(&mut self, stream: Stream, deadline: Instant) {
        self.stream = Some(stream);
        self.wait.deadline = Some(deadline);
    }

    /// The next message of the statement among the bytes that have arrived; `None` if more are needed.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>> {
        while let Some(frame) = self.inbox.next()? {
            match frame.tag {
                b'N' | b'S' | b'A' => self.aside(&frame)?,
                b'Z' => {
                    self.state = State::Idle;
                    return Ok(Some(frame));
                }
                _ => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// Room for bytes of a lent stream. Frames handed out before are gone.
    pub(super) fn space(&mut self) -> Result<&mut [u8]> {
        self.inbox.space()
    }

    /// `count` bytes were read into `space`.
    pub(super) fn filled(&mut self, count: usize) {
        self.inbox.filled(count);
    }

    fn next_frame(&mut self) -> Result<Frame> {
        loop {
            match self.buffered()? {
                Some(frame) => return Ok(frame),
                None => self.fill()?,
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        let space = self.inbox.space()?;
        let stream = self.stream.as_mut().expect(NOT_LENT);
        let count = match stream.receive(space, &self.wait) {
            Ok(0) => return Err(self.fail(stream::closed())),
            Ok(count) => count,
            Err(fault) => return Err(self.fail(fault)),
        };
        self.inbox.filled(count);
        Ok(())
    }

    /// Messages that may come at any time.
    fn aside(&mut self, frame: &Frame) -> Result<()> {
        match self.inbox.message(frame)? {
            Message::NoticeResponse(body) => self.notices.keep(Notice::from_fields(body.fields())),
            Message::ParameterStatus(body) => {
                let text = |value: std::io::Result<&str>| {
                    value
                        .map(str::to_string)
                        .map_err(|e| codec::malformed(format!("{e}.")))
                };
                let (name, value) = (text(body.name())?, text(body.value())?);
                if self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(&name) {
                    self.parameters.insert(name, value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Turns a fault into an error; the connection is broken by it.
    fn fail(&mut self, fault: Fault) -> Error {
        if matches!(fault, Fault::Stopped | Fault::TimedOut) {
            self.abandon();
        }
        self.state = State::Broken;
        self.hang_up();
        error_of_fault(fault, &self.wait.stop)
    }

    fn hang_up(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.hang_up();
        }
    }

    /// Sends a cancel request over a connection of its own, under TLS if this one is. It is a courtesy: that it
    /// fails is only worth a debug line, and no statement can be harmed that is not ours.
    fn cancel(&self) {
        let Some((process, secret)) = self.cancel_key else {
            return;
        };
        let wait = Wait {
            stop: Stop::new(),
            deadline: Some(Instant::now() + CANCEL_TIMEOUT),
        };
        let mut request = BytesMut::new();
        frontend::cancel_request(process, secret, &mut request);
        let outcome = self
            .route
            .open(self.is_encrypted(), &wait)
            .and_then(|mut stream| {
                stream.send(&request, &wait)?;
                // The server closes the connection when it has done what was asked.
                stream.receive(&mut [0; 16], &wait)
            });
        match outcome {
            Ok(_) => log::debug!("the server was asked to cancel the running statement"),
            Err(fault) => log::debug!("could not ask the server to cancel: {fault:?}"),
        }
    }
}

impl Drop for Conn {
    /// Says goodbye if the server listens; a session that is cut off ends on the server as well, later.
    fn drop(&mut self) {
        if let (State::Idle, Some(stream)) = (self.state, &mut self.stream) {
            stream.part(&goodbye());
        }
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({}, {:?})", self.route.place, self.state)
    }
}

/// The message that ends a session in order.
pub(super) fn goodbye() -> BytesMut {
    let mut message = BytesMut::new();
    frontend::terminate(&mut message);
    message
}

/// A fault as an error.
pub(super) fn error_of_fault(fault: Fault, stop: &Stop) -> Error {
    match fault {
        Fault::Stopped => stopped(stop),
        Fault::TimedOut => Error::new(Kind::Transient, "PostgreSQL did not answer in time"),
        Fault::Tls(error) | Fault::Lost(error) => error,
    }
}

/// The error of a stop.
pub(super) fn stopped(stop: &Stop) -> Error {
    match stop.check() {
        Err(error) => error,
        Ok(()) => Error::new(Kind::Interrupted, "interrupted"),
    }
}

/// `server_version_num` from `server_version`: "15.18 (Debian …)" is 150018, "18beta1" 180000; 0 if it is no version.
fn version_number(text: &str) -> u32 {
    let digits = |part: &str| -> Option<u32> {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..end].parse().ok().filter(|number| *number < 10_000)
    };
    let (major, rest) = text.split_once('.').unwrap_or((text, ""));
    digits(major).map_or(0, |major| major * 10_000 + digits(rest).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let cases = [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("13.0", 130_000),
            ("18beta1", 180_000),
            ("18", 180_000),
            ("9.6.24", 90_006),
            ("x", 0),
            ("", 0),
            ("99999999999.1", 0),
        ];
        for (text, number) in cases {
            assert_eq!(version_number(text), number, "{text}");
        }
    }
}
