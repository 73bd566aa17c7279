//! `status`: how a running `wal-receive` is, from the file that it keeps; neither it nor the database is asked.

use super::Context;
use super::arguments::{absolute_path, optional_path, usage};
use super::output::{human_bytes, human_duration, print, print_json};
use crate::error::Result;
use crate::pg::timestamp::Timestamp;
use crate::relay;
use crate::relay::status::{Document, FILE_NAME, Position};
use crate::work::now;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A status that is older than this is not one of a process that works: it is written every second.
const STALE: Duration = Duration::from_secs(30);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Args {
    /// The status file.
    pub file: PathBuf,
    /// JSON instead of text.
    pub json: bool,
}

/// The verb's command line.
pub fn command() -> Command {
    let path = |name: &'static str, value: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .value_parser(clap::value_parser!(PathBuf))
    };
    Command::new("status")
        .about("Show how a running wal-receive is")
        .arg(
            path("directory", "DIR")
                .short('D')
                .help("The spool of the wal-receive"),
        )
        .arg(
            path("status-file", "PATH")
                .conflicts_with("directory")
                .help("Its status file, if that is not in the spool"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON, whose keys stay as they are between releases"),
        )
}

/// Reads it.
pub fn args(matches: &ArgMatches) -> Result<Args> {
    let in_spool = optional_path(matches, "directory").map(|directory| directory.join(FILE_NAME));
    let file = optional_path(matches, "status-file")
        .or(in_spool)
        .ok_or_else(|| usage("--directory DIR or --status-file PATH is needed"))?;
    Ok(Args {
        file: absolute_path(&file)?,
        json: matches.get_flag("json"),
    })
}

/// The document and what its age says.
#[derive(Serialize)]
struct Shown<'a> {
    running: bool,
    age_seconds: u64,
    #[serde(flatten)]
    document: &'a Document,
}

/// Prints it.
pub fn run(_context: &Context, args: &Args) -> Result<()> {
    let mut document = Document::read(&args.file)?;
    let updated: Timestamp = document.updated.parse()?;
    let age = Duration::from_micros(u64::try_from(now().0 - updated.0).unwrap_or(0));
    // A spool that is not to be seen from here does not tell: then the age alone does.
    let alive = relay::is_running(Path::new(&document.spool.directory)).unwrap_or(true);
    let running = document.state != "stopped" && alive && age < STALE;
    if args.json && !running && document.state != "stopped" {
        // A monitor that looks at this alone must not take the last word of a dead one for the present.
        document.state = "not running".to_string();
    }
    match args.json {
        true => print_json(&Shown {
            running,
            age_seconds: age.as_secs(),
            document: &document,
        }),
        false => print(&text(&document, running, age)),
    }
}

fn text(document: &Document, running: bool, age: Duration) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<18} {value}");
    };
    let state = match running {
        true => format!("{} (process {})", document.state, document.pid),
        false if document.state == "stopped" => format!("stopped {} ago", human_duration(age)),
        false => format!(
            "NOT RUNNING: last sign of life {} ago, then {}",
            human_duration(age),
            document.state
        ),
    };
    line("state", &state);
    line("server", &document.server);
    line("system identifier", &document.system_identifier);
    line(
        "connected since",
        document.connected_since.as_deref().unwrap_or("-"),
    );
    line("slot", document.slot.as_deref().unwrap_or("-"));
    let timeline = document.timeline.map(|timeline| timeline.to_string());
    line("timeline", timeline.as_deref().unwrap_or("-"));
    line("server has", document.server_lsn.as_deref().unwrap_or("-"));
    for (name, at) in [
        ("received", &document.received),
        ("written", &document.written),
        ("flushed", &document.flushed),
        ("archived", &document.archived),
    ] {
        line(name, &position(at.as_ref()));
    }
    let waiting = document.spool.waiting.map_or(String::new(), |n| {
        format!(", {n} segments wait for the archive")
    });
    let spool = format!(
        "{} ({}{waiting})",
        document.spool.directory,
        human_bytes(document.spool.bytes)
    );
    line("spool", &spool);
    if let Some(error) = &document.last_error {
        line("last error", &format!("{}: {}", error.at, error.message));
    }
    out
}

fn position(position: Option<&Position>) -> String {
    let Some(Position { lsn, lag }) = position else {
        return "-".to_string();
    };
    match lag.bytes {
        0 => lsn.clone(),
        bytes => format!(
            "{lsn} ({}, {} behind)",
            human_bytes(bytes),
            human_duration(Duration::from_secs(lag.seconds))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::status::Lag;

    #[test]
    fn what_an_operator_reads() {
        let at = |lsn: &str, bytes| {
            Some(Position {
                lsn: lsn.into(),
                lag: Lag { bytes, seconds: 90 },
            })
        };
        let document = Document {
            state: "streaming".into(),
            pid: 7,
            flushed: at("0/3000000", 0),
            archived: at("0/2000000", 16 << 20),
            ..Document::default()
        };
        let text = text(&document, true, Duration::ZERO);
        assert!(
            text.contains("state              streaming (process 7)\n"),
            "{text}"
        );
        assert!(text.contains("flushed            0/3000000\n"), "{text}");
        assert!(
            text.contains("archived           0/2000000 (16.0 MiB, "),
            "{text}"
        );
        assert!(text.contains("slot               -\n"), "{text}");
        let dead = super::text(&document, false, Duration::from_secs(60));
        assert!(dead.contains("NOT RUNNING"), "{dead}");
    }
}
