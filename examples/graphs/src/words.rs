//! Counts words: map, shuffle by key, reduce.
//!
//! ```text
//!             ┌─▶ count ─┐        a word goes to the bucket that its letters say, and
//!   split ────┤  by key  ├─▶ merge    a bucket to one of the workers
//!             └─▶ count ─┘
//! ```
//! A word is what lies between characters that are no letters, in small letters.

use std::collections::{BTreeMap, HashMap};

use rfaas_function::{Failure, Output, function, items};

/// Buckets that words are put in: `count` is called once for each.
pub const BUCKETS: u32 = 64;

/// Returns the words of `text`; bytes that are no text are between words.
fn words(text: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(text).to_lowercase();
    let words: Vec<_> = text.split(|c: char| !c.is_alphabetic()).map(str::to_owned).collect();
    words.into_iter().filter(|word| !word.is_empty())
}

/// Returns the bucket of `word` (FNV-1a).
fn bucket(word: &str) -> u32 {
    let hash = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    word.bytes().fold(0x811c_9dc5, hash) % BUCKETS
}

// A text into items, one for each word, whose key is its bucket.
function!(words_split, |text, output, _| {
    words(text)
        .try_for_each(|word| output.push_item(bucket(&word), word.as_bytes()))
        .map_err(Failure::from)
});

// The words of a bucket into lines: each word with how often it is there.
function!(words_count, |bucket, output, _| count(bucket, output));

fn count(bucket: &[u8], output: &mut Output<'_>) -> Result<(), Failure> {
    let mut counts = HashMap::<&[u8], u64>::new();
    for item in items(bucket) {
        *counts.entry(item?.data).or_default() += 1;
    }
    for (word, count) in counts {
        output.extend(word)?;
        output.extend(format!(" {count}\n").as_bytes())?;
    }
    Ok(())
}

// Lists of such lines, one from each worker, into one text in the order of `table`.
function!(words_merge, |input, output, call| {
    let inputs = call.about().map_or(1, |about| about.inputs);
    let mut lists = vec![input];
    for number in 1..inputs {
        lists.push(call.input(number)?);
    }
    merge(&lists, output)
});

fn merge(lists: &[&[u8]], output: &mut Output<'_>) -> Result<(), Failure> {
    let mut counts = BTreeMap::new();
    for item in lists.iter().copied().flat_map(items) {
        let lines = str::from_utf8(item?.data).map_err(|_| Failure::new(1))?;
        for line in lines.lines() {
            let (word, count) = line.split_once(' ').ok_or(Failure::new(1))?;
            let count: u64 = count.parse().map_err(|_| Failure::new(1))?;
            *counts.entry(word.to_owned()).or_default() += count;
        }
    }
    output.extend(table(counts).as_bytes())?;
    Ok(())
}

/// Returns a line for each word: the most frequent first, those that are equally frequent in the order of the alphabet.
fn table(counts: BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(word, count)| format!("{count} {word}\n")).collect()
}

/// The same in one process.
pub fn counted(text: &[u8]) -> String {
    let mut counts = BTreeMap::new();
    words(text).for_each(|word| *counts.entry(word).or_default() += 1);
    table(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_counted_and_merged_are_the_words_counted() {
        let text = "To be, or not to be: that is the question. Être \u{fffd}".as_bytes();
        let mut by_bucket = BTreeMap::<u32, Vec<String>>::new();
        for word in words(text) {
            by_bucket.entry(bucket(&word)).or_default().push(word);
        }
        let mut lists = vec![0; 4096];
        let mut lists = Output::new(&mut lists);
        for (bucket, words) in by_bucket {
            let (mut list, mut lines) = ([0; 256], [0; 256]);
            let (mut list, mut lines) = (Output::new(&mut list), Output::new(&mut lines));
            words.iter().for_each(|word| list.push_item(0, word.as_bytes()).unwrap());
            count(list.written(), &mut lines).unwrap();
            lists.push_item(bucket, lines.written()).unwrap();
        }
        let mut place = [0; 256];
        let mut output = Output::new(&mut place);
        merge(&[lists.written()], &mut output).unwrap();
        assert_eq!(output.written(), counted(text).as_bytes());
        assert!(counted(text).starts_with("2 be\n2 to\n1 is\n"), "{}", counted(text));
    }
}
