//! What the end-to-end tests stand on: throw-away servers, the binary under test, a witness, a proxy with faults.
//!
//! 1. Everything a test makes lies under one `Scratch` directory and is removed with it, also when the test panics.
//!    `SEAWALL_TEST_KEEP=1` keeps it and says where.
//! 2. No server outlives the tests: each one hangs on a watchdog that ends it when the test process is gone,
//!    however it went (see `Server`).
//! 3. Nothing sleeps and hopes: waiting is for a condition and has a deadline that names what did not come.
//!
//! PostgreSQL refuses to run as root. Tests that run as root run the servers, and the binary where PostgreSQL would
//! call it, as user postgres; tests of a normal user run everything as that user.

// Each test module uses its share of the tools; none uses all.
#![allow(dead_code)]

pub mod archive;
pub mod certs;
pub mod chance;
pub mod cluster;
pub mod ext4;
pub mod judges;
pub mod load;
pub mod minio;
pub mod mount;
pub mod ports;
pub mod proxy;
pub mod rclone;
pub mod seawall;
pub mod tmpfs;
pub mod wal;

use std::cell::OnceCell;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// The search path of every program that a test starts: the machine's, not the developer's.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// One test's directory, removed when it goes out of scope. Declare it first, so that it is dropped last.
pub struct Scratch {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
    binary: OnceCell<PathBuf>,
}

impl Scratch {
    /// A new directory that belongs to the user the servers run as.
    pub fn new() -> Scratch {
        let dir = tempfile::Builder::new()
            .prefix("seawall-test-")
            .tempdir()
            .expect("a temporary directory");
        let path = dir.path().to_path_buf();
        give_to_postgres(&path, 0o755);
        Scratch {
            dir: Some(dir),
            path,
            binary: OnceCell::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside, not created.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A new directory inside that belongs to the user the servers run as, mode 0700.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("a directory");
        give_to_postgres(&path, 0o700);
        path
    }

    /// A file inside with these bytes, belonging to the user the servers run as.
    pub fn file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, bytes).expect("a file");
        give_to_postgres(&path, 0o600);
        path
    }

    /// A private copy of the binary under test: user postgres may not be allowed into the directory where it was
    /// built. `cp` makes it, because a file that any thread of ours has open for writing while another one forks
    /// cannot be executed ("text file busy").
    pub fn binary(&self) -> &Path {
        self.binary.get_or_init(|| {
            let copy = self.path.join("seawall");
            let built = seawall::built_binary();
            let status = Command::new("cp").arg(&built).arg(&copy).status();
            assert!(
                status.is_ok_and(|s| s.success()),
                "could not copy {built:?}"
            );
            copy
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        if std::env::var_os("SEAWALL_TEST_KEEP").is_some() {
            eprintln!("kept: {}", dir.keep().display());
        } else if let Err(error) = dir.close() {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Waits until `condition` holds, and panics with `what` when the deadline passes first.
pub fn wait_for(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    while !condition() {
        assert!(
            Instant::now() < end,
            "waited {deadline:?} in vain for: {what}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// What a process has in memory now, in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    memory_kib(pid, "VmRSS:")
}

/// The most that a process has had in memory so far, in KiB.
pub fn peak_kib(pid: i32) -> u64 {
    memory_kib(pid, "VmHWM:")
}

fn memory_kib(pid: i32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.expect("a running process");
    let size = status.lines().find_map(|line| line.strip_prefix(what));
    let size = size.and_then(|text| text.trim().strip_suffix(" kB"));
    size.and_then(|kib| kib.parse().ok()).expect("its memory")
}

/// How many rounds a series takes: few in `scripts/test`, the full count in `scripts/long` (SEAWALL_TEST_LONG=1), or
/// what SEAWALL_TEST_ROUNDS says.
pub fn rounds(few: usize, full: usize) -> usize {
    if let Some(wanted) = std::env::var_os("SEAWALL_TEST_ROUNDS") {
        let wanted = wanted.to_str().and_then(|count| count.parse().ok());
        wanted.expect("SEAWALL_TEST_ROUNDS is a count")
    } else if std::env::var_os("SEAWALL_TEST_LONG").is_some() {
        full
    } else {
        few
    }
}

/// Jobs with their names, for `side_by_side`.
pub type Jobs<'a> = Vec<(String, Box<dyn FnOnce() + Send + 'a>)>;

/// Runs jobs that mostly wait, twelve at a time. All of them run; the panic at the end names those that failed.
pub fn side_by_side(jobs: Jobs) {
    let queue = Mutex::new(jobs.into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || queue.lock().expect("nothing panics in here").next();
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some((name, job)) = next() {
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        failed.lock().expect("nothing panics in here").push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nothing panics in here");
    assert!(failed.is_empty(), "failed: {}", failed.join("; "));
}

/// Are we root, and so must hand the servers to user postgres?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// User and group of postgres.
fn postgres_ids() -> (u32, u32) {
    static IDS: OnceLock<(u32, u32)> = OnceLock::new();
    let ask = |flag| {
        let out = Command::new("id")
            .args([flag, "postgres"])
            .output()
            .expect("id");
        let text = String::from_utf8_lossy(&out.stdout).trim().to_string();
        text.parse()
            .expect("user postgres exists (Debian package postgresql-15)")
    };
    *IDS.get_or_init(|| (ask("--user"), ask("--group")))
}

/// Makes a command run as user postgres when we are root. Unlike runuser(1) this leaves no process in between, so
/// signals reach the program itself and its exit status is its own.
pub fn as_postgres(command: &mut Command) -> &mut Command {
    if is_root() {
        let (uid, gid) = postgres_ids();
        command.uid(uid).gid(gid);
    }
    command
}

/// Gives one file or directory to user postgres when we are root.
pub fn give_to_postgres(path: &Path, mode: u32) {
    if is_root() {
        let (uid, gid) = postgres_ids();
        chown(path, Some(uid), Some(gid)).expect("chown");
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Runs a command to its end; panics with its output if it fails. Gives standard output.
pub fn run(command: &mut Command) -> String {
    let out = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("could not start {command:?}: {e}"));
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{command:?}: {}\n{stdout}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    stdout
}

/// Where `scripts/test` installs what Debian does not package.
pub fn tool(name: &str) -> PathBuf {
    let cache = match std::env::var_os("SEAWALL_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None if is_root() => PathBuf::from("/var/cache/seawall-test"),
        None => std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .expect("HOME is set")
            .join("seawall-test"),
    };
    let path = cache.join("bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/install-test-tools",
        path.display()
    );
    path
}

/// A server program that cannot outlive us.
///
/// It runs under a shell that holds the reading end of a pipe whose only writing end is ours. When we close it, or die
/// by whatever signal, the shell sees the end of file, ends the server and removes what it was told to remove. The
/// shell is in a process group of its own, so that Ctrl-C reaches us first.
pub struct Server {
    shell: Child,
    lifeline: Option<ChildStdin>,
    pid: i32,
}

/// $1 signal to end with, $2 file for the server's pid, $3 directory to remove afterwards or "", then the command.
/// The server is waited for by the shell, so no zombie makes it look alive after it was killed.
const WATCHDOG: &str = r#"
signal=$1 pidfile=$2 remove=$3; shift 3
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
echo "$server" >"$pidfile.new" && mv "$pidfile.new" "$pidfile"
{ read -r _ <&3; kill -s "$signal" "$server"; } 3<&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill "$watcher" 2>/dev/null
[ -z "$remove" ] || rm -r -f "$remove"
exit "$code"
"#;

impl Server {
    /// Starts a server; `prepare` sets environment, user and output of the whole. `state` is a directory where the
    /// server's user may write the pid file; `end` is the signal's name (TERM, QUIT).
    pub fn start(
        state: &Path,
        end: &str,
        remove: Option<&Path>,
        program: &Path,
        args: &[String],
        prepare: impl FnOnce(&mut Command),
    ) -> Server {
        let pid_file = state.join(format!("watchdog.{}", unique()));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCHDOG, "watchdog", end])
            .arg(&pid_file)
            .arg(remove.unwrap_or(Path::new("")))
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .process_group(0);
        prepare(&mut command);
        let mut shell = command
            .spawn()
            .unwrap_or_else(|e| panic!("could not start {program:?}: {e}"));
        let lifeline = shell.stdin.take();
        let mut pid = 0;
        wait_for(Duration::from_secs(10), "the watchdog's pid file", || {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            pid = text.trim().parse().unwrap_or(0);
            pid != 0
        });
        let _ = fs::remove_file(&pid_file);
        Server {
            shell,
            lifeline,
            pid,
        }
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it ended? Then with what.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().expect("try_wait")
    }

    /// Waits for its end, which something else must bring about.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let mut status = None;
        wait_for(deadline, "the end of a server", || {
            status = self.ended();
            status.is_some()
        });
        status.expect("waited for it")
    }

    /// Ends it as the death of this process would.
    pub fn end(&mut self) {
        self.lifeline = None;
        let end = Instant::now() + Duration::from_secs(20);
        while self.ended().is_none() {
            if Instant::now() > end {
                send_signal(self.pid, rustix::process::Signal::KILL);
                let _ = self.shell.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends a signal; a process that is gone is no error. `pid` must be a child of ours or of our watchdog.
pub fn send_signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Is there a live process of that number? A zombie is dead.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Has SIGSTOP reached all threads of a process? One that is in the kernel stops when it comes out of there.
pub fn is_stopped(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

/// All living descendants of a process, parents before children.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let path = format!("/proc/{0}/task/{0}/children", found[next]);
        let text = fs::read_to_string(path).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|p| p.parse::<i32>().ok()),
        );
        next += 1;
    }
    found.remove(0);
    found
}

/// A number that no other call in this process gives.
pub fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Sends bytes to a raw HTTP port and gives all that comes back, whatever happens to the connection on the way: the
/// bytes before a reset, and the error if there was one.
pub fn raw_http(port: u16, request: &[u8], patience: Duration) -> (Vec<u8>, Option<io::Error>) {
    use std::io::Read;
    let mut answer = Vec::new();
    let mut talk = || -> io::Result<()> {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(patience))?;
        socket.write_all(request)?;
        let mut buffer = [0u8; 4096];
        loop {
            match socket.read(&mut buffer)? {
                0 => return Ok(()),
                n => answer.extend_from_slice(&buffer[..n]),
            }
        }
    };
    let error = talk().err();
    (answer, error)
}
