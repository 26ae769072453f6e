//! The hub's refusals, with the real hub's wording and error codes.

/// A refusal: the AMQP condition, the hub's error code and name, and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) condition: &'static str,
    pub(crate) code: u32,
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

impl Refusal {
    fn new(
        condition: &'static str,
        code: u32,
        name: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self {
            condition,
            code,
            name,
            text: text.into(),
        }
    }

    pub(crate) fn device_not_found(id: &str) -> Self {
        Self::new(
            "amqp:not-found",
            404_001,
            "DeviceNotFound",
            format!("Device {id} not registered"),
        )
    }

    pub(crate) fn module_not_found(id: &str) -> Self {
        Self::new(
            "amqp:not-found",
            404_010,
            "ModuleNotFound",
            format!("Module {id} not registered"),
        )
    }

    pub(crate) fn device_disabled(id: &str) -> Self {
        let text = format!("Device {id} is disabled");
        Self::new("amqp:not-found", 403_012, "DeviceDisabled", text)
    }

    pub(crate) fn registration_not_found(text: impl Into<String>) -> Self {
        Self::new("amqp:not-found", 404_204, "RegistrationNotFound", text)
    }

    pub(crate) fn address_not_found(address: &str) -> Self {
        let text = format!("The address '{address}' does not exist");
        Self::new("amqp:not-found", 404_006, "AmqpAddressNotFound", text)
    }

    pub(crate) fn unauthorized(text: impl Into<String>) -> Self {
        Self::new(
            "amqp:unauthorized-access",
            401_002,
            "IotHubUnauthorizedAccess",
            text,
        )
    }

    pub(crate) fn queue_full(id: &str, limit: u32) -> Self {
        let text = format!("Device Queue depth exceeded: device {id} has {limit} messages pending");
        Self::new(
            "amqp:resource-limit-exceeded",
            403_004,
            "DeviceMaximumQueueDepthExceeded",
            text,
        )
    }

    pub(crate) fn quota_exceeded(used: u64, limit: u64) -> Self {
        let text = format!(
            "Total number of messages on IotHub exceeded the allocated quota. Max allowed message count : '{limit}', current message count : '{used}'"
        );
        Self::new(
            "com.microsoft:quota-exceeded",
            403_002,
            "IotHubQuotaExceeded",
            text,
        )
    }

    pub(crate) fn not_in_tier() -> Self {
        let text = "Cloud-to-device messages are not available in the Basic tier";
        Self::new("amqp:not-allowed", 403_010, "InvalidOperationForTier", text)
    }

    pub(crate) fn bad_expiry(text: impl Into<String>) -> Self {
        Self::new(
            "com.microsoft:argument-error",
            403_009,
            "InvalidMessageExpiryTime",
            text,
        )
    }

    pub(crate) fn bad_argument(text: impl Into<String>) -> Self {
        Self::new(
            "com.microsoft:argument-error",
            400_004,
            "ArgumentInvalid",
            text,
        )
    }

    pub(crate) fn bad_operation(text: impl Into<String>) -> Self {
        Self::new("amqp:not-allowed", 400_003, "InvalidOperation", text)
    }

    pub(crate) fn too_large(size: usize, limit: usize) -> Self {
        let text = format!("The message has {size} bytes; at most {limit} are allowed");
        Self::new(
            "amqp:link:message-size-exceeded",
            413_001,
            "MessageTooLarge",
            text,
        )
    }

    pub(crate) fn throttled(operation: &str) -> Self {
        let text = format!(
            "Throttling limit reached. Operation type: {operation}. Please wait 10 seconds before retrying"
        );
        Self::new(
            "com.microsoft:device-container-throttled",
            429_001,
            "ThrottlingException",
            text,
        )
    }

    pub(crate) fn lock_lost(token: &str) -> Self {
        let text = format!("No message is locked with the token '{token}', or no longer");
        Self::new(
            "com.microsoft:message-lock-lost",
            412_002,
            "DeviceMessageLockLost",
            text,
        )
    }

    pub(crate) fn device_not_online(id: &str) -> Self {
        let text = format!("The device {id} is not connected, or not ready for direct methods");
        Self::new("amqp:not-found", 404_103, "DeviceNotOnline", text)
    }

    pub(crate) fn gateway_timeout(id: &str) -> Self {
        let text = format!("The device {id} has not answered in time");
        Self::new("com.microsoft:timeout", 504_101, "GatewayTimeout", text)
    }

    pub(crate) fn not_emulated(what: &str) -> Self {
        let text = format!("The emulator does not support {what}");
        Self::new("amqp:not-implemented", 501_000, "NotImplemented", text)
    }

    pub(crate) fn internal() -> Self {
        let text = "The server encountered an error processing the request; please retry";
        Self::new("amqp:internal-error", 500_001, "ServerError", text)
    }

    pub(crate) fn timeout() -> Self {
        Self::new(
            "com.microsoft:timeout",
            408_000,
            "RequestTimeout",
            "The operation did not complete in time",
        )
    }

    pub(crate) fn store_full(limit: u32) -> Self {
        let text = format!("the emulator's limit of {limit} messages is reached");
        Self::new("amqp:internal-error", 500_001, "ServerError", text)
    }
}
