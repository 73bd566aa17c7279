//! `man [PAGE]`: the manual, as roff. Pages are prose (`man/*.in`) with lines that stand for what the program knows
//! itself: its options, settings and exit codes. So the manual cannot say what the program does not do; the generated
//! pages are committed, and a test compares them.

use super::arguments::{optional_path, text, usage};
use super::output;
use crate::config::{Fallback, Group, SETTINGS, Setting};
use crate::disk::durable::{NewFile, Publish};
use crate::error::{Error, Kind, Result};
use clap::{Arg, ArgMatches, Command};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One page: its prose, and the verb that it is about.
struct Page {
    name: &'static str,
    section: u8,
    verb: &'static str,
    prose: &'static str,
}

const fn page(name: &'static str, section: u8, verb: &'static str, prose: &'static str) -> Page {
    Page {
        name,
        section,
        verb,
        prose,
    }
}

/// Prose of a page of section 1.
macro_rules! prose {
    ($file:literal) => {
        include_str!(concat!("../../man/", $file, ".in"))
    };
}

const PAGES: &[Page] = &[
    page("seawall", 1, "", prose!("seawall.1")),
    page(
        "seawall-wal-receive",
        1,
        "wal-receive",
        prose!("seawall-wal-receive.1"),
    ),
    page(
        "seawall-wal-push",
        1,
        "wal-push",
        prose!("seawall-wal-push.1"),
    ),
    page(
        "seawall-wal-fetch",
        1,
        "wal-fetch",
        prose!("seawall-wal-fetch.1"),
    ),
    page(
        "seawall-backup-push",
        1,
        "backup-push",
        prose!("seawall-backup-push.1"),
    ),
    page(
        "seawall-backup-fetch",
        1,
        "backup-fetch",
        prose!("seawall-backup-fetch.1"),
    ),
    page(
        "seawall-backup-list",
        1,
        "backup-list",
        prose!("seawall-backup-list.1"),
    ),
    page("seawall-status", 1, "status", prose!("seawall-status.1")),
    page("seawall.toml", 5, "", prose!("seawall.toml.5")),
    page("seawall-archive", 7, "", prose!("seawall-archive.7")),
];

/// What each code says, for the manual. `wal-fetch` adds 200 to all but absence.
const EXITS: &[(Kind, &str)] = &[
    (
        Kind::Io,
        "Failed: a file system call, or PostgreSQL said no.",
    ),
    (
        Kind::Usage,
        "The command line or the configuration is wrong.",
    ),
    (
        Kind::Refused,
        "Refused: a running server, a target that is not empty, a segment that is still being written.",
    ),
    (Kind::Locked, "Another process is at it."),
    (
        Kind::Mismatch,
        "Two things differ that must be equal: the bytes under one name, the system identifiers.",
    ),
    (
        Kind::Corrupt,
        "Stored bytes are damaged, or a file to be archived is no WAL.",
    ),
    (Kind::Denied, "Credentials or permissions were refused."),
    (
        Kind::Unavailable,
        "The archive or the server could not be reached, or does not show itself.",
    ),
    (Kind::Missing, "The thing asked for is not there."),
    (
        Kind::Hole,
        "Something is missing where it must not be: a gap in the archive, a deleted object.",
    ),
    (Kind::Full, "No space is left."),
    (Kind::Interrupted, "SIGINT or SIGTERM came."),
    (
        Kind::Findings,
        "Done, with findings that a human must look at, as page checksums that do not fit.",
    ),
    (Kind::Bug, "A mistake in seawall."),
];

/// The verb's command line.
pub fn command() -> Command {
    Command::new("man")
        .about("Print a page of the manual as roff; man -l - shows it")
        .arg(
            Arg::new("page")
                .value_name("PAGE")
                .help("A verb, toml (the settings) or archive (the format); else the overview"),
        )
        .arg(
            Arg::new("all")
                .long("all")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .hide(true)
                .help("Write every page into this directory"),
        )
}

/// Prints a page, or writes all of them. `tree` is the whole command line, built.
pub fn run(tree: &Command, matches: &ArgMatches) -> Result<()> {
    if let Some(dir) = optional_path(matches, "all") {
        return pages(tree).try_for_each(|(name, text)| write(&dir.join(name), &text));
    }
    let wanted = text(matches, "page").unwrap_or_else(|| "seawall".to_string());
    let is_it = |p: &&Page| {
        let short = p
            .name
            .trim_start_matches("seawall")
            .trim_start_matches(['-', '.']);
        p.name == wanted || (!short.is_empty() && short == wanted)
    };
    match PAGES.iter().find(is_it) {
        Some(page) => output::print(&render(tree, page)),
        None => Err(usage(format!("there is no manual page {wanted:?}"))
            .hint("Give a verb, toml or archive.")),
    }
}

/// File name and text of every page.
pub fn pages(tree: &Command) -> impl Iterator<Item = (String, String)> {
    PAGES
        .iter()
        .map(|p| (format!("{}.{}", p.name, p.section), render(tree, p)))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = NewFile::create(path, 0o644)?;
    file.write_all(text.as_bytes())
        .map_err(|e| Error::io(format!("could not write \"{}\"", path.display()), e))?;
    file.publish(Publish::Replace)
}

/// The prose, with each line `@WHAT@` replaced.
fn render(tree: &Command, page: &Page) -> String {
    let command = tree.find_subcommand(page.verb).unwrap_or(tree);
    let mut out = head(page);
    for line in page.prose.lines() {
        let words: Vec<&str> = match line.strip_prefix('@').and_then(|l| l.strip_suffix('@')) {
            Some(inner) => inner.split(' ').collect(),
            None => vec![],
        };
        match words[..] {
            ["SYNOPSIS"] => out.push_str(&synopsis(command, page.verb)),
            ["VERBS"] => out.push_str(&verbs(tree)),
            ["OPTIONS"] => out.push_str(&options(command, page.verb.is_empty())),
            ["SETTINGS", group] => out.push_str(&settings(group, long_setting)),
            ["ENVIRONMENT", ref names @ ..] => {
                names
                    .iter()
                    .for_each(|n| out.push_str(&settings(n, short_setting)));
            }
            ["EXIT"] => out.push_str(&exits(0)),
            ["FETCH-EXIT"] => out.push_str(&exits(200)),
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

fn head(page: &Page) -> String {
    format!(
        ".\\\" Made by \"seawall man\" from man/{name}.{section}.in; edit that.\n.TH {title} {section} \"\" \"seawall {version}\" \"seawall\"\n",
        name = page.name,
        title = escape(&page.name.to_uppercase()),
        section = page.section,
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Backslashes, hyphens and leading dots mean something to roff.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.split('\n')
        .map(|line| match line.starts_with(['.', '\'']) {
            true => format!("\\&{line}"),
            false => line.to_string(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escape(text))
}

fn own_arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let helper = |a: &&Arg| !matches!(a.get_id().as_str(), "help" | "version");
    command
        .get_arguments()
        .filter(|a| !a.is_hide_set())
        .filter(helper)
}

fn synopsis(command: &Command, verb: &str) -> String {
    let mut text = format!(".nh\n{} [{}]", bold("seawall"), italic("global options"));
    if verb.is_empty() {
        return format!("{text} {} [...]\n.hy\n", italic("VERB"));
    }
    text.push_str(&format!(" {} [{}]", bold(verb), italic("options")));
    for arg in own_arguments(command).filter(|a| a.is_positional()) {
        let name = italic(&value_name(arg));
        text.push_str(&match arg.is_required_set() {
            true => format!(" {name}"),
            false => format!(" [{name}]"),
        });
    }
    text + "\n.hy\n"
}

fn value_name(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map(|n| n.to_string()).unwrap_or_default()
}

fn verbs(tree: &Command) -> String {
    let one = |c: &Command| {
        let about = c.get_about().map(|a| a.to_string()).unwrap_or_default();
        format!(".TP\n{}\n{}.\n", bold(c.get_name()), escape(&about))
    };
    tree.get_subcommands().map(one).collect()
}

/// Arguments first, then options. The verbs' pages leave the global ones to seawall(1).
fn options(command: &Command, global: bool) -> String {
    let wanted = |a: &&Arg| a.is_global_set() == global;
    let (first, second): (Vec<_>, Vec<_>) = own_arguments(command)
        .filter(wanted)
        .partition(|a| a.is_positional());
    first.into_iter().chain(second).map(option).collect()
}

fn option(arg: &Arg) -> String {
    let mut names: Vec<String> = Vec::new();
    names.extend(arg.get_short().map(|c| bold(&format!("-{c}"))));
    names.extend(arg.get_long().map(|l| bold(&format!("--{l}"))));
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    names.extend(aliases.iter().map(|l| bold(&format!("--{l}"))));
    let mut head = names.join(", ");
    if arg.get_action().takes_values() {
        let value = italic(&value_name(arg));
        // With a blank an optional value would be the next argument.
        let optional = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
        head = match optional {
            true => format!("{head}[={value}]"),
            false => format!("{head} {value}").trim().to_string(),
        };
    }
    let help = arg.get_long_help().or(arg.get_help());
    let mut help = help.map(|h| h.to_string()).unwrap_or_default();
    if !help.ends_with('.') {
        help.push('.');
    }
    let defaults = arg.get_default_values();
    if let (true, Some(default)) = (arg.get_action().takes_values(), defaults.first()) {
        help.push_str(&format!("\nDefault: {}.", default.to_string_lossy()));
    }
    format!(".TP\n{head}\n{}\n", escape(&help))
}

/// The settings of a group, or one by its environment name.
fn settings(name: &str, one: fn(&Setting) -> String) -> String {
    let group = match name {
        "archive" => Some(Group::Archive),
        "s3" => Some(Group::S3),
        "postgres" => Some(Group::Postgres),
        "log" => Some(Group::Log),
        "system" => Some(Group::System),
        _ => None,
    };
    let wanted = |s: &&Setting| s.env == name || Some(s.group) == group;
    let text: String = SETTINGS.iter().filter(wanted).map(one).collect();
    assert!(!text.is_empty(), "the manual names no setting {name}");
    text
}

/// For seawall.toml(5): all that there is to say.
fn long_setting(setting: &Setting) -> String {
    let env = bold(setting.env);
    let head = match setting.key {
        "" => env,
        key => format!("{}, {env}", bold(key)),
    };
    let mut text = vec![setting.doc.to_string()];
    match setting.fallback {
        Fallback::Value(value) => text.push(format!("Default: {value}.")),
        Fallback::Rule(rule) => text.push(format!("Default: {rule}.")),
        Fallback::None => {}
    }
    if !setting.also.is_empty() {
        text.push(format!("Also read from: {}.", setting.also.join(", ")));
    }
    if setting.secret {
        let in_file = match setting.key {
            "" => format!("{}_FILE", setting.env),
            key => format!("{key}-file or {}_FILE", setting.env),
        };
        text.push(format!("Secret; {in_file} names a file that holds it."));
    }
    format!(".TP\n{head}\n{}\n", escape(&text.join("\n")))
}

/// For the verbs' pages: what the variable is for.
fn short_setting(setting: &Setting) -> String {
    format!(".TP\n{}\n{}\n", bold(setting.env), escape(setting.doc))
}

/// `shift` is 200 for wal-fetch.
fn exits(shift: u8) -> String {
    let mut text = format!(".TP\n{}\nDone.\n", bold("0"));
    if shift > 0 {
        let absent = "Proven absent: the archive shows itself, and neither the file nor anything beyond it is there.";
        text.push_str(&format!(".TP\n{}\n{absent}\n", bold("1")));
    }
    for (kind, what) in EXITS {
        let code = kind.code() + shift;
        text.push_str(&format!(
            ".TP\n{}\n{}\n",
            bold(&code.to_string()),
            escape(what)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roff_sees_no_commands_in_texts() {
        assert_eq!(escape("a-b\\c"), "a\\-b\\ec");
        assert_eq!(escape(".pgpass\n'x"), "\\&.pgpass\n\\&'x");
    }

    #[test]
    fn every_code_is_told_once() {
        let codes: Vec<u8> = EXITS.iter().map(|(kind, _)| kind.code()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        use Kind::*;
        let all = [
            Usage,
            Config,
            Missing,
            Exists,
            Hole,
            Refused,
            Locked,
            Mismatch,
            Corrupt,
            Denied,
            Transient,
            Unavailable,
            Io,
            Full,
            Protocol,
            Interrupted,
            Findings,
            Bug,
        ];
        for kind in all {
            assert!(codes.contains(&kind.code()), "{kind:?}");
            assert!(
                codes.iter().any(|c| c + 200 == kind.fetch_code()),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn every_verb_has_a_page() {
        for command in crate::cmd::commands() {
            let named = |p: &Page| p.verb == command.get_name();
            assert!(command.get_name() == "man" || PAGES.iter().any(named));
        }
    }
}
