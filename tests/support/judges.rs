//! Verdicts on restored directories and servers that share no code with seawall: PostgreSQL's own tools where they
//! understand the server's version, and scripts/verify-manifest everywhere.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::cluster::{Cluster, pg_tool};
use super::run;

/// The version of the client programs; pg_waldump reads the WAL of its own version alone.
const TOOLS_MAJOR: u32 = 15;

/// The newest version whose manifest the pg_verifybackup of version 15 reads.
const VERIFYBACKUP_MAJOR_MAX: u32 = 16;

fn major_of(data: &Path) -> u32 {
    let version = fs::read_to_string(data.join("PG_VERSION")).expect("PG_VERSION");
    version.trim().parse().expect("a major version")
}

/// scripts/verify-manifest for a directory.
pub fn verify_manifest(data: &Path) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("scripts/verify-manifest"));
    command.arg(data);
    command
}

/// What scripts/verify-manifest finds, a line each; empty when everything fits.
pub fn manifest_findings(data: &Path) -> String {
    let out = verify_manifest(data).output().expect("python3");
    let found = String::from_utf8_lossy(&out.stderr).into_owned();
    let code = i32::from(!found.is_empty());
    assert_eq!(out.status.code(), Some(code), "{found}");
    found
}

/// What pg_verifybackup finds, where it reads this version's manifest.
pub fn verifybackup_findings(data: &Path) -> Option<String> {
    if major_of(data) > VERIFYBACKUP_MAJOR_MAX {
        return None;
    }
    let mut command = pg_tool("pg_verifybackup");
    let out = command.arg("--no-parse-wal").arg(data).output();
    let out = out.expect("pg_verifybackup");
    let found = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.success(), found.is_empty(), "{found}");
    Some(found)
}

/// A restored directory that was not started yet is what its manifest says: pg_verifybackup decides if it can, our
/// script where it cannot. That they agree is a test of its own.
#[track_caller]
pub fn assert_verified(data: &Path) {
    let found = verifybackup_findings(data).unwrap_or_else(|| manifest_findings(data));
    assert_eq!(found, "");
}

/// The WAL that the manifest names is in this directory and can be read, where pg_waldump knows this version.
pub fn assert_wal_verified(data: &Path, wal: &Path) {
    if major_of(data) == TOOLS_MAJOR {
        let mut command = pg_tool("pg_verifybackup");
        run(command.arg("--wal-directory").arg(wal).arg(data));
    }
}

/// Heap and indexes of all databases are sound. Before version 14 amcheck looks at indexes alone, and pg_amcheck,
/// which needs it to look at heaps, cannot be used.
pub fn assert_sound(cluster: &Cluster) {
    if cluster.major() >= 14 {
        run(cluster.tool("pg_amcheck").args([
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--rootdescend",
        ]));
        return;
    }
    let mut client = cluster.client();
    let databases = client.query("select datname from pg_database where datallowconn", &[]);
    for row in databases.expect("the databases") {
        let name: String = row.get(0);
        let checked = cluster.client_to(&name).batch_execute(
            "create extension if not exists amcheck;
             select bt_index_parent_check(i.indexrelid, true, true) from pg_index i
             join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
             where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid",
        );
        checked.unwrap_or_else(|e| panic!("amcheck of {name:?}: {e:?}"));
    }
}
