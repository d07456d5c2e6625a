//! The word count: a text is split, words go to workers by key, and their counts come together.

use std::collections::BTreeMap;

use graphs::words::{BUCKETS, counted};
use rfaas::Graph;
use rfaas_function::{Output, items};
use rfaas_program::Failure;

use crate::caller::Caller;
use crate::{Make, Scene};

/// Words that are printed.
const SHOWN: usize = 5;

pub(crate) fn run(scene: &Scene, text: &[u8], workers: usize) -> Result<String, Failure> {
    // A word and what follows it are 2 bytes at least, and its item 16: in small letters it may be longer.
    let items_bytes = 9 * text.len() + 64;
    // A line of a word has a count and a line end besides.
    let lines_bytes = 4 * text.len() + 64 + 16 * BUCKETS as usize;

    let mut graph = Graph::new();
    let [split, count, merge] = ["words_split", "words_count", "words_merge"]
        .map(|name| graph.function(&scene.library, name));
    graph.workers(count, workers);
    graph.input(split, text.len());
    graph.keyed(split, count, items_bytes);
    graph.edge(count, merge, lines_bytes);
    graph.output(merge, lines_bytes);
    let mut compiled = scene.compile(&mut graph)?;
    let mut by_graph = || -> Result<_, Failure> { Ok(compiled.run(text)?.concat()) };
    let end = by_graph()?;
    if end != counted(text).as_bytes() {
        return Err(Failure::later("the graph and a plain computation differ"));
    }

    let by_client = || -> Result<Make, Failure> {
        let mut split = Caller::new(scene, "words_split", 1, 1, (text.len(), items_bytes))?;
        // Each bucket might have all words.
        let buckets = BUCKETS as usize;
        let sizes = (items_bytes, lines_bytes);
        let mut count = Caller::new(scene, "words_count", workers, buckets, sizes)?;
        let mut merge = Caller::new(scene, "words_merge", 1, 1, (lines_bytes, lines_bytes))?;
        let text = text.to_vec();
        let mut place = vec![0; lines_bytes];
        let make = move || -> Result<Vec<u8>, Failure> {
            let shuffled = by_key(&split.call(&text)?)?;
            let lists: Vec<_> = shuffled.values().map(|list| &list[..]).collect();
            let counts = count.call_all(&lists)?;
            let mut list = Output::new(&mut place);
            for (key, lines) in shuffled.keys().zip(counts) {
                list.push_item(*key, &lines).map_err(Failure::later)?;
            }
            merge.call(list.written())
        };
        Ok(Box::new(make))
    };
    let compared = scene.compared(&end, &mut by_graph, by_client)?;
    compiled.release()?;

    let table = String::from_utf8_lossy(&end);
    let shown: String = table.lines().take(SHOWN).map(|line| format!("{line}\n")).collect();
    let words = table.lines().count();
    Ok(format!("{words} different words; the most frequent:\n{shown}{compared}"))
}

/// The items of each key in `list`, as lists.
fn by_key(list: &[u8]) -> Result<BTreeMap<u32, Vec<u8>>, Failure> {
    let mut lists = BTreeMap::<u32, Vec<u8>>::new();
    for item in items(list) {
        let item = item.map_err(|_| Failure::later("the split text is no list of items"))?;
        let list = lists.entry(item.key).or_default();
        let begin = list.len();
        list.resize(begin + (8 + item.data.len()).next_multiple_of(8), 0);
        Output::new(&mut list[begin..]).push_item(item.key, item.data).map_err(Failure::later)?;
    }
    Ok(lists)
}
