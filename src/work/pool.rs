//! Pool: workers over one bounded channel. The producer runs on the calling thread, workers take its jobs in order
//! of submission, and the first error on either side ends both: a worker that ends drops its end of the channel, and
//! when all are gone a waiting `submit` fails. Nobody waits for a job or a place that cannot come.

use super::crew;
use super::stop::Stop;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, bounded};

/// Runs `produce` here and `work` on `threads` threads called `<name>-0`…; answers what `produce` answered when every
/// submitted job has been done. As many jobs as threads may wait. `work` gets the number of its thread, from 0.
pub fn run<J: Send, T>(
    name: &str,
    threads: usize,
    stop: &Stop,
    produce: impl FnOnce(&mut dyn FnMut(J) -> Result<()>) -> Result<T>,
    work: impl Fn(usize, J) -> Result<()> + Sync,
) -> Result<T> {
    let threads = threads.max(1);
    let work = &work;
    let (jobs, queue) = bounded::<J>(threads);
    crew::run(stop, move |crew| {
        for worker in 0..threads {
            let queue = queue.clone();
            let stop = crew.stop().clone();
            crew.spawn(format!("{name}-{worker}"), move || {
                drain(&queue, &stop, |job| work(worker, job))
            })?;
        }
        // The workers' ends are now the only ones.
        drop(queue);
        let mut refused = false;
        let answer = produce(&mut |job| {
            let sent = crew
                .stop()
                .check()
                .and_then(|()| jobs.send(job).map_err(|_| no_workers()));
            refused |= sent.is_err();
            sent
        })?;
        if refused {
            crew.stop().check()?;
            return Err(no_workers());
        }
        Ok(answer)
    })
}

/// A job that is left undone because of a stop is an error, so an unfinished run never looks finished.
fn drain<J>(queue: &Receiver<J>, stop: &Stop, work: impl Fn(J) -> Result<()>) -> Result<()> {
    for job in queue {
        stop.check()?;
        work(job)?;
    }
    Ok(())
}

/// Why the workers ended is their own error, which the crew prefers to this echo.
fn no_workers() -> Error {
    Error::new(Kind::Interrupted, "interrupted: the workers have ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_job_is_done_once() {
        for threads in [0, 1, 2, 7] {
            let sum = AtomicU64::new(0);
            let answer = run(
                "adder",
                threads,
                &Stop::new(),
                |submit| {
                    (1..=100u64).try_for_each(&mut *submit)?;
                    Ok("all")
                },
                |worker, job| {
                    assert!(worker < threads.max(1));
                    sum.fetch_add(job, Ordering::Relaxed);
                    Ok(())
                },
            );
            assert_eq!(answer.unwrap(), "all");
            assert_eq!(sum.into_inner(), 5050);
        }
    }

    /// Who fails, and how.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        Error,
        Panic,
        Producer,
        Stop,
    }

    /// Submits without end, so that only the fault can end it; a dead end would hang the test.
    fn run_into(fault: Fault, threads: usize, at: u64) -> Error {
        let stop = Stop::new();
        let answer: Result<()> = run(
            "worker",
            threads,
            &stop,
            |submit| {
                for job in 0u64.. {
                    if job == at && matches!(fault, Fault::Producer) {
                        return Err(Error::new(Kind::Io, "producer failed"));
                    }
                    submit(job)?;
                }
                unreachable!("the fault comes first")
            },
            |_, job| {
                match fault {
                    Fault::Error if job == at => return Err(Error::new(Kind::Full, "job failed")),
                    Fault::Panic if job == at => panic!("job panicked"),
                    Fault::Stop if job == at => stop.set(),
                    _ => {}
                }
                Ok(())
            },
        );
        answer.unwrap_err()
    }

    #[test]
    fn the_first_error_ends_both_sides_and_is_the_answer() {
        for round in 0..300u64 {
            let (threads, at) = (1 + (round % 5) as usize, round % 23);
            for (fault, kind) in [
                (Fault::Error, Kind::Full),
                (Fault::Panic, Kind::Bug),
                (Fault::Producer, Kind::Io),
                (Fault::Stop, Kind::Interrupted),
            ] {
                let error = run_into(fault, threads, at);
                assert_eq!(
                    error.kind(),
                    kind,
                    "{fault:?}, {threads} threads, job {at}: {error}"
                );
            }
        }
    }

    #[test]
    fn jobs_left_undone_are_an_error_even_if_the_producer_is_content() {
        let stop = Stop::new();
        let answer = run(
            "worker",
            1,
            &stop,
            |submit| {
                let _ = submit(1);
                let _ = submit(2);
                Ok(())
            },
            |_, _| {
                stop.set();
                Ok(())
            },
        );
        // Job 2 was refused, or taken by a worker that had stopped: undone either way.
        assert_eq!(answer.unwrap_err().kind(), Kind::Interrupted);
    }
}
