//! The SASL layer: the offered mechanisms, and the outcome of a peer's init.

use bytes::BytesMut;

use super::address::registration_node;
use super::decode::{DecodeError, Reader};
use super::encode;
use crate::hub::{Hub, Proof};
use crate::sas::Grant;

const MECHANISMS: [&str; 4] = ["PLAIN", "ANONYMOUS", "MSSBCBS", "EXTERNAL"];
const INIT: u64 = 0x41;

/// Writes the offered mechanisms.
pub(crate) fn write_mechanisms(out: &mut BytesMut) {
    encode::frame(out, encode::FRAME_SASL, 0, |out| {
        encode::described(out, 0x40, |items| {
            items.symbols(&MECHANISMS);
        });
    });
}

/// Writes the outcome.
pub(crate) fn write_outcome(out: &mut BytesMut, ok: bool) {
    encode::frame(out, encode::FRAME_SASL, 0, |out| {
        encode::described(out, 0x44, |items| {
            items.u8(u8::from(!ok));
        });
    });
}

/// The outcome of the SASL layer for a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Rights, valid as long as the token.
    Granted(Box<Grant>),
    /// A registration, with a token.
    Registers(String),
    /// No rights; tokens follow through `$cbs`.
    Anonymous,
    /// The peer is refused.
    Refused,
}

/// Reads a peer's init frame and returns the outcome.
pub(crate) fn enter(body: &[u8], hub: &Hub, has_certificate: bool) -> Result<Entry, DecodeError> {
    let mut reader = Reader::new(body);
    if reader.descriptor()? != INIT {
        return Err(DecodeError::Unexpected {
            code: body.get(2).copied().unwrap_or(0),
            expected: "a SASL init",
        });
    }
    let mut fields = reader.list()?;
    let mechanism = fields.get(Reader::text)?.unwrap_or_default();
    let response = fields.get(Reader::binary)?.unwrap_or_default();
    Ok(match mechanism {
        "ANONYMOUS" | "MSSBCBS" => Entry::Anonymous,
        // The TLS handshake has proved possession of the certificate's key; each link checks the
        // certificate.
        "EXTERNAL" if has_certificate => Entry::Anonymous,
        "PLAIN" => plain(response, hub).unwrap_or(Entry::Refused),
        _ => Entry::Refused,
    })
}

/// Checks `{policy}@sas.root.{hub}` with a token of the policy, or
/// `{idScope}/registrations/{registrationId}` with a token of the registration.
fn plain(response: &[u8], hub: &Hub) -> Option<Entry> {
    let mut parts = response.split(|byte| *byte == 0);
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    let user = std::str::from_utf8(user).ok()?;
    let token = std::str::from_utf8(password).ok()?;
    let entry = match registration_node(user) {
        Some((id_scope, registration_id)) => {
            let proof = Proof::Token(token);
            let may = hub
                .provisioning
                .admits(id_scope, registration_id, proof, hub.now_s());
            may.then(|| Entry::Registers(token.to_owned()))
        }
        None => policy(user, token, hub).map(|grant| Entry::Granted(Box::new(grant))),
    };
    match entry {
        Some(_) => hub.counters.tokens_accepted.one(),
        None => hub.counters.tokens_refused.one(),
    }
    entry
}

fn policy(user: &str, token: &str, hub: &Hub) -> Option<Grant> {
    let (policy, hub_name) = user.split_once("@sas.root.")?;
    let own_name = hub.config.host_name.split('.').next().unwrap_or_default();
    if !hub_name.eq_ignore_ascii_case(own_name) {
        return None;
    }
    let grant = hub.authenticate(token).ok()?;
    (grant.holder.name() == policy).then_some(grant)
}
