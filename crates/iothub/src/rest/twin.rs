//! Single twins and the hub's statistics.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::Client;
use crate::credentials::Permission;

use super::error::RestError;
use super::transport::Request;

/// A device's twin document. Fields missing here are in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Twin {
    /// The device.
    pub device_id: String,
    /// The module, for module twins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// The twin's entity tag.
    #[serde(default)]
    pub etag: Option<String>,
    /// `enabled` or `disabled`.
    #[serde(default)]
    pub status: Option<String>,
    /// `Connected` or `Disconnected`; lags, not for runtime decisions.
    #[serde(default)]
    pub connection_state: Option<String>,
    /// C2D messages waiting in the device's queue.
    #[serde(default)]
    pub cloud_to_device_message_count: Option<u32>,
    /// The twin's version.
    #[serde(default)]
    pub version: Option<u64>,
    /// Tags.
    #[serde(default)]
    pub tags: Map<String, Value>,
    /// Desired and reported properties.
    #[serde(default)]
    pub properties: TwinProperties,
    /// All other fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The two halves of a twin's properties, with their `$metadata` and `$version`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TwinProperties {
    /// The properties desired by the service.
    #[serde(default)]
    pub desired: Map<String, Value>,
    /// The properties reported by the device.
    #[serde(default)]
    pub reported: Map<String, Value>,
}

/// `GET /statistics/devices`. Needs the permission to read the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DeviceStatistics {
    /// Registered devices.
    pub total_device_count: u64,
    /// Devices allowed to connect.
    pub enabled_device_count: u64,
    /// Devices not allowed to connect.
    pub disabled_device_count: u64,
}

/// `GET /statistics/service`. Needs the permission to read the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ServiceStatistics {
    /// Devices connected now.
    pub connected_device_count: u64,
}

impl Client {
    /// Reads one twin.
    ///
    /// # Errors
    ///
    /// The errors of a request; [`RestError::is_not_found`] identifies a missing device.
    pub async fn twin(&self, device_id: &str) -> Result<Twin, RestError> {
        let id = utf8_percent_encode(device_id, NON_ALPHANUMERIC);
        self.get("twin", &format!("/twins/{id}"), Permission::ReadTwins)
            .await
    }

    /// Counts the registered devices.
    ///
    /// # Errors
    ///
    /// The errors of a request.
    pub async fn statistics(&self) -> Result<DeviceStatistics, RestError> {
        self.get(
            "device statistics",
            "/statistics/devices",
            Permission::ReadStatistics,
        )
        .await
    }

    /// Counts the connected devices.
    ///
    /// # Errors
    ///
    /// The errors of a request.
    pub async fn service_statistics(&self) -> Result<ServiceStatistics, RestError> {
        self.get(
            "service statistics",
            "/statistics/service",
            Permission::ReadStatistics,
        )
        .await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        name: &'static str,
        path: &str,
        permission: Permission,
    ) -> Result<T, RestError> {
        let request = Request {
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            body: None,
            permission,
        };
        let answer = self.inner.request(&request).await?;
        serde_json::from_slice(&answer.body).map_err(|source| RestError::Answer {
            request: name,
            source,
        })
    }
}
