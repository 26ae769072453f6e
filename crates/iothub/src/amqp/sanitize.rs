//! Replaces errors and outcomes beyond the protocol library's decoder by decodable ones.
//!
//! An undecodable frame makes the library end the whole connection, and every delivery in flight
//! with it. An odd reason, or an outcome of a later protocol version, should concern only the
//! deliveries of its frame.

use super::encoding::{
    Descriptor, NULL, described, entries, integer, text, write_described, write_list, write_map,
    write_string, write_symbol,
};

/// `amqp:rejected:list`.
const REJECTED: i128 = 0x25;
/// `amqp:error:list`.
const ERROR: u8 = 0x1d;

/// `amqp:received:list` with section 0, offset 0: a non-terminal state. Combined with `settled`,
/// the library reports a state not allowed by AMQP, for each delivery of the disposition and for no
/// other.
const NOT_UNDERSTOOD: [u8; 8] = [0x00, 0x53, 0x23, 0xc0, 3, 2, 0x43, 0x44];

/// Makes the state of a disposition decodable: a rejection with the readable parts of its reason,
/// or else a non-terminal state.
pub(crate) fn outcome(state: &[u8]) -> Vec<u8> {
    match described(state, 0) {
        Some((Descriptor::Code(REJECTED) | Descriptor::Name("amqp:rejected:list"), list)) => {
            let reason = entries(state, list).and_then(|mut entries| entries.next());
            let reason = reason.map_or_else(|| vec![NULL], |reason| error(&state[reason]));
            write_described(REJECTED as u8, write_list(&[reason]))
        }
        _ => NOT_UNDERSTOOD.to_vec(),
    }
}

/// Makes an error (AMQP 1.0, part 2, section 2.8.14) decodable: condition, description, the hub's
/// code and tracking id, as far as readable; null for any other value.
pub(crate) fn error(error: &[u8]) -> Vec<u8> {
    let Some((Descriptor::Code(0x1d) | Descriptor::Name("amqp:error:list"), list)) =
        described(error, 0)
    else {
        return vec![NULL];
    };
    let mut fields = entries(error, list).into_iter().flatten();
    let mut field = || fields.next().map_or(&[][..], |field| &error[field]);
    let (condition, description, info) = (field(), field(), field());
    let condition = write_symbol(text(condition).unwrap_or_default());
    let description = text(description).map_or_else(|| vec![NULL], write_string);
    write_described(
        ERROR,
        write_list(&[condition, description, readable_info(info)]),
    )
}

fn readable_info(info: &[u8]) -> Vec<u8> {
    let mut readable = Vec::new();
    let mut fields = entries(info, 0).into_iter().flatten();
    while let (Some(key), Some(value)) = (fields.next(), fields.next()) {
        let value = &info[value];
        let value = match text(&info[key.clone()]) {
            Some("com.microsoft:error-code") => integer(value)
                .and_then(|code| i64::try_from(code).ok())
                .map(|code| [&[0x81][..], &code.to_be_bytes()].concat()),
            Some("com.microsoft:tracking-id") => text(value).map(write_string),
            _ => None,
        };
        if let (Some(key), Some(value)) = (text(&info[key]), value) {
            readable.extend([write_symbol(key), value]);
        }
    }
    write_map(&readable)
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp_types::messaging::DeliveryState;

    use super::*;
    use crate::c2d::Refusal;

    fn decoded(bytes: &[u8]) -> DeliveryState {
        serde_amqp::from_slice(bytes).unwrap()
    }

    fn rejected(error: Vec<u8>) -> Vec<u8> {
        write_described(0x25, write_list(&[error]))
    }

    fn error_of(fields: &[Vec<u8>]) -> Vec<u8> {
        write_described(ERROR, write_list(fields))
    }

    fn read(state: &[u8]) -> Refusal {
        match decoded(&outcome(state)) {
            DeliveryState::Rejected(rejected) => Refusal::from_amqp(rejected.error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn readable_parts_of_a_rejection_are_kept() {
        let info = write_map(&[
            // A key and a value of odd types.
            vec![0x54, 1],
            vec![0x74, 1, 2, 3, 4],
            write_string("com.microsoft:error-code"),
            vec![0x60, 1, 0x93],
            write_symbol("com.microsoft:tracking-id"),
            write_symbol("T-1"),
        ]);
        let odd = rejected(error_of(&[
            write_string("amqp:not-found"),
            write_symbol("gone"),
            info,
        ]));
        let refusal = read(&odd);
        assert_eq!(refusal.condition, "amqp:not-found");
        assert_eq!(refusal.description, "gone");
        assert_eq!(refusal.code, Some(403));
        assert_eq!(refusal.tracking_id.as_deref(), Some("T-1"));
        let without_condition = rejected(error_of(&[vec![NULL], write_string("why"), vec![NULL]]));
        let refusal = read(&without_condition);
        assert_eq!(
            (refusal.condition.as_str(), refusal.description.as_str()),
            ("", "why")
        );
        for odd in [
            rejected(vec![0x43]),
            rejected(vec![NULL]),
            rejected(write_list(&[])),
        ] {
            assert_eq!(read(&odd), Refusal::new("", "", None));
        }
    }

    #[test]
    fn unknown_outcomes_become_a_non_terminal_state() {
        for state in [
            write_described(0x7f, write_list(&[])),
            vec![0x43],
            write_string("accepted"),
            // Modified, with annotations of a type other than map.
            write_described(0x27, write_list(&[vec![0x41], vec![0x41], vec![0x43]])),
        ] {
            assert!(
                matches!(decoded(&outcome(&state)), DeliveryState::Received(_)),
                "{state:x?}"
            );
        }
    }
}
