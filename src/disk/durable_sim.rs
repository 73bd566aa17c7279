//! What the recipe of `durable` must hold on the disk that forgets, at every crash point.
//!
//! The invariants, for a file that is being published, after a crash at any operation:
//! * D1 the final name is as before (absent, or the old bytes) or has all the new bytes.
//! * D2 once `publish` has answered Ok, it has the new bytes.
//! * D3 with `Publish::Absent`, old bytes stay, crash or no crash.
//! * D4 a `publish` during which a sync failed does not answer Ok.

use super::durable::{NewFile, Publish};
use super::sim::{Call, Play, Prng, SECTOR_BYTES, SimFs, Sloppy, Weather};
use super::{Fs, FsFile};
use crate::error::{Kind, Result};
use std::io::Write;
use std::path::Path;

/// A mistake in the recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Planted {
    #[default]
    Nothing,
    NoDataSync,
    NoDirSync,
    RenameBeforeSync,
    RetryFailedDataSync,
    PassOverFailedDirSync,
    LookThenRename,
}

impl Planted {
    fn play(self, call: &Call) -> Play {
        match (self, call) {
            (Planted::NoDataSync, Call::DataSync { .. }) => Play::Forget,
            (Planted::RenameBeforeSync, Call::DataSync { .. }) => Play::Late,
            (Planted::RetryFailedDataSync, Call::DataSync { .. }) => Play::PassOver,
            (Planted::NoDirSync, Call::DirSync { .. }) => Play::Forget,
            (Planted::PassOverFailedDirSync, Call::DirSync { .. }) => Play::PassOver,
            (Planted::LookThenRename, Call::Link) => Play::Replace,
            _ => Play::Right,
        }
    }
}

/// What fails on its own, without a crash.
const CALM: Weather = Weather {
    no_links: false,
    no_rename_new: false,
    write: 0,
    full: 0,
    data_sync: 0,
    dir_sync: 0,
};
const FULL: Weather = Weather { full: 100, ..CALM };
const WRITE_FAILS: Weather = Weather { write: 100, ..CALM };
const DATA_SYNC_FAILS: Weather = Weather {
    data_sync: 100,
    ..CALM
};
const DIR_SYNC_FAILS: Weather = Weather {
    dir_sync: 100,
    ..CALM
};

/// One thing to try: how to publish, and over what.
#[derive(Clone, Copy, Debug)]
struct Case {
    publish: Publish,
    old: bool,
    weather: Weather,
    planted: Planted,
}

const NAME: &str = "000000010000000000000001";
const OLD: &[u8] = b"what was there before";

/// Three sectors and a piece, never zero and not the same in any two sectors.
fn content() -> Vec<u8> {
    let byte = |i: usize| (1 + (i * 7 + i / SECTOR_BYTES) % 255) as u8;
    (0..3 * SECTOR_BYTES + 100).map(byte).collect()
}

fn cases(planted: Planted, weather: Weather) -> impl Iterator<Item = Case> {
    let each = [Publish::Absent, Publish::Replace].into_iter();
    each.flat_map(move |publish| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(old, no_links)| Case {
            publish,
            old,
            weather: Weather {
                no_links,
                ..weather
            },
            planted,
        })
    })
}

/// A disk with the old file, durable, on which nothing has gone wrong yet.
fn prepare(case: Case) -> SimFs {
    let fs = SimFs::default();
    if case.old {
        let file = fs.create_new(NAME.as_ref()).unwrap();
        file.write_at(0, OLD).unwrap();
        file.sync_data().unwrap();
        fs.sync_dir().unwrap();
    }
    let fs = fs.kill();
    fs.set_weather(case.weather, 1);
    fs
}

/// What the product does with it.
fn publish(fs: &SimFs, case: Case) -> Result<()> {
    let bytes = content();
    let fs = Sloppy::new(fs.clone(), move |call| case.planted.play(call));
    let mut file = NewFile::create_in(fs, Path::new(NAME))?;
    let written = file.write_all(&bytes[..700]);
    written.map_err(|e| crate::error::from_io("unexpected", e))?;
    // Pieces may come in any order.
    file.write_all_at(1024, &bytes[1024..])?;
    file.write_all_at(700, &bytes[700..1024])?;
    file.publish(case.publish)
}

/// Runs `case` to the crash after `crash_after` operations and looks at what may be left; `Some` says what is wrong.
fn look(case: Case, crash_after: u64) -> Option<String> {
    let fs = prepare(case);
    fs.crash_after(crash_after);
    let answer = publish(&fs, case);
    let whole = content();
    let before = case.old.then(|| OLD.to_vec());
    let never_new = case.old && case.publish == Publish::Absent;
    for variant in 0..64 {
        let keep_percent = [0, 100, 50, 90][variant as usize % 4];
        let left = fs.copy().power_loss(&mut Prng(variant), keep_percent);
        let found = left.read(NAME);
        let is_new = found.as_ref() == Some(&whole);
        let broken = match &answer {
            _ if found != before && !is_new => "D1: neither old nor whole",
            Ok(()) if !is_new => "D2: acknowledged and lost",
            _ if never_new && found != before => "D3: overwritten",
            _ => continue,
        };
        return Some(format!(
            "{broken}: {case:?}, crash after {crash_after}, variant {variant}"
        ));
    }
    let sync_fails = case.weather.data_sync + case.weather.dir_sync > 0;
    (sync_fails && answer.is_ok()).then(|| format!("D4: {case:?}"))
}

/// Every case, a crash after every operation and one after the last.
fn first_violation(planted: Planted, weather: Weather) -> Option<String> {
    cases(planted, weather).find_map(|case| {
        let fs = prepare(case);
        let _ = publish(&fs, case);
        let operations = fs.operations();
        assert!(operations >= 1, "the script does something: {case:?}");
        (0..=operations).find_map(|crash_after| look(case, crash_after))
    })
}

#[test]
fn the_recipe_holds_at_every_crash_point() {
    for weather in [CALM, FULL, WRITE_FAILS, DATA_SYNC_FAILS, DIR_SYNC_FAILS] {
        assert_eq!(first_violation(Planted::Nothing, weather), None);
    }
}

#[test]
fn every_planted_bug_is_caught() {
    for (planted, weather, invariant) in [
        (Planted::NoDataSync, CALM, "D1"),
        (Planted::NoDirSync, CALM, "D2"),
        (Planted::RenameBeforeSync, CALM, "D1"),
        (Planted::RetryFailedDataSync, DATA_SYNC_FAILS, "D1"),
        (Planted::PassOverFailedDirSync, DIR_SYNC_FAILS, "D2"),
        (Planted::LookThenRename, CALM, "D3"),
    ] {
        let caught = first_violation(planted, weather).unwrap_or_default();
        assert!(caught.starts_with(invariant), "{planted:?} gave {caught:?}");
    }
}

#[test]
fn without_a_crash_the_answer_and_the_directory_are_as_promised() {
    for case in cases(Planted::Nothing, CALM) {
        let fs = prepare(case);
        let answer = publish(&fs, case).map_err(|e| e.kind());
        let refused = case.old && case.publish == Publish::Absent;
        assert_eq!(
            answer,
            if refused { Err(Kind::Exists) } else { Ok(()) },
            "{case:?}"
        );
        assert_eq!(fs.names(), [NAME], "no temporary file is left: {case:?}");
    }
}

#[test]
fn a_disk_that_cannot_promise_is_refused_by_name() {
    let mut case = Case {
        publish: Publish::Absent,
        old: false,
        weather: Weather {
            no_links: true,
            no_rename_new: true,
            ..CALM
        },
        planted: Planted::Nothing,
    };
    let fs = prepare(case);
    let error = publish(&fs, case).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.message().contains(NAME), "{error}");
    assert_eq!(fs.names(), [""; 0]);
    case.publish = Publish::Replace;
    publish(&fs, case).unwrap();
}

#[test]
fn a_full_disk_is_named_and_its_file_never_published() {
    let fs = SimFs::default();
    let file = NewFile::create_in(fs.clone(), Path::new(NAME)).unwrap();
    fs.set_weather(FULL, 1);
    let error = file.write_all_at(0, b"lost").unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert_eq!(error.message(), format!("could not write \"{NAME}\""));
    assert!(error.hint_text().is_some());

    // Whoever passes over the error of a write is stopped at the door.
    fs.set_weather(CALM, 1);
    let refused = file.publish(Publish::Replace).unwrap_err();
    assert_eq!(refused.kind(), Kind::Bug);
    assert_eq!(fs.names(), [""; 0], "the temporary file is removed");
}
