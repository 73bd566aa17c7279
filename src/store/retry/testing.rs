//! A clock for tests of this room: time passes only in pauses.

use super::*;
use std::sync::{Mutex, MutexGuard};

/// A clock that needs no time: a pause moves it and is noted.
pub(crate) struct FakeClock(Mutex<Times>);

#[derive(Default)]
pub(crate) struct Times {
    pub(crate) now: Duration,
    pub(crate) pauses: Vec<Duration>,
    /// The pause at which the process is told to stop.
    pub(crate) stop_at: Option<usize>,
}

impl FakeClock {
    pub(crate) fn new() -> Arc<FakeClock> {
        Arc::new(FakeClock(Mutex::default()))
    }

    pub(crate) fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap()
    }
}

impl Clock for Arc<FakeClock> {
    fn now(&self) -> Duration {
        self.times().now
    }

    fn pause(&self, time: Duration) -> bool {
        let mut times = self.times();
        times.now += time;
        times.pauses.push(time);
        times.stop_at == Some(times.pauses.len())
    }

    fn draw(&self) -> f64 {
        1.0
    }
}

/// A retry with a minute of the clock's time.
pub(crate) fn patient(inner: Box<dyn Store>, clock: Arc<FakeClock>) -> Retry {
    let policy = Policy {
        total: Duration::from_secs(60),
        request_idle: Duration::from_secs(30),
    };
    Retry::with_clock(inner, policy, Box::new(clock))
}
