//! tar: ustar headers (POSIX.1-1988), PAX records for names that do not fit, base-256 sizes from 8 GiB on (GNU).
//! What is written, tar(1) reads; read are these and GNU's long names too.

mod header;
mod parse;
mod reader;
mod splitter;

pub use header::{END, EntryKind, Header, padding};
pub use reader::Reader;
pub use splitter::{Event, Splitter};

/// Everything in a tar archive is counted in blocks of this size.
pub const BLOCK_BYTES: usize = 512;

#[cfg(test)]
mod tests;
