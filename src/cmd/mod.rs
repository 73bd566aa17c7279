//! cmd/mod
