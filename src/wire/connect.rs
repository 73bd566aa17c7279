//! How a session comes about: hosts in order, each address of a host, TLS or not, login, and whether the server that
//! answered is of the wanted sort. The order of attempts and what ends it are libpq's (`fe-connect.c`, by behaviour):
//! a server that cannot be reached passes the turn to the next, one that refuses us ends the search.

use super::codec;
use super::conn::{self, Conn};
use super::login::{Binding, Credentials, Login, Step};
use super::notice::Notice;
use super::stream::{Address, Fault, Stream, TcpOptions, Wait};
use super::tls::{self, TlsSettings};
use super::{der, sql};
use crate::error::{Error, Kind, Result};
use crate::limits::CONNECT_TIMEOUT;
use crate::pg::conninfo::{ChannelBinding, ConnInfo, Host, HostPort, SslMode, TargetSessionAttrs};
use crate::work::stop::Stop;
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the caller wants of a session, beside the connection string.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// A session for replication commands; ordinary SQL is refused there.
    pub replication: bool,
    /// The name shown in `pg_stat_activity` if the connection string has none.
    pub application_name: String,
    /// How long one statement may take; without limit if absent.
    pub statement_timeout: Option<Duration>,
}

/// The way to one server: enough to connect again, for a cancel request.
pub(super) struct Route {
    /// Where it is, for messages.
    pub place: String,
    address: Address,
    tcp: TcpOptions,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
}

impl Route {
    /// The way to no server, for sessions that tests make.
    #[cfg(test)]
    pub fn nowhere() -> Route {
        Route {
            place: "nowhere".to_string(),
            address: Address::Unix(std::path::PathBuf::from("/nonexistent")),
            tcp: TcpOptions::default(),
            tls: None,
        }
    }

    /// Connects, and starts TLS if asked; the server must then agree.
    pub fn open(&self, encrypted: bool, wait: &Wait) -> std::result::Result<Stream, Fault> {
        let mut stream = Stream::dial(&self.address, &self.tcp, wait)?;
        if encrypted && !self.start_tls(&mut stream, wait)? {
            return Err(Fault::Tls(no_tls()));
        }
        Ok(stream)
    }

    /// Asks for TLS; false if the server has none.
    fn start_tls(&self, stream: &mut Stream, wait: &Wait) -> std::result::Result<bool, Fault> {
        let Some((config, name)) = &self.tls else {
            return Ok(false);
        };
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.send(&request, wait)?;
        match stream.read_one(wait)? {
            b'S' => {
                stream.start_tls(config.clone(), name.clone(), wait)?;
                Ok(true)
            }
            b'N' => Ok(false),
            // The text that follows is not protected, so nobody should read it (CVE-2024-10977).
            b'E' => Err(Fault::Lost(Error::new(
                Kind::Transient,
                "the server answered the request for TLS with an error",
            ))),
            other => Err(Fault::Lost(codec::unexpected(other, "the request for TLS"))),
        }
    }
}

/// One way to try a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// Without TLS.
    Plain,
    /// With TLS if the server has it.
    Offered,
    /// With TLS or not at all.
    Encrypted,
}

/// Why an attempt failed; decides whether the other one is made.
enum Failure {
    /// The server answered the login with an error.
    Rejected(Error),
    /// TLS could not be established.
    Tls(Error),
    /// Everything else.
    Other(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Failure::Rejected(error) | Failure::Tls(error) | Failure::Other(error) => error,
        }
    }
}

/// Connects; see `Conn::connect`.
pub(super) fn connect(info: &ConnInfo, options: &ConnectOptions, stop: &Stop) -> Result<Conn> {
    for warning in &info.warnings {
        log::warn!("{warning}");
    }
    let search = Search {
        info,
        options,
        stop,
    };
    let wanted = info.target_session_attrs;
    if wanted != TargetSessionAttrs::PreferStandby {
        return search.over_hosts(wanted);
    }
    match search.over_hosts(TargetSessionAttrs::Standby) {
        Err(error) if error.kind() == Kind::Transient => search.over_hosts(TargetSessionAttrs::Any),
        outcome => outcome,
    }
}

struct Search<'a> {
    info: &'a ConnInfo,
    options: &'a ConnectOptions,
    stop: &'a Stop,
}

impl Search<'_> {
    /// The first server that lets us in and is of the wanted sort.
    fn over_hosts(&self, wanted: TargetSessionAttrs) -> Result<Conn> {
        let mut last: Option<Error> = None;
        for host in &self.info.hosts {
            match self.one_host(host, wanted) {
                Ok(conn) => return Ok(conn),
                Err(error) if error.kind() == Kind::Transient => {
                    if let Some(earlier) = last.replace(error) {
                        log::warn!("{}", earlier.one_line());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Config, "no host of PostgreSQL is given")))
    }

    /// Each address of a host.
    fn one_host(&self, host: &HostPort, wanted: TargetSessionAttrs) -> Result<Conn> {
        let place = host.to_string();
        let named =
            |error: Error| error.context(format!("could not connect to PostgreSQL at {place}"));
        let mut last = None;
        for address in addresses(host).map_err(named)? {
            self.stop.check()?;
            let outcome = self
                .one_address(host, address, &place)
                .and_then(|mut conn| self.is_wanted(&mut conn, wanted).map(|()| conn));
            match outcome {
                Ok(conn) => return Ok(conn),
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) if error.kind() == Kind::Transient => last = Some(error),
                Err(error) => return Err(named(error)),
            }
        }
        Err(named(last.unwrap_or_else(|| {
            Error::new(Kind::Transient, "the host name has no address")
        })))
    }

    /// The attempts that sslmode asks for, on one address.
    fn one_address(&self, host: &HostPort, address: Address, place: &str) -> Result<Conn> {
        let mode = match address {
            // libpq ignores sslmode there: nobody is between.
            Address::Unix(_) => SslMode::Disable,
            Address::Tcp(_) => self.info.ssl_mode,
        };
        let (first, second) = attempts(mode);
        let failure = match self.attempt(host, &address, place, mode, first) {
            Ok(conn) => return Ok(conn),
            Err(failure) => failure,
        };
        let again = match (first, &failure) {
            (_, Failure::Rejected(error)) => error.kind() != Kind::Transient,
            (Attempt::Offered, Failure::Tls(_)) => true,
            _ => false,
        };
        let Some(second) = second.filter(|_| again) else {
            return Err(failure.into_error());
        };
        let first_error = failure.into_error();
        log::debug!(
            "trying again with sslmode={mode}: {}",
            first_error.one_line()
        );
        self.attempt(host, &address, place, mode, second)
            .map_err(|failure| {
                let later = failure.into_error();
                match later.kind() {
                    Kind::Interrupted => later,
                    _ => both(first_error, &later, second),
                }
            })
    }

    /// One connection and its login.
    fn attempt(
        &self,
        host: &HostPort,
        address: &Address,
        place: &str,
        mode: SslMode,
        attempt: Attempt,
    ) -> std::result::Result<Conn, Failure> {
        let wait = Wait {
            stop: self.stop.clone(),
            deadline: Some(Instant::now() + self.info.connect_timeout.unwrap_or(CONNECT_TIMEOUT)),
        };
        let route = self
            .route(host, address, place, mode, attempt)
            .map_err(Failure::Other)?;
        let failed = |fault| self.failed(fault);
        let mut stream = Stream::dial(address, &route.tcp, &wait).map_err(failed)?;
        if attempt != Attempt::Plain {
            let encrypted = route.start_tls(&mut stream, &wait).map_err(failed)?;
            if !encrypted && attempt == Attempt::Encrypted {
                return Err(Failure::Other(no_tls()));
            }
        }
        let mut conn = Conn::new(stream, route, wait);
        self.log_in(&mut conn, host)?;
        if !self.options.replication {
            sql::prepare_session(&mut conn).map_err(Failure::Other)?;
        }
        Ok(conn)
    }

    fn route(
        &self,
        host: &HostPort,
        address: &Address,
        place: &str,
        mode: SslMode,
        attempt: Attempt,
    ) -> Result<Route> {
        let info = self.info;
        let tls = match attempt {
            Attempt::Plain => None,
            _ => {
                let config = tls::client_config(&TlsSettings {
                    mode,
                    root: info.ssl_root_cert.as_ref(),
                    certificate: info.ssl_cert.as_deref(),
                    key: info.ssl_key.as_deref(),
                })?;
                Some((config, tls::server_name(&host_name(host), mode)?))
            }
        };
        Ok(Route {
            place: place.to_string(),
            address: address.clone(),
            tcp: TcpOptions {
                keepalives: info.keepalives,
                idle: info.keepalives_idle,
                interval: info.keepalives_interval,
                count: info.keepalives_count,
                user_timeout: info.tcp_user_timeout,
            },
            tls,
        })
    }

    fn failed(&self, fault: Fault) -> Failure {
        match fault {
            Fault::Stopped => Failure::Other(conn::stopped(self.stop)),
            Fault::TimedOut => Failure::Other(Error::new(
                Kind::Transient,
                "the server did not answer within the connect timeout",
            )),
            Fault::Tls(error) => Failure::Tls(error),
            Fault::Lost(error) => Failure::Other(error),
        }
    }

    /// The dialogue from the startup packet to the first ReadyForQuery.
    fn log_in(&self, conn: &mut Conn, host: &HostPort) -> std::result::Result<(), Failure> {
        let mut out = BytesMut::new();
        let startup = frontend::startup_message(self.startup_parameters(), &mut out);
        startup.map_err(|e| {
            let error = Error::new(Kind::Config, "the connection string holds a zero byte");
            Failure::Other(error.because(e))
        })?;
        conn.send(&out).map_err(Failure::Other)?;
        let mut login = Login::new(Credentials {
            user: &self.info.user,
            password: host.password.as_deref(),
            binding: match self.info.channel_binding {
                ChannelBinding::Disable => Binding::Disable,
                ChannelBinding::Prefer => Binding::Prefer,
                ChannelBinding::Require => Binding::Require,
            },
            end_point: conn.server_certificate().and_then(der::end_point),
            encrypted: conn.is_encrypted(),
        });
        let mut accepted = false;
        loop {
            let frame = conn.next().map_err(Failure::Other)?;
            let message = conn.message(&frame).map_err(Failure::Other)?;
            match message {
                Message::ErrorResponse(body) => {
                    let error = Notice::from_fields(body.fields()).into_error();
                    return Err(Failure::Rejected(error));
                }
                Message::BackendKeyData(body) if accepted => {
                    conn.keep_cancel_key(body.process_id(), body.secret_key());
                }
                Message::ReadyForQuery(_) if accepted => {
                    conn.logged_in(self.options.statement_timeout);
                    return Ok(());
                }
                message if !accepted => {
                    out.clear();
                    match login.step(&message, &mut out).map_err(Failure::Other)? {
                        Step::Reply => conn.send(&out).map_err(Failure::Other)?,
                        Step::Wait => {}
                        Step::Accepted => accepted = true,
                    }
                }
                _ => return Err(Failure::Other(codec::unexpected(frame.tag, "login"))),
            }
        }
    }

    fn startup_parameters(&self) -> Vec<(&str, &str)> {
        let info = self.info;
        let name = info.application_name.as_deref();
        let mut list = vec![
            ("user", info.user.as_str()),
            (
                "application_name",
                name.unwrap_or(&self.options.application_name),
            ),
            ("client_encoding", "UTF8"),
        ];
        if self.options.replication {
            list.push(("replication", "true"));
            if tells_by_read_only(info.target_session_attrs) {
                list.push(("default_transaction_read_only", "off"));
            }
        } else {
            list.push(("database", info.database()));
        }
        if let Some(options) = &info.options {
            list.push(("options", options));
        }
        list
    }

    /// Whether the server is of the wanted sort; `Kind::Transient` if not, so that the next one is asked.
    fn is_wanted(&self, conn: &mut Conn, wanted: TargetSessionAttrs) -> Result<()> {
        use TargetSessionAttrs as T;
        let missing = match wanted {
            T::Any | T::PreferStandby => return Ok(()),
            T::ReadWrite if is_read_only(conn)? => "read-write",
            T::ReadOnly if !is_read_only(conn)? => "read-only",
            T::Primary if self.is_standby(conn)? => "primary",
            T::Standby if !self.is_standby(conn)? => "standby",
            _ => return Ok(()),
        };
        let error = Error::new(Kind::Transient, "the server is not of the wanted sort");
        Err(error.detail(format!("target_session_attrs is {missing}.")))
    }

    fn is_standby(&self, conn: &mut Conn) -> Result<bool> {
        if let Some(value) = conn.parameter("in_hot_standby") {
            return Ok(value == "on");
        }
        // Before version 14. A replication session has no functions, but there the only reason left for being
        // read-only is recovery (see `tells_by_read_only`).
        if self.options.replication {
            return Ok(conn.show("transaction_read_only")? == "on");
        }
        let rows = conn.query("SELECT pg_catalog.pg_is_in_recovery() AS standby")?;
        Ok(rows.need(0, "standby")? == "t")
    }
}

/// Whether a replication session must begin with read-only transactions off, so that a primary where they are the
/// default is not taken for a standby. Nothing can be written in such a session anyway.
fn tells_by_read_only(wanted: TargetSessionAttrs) -> bool {
    use TargetSessionAttrs as T;
    matches!(wanted, T::Primary | T::Standby | T::PreferStandby)
}

/// The attempts of an sslmode, in order.
fn attempts(mode: SslMode) -> (Attempt, Option<Attempt>) {
    match mode {
        SslMode::Disable => (Attempt::Plain, None),
        SslMode::Allow => (Attempt::Plain, Some(Attempt::Encrypted)),
        SslMode::Prefer => (Attempt::Offered, Some(Attempt::Plain)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Attempt::Encrypted, None),
    }
}

/// The first error, with what the second attempt met.
fn both(first: Error, later: &Error, second: Attempt) -> Error {
    let how = match second {
        Attempt::Plain => "Without TLS",
        Attempt::Offered | Attempt::Encrypted => "With TLS",
    };
    let detail = format!("{how}: {}.", later.message());
    // The kind of the attempt that came further counts: it spoke with PostgreSQL, TLS trouble alone did not.
    let kind = match first.kind() {
        Kind::Unavailable => later.kind(),
        kind => kind,
    };
    let known = first.full_detail();
    first.with_kind(kind).detail(match known {
        Some(known) => format!("{known} {detail}"),
        None => detail,
    })
}

fn no_tls() -> Error {
    Error::new(Kind::Unavailable, "the server does not support TLS")
        .hint("Set ssl = on there, or use sslmode=prefer.")
}

/// The name that a certificate must carry.
fn host_name(host: &HostPort) -> String {
    match &host.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    }
}

/// Where the host listens. Resolving a name is the one wait that neither a stop nor a timeout of ours can end: the
/// system's resolver bounds it (resolv.conf, `timeout` and `attempts`).
fn addresses(host: &HostPort) -> Result<Vec<Address>> {
    let port = host.port;
    match (&host.host, host.hostaddr) {
        (Host::Unix(directory), _) => Ok(vec![Address::Unix(
            directory.join(format!(".s.PGSQL.{port}")),
        )]),
        (Host::Tcp(_), Some(address)) => Ok(vec![Address::Tcp((address, port).into())]),
        (Host::Tcp(name), None) => match (name.as_str(), port).to_socket_addrs() {
            Ok(found) => Ok(found.map(Address::Tcp).collect()),
            Err(cause) => {
                let error = Error::new(Kind::Transient, "could not resolve the host name");
                Err(error.because(cause))
            }
        },
    }
}

fn is_read_only(conn: &mut Conn) -> Result<bool> {
    if conn.parameter("in_hot_standby") == Some("on") {
        return Ok(true);
    }
    match conn.parameter("default_transaction_read_only") {
        Some(value) => Ok(value == "on"),
        None => Ok(conn.show("transaction_read_only")? == "on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_by_mode() {
        use Attempt::*;
        let cases = [
            (SslMode::Disable, Plain, None),
            (SslMode::Allow, Plain, Some(Encrypted)),
            (SslMode::Prefer, Offered, Some(Plain)),
            (SslMode::Require, Encrypted, None),
            (SslMode::VerifyCa, Encrypted, None),
            (SslMode::VerifyFull, Encrypted, None),
        ];
        for (mode, first, second) in cases {
            assert_eq!(attempts(mode), (first, second), "{mode}");
        }
    }

    #[test]
    fn two_failures_become_one_error() {
        let first = Error::new(Kind::Denied, "no password").detail("SQLSTATE 28P01.");
        let later = Error::new(Kind::Denied, "no entry");
        let error = both(first, &later, Attempt::Plain);
        assert_eq!(
            error.to_string(),
            "no password\ndetail: SQLSTATE 28P01. Without TLS: no entry."
        );
        let first = Error::new(Kind::Unavailable, "untrusted");
        assert_eq!(both(first, &later, Attempt::Plain).kind(), Kind::Denied);
    }
}
