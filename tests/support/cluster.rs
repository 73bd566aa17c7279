//! Throw-away PostgreSQL servers: 1 MiB segments, a port and a socket directory of their own, gone when dropped.
//!
//! `SEAWALL_TEST_PGBIN` names the directory of the server's programs (scripts/matrix sets it); the client programs
//! are always those of Debian's version 15, `SEAWALL_TEST_PGTOOLS` if they are elsewhere.
//!
//! Port, addresses and socket directory are given on the server's command line and are in no file, so a backup does
//! not carry them and a restored copy can run beside its origin.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postgres::{Client, NoTls};
use rustix::process::Signal;

use super::certs::Pair;
use super::{
    PATH, Scratch, Server, as_postgres, descendants, give_to_postgres, is_alive, ports, run,
    send_signal, wait_for,
};

/// How long a server may take to start, to stop, to recover.
const PATIENCE: Duration = Duration::from_secs(60);

/// Directory of the server's programs.
pub fn server_bin() -> PathBuf {
    std::env::var_os("SEAWALL_TEST_PGBIN").map_or_else(tools_bin, PathBuf::from)
}

/// Directory of the client programs.
pub fn tools_bin() -> PathBuf {
    std::env::var_os("SEAWALL_TEST_PGTOOLS").map_or_else(
        || PathBuf::from("/usr/lib/postgresql/15/bin"),
        PathBuf::from,
    )
}

/// A client program of version 15 (psql, pg_verifybackup, pg_waldump, pgbench …) as user postgres, with nothing of
/// our environment.
pub fn pg_tool(name: &str) -> Command {
    let mut command = Command::new(tools_bin().join(name));
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
    as_postgres(&mut command);
    command
}

/// How a server is to stop.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Waits for clients to go.
    Smart,
    /// Rolls back, writes a shutdown checkpoint.
    Fast,
    /// Leaves at once; recovery follows at the next start.
    Immediate,
}

/// What a new cluster shall be like.
pub struct Builder<'a> {
    scratch: &'a Scratch,
    name: String,
    wal_segsize_mib: u32,
    checksums: bool,
    auth_host: String,
    hba: Option<String>,
    config: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    tls: Option<(Pair, String)>,
    wal_dir: Option<PathBuf>,
    initdb: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Segment size in MiB instead of 1.
    pub fn wal_segsize_mib(mut self, mib: u32) -> Self {
        self.wal_segsize_mib = mib;
        self
    }

    /// With page checksums or, as it is by default, without.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// A setting for postgresql.conf (of a restored copy: for the command line), without quotes.
    pub fn config(mut self, name: &str, value: impl Into<String>) -> Self {
        self.config.push((name.into(), value.into()));
        self
    }

    /// Switches archiving on with this command.
    pub fn archive_command(self, command: impl Into<String>) -> Self {
        self.config("archive_mode", "on")
            .config("archive_command", command)
    }

    /// initdb's --auth-host: trust (default), password, md5, scram-sha-256. Socket connections stay trusted.
    pub fn auth_host(mut self, method: &str) -> Self {
        self.auth_host = method.into();
        self
    }

    /// The whole pg_hba.conf; the tests' own client comes over the socket, so keep a `local all postgres trust`.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.into());
        self
    }

    /// TLS with this certificate; clients' certificates are checked against the authority given.
    pub fn tls(mut self, server: Pair, client_ca_pem: &str) -> Self {
        self.tls = Some((server, client_ca_pem.into()));
        self
    }

    /// pg_wal as a symbolic link to this directory.
    pub fn wal_dir(mut self, path: PathBuf) -> Self {
        self.wal_dir = Some(path);
        self
    }

    /// An environment variable of the server, hence of its archive_command and restore_command.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// One more argument of initdb.
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb.push(arg.into());
        self
    }

    /// Makes the data directory; the server does not run yet.
    pub fn create(self) -> Cluster {
        let data = self.scratch.join(&self.name);
        let mut initdb = Command::new(server_bin().join("initdb"));
        initdb
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "--auth-local=trust"])
            .arg(format!("--auth-host={}", self.auth_host))
            .arg(format!("--wal-segsize={}", self.wal_segsize_mib))
            .args(&self.initdb);
        if self.checksums {
            initdb.arg("--data-checksums");
        } else if major_of_server() >= 18 {
            initdb.arg("--no-data-checksums"); // version 18 turned the default round
        }
        if let Some(wal_dir) = &self.wal_dir {
            initdb.arg("--waldir").arg(wal_dir);
        }
        run(as_postgres(&mut initdb));
        let cluster = self.cluster(data);
        cluster.write_files(&self);
        cluster
    }

    /// Makes the data directory and starts the server.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }

    /// A cluster on a data directory that is there already, as a restore left it. Not started.
    pub fn on(self, data: impl Into<PathBuf>) -> Cluster {
        let mut cluster = self.cluster(data.into());
        for (name, value) in &self.config {
            cluster
                .arguments
                .extend(["-c".into(), format!("{name}={value}")]);
        }
        cluster
    }

    fn cluster(&self, data: PathBuf) -> Cluster {
        Cluster {
            data,
            sockets: self.scratch.dir(format!("{}.sock", self.name)),
            log: self.scratch.join(format!("{}.log", self.name)),
            port: ports::free_port(),
            arguments: Vec::new(),
            environment: self.environment.clone(),
            server: None,
        }
    }
}

/// A PostgreSQL server, running or not.
pub struct Cluster {
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    port: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    server: Option<Server>,
}

impl Cluster {
    /// Describes a cluster; `name` is its directory under the scratch one.
    pub fn builder<'a>(scratch: &'a Scratch, name: &str) -> Builder<'a> {
        Builder {
            scratch,
            name: name.into(),
            wal_segsize_mib: 1,
            checksums: false,
            auth_host: "trust".into(),
            hba: None,
            config: Vec::new(),
            environment: Vec::new(),
            tls: None,
            wal_dir: None,
            initdb: Vec::new(),
        }
    }

    /// PGDATA.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its port, on 127.0.0.1 and in the name of the socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// What the server wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The major version in PG_VERSION.
    pub fn major(&self) -> u32 {
        let text = fs::read_to_string(self.data.join("PG_VERSION")).expect("PG_VERSION");
        text.trim().parse().expect("a major version")
    }

    /// The environment with which a client, ours under test too, finds this server over its socket.
    pub fn client_env(&self) -> Vec<(String, String)> {
        vec![
            ("PGHOST".into(), self.sockets.display().to_string()),
            ("PGPORT".into(), self.port.to_string()),
            ("PGUSER".into(), "postgres".into()),
            ("PGDATABASE".into(), "postgres".into()),
        ]
    }

    fn write_files(&self, wanted: &Builder) {
        // No fsync: power is not cut in these tests, and kill -9 loses nothing that the kernel has.
        let defaults = [
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("shared_buffers", "16MB"),
            ("fsync", "off"),
            // In PGDATA, and so removed with it: what a killed server leaves in /dev/shm stays there.
            ("dynamic_shared_memory_type", "mmap"),
            ("log_line_prefix", "%m [%p] "),
            ("log_checkpoints", "off"),
        ];
        for (name, value) in defaults {
            self.configure(name, value);
        }
        if let Some((pair, client_ca)) = &wanted.tls {
            pair.write(&self.data, "server");
            let ca = self.data.join("root.crt");
            fs::write(&ca, client_ca).expect("a file");
            give_to_postgres(&ca, 0o644);
            for (name, value) in [("ssl", "on"), ("ssl_ca_file", "root.crt")] {
                self.configure(name, value);
            }
        }
        for (name, value) in &wanted.config {
            self.configure(name, value);
        }
        if let Some(hba) = &wanted.hba {
            fs::write(self.data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        }
    }

    /// Appends a setting to postgresql.conf; the last one counts. Takes effect with `reload` or a start.
    pub fn configure(&self, name: &str, value: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))
            .expect("postgresql.conf");
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        writeln!(file, "{name} = '{value}'").expect("postgresql.conf");
    }

    /// Makes the running server read its files again.
    pub fn reload(&self) {
        send_signal(self.pid(), Signal::HUP);
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> i32 {
        self.server.as_ref().expect("the server runs").pid()
    }

    /// Starts it and waits until it accepts connections; panics with the log if it does not.
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!(
                "the server in {} did not start:\n{log}",
                self.data.display()
            );
        }
    }

    /// As `start`, but gives back the log when the server ends or refuses instead.
    pub fn try_start(&mut self) -> Result<(), String> {
        let from = self.log().len();
        self.launch();
        let mut up = false;
        wait_for(PATIENCE, "a server that accepts connections", || {
            up = self.is_ready();
            up || self.has_ended()
        });
        if up {
            return Ok(());
        }
        self.server = None;
        Err(self.log().split_off(from))
    }

    /// Starts it and does not wait.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let log = OpenOptions::new().append(true).create(true).open(&self.log);
        let log: File = log.expect("the server's log");
        let mut args: Vec<String> = vec!["-D".into(), self.data.display().to_string()];
        for setting in [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", self.sockets.display()),
        ] {
            args.extend(["-c".into(), setting]);
        }
        args.extend(self.arguments.iter().cloned());
        let environment = self.environment.clone();
        let program = server_bin().join("postgres");
        self.server = Some(Server::start(
            &self.sockets,
            "QUIT",
            None,
            &program,
            &args,
            |command| {
                command
                    .envs(environment)
                    .env("LC_ALL", "C")
                    .current_dir("/")
                    .stdout(log.try_clone().expect("a descriptor"))
                    .stderr(log);
                as_postgres(command);
            },
        ));
    }

    /// Does it accept connections?
    pub fn is_ready(&self) -> bool {
        let status = pg_tool("pg_isready")
            .args(["--quiet", "-U", "postgres", "-h"])
            .arg(&self.sockets)
            .args(["-p", &self.port.to_string()])
            .status();
        status.expect("pg_isready").success()
    }

    /// Has the server ended by itself (or is it not started)?
    pub fn has_ended(&mut self) -> bool {
        self.server.as_mut().is_none_or(|s| s.ended().is_some())
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        let mut server = self.server.take().expect("the server runs");
        let signal = match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        send_signal(server.pid(), signal);
        server.wait(PATIENCE);
    }

    /// Stops it fast and starts it again.
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// SIGKILL for the postmaster and all below it, a running archive_command too: the machine went away.
    pub fn kill9(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        let all = descendants(server.pid());
        send_signal(server.pid(), Signal::KILL);
        all.iter().for_each(|pid| send_signal(*pid, Signal::KILL));
        server.wait(PATIENCE);
        wait_for(PATIENCE, "the death of all backends", || {
            !all.iter().any(|pid| is_alive(*pid))
        });
        self.remove_shared_memory();
    }

    /// What a killed server leaves in the kernel: nobody would ever remove it, and there is a limit. Line 7 of
    /// postmaster.pid is its key and its id.
    fn remove_shared_memory(&self) {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let id = text
            .lines()
            .nth(6)
            .and_then(|l| l.split_whitespace().nth(1));
        if let Some(id) = id {
            run(Command::new("ipcrm").args(["--shmem-id", id]));
        }
    }

    /// Ends recovery and waits until it writes.
    pub fn promote(&self) {
        let done: bool = self.value("select pg_promote(true, 60)::text") == "true";
        assert!(done, "not promoted:\n{}", self.log());
    }

    /// Waits until recovery has ended by itself.
    pub fn wait_recovered(&self) {
        wait_for(PATIENCE, "the end of recovery", || {
            self.value("select pg_is_in_recovery()::text") == "false"
        });
    }

    /// A connection of the `postgres` crate, which is not our own client, over the socket.
    pub fn client(&self) -> Client {
        self.client_to("postgres")
    }

    /// How to reach it over the socket, for who expects that it may be gone.
    pub fn address(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host_path(&self.sockets).port(self.port);
        config.user("postgres").dbname("postgres");
        config
    }

    /// The same to another database.
    pub fn client_to(&self, database: &str) -> Client {
        self.address()
            .dbname(database)
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("could not connect to the test's server: {e}"))
    }

    /// Runs statements, without a transaction around them if it is only one.
    pub fn execute(&self, sql: &str) {
        let done = self.client().batch_execute(sql);
        done.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// The first column of the first row as text; empty when NULL or no row.
    pub fn value(&self, sql: &str) -> String {
        let messages = self.client().simple_query(sql);
        for message in messages.unwrap_or_else(|e| panic!("{sql}: {e:?}")) {
            if let postgres::SimpleQueryMessage::Row(row) = message {
                return row.get(0).unwrap_or_default().to_string();
            }
        }
        String::new()
    }

    /// A number from the first column of the first row.
    pub fn number(&self, sql: &str) -> i64 {
        let text = self.value(sql);
        text.parse()
            .unwrap_or_else(|_| panic!("{sql}: {text:?} is not a number"))
    }

    /// The same question by psql: unaligned, tuples only.
    pub fn psql(&self, sql: &str) -> String {
        let out = run(self.tool("psql").args([
            "--no-psqlrc",
            "--no-align",
            "--tuples-only",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--command",
            sql,
        ]));
        out.trim_end().to_string()
    }

    /// A client program that finds this server: psql, pgbench, pg_amcheck, pg_basebackup …
    pub fn tool(&self, name: &str) -> Command {
        let mut command = pg_tool(name);
        command.envs(self.client_env());
        command
    }

    /// Ends the current segment and gives the name of the file that was ended.
    pub fn switch_wal(&self) -> String {
        self.execute("select pg_logical_emit_message(false, 'test', 'one record at least')");
        self.value("select pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archiver has reported this segment, or a later one.
    pub fn wait_archived(&self, segment: &str) {
        wait_for(PATIENCE, &format!("{segment} in the archive"), || {
            let last = self.value("select left(last_archived_wal, 24) from pg_stat_archiver");
            last.as_str() >= segment
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server = None;
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            eprintln!("-- log of {}\n{}\n--", self.data.display(), tail.join("\n"));
        }
    }
}

/// The major version of the server's programs.
pub fn major_of_server() -> u32 {
    let text = run(Command::new(server_bin().join("postgres")).arg("--version"));
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let major: String = version.chars().take_while(char::is_ascii_digit).collect();
    major
        .parse()
        .unwrap_or_else(|_| panic!("no version in {text:?}"))
}
