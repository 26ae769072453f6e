//! Bounds of long texts.

/// The longest stored error text, in characters. A chain of causes is shorter.
pub const ERROR_CHARS: usize = 600;

/// Returns the first `most` characters of the text, followed by `…` if the text is longer.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
