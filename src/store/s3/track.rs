//! A connection that knows its past: whether it was used before, and whether the server has answered already. From
//! this alone it can be told which failures may be tried again in silence.

use std::fmt;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// A kept-alive connection was dead before the server said anything.
#[derive(Debug)]
pub(super) struct Stale(ureq::Error);

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a kept connection was closed: {}", self.0)
    }
}

impl std::error::Error for Stale {}

/// Puts `Tracked` around every new connection.
#[derive(Debug)]
pub(super) struct Track;

impl<In: Transport> Connector<In> for Track {
    type Out = Tracked<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        Ok(chained.map(|inner| Tracked {
            inner,
            reused: false,
            heard: false,
            cut: Cut::No,
        }))
    }
}

/// A connection that knows whether it was used before and whether the server has answered this request.
#[derive(Debug)]
pub(super) struct Tracked<T> {
    inner: T,
    /// It came back from the pool.
    reused: bool,
    /// The server sent something for this request.
    heard: bool,
    cut: Cut,
}

/// A server may refuse a large body before it has read it: it answers and closes. The answer says why, the failed
/// write does not, so the rest of the body is swallowed and the answer is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    No,
    AnswerWaits,
    AnswerRead,
}

impl<T: Transport> Tracked<T> {
    fn verdict(&self, cause: ureq::Error) -> ureq::Error {
        match cause {
            ureq::Error::Io(_) if self.reused && !self.heard => {
                ureq::Error::Other(Box::new(Stale(cause)))
            }
            other => other,
        }
    }
}

impl<T: Transport> Transport for Tracked<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        if self.cut != Cut::No {
            return Ok(());
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(cause @ ureq::Error::Io(_)) => match self.inner.await_input(timeout) {
                Ok(true) => {
                    self.heard = true;
                    self.cut = Cut::AnswerWaits;
                    Ok(())
                }
                _ => Err(self.verdict(cause)),
            },
            other => other,
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        if self.cut == Cut::AnswerWaits {
            self.cut = Cut::AnswerRead;
            return Ok(true);
        }
        match self.inner.await_input(timeout) {
            Ok(true) => {
                self.heard = true;
                Ok(true)
            }
            Ok(false) if self.reused && !self.heard => {
                let cause = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Err(self.verdict(cause.into()))
            }
            Ok(false) => Ok(false),
            Err(cause) => Err(self.verdict(cause)),
        }
    }

    fn is_open(&mut self) -> bool {
        // Asked when a request is done and again before the next one begins.
        self.reused = true;
        self.heard = false;
        self.cut == Cut::No && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
