//! Commands that are printed for people to paste into a shell.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Returns `word` as a POSIX shell takes it for one word: as it is where no shell would change it,
/// else quoted. What is no text is quoted as bash, zsh and POSIX 2024 do it.
pub fn word(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:,+@%=".contains(byte);
    match word.to_str() {
        Some(text) if !text.is_empty() && word.as_bytes().iter().all(plain) => text.to_owned(),
        Some(text) if !text.contains(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => {
            let byte = |byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
                b' '..=b'~' => char::from(*byte).to_string(),
                other => format!("\\{other:03o}"),
            };
            format!("$'{}'", word.as_bytes().iter().map(byte).collect::<String>())
        }
    }
}

/// Returns a command line of `words`.
pub fn line<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> String {
    words.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn bash_reads_every_word_as_it_was() {
        let words: [&[u8]; 10] = [
            b"/usr/bin/program",
            b"--size=64",
            b"with blank",
            b"",
            b"it's",
            b"$HOME `id` \"*\" ~ ; # \\",
            "Größe".as_bytes(),
            b"line\nend\ttab",
            b"no \xff text's \\",
            b"~",
        ];
        let words = words.map(OsStr::from_bytes);
        let script = format!("printf '%s\\0' {}", line(words));
        let told = Command::new("bash").args(["-c", &script]).output().unwrap();
        let read: Vec<&[u8]> = told.stdout.split(|byte| *byte == 0).collect();
        assert_eq!(read[..words.len()], words.map(OsStrExt::as_bytes), "{script}");
    }

    #[test]
    fn what_needs_no_quotes_has_none() {
        let words = ["target/release/cluster", "--size", "64", "127.0.0.1:10000"];
        assert_eq!(line(words), words.join(" "));
    }
}
