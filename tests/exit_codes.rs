//! What PostgreSQL reads when the store is ill: every row is a run of the binary against MinIO, with a proxy before it
//! that does what networks, gateways and stores do on bad days.
//!
//! 1. wal-fetch exits 0 with the very bytes, 1 for proven absence, else 200 to 219; and then what stood at DEST stands
//!    there still, alone.
//! 2. wal-push exits 0 only when MinIO has the object, else 1 to 125, and then it has none.
//! 3. Nothing that exists is ever changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::archive::{unzstd, zstd};
use crate::support::minio::{Minio, SECRET_KEY, Witness, s3_env};
use crate::support::proxy::{Fault, Proxy, Rule};
use crate::support::seawall::{Outcome, Seawall};
use crate::support::wal::Wal;
use crate::support::{Jobs, Scratch, give_to_postgres, run, side_by_side, unique};

/// What stands at DEST before wal-fetch runs.
const BEFORE: &[u8] = b"what stood here before";

/// A store's or a network's illness, and the code of wal-fetch for it; wal-push's is 200 less.
struct Ill {
    name: &'static str,
    fault: Fault,
    code: i32,
    /// What the message tells.
    text: &'static str,
    /// Whether it may pass, so that it is worth trying again.
    passing: bool,
}

fn lasting(name: &'static str, fault: Fault, code: i32, text: &'static str) -> Ill {
    let passing = false;
    Ill {
        name,
        fault,
        code,
        text,
        passing,
    }
}

fn passing(name: &'static str, fault: Fault, text: &'static str) -> Ill {
    let (code, passing) = (208, true);
    Ill {
        name,
        fault,
        code,
        text,
        passing,
    }
}

/// For three requests; what makes seawall wait for its own patience, for one.
fn for_a_while(fault: &Fault) -> u64 {
    match fault {
        Fault::Silence | Fault::SilenceAt(_) => 1,
        _ => 3,
    }
}

/// In place of an answer.
fn illnesses() -> Vec<Ill> {
    let away = |status| {
        let location = ("Location".to_string(), "http://elsewhere.invalid/".into());
        Fault::Status(status, vec![location], String::new())
    };
    let bare = |status| Fault::Status(status, Vec::new(), String::new());
    let s3 = Fault::s3_error;
    vec![
        lasting(
            "301",
            s3(301, "PermanentRedirect"),
            208,
            "SEAWALL_S3_REGION",
        ),
        lasting("301 by a gateway", away(301), 208, "SEAWALL_S3_ENDPOINT"),
        lasting("302 by a gateway", away(302), 208, "SEAWALL_S3_ENDPOINT"),
        lasting("400", s3(400, "InvalidRequest"), 208, "400"),
        lasting("expired", s3(400, "ExpiredToken"), 207, "session token"),
        lasting("403", s3(403, "AccessDenied"), 207, "s3:ListBucket"),
        lasting("403 by a gateway", Fault::html(403), 207, "403"),
        lasting("clock", s3(403, "RequestTimeTooSkewed"), 207, "clock"),
        lasting("no bucket", s3(404, "NoSuchBucket"), 208, "bucket"),
        lasting("404 alone", bare(404), 208, "does not come from S3"),
        lasting("404 by a gateway", Fault::html(404), 208, "come from S3"),
        lasting("200 by a gateway", Fault::html(200), 208, "gateway"),
        passing("429", bare(429), "429"),
        passing("500", s3(500, "InternalError"), "500 InternalError"),
        passing("502 by a gateway", Fault::html(502), "502"),
        passing("503", s3(503, "SlowDown"), "503 SlowDown"),
        passing("507", bare(507), "make room"),
        passing("reset", Fault::Reset, "failed before it answered"),
        passing("answer lost", Fault::LoseAck, "failed before it answered"),
        passing("silence", Fault::Silence, "SEAWALL_REQUEST_TIMEOUT"),
    ]
}

/// Within the body of a small answer, after so many bytes.
fn broken_bodies(at: u64) -> Vec<Ill> {
    vec![
        passing("reset before the body", Fault::DropBeforeBody, ""),
        passing("reset within the body", Fault::CutBodyAt(at), ""),
        passing("a short body", Fault::EndBodyAt(at), ""),
        passing("silence within the body", Fault::SilenceAt(at), ""),
    ]
}

/// Which requests fall ill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    All,
    Object,
    Put,
    Identity,
    List,
    Gaps,
}

impl Stage {
    fn rule(self, fault: Fault) -> Rule {
        let rule = Rule::new(fault);
        match self {
            Stage::All => rule,
            Stage::Object => rule.method("GET").path("/wal_005/"),
            Stage::Put => rule.method("PUT").path("/wal_005/"),
            Stage::Identity => rule.path("/seawall.json"),
            Stage::List => rule.query("list-type=2").query("wal_005"),
            Stage::Gaps => rule.query("list-type=2").query("gaps"),
        }
    }
}

/// A cluster's directory, and an archive of its first segments that must stay as it is.
struct Site {
    scratch: Scratch,
    data: PathBuf,
    bucket: Witness,
}

/// How patient a run is. A slow machine may take a second for a healthy answer, so silence is judged late where the
/// code tells it from other failures.
#[derive(Clone, Copy)]
enum Patience {
    /// One try.
    None,
    /// For what never passes: gives up soon.
    Short,
    /// For a silence that never passes: two tries.
    Silent,
    /// For what passes: longer than a slow machine needs.
    Long,
}

impl Ill {
    fn patience(&self) -> Patience {
        match self.fault {
            Fault::Silence | Fault::SilenceAt(_) => Patience::Silent,
            _ => Patience::Short,
        }
    }
}

impl Site {
    /// With the first three of the five segments in the archive, or none.
    fn new(filled: bool) -> Site {
        let scratch = Scratch::new();
        let data = Wal::shared().data_dir(&scratch, "data");
        scratch.binary();
        let bucket = Minio::plain().bucket("codes");
        let site = Site {
            scratch,
            data,
            bucket,
        };
        if filled {
            for file in &Wal::shared().segments[..3] {
                let push = site.push(&file.name, &site.env(&Minio::plain().endpoint()));
                push.run().ok();
            }
        }
        site
    }

    fn env(&self, endpoint: &str) -> Vec<(String, String)> {
        s3_env(endpoint, &self.bucket.name())
    }

    fn push(&self, name: &str, env: &[(String, String)]) -> Seawall {
        Seawall::new(&self.scratch)
            .cwd(&self.data)
            .envs(env.iter().cloned())
            .args(["wal-push", &format!("pg_wal/{name}")])
    }

    /// wal-fetch into a directory of its own; gives DEST too.
    fn fetch(&self, name: &str, env: &[(String, String)]) -> (Seawall, PathBuf) {
        let place = format!("fetch-{}", unique());
        self.scratch.dir(&place);
        let dest = self.scratch.file(format!("{place}/RECOVERYXLOG"), BEFORE);
        let command = Seawall::new(&self.scratch)
            .cwd(&self.data)
            .envs(env.iter().cloned())
            .args(["wal-fetch", name])
            .arg(&dest);
        (command, dest)
    }
}

fn patient(command: Seawall, patience: Patience) -> Seawall {
    let (retry, request) = match patience {
        Patience::None => ("0s", "3s"),
        Patience::Short => ("500ms", "5s"),
        Patience::Silent => ("1100ms", "1s"),
        Patience::Long => ("60s", "1s"),
    };
    command
        .env("SEAWALL_RETRY_TIMEOUT", retry)
        .env("SEAWALL_REQUEST_TIMEOUT", request)
        .deadline(Duration::from_secs(100))
}

/// What wal-fetch comes to.
enum Fetched<'a> {
    Delivered(&'a [u8]),
    Absent,
    Failed(i32, &'a str),
}

#[track_caller]
fn check_fetch(outcome: Outcome, dest: &Path, expected: &Fetched) {
    let outcome = outcome.without(&[SECRET_KEY]);
    let dir = fs::read_dir(dest.parent().expect("a directory")).expect("readable");
    assert_eq!(dir.count(), 1, "something beside DEST: {outcome:?}");
    let there = fs::read(dest).expect("DEST");
    match expected {
        Fetched::Delivered(bytes) => {
            outcome.ok();
            assert!(there == *bytes, "other bytes were delivered");
        }
        Fetched::Absent => {
            outcome.expect(1, &["is not in archive"]);
            assert!(there == BEFORE, "DEST was touched");
        }
        Fetched::Failed(code, text) => {
            check_message(outcome.expect(*code, &[text]));
            assert!(there == BEFORE, "DEST was touched");
        }
    }
}

/// A failure is told as PostgreSQL tells it, and says what more is known or what to do.
#[track_caller]
fn check_message(outcome: Outcome) {
    let text = &outcome.stderr;
    let told = text.contains("seawall: error: ");
    let more = text.contains("\ndetail: ") || text.contains("\nhint: ");
    assert!(told && more, "{outcome:?}");
}

/// A fault that passes was met more than once, one that does not pass only once.
#[track_caller]
fn check_tries(proxy: &Proxy, ill: &Ill) {
    let met = proxy
        .requests()
        .iter()
        .filter(|r| r.fault.is_some())
        .count();
    match ill.passing {
        true => assert!(met >= 2, "{met} tries"),
        // The first push to a prefix asks again after it has made a place for it.
        false => assert!(met <= 2, "{met} tries"),
    }
}

#[test]
fn fetch_from_an_ill_store_never_looks_like_the_end() {
    let site = Site::new(true);
    let before = site.bucket.list("");
    let wal = Wal::shared();
    let (hit, miss) = (wal.segments[0].name.as_str(), wal.next_name());
    let trials = [
        (hit, Stage::All),
        (hit, Stage::Object),
        (&miss, Stage::Object),
        (&miss, Stage::Identity),
        (&miss, Stage::List),
        (&miss, Stage::Gaps),
    ];
    let mut jobs: Jobs = Vec::new();
    for (name, stage) in trials {
        let bodies = match stage {
            Stage::All | Stage::Object | Stage::Put => Vec::new(),
            // An object is read on where it broke off, and would be whole in the end.
            Stage::Identity => broken_bodies(0),
            Stage::List | Stage::Gaps => broken_bodies(20),
        };
        for ill in illnesses().into_iter().chain(bodies) {
            let proxy = Proxy::start(Minio::plain().port());
            proxy.rule(stage.rule(ill.fault.clone()));
            let (command, dest) = site.fetch(name, &site.env(&proxy.endpoint()));
            let command = patient(command, ill.patience());
            let what = format!("{} at {stage:?} of {name}", ill.name);
            let job = move || {
                check_fetch(command.run(), &dest, &Fetched::Failed(ill.code, ill.text));
                check_tries(&proxy, &ill);
            };
            jobs.push((what, Box::new(job)));
        }
    }
    side_by_side(jobs);
    assert_eq!(site.bucket.list(""), before, "reading changes nothing");
}

#[test]
fn fetch_goes_on_when_the_store_recovers() {
    let site = Site::new(true);
    let wal = Wal::shared();
    let (hit, miss) = (&wal.segments[0], wal.next_name());
    let long_bodies = [
        ("reset before the body", Fault::DropBeforeBody),
        ("reset within the body", Fault::CutBodyAt(1000)),
        ("a short body", Fault::EndBodyAt(1000)),
        ("silence within the body", Fault::SilenceAt(1000)),
        (
            "a slow body",
            Fault::SlowBody(2000, Duration::from_millis(5)),
        ),
    ];
    let mut jobs: Jobs = Vec::new();
    let mut add =
        |name: &str, stage: Stage, what: &str, fault: Fault, expected: Fetched<'static>| {
            let proxy = Proxy::start(Minio::plain().port());
            let times = for_a_while(&fault);
            proxy.rule(stage.rule(fault).times(times));
            let (command, dest) = site.fetch(name, &site.env(&proxy.endpoint()));
            let command = patient(command, Patience::Long);
            let job = move || {
                check_fetch(command.run(), &dest, &expected);
                assert!(proxy.requests().iter().any(|r| r.fault.is_some()));
            };
            jobs.push((format!("{what} at {stage:?} of {name}"), Box::new(job)));
        };
    for ill in illnesses().into_iter().filter(|ill| ill.passing) {
        let delivered = Fetched::Delivered(&hit.bytes);
        add(&hit.name, Stage::Object, ill.name, ill.fault, delivered);
    }
    for (what, fault) in long_bodies {
        let delivered = Fetched::Delivered(&hit.bytes);
        add(&hit.name, Stage::Object, what, fault, delivered);
    }
    for stage in [Stage::Object, Stage::Identity, Stage::List, Stage::Gaps] {
        let broken = broken_bodies(20);
        let all = illnesses().into_iter().chain(broken);
        for ill in all.filter(|ill| ill.passing) {
            add(&miss, stage, ill.name, ill.fault, Fetched::Absent);
        }
    }
    side_by_side(jobs);
}

#[test]
fn fetch_delivers_no_damaged_body() {
    let site = Site::new(true);
    let wal = Wal::shared();
    let hit = &wal.segments[0];
    let key = format!("archive/wal_005/{}.zst", hit.name);
    let size = site.bucket.get(&key).expect("archived").len() as u64;
    let mut jobs: Jobs = Vec::new();
    // Where a bit means nothing to the decoder the same bytes come out, so not just anywhere.
    for at in [0, 100, size / 2, size - 1] {
        let proxy = Proxy::start(Minio::plain().port());
        proxy.rule(Stage::Object.rule(Fault::FlipBitAt(at)));
        let (command, dest) = site.fetch(&hit.name, &site.env(&proxy.endpoint()));
        let job = move || {
            let _proxy = &proxy;
            check_fetch(command.run(), &dest, &Fetched::Failed(206, "wal_005/"));
        };
        jobs.push((format!("a bit turned in byte {at}"), Box::new(job)));
    }
    side_by_side(jobs);
}

/// What is wrong, the environment that leads there, wal-fetch's code, what the message tells.
type Unreached = (&'static str, Vec<(String, String)>, i32, &'static str);

/// Illnesses that no proxy need play: nobody there, a name that does not exist, an authority that nobody trusts, keys
/// that are wrong, a bucket that is not there.
fn real_illnesses(site: &Site) -> Vec<Unreached> {
    let plain = Minio::plain().endpoint();
    let with = |name: &str, value: &str| {
        let mut env = site.env(&plain);
        env.retain(|(n, _)| n != name);
        env.push((name.to_string(), value.to_string()));
        env
    };
    let closed = {
        let proxy = Proxy::start(1);
        proxy.refuse();
        proxy.endpoint()
    };
    let tls = Minio::tls();
    vec![
        ("refused", site.env(&closed), 208, "could not reach"),
        (
            "a name that does not exist",
            site.env("http://seawall-test.invalid:9000"),
            208,
            "could not reach http://seawall-test.invalid:9000",
        ),
        (
            "an authority that nobody trusts",
            site.env(&tls.endpoint()),
            208,
            "SEAWALL_S3_CA_FILE",
        ),
        (
            "TLS on a port without",
            site.env(&plain.replace("http:", "https:")),
            208,
            "does not speak TLS",
        ),
        (
            "no TLS on a port with",
            site.env(&tls.endpoint().replace("https:", "http:")),
            208,
            "SEAWALL_S3_ENDPOINT",
        ),
        (
            "a wrong secret",
            with("AWS_SECRET_ACCESS_KEY", "wrong"),
            207,
            "SignatureDoesNotMatch",
        ),
        (
            "an unknown key",
            with("AWS_ACCESS_KEY_ID", "unknown"),
            207,
            "InvalidAccessKeyId",
        ),
        (
            "an invalid token",
            with("AWS_SESSION_TOKEN", "invalid"),
            207,
            "token",
        ),
        (
            "a bucket that is not there",
            with("SEAWALL_PREFIX", "s3://no-such-bucket-here/archive"),
            208,
            "NoSuchBucket",
        ),
    ]
}

#[test]
fn a_store_that_is_not_reached_at_all() {
    let filled = Site::new(true);
    let empty = Site::new(false);
    let wal = Wal::shared();
    let mut jobs: Jobs = Vec::new();
    for (what, env, code, text) in real_illnesses(&filled) {
        for name in [wal.segments[0].name.clone(), wal.next_name()] {
            let (command, dest) = filled.fetch(&name, &env);
            let command = patient(command, Patience::Short);
            let job = move || check_fetch(command.run(), &dest, &Fetched::Failed(code, text));
            jobs.push((format!("wal-fetch, {what}"), Box::new(job)));
        }
    }
    for (what, env, code, text) in real_illnesses(&empty) {
        let command = patient(empty.push(&wal.segments[0].name, &env), Patience::Short);
        let job = move || {
            let outcome = command.run().without(&[SECRET_KEY]);
            check_message(outcome.expect(code - 200, &[text]));
        };
        jobs.push((format!("wal-push, {what}"), Box::new(job)));
    }
    side_by_side(jobs);
    assert!(empty.bucket.list("").is_empty(), "nothing was stored");
}

/// Where a push goes: a prefix of its own, so that no two meet.
struct Target {
    proxy: Proxy,
    witness: Witness,
    key: String,
}

impl Target {
    /// The command that pushes the first segment there, through a proxy with this rule.
    fn new(site: &Site, rule: Rule, patience: Patience) -> (Seawall, Target) {
        let name = &Wal::shared().segments[0].name;
        let proxy = Proxy::start(Minio::plain().port());
        proxy.rule(rule);
        let prefix = format!("archive-{}", unique());
        let mut env = site.env(&proxy.endpoint());
        env[0].1 = format!("s3://{}/{prefix}", site.bucket.name());
        let command = patient(site.push(name, &env), patience);
        let target = Target {
            proxy,
            witness: site.bucket.clone(),
            key: format!("{prefix}/wal_005/{name}.zst"),
        };
        (command, target)
    }

    #[track_caller]
    fn has_nothing(&self) {
        assert_eq!(self.witness.get(&self.key), None, "an object was stored");
    }

    /// The object is whole, says zstd(1).
    #[track_caller]
    fn has_the_segment(&self) {
        let packed = self.witness.get(&self.key).expect("the object");
        assert!(unzstd(&packed) == Wal::shared().segments[0].bytes);
    }
}

#[test]
fn push_to_an_ill_store_fails_and_stores_nothing() {
    let site = Site::new(false);
    let mut jobs: Jobs = Vec::new();
    for stage in [Stage::All, Stage::Identity, Stage::List, Stage::Put] {
        let mut ills = illnesses();
        if stage == Stage::Put {
            // These two have stories of their own below: what is stored, and what looks stored.
            ills.retain(|ill| !matches!(ill.fault, Fault::LoseAck | Fault::Status(200, ..)));
            let cut = Fault::CutRequestAt(1000);
            ills.push(passing("cut within the request", cut, "before it answered"));
        }
        for ill in ills {
            let rule = stage.rule(ill.fault.clone());
            let (command, target) = Target::new(&site, rule, ill.patience());
            let what = format!("{} at {stage:?}", ill.name);
            let job = move || {
                let outcome = command.run().without(&[SECRET_KEY]);
                check_message(outcome.expect(ill.code - 200, &[ill.text]));
                check_tries(&target.proxy, &ill);
                target.has_nothing();
            };
            jobs.push((what, Box::new(job)));
        }
    }
    side_by_side(jobs);
}

#[test]
fn push_goes_on_when_the_store_recovers() {
    let site = Site::new(false);
    let mut jobs: Jobs = Vec::new();
    for stage in [Stage::All, Stage::Identity, Stage::List, Stage::Put] {
        let mut faults: Vec<(&str, Fault)> = (illnesses().into_iter())
            .filter(|ill| ill.passing)
            .map(|ill| (ill.name, ill.fault))
            .collect();
        if stage == Stage::Put {
            faults.push(("cut within the request", Fault::CutRequestAt(1000)));
            let conflict = Fault::s3_error(409, "ConditionalRequestConflict");
            faults.push(("409", conflict));
        } else {
            faults.extend(
                broken_bodies(20)
                    .into_iter()
                    .map(|ill| (ill.name, ill.fault)),
            );
        }
        for (what, fault) in faults {
            let times = for_a_while(&fault);
            let rule = stage.rule(fault).times(times);
            let (command, target) = Target::new(&site, rule, Patience::Long);
            let job = move || {
                command.run().ok();
                target.has_the_segment();
            };
            jobs.push((format!("{what} at {stage:?}"), Box::new(job)));
        }
    }
    side_by_side(jobs);
}

/// A PUT that is answered with 200 and stores nothing, by a cache or by a page: only the look at the object tells.
#[test]
fn push_believes_no_acknowledgement() {
    let site = Site::new(false);
    for fault in [
        Fault::Swallow,
        Fault::html(200),
        Fault::Status(204, vec![], String::new()),
    ] {
        for (stage, is_segment) in [(Stage::Put, true), (Stage::Identity, false)] {
            let rule = stage.rule(fault.clone()).method("PUT");
            let (command, target) = Target::new(&site, rule, Patience::Short);
            let text = match is_segment {
                true => "could not archive",
                false => "could not initialise archive s3://",
            };
            let outcome = command
                .run()
                .expect(8, &[text, "acknowledged s3://", "does not have it"]);
            check_message(outcome);
            target.has_nothing();
        }
    }
}

/// The look at the object after its PUT: what goes wrong with it is a failure, though the object is there.
#[test]
fn push_is_not_done_before_the_object_was_seen() {
    let site = Site::new(false);
    let look = |fault| Rule::new(fault).method("HEAD").path("/wal_005/");
    let mut jobs: Jobs = Vec::new();
    for ill in illnesses().into_iter().filter(|ill| ill.passing) {
        let (command, target) = Target::new(&site, look(ill.fault.clone()), Patience::None);
        let again = command.clone();
        let what = format!("{} at HEAD", ill.name);
        let job = move || {
            check_message(command.run().expect(ill.code - 200, &[]));
            // And when the store is well again, the same bytes are success.
            target.proxy.clear();
            again.run().expect(0, &["archived already"]);
            target.has_the_segment();
        };
        jobs.push((what, Box::new(job)));
    }
    side_by_side(jobs);
}

/// The object is stored and its acknowledgement lost, for ever or three times: the bytes decide.
#[test]
fn push_whose_acknowledgement_is_lost() {
    let site = Site::new(false);
    let lost = || Stage::Put.rule(Fault::LoseAck);
    let (command, target) = Target::new(&site, lost().times(3), Patience::Long);
    command.run().ok();
    target.has_the_segment();

    let (command, target) = Target::new(&site, lost(), Patience::Short);
    let again = command.clone();
    check_message(command.run().expect(8, &["Gave up after"]));
    target.has_the_segment();
    target.proxy.clear();
    again.run().expect(0, &["archived already"]);
}

/// Whatever the store's state, what exists stays as it is, and other bytes are never success.
#[test]
fn push_overwrites_nothing_on_an_ill_store() {
    let site = Site::new(false);
    let other = b"not even WAL";
    let mut jobs: Jobs = Vec::new();
    for stage in [Stage::All, Stage::Identity, Stage::List, Stage::Put] {
        let mut faults: Vec<(&str, Fault)> = illnesses()
            .into_iter()
            .map(|ill| (ill.name, ill.fault))
            .collect();
        faults.push(("swallowed", Fault::Swallow));
        for (what, fault) in faults {
            let (command, target) = Target::new(&site, stage.rule(fault), Patience::None);
            let what = format!("{what} at {stage:?}");
            let job = move || {
                target.witness.put(&target.key, other);
                let outcome = command.run();
                let code = outcome.code.expect("an exit code");
                assert!((1..=125).contains(&code), "{outcome:?}");
                let there = target.witness.get(&target.key);
                assert_eq!(there.as_deref(), Some(&other[..]), "{outcome:?}");
            };
            jobs.push((what, Box::new(job)));
        }
    }
    side_by_side(jobs);
}

/// A listing that shows nothing, as of a cache that is behind, is not believed alone: the PUT carries the condition.
#[test]
fn push_overwrites_nothing_that_no_listing_shows() {
    let site = Site::new(false);
    let empty = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    let blind = || Fault::Status(200, Vec::new(), empty.to_string());
    let other = zstd(&Wal::shared().segments[0].with_other_bytes().bytes);
    let (command, target) = Target::new(&site, Stage::List.rule(blind()), Patience::Long);
    target.witness.put(&target.key, &other);
    let again = command.clone();
    check_message(
        command
            .run()
            .expect(5, &["archived already with other bytes"]),
    );
    assert_eq!(target.witness.get(&target.key), Some(other));
    // The same bytes are success in this way too.
    let same = zstd(&Wal::shared().segments[0].bytes);
    target.witness.put(&target.key, &same);
    again.run().expect(0, &["archived already"]);
    assert_eq!(target.witness.get(&target.key), Some(same));
}

/// A hit costs one request, so it neither needs nor asks what is denied; an absence needs the permission to list.
#[test]
fn fetch_needs_the_listing_for_absence_alone() {
    let site = Site::new(true);
    let wal = Wal::shared();
    let proxy = Proxy::start(Minio::plain().port());
    proxy.rule(Stage::List.rule(Fault::s3_error(403, "AccessDenied")));
    let (command, dest) = site.fetch(&wal.segments[1].name, &site.env(&proxy.endpoint()));
    let delivered = Fetched::Delivered(&wal.segments[1].bytes);
    check_fetch(command.run(), &dest, &delivered);
    let requests = proxy.take_requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].method, "GET");

    let (command, dest) = site.fetch(&wal.next_name(), &site.env(&proxy.endpoint()));
    let denied = Fetched::Failed(207, "without s3:ListBucket a key that is not there");
    check_fetch(command.run(), &dest, &denied);
    proxy.clear();
    proxy.take_requests();

    let (command, dest) = site.fetch(&wal.next_name(), &site.env(&proxy.endpoint()));
    check_fetch(command.run(), &dest, &Fetched::Absent);
    let requests = proxy.take_requests();
    assert!(requests.len() <= 4, "{requests:?}");
}

/// A directory as the archive, and what becomes of it.
struct Ruin {
    what: &'static str,
    /// Bends the archive, given its path.
    bend: fn(&Path),
    /// Codes of wal-fetch for a segment that is there and for the one after the last, and of wal-push for a new one.
    codes: [i32; 3],
    text: &'static str,
}

fn ruins() -> Vec<Ruin> {
    fn object(archive: &Path) -> PathBuf {
        archive.join(format!("wal_005/{}.zst", Wal::shared().segments[0].name))
    }
    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    fn away(path: &Path) {
        fs::rename(path, path.with_extension("away")).expect("rename");
    }
    fn replace(path: &Path, with: &str) {
        fs::write(path, with).expect("a file");
        give_to_postgres(path, 0o600);
    }
    fn nowhere(path: &Path) {
        away(path);
        std::os::unix::fs::symlink(path.with_extension("nowhere"), path).expect("a link");
    }
    let ruin = |what, codes, text, bend| Ruin {
        what,
        bend,
        codes,
        text,
    };
    vec![
        ruin("nothing", [0, 1, 0], "", |_| {}),
        ruin("missing", [208, 208, 8], "does not exist", away),
        ruin("empty: not mounted", [208, 208, 8], "mounted", |a| {
            away(a);
            fs::create_dir(a).expect("a directory");
            give_to_postgres(a, 0o700);
        }),
        ruin("a file", [208, 208, 8], "is not a directory", |a| {
            away(a);
            replace(a, "");
        }),
        ruin(
            "a link to nowhere",
            [208, 208, 8],
            "does not exist",
            nowhere,
        ),
        ruin("closed", [207, 207, 7], "the right to read", |a| mode(a, 0)),
        ruin("read only", [0, 1, 7], "the right to read and write", |a| {
            mode(&a.join("wal_005"), 0o500)
        }),
        ruin(
            "WAL is a link to nowhere",
            [208, 208, 8],
            "leads nowhere",
            |a| nowhere(&a.join("wal_005")),
        ),
        ruin("without its identity", [0, 208, 8], "seawall.json", |a| {
            away(&a.join("seawall.json"))
        }),
        ruin(
            "with a damaged identity",
            [0, 206, 6],
            "seawall.json",
            |a| replace(&a.join("seawall.json"), "{\"format\": 1,"),
        ),
        ruin("of a newer format", [0, 208, 8], "newer seawall", |a| {
            let path = a.join("seawall.json");
            let text = fs::read_to_string(&path).expect("the identity");
            let newer = text.replace("\"format\": 1", "\"format\": 2");
            replace(&path, &newer);
        }),
        ruin("of another cluster", [0, 205, 5], "another cluster", |a| {
            let path = a.join("seawall.json");
            let text = fs::read_to_string(&path).expect("the identity");
            let own = Wal::shared().system_id;
            let other = text.replace(&own.to_string(), &(own + 1).to_string());
            assert_ne!(text, other);
            replace(&path, &other);
        }),
        ruin("an object is closed", [207, 1, 0], "right to read", |a| {
            mode(&object(a), 0)
        }),
        ruin(
            "an object is a directory",
            [203, 1, 0],
            "regular file",
            |a| {
                let path = object(a);
                away(&path);
                fs::create_dir(path).expect("a directory");
            },
        ),
        ruin(
            "an object is a link to nowhere",
            [208, 208, 0],
            "leads nowhere",
            |a| nowhere(&object(a)),
        ),
    ]
}

#[test]
fn an_archive_in_a_directory_that_is_not_as_it_should_be() {
    let scratch = Scratch::new();
    let wal = Wal::shared();
    let data = wal.data_dir(&scratch, "data");
    for Ruin {
        what,
        bend,
        codes,
        text,
    } in ruins()
    {
        let place = format!("place-{}", unique());
        scratch.dir(&place);
        let archive = scratch.join(format!("{place}/archive"));
        let run = |words: &[&str], dest: Option<&Path>| {
            let command = Seawall::new(&scratch)
                .cwd(&data)
                .env("SEAWALL_PREFIX", format!("file://{}", archive.display()))
                .env("SEAWALL_RETRY_TIMEOUT", "300ms")
                .args(words);
            match dest {
                Some(dest) => command.arg(dest).run(),
                None => command.run(),
            }
        };
        for file in &wal.segments[..2] {
            run(&["wal-push", &format!("pg_wal/{}", file.name)], None).ok();
        }
        bend(&archive);

        let beyond = wal.segments[2].name.as_str();
        for (name, code) in [
            (wal.segments[0].name.as_str(), codes[0]),
            (beyond, codes[1]),
        ] {
            let here = format!("{place}/{name}");
            scratch.dir(&here);
            let dest = scratch.file(format!("{here}/RECOVERYXLOG"), BEFORE);
            let expected = match code {
                0 => Fetched::Delivered(&wal.segments[0].bytes),
                1 => Fetched::Absent,
                code => Fetched::Failed(code, text),
            };
            println!("{what}: wal-fetch {name}");
            check_fetch(run(&["wal-fetch", name], Some(&dest)), &dest, &expected);
        }
        println!("{what}: wal-push");
        let outcome = run(&["wal-push", &format!("pg_wal/{beyond}")], None);
        match codes[2] {
            0 => drop(outcome.ok()),
            code => check_message(outcome.expect(code, &[text])),
        }
        no_leftovers(&scratch.join(&place));
    }
}

/// No temporary file lies anywhere below.
fn no_leftovers(path: &Path) {
    let found = run(Command::new("find")
        .arg(path)
        .args(["-name", "*.seawall-tmp"]));
    assert_eq!(found, "");
}
