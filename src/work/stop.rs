//! Stop: the one way to end work in good order. It only ever goes from running to stopped, and everyone who waits on
//! it wakes at once.

use crate::error::{Error, Kind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A flag with waiters, shared by clones.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    /// The signal that stopped it; 0 for none.
    signal: AtomicI32,
    /// When it stops by itself.
    deadline: Option<Instant>,
    /// Guards the children, and is what waiters sleep on.
    children: Mutex<Vec<Weak<Shared>>>,
    wake: Condvar,
}

impl Stop {
    /// A stop that nobody has raised yet.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// A stop that SIGINT and SIGTERM raise; further signals change nothing. Handlers are set even where the parent
    /// had the signal ignored (shells do that to SIGINT of background jobs): cron and systemd send them on purpose.
    pub fn on_signals() -> Result<Stop> {
        let stop = Stop::new();
        let mut signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|e| Error::io("could not handle SIGINT and SIGTERM", e))?;
        let raised = stop.clone();
        std::thread::Builder::new()
            .name("signals".to_string())
            .spawn(move || {
                for signal in signals.forever() {
                    raised.raise(signal);
                }
            })
            .map_err(|e| super::could_not_start("signals", e))?;
        Ok(stop)
    }

    /// A stop of its own that also stops when this one does.
    pub fn child(&self) -> Stop {
        self.child_until(self.0.deadline)
    }

    /// A child that stops by itself after `time`.
    pub fn within(&self, time: Duration) -> Stop {
        let own = Instant::now().checked_add(time);
        let both = own.into_iter().chain(self.0.deadline);
        self.child_until(both.min())
    }

    fn child_until(&self, deadline: Option<Instant>) -> Stop {
        let child = Stop(Arc::new(Shared {
            deadline,
            ..Shared::default()
        }));
        let mut children = self.0.lock();
        children.retain(|c| c.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        drop(children);
        // Registered first, looked at second: a stop in between reaches it on one way or the other.
        if self.is_set() {
            child.raise(self.0.signal.load(Ordering::Acquire));
        }
        child
    }

    /// Stops.
    pub fn set(&self) {
        self.raise(0);
    }

    /// Whether it is time to stop.
    pub fn is_set(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire) || self.0.left().is_zero()
    }

    /// `Kind::Interrupted` once it is time to stop.
    pub fn check(&self) -> Result<()> {
        if !self.is_set() {
            return Ok(());
        }
        Err(match self.signal() {
            Some(SIGINT) => Error::new(Kind::Interrupted, "interrupted by SIGINT"),
            Some(SIGTERM) => Error::new(Kind::Interrupted, "interrupted by SIGTERM"),
            _ => Error::new(Kind::Interrupted, "interrupted"),
        })
    }

    /// The signal that stopped it, if one did.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.signal.load(Ordering::Acquire)).filter(|s| *s != 0)
    }

    /// Sleeps for `time`, less if it is time to stop; answers whether it is.
    pub fn wait(&self, time: Duration) -> bool {
        let start = Instant::now();
        let mut guard = self.0.lock();
        while !self.is_set() {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            let woken = self.0.wake.wait_timeout(guard, left.min(self.0.left()));
            guard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn raise(&self, signal: i32) {
        self.0.raise(signal);
    }
}

impl Shared {
    fn raise(&self, signal: i32) {
        let children = self.lock();
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        self.signal.store(signal, Ordering::Release);
        // Set under the lock: a waiter has either not yet looked, or already sleeps and hears the wake.
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_all();
        for child in children.iter().filter_map(Weak::upgrade) {
            child.raise(signal);
        }
    }

    /// The time until it stops by itself.
    fn left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        })
    }

    /// Nothing can panic while it is held, and if it did, the list would still be whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the process by the default action of `signal`, so that the parent sees a death by signal: PostgreSQL takes
/// that of a `restore_command` as its own shutdown. Returns only if there is no such action.
pub fn die_by_signal(signal: i32) {
    if let Err(e) = signal_hook::low_level::emulate_default_handler(signal) {
        log::error!("could not die by signal {signal}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    /// Longer than any test may take: a wait that ends in time was woken.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn waiters_wake_at_once() {
        let stop = Stop::new();
        assert!(!stop.wait(Duration::from_millis(1)));
        assert!(stop.check().is_ok());
        std::thread::scope(|s| {
            let waiters: Vec<_> = (0..4).map(|_| s.spawn(|| stop.wait(LONG))).collect();
            stop.set();
            assert!(waiters.into_iter().all(|w| w.join().unwrap()));
        });
        assert_eq!(stop.check().unwrap_err().kind(), Kind::Interrupted);
        assert_eq!(stop.signal(), None);
        assert!(stop.wait(LONG), "stopped stays stopped");
    }

    #[test]
    fn a_child_stops_with_its_parent_but_not_the_other_way() {
        let parent = Stop::new();
        let (early, alone) = (parent.child(), parent.child());
        alone.set();
        assert!(!parent.is_set() && !early.is_set());
        std::thread::scope(|s| {
            let waiter = s.spawn(|| early.child().wait(LONG));
            parent.raise(SIGTERM);
            assert!(waiter.join().unwrap());
        });
        parent.raise(SIGINT);
        assert_eq!(early.signal(), Some(SIGTERM), "the first signal counts");
        let late = parent.child();
        assert_eq!(
            late.check().unwrap_err().message(),
            "interrupted by SIGTERM"
        );
    }

    #[test]
    fn time_stops_a_child_alone() {
        let parent = Stop::new();
        let timed = parent.within(Duration::from_millis(1));
        let grandchild = timed.within(LONG);
        assert!(grandchild.wait(LONG) && timed.is_set() && timed.child().is_set());
        assert_eq!(timed.check().unwrap_err().kind(), Kind::Interrupted);
        assert!(!parent.is_set() && !parent.within(LONG).is_set());
        let never = parent.within(Duration::MAX);
        parent.set();
        assert!(never.is_set());
    }

    #[test]
    fn dead_children_are_forgotten() {
        let stop = Stop::new();
        for _ in 0..1000 {
            stop.child();
        }
        assert!(stop.0.lock().len() <= 1);
    }

    #[test]
    fn a_signal_stops_and_the_first_one_counts() {
        let stop = Stop::on_signals().unwrap();
        signal_hook::low_level::raise(SIGINT).unwrap();
        assert!(stop.wait(LONG));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert_eq!(stop.signal(), Some(SIGINT));
        assert_eq!(stop.check().unwrap_err().message(), "interrupted by SIGINT");
    }

    /// This test binary, to run one test of this module.
    fn again(shell: &str, test: &str) -> Command {
        let mut command = Command::new("sh");
        let binary = std::env::current_exe().unwrap();
        command.arg("-c").arg(shell).arg(binary);
        command.args(["--exact", &format!("work::stop::tests::{test}")]);
        command
    }

    #[test]
    fn a_sigint_that_was_ignored_by_the_parent_stops_too() {
        let ignoring = "trap '' INT; exec \"$0\" \"$@\"";
        let output = again(ignoring, "a_signal_stops_and_the_first_one_counts")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    #[test]
    fn death_by_signal_looks_like_one() {
        const CHILD: &str = "SEAWALL_TEST_DIES";
        if std::env::var_os(CHILD).is_some() {
            let _handled = Stop::on_signals().unwrap();
            die_by_signal(SIGTERM);
            unreachable!("SIGTERM ends the process");
        }
        let mut child = again("exec \"$0\" \"$@\"", "death_by_signal_looks_like_one");
        let status = child
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(SIGTERM), "{status}");
    }
}
