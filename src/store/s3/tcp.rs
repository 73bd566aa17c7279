//! The TCP connection below HTTP. It never blocks in the kernel: each wait is a poll that ends by its time or, within
//! `STOP_SLICE` and `STORE_STOP_GRACE`, by a stop.

use crate::limits::STORE_STOP_GRACE;
use crate::work::stop::Stop;
use crate::work::unless_stopped;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use ureq::Timeout;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration as Limit;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};

type Result<T> = std::result::Result<T, ureq::Error>;

/// How long one poll sleeps before it looks at the stop again.
const STOP_SLICE: Duration = Duration::from_millis(100);

/// Looks names up. The system's resolver cannot be interrupted, so it is left behind when there is no more time.
#[derive(Debug)]
pub(super) struct Resolve(pub(super) Stop);

impl Resolver for Resolve {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs> {
        let (uri, config) = (uri.clone(), config.clone());
        let patient = NextTimeout {
            after: Limit::NotHappening,
            ..timeout
        };
        let ask = move || Ok(DefaultResolver::default().resolve(&uri, &config, patient));
        let time = self.0.within(*timeout.after);
        match unless_stopped("resolve", &time, STORE_STOP_GRACE, ask) {
            Ok(found) => found,
            Err(_) if time.is_set() => Err(ureq::Error::Timeout(timeout.reason)),
            Err(e) => Err(ureq::Error::Other(Box::new(e))),
        }
    }
}

/// Makes connections, unless a proxy has made one.
#[derive(Debug)]
pub(super) struct Dial(pub(super) Stop);

impl<In: Transport> Connector<In> for Dial {
    type Out = Either<In, Tcp>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>> {
        if let Some(made) = chained {
            return Ok(Some(Either::A(made)));
        }
        let (began, time) = (Instant::now(), *details.timeout.after);
        let mut outcome = Err(ureq::Error::ConnectionFailed);
        let mut others = details.addrs.len();
        for address in &details.addrs {
            others -= 1;
            let left = time.saturating_sub(began.elapsed());
            // One that does not answer leaves time for the next.
            let time = if others == 0 { left } else { left / 2 };
            outcome = dial(*address, time, &self.0);
            if outcome.is_ok() {
                break;
            }
        }
        let config = details.config;
        Ok(Some(Either::B(Tcp {
            stream: outcome?,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            patience: Patience::new(&self.0),
        })))
    }
}

fn dial(address: SocketAddr, time: Duration, stop: &Stop) -> Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(io::Error::from)?;
    let begun = rustix::net::connect(&socket, &address);
    let stream = TcpStream::from(socket);
    match begun {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            if !Patience::new(stop).ready(&stream, PollFlags::OUT, time)? {
                return Err(ureq::Error::Timeout(Timeout::Connect));
            }
            let outcome = sockopt::socket_error(&stream).and_then(|outcome| outcome);
            outcome.map_err(io::Error::from)?;
        }
        Err(cause) => return Err(io::Error::from(cause).into()),
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection.
#[derive(Debug)]
pub(super) struct Tcp {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// Of the present request.
    patience: Patience,
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<()> {
        let timeout = timeout.for_write();
        // A fast server never makes us wait, and a stop must be seen all the same.
        self.patience.check(timeout)?;
        let mut rest = &self.buffers.output()[..amount];
        while !rest.is_empty() {
            match (&self.stream).write(rest) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(count) => rest = &rest[count..],
                Err(cause) => {
                    let patience = &mut self.patience;
                    patience.after(cause, &self.stream, PollFlags::OUT, timeout)?;
                }
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool> {
        let timeout = timeout.for_read();
        self.patience.check(timeout)?;
        loop {
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(count > 0);
                }
                Err(cause) => {
                    let patience = &mut self.patience;
                    patience.after(cause, &self.stream, PollFlags::IN, timeout)?;
                }
            }
        }
    }

    /// Asked when a request is done and again before the next one begins. Bytes that nobody asked for are no good sign.
    fn is_open(&mut self) -> bool {
        self.patience.stopped = None;
        let heard = (&self.stream).read(&mut [0]);
        heard.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

/// How long one request is waited for.
#[derive(Debug)]
struct Patience {
    stop: Stop,
    /// When it was seen first that it is time to stop.
    stopped: Option<Instant>,
}

impl Patience {
    fn new(stop: &Stop) -> Patience {
        Patience {
            stop: stop.clone(),
            stopped: None,
        }
    }

    /// What is left of `time`, and of the grace once it is time to stop.
    fn left(&mut self, time: Duration) -> Duration {
        if !self.stop.is_set() {
            return time;
        }
        let stopped = self.stopped.get_or_insert_with(Instant::now);
        time.min(STORE_STOP_GRACE.saturating_sub(stopped.elapsed()))
    }

    fn check(&mut self, timeout: NextTimeout) -> Result<()> {
        match self.left(*timeout.after).is_zero() {
            true => Err(ureq::Error::Timeout(timeout.reason)),
            false => Ok(()),
        }
    }

    /// Waits if the socket only was not ready; anything else ends the connection.
    fn after(
        &mut self,
        cause: io::Error,
        socket: &TcpStream,
        events: PollFlags,
        timeout: NextTimeout,
    ) -> Result<()> {
        match cause.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock => match self.ready(socket, events, *timeout.after)? {
                true => Ok(()),
                false => Err(ureq::Error::Timeout(timeout.reason)),
            },
            _ => Err(cause.into()),
        }
    }

    /// Waits until the socket can be read or written; `false` when there is no more time.
    fn ready(&mut self, socket: &TcpStream, events: PollFlags, time: Duration) -> Result<bool> {
        let began = Instant::now();
        loop {
            let left = self.left(time.saturating_sub(began.elapsed()));
            if left.is_zero() {
                return Ok(false);
            }
            // A poll of less than a millisecond would spin.
            let slice = left.clamp(Duration::from_millis(1), STOP_SLICE);
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(slice.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(socket, events)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(cause) => return Err(io::Error::from(cause).into()),
            }
        }
    }
}
