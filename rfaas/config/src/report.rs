//! How a program reports the error that ends it.

use std::error::Error;

/// An error that may end a program.
pub trait ProgramError: Error {
    /// Returns whether the program was given something wrong (a flag, file, device, address), which
    /// repeating does not mend.
    fn is_wrong_input(&self) -> bool;
}

/// Returns `error` and what caused it, in one line. A cause that the text before it already tells is
/// left out.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open failed")]
    struct Open(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("device")]
    struct Device(#[source] Open);

    #[derive(Debug, thiserror::Error)]
    #[error("device: {0}")]
    struct DeviceThatTells(#[source] Open);

    #[test]
    fn an_error_is_told_with_all_its_causes_each_of_them_once() {
        let busy = || Open(io::Error::other("busy"));
        assert_eq!(describe(&busy()), "open failed: busy");
        assert_eq!(describe(&Device(busy())), "device: open failed: busy");
        assert_eq!(describe(&DeviceThatTells(busy())), "device: open failed: busy");
    }

    #[test]
    fn a_cause_without_words_adds_nothing() {
        assert_eq!(describe(&Open(io::Error::other(""))), "open failed");
    }
}
