//! Writers that insert numbered rows, each over a connection of its own, and what was acknowledged to them: a number is
//! noted only after its commit has returned. A server that dies is waited for; what it had not answered counts for
//! nothing.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

use super::cluster::Cluster;
use super::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// The table that is written to.
pub const TABLE: &str = "create table paid (n bigint primary key, filler text)";
const INSERT: &str = "insert into paid values ($1, repeat('x', $2))";

/// How hard the writers work.
#[derive(Clone, Copy, Default)]
pub struct Pace {
    /// Bytes of the longest row.
    pub filler: i32,
    /// What a writer does between two commits.
    pub thinks: Duration,
}

/// A row that is promised to be there.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// Its number.
    pub n: i64,
    /// When the commit returned.
    pub at: Instant,
}

/// Writers at work. Dropped, they end as soon as the server they wait for does.
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

struct Shared {
    pace: Pace,
    stop: AtomicBool,
    next: AtomicI64,
    /// Writers that may have a commit under way.
    busy: AtomicUsize,
    /// Where to write; nowhere while they are to rest.
    server: Mutex<Option<Arc<postgres::Config>>>,
    acknowledged: Mutex<Vec<Acknowledged>>,
}

impl Load {
    /// Starts so many writers, which rest.
    pub fn start(writers: usize, pace: Pace) -> Load {
        let shared = Arc::new(Shared {
            pace,
            stop: AtomicBool::new(false),
            next: AtomicI64::new(1),
            busy: AtomicUsize::new(0),
            server: Mutex::default(),
            acknowledged: Mutex::default(),
        });
        let writer = |_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.write())
        };
        Load {
            writers: (0..writers).map(writer).collect(),
            shared,
        }
    }

    /// Lets them write to this server.
    pub fn aim(&self, server: &Cluster) {
        *lock(&self.shared.server) = Some(Arc::new(server.address()));
    }

    /// Lets them rest, and waits until all that was begun is answered.
    pub fn rest(&self) {
        *lock(&self.shared.server) = None;
        wait_for(PATIENCE, "the answers to all commits", || {
            self.shared.busy.load(Ordering::SeqCst) == 0
        });
    }

    /// How many rows were acknowledged so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.acknowledged).len()
    }

    /// Waits until so many more are.
    pub fn wait_for_more(&self, rows: usize) {
        let enough = self.count() + rows;
        wait_for(PATIENCE, "commits to go on", || self.count() >= enough);
    }

    /// All that were acknowledged so far.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        lock(&self.shared.acknowledged).clone()
    }

    /// Ends the writers, whose server is dead or answers.
    pub fn finish(&mut self) -> Vec<Acknowledged> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            writer.join().expect("writers do not panic");
        }
        self.acknowledged()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn write(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            let server = lock(&self.server).clone();
            let connected = server.and_then(|server| Some((server.connect(NoTls).ok()?, server)));
            match connected {
                Some((client, server)) => self.write_to(client, &server),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Until there is an error, or nothing more to be written there.
    fn write_to(&self, mut client: Client, server: &Arc<postgres::Config>) {
        let Ok(insert) = client.prepare(INSERT) else {
            return;
        };
        let wanted = || {
            let stop = self.stop.load(Ordering::SeqCst);
            let wanted = lock(&self.server);
            !stop
                && wanted
                    .as_ref()
                    .is_some_and(|wanted| Arc::ptr_eq(wanted, server))
        };
        loop {
            // First busy, then the question: so whoever takes the server away sees us.
            self.busy.fetch_add(1, Ordering::SeqCst);
            let done = wanted() && self.commit(&mut client, &insert);
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if !done {
                return;
            }
            thread::sleep(self.pace.thinks);
        }
    }

    fn commit(&self, client: &mut Client, insert: &postgres::Statement) -> bool {
        let n = self.next.fetch_add(1, Ordering::SeqCst);
        let filler = (n * 37 % i64::from(self.pace.filler + 1)) as i32;
        let done = client.execute(insert, &[&n, &filler]).is_ok();
        if done {
            let at = Instant::now();
            lock(&self.acknowledged).push(Acknowledged { n, at });
        }
        done
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics in here")
}
