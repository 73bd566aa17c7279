//! Threads, signals and the clock: the only door to the first two. `stop` ends work in good order, `crew` joins named
//! threads and finds the first error, `pool` gives equal jobs to workers, `read_ahead` reads on a thread of its own,
//! `rate` slows them down, `watermark` tells how far one has come.
//!
//! Nothing here is detached and forgotten: who starts a thread joins it. Two exceptions: the thread that listens for
//! signals lives as long as the process, and the job of `unless_stopped` may wait for a silent store when it is time
//! to end.

pub mod crew;
pub mod pool;
pub mod rate;
pub mod read_ahead;
pub mod stop;
pub mod watermark;

use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stop::Stop;

/// One job that runs beside the caller.
pub struct Handle<T> {
    name: String,
    thread: JoinHandle<Result<T>>,
}

/// Runs `job` on a thread of its own.
pub fn background<T: Send + 'static>(
    name: &str,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<Handle<T>> {
    let label = name.to_string();
    let thread = std::thread::Builder::new()
        .name(label.clone())
        .spawn(move || caught(&label, || Ok(job())))
        .map_err(|e| could_not_start(name, e))?;
    Ok(Handle {
        name: name.to_string(),
        thread,
    })
}

impl<T> Handle<T> {
    /// Waits for the job; a panic in it is `Kind::Bug`.
    pub fn join(self) -> Result<T> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => Err(panicked(&self.name, panic)),
        }
    }

    /// Whether `join` would answer at once.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Runs `job` on a thread of its own and waits for its end. When `stop` is raised it gets `grace` to come to an end by
/// itself; then it is left behind with `Kind::Interrupted`, because the process is about to end and a call into a
/// store that does not answer cannot be taken back.
pub fn unless_stopped<T: Send + 'static>(
    name: &str,
    stop: &Stop,
    grace: Duration,
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    /// Raised at the end of the job, also when it panics.
    struct Over(Stop);
    impl Drop for Over {
        fn drop(&mut self) {
            self.0.set();
        }
    }
    let (done, either) = (Stop::new(), stop.child());
    let over = (Over(done.clone()), Over(either.clone()));
    let handle = background(name, move || {
        let _over = over;
        job()
    })?;
    while !either.wait(Duration::from_secs(3600)) {}
    let end = Instant::now() + grace;
    while stop.is_set() && !done.is_set() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            stop.check()?;
        }
        done.wait(left);
    }
    handle.join()?
}

/// This moment by the host's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The name of the calling thread, for logs; `main` for the first one.
pub fn thread_name() -> String {
    let thread = std::thread::current();
    thread.name().unwrap_or("unnamed").to_string()
}

/// How many threads the machine (or the container's CPU limit) can run at once; 1 where that is unknown.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Runs `job`; a panic becomes an error that names the thread. The state that the panic may have left half changed is
/// not looked at again: everybody stops on that error.
fn caught<T>(thread: &str, job: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| Err(panicked(thread, panic)))
}

fn panicked(thread: &str, panic: Box<dyn Any + Send>) -> Error {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "no message",
    };
    Error::new(Kind::Bug, format!("thread \"{thread}\" panicked: {text}"))
        .hint("This is a mistake in seawall; please report it.")
}

fn could_not_start(thread: &str, cause: std::io::Error) -> Error {
    Error::io(format!("could not start thread \"{thread}\""), cause)
        .hint("Check the limits on processes and memory (ulimit -u, pids.max).")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_job_gives_its_value_or_its_panic() {
        let named = background("sum", thread_name).unwrap();
        assert_eq!(named.join().unwrap(), "sum");
        assert!(cores() >= 1);
        let error = background("odd", || panic!("odd number {}", 3)).unwrap();
        let error = error.join().map(|()| 0).unwrap_err();
        assert_eq!(error.kind(), Kind::Bug);
        assert_eq!(error.message(), "thread \"odd\" panicked: odd number 3");
    }

    #[test]
    fn a_job_is_left_behind_when_it_is_time_to_end() {
        const LONG: Duration = Duration::from_secs(600);
        let stop = Stop::new();
        let run = |grace, job: fn() -> Result<u8>| unless_stopped("job", &stop, grace, job);
        assert_eq!(run(Duration::ZERO, || Ok(7)).unwrap(), 7);
        assert_eq!(run(LONG, || panic!("odd")).unwrap_err().kind(), Kind::Bug);

        let release = Stop::new();
        let silent = release.clone();
        let stopper = stop.clone();
        let left = unless_stopped("silent", &stop, Duration::ZERO, move || {
            stopper.set();
            silent.wait(LONG);
            Ok(())
        });
        assert_eq!(left.unwrap_err().kind(), Kind::Interrupted);
        release.set();

        // It is raised already: what still comes to an end in time counts.
        assert_eq!(run(LONG, || Ok(7)).unwrap(), 7);
    }
}
