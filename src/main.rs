//! The binary: its exit code is what the library says.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(seawall::cli::main())
}
