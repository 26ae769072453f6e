//! An Azure IoT Hub service client: twin query, cloud-to-device sends, feedback.
