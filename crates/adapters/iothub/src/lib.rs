//! The hub port on Azure IoT Hub.
