//! Servers with certificates for another name than the host of the address.

use std::time::{Duration, Instant};

use twincast_core::error::describe;
use twincast_core::ports::Rollouts as _;
use twincast_redis::{RedisStore, Settings};
use twincast_testkit::build::{accepted, name};
use twincast_testkit::services::{Certificate, Redis, RedisCluster};

use crate::common::{connect, patient, prefix};

fn with_tls(certificate: &Certificate, settings: Settings) -> Settings {
    Settings {
        tls_name: Some(Certificate::NAME.to_owned()),
        ca: Some(certificate.file()),
        prefix: prefix(),
        ..patient(settings)
    }
}

#[tokio::test]
async fn a_server_may_have_a_certificate_for_another_name() {
    let certificate = Certificate::new();
    let options: Vec<_> = certificate
        .options()
        .into_iter()
        .flat_map(|(name, value)| [format!("--{name}"), value])
        .collect();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let redis = Redis::start(&options).await;
    let url = format!("rediss://127.0.0.1:{}", redis.tls_port());
    let good = with_tls(&certificate, Settings::new(url));
    connect(&good).await.create(&accepted("r")).await.unwrap();
    for other in [None, Some("other.test".to_owned())] {
        let settings = Settings {
            tls_name: other,
            ..good.clone()
        };
        let error = RedisStore::connect(&settings)
            .await
            .expect_err("the name is refused");
        assert!(describe(&error).contains("certificate"), "{error:?}");
    }
}

/// As in Azure Managed Redis, nodes are announced by address, and all certificates are for the name
/// of the service.
#[tokio::test]
async fn nodes_announced_by_address_share_a_certificate_name() {
    let certificate = Certificate::new();
    let cluster = RedisCluster::start_with_tls(&certificate).await;
    let url = format!("rediss://localhost:{}", cluster.nodes()[0].tls_port());
    let good = with_tls(&certificate, Settings::cluster(&[url]));
    let store = connect(&good).await;
    // Twelve rollouts are on all nodes.
    for n in 0..12 {
        store.create(&accepted(&format!("r{n}"))).await.unwrap();
    }
    cluster.nodes()[1].restart().await;
    cluster.ready().await;
    let started_at = Instant::now();
    for n in 0..12 {
        while let Err(error) = store.rollout(&name(&format!("r{n}"))).await {
            assert!(started_at.elapsed() < Duration::from_secs(120), "{error:?}");
        }
    }
    for other in [None, Some("other.test".to_owned())] {
        let settings = Settings {
            tls_name: other,
            ..good.clone()
        };
        // The host of the URL may match; the addresses of the other nodes do not.
        let error = RedisStore::connect(&settings)
            .await
            .expect_err("the name is refused");
        assert!(describe(&error).contains("certificate"), "{error:?}");
    }
}
