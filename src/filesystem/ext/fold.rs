//! Case folding of names in directories that ignore case.
//!
//! Spec: `fs/unicode` of Linux: canonical decomposition, full case folding, and again decomposition;
//! code points that are ignorable by default count for nothing.

use caseless::default_case_fold_str;
use unicode_normalization::UnicodeNormalization;

/// The form in which two names that differ in case alone are equal; bytes that are not UTF-8 stay.
pub fn fold(name: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(name) else { return name.to_vec() };
    if text.is_ascii() {
        return text.to_ascii_lowercase().into_bytes();
    }
    let decomposed: String = text.nfd().filter(|&c| !is_ignorable(c)).collect();
    default_case_fold_str(&decomposed).nfd().collect::<String>().into_bytes()
}

/// Unicode's `Default_Ignorable_Code_Point`.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_or_composition_alone_fold_to_one() {
        for (a, b) in [("Straße", "STRASSE"), ("gr\u{fc}n", "GRU\u{308}N"), ("ΣΑΣ", "σας"), ("a\u{200d}b", "AB")]
        {
            assert_eq!(fold(a.as_bytes()), fold(b.as_bytes()));
        }
        assert_ne!(fold(b"a\xff"), fold(b"A\xff"));
    }
}
