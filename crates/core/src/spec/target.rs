//! The target of a rollout, as written by a user.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::MAX_TEXT_CHARS;
use crate::ids::{DeviceId, HubName};
use crate::query::{MAX_CONDITION_CHARS, TagSelector};

/// The target devices. Give `tags`, `where` or both; or `devices` or `devices_file`; or
/// `all: true`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The hubs, by their names in the configuration. Default: all configured hubs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<HubName>,
    /// Tags with required values. A device must match all tags. A list means any of the listed
    /// values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// A condition in the hub's own query language, for rules beyond `tags`.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_CONDITION_CHARS))]
    pub condition: Option<String>,
    /// Device ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// A file with device ids, beside the spec: an id per line; or a registry's export, with a JSON
    /// object per line; or CSV with a header and a column `id` or `deviceId`. Empty lines and lines
    /// that start with `#` followed by a space are skipped. An id that is listed twice counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_file: Option<PathBuf>,
    /// Every device of the hubs. Must be stated explicitly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Devices to leave out. Each rule applies on its own.
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
    /// The reason, for people. The plan shows this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub reason: Option<String>,
}
