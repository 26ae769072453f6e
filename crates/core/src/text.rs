//! What is kept of long texts.

/// Characters of an error that are stored: a chain of causes is shorter.
pub const ERROR_CHARS: usize = 600;

/// The text's first `most` characters, and a mark if there are more.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
