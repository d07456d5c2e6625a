//! The rod: one function that is called again until it is done.

use graphs::rod::{is_done, settled, start, state_bytes, temperatures};
use rfaas::Graph;
use rfaas_program::Failure;

use crate::caller::Caller;
use crate::{Make, Scene};

const TOLERANCE: f64 = 1e-9;

pub(crate) fn run(scene: &Scene, points: usize) -> Result<String, Failure> {
    let mut heat = vec![0.0; points];
    heat[points / 2] = 1.0;
    let bytes = state_bytes(points);
    let begin = start(TOLERANCE, &heat);

    let mut graph = Graph::new();
    let settle = graph.function(&scene.library, "rod_settle");
    graph.again(settle).input(settle, bytes).output(settle, bytes);
    let mut compiled = scene.compile(&mut graph)?;
    let mut by_graph = || -> Result<_, Failure> { Ok(compiled.run(&begin)?.concat()) };
    let end = by_graph()?;

    let (plain, steps) = settled(TOLERANCE, &heat);
    if temperatures(&end) != Some(plain) {
        return Err(Failure::later("the graph and a plain computation differ"));
    }
    let by_client = || -> Result<Make, Failure> {
        let mut caller = Caller::new(scene, "rod_step", 1, 1, (bytes, bytes))?;
        let begin = begin.clone();
        let settle = move || -> Result<Vec<u8>, Failure> {
            let mut state = begin.clone();
            while is_done(&state) == Some(false) {
                state = caller.call(&state)?;
            }
            Ok(state)
        };
        Ok(Box::new(settle))
    };
    let compared = scene.compared(&end, &mut by_graph, by_client)?;
    compiled.release()?;

    let ends = temperatures(&end).unwrap_or_default();
    let hottest = ends.iter().copied().fold(0.0, f64::max);
    Ok(format!("{points} points, {steps} steps, hottest {hottest:.6}\n{compared}"))
}
