//! Direct methods: a service calls, and waits for the connected device's answer.

use std::time::Duration;

use bytes::Bytes;

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::connection::Interest;

/// A call of a direct method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) name: String,
    /// JSON.
    pub(crate) payload: Bytes,
    /// The time allowed for the device's answer.
    pub(crate) response_time_out: Duration,
    /// The time allowed for the device to connect and become ready for methods.
    pub(crate) connect_time_out: Duration,
}

/// The answer of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MethodAnswer {
    /// The status chosen by the device.
    pub(crate) status: i32,
    /// JSON, or empty.
    pub(crate) payload: Bytes,
}

impl Hub {
    /// Calls a method of a device.
    ///
    /// # Errors
    ///
    /// * 404001 if the device does not exist.
    /// * 404103 if the device is not ready for methods in time.
    /// * 504101 if the device has received the call and does not answer in time, or if the
    ///   connection ends. The device may have run the method.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future forgets the call. The device may already have received the call.
    pub(crate) async fn invoke(
        &self,
        id: &str,
        invocation: &Invocation,
    ) -> Result<MethodAnswer, Refusal> {
        self.counters.methods.one();
        let device = self
            .registry()
            .number(id)
            .ok_or_else(|| Refusal::device_not_found(id))?;
        let connecting = async {
            loop {
                // Register before reading the connection: a device getting ready between the two
                // steps is not missed.
                let ready = self.methods_ready.notified();
                let connection = self.state().devices.connection(device);
                if let Some(connection) =
                    connection.filter(|connection| connection.wants(Interest::Methods))
                {
                    return connection;
                }
                ready.await;
            }
        };
        let connection = tokio::time::timeout(invocation.connect_time_out, connecting)
            .await
            .map_err(|_| Refusal::device_not_online(id))?;
        let (call, answer) = connection
            .call(&invocation.name, invocation.payload.clone())
            .ok_or_else(|| Refusal::device_not_online(id))?;
        let forgets = Forget {
            connection: &connection,
            call,
        };
        let answer = tokio::time::timeout(invocation.response_time_out, answer).await;
        drop(forgets);
        match answer {
            Ok(Ok(answer)) => {
                self.counters.methods_answered.one();
                Ok(answer)
            }
            // The answer is late, or the connection has ended.
            Ok(Err(_)) | Err(_) => Err(Refusal::gateway_timeout(id)),
        }
    }
}

/// Forgets a call when the caller no longer waits.
struct Forget<'a> {
    connection: &'a super::connection::DeviceConnection,
    call: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.forget_call(self.call);
    }
}
