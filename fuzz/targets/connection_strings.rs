//! Connection strings: an error shows no values, and a parsed connection string shows no key.

#![no_main]

use twincast_iothub::ConnectionString;

/// The placeholder of the secret in an input.
const MARK: char = '\u{1}';
const SECRET: &str = "c2VjcmV0LW9mLXRoZS1odWI";

twincast_fuzz::text!(|text: &str| {
    let with_secret = text.replace(MARK, SECRET);
    let read: Result<ConnectionString, _> = with_secret.parse();
    let connection = match read {
        Ok(connection) => connection,
        Err(error) => {
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains(SECRET), "{shown}");
            }
            return;
        }
    };
    let key = connection.key().expose();
    assert!(!key.is_empty());
    if key.contains(SECRET) && !connection.key_name().contains(SECRET) {
        let shown = format!("{connection:?}");
        assert!(
            !shown.contains(SECRET) || connection.host_name().contains(SECRET),
            "{shown}"
        );
    }
    // The parts give an equal connection string.
    let host = match connection.port() {
        Some(port) => format!("{}:{port}", connection.host_name()),
        None => connection.host_name().to_owned(),
    };
    let mut again = format!(
        "HostName={host};SharedAccessKeyName={};SharedAccessKey={key}",
        connection.key_name()
    );
    if let Some(gateway) = connection.gateway_host_name() {
        again.push_str(&format!(";GatewayHostName={gateway}"));
    }
    let again: ConnectionString = again.parse().expect("its own parts are good");
    assert_eq!(format!("{again:?}"), format!("{connection:?}"));
    assert_eq!(again.key().expose(), key);
});
