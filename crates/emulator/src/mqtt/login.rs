//! The user name of a CONNECT packet, which states the client's role.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The role requested by a user name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login<'a> {
    /// A device of a hub: `{host}/{client id}/?api-version=...`, with or without the question mark.
    Device {
        host: &'a str,
        /// A device's id, or `{device}/{module}`.
        client_id: &'a str,
        model_id: Option<Cow<'a, str>>,
    },
    /// A registration with a provisioning service: `{id scope}/registrations/{registration
    /// id}/api-version=...`.
    Provisioning {
        id_scope: &'a str,
        registration_id: &'a str,
    },
}

impl<'a> Login<'a> {
    /// Parses a user name. Returns `None` for any other form.
    pub(crate) fn read(user_name: &'a str) -> Option<Self> {
        let (host, rest) = user_name.split_once('/')?;
        let at = rest.find("/?").or_else(|| rest.find("/api-version="))?;
        let (client_id, query) = rest.split_at(at);
        let query = query.trim_start_matches(['/', '?']);
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value))
        };
        value("api-version").filter(|version| !version.is_empty())?;
        if host.is_empty() || client_id.is_empty() {
            return None;
        }
        if let Some(registration_id) = client_id.strip_prefix("registrations/") {
            return Some(Self::Provisioning {
                id_scope: host,
                registration_id,
            });
        }
        let model_id = value("model-id").map(|model| percent_decode_str(model).decode_utf8_lossy());
        Some(Self::Device {
            host,
            client_id,
            model_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_of_all_sdks_are_read() {
        for (user_name, client_id, model_id) in [
            (
                "h.net/dev/?api-version=2019-10-01&DeviceClientType=py-azure-iot-device%2F2.14.0",
                "dev",
                None,
            ),
            ("h.net/dev/api-version=2021-04-12", "dev", None),
            ("h.net/dev/mod/?api-version=2020-09-30", "dev/mod", None),
            (
                "h.net/d?v/?api-version=2020-09-30&model-id=dtmi%3acom%3AExample%3b1",
                "d?v",
                Some("dtmi:com:Example;1"),
            ),
        ] {
            let expected = Login::Device {
                host: "h.net",
                client_id,
                model_id: model_id.map(Cow::Borrowed),
            };
            assert_eq!(Login::read(user_name), Some(expected), "{user_name}");
        }
        let provisioning = "0ne0/registrations/r-1/api-version=2019-03-31&ClientVersion=x";
        let expected = Login::Provisioning {
            id_scope: "0ne0",
            registration_id: "r-1",
        };
        assert_eq!(Login::read(provisioning), Some(expected));
        for bad in [
            "",
            "dev",
            "h.net/dev",
            "h.net/dev/",
            "h.net/dev/?DeviceClientType=x",
            "h.net/dev/?api-version=",
            "/dev/?api-version=2021-04-12",
            "h.net//?api-version=2021-04-12",
        ] {
            assert_eq!(Login::read(bad), None, "{bad}");
        }
    }
}
