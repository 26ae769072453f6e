//! Shared access policies: who may do what, and with which key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Rights that a shared access policy gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions {
    /// Reads of the identity registry and of statistics.
    pub registry_read: bool,
    /// Changes of the identity registry.
    pub registry_write: bool,
    /// Cloud-to-device sends, feedback, twins and queries.
    pub service_connect: bool,
    /// Device-side connections, of any device.
    pub device_connect: bool,
}

impl Permissions {
    /// Whether everything in `wanted` is given.
    #[must_use]
    pub fn include(self, wanted: Self) -> bool {
        (self.registry_read || !wanted.registry_read)
            && (self.registry_write || !wanted.registry_write)
            && (self.service_connect || !wanted.service_connect)
            && (self.device_connect || !wanted.device_connect)
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
    /// Everything.
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
    /// Its name, as in `SharedAccessKeyName`.
    pub name: String,
    /// Its primary key, raw.
    pub primary_key: Vec<u8>,
    /// Its secondary key, raw; tokens signed with either are good.
    pub secondary_key: Vec<u8>,
    /// What it allows.
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
    /// A policy whose keys follow from a seed, so that two runs have the same connection strings.
    #[must_use]
    pub fn seeded(name: &str, permissions: Permissions, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            primary_key: seeded_key(seed, &[name, "primary"]),
            secondary_key: seeded_key(seed, &[name, "secondary"]),
            permissions,
        }
    }

    /// The policies every new hub has.
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

    /// The primary key as it stands in a connection string.
    #[must_use]
    pub fn primary_key_base64(&self) -> String {
        STANDARD.encode(&self.primary_key)
    }
}

/// Thirty-two bytes that follow from a seed and a path. Not secret: whoever knows the seed knows the key.
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
