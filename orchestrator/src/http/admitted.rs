//! The admission of callers to a handler.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;

use super::audit::Origin;
use super::auth::{Access, Caller, RequiredRight, Right, token};
use super::caller_limits::CallerSlot;
use super::problem::Problem;
use super::shared::Shared;

/// The interval between two checks of an open stream's token.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A caller with the right for a handler, and with a slot among the concurrent requests. A handler
/// extracts the admission before the body, so no body is read for other callers.
pub(crate) struct Admitted<R> {
    /// The caller.
    pub(crate) caller: Caller,
    /// The origin of the request.
    pub(crate) origin: Origin,
    /// The token, if the caller was admitted by a token.
    token: Option<String>,
    _slot: CallerSlot,
    _right: PhantomData<R>,
}

impl<R: RequiredRight> FromRequestParts<Arc<Shared>> for Admitted<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Problem> {
        let origin = Origin::of(parts);
        let denied = |caller: Option<&Caller>, problem: &Problem| {
            shared.denied(parts, &origin, caller, problem);
        };
        let caller = shared.api.access.caller(parts).await;
        let caller = caller.inspect_err(|problem| denied(None, problem))?;
        let may = caller.may(R::RIGHT);
        may.inspect_err(|problem| denied(Some(&caller), problem))?;
        let limit = match R::RIGHT {
            Right::Stop => &shared.stops,
            Right::Read | Right::Operate | Right::Decide | Right::Delete => &shared.requests,
        };
        Ok(Self {
            _slot: limit.take(caller.name())?,
            caller,
            origin,
            token: token(parts).map(str::to_owned),
            _right: PhantomData,
        })
    }
}

impl<R> Admitted<R> {
    /// Waits until the caller's token is no longer valid.
    pub(super) fn token_expired(&self, shared: &Arc<Shared>) -> impl Future<Output = ()> + use<R> {
        let access = Arc::clone(&shared.api.access);
        let token = self.token.clone();
        async move {
            let (Access::Tokens(known), Some(token)) = (&*access, token) else {
                return std::future::pending().await;
            };
            while known.caller(&token).await.is_ok() {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        }
    }
}

impl Shared {
    /// Counts and logs a denied request. A request whose permission cannot be determined is not
    /// denied.
    fn denied(&self, parts: &Parts, origin: &Origin, by: Option<&Caller>, problem: &Problem) {
        if !problem.is_denial() {
            return;
        }
        if parts.method == Method::POST {
            self.api.status.metrics.count_denied();
        }
        let second = self.api.executor.clock.now().0 / 1_000;
        self.denials.note(second, parts, origin, by, problem);
    }
}
