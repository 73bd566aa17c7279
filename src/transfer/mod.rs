//! WAL on its way between archive, a receiver's directory and the server that asks for it, or that has more of it.

mod ahead;
mod branches;
mod last;
mod ledger;
mod spool_dir;

pub use ahead::Ahead;
pub use ledger::Ledger;

pub use last::{Delivery, Padded, Sources, get_wal};
