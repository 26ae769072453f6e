//! Direct methods: a service calls, and waits for the connected device's answer.

use std::time::Duration;

use bytes::Bytes;

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::line::Interest;

/// A call of a direct method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) name: String,
    /// JSON.
    pub(crate) payload: Bytes,
    /// How long the device has for its answer.
    pub(crate) response_time_out: Duration,
    /// How long the device has to connect and to be ready for methods.
    pub(crate) connect_time_out: Duration,
}

/// What a device has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MethodAnswer {
    /// The device's own verdict.
    pub(crate) status: i32,
    /// JSON, or nothing.
    pub(crate) payload: Bytes,
}

impl Hub {
    /// Calls a method of a device. Dropping the future forgets the call, which the device may have got.
    ///
    /// Refused with 404001 and 404103 if there is no such device or it is not ready for methods in time, and with 504101
    /// if it has the call and does not answer in time, or its connection ends: it may have run the method.
    pub(crate) async fn invoke(
        &self,
        id: &str,
        invocation: &Invocation,
    ) -> Result<MethodAnswer, Refusal> {
        self.tallies.methods.one();
        let device = self
            .registry()
            .number(id)
            .ok_or_else(|| Refusal::device_not_found(id))?;
        let connecting = async {
            loop {
                // Before the look: a device that gets ready between the two is not missed.
                let ready = self.methods_ready.notified();
                let line = self.state().devices.line(device);
                if let Some(line) = line.filter(|line| line.wants(Interest::Methods)) {
                    return line;
                }
                ready.await;
            }
        };
        let line = tokio::time::timeout(invocation.connect_time_out, connecting)
            .await
            .map_err(|_| Refusal::device_not_online(id))?;
        let (call, answer) = line
            .call(&invocation.name, invocation.payload.clone())
            .ok_or_else(|| Refusal::device_not_online(id))?;
        let forgets = Forget { line: &line, call };
        let answer = tokio::time::timeout(invocation.response_time_out, answer).await;
        drop(forgets);
        match answer {
            Ok(Ok(answer)) => {
                self.tallies.methods_answered.one();
                Ok(answer)
            }
            // Too late, or the connection has ended.
            Ok(Err(_)) | Err(_) => Err(Refusal::gateway_timeout(id)),
        }
    }
}

/// Forgets a call when its caller no longer waits.
struct Forget<'a> {
    line: &'a super::line::Line,
    call: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.line.forget_call(self.call);
    }
}
