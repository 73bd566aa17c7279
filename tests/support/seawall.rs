//! The binary under test as a command: clean environment, output and exit status captured, a deadline on everything.
//!
//! `SEAWALL_BIN` names it; by default it is what `cargo build --release` made.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{PATH, Scratch, as_postgres, send_signal, unique};

/// A command that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(300);

/// The binary as it was built.
pub fn built_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SEAWALL_BIN") {
        return std::path::absolute(path).expect("SEAWALL_BIN is a path");
    }
    // This program is target/debug/deps/main-…
    let here = std::env::current_exe().expect("our own path");
    let target = here.ancestors().nth(3).expect("target/<profile>/deps/");
    let path = target.join("release/seawall");
    assert!(
        path.exists(),
        "{} is missing: run cargo build --release, or set SEAWALL_BIN",
        path.display()
    );
    path
}

/// A command line of seawall in the making.
#[derive(Clone)]
pub struct Seawall {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    stdin: Vec<u8>,
    by_root: bool,
    deadline: Duration,
    rss_file: Option<PathBuf>,
}

impl Seawall {
    /// The binary as user postgres, with PATH, a HOME and a state directory of this test and nothing else.
    pub fn new(scratch: &Scratch) -> Seawall {
        Seawall::of(scratch, scratch.binary())
    }

    /// Another program, under the same care.
    pub fn of(scratch: &Scratch, program: impl Into<PathBuf>) -> Seawall {
        let home = scratch.dir("home");
        let state = scratch.dir("state");
        Seawall {
            program: program.into(),
            args: Vec::new(),
            env: vec![
                ("PATH".into(), PATH.into()),
                ("LC_ALL".into(), "C.UTF-8".into()),
                ("HOME".into(), home.display().to_string()),
                ("SEAWALL_STATE_DIR".into(), state.display().to_string()),
            ],
            cwd: home,
            stdin: Vec::new(),
            by_root: false,
            deadline: DEADLINE,
            rss_file: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<Path>) -> Seawall {
        self.args.push(arg.as_ref().display().to_string());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<str>>(mut self, args: impl IntoIterator<Item = A>) -> Seawall {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_string()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Seawall {
        self = self.env_remove(name);
        self.env
            .push((name.into(), value.as_ref().display().to_string()));
        self
    }

    /// Sets environment variables.
    pub fn envs(self, pairs: impl IntoIterator<Item = (String, String)>) -> Seawall {
        pairs
            .into_iter()
            .fold(self, |command, (name, value)| command.env(&name, value))
    }

    /// Takes one away again.
    pub fn env_remove(mut self, name: &str) -> Seawall {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// The working directory.
    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Seawall {
        self.cwd = path.into();
        self
    }

    /// What it reads from standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Seawall {
        self.stdin = bytes.into();
        self
    }

    /// As the user of the tests instead of postgres.
    pub fn by_root(mut self) -> Seawall {
        self.by_root = true;
        self
    }

    /// Another deadline than five minutes; passing it fails the test.
    pub fn deadline(mut self, deadline: Duration) -> Seawall {
        self.deadline = deadline;
        self
    }

    /// Measures the peak of resident memory by time(1). Not for tests that send signals: they would reach time(1).
    pub fn measured(mut self, scratch: &Scratch) -> Seawall {
        self.rss_file = Some(scratch.dir("time").join(format!("{}", unique())));
        self
    }

    /// The line for archive_command, restore_command or a shell: environment, program and arguments, quoted. `%p` and
    /// `%f` may be among the arguments and stay as they are.
    pub fn shell_line(&self) -> String {
        let mut words = vec!["/usr/bin/env".to_string(), "-i".into()];
        words.extend(self.env.iter().map(|(n, v)| format!("{n}={}", quote(v))));
        words.push(quote(&self.program.display().to_string()));
        words.extend(self.args.iter().map(|a| quote(a)));
        words.join(" ")
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        let deadline = self.deadline;
        self.spawn().wait(deadline)
    }

    /// Starts it; the caller sends signals and waits.
    pub fn spawn(self) -> Running {
        let mut command = match &self.rss_file {
            None => Command::new(&self.program),
            Some(file) => {
                let mut command = Command::new("/usr/bin/time");
                command.args(["--verbose", "--quiet", "--output"]);
                command.arg(file).arg(&self.program);
                command
            }
        };
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .current_dir(&self.cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if !self.by_root {
            as_postgres(&mut command);
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("could not start {:?}: {e}", self.program));
        let mut stdin = child.stdin.take().expect("piped");
        let input = self.stdin;
        std::thread::spawn(move || {
            // A program that does not read its input is not at fault here.
            let _ = stdin.write_all(&input);
        });
        Running {
            stdout: Some(collect(child.stdout.take().expect("piped"))),
            stderr: Some(collect(child.stderr.take().expect("piped"))),
            what: self.args.join(" "),
            started: Instant::now(),
            rss_file: self.rss_file,
            child,
        }
    }
}

/// Quotes a word for sh(1).
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%@+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Reads a pipe to its end beside the caller, so that a full pipe never stops the program.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// A started seawall. Dropped, it is killed.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    what: String,
    started: Instant,
    rss_file: Option<PathBuf>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("try_wait").is_some()
    }

    /// Waits for its end; if it takes longer than the deadline, it is killed and the test fails.
    pub fn wait(mut self, deadline: Duration) -> Outcome {
        let end = Instant::now() + deadline;
        let mut late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("try_wait") {
                break status;
            }
            if !late && Instant::now() > end {
                late = true;
                self.kill_all();
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let outcome = self.outcome(status);
        assert!(!late, "still running after {deadline:?}: {outcome:?}");
        outcome
    }

    /// Ends it as an operator does, with SIGTERM, and expects that it takes that for success.
    pub fn terminate(self) -> Outcome {
        self.signal(Signal::TERM);
        self.wait(DEADLINE).ok()
    }

    /// Ends it as a crash does.
    pub fn kill9(self) -> Outcome {
        self.signal(Signal::KILL);
        self.wait(DEADLINE).expect_signal(Signal::KILL)
    }

    /// Kills it with all that it started, which may hold its output open.
    fn kill_all(&self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.pid()) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }

    fn outcome(&mut self, status: ExitStatus) -> Outcome {
        let wall = self.started.elapsed();
        let text = |handle: Option<JoinHandle<Vec<u8>>>| {
            let bytes = handle.expect("collected once").join();
            bytes.expect("the collecting thread does not panic")
        };
        let stderr = text(self.stderr.take());
        Outcome {
            what: self.what.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: text(self.stdout.take()),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            wall,
            peak_rss_kib: self.rss_file.as_deref().map(read_peak_rss),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_all();
            let _ = self.child.wait();
        }
    }
}

fn read_peak_rss(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).expect("time(1) wrote its report");
    let line = text.lines().find(|l| l.contains("Maximum resident set"));
    let number = line.and_then(|l| l.rsplit(": ").next());
    number
        .and_then(|n| n.trim().parse().ok())
        .expect("time(1) reports the peak")
}

/// How it ended and what it said.
pub struct Outcome {
    what: String,
    /// The exit code, if it exited.
    pub code: Option<i32>,
    /// The signal it died by, if it did.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub wall: Duration,
    /// Peak of resident memory, when it was `measured`.
    pub peak_rss_kib: Option<u64>,
}

impl Outcome {
    /// Asserts that it exited 0.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.expect(0, &[])
    }

    /// Asserts the exit code, and that standard error contains each of these texts.
    #[track_caller]
    pub fn expect(self, code: i32, texts: &[&str]) -> Outcome {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in {self:?}");
        }
        self
    }

    /// Asserts that it died by this signal.
    #[track_caller]
    pub fn expect_signal(self, signal: Signal) -> Outcome {
        assert_eq!(self.signal, Some(signal.as_raw()), "{self:?}");
        self
    }

    /// Asserts that neither output contains any of these secrets.
    #[track_caller]
    pub fn without(self, secrets: &[&str]) -> Outcome {
        let stdout = self.text();
        for secret in secrets {
            assert!(!self.stderr.contains(secret), "a secret on stderr");
            assert!(!stdout.contains(secret), "a secret on stdout");
        }
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = self.text();
        let short: String = stdout.chars().take(4000).collect();
        write!(
            f,
            "seawall {}: code {:?}, signal {:?}, after {:?}\n-- stdout\n{short}\n-- stderr\n{}\n--",
            self.what, self.code, self.signal, self.wall, self.stderr
        )
    }
}
