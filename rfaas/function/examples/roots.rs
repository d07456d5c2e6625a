//! A library of functions for graphs: `cargo build -p rfaas_function --examples` makes `libroots.so`.

use std::time::Duration;

use rfaas_function::{Call, End, Failure, Output, Run, batch, function, items};

/// The square root of the second number of its input, from the first one on, a step at a time.
fn root(input: &[u8], output: &mut Output<'_>, _call: &mut Call<'_>) -> Result<End, Failure> {
    let ([guess, of], []) = input.as_chunks() else { return Err(Failure::new(1)) };
    let (guess, of) = (f64::from_le_bytes(*guess), f64::from_le_bytes(*of));
    let next = (guess + of / guess) / 2.0;
    if (next - guess).abs() <= f64::EPSILON * next {
        output.extend(&next.to_le_bytes())?;
        return Ok(End::Value);
    }
    output.extend(&next.to_le_bytes())?;
    output.extend(&of.to_le_bytes())?;
    Ok(End::Again)
}
function!(root);

/// The items of all inputs that are there, and what the function behind edge 1 makes of each; edge 0 learns how many
/// there are, before.
fn ask(_input: &[u8], output: &mut Output<'_>, call: &mut Call<'_>) -> Result<(), Failure> {
    let inputs = call.about().ok_or(Failure::new(2))?.inputs;
    let there: Vec<_> = (0..inputs).filter_map(|number| call.input(number).ok()).collect();
    let count: usize = there.iter().map(|input| items(input).count()).sum();
    let mut first = call.output(0)?;
    first.extend(&(count as u32).to_le_bytes())?;
    first.emit()?;
    for item in there.into_iter().flat_map(items) {
        let item = item?;
        let mut question = call.output(1)?;
        question.extend(item.data)?;
        let answer = question.call(Duration::from_secs(1))?;
        output.push_item(item.key, answer)?;
    }
    Ok(())
}
function!(ask);

// Its input, backwards; none if that is empty.
function!(reversed, |input, output, _| {
    if input.is_empty() {
        return Ok(End::NoValue);
    }
    output.extend(&input.iter().rev().copied().collect::<Vec<_>>())?;
    Ok::<_, Failure>(End::Value)
});

/// The square root of each run's number; none of a negative one.
fn square_roots(runs: &mut [Run<'_>]) -> Result<(), Failure> {
    for run in runs {
        let Ok(number) = run.input().try_into().map(f64::from_le_bytes) else {
            run.end(Failure::new(1)); // this run alone
            continue;
        };
        match number {
            number if number.is_nan() => return Err(Failure::new(2)), // all of them
            number if number < 0.0 => run.end(End::NoValue),
            number => run.output().extend(&number.sqrt().to_le_bytes())?,
        }
    }
    Ok(())
}
batch!(square_roots);
