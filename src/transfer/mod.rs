//! WAL on its way between archive, a receiver's directory and the server that asks for it.

mod branches;
mod last;
mod spool_dir;

pub use last::{Delivery, Padded, Sources, get_wal};
