//! Rust source as tokens: what is needed to find imports, without comments and literals.

/// A token, and the line on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// An identifier or keyword, `::`, `"` with the text of a plain string literal behind it, or one character of
    /// punctuation.
    pub text: String,
    /// Line, from 1.
    pub line: usize,
}

/// The tokens of `source`. Literals other than plain strings, and lifetimes, are left out.
pub fn tokens(source: &str) -> Vec<Token> {
    Lexer { rest: source, line: 1, found: Vec::new() }.run()
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    found: Vec<Token>,
}

impl Lexer<'_> {
    fn run(mut self) -> Vec<Token> {
        while let Some(c) = self.rest.chars().next() {
            if self.rest.starts_with("//") {
                self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if self.rest.starts_with("/*") {
                self.block_comment();
            } else if let Some(hashes) = raw_string(self.rest) {
                let end = format!("\"{}", "#".repeat(hashes));
                let start = self.rest.find('"').map_or(self.rest.len(), |quote| quote + 1);
                let length = self.rest[start..].find(&end).map(|at| start + at + end.len());
                self.skip(length.unwrap_or(self.rest.len()));
            } else if c == '"' {
                self.string();
            } else if c == '\'' {
                self.skip(quote_length(self.rest));
            } else if is_identifier(c) {
                self.skip(if self.rest.starts_with("r#") { 2 } else { 0 });
                let length = self.rest.find(|c| !is_identifier(c)).unwrap_or(self.rest.len());
                self.token(length);
            } else if self.rest.starts_with("::") {
                self.token(2);
            } else if c.is_whitespace() {
                self.skip(c.len_utf8());
            } else {
                self.token(c.len_utf8());
            }
        }
        self.found
    }

    fn token(&mut self, length: usize) {
        self.found.push(Token { text: self.rest[..length].to_owned(), line: self.line });
        self.skip(length);
    }

    fn skip(&mut self, length: usize) {
        let (skipped, rest) = self.rest.split_at(length);
        self.line += skipped.matches('\n').count();
        self.rest = rest;
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            if self.rest.starts_with("/*") {
                depth += 1;
                self.skip(2);
            } else if self.rest.starts_with("*/") {
                depth -= 1;
                self.skip(2);
            } else {
                let Some(c) = self.rest.chars().next() else { return };
                self.skip(c.len_utf8());
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        let mut escaped = true; // so the quote at the beginning does not end it
        let end = self.rest.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        self.token(end.unwrap_or(self.rest.len()));
        self.skip(usize::from(end.is_some()));
    }
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The number of `#` of a raw string literal that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let rest = ["br", "cr", "r"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Length of the character literal or lifetime that begins here.
fn quote_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            let body = text.get(3..).unwrap_or_default();
            body.find('\'').map_or(text.len(), |end| 3 + end + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1 + text[1..].find(|c| !is_identifier(c)).unwrap_or(text.len() - 1),
        },
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_are_no_imports() {
        let source = "a // crate::x\n/* crate::y /* nested */ crate::z */ b r#\"crate::\"q\"# 'c' '\\'' '\\u{1F}' <'d> e";
        assert_eq!(texts(source), ["a", "b", "<", ">", "e"]);
        assert_eq!(
            texts("x(\"a \\\" crate::b\", y)"),
            ["x", "(", "\"a \\\" crate::b", ",", "y", ")"]
        );
    }

    #[test]
    fn paths_and_raw_names_are_taken_apart() {
        assert_eq!(
            texts("crate::r#mod::{b,c}"),
            ["crate", "::", "mod", "::", "{", "b", ",", "c", "}"]
        );
        assert_eq!(tokens("a\n\n\"\n\" b")[2], Token { text: "b".into(), line: 4 });
    }
}
