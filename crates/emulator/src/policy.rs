//! Shared access policies: permissions and keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The permissions of a shared access policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions {
    /// Reading the identity registry and statistics.
    pub registry_read: bool,
    /// Changing the identity registry.
    pub registry_write: bool,
    /// Sending to devices, feedback, twins and queries.
    pub service_connect: bool,
    /// Connecting as any device.
    pub device_connect: bool,
}

impl Permissions {
    /// Whether all permissions in `required` are granted.
    #[must_use]
    pub fn include(self, required: Self) -> bool {
        (self.registry_read || !required.registry_read)
            && (self.registry_write || !required.registry_write)
            && (self.service_connect || !required.service_connect)
            && (self.device_connect || !required.device_connect)
    }

    /// Only `ServiceConnect`.
    pub const SERVICE: Self = Self {
        registry_read: false,
        registry_write: false,
        service_connect: true,
        device_connect: false,
    };
    /// Only `RegistryRead`.
    pub const REGISTRY_READ: Self = Self {
        registry_read: true,
        registry_write: false,
        service_connect: false,
        device_connect: false,
    };
    /// `RegistryRead` and `RegistryWrite`.
    pub const REGISTRY_READ_WRITE: Self = Self {
        registry_read: true,
        registry_write: true,
        service_connect: false,
        device_connect: false,
    };
    /// All permissions.
    pub const OWNER: Self = Self {
        registry_read: true,
        registry_write: true,
        service_connect: true,
        device_connect: true,
    };
}

/// A shared access policy of the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct Policy {
    /// The name, as in `SharedAccessKeyName`.
    pub name: String,
    /// The primary key, raw.
    pub primary_key: Vec<u8>,
    /// The secondary key, raw; tokens signed with either key are valid.
    pub secondary_key: Vec<u8>,
    /// The permissions.
    pub permissions: Permissions,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Creates a policy with keys derived from a seed, so that two runs have the same connection
    /// strings.
    #[must_use]
    pub fn seeded(name: &str, permissions: Permissions, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            primary_key: seeded_key(seed, &[name, "primary"]),
            secondary_key: seeded_key(seed, &[name, "secondary"]),
            permissions,
        }
    }

    /// Returns the policies of a new hub.
    #[must_use]
    pub fn defaults(seed: u64) -> Vec<Self> {
        [
            ("iothubowner", Permissions::OWNER),
            ("service", Permissions::SERVICE),
            (
                "device",
                Permissions {
                    device_connect: true,
                    ..Permissions::default()
                },
            ),
            ("registryRead", Permissions::REGISTRY_READ),
            ("registryReadWrite", Permissions::REGISTRY_READ_WRITE),
        ]
        .into_iter()
        .map(|(name, permissions)| Self::seeded(name, permissions, seed))
        .collect()
    }

    /// Returns the primary key in the form for connection strings.
    #[must_use]
    pub fn primary_key_base64(&self) -> String {
        STANDARD.encode(&self.primary_key)
    }
}

/// Derives thirty-two bytes from a seed and a path. The bytes are not secret: the seed determines
/// the key.
pub(crate) fn seeded_key(seed: u64, path: &[&str]) -> Vec<u8> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    hash.update(b"emulated hub key");
    hash.update(seed.to_le_bytes());
    for part in path {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_vec()
}
