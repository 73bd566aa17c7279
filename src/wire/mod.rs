//! The one door to PostgreSQL: a small blocking client for ordinary SQL and the replication commands.
//!
//! It is our own because the usual crates know neither `sslmode=verify-full`, nor the copy modes of replication,
//! and bring an asynchronous runtime. Message bodies come from `postgres-protocol`, TLS from rustls with ring.
//!
//! 1. Nothing waits for ever: every wait on a socket ends by a deadline or by `Stop`, whichever comes first.
//! 2. A connection on which a statement did not end in order is broken and says so; it is never reused.
//! 3. What the server says (SQLSTATE, detail, hint) reaches the operator; no password ever does.

pub mod base_backup;
mod codec;
pub mod command;
mod conn;
mod connect;
mod der;
mod login;
pub mod notice;
pub mod replication;
pub mod session;
mod slot;
pub mod sql;
mod stream;
mod tls;
mod verify;

pub use command::Identity;
pub use conn::Conn;
pub use connect::ConnectOptions;
pub use notice::Notice;
pub use replication::{Arrival, Replication, StatusSender, WalStream};
pub use slot::{SlotInfo, SlotState};
pub use sql::Rows;

#[cfg(test)]
mod script;
