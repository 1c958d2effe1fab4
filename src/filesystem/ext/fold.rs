//! Case folding of names in directories that ignore case.

/// The form in which two names that differ in case alone are equal; bytes that are not UTF-8 stay.
pub fn fold(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => name.to_vec(),
    }
}
