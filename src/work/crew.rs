//! Crew: named threads that end together. The first error stops all, everyone is joined, and that error is the
//! answer; a panic is an error too, `Kind::Bug` with the name of its thread.

use super::stop::Stop;
use super::{caught, could_not_start, thread_name};
use crate::error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

/// The threads of one `run`.
pub struct Crew<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What stopped from outside.
    outer: Stop,
    /// What all members look at: raised by `outer` and by the first error.
    inner: Stop,
    /// The error that counts. A mutex, because any member may be the first.
    verdict: Mutex<Option<Error>>,
}

/// Runs `body` on the calling thread with a crew at its side, and answers when all have ended. Members that wait for
/// something must watch `crew.stop()` or a channel whose other end falls with its owner.
pub fn run<'env, T>(
    stop: &Stop,
    body: impl for<'scope> FnOnce(&Crew<'scope, 'env>) -> Result<T>,
) -> Result<T> {
    let shared = Arc::new(Shared {
        outer: stop.clone(),
        inner: stop.child(),
        verdict: Mutex::new(None),
    });
    let answer = std::thread::scope(|scope| {
        let crew = Crew {
            scope,
            shared: shared.clone(),
        };
        let answer = caught(&thread_name(), || body(&crew));
        answer.map_err(|e| shared.fail(e)).ok()
    });
    let verdict = shared
        .verdict
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match (verdict, answer) {
        (Some(error), _) => Err(error),
        (None, Some(value)) => Ok(value),
        (None, None) => unreachable!("a body without answer has left its error"),
    }
}

impl<'scope> Crew<'scope, '_> {
    /// Starts a member.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        job: impl FnOnce() -> Result<()> + Send + 'scope,
    ) -> Result<()> {
        let name = name.into();
        let shared = self.shared.clone();
        let label = name.clone();
        let member = move || {
            if let Err(error) = caught(&label, job) {
                shared.fail(error);
            }
        };
        Builder::new()
            .name(name.clone())
            .spawn_scoped(self.scope, member)
            .map_err(|e| could_not_start(&name, e))?;
        Ok(())
    }

    /// What tells all members to stop.
    pub fn stop(&self) -> &Stop {
        &self.shared.inner
    }
}

impl Shared {
    /// The first error counts. "Interrupted" while nobody outside has asked to stop is only the echo of an error in
    /// another thread, which may be a moment late (its channels fall before it can report), and gives way to it.
    fn fail(&self, error: Error) {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let is_echo = |e: &Error| e.kind() == Kind::Interrupted && !self.outer.is_set();
        if verdict.as_ref().is_none_or(is_echo) {
            *verdict = Some(error);
        }
        drop(verdict);
        self.inner.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(600);

    fn wait_for_stop(stop: &Stop) -> Result<()> {
        stop.wait(LONG);
        stop.check()
    }

    #[test]
    fn all_are_joined_and_may_borrow() {
        let sum = AtomicU32::new(0);
        let answer = run(&Stop::new(), |crew| {
            for n in 1..=3 {
                let sum = &sum;
                crew.spawn(format!("adder-{n}"), move || {
                    sum.fetch_add(n, Ordering::Relaxed);
                    Ok(())
                })?;
            }
            Ok("done")
        });
        assert_eq!(answer.unwrap(), "done");
        assert_eq!(sum.into_inner(), 6);
    }

    #[test]
    fn the_first_error_stops_all_and_echoes_do_not_hide_it() {
        let stop = Stop::new();
        let error = run(&stop, |crew| {
            for n in 0..3 {
                let inner = crew.stop().clone();
                crew.spawn(format!("waiter-{n}"), move || wait_for_stop(&inner))?;
            }
            crew.spawn("writer", || Err(Error::new(Kind::Full, "no room")))?;
            wait_for_stop(crew.stop())
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Full);
        assert!(
            !stop.is_set(),
            "the error of a crew is not everybody's stop"
        );
    }

    #[test]
    fn an_echo_that_comes_first_gives_way() {
        let error = run(&Stop::new(), |crew| -> Result<()> {
            let inner = crew.stop().clone();
            crew.spawn("late", move || {
                inner.wait(LONG);
                Err(Error::new(Kind::Corrupt, "cause"))
            })?;
            Err(Error::new(Kind::Interrupted, "echo"))
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn after_a_signal_what_breaks_later_does_not_hide_it() {
        let stop = Stop::new();
        let error = run(&stop, |crew| {
            let inner = crew.stop().clone();
            crew.spawn("waiter", move || wait_for_stop(&inner))?;
            stop.set();
            crew.stop().check()
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Interrupted);
    }

    #[test]
    fn panics_are_named_wherever_they_happen() {
        for in_body in [false, true] {
            let error = run(&Stop::new(), |crew| {
                let inner = crew.stop().clone();
                crew.spawn("wal-reader", move || {
                    assert!(in_body, "a number of {}", 7);
                    wait_for_stop(&inner)
                })?;
                assert!(!in_body, "a body of {}", 8);
                wait_for_stop(crew.stop())
            });
            let error = error.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Bug);
            let expected = if in_body {
                "a body of 8"
            } else {
                "thread \"wal-reader\" panicked: a number of 7"
            };
            assert!(error.message().contains(expected), "{error}");
        }
    }
}
