//! What the programs say about a command line that they do not understand: the same, in one line.

/// Returns `text`, in which clap tells what is wrong, in one line and without the words `error: `
/// in front: what is wrong, clap's hint at what was meant, and where to read more.
pub(super) fn complaint(text: &str) -> String {
    let paragraphs = text.trim_start_matches("error: ").split("\n\n");
    let mut said: Vec<String> = paragraphs
        .take_while(|paragraph| {
            !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more")
        })
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|paragraph| !paragraph.is_empty())
        .map(|paragraph| paragraph.trim_start_matches("tip: ").to_owned())
        .collect();
    said.push("try --help".into());
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_at_what_was_meant_stays_and_the_usage_goes() {
        let text = "error: unexpected argument '--confg' found\n\n  tip: a similar argument exists: '--config'\n\n\
                    Usage: resource_manager --config <FILE>\n\nFor more information, try '--help'.\n";
        let expected = "unexpected argument '--confg' found; a similar argument exists: '--config'; try --help";
        assert_eq!(complaint(text), expected);
    }

    #[test]
    fn what_has_several_lines_becomes_one() {
        let text = "error: the following required arguments were not provided:\n  --name <NAME>\n\nUsage: x\n";
        let expected =
            "the following required arguments were not provided: --name <NAME>; try --help";
        assert_eq!(complaint(text), expected);
        assert_eq!(complaint(""), "try --help");
    }
}
