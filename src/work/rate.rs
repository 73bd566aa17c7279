//! RateLimit: one token bucket for the whole process, so that the limit is what all threads read together and a small
//! job is not slowed to its share of it.

use super::stop::Stop;
use crate::error::Result;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was not used may be caught up for this long, no longer: a limit is there to protect somebody else.
const BURST: Duration = Duration::from_secs(1);

/// Bytes per second, shared by all threads.
#[derive(Debug)]
pub struct RateLimit {
    start: Instant,
    bucket: Mutex<Bucket>,
}

impl RateLimit {
    /// A limit in bytes per second; 0 counts as 1.
    pub fn new(bytes_per_second: u64) -> RateLimit {
        RateLimit {
            start: Instant::now(),
            bucket: Mutex::new(Bucket::new(bytes_per_second)),
        }
    }

    /// Accounts for `bytes` and sleeps until the rate allows the next ones; a stop ends the sleep with
    /// `Kind::Interrupted`.
    pub fn take(&self, bytes: u64, stop: &Stop) -> Result<()> {
        let now = self.start.elapsed();
        let pause = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(now, bytes);
        stop.wait(pause);
        stop.check()
    }
}

/// The bucket without a clock: times are counted from its making.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// When everything taken so far is paid for. Behind now: credit; ahead of now: debt.
    paid_until: Duration,
}

impl Bucket {
    fn new(bytes_per_second: u64) -> Bucket {
        Bucket {
            bytes_per_second: bytes_per_second.max(1),
            paid_until: Duration::ZERO,
        }
    }

    /// Takes `bytes` at time `now` and tells how long the taker must pause. Takers queue up: each one's pause covers
    /// those before it.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.paid_until.max(now.saturating_sub(BURST));
        self.paid_until = from.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn pauses_follow_the_rate() {
        // (now, bytes, pause) at 1000 bytes per second, one after the other.
        let steps = [
            (ms(0), 500, ms(500)),            // no credit at the start
            (ms(100), 500, ms(900)),          // a second thread waits behind the first
            (ms(1000), 0, ms(0)),             // all paid
            (ms(1500), 500, ms(0)),           // half a second of credit is used up
            (ms(60_000), 1500, ms(500)),      // a long idle time gives credit for one second only
            (ms(60_500), 10_000, ms(10_000)), // more than a second at once: debt
        ];
        let mut bucket = Bucket::new(1000);
        for (now, bytes, pause) in steps {
            assert_eq!(bucket.take(now, bytes), pause, "at {now:?}");
        }
    }

    #[test]
    fn no_second_sees_more_than_twice_the_rate() {
        let mut bucket = Bucket::new(1_000_000);
        let (mut now, mut taken) = (ms(5_000), 0u64);
        while now < ms(15_000) {
            now += bucket.take(now, 4_096);
            taken += 4_096;
        }
        // Ten seconds of rate and one of credit, within a chunk.
        assert!((10_990_000..=11_010_000).contains(&taken), "{taken}");
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut bucket = Bucket::new(0);
        assert!(bucket.take(ms(0), u64::MAX) > Duration::from_secs(1 << 33));
        assert!(bucket.take(ms(5), u64::MAX) > Duration::from_secs(1 << 33));
    }

    #[test]
    fn a_stop_ends_the_pause() {
        let (limit, stop) = (RateLimit::new(1), Stop::new());
        stop.set();
        let error = limit.take(1 << 40, &stop).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }
}
