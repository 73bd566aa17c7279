//! Free TCP ports that no other test gets, in this process or in another one.
//!
//! A port found with `bind(:0)` lies in the range that outgoing connections take theirs from, so it may be gone when
//! the server binds it. These lie below that range, and each is held by an abstract Unix socket of its number, which
//! the kernel frees when the process ends.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static HELD: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port on 127.0.0.1 that is free now and stays ours until the process ends.
pub fn free_port() -> u16 {
    let start = std::process::id() as u16 % COUNT;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        let Ok(name) = SocketAddr::from_abstract_name(format!("seawall-test-port-{port}")) else {
            continue;
        };
        let Ok(hold) = UnixListener::bind_addr(&name) else {
            continue; // another test's
        };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            // A child that another thread forks right now has a copy until it executes its program: closing ours
            // alone would leave the port taken for a while.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            HELD.lock().expect("no test panics in here").push(hold);
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
