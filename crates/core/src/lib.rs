//! Twincast's domain and ports: no runtime, no network, no clock reads.
