//! The authentication dialogue, sans-IO: a message of the server in, an answer or a verdict out.
//!
//! 1. `channel_binding=require` is met by SCRAM-SHA-256-PLUS alone, whatever else the server offers.
//! 2. A SCRAM exchange counts only when the server has proved that it knows the password too.

use super::codec;
use crate::error::{Error, Kind, Result};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

/// What the user wants of channel binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// Do not use it.
    Disable,
    /// Use it where both sides can.
    Prefer,
    /// Nothing else will do.
    Require,
}

/// Who logs in, and over what.
pub(super) struct Credentials<'a> {
    /// The role.
    pub user: &'a str,
    /// Its password, if one is known.
    pub password: Option<&'a str>,
    /// The wish for channel binding.
    pub binding: Binding,
    /// The hash of the server's certificate; none without TLS.
    pub end_point: Option<Vec<u8>>,
    /// Whether the connection is under TLS.
    pub encrypted: bool,
}

/// Where the dialogue stands after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send what was put into `out`.
    Reply,
    /// Nothing to send; the server goes on.
    Wait,
    /// The server lets us in.
    Accepted,
}

/// The dialogue.
pub(super) struct Login<'a> {
    credentials: Credentials<'a>,
    scram: Option<ScramSha256>,
    bound: bool,
    /// The server's proof is outstanding.
    unproven: bool,
}

impl<'a> Login<'a> {
    /// Before the first answer of the server.
    pub fn new(credentials: Credentials<'a>) -> Login<'a> {
        Login {
            credentials,
            scram: None,
            bound: false,
            unproven: false,
        }
    }

    /// Takes one authentication message.
    pub fn step(&mut self, message: &Message, out: &mut BytesMut) -> Result<Step> {
        match message {
            Message::AuthenticationOk => return self.accepted(),
            Message::AuthenticationCleartextPassword => {
                let password = self.unbound_password("a clear text password")?;
                frontend::password_message(password.as_bytes(), out).map_err(unsendable)?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.unbound_password("an MD5 hashed password")?;
                let user = self.credentials.user.as_bytes();
                let hash = md5_hash(user, password.as_bytes(), body.salt());
                frontend::password_message(hash.as_bytes(), out).map_err(unsendable)?;
            }
            Message::AuthenticationSasl(body) => self.start_scram(body, out)?,
            Message::AuthenticationSaslContinue(body) => {
                let scram = self.scram.as_mut().ok_or_else(out_of_order)?;
                scram.update(body.data()).map_err(scram_failed)?;
                frontend::sasl_response(scram.message(), out).map_err(unsendable)?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let scram = self.scram.as_mut().ok_or_else(out_of_order)?;
                scram.finish(body.data()).map_err(scram_failed)?;
                (self.scram, self.unproven) = (None, false);
                return Ok(Step::Wait);
            }
            Message::AuthenticationGss | Message::AuthenticationSspi => {
                return Err(unsupported("GSSAPI"));
            }
            Message::AuthenticationKerberosV5 => return Err(unsupported("Kerberos V5")),
            Message::AuthenticationScmCredential => return Err(unsupported("SCM credentials")),
            _ => return Err(out_of_order()),
        }
        Ok(Step::Reply)
    }

    fn accepted(&self) -> Result<Step> {
        if self.unproven {
            return Err(Error::new(
                Kind::Denied,
                "the server did not prove that it knows the password",
            )
            .detail("It ended the SCRAM exchange early; another machine may pose as the server."));
        }
        if self.credentials.binding == Binding::Require && !self.bound {
            return Err(not_bound("The server let us in without channel binding."));
        }
        Ok(Step::Accepted)
    }

    /// The password, for methods that know no channel binding.
    fn unbound_password(&self, method: &str) -> Result<&'a str> {
        if self.credentials.binding == Binding::Require {
            return Err(not_bound(format!("The server asks for {method}.")));
        }
        self.password()
    }

    fn password(&self) -> Result<&'a str> {
        self.credentials
            .password
            .filter(|p| !p.is_empty())
            .ok_or_else(|| {
                Error::new(
                    Kind::Denied,
                    "the server asks for a password, and none is known",
                )
                .hint("Put it into a password file (~/.pgpass, mode 0600) or set PGPASSWORD.")
            })
    }

    fn start_scram(&mut self, body: &AuthenticationSaslBody, out: &mut BytesMut) -> Result<()> {
        if self.scram.is_some() || self.unproven {
            return Err(out_of_order());
        }
        let offered: Vec<&str> = body
            .mechanisms()
            .collect()
            .map_err(|e| codec::malformed(format!("{e}.")))?;
        let (mechanism, binding) = self.choose(&offered)?;
        let scram = ScramSha256::new(self.password()?.as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(unsendable)?;
        log::debug!("authentication by {mechanism}");
        (self.scram, self.unproven) = (Some(scram), true);
        self.bound = mechanism == SCRAM_SHA_256_PLUS;
        Ok(())
    }

    /// The mechanism, and what we tell the server of our ability to bind (RFC 5802 section 6): a server that could
    /// have bound but did not offer it learns that somebody may have removed the offer.
    fn choose(&self, offered: &[&str]) -> Result<(&'static str, ChannelBinding)> {
        let Credentials {
            binding,
            end_point,
            encrypted,
            ..
        } = &self.credentials;
        let plus = offered.contains(&SCRAM_SHA_256_PLUS);
        if plus && !encrypted {
            return Err(codec::malformed(
                "It offers SCRAM-SHA-256-PLUS, which needs TLS, on a connection without TLS.",
            ));
        }
        let usable = end_point.as_ref().filter(|_| *binding != Binding::Disable);
        match usable {
            Some(hash) if plus => Ok((
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(hash.clone()),
            )),
            _ if *binding == Binding::Require => Err(not_bound(if *encrypted {
                "The server or its certificate does not allow SCRAM-SHA-256-PLUS."
            } else {
                "The connection is not under TLS."
            })),
            _ if !offered.contains(&SCRAM_SHA_256) => Err(unsupported(&offered.join(", "))),
            Some(_) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
            None => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        }
    }
}

fn not_bound(detail: impl Into<String>) -> Error {
    Error::new(Kind::Denied, "channel binding is required but not possible")
        .detail(detail)
        .hint("Use TLS and a SCRAM-SHA-256 password, or set channel_binding=prefer.")
}

fn unsupported(method: &str) -> Error {
    Error::new(
        Kind::Denied,
        format!(
            "the server asks for an authentication method that seawall does not know: {method}"
        ),
    )
    .hint("Let pg_hba.conf ask this role for scram-sha-256, md5, password, cert, peer or trust.")
}

fn out_of_order() -> Error {
    codec::malformed("Its authentication messages are out of order.")
}

fn unsendable(cause: std::io::Error) -> Error {
    Error::new(
        Kind::Config,
        "user name or password cannot be sent to PostgreSQL",
    )
    .because(cause)
}

/// The library's texts name neither password nor proof.
fn scram_failed(cause: std::io::Error) -> Error {
    let error = Error::new(Kind::Denied, "SCRAM authentication failed");
    let error = if cause.to_string().contains("iteration count") {
        error.hint("seawall accepts up to 100000 iterations: lower scram_iterations on the server and set the password anew.")
    } else {
        error
    };
    error.because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::script::message;
    use ring::{digest, hmac, pbkdf2};

    fn credentials(binding: Binding, encrypted: bool) -> Credentials<'static> {
        Credentials {
            user: "backup",
            password: Some("secret"),
            binding,
            end_point: encrypted.then(|| vec![1, 2, 3]),
            encrypted,
        }
    }

    fn auth(code: u32, data: &[u8]) -> Message {
        let bytes = message(b'R', &[&code.to_be_bytes(), data].concat());
        Message::parse(&mut BytesMut::from(&bytes[..]))
            .unwrap()
            .unwrap()
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for group in bytes.chunks(3) {
            let word =
                group.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - group.len()));
            for index in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * index) & 63) as usize];
                out.push(if index > group.len() {
                    '='
                } else {
                    digit.into()
                });
            }
        }
        out
    }

    /// A server for one SCRAM exchange; gives the mechanism and the outcome of each of its steps.
    fn exchange(login: &mut Login<'_>, offered: &str, proof_of: &str) -> Result<String> {
        let mut out = BytesMut::new();
        assert_eq!(
            login.step(&auth(10, offered.as_bytes()), &mut out)?,
            Step::Reply
        );
        let text = String::from_utf8_lossy(&out[5..]).into_owned();
        let (mechanism, first) = text.split_once('\0').unwrap();
        let first = &first[4..];
        let bare = &first[first.find("n=").unwrap()..];
        let gs2 = &first[..first.len() - bare.len()];
        let nonce = format!("{}server", &bare[bare.find("r=").unwrap() + 2..]);
        let challenge = format!("r={nonce},s={},i=4096", base64(b"salt"));
        out.clear();
        assert_eq!(
            login.step(&auth(11, challenge.as_bytes()), &mut out)?,
            Step::Reply
        );
        let last = String::from_utf8_lossy(&out[5..]).into_owned();
        let bound = [
            gs2.as_bytes(),
            if gs2.starts_with('p') {
                &[1, 2, 3]
            } else {
                &[]
            },
        ]
        .concat();
        let (unsigned, _) = last.rsplit_once(",p=").unwrap();
        assert_eq!(unsigned, format!("c={},r={nonce}", base64(&bound)));
        let mut salted = [0; 32];
        let rounds = std::num::NonZeroU32::new(4096).unwrap();
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            b"salt",
            proof_of.as_bytes(),
            &mut salted,
        );
        let mac =
            |key: &[u8], data: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
        let server_key = mac(&salted, b"Server Key");
        let signature = mac(
            server_key.as_ref(),
            format!("{bare},{challenge},{unsigned}").as_bytes(),
        );
        let client_key = mac(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client_key.as_ref());
        let client = mac(
            stored.as_ref(),
            format!("{bare},{challenge},{unsigned}").as_bytes(),
        );
        let proof: Vec<u8> = client_key
            .as_ref()
            .iter()
            .zip(client.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        if proof_of == "secret" {
            assert!(last.ends_with(&base64(&proof)), "the proof");
        }
        let verifier = format!("v={}", base64(signature.as_ref()));
        assert_eq!(
            login.step(&auth(12, verifier.as_bytes()), &mut out)?,
            Step::Wait
        );
        assert_eq!(login.step(&auth(0, b""), &mut out)?, Step::Accepted);
        Ok(format!("{mechanism} {}", &gs2[..1]))
    }

    const PLAIN: &str = "SCRAM-SHA-256\0\0";
    const BOTH: &str = "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";

    #[test]
    fn scram_by_table() {
        use Binding::*;
        let cases = [
            (Prefer, false, PLAIN, Some("SCRAM-SHA-256 n")),
            (Prefer, true, PLAIN, Some("SCRAM-SHA-256 y")),
            (Prefer, true, BOTH, Some("SCRAM-SHA-256-PLUS p")),
            (Disable, true, BOTH, Some("SCRAM-SHA-256 n")),
            (Require, true, BOTH, Some("SCRAM-SHA-256-PLUS p")),
            (Require, true, PLAIN, None),
            (Require, false, PLAIN, None),
            (Prefer, false, BOTH, None),
            (Prefer, true, "SCRAM-SHA-1\0\0", None),
        ];
        for (binding, encrypted, offered, want) in cases {
            let mut login = Login::new(credentials(binding, encrypted));
            let got = exchange(&mut login, offered, "secret");
            assert_eq!(
                got.ok().as_deref(),
                want,
                "{binding:?} {encrypted} {offered:?}"
            );
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        let mut login = Login::new(credentials(Binding::Prefer, false));
        let error = exchange(&mut login, PLAIN, "guess").unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        // Nor may it leave the proof out.
        let mut login = Login::new(credentials(Binding::Prefer, false));
        let mut out = BytesMut::new();
        login.step(&auth(10, PLAIN.as_bytes()), &mut out).unwrap();
        assert_eq!(
            login.step(&auth(0, b""), &mut out).unwrap_err().kind(),
            Kind::Denied
        );
    }

    #[test]
    fn a_recorded_md5_exchange() {
        let mut login = Login::new(credentials(Binding::Prefer, false));
        let mut out = BytesMut::new();
        login
            .step(&auth(5, &[0x2A, 0x3D, 0x8F, 0xE0]), &mut out)
            .unwrap();
        // md5sum of (md5sum of "secretbackup" in hexadecimal, then the salt)
        assert_eq!(
            &out[..],
            &message(b'p', b"md5c6ee90af3a60dd518baacd67f01a2893\0")[..]
        );
        assert_eq!(login.step(&auth(0, b""), &mut out).unwrap(), Step::Accepted);
    }

    /// The body of the answer, or the kind of the error.
    type Want = std::result::Result<&'static [u8], Kind>;
    type Case = (u32, &'static [u8], Binding, Option<&'static str>, Want);

    #[test]
    fn methods_by_table() {
        use Binding::*;
        let cases: [Case; 8] = [
            (3, b"", Prefer, Some("secret"), Ok(b"secret\0")),
            (3, b"", Prefer, None, Err(Kind::Denied)),
            (3, b"", Prefer, Some(""), Err(Kind::Denied)),
            (3, b"", Require, Some("secret"), Err(Kind::Denied)),
            (5, b"salt", Require, Some("secret"), Err(Kind::Denied)),
            (0, b"", Require, Some("secret"), Err(Kind::Denied)),
            (7, b"", Prefer, Some("secret"), Err(Kind::Denied)),
            (11, b"r=x", Prefer, Some("secret"), Err(Kind::Protocol)),
        ];
        for (code, data, binding, password, want) in cases {
            let mut login = Login::new(Credentials {
                password,
                ..credentials(binding, true)
            });
            let mut out = BytesMut::new();
            match (login.step(&auth(code, data), &mut out), want) {
                (Ok(Step::Reply), Ok(body)) => assert_eq!(&out[5..], body, "{code}"),
                (Err(error), Err(kind)) => {
                    assert_eq!(error.kind(), kind, "{code}");
                    assert!(!error.to_string().contains("secret"));
                }
                (got, want) => panic!("{code}: {got:?} in place of {want:?}"),
            }
        }
    }
}
