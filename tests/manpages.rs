//! The committed manual is what the program says of itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::Scratch;
use crate::support::seawall::Seawall;

/// File names of the committed pages: what is in man/ without `.in`.
fn committed() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let names = fs::read_dir(dir).expect("man/").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a plain name")
    });
    let mut pages: Vec<String> = names.filter(|name| !name.ends_with(".in")).collect();
    pages.sort();
    pages
}

#[test]
fn committed_pages_are_the_generated_ones() {
    let scratch = Scratch::new();
    let made = scratch.dir("man");
    Seawall::new(&scratch)
        .args(["man", "--all"])
        .arg(&made)
        .run()
        .ok();
    let names = committed();
    assert_eq!(names.len(), fs::read_dir(&made).expect("pages").count());
    for name in names {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("man")
            .join(&name);
        let ours = fs::read_to_string(ours).expect("a committed page");
        let now = fs::read_to_string(made.join(&name)).expect("a generated page");
        assert!(
            ours == now,
            "man/{name} is out of date: run seawall man --all man"
        );
    }
}

#[test]
fn every_page_is_printed_and_is_sound_roff() {
    let scratch = Scratch::new();
    for name in committed() {
        let (page, _section) = name.rsplit_once('.').expect("name.section");
        let printed = Seawall::new(&scratch).args(["man", page]).run().ok();
        assert!(printed.text().contains("\n.SH NAME\n"), "{name}");
        assert!(
            !printed.text().contains("\n@"),
            "{name}: a line was not replaced"
        );
        let file = scratch.file(&name, &printed.stdout);
        let groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(&file)
            .output();
        // groff is on every Debian that has man(1); elsewhere the rest of this test is enough.
        if let Ok(output) = groff {
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(complaints, "", "{name}");
        }
    }
}
