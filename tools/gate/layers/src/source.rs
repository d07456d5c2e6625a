//! What one file says of modules: which it declares, what it imports, what it defines. Code under `#[cfg(test)]` is
//! left out: tests may look at everything.

use crate::lexer::{Token, tokens};

/// Names of modules, from the file's own module down: those that the file has in braces.
pub type Inline = Vec<String>;

/// A thing that a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `mod name;`, in a file of its own, which `#[path]` may name.
    Module { name: String, path: Option<String> },
    /// `mod name { … }`.
    InlineModule { name: String },
    /// `use path as name;` A glob has the name `*`.
    Use { path: Vec<String>, name: String },
    /// `crate::a::B` in code, or `a::B` where `a` may be a module.
    Mention { path: Vec<String> },
    /// `struct Name`, `fn name`, …; a macro may be exported to the root of its crate.
    Definition { name: String, exported: bool },
}

/// An item, the module that it is in, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub within: Inline,
    pub item: Item,
    pub line: usize,
}

/// All that `text` says.
pub fn read(text: &str) -> Vec<Said> {
    let mut reader = Reader { tokens: tokens(text), at: 0, within: Vec::new(), said: Vec::new() };
    reader.items(None);
    reader.said
}

const DEFINES: [&str; 9] =
    ["struct", "enum", "union", "trait", "type", "fn", "const", "static", "macro_rules"];

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    within: Inline,
    said: Vec<Said>,
}

/// What the attributes in front of an item say.
#[derive(Default)]
struct Attributes {
    test: bool,
    path: Option<String>,
    exported: bool,
}

impl Reader {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    fn next(&mut self) -> String {
        let text = self.text(0).to_owned();
        self.at += 1;
        text
    }

    fn say(&mut self, line: usize, item: Item) {
        self.said.push(Said { within: self.within.clone(), item, line });
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.line)
    }

    /// Reads until the brace that ends `module`, or until the end of the file.
    fn items(&mut self, module: Option<&str>) {
        let mut attributes = Attributes::default();
        let mut depth = 0;
        while self.at < self.tokens.len() {
            let line = self.line();
            match self.text(0) {
                "#" if self.text(1) == "[" || (self.text(1) == "!" && self.text(2) == "[") => {
                    self.attribute(&mut attributes);
                    continue;
                }
                _ if attributes.test => {
                    self.skip_item();
                    attributes = Attributes::default();
                    continue;
                }
                "mod" if self.text(2) == ";" => {
                    let (name, path) = (self.text(1).to_owned(), attributes.path.take());
                    self.say(line, Item::Module { name, path });
                    self.at += 3;
                }
                "mod" if self.text(2) == "{" => {
                    let name = self.text(1).to_owned();
                    self.say(line, Item::InlineModule { name: name.clone() });
                    self.at += 3;
                    self.within.push(name.clone());
                    self.items(Some(&name));
                    self.within.pop();
                }
                "use" if self.text(1) != "<" => {
                    // not `impl Trait + use<'a>`
                    self.at += 1;
                    self.use_tree(line, &[]);
                }
                "extern" if self.text(1) == "crate" => self.at += 2,
                "{" | "(" | "[" => {
                    depth += 1;
                    self.at += 1;
                }
                ")" | "]" => {
                    depth -= 1;
                    self.at += 1;
                }
                "}" => {
                    self.at += 1;
                    if depth == 0 && module.is_some() {
                        return;
                    }
                    depth -= 1;
                }
                "pub" | "unsafe" | "async" => {
                    self.at += 1;
                    if self.text(0) == "(" {
                        self.skip_group(); // pub(crate)
                    }
                    continue; // the attributes are for what follows
                }
                "const" if self.at > 0 && self.tokens[self.at - 1].text == "*" => self.at += 1,
                word if DEFINES.contains(&word) => {
                    let name = if self.text(1) == "!" { self.text(2) } else { self.text(1) };
                    let item =
                        Item::Definition { name: name.to_owned(), exported: attributes.exported };
                    if depth == 0 {
                        self.say(line, item);
                    }
                    self.at += 1;
                }
                _ => self.mention(line),
            }
            attributes = Attributes::default();
        }
    }

    /// `#[…]`, of which what concerns modules is kept.
    fn attribute(&mut self, attributes: &mut Attributes) {
        while self.text(0) != "[" {
            self.at += 1;
        }
        let start = self.at;
        self.skip_group();
        let words: Vec<&str> = self.tokens[start + 1..self.at].iter().map(|t| &*t.text).collect();
        match words.first() {
            Some(&"cfg") => attributes.test |= words.contains(&"test") && !words.contains(&"not"),
            Some(&"test") => attributes.test = true,
            Some(&"macro_export") => attributes.exported = true,
            Some(&"path") => {
                attributes.path = words.get(2).and_then(|w| w.strip_prefix('"')).map(str::to_owned);
            }
            _ => {}
        }
    }

    /// Skips `(…)`, `[…]` or `{…}`, with what is in it.
    fn skip_group(&mut self) {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match &*self.next() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Skips an item, field or statement: up to its `;`, its block, or its `,`.
    fn skip_item(&mut self) {
        let (mut field, mut import) = (true, false);
        while self.at < self.tokens.len() {
            match self.text(0) {
                "{" if !import => return self.skip_group(),
                "(" | "[" | "{" => {
                    self.skip_group();
                    continue;
                }
                "," if field => {
                    self.at += 1;
                    return;
                }
                "}" | ")" | "]" => return, // it ends with what it is in
                ";" => {
                    self.at += 1;
                    return;
                }
                "use" => import = true,
                word if DEFINES.contains(&word) || ["impl", "mod"].contains(&word) => field = false,
                _ => {}
            }
            self.at += 1;
        }
    }

    /// What follows `use`, up to its `;` or, within braces, up to a comma or brace.
    fn use_tree(&mut self, line: usize, prefix: &[String]) {
        let mut path = prefix.to_vec();
        loop {
            match &*self.next() {
                "::" | "$" => {}
                "{" => {
                    while !["}", ""].contains(&self.text(0)) {
                        self.use_tree(line, &path);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    self.say(line, Item::Use { path, name: "*".into() });
                    return;
                }
                word => {
                    if word != "self" || path.is_empty() {
                        path.push(word.to_owned());
                    }
                    let name = match self.text(0) {
                        "::" => continue,
                        "as" => {
                            self.at += 2;
                            self.tokens[self.at - 1].text.clone()
                        }
                        _ => path.last().cloned().unwrap_or_default(),
                    };
                    self.say(line, Item::Use { path, name });
                    return;
                }
            }
        }
    }

    /// One token of code, or the whole path that begins here.
    fn mention(&mut self, line: usize) {
        let first = self.next();
        let in_a_path = self.at >= 2 && self.tokens[self.at - 2].text == "::";
        if in_a_path
            || self.text(0) != "::"
            || !first.starts_with(|c: char| c.is_alphabetic() || c == '_')
        {
            return;
        }
        let mut path = vec![first];
        while self.text(0) == "::"
            && self.text(1).starts_with(|c: char| c.is_alphabetic() || c == '_')
        {
            path.push(self.text(1).to_owned());
            self.at += 2;
        }
        self.say(line, Item::Mention { path });
    }
}
