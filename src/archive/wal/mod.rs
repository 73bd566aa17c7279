//! WAL in the archive: `put` takes only what is what its name says and never replaces anything (P2); `get`
//! delivers only the file that was asked for, and calls it absent only when that is proven (P3).

mod check;
mod extent;
mod forks;
mod get;
mod held;
mod pack;
mod put;

pub use check::{Expect, Inspector};
pub use extent::{Extent, Found};
pub use get::{Fetched, HolePolicy};
pub use put::Put;
