//! What the targets share.

pub mod amqp;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Memory that an input may take whatever its length: first uses set up tables that stay.
const BASE: usize = 16 << 20;
/// Memory that an input may take for each of its bytes.
const PER_BYTE: usize = 4096;

/// Runs a target on an input and holds it to the bound of memory. The bound of time is libFuzzer's (`run`).
///
/// # Panics
/// The input takes more memory than its length allows.
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

/// A target over bytes.
#[macro_export]
macro_rules! bytes {
    ($target:expr) => {
        ::libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::bounded(input, $target));
    };
}

/// A target over text; what is not UTF-8 is no input for it.
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

/// Takes the first byte off an input, which says what is to be done with the rest.
#[must_use]
pub fn mode(input: &[u8]) -> (u8, &[u8]) {
    input
        .split_first()
        .map_or((0, input), |(mode, rest)| (*mode, rest))
}
