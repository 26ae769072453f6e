//! An Azure IoT Hub emulator on real sockets that the official service SDKs accept.
