//! Whoever is let in to a handler.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;

use super::audit::Origin;
use super::auth::{Caller, Door, Needed, Right, token};
use super::places::Place;
use super::problem::Problem;
use super::shared::Shared;

/// How often it is looked whether the token of an open stream is still good.
const LOOK: Duration = Duration::from_secs(1);

/// Whoever may do what a handler does, with a place among those who are answered. It is the first that a handler asks
/// for: nothing of a body is read for others.
pub(crate) struct Admitted<R> {
    /// Who asks.
    pub(crate) caller: Caller,
    /// Where from.
    pub(crate) origin: Origin,
    /// The token, if it was one that let them in.
    token: Option<String>,
    _place: Place,
    _right: PhantomData<R>,
}

impl<R: Needed> FromRequestParts<Arc<Shared>> for Admitted<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Problem> {
        let origin = Origin::of(parts);
        let denied = |caller: Option<&Caller>, problem: &Problem| {
            shared.denied(parts, &origin, caller, problem);
        };
        let caller = shared.api.door.caller(parts).await;
        let caller = caller.inspect_err(|problem| denied(None, problem))?;
        let may = caller.may(R::RIGHT);
        may.inspect_err(|problem| denied(Some(&caller), problem))?;
        let places = match R::RIGHT {
            Right::Stop => &shared.emergencies,
            Right::Look | Right::Operate | Right::Decide | Right::Delete => &shared.requests,
        };
        Ok(Self {
            _place: places.take(caller.name())?,
            caller,
            origin,
            token: token(parts).map(str::to_owned),
            _right: PhantomData,
        })
    }
}

impl<R> Admitted<R> {
    /// Waits until their token is good no longer.
    pub(super) fn is_over(&self, shared: &Arc<Shared>) -> impl Future<Output = ()> + use<R> {
        let door = Arc::clone(&shared.api.door);
        let token = self.token.clone();
        async move {
            let (Door::Bearers(bearers), Some(token)) = (&*door, token) else {
                return std::future::pending().await;
            };
            while bearers.caller(&token).await.is_ok() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

impl Shared {
    /// Notes that somebody asked for what they may not. That it cannot be known now whether they may is no denial.
    fn denied(&self, parts: &Parts, origin: &Origin, by: Option<&Caller>, problem: &Problem) {
        if !problem.is_denial() {
            return;
        }
        if parts.method == Method::POST {
            self.api.status.metrics.denied();
        }
        let second = self.api.intake.clock.now().0 / 1_000;
        self.denials.note(second, parts, origin, by, problem);
    }
}
