//! The log: `time level thread room: message` or JSON, to standard error, syslog or both; and the error that ends a
//! run, in PostgreSQL's grammar.

use crate::cmd::output::Screen;
use crate::config::LogOptions;
use crate::error::Error;
use crate::pg::timestamp::Timestamp;
use crate::work;
use env_logger::Builder;
use log::{Level, LevelFilter, Record};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the system's log daemon listens.
const SYSLOG_SOCKET: &str = "/dev/log";

/// The facilities of syslog(3) that the settings know, with their numbers.
const FACILITIES: &[(&str, u8)] = &[
    ("user", 1),
    ("daemon", 3),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// What writes the last word of a run.
#[derive(Clone, Default)]
pub struct Reporter {
    json: bool,
    syslog: Option<Arc<Syslog>>,
}

/// Opens the log. If there is no syslog to be had, standard error takes its place, with a warning: messages must not
/// vanish.
pub fn open(options: &LogOptions, screen: &Screen) -> Reporter {
    let syslog = match options.syslog {
        true => Syslog::open(&options.facility),
        false => Ok(None),
    };
    let (syslog, missing) = match syslog {
        Ok(syslog) => (syslog.map(Arc::new), None),
        Err(cause) => (None, Some(cause)),
    };
    let stderr = options.stderr || syslog.is_none();
    let reporter = Reporter {
        json: options.json,
        syslog: syslog.clone(),
    };
    let (json, screen) = (options.json, screen.clone());
    let level: LevelFilter = options.level.parse().unwrap_or(LevelFilter::Info);
    let opened = Builder::new()
        // Other crates may log headers and URLs: nothing of theirs below a warning, whatever the level.
        .filter_level(LevelFilter::Warn.min(level))
        .filter_module("seawall", level)
        .format(move |out, record| {
            if let Some(syslog) = &syslog {
                syslog.send(
                    record.level(),
                    &format!("{}: {}", room(record), record.args()),
                );
            }
            match (stderr, json) {
                (false, _) => Ok(()),
                (true, false) => writeln!(out, "{}{}", screen.wipe(), text_line(record)),
                (true, true) => writeln!(out, "{}{}", screen.wipe(), json_line(record)),
            }
        })
        .try_init();
    debug_assert!(opened.is_ok(), "the log is opened once");
    if let Some(cause) = missing {
        log::warn!("could not reach syslog at {SYSLOG_SOCKET} ({cause}), logging to stderr");
    }
    reporter
}

/// The room of the house that speaks; for other crates, their name.
fn room<'a>(record: &'a Record) -> &'a str {
    let mut parts = record.target().split("::");
    match (parts.next(), parts.next()) {
        (Some("seawall"), Some(room)) => room,
        (Some(name), _) => name,
        (None, _) => "",
    }
}

fn text_line(record: &Record) -> String {
    format!(
        "{} {} {} {}: {}",
        now(),
        record.level(),
        work::thread_name(),
        room(record),
        one_line(&record.args().to_string())
    )
}

fn json_line(record: &Record) -> String {
    serde_json::json!({
        "time": now().to_string(),
        "level": record.level().as_str(),
        "thread": work::thread_name(),
        "room": room(record),
        "message": record.args().to_string(),
    })
    .to_string()
}

/// A message is one line, so that nothing that comes from outside can look like a message of its own.
fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', " ")
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
}

impl Reporter {
    /// Writes the error that ends the run: `seawall: error: …`, `detail: …`, `hint: …`.
    pub fn report(&self, error: &Error, code: u8) {
        if let Some(syslog) = &self.syslog {
            syslog.send(Level::Error, &error.one_line());
        }
        let text = match self.json {
            false => format!("seawall: error: {error}\n"),
            true => format!("{}\n", json_error(error, code)),
        };
        write_stderr(&text);
    }
}

fn json_error(error: &Error, code: u8) -> serde_json::Value {
    serde_json::json!({
        "time": now().to_string(),
        "level": "ERROR",
        "message": error.message(),
        "detail": error.full_detail(),
        "hint": error.hint_text(),
        "kind": format!("{:?}", error.kind()).to_lowercase(),
        "exit": code,
    })
}

/// To standard error; if that is closed there is nobody left to tell.
pub fn write_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The system's log daemon, reached by datagrams as syslog(3) does.
struct Syslog {
    socket: UnixDatagram,
    facility: u8,
}

impl Syslog {
    fn open(facility: &str) -> std::io::Result<Option<Syslog>> {
        let found = FACILITIES.iter().find(|(name, _)| *name == facility);
        let facility = found.map_or(1, |(_, number)| *number);
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG_SOCKET)?;
        // A daemon that hangs must not hold up archiving.
        socket.set_nonblocking(true)?;
        Ok(Some(Syslog { socket, facility }))
    }

    /// Sends a message; one that the daemon does not take is lost, as with syslog(3).
    fn send(&self, level: Level, text: &str) {
        let packet = packet(self.facility, level, std::process::id(), text);
        let _ = self.socket.send(packet.as_bytes());
    }
}

/// A message as RFC 3164 frames it, without time and host: the daemon on this host adds both.
fn packet(facility: u8, level: Level, pid: u32, text: &str) -> String {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let priority = facility * 8 + severity;
    format!("<{priority}>seawall[{pid}]: {}", one_line(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_line_names_level_thread_and_room() {
        let args = format_args!("archived {}\nseawall: error: forged", 7);
        let record = Record::builder()
            .level(Level::Info)
            .target("seawall::archive::wal")
            .args(args)
            .build();
        let line = text_line(&record);
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z'), "{time}");
        assert!(rest.starts_with("INFO "), "{rest}");
        assert!(
            rest.ends_with(" archive: archived 7 seawall: error: forged"),
            "{rest}"
        );
        let json: serde_json::Value = serde_json::from_str(&json_line(&record)).unwrap();
        assert_eq!(json["room"], "archive");
        assert_eq!(json["message"], "archived 7\nseawall: error: forged");
    }

    #[test]
    fn syslog_packets() {
        assert_eq!(packet(1, Level::Info, 42, "a\nb"), "<14>seawall[42]: a b");
        assert_eq!(packet(23, Level::Error, 1, "x"), "<187>seawall[1]: x");
    }

    #[test]
    fn every_facility_of_the_table_has_a_number() {
        let setting = crate::config::find("log.syslog-facility").unwrap();
        let crate::config::Unit::Word(words) = setting.unit else {
            panic!("not a word");
        };
        let names: Vec<&str> = FACILITIES.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, words);
    }

    #[test]
    fn an_error_as_json_keeps_its_parts() {
        let error = Error::new(Kind::Denied, "m").detail("D.").hint("H.");
        let json = json_error(&error, 7);
        assert_eq!(json["message"], "m");
        assert_eq!(json["detail"], "D.");
        assert_eq!(json["hint"], "H.");
        assert_eq!(json["kind"], "denied");
        assert_eq!(json["exit"], 7);
    }
}
