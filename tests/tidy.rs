//! Floors and doors, and nothing else: no size, no taste.
//!
//! Floors: a room mentions (`crate::room`, also grouped, also by `super`) only rooms of lower floors; rooms of one
//! floor do not know each other. Doors: files, sockets, threads, printing, environment and exit each have their rooms;
//! what stands under `#[cfg(test)]` may do as it likes there. The checker reads tokens, so comments and texts do not
//! count, and it is itself tested with planted violations.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Room and rank: a mention must go down. Rank 0 is the ground, everyone's.
const FLOORS: &[(&str, u8)] = &[
    ("error", 0),
    ("limits", 0),
    ("pg", 10),
    ("codec", 10),
    ("disk", 20),
    ("work", 20),
    ("store", 30),
    ("wire", 30),
    ("archive", 40),
    ("spool", 40),
    ("relay", 50),
    ("backup", 50),
    ("transfer", 50),
    ("config", 60),
    ("cmd", 61),
    ("cli", 62),
    ("main", 63),
];

/// What only some rooms may mention: part of a path, and the rooms.
const DOORS: &[(&[&str], &[&str])] = &[
    (&["std", "fs"], &["disk"]),
    (&["rustix", "fs"], &["disk"]),
    (&["TcpStream"], &["wire", "store"]),
    (&["TcpListener"], &["wire", "store"]),
    (&["UdpSocket"], &["wire", "store"]),
    (&["UnixListener"], &["wire", "store"]),
    (&["ToSocketAddrs"], &["wire", "store"]),
    (&["rustix", "net"], &["wire", "store"]),
    (&["ureq"], &["store"]),
    (&["UnixStream"], &["wire", "store", "work"]), // work wakes itself by socket pairs
    (&["UnixDatagram"], &["cli"]),                 // the log goes to /dev/log
    (&["std", "thread"], &["work"]),
    (&["thread", "spawn"], &["work"]),
    (&["thread", "scope"], &["work"]),
    (&["thread", "sleep"], &["work"]),
    (&["thread", "Builder"], &["work"]),
    (&["signal_hook"], &["work"]),
    (&["println!"], &["cmd"]),
    (&["print!"], &["cmd"]),
    (&["io", "stdout"], &["cmd"]),
    (&["eprintln!"], &["cmd", "cli"]),
    (&["eprint!"], &["cmd", "cli"]),
    (&["io", "stderr"], &["cmd", "cli"]),
    (&["env", "var"], &["config"]),
    (&["env", "var_os"], &["config"]),
    (&["env", "vars"], &["config"]),
    (&["env", "vars_os"], &["config"]),
    (&["env", "set_var"], &["config"]),
    (&["env", "remove_var"], &["config"]),
    (&["env", "home_dir"], &["config"]),
    (&["process", "exit"], &["main"]),
    (&["process", "abort"], &["main"]),
];

/// The number of cores is a fact, not a thread.
const NO_DOOR: &[&str] = &["std", "thread", "available_parallelism"];

#[test]
fn floors_and_doors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 10, "the sources are under {}", root.display());
    let sources: Vec<(String, String)> = files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below src").display();
            let text = fs::read_to_string(path).expect("a source file");
            (name.to_string(), text)
        })
        .collect();
    let complaints = check(&sources);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// All complaints about a tree of sources, given as (path below src, text).
fn check(sources: &[(String, String)]) -> Vec<String> {
    let parsed: Vec<(&str, Vec<Token>)> = sources
        .iter()
        .map(|(name, text)| (name.as_str(), tokens(text)))
        .collect();
    let tests: BTreeSet<String> = parsed
        .iter()
        .flat_map(|(name, tokens)| test_modules(name, tokens))
        .collect();
    let mut complaints = Vec::new();
    for (name, tokens) in &parsed {
        let test_file = tests.iter().any(|module| is_in_module(name, module));
        for mention in mentions(tokens) {
            let complaint = floor_complaint(name, &mention)
                .or_else(|| door_complaint(name, &mention, test_file));
            if let Some(text) = complaint {
                complaints.push(format!("src/{name}:{}: {text}", mention.line));
            }
        }
    }
    complaints.dedup(); // a group that names one room twice is one fault
    complaints
}

/// `store/s3/sign.rs` is of the room `store`, `main.rs` of `main`.
fn room_of(name: &str) -> &str {
    let first = name.split('/').next().unwrap_or(name);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// How many modules deep a file is: `lib.rs` 0, `store/mod.rs` 1, `store/s3.rs` 2.
fn depth_of(name: &str) -> usize {
    match name {
        "lib.rs" | "main.rs" => 0,
        _ => module_of(name).split('/').count(),
    }
}

/// The module that a file is: `store/suite.rs` and `store/suite/mod.rs` are `store/suite`.
fn module_of(name: &str) -> &str {
    let name = name.strip_suffix(".rs").unwrap_or(name);
    name.strip_suffix("/mod").unwrap_or(name)
}

fn is_in_module(name: &str, module: &str) -> bool {
    let here = module_of(name);
    here.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn rank(room: &str) -> Option<u8> {
    let found = FLOORS.iter().find(|(name, _)| *name == room);
    found.map(|(_, rank)| *rank)
}

fn floor_complaint(name: &str, mention: &Mention) -> Option<String> {
    if name == "lib.rs" {
        return None; // the map names every room
    }
    let path = &mention.path;
    let supers = path.iter().take_while(|s| *s == "super").count();
    let to = match path[0].as_str() {
        "crate" => path.get(1)?,
        "seawall" if name == "main.rs" => path.get(1)?,
        "super" if supers == depth_of(name) + mention.inline_depth => path.get(supers)?,
        _ => return None,
    };
    let here = room_of(name);
    let (Some(own), Some(other)) = (rank(here), rank(to)) else {
        return Some(format!("{here} or {to} is on no floor"));
    };
    let fits = to == here || other < own || (own == 0 && other == 0);
    (!fits).then(|| format!("{here} must not know {to}"))
}

fn door_complaint(name: &str, mention: &Mention, test_file: bool) -> Option<String> {
    if test_file || mention.test || mention.path == NO_DOOR {
        return None;
    }
    let room = room_of(name);
    let hit = DOORS.iter().find(|(part, rooms)| {
        !rooms.contains(&room) && mention.path.windows(part.len()).any(|w| w == *part)
    });
    hit.map(|(_, rooms)| {
        let path = mention.path.join("::");
        format!("{path} is behind a door: only in {}", rooms.join(", "))
    })
}

/// An identifier, or a punctuation character; texts, numbers and comments are left out.
struct Token {
    text: String,
    line: usize,
}

fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        at = skip_token(&chars, at);
        let text: String = chars[start..at].iter().collect();
        if text.starts_with(|c: char| c.is_alphabetic() || c == '_') && !text.contains('"') {
            let text = text.trim_start_matches("r#").to_string();
            found.push(Token { text, line });
        } else if text.len() == 1 && !text.starts_with(char::is_whitespace) {
            found.push(Token { text, line });
        }
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// The end of the token that begins here: comment, text, lifetime, word, or one character.
fn skip_token(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let word = |from: usize| {
        let more = chars[from..].iter();
        from + more
            .take_while(|c| c.is_alphanumeric() || **c == '_')
            .count()
    };
    match rest {
        ['/', '/', ..] => at + rest.iter().take_while(|c| **c != '\n').count(),
        ['/', '*', ..] => skip_comment(chars, at),
        ['"', ..] => skip_text(chars, at + 1),
        ['r', '"' | '#', ..] | ['b' | 'c', 'r', '"' | '#', ..] => skip_raw(chars, at),
        ['b' | 'c', '"', ..] => skip_text(chars, at + 2),
        ['b', '\'', ..] => skip_char(chars, at + 1),
        ['\'', ..] => skip_char(chars, at),
        [c, ..] if c.is_alphanumeric() || *c == '_' => word(at),
        _ => at + 1,
    }
}

fn skip_comment(chars: &[char], mut at: usize) -> usize {
    let mut open = 0;
    while at < chars.len() {
        match &chars[at..] {
            ['/', '*', ..] => (open, at) = (open + 1, at + 2),
            ['*', '/', ..] => (open, at) = (open - 1, at + 2),
            _ => at += 1,
        }
        if open == 0 {
            break;
        }
    }
    at
}

fn skip_text(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// A raw text, or (`r#type`) a raw identifier.
fn skip_raw(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while matches!(chars.get(at), Some('r')) {
        at += 1;
    }
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        let more = chars[at..].iter();
        return at
            + more
                .take_while(|c| c.is_alphanumeric() || **c == '_')
                .count();
    }
    at += 1;
    let closes = |at: usize| {
        chars[at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes
    };
    while at < chars.len() && !closes(at) {
        at += 1;
    }
    (at + 1 + hashes).min(chars.len())
}

/// A character or a lifetime, from the quotation mark on.
fn skip_char(chars: &[char], at: usize) -> usize {
    match &chars[at + 1..] {
        ['\\', _, ..] => {
            let more = chars[at + 3..].iter();
            at + 4 + more.take_while(|c| **c != '\'').count()
        }
        [_, '\'', ..] => at + 3,
        _ => at + 1, // a lifetime: its name counts as a word, which does no harm
    }
}

/// A path as it stands in the source, groups written out: `use a::{b, c::d}` gives a::b and a::c::d. A macro's name
/// ends with its exclamation mark.
#[derive(Debug)]
struct Mention {
    path: Vec<String>,
    line: usize,
    /// Under `#[cfg(test)]`.
    test: bool,
    /// Modules written out in this file around it.
    inline_depth: usize,
}

fn mentions(tokens: &[Token]) -> Vec<Mention> {
    let test = test_tokens(tokens);
    let depth = inline_depths(tokens);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let method = at > 0 && tokens[at - 1].text == ".";
        if !is_word(tokens, at) || method {
            at += 1;
            continue;
        }
        let start = at;
        let mut paths = Vec::new();
        at = read_path(tokens, at, &[], &mut paths);
        found.extend(paths.into_iter().map(|(path, line)| Mention {
            path,
            line,
            test: test[start],
            inline_depth: depth[start],
        }));
    }
    found
}

fn is(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|t| t.text == text)
}

fn is_word(tokens: &[Token], at: usize) -> bool {
    let starts = |t: &Token| t.text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    tokens.get(at).is_some_and(starts)
}

fn is_colons(tokens: &[Token], at: usize) -> bool {
    is(tokens, at, ":") && is(tokens, at + 1, ":")
}

/// Reads one path, or a tree of them, and gives the token after it.
fn read_path(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let line = tokens[at].line;
    let mut path = prefix.to_vec();
    loop {
        if is(tokens, at, "{") && !path.is_empty() {
            at += 1;
            while at < tokens.len() && !is(tokens, at, "}") {
                let item = is_word(tokens, at) || is(tokens, at, "*") || is(tokens, at, "{");
                at = if item {
                    read_path(tokens, at, &path, found)
                } else {
                    at + 1
                };
            }
            return at + 1;
        }
        path.push(tokens[at].text.clone());
        at += 1;
        let more = is_word(tokens, at + 2) || is(tokens, at + 2, "{") || is(tokens, at + 2, "*");
        if !(is_colons(tokens, at) && more) {
            break;
        }
        at += 2;
    }
    if is(tokens, at, "!") && !is(tokens, at + 1, "=") {
        path.last_mut().expect("pushed above").push('!');
    }
    found.push((path, line));
    at
}

/// Is there a `#[cfg(test)]` here?
fn is_cfg_test(tokens: &[Token], at: usize) -> bool {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut each = attribute.iter().enumerate();
    each.all(|(offset, text)| is(tokens, at + offset, text))
}

/// The token after the item that begins here: its semicolon, or its closing brace.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    let mut open = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" | "(" | "[" => open += 1,
            "}" | ")" | "]" => open -= 1,
            _ => {}
        }
        let ends = open == 0 && matches!(tokens[at].text.as_str(), ";" | "}");
        at += 1;
        if ends {
            break;
        }
    }
    at
}

/// For each token: does it belong to an item under `#[cfg(test)]`?
fn test_tokens(tokens: &[Token]) -> Vec<bool> {
    let mut test = vec![false; tokens.len()];
    for at in 0..tokens.len() {
        if is_cfg_test(tokens, at) {
            let end = item_end(tokens, at + 7);
            test[at..end].iter_mut().for_each(|t| *t = true);
        }
    }
    test
}

/// Modules in files of their own that are declared under `#[cfg(test)]`.
fn test_modules(name: &str, tokens: &[Token]) -> Vec<String> {
    let test = test_tokens(tokens);
    let here = match name {
        "lib.rs" | "main.rs" => String::new(),
        _ => format!("{}/", module_of(name)),
    };
    let declared = (0..tokens.len()).filter(|at| {
        test[*at] && is(tokens, *at, "mod") && is_word(tokens, at + 1) && is(tokens, at + 2, ";")
    });
    declared
        .map(|at| format!("{here}{}", tokens[at + 1].text))
        .collect()
}

/// For each token: how many `mod x { … }` of this file are around it.
fn inline_depths(tokens: &[Token]) -> Vec<usize> {
    let mut depths = Vec::with_capacity(tokens.len());
    let mut braces = Vec::new(); // for each open brace: is it a module's?
    for at in 0..tokens.len() {
        match tokens[at].text.as_str() {
            "{" => braces.push(at > 1 && is(tokens, at - 2, "mod")),
            "}" => {
                braces.pop();
            }
            _ => {}
        }
        depths.push(braces.iter().filter(|module| **module).count());
    }
    depths
}

/// What the checker says about one planted file.
fn planted(name: &str, text: &str) -> Vec<String> {
    check(&[(name.to_string(), text.to_string())])
}

#[test]
fn planted_floor_violations_are_caught() {
    let bad = [
        ("pg/lsn.rs", "use crate::disk::File;"),
        ("pg/lsn.rs", "use crate::codec;"),
        ("store/s3.rs", "use crate::{error::Result, wire};"),
        ("store/s3.rs", "use crate::{disk, archive::{keys, wal}};"),
        (
            "store/s3.rs",
            "fn f() { let x = crate::archive::wal::put(); }",
        ),
        ("store/s3.rs", "use super::super::wire::Conn;"),
        (
            "store/s3.rs",
            "mod inner { use super::super::super::wire::Conn; }",
        ),
        ("store/mod.rs", "use super::{disk, wire::Conn};"),
        (
            "store/mod.rs",
            "#[cfg(test)] mod tests { use crate::wire::Conn; }",
        ),
        ("archive/wal.rs", "use crate::config::Config;"),
        ("archive/wal.rs", "use crate::spool::partial_name;"),
        ("spool/queue.rs", "use crate::archive::wal;"),
        ("spool/writer.rs", "use crate::relay::Chunk;"),
        ("config.rs", "use crate::cmd;"),
        ("cmd/wal_push.rs", "use crate::cli;"),
        ("error.rs", "use crate::pg::Lsn;"),
        ("attic/mod.rs", "use crate::error::Error;"),
        ("cmd/mod.rs", "use crate::attic;"),
    ];
    for (name, text) in bad {
        assert_eq!(planted(name, text).len(), 1, "{name}: {text}");
    }
}

#[test]
fn planted_door_violations_are_caught() {
    let bad = [
        ("archive/wal.rs", "use std::fs;"),
        ("spool/writer.rs", "use std::fs::File;"),
        ("spool/queue.rs", "fn f() { std::thread::spawn(g); }"),
        ("archive/wal.rs", "use std::{fmt, fs::File, io};"),
        ("archive/wal.rs", "fn f() { std::fs::read(\"x\"); }"),
        ("archive/wal.rs", "use rustix::fs::statvfs;"),
        ("backup/push.rs", "use std::{net::{IpAddr, TcpStream}};"),
        (
            "cmd/mod.rs",
            "fn f() { std::os::unix::net::UnixStream::connect(p); }",
        ),
        ("backup/push.rs", "use std::thread::{self, Builder};"),
        ("backup/push.rs", "fn f() { thread::sleep(x); }"),
        ("archive/wal.rs", "fn f() { println!(\"x\"); }"),
        ("cli.rs", "fn f() { println!(\"x\"); }"),
        ("store/s3.rs", "fn f() { eprintln!(\"x\"); }"),
        ("store/s3.rs", "fn f() { io::stderr().write_all(b\"x\"); }"),
        ("cmd/mod.rs", "fn f() { std::env::var_os(\"X\"); }"),
        ("cmd/mod.rs", "use std::env::{args, var};"),
        ("cli.rs", "fn f() { std::process::exit(1); }"),
        ("disk/mod.rs", "use ureq::Agent;"),
        (
            "disk/mod.rs",
            "#[cfg(test)] mod tests { } fn f() { print!(\"x\") }",
        ),
        (
            "disk/mod.rs",
            "#[cfg(test)] use a::b; fn f() { print!(\"x\") }",
        ),
    ];
    for (name, text) in bad {
        assert!(!planted(name, text).is_empty(), "{name}: {text}");
    }
    let text = "fn a() {}\n\nfn b() {\n    std::fs::read(\"x\");\n}\n";
    let complaints = planted("pg/lsn.rs", text);
    assert_eq!(
        complaints,
        ["src/pg/lsn.rs:4: std::fs::read is behind a door: only in disk"]
    );
}

#[test]
fn what_is_allowed_passes() {
    let good = [
        (
            "store/s3.rs",
            "use crate::{codec::digest, disk, error::{Error, Kind}, limits, work::stop::Stop};",
        ),
        (
            "store/s3.rs",
            "use super::{Key, Store}; use crate::store::retry; mod a { use super::super::Key; }",
        ),
        (
            "store/s3.rs",
            "// crate::archive, std::fs\n/* println! /* nested */ crate::cmd */ fn f() {}",
        ),
        (
            "store/s3.rs",
            "const A: &str = \"crate::archive \\\" std::fs\"; const B: &str = r#\"use \"std::fs\"#;",
        ),
        (
            "store/s3.rs",
            "fn f<'a>(x: &'a str) -> char { if x != y { '\"' } else { '\\'' } } fn g() { b'\"'; }",
        ),
        (
            "store/s3.rs",
            "#[cfg(test)] mod tests { use std::{fs, thread}; fn f() { println!(\"x\"); } }",
        ),
        (
            "store/s3.rs",
            "#[cfg(test)] fn f() { std::fs::read(\"x\"); }",
        ),
        ("pg/conninfo.rs", "use std::net::{IpAddr, Ipv4Addr};"),
        (
            "config.rs",
            "fn f() { std::env::var(\"X\"); std::thread::available_parallelism(); }",
        ),
        (
            "work/crew.rs",
            "use std::thread; fn f() { UnixStream::pair(); }",
        ),
        (
            "cmd/wal_fetch.rs",
            "fn f() { std::env::current_dir(); io::stdout(); env!(\"CARGO_PKG_VERSION\"); }",
        ),
        (
            "cmd/wal_fetch.rs",
            "fn f(c: &mut Command) { c.env(\"a\", \"b\").stdout(x).spawn(); }",
        ),
        (
            "cli.rs",
            "use crate::{cmd, config}; fn f() { eprintln!(\"x\"); std::env::args_os(); }",
        ),
        ("main.rs", "fn main() -> ExitCode { seawall::cli::main() }"),
        ("limits.rs", "use crate::error::Error;"),
    ];
    for (name, text) in good {
        assert_eq!(planted(name, text), [""; 0], "{name}: {text}");
    }
}

#[test]
fn a_test_module_in_its_own_file_may_do_as_it_likes() {
    let file = |name: &str, text: &str| (name.to_string(), text.to_string());
    let suite = file("store/suite.rs", "use std::thread;");
    let declared = file("store/mod.rs", "#[cfg(test)]\npub(crate) mod suite;");
    let product = file("store/mod.rs", "pub mod suite;");
    assert_eq!(check(&[declared, suite.clone()]).len(), 0);
    assert_eq!(check(&[product, suite]).len(), 1);
}
