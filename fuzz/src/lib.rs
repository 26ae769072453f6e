//! Shared parts of the targets.

pub mod amqp;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The memory allowed for any input, in bytes: first uses set up permanent tables.
const BASE: usize = 16 << 20;
/// The memory allowed for each byte of an input, in bytes.
const PER_BYTE: usize = 4096;

/// Runs a target on an input, and enforces the memory limit. libFuzzer enforces the time limit (see
/// `run`).
///
/// # Panics
/// If the input takes more memory than its length allows.
pub fn bounded(input: &[u8], target: impl FnOnce(&[u8])) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    target(input);
    let used = ALLOCATOR.peak_usage().saturating_sub(before);
    let allowed = BASE + PER_BYTE * input.len();
    assert!(
        used <= allowed,
        "{used} bytes for an input of {}",
        input.len()
    );
}

/// Defines a target over bytes.
#[macro_export]
macro_rules! bytes {
    ($target:expr) => {
        ::libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::bounded(input, $target));
    };
}

/// Defines a target over text. Inputs other than UTF-8 are skipped.
#[macro_export]
macro_rules! text {
    ($target:expr) => {
        $crate::bytes!(
            |input: &[u8]| if let Ok(text) = std::str::from_utf8(input) {
                $target(text);
            }
        );
    };
}

/// Splits off the first byte of an input. The byte selects the use of the rest.
#[must_use]
pub fn split_mode(input: &[u8]) -> (u8, &[u8]) {
    input
        .split_first()
        .map_or((0, input), |(mode, rest)| (*mode, rest))
}
