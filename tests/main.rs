//! The tests that need more than one room, in one program: floors and doors, then end to end on real servers.
//!
//! `scripts/test` installs what they need and runs them; `cargo test` alone does too once that has happened and
//! `cargo build --release` has made the binary. The end-to-end tests drive that binary, never the library.

// Tests report to people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;
mod support_smoke;
mod tidy;
