//! `wal-receive`: pg_receivewal's work, options and meaning, with uploads.

use super::arguments::{
    Connection, absolute_path, connection, connection_options, optional_path, parsed,
    setting_option, text, usage, word,
};
use super::{Context, RECEIVE_RETRY, password};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::relay::{self, Acknowledge, Connect, Options, Upload, status};
use crate::spool::queue::Keep;
use crate::wire::{Conn, ConnectOptions};
use crate::work::stop::Stop;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use std::path::PathBuf;
use std::time::Duration;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// The replication slot.
    pub slot: Option<String>,
    /// How to reach PostgreSQL.
    pub connection: Connection,
    /// `--password`: the operator is asked for it.
    pub ask_password: bool,
}

/// The verb's three works.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make a slot; whether one that is there already is fine.
    CreateSlot {
        /// `--if-not-exists`.
        or_exists: bool,
    },
    /// Drop the slot.
    DropSlot,
    /// Receive.
    Receive(Box<Receive>),
}

/// How to receive.
#[derive(Clone, Debug)]
pub struct Receive {
    /// `--directory`.
    pub directory: PathBuf,
    /// `--synchronous`.
    pub synchronous: bool,
    /// `--status-interval`.
    pub status_interval: Duration,
    /// `--receive-timeout`; `None` is for ever.
    pub receive_timeout: Option<Duration>,
    /// `--endpos`.
    pub end_position: Option<Lsn>,
    /// `--no-loop`.
    pub no_loop: bool,
    /// `--upload` or `--no-upload`; by default segments are uploaded if there is a prefix.
    pub upload: Option<bool>,
    /// `--acknowledge`.
    pub acknowledge: Acknowledge,
    /// `--keep-local`.
    pub keep: Keep,
    /// `--partial-every`; `None` is never.
    pub partial_every: Option<Duration>,
    /// `--spool-max`; `None` is what the file system has.
    pub spool_bytes_max: Option<u64>,
    /// `--accept-gap`.
    pub accept_gap: Option<Lsn>,
    /// `--status-file`.
    pub status_file: Option<PathBuf>,
}

/// The verb's command line. Letters are pg_receivewal's, so `-h` is the host and help is `--help` or `-?`.
pub fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let value =
        |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    let options = [
        value("directory", "DIR")
            .short('D')
            .value_parser(clap::value_parser!(PathBuf))
            .help("Where the WAL goes: the spool"),
        value("slot", "NAME")
            .short('S')
            .help("Use this replication slot, so that the server keeps WAL until it is safe here"),
        flag("create-slot").help("Create the slot, with WAL reserved from now on, and exit"),
        flag("drop-slot").help("Drop the slot and exit"),
        flag("if-not-exists")
            .requires("create-slot")
            .help("Do not fail if the slot that is to be created exists"),
        flag("synchronous").help("Sync and report at once what arrives: for a synchronous standby"),
        value("endpos", "LSN")
            .short('E')
            .help("Exit once WAL beyond this position has been received"),
        flag("no-loop")
            .short('n')
            .help("Exit at the first lost connection"),
        value("status-interval", "SECONDS")
            .short('s')
            .default_value("10")
            .help("Longest time between two reports to the server"),
        value("receive-timeout", "TIME")
            .default_value("60s")
            .help("Give a connection up after so long a silence of the server; 0 is never")
            .long_help(
                "Give a connection up after so long a silence of the server; 0 is never. After half of it the\n\
                 server is asked for a sign of life.",
            ),
        // pg_receivewal's, known only to be answered.
        flag("no-sync").hide(true),
        value("compress", "METHOD").short('Z').hide(true),
        flag("upload")
            .conflicts_with("no-upload")
            .help("Put whole segments into the archive (default if there is a prefix)"),
        flag("no-upload").help("Only receive"),
        setting_option("upload.threads", "pool-size", "N").help("Segments that are uploaded side by side"),
        value("keep-local", "N|always")
            .default_value("0")
            .help("How many segments stay in the spool after they were archived"),
        value("acknowledge", "WHAT")
            .value_parser(["local", "archived"])
            .default_value("local")
            .hide_possible_values(true)
            .help("What the server takes for durable: local (this disk) or archived (the store too)")
            .long_help(
                "What the server takes for durable, and a synchronous commit waits for. local is what is synced\n\
                 in the spool. archived is what the store has as well, which needs --partial-every: else the\n\
                 first commit would wait for a segment that only later commits fill.",
            ),
        value("partial-every", "TIME")
            .help("Put the segment being written into the archive as well, at most so often")
            .long_help(
                "Put the durable part of the segment that is being written into the archive as well, as\n\
                 SEGMENT.growing, at most so often. Should server and spool be lost together, wal-fetch\n\
                 --partial gives recovery what is there.",
            ),
        value("spool-max", "BYTES")
            .help("Receive no more while the spool is larger than this, as in 50G")
            .long_help(
                "Receive no more while the spool is larger than this, as in 50G, because the archive is down:\n\
                 then the slot keeps the WAL on the server. What stays there anyway (.partial) does not count. Default\n\
                 is what the file system has.",
            ),
        value("accept-gap", "LSN")
            .help("Go on at this position although WAL before it is lost")
            .long_help(
                "Go on at this position although WAL before it is lost. The archive is told what is missing, and\n\
                 recovery will stop there. Take a base backup afterwards.",
            ),
        value("status-file", "PATH")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Where to tell how it goes; default is a file in the spool"),
        flag("no-password")
            .short('w')
            .conflicts_with("password")
            .help("Never ask for a password, which is the default"),
        flag("password")
            .short('W')
            .help("Ask for the password at the terminal"),
        Arg::new("help")
            .long("help")
            .short('?')
            .action(ArgAction::Help)
            .help("Print help"),
    ];
    Command::new("wal-receive")
        .about("Receive WAL from a server as it is written; pg_receivewal with uploads")
        .disable_help_flag(true)
        .args(options)
        .args(connection_options(true))
        .group(ArgGroup::new("slot-work").args(["create-slot", "drop-slot"]))
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let slot = text(matches, "slot");
    let needs_slot = matches.get_flag("create-slot") || matches.get_flag("drop-slot");
    if needs_slot && slot.is_none() {
        return Err(usage("--create-slot and --drop-slot need --slot NAME"));
    }
    let action = if matches.get_flag("create-slot") {
        Action::CreateSlot {
            or_exists: matches.get_flag("if-not-exists"),
        }
    } else if matches.get_flag("drop-slot") {
        Action::DropSlot
    } else {
        Action::Receive(Box::new(receive(matches)?))
    };
    Ok(Args {
        action,
        slot,
        connection: connection(matches)?,
        ask_password: matches.get_flag("password"),
    })
}

/// What pg_receivewal can do and a receiver of ours must not.
fn refuse_foreign(matches: &ArgMatches) -> Result<()> {
    if matches.get_flag("no-sync") {
        return Err(usage("--no-sync is not possible")
            .detail("What the server is told to be safe here is safe: it is synced before.")
            .hint("Leave it out."));
    }
    if text(matches, "compress").is_some_and(|method| !matches!(method.as_str(), "0" | "none")) {
        return Err(usage("--compress is not possible in the spool")
            .detail("A segment there can be given to a recovery as it is. In the archive segments are compressed.")
            .hint("Leave it out; SEAWALL_COMPRESSION is how the archive compresses."));
    }
    Ok(())
}

fn receive(matches: &ArgMatches) -> Result<Receive> {
    refuse_foreign(matches)?;
    let directory = optional_path(matches, "directory")
        .ok_or_else(|| usage("--directory DIR is needed").hint("It is where received WAL goes."))?;
    let acknowledge = match word(matches, "acknowledge") {
        "archived" => Acknowledge::Archived,
        _ => Acknowledge::Local,
    };
    let partial_every = time(matches, "partial-every")?.filter(|every| !every.is_zero());
    if acknowledge == Acknowledge::Archived && partial_every.is_none() {
        return Err(usage("--acknowledge archived needs --partial-every TIME").detail(
            "Without it a commit would wait until its segment is full, which only later commits can bring about.",
        ));
    }
    let upload = match (matches.get_flag("upload"), matches.get_flag("no-upload")) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    if upload == Some(false) && (acknowledge == Acknowledge::Archived || partial_every.is_some()) {
        return Err(usage(
            "--no-upload leaves nothing to --acknowledge archived and --partial-every",
        ));
    }
    let status_interval = time(matches, "status-interval")?.unwrap_or_default();
    Ok(Receive {
        directory: absolute_path(&directory)?,
        synchronous: matches.get_flag("synchronous"),
        // 0 is pg_receivewal's word for never; a server that hears nothing hangs up, so hours are as good.
        status_interval: match status_interval.is_zero() {
            true => Duration::from_secs(24 * 3600),
            false => status_interval,
        },
        receive_timeout: time(matches, "receive-timeout")?.filter(|limit| !limit.is_zero()),
        end_position: parsed(matches, "endpos", "--endpos")?,
        no_loop: matches.get_flag("no-loop"),
        upload,
        acknowledge,
        keep: keep(word(matches, "keep-local"))?,
        partial_every,
        spool_bytes_max: text(matches, "spool-max")
            .map(|text| {
                config::bytes(&text)
                    .map_err(|reason| usage(format!("--spool-max: {text:?} {reason}")))
            })
            .transpose()?,
        accept_gap: parsed(matches, "accept-gap", "--accept-gap")?,
        status_file: optional_path(matches, "status-file"),
    })
}

fn time(matches: &ArgMatches, id: &str) -> Result<Option<Duration>> {
    let read = |text: String| {
        config::duration(&text).map_err(|reason| usage(format!("--{id}: {text:?} {reason}")))
    };
    text(matches, id).map(read).transpose()
}

fn keep(text: &str) -> Result<Keep> {
    match text {
        "always" => Ok(Keep::Always),
        "0" => Ok(Keep::None),
        number => number.parse().map(Keep::Count).map_err(|_| {
            usage(format!(
                "--keep-local: {number:?} is neither a count of segments nor always"
            ))
        }),
    }
}

/// Makes or drops the slot, or receives until it is told to stop.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let password = match args.ask_password {
        true => Some(password::ask(&context.stop)?),
        false => None,
    };
    let server = Server {
        context,
        connection: &args.connection,
        password,
    };
    let slot = args.slot.as_deref().unwrap_or_default();
    match &args.action {
        Action::CreateSlot { or_exists } => {
            let mut conn = server.replication(&context.stop)?;
            match conn.create_physical_slot(slot, false, true) {
                Err(e) if e.kind() == Kind::Exists && *or_exists => {
                    log::info!("the replication slot \"{slot}\" exists already");
                    Ok(())
                }
                other => other.map(|()| log::info!("created the replication slot \"{slot}\"")),
            }
        }
        Action::DropSlot => {
            let mut conn = server.replication(&context.stop)?;
            conn.drop_slot(slot)?;
            log::info!("dropped the replication slot \"{slot}\"");
            Ok(())
        }
        Action::Receive(receive) => {
            let options = options(context, args.slot.clone(), receive)?;
            relay::run(&options, &server, &context.stop)
        }
    }
}

fn options<'a>(
    context: &'a Context,
    slot: Option<String>,
    receive: &Receive,
) -> Result<Options<'a>> {
    let has_prefix = context.config.given("SEAWALL_PREFIX").is_some();
    let upload = match receive.upload.unwrap_or(has_prefix) {
        false
            if receive.acknowledge == Acknowledge::Archived || receive.partial_every.is_some() =>
        {
            return Err(
                usage("--acknowledge archived and --partial-every need an archive")
                    .hint("Set SEAWALL_PREFIX or --prefix."),
            );
        }
        false => None,
        true => Some(Upload {
            open: Box::new(|stop| context.archive_until(RECEIVE_RETRY, stop)),
            threads: context.config.upload_threads(),
            keep: receive.keep,
            partial_every: receive.partial_every,
        }),
    };
    let in_spool = || receive.directory.join(status::FILE_NAME);
    Ok(Options {
        status_file: receive.status_file.clone().unwrap_or_else(in_spool),
        directory: receive.directory.clone(),
        slot,
        synchronous: receive.synchronous,
        status_interval: receive.status_interval,
        receive_timeout: receive.receive_timeout,
        end_position: receive.end_position,
        no_loop: receive.no_loop,
        acknowledge: receive.acknowledge,
        accept_gap: receive.accept_gap,
        spool_bytes_max: receive.spool_bytes_max,
        upload,
    })
}

/// The server, as the options and the environment name it.
struct Server<'a> {
    context: &'a Context,
    connection: &'a Connection,
    /// What the operator typed.
    password: Option<String>,
}

impl Server<'_> {
    /// To the server of `beside`, if there is one.
    fn connect(&self, replication: bool, beside: Option<&Conn>, stop: &Stop) -> Result<Conn> {
        let mut overrides = self.connection.overrides.clone();
        overrides.extend(self.password.iter().map(|text| ("password", text.clone())));
        let conninfo = self.connection.conninfo.as_deref();
        let mut info = self.context.config.conninfo(conninfo, overrides)?;
        if let Some(beside) = beside {
            info.hosts
                .retain(|host| host.to_string() == beside.server());
        }
        let options = ConnectOptions {
            replication,
            application_name: "seawall".to_string(),
            statement_timeout: None,
        };
        Conn::connect(&info, &options, stop)
    }
}

impl Connect for Server<'_> {
    fn replication(&self, stop: &Stop) -> Result<Conn> {
        self.connect(true, None, stop)
            .map_err(|e: Error| match e.sqlstate() {
                Some("42501") => e.hint("The role needs REPLICATION: ALTER ROLE role REPLICATION."),
                Some("28000") => e.hint(
                    "pg_hba.conf needs a line for the database \"replication\", this role and this host.",
                ),
                Some("28P01") => e.hint(
                    "Set PGPASSWORD, or put the password into ~/.pgpass, with * or \"replication\" as the database.",
                ),
                _ => e,
            })
    }

    fn ordinary(&self, beside: &Conn, stop: &Stop) -> Result<Conn> {
        self.connect(false, Some(beside), stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args> {
        let words = std::iter::once("wal-receive").chain(words.iter().copied());
        let matches = command().try_get_matches_from(words);
        args(&matches.map_err(|e| usage(e.to_string()))?)
    }

    fn received(words: &[&str]) -> Receive {
        match parse(words).unwrap().action {
            Action::Receive(receive) => *receive,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_unit_file_of_pg_receivewal_is_changed_by_one_word() {
        let words =
            "-D /wal -S slot -h db1 -p 5433 -U replicator -w -n -s 5 -E 0/3000000 --synchronous";
        let words: Vec<&str> = words.split(' ').collect();
        let args = parse(&words).unwrap();
        assert_eq!(args.slot.as_deref(), Some("slot"));
        let overrides = [("host", "db1"), ("port", "5433"), ("user", "replicator")];
        let overrides: Vec<_> = overrides.iter().map(|(k, v)| (*k, v.to_string())).collect();
        assert_eq!(args.connection.overrides, overrides);
        let receive = received(&words);
        assert_eq!(receive.directory, PathBuf::from("/wal"));
        assert!(receive.synchronous && receive.no_loop);
        assert_eq!(receive.status_interval, Duration::from_secs(5));
        assert_eq!(receive.end_position, Some(Lsn(0x300_0000)));
        let slot = |words: &[&str]| parse(words).unwrap().action;
        let create = ["--create-slot", "--if-not-exists", "--slot=s"];
        assert!(matches!(
            slot(&create),
            Action::CreateSlot { or_exists: true }
        ));
        assert!(matches!(
            slot(&["--drop-slot", "-S", "s"]),
            Action::DropSlot
        ));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for words in [
            &["-S", "s"][..],
            &["--create-slot"],
            &["-D", "/wal", "--drop-slot"],
            &["--create-slot", "--drop-slot", "-S", "s"],
            &["-D", "/wal", "--if-not-exists"],
            &["-D", "/wal", "--acknowledge", "archived"],
            &["-D", "/wal", "--no-upload", "--partial-every", "1s"],
            &["-D", "/wal", "--upload", "--no-upload"],
            &["-D", "/wal", "--keep-local", "some"],
            &["-D", "/wal", "--endpos", "x"],
            &["-D", "/wal", "--receive-timeout", "soon"],
            &["-D", "/wal", "-d", "password=x"],
        ] {
            assert_eq!(parse(words).unwrap_err().kind(), Kind::Usage, "{words:?}");
        }
    }

    #[test]
    fn what_is_kept_locally() {
        for (text, keep) in [
            ("0", Keep::None),
            ("3", Keep::Count(3)),
            ("always", Keep::Always),
        ] {
            assert_eq!(received(&["-D", "/wal", "--keep-local", text]).keep, keep);
        }
        assert_eq!(
            received(&["-D", "/wal", "-s", "0"]).receive_timeout,
            Some(Duration::from_secs(60))
        );
    }
}
