//! Which devices a rollout is for, as a user writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::MAX_TEXT_CHARS;
use crate::ids::{DeviceId, HubName};
use crate::query::{MAX_CONDITION_CHARS, TagSelector};

/// Which devices. Give `tags`, `where` or both; or `devices` or `devices_file`; or `all: true`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The hubs, by their names in the configuration. Default: all that are configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<HubName>,
    /// Tags and the values that they must have, all of them. A list means "one of these".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// A condition in the hub's own query language, for what `tags` cannot say.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_CONDITION_CHARS))]
    pub condition: Option<String>,
    /// Device ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// A file with device ids, beside the spec: one a line; or a registry's export, with a JSON object a line; or CSV with a
    /// header and a column `id` or `deviceId`. Empty lines and lines that start with `#` followed by a space are passed
    /// over; an id that is listed twice counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_file: Option<PathBuf>,
    /// Every device of the hubs. To be said in so many words.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Devices to leave out, each rule on its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Exclusion>,
}

/// Devices to leave out. Exactly one of `tags`, `devices` and `devices_file`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exclusion {
    /// Devices that match all of these tags. A device without the tag is not left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// Device ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// A file with device ids, beside the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_file: Option<PathBuf>,
    /// Why, for people. The plan shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub reason: Option<String>,
}
