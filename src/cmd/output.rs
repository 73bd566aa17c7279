//! What people and programs read: tables and JSON on standard output, progress on standard error.

use crate::error::{Error, Kind, Result};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a terminal's progress line is drawn.
const REDRAW_MS: u64 = 200;

/// How often progress is logged where there is no terminal.
const LOG_MS: u64 = 60_000;

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure; a full disk is.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("could not write to standard output", e))
        }
        _ => Ok(()),
    }
}

/// Copies a file to standard output. Half of it is a failure, even when the reader closed the pipe.
pub fn print_file(file: &mut crate::disk::File) -> Result<()> {
    let mut out = std::io::stdout().lock();
    std::io::copy(file, &mut out)
        .and_then(|_| out.flush())
        .map_err(|e| Error::io("could not write to standard output", e))
}

/// Prints a JSON document, indented, with a line end.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(Kind::Bug, "could not make JSON").because(e))?;
    print(&format!("{text}\n"))
}

/// On which side a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// Rows of texts under a header.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        let own = |(name, align): &(&str, Align)| (name.to_string(), *align);
        Table {
            columns: columns.iter().map(own).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, one text for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The text: columns as wide as their longest cell, two blanks between, no blanks at a line's end.
    pub fn render(&self) -> String {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let width = |i: usize| lines().map(|l| l[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        let mut text = String::new();
        for line in lines() {
            let cells = line.iter().zip(&widths).zip(&self.columns);
            let padded = cells.map(|((cell, &width), (_, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A size for people: three digits and a unit, powers of 1024.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be printed as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A time for people, in the two largest units.
pub fn human_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}min {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}min"),
        _ => format!("{days}d {hours}h"),
    }
}

/// The terminal line that progress and log share: whoever logs wipes the line first, the next step draws it again.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    drawn: Arc<AtomicBool>,
    bars: bool,
}

impl Screen {
    /// With bars if standard error is a terminal and `wanted` says so.
    pub fn new(wanted: bool) -> Screen {
        Screen {
            drawn: Arc::default(),
            bars: wanted && std::io::stderr().is_terminal(),
        }
    }

    /// What a log line begins with, so that it does not stand in the middle of a bar.
    pub fn wipe(&self) -> &'static str {
        match self.drawn.swap(false, Ordering::Relaxed) {
            true => "\r\x1b[K",
            false => "",
        }
    }

    fn draw(&self, line: &str) {
        self.drawn.store(true, Ordering::Relaxed);
        self.write(&format!("\r\x1b[K{line}"));
    }

    fn write(&self, text: &str) {
        // A terminal that went away must not end a backup.
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

/// How far a long work is: a bar on a terminal, else a log line a minute. Many threads may count.
#[derive(Debug)]
pub struct Progress {
    screen: Screen,
    doing: &'static str,
    done: AtomicU64,
    total: AtomicU64,
    started: Instant,
    next_ms: AtomicU64,
}

impl crate::backup::progress::Progress for Progress {
    fn expect(&self, bytes: u64) {
        self.set_total(bytes);
    }

    fn add(&self, bytes: u64) {
        Progress::add(self, bytes);
    }
}

impl Progress {
    /// `doing` is the participle of the line: `read`, `restored`. A total of 0 is unknown.
    pub fn new(screen: &Screen, doing: &'static str, total: u64) -> Progress {
        let first_ms = if screen.bars { 0 } else { LOG_MS };
        Progress {
            screen: screen.clone(),
            doing,
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
            started: Instant::now(),
            next_ms: AtomicU64::new(first_ms),
        }
    }

    /// The total became known, or other than thought.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// So many bytes more.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.tick();
    }

    /// Shows where things stand, if it is time to: for loops that wait without counting.
    pub fn tick(&self) {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let due_ms = self.next_ms.load(Ordering::Relaxed);
        let pause_ms = if self.screen.bars { REDRAW_MS } else { LOG_MS };
        let next_ms = now_ms + pause_ms;
        // Of the threads that see that it is time, one draws.
        let swap = |a, b| {
            self.next_ms
                .compare_exchange(a, b, Ordering::Relaxed, Ordering::Relaxed)
        };
        if now_ms >= due_ms && swap(due_ms, next_ms).is_ok() {
            self.show();
        }
    }

    /// Wipes the bar.
    pub fn finish(&self) {
        let wipe = self.screen.wipe();
        self.screen.write(wipe);
    }

    fn show(&self) {
        let line = line(
            self.doing,
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
            self.started.elapsed(),
        );
        match self.screen.bars {
            true => self.screen.draw(&line),
            false => log::info!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `read 1.20 GiB of 3.00 GiB (40 %), 210 MiB/s, 9s left`
fn line(doing: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let rate = (done as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    let (now, speed) = (human_bytes(done), human_bytes(rate));
    if total == 0 {
        return format!("{doing} {now}, {speed}/s");
    }
    let percent = (done.min(total) as f64 * 100.0 / total as f64) as u64;
    let all = human_bytes(total);
    // The first second tells nothing about the rest.
    let left = match total.saturating_sub(done).checked_div(rate) {
        Some(seconds) if elapsed >= Duration::from_secs(1) => {
            format!(", {} left", human_duration(Duration::from_secs(seconds)))
        }
        _ => String::new(),
    };
    format!("{doing} {now} of {all} ({percent} %), {speed}/s{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 << 10, "10.0 KiB"),
            (1_023_999, "0.98 MiB"),
            (16 << 20, "16.0 MiB"),
            (999 << 20, "999 MiB"),
            (1000 << 20, "0.98 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn times() {
        let cases = [
            (9, "9s"),
            (61, "1min 1s"),
            (3_660, "1h 1min"),
            (90_000, "1d 1h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_table_lines_up() {
        let mut table = Table::new(&[
            ("name", Align::Left),
            ("size", Align::Right),
            ("note", Align::Left),
        ]);
        table.row(vec!["größer".into(), "7".into(), String::new()]);
        table.row(vec!["b".into(), "12345".into(), "x".into()]);
        let expected = "name     size  note\ngrößer      7\nb       12345  x\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn progress_lines() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line("read", 1 << 30, 3 << 30, 4 * second),
            "read 1.00 GiB of 3.00 GiB (33 %), 256 MiB/s, 8s left"
        );
        assert_eq!(line("read", 0, 0, second), "read 0 B, 0 B/s");
        assert_eq!(line("read", 0, 10, second), "read 0 B of 10 B (0 %), 0 B/s");
        assert_eq!(
            line("read", 20, 10, second),
            "read 20 B of 10 B (100 %), 20 B/s, 0s left"
        );
    }

    #[test]
    fn a_bar_is_wiped_once() {
        let screen = Screen::new(false);
        assert_eq!(screen.wipe(), "");
        screen.drawn.store(true, Ordering::Relaxed);
        assert_eq!(screen.wipe(), "\r\x1b[K");
        assert_eq!(screen.wipe(), "");
    }
}
