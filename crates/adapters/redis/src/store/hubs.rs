//! The limiter of each hub, and the processes' reports on connections to the hub.

use std::time::Duration;

use async_trait::async_trait;
use redis::cmd;
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::ids::{HubHost, HubName};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::permits::{Grant, LimiterState, PermitRequest, THROTTLE_PAUSE};
use twincast_core::ports::{Limiter, Presence, StoreError};
use twincast_core::time::ms;

use super::{RedisStore, Subject};
use crate::error::InvalidData;
use crate::scripts::SCRIPTS;

#[async_trait]
impl Limiter for RedisStore {
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let (verb, subject) = ("take permits on", Subject::Hub(&request.hub));
        let limit = request.limit.map(|limit| limit.to_string());
        let run = self
            .on_key(self.keys.permits(&request.hub), &SCRIPTS.take_permits)
            .arg(request.rollout.as_str())
            .arg(request.max_permits)
            .arg(request.per_minute.to_string())
            .arg(request.weight)
            .arg(limit.unwrap_or_default())
            .arg(ms(self.durable_after));
        let mut reply = self.run(verb, subject, &run).await?;
        let granted = reply.next().and_then(|permits| {
            let wait = Duration::from_micros(reply.next()?);
            Ok(Grant { permits, wait })
        });
        granted.map_err(|invalid| subject.corrupt(verb, invalid))
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let run = self
            .on_key(self.keys.permits(hub), &SCRIPTS.throttled)
            .arg(ms(retry_after.unwrap_or(THROTTLE_PAUSE)));
        self.run("slow down", Subject::Hub(hub), &run).await?;
        Ok(())
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let (verb, subject) = ("read the pace of", Subject::Hub(hub));
        let run = self.on_key(self.keys.permits(hub), &SCRIPTS.limiter);
        let state = self.run(verb, subject, &run).await?.limiter();
        state.map_err(|invalid| subject.corrupt(verb, invalid))
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let (verb, subject) = ("reserve a link to", Subject::Hub(hub));
        let run = self.on_key(self.keys.links(hub), &SCRIPTS.open_link);
        let wait = self.run(verb, subject, &run).await?.next();
        let wait = wait.map_err(|invalid| subject.corrupt(verb, invalid))?;
        Ok(Duration::from_millis(wait))
    }
}

#[async_trait]
impl Presence for RedisStore {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let (verb, subject) = ("bind", Subject::Hub(hub));
        let key = self.keys.host(hub);
        let set = cmd("SETNX").arg(&key).arg(host.as_str()).to_owned();
        self.ask::<u8>(verb, subject, &set).await?;
        let get = cmd("GET").arg(&key).to_owned();
        let bound: String = self.ask(verb, subject, &get).await?;
        HubHost::new(bound).map_err(|error| subject.corrupt(verb, InvalidData(error.to_string())))
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let (key, verb) = (self.keys.listeners(hub), "report a listener to");
        let (by, since) = (&report.listener, report.received_ago);
        self.report(key, verb, hub, by, since, &report.state).await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        let key = self.keys.listeners(hub);
        self.reports(key, "read the listeners to", hub).await
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let (key, verb) = (self.keys.senders(hub), "report a link to");
        let (by, since) = (&report.worker, Some(report.lasting));
        self.report(key, verb, hub, by, since, &report.state).await
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        let key = self.keys.senders(hub);
        self.reports(key, "read the links to", hub).await
    }
}
