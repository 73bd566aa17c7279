//! The tests that need more than one room, in one program: floors and doors, then end to end on real servers.
//!
//! `scripts/test` installs what they need and runs them; `cargo test` alone does too once that has happened and
//! `cargo build --release` has made the binary. The end-to-end tests drive that binary, never the library.
//!
//! Tests whose names contain `matrix_` depend on the server's version: `scripts/matrix` runs them on all. A series asks
//! `support::rounds` for its count; tests that need gigabytes or minutes are ignored and run by `scripts/long`.

// Tests report to people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod ahead;
mod backup_fetch;
mod backup_list;
mod backup_push;
mod cli;
mod crash;
mod exit_codes;
mod kill;
mod last_wal;
mod manpages;
mod recovery;
mod regression;
mod replication;
mod round_trip;
mod s3;
mod support;
mod support_smoke;
mod tidy;
mod versions;
mod wal_fetch;
mod wal_push;
mod wal_receive;
mod wire;
