//! `wal-fetch NAME DEST`: what `restore_command` runs. Its exit codes are PostgreSQL's to read.

use super::arguments::{optional_path, path, setting_option, text, usage, word};
use super::output::print_file;
use super::{Context, WAL_RETRY, cluster_of};
use crate::archive::wal::{Expect, Fetched, HolePolicy};
use crate::disk;
use crate::disk::durable::{self, NewFile, Publish};
use crate::error::{Error, Kind, Result};
use crate::limits::{DEST_TEMP_AGE, RETRY_PAUSE_FIRST, RETRY_PAUSE_MAX};
use crate::pg::{TimelineId, WalName};
use crate::store::Prefix;
use crate::transfer::{self, Delivery, Padded, Sources};
use crate::work::stop::Stop;
use crate::work::unless_stopped;
use clap::{Arg, ArgMatches, Command};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// The file: PostgreSQL's `%f`.
    pub name: WalName,
    /// Where to: PostgreSQL's `%p`, or standard output.
    pub dest: Dest,
    /// What to make of a hole in the archive.
    pub on_hole: OnHole,
    /// What to make of an archive that cannot be reached.
    pub on_outage: OnOutage,
    /// The directory of a receiver, for what the archive does not have.
    pub spool: Option<PathBuf>,
    /// Whether unfinished segments of the archive count.
    pub partial: Partial,
    /// The timeline that the recovery follows to its end.
    pub timeline: Option<TimelineId>,
}

/// `--partial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partial {
    /// Not given.
    No,
    /// In a recovery.
    Recovery,
    /// Wherever this runs.
    Force,
}

/// Where the file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// `-`.
    Stdout,
    /// A path that must not hold half a file at any moment.
    File(PathBuf),
}

/// What a hole is: the segment is not there, later ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHole {
    /// `Abort`; but on a standby a segment that is only known from a later timeline is absent, because the server that
    /// has that timeline can stream it.
    Auto,
    /// Recovery must stop (exit 200 and above).
    Abort,
    /// Recovery ends here (exit 1).
    Absent,
}

/// What an outage is: whether the file is there could not be found out in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// `Absent` for a segment on a standby, which asks again for ever; else `Abort`.
    Auto,
    /// Recovery must stop (exit 200 and above).
    Abort,
    /// Recovery ends here, or the standby asks again (exit 1).
    Absent,
}

/// The verb's command line.
pub fn command() -> Command {
    Command::new("wal-fetch")
        .about("Fetch one WAL file; for restore_command")
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help("The file to fetch: %f in restore_command"),
        )
        .arg(
            Arg::new("dest")
                .value_name("DEST")
                .value_parser(clap::value_parser!(PathBuf))
                .required(true)
                .help("Where to write it: %p in restore_command, or - for standard output")
                .long_help(
                    "Where to write it: %p in restore_command. The file appears under this name whole and\n\
                     synced, or not at all. - is standard output.",
                ),
        )
        .arg(
            setting_option("wal.prefetch", "prefetch", "N")
                .short('p')
                .help("Segments to fetch ahead, as in WAL-E"),
        )
        .arg(
            Arg::new("on-hole")
                .long("on-hole")
                .value_name("WHAT")
                .value_parser(["auto", "abort", "absent"])
                .default_value("auto")
                .hide_possible_values(true)
                .help("What a missing segment is while later ones exist: auto, abort or absent")
                .long_help(
                    "What a missing segment is while later ones of its timeline exist, or while the history of\n\
                     a later timeline says that there were. abort stops recovery (exit 200 and above), because\n\
                     the end of WAL it would be taken for is not the end. absent exits 1: recovery ends there\n\
                     and everything after the hole is given up. auto is abort; but where standby.signal and no\n\
                     recovery.signal is found, a segment that only a later timeline's history tells of is\n\
                     absent, because the standby can get it by streaming from the server of that timeline.",
                ),
        )
        .arg(
            Arg::new("on-outage")
                .long("on-outage")
                .value_name("WHAT")
                .value_parser(["auto", "abort", "absent"])
                .default_value("auto")
                .hide_possible_values(true)
                .help("What an archive that cannot be reached is: auto, abort or absent")
                .long_help(
                    "What an archive is that cannot be reached within the retry timeout. abort stops recovery\n\
                     (exit 200 and above). absent exits 1. auto is absent for a segment where standby.signal\n\
                     and no recovery.signal is found, because a standby asks again for ever, and abort\n\
                     elsewhere. A standby that may be promoted during an outage is safer with abort.",
                ),
        )
        .args(last_wal_options())
}

/// Where to find what the archive does not have.
fn last_wal_options() -> [Arg; 3] {
    [
        Arg::new("spool")
            .long("spool")
            .value_name("DIR")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Look in this directory of a receiver for what is not in the archive")
            .long_help(
                "The directory of a wal-receive or pg_receivewal, or a copy of it. What the archive has proven\n\
                 not to have is fetched from there: a history, a complete segment, or in a recovery the .partial\n\
                 segment, padded with zeros.",
            ),
        Arg::new("partial")
            .long("partial")
            .value_name("force")
            .value_parser(["recovery", "force"])
            .hide_possible_values(true)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("recovery")
            .help("Fetch unfinished segments of the archive too; force: not only in a recovery")
            .long_help(
                "In a recovery, fetch a segment that was never completed from what the archive has of it\n\
                 (.growing, .partial), padded with zeros. A recovery has recovery.signal and no standby.signal\n\
                 in its data directory, which is the directory above DEST or the current one; elsewhere an\n\
                 unfinished segment is absent unless --partial=force says otherwise.",
            ),
        Arg::new("timeline")
            .long("timeline")
            .value_name("TIMELINE")
            .value_parser(clap::value_parser!(u32).range(1..))
            .help("The timeline that the recovery follows to its end, as a number")
            .long_help(
                "The timeline that the recovery follows to its end, as a number. Of a timeline that another one\n\
                 left, --spool and --partial deliver nothing beyond that point; of this timeline they deliver\n\
                 all.",
            ),
    ]
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let name = text(matches, "name").unwrap_or_default();
    let name = name.parse().map_err(|e: Error| {
        e.with_kind(Kind::Usage)
            .hint("Write wal-fetch %f %p in restore_command.")
    })?;
    let dest = path(matches, "dest");
    Ok(Args {
        name,
        dest: match dest.as_os_str() == "-" {
            true => Dest::Stdout,
            false => Dest::File(dest),
        },
        on_hole: match word(matches, "on-hole") {
            "abort" => OnHole::Abort,
            "absent" => OnHole::Absent,
            _ => OnHole::Auto,
        },
        on_outage: match word(matches, "on-outage") {
            "abort" => OnOutage::Abort,
            "absent" => OnOutage::Absent,
            _ => OnOutage::Auto,
        },
        spool: spool(matches)?,
        partial: match word(matches, "partial") {
            "" => Partial::No,
            "force" => Partial::Force,
            _ => Partial::Recovery,
        },
        timeline: matches.get_one("timeline").copied().map(TimelineId),
    })
}

fn spool(matches: &ArgMatches) -> Result<Option<PathBuf>> {
    match optional_path(matches, "spool") {
        // A variable that is not set must not look like no wish.
        Some(path) if path.as_os_str().is_empty() => Err(usage("--spool is empty")),
        other => Ok(other),
    }
}

/// Delivers the file, or fails with `Kind::Absent` when the end of WAL is proven.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let result = fetch_patiently(context, args);
    // Nothing but the whole proof may look like the end of WAL.
    result.or_else(|e| {
        if e.kind() == Kind::Absent {
            Err(e)
        } else {
            Err(on_outage(args, e)?)
        }
    })
}

/// A directory that does not show the archive may be one that is mounted in a moment, when a host starts: that is asked
/// for again, from the beginning, like every other failure that may pass.
fn fetch_patiently(context: &Context, args: &Args) -> Result<()> {
    let store = context.config.store_options(WAL_RETRY, &context.stop)?;
    let mounted = matches!(store.prefix, Prefix::File(_));
    let (begin, mut pause) = (Instant::now(), RETRY_PAUSE_FIRST);
    loop {
        let error = match fetch(context, args) {
            Err(e) if mounted && e.kind() == Kind::Unavailable => e,
            other => return other,
        };
        let left = store.retry.total.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(error);
        }
        log::warn!("trying again: {}", error.one_line());
        context.stop.wait(pause.min(left));
        context.stop.check()?;
        pause = (2 * pause).min(RETRY_PAUSE_MAX);
    }
}

fn fetch(context: &Context, args: &Args) -> Result<()> {
    let archive = context.archive(WAL_RETRY)?;
    let location = archive.store.location();
    let near = match &args.dest {
        Dest::File(path) => path.as_path(),
        Dest::Stdout => Path::new(""),
    };
    let cluster = cluster_of(near)?;
    let expect = Expect {
        system_id: cluster.as_ref().map(|control| control.system_id),
        segment_size: cluster.as_ref().map(|control| control.segment_size),
    };
    let policy = match args.on_hole {
        OnHole::Auto if signals(&args.dest)? == Signals::Standby => HolePolicy::Streaming,
        OnHole::Auto | OnHole::Abort => HolePolicy::Abort,
        OnHole::Absent => HolePolicy::Absent,
    };
    let name = args.name;
    let room = archive.state.directory().cloned();
    let sources = sources(args)?;
    let get =
        move |out: &mut dyn Write| transfer::get_wal(&archive, name, out, expect, policy, &sources);
    let delivery = match &args.dest {
        Dest::File(path) => to_file(path, &context.stop, get)?,
        Dest::Stdout => to_stdout(room, &context.stop, get)?,
    };
    match delivery.fetched {
        Fetched::Delivered(bytes) => {
            let source = delivery.source.unwrap_or(location);
            log::info!("fetched {name} ({bytes} bytes) from {source}");
            Ok(())
        }
        Fetched::Absent(proof) => Err(Error::new(Kind::Absent, proof)),
    }
}

/// Where to look beside the archive's complete segments.
fn sources(args: &Args) -> Result<Sources> {
    let asked = args.spool.is_some() || args.partial != Partial::No;
    let recovery = asked && signals(&args.dest)? == Signals::Recovery;
    Ok(Sources {
        spool: args.spool.clone(),
        archived: args.partial != Partial::No,
        timeline: args.timeline,
        padded: match recovery || args.partial == Partial::Force {
            true => Padded::Allowed,
            false => Padded::Refused,
        },
    })
}

/// The file appears whole, or not at all. A signal does not wait for the store: PostgreSQL's shutdown waits for us.
fn to_file(
    path: &Path,
    stop: &Stop,
    get: impl FnOnce(&mut dyn Write) -> Result<Delivery> + Send + 'static,
) -> Result<Delivery> {
    let file = NewFile::create(path, 0o600).map_err(not_absent)?;
    // What calls that were killed left here would stay in pg_wal for ever.
    if let Err(e) = durable::remove_stale_temps(disk::parent_of(path), DEST_TEMP_AGE) {
        log::debug!(
            "could not remove leftover temporary files: {}",
            e.one_line()
        );
    }
    let file = Arc::new(Mutex::new(Some(file)));
    let mut out = Lent(Arc::clone(&file));
    let fetched = unless_stopped("fetch", stop, Duration::ZERO, move || get(&mut out));
    // Taken back first: dropped, it removes its temporary file, also while the store is still silent.
    let file = take(&file);
    let fetched = fetched?;
    if let (Fetched::Delivered(_), Some(file)) = (&fetched.fetched, file) {
        stop.check()?;
        file.publish(Publish::Replace).map_err(not_absent)?;
    }
    Ok(fetched)
}

/// Checked as a whole before the first byte leaves: a pipe cannot take anything back.
fn to_stdout(
    room: Option<PathBuf>,
    stop: &Stop,
    get: impl FnOnce(&mut dyn Write) -> Result<Delivery> + Send + 'static,
) -> Result<Delivery> {
    let mut file = room
        .and_then(|room| disk::hidden_temp(&room).ok())
        .map_or_else(|| disk::hidden_temp(Path::new("/tmp")), Ok)
        .map_err(not_absent)?;
    unless_stopped("fetch", stop, Duration::ZERO, move || {
        let fetched = get(&mut file)?;
        if matches!(fetched.fetched, Fetched::Delivered(_)) {
            file.rewind()
                .map_err(|e| Error::io("could not read the temporary file", e))?;
            print_file(&mut file)?;
        }
        Ok(fetched)
    })
}

/// The file that the fetching thread writes to for as long as it is not taken back. A mutex, because whoever waits
/// must be able to take it away from a thread that will not answer.
struct Lent(Arc<Mutex<Option<NewFile>>>);

fn take(file: &Mutex<Option<NewFile>>) -> Option<NewFile> {
    file.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Write for Lent {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *file {
            Some(file) => file.write(bytes),
            None => Err(Error::new(Kind::Interrupted, "interrupted").into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On a standby an outage of a segment may look like the end of WAL: it asks again for ever. Elsewhere, and for a
/// history file anywhere, recovery must stop.
fn on_outage(args: &Args, error: Error) -> Result<Error> {
    if !matches!(error.kind(), Kind::Transient | Kind::Unavailable) {
        return Ok(error);
    }
    let absent = match args.on_outage {
        OnOutage::Abort => false,
        OnOutage::Absent => true,
        OnOutage::Auto => {
            matches!(args.name, WalName::Segment(_)) && signals(&args.dest)? == Signals::Standby
        }
    };
    if !absent {
        return Ok(error);
    }
    log::error!("{}", error.one_line());
    Ok(Error::new(
        Kind::Absent,
        format!(
            "{} could not be asked for; the server is told that it is absent",
            args.name
        ),
    ))
}

/// What the signal files say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signals {
    /// recovery.signal alone.
    Recovery,
    /// standby.signal alone.
    Standby,
    /// None, or both.
    Unclear,
}

/// What the signal files in the data directory say, the one above DEST or the current one. Where the two disagree it is
/// unclear, and then no harm may be done: neither may a recovery end too early, nor a standby archive a padded segment.
fn signals(dest: &Dest) -> Result<Signals> {
    let above = match dest {
        Dest::File(path) => path.parent().and_then(|directory| directory.parent()),
        Dest::Stdout => None,
    };
    let directories = || [Some(Path::new(".")), above].into_iter().flatten();
    let has = |name: &str| {
        for data in directories() {
            if disk::stat(&data.join(name))?.is_some() {
                return Ok::<_, Error>(true);
            }
        }
        Ok(false)
    };
    Ok(match (has("recovery.signal")?, has("standby.signal")?) {
        (true, false) => Signals::Recovery,
        (false, true) => Signals::Standby,
        _ => Signals::Unclear,
    })
}

/// A destination directory that is not there is a failure of this host, not of the archive.
fn not_absent(error: Error) -> Error {
    match error.kind() {
        Kind::Missing => error.with_kind(Kind::Io),
        _ => error,
    }
}
