//! The temperature along a rod that is heated, by the method of Jacobi: again and again, each point becomes the mean of
//! its neighbours, plus its heat, until nothing changes by more than a tolerance.
//!
//! ```text
//!   state:  tolerance f64 │ change f64 │ heat f64 × n │ temperature f64 × n        both ends of the rod have 0 degrees
//! ```

use rfaas_function::{End, Failure, Output, function};

/// Bytes in front of the points: the tolerance, and the last change.
const FRONT: usize = 16;

/// Returns the bytes of the state of a rod of `points` points.
pub fn state_bytes(points: usize) -> usize {
    FRONT + 16 * points
}

/// Returns the state to begin with: cold, with `heat` at each point.
pub fn start(tolerance: f64, heat: &[f64]) -> Vec<u8> {
    let cold = heat.iter().map(|_| 0.0);
    let numbers = [tolerance, f64::INFINITY].into_iter().chain(heat.iter().copied()).chain(cold);
    numbers.flat_map(f64::to_le_bytes).collect()
}

/// Returns the temperatures in `state`; `None` if it is none.
pub fn temperatures(state: &[u8]) -> Option<Vec<f64>> {
    let (numbers, []) = state.as_chunks::<8>() else { return None };
    let (_, points) = numbers.split_at_checked(2)?;
    Some(points[points.len() / 2..].iter().map(|number| f64::from_le_bytes(*number)).collect())
}

/// Returns whether the last step changed nothing by more than the tolerance; `None` if `state` is none.
pub fn is_done(state: &[u8]) -> Option<bool> {
    let number = |at: usize| Some(f64::from_le_bytes(*state.get(at..)?.first_chunk()?));
    Some(number(8)? <= number(0)?)
}

/// Writes the state that follows `state`.
fn step(state: &[u8], output: &mut Output<'_>) -> Result<(), Failure> {
    let (numbers, []) = state.as_chunks::<8>() else { return Err(Failure::new(1)) };
    let Some((&[tolerance, _], points)) = numbers.split_first_chunk() else {
        return Err(Failure::new(1));
    };
    let (heat, before) = points.split_at(points.len() / 2);
    if heat.len() != before.len() {
        return Err(Failure::new(1));
    }
    let at = |point: Option<usize>| match point.and_then(|point| before.get(point)) {
        Some(number) => f64::from_le_bytes(*number),
        None => 0.0, // behind an end
    };
    let next = output.reserve(state.len())?;
    let (front, points) = next.split_at_mut(FRONT);
    let (same_heat, after) = points.split_at_mut(8 * heat.len());
    same_heat.copy_from_slice(heat.as_flattened());
    let mut change = 0.0_f64;
    for (point, (place, heat)) in after.as_chunks_mut::<8>().0.iter_mut().zip(heat).enumerate() {
        let beside = at(point.checked_sub(1)) + at(Some(point + 1));
        let new = (beside + f64::from_le_bytes(*heat)) / 2.0;
        change = change.max((new - at(Some(point))).abs());
        *place = new.to_le_bytes();
    }
    front[..8].copy_from_slice(&tolerance);
    front[8..].copy_from_slice(&change.to_le_bytes());
    Ok(())
}

// One step, for a client that asks for each.
function!(rod_step, |state, output, _| step(state, output));

// Steps until it is done, for a graph that lets it be called again.
function!(rod_settle, |state, output, _| {
    step(state, output)?;
    let done = is_done(output.written()) == Some(true);
    Ok::<_, Failure>(if done { End::Value } else { End::Again })
});

/// The same in one process: returns the temperatures, and the steps that it took.
pub fn settled(tolerance: f64, heat: &[f64]) -> (Vec<f64>, usize) {
    let mut now = vec![0.0; heat.len()];
    let mut steps = 0;
    loop {
        steps += 1;
        let beside = |point: usize| {
            let left = point.checked_sub(1).map_or(0.0, |left| now[left]);
            left + now.get(point + 1).copied().unwrap_or(0.0)
        };
        let next: Vec<f64> =
            heat.iter().enumerate().map(|(point, heat)| (beside(point) + heat) / 2.0).collect();
        let changes = next.iter().zip(&now).map(|(next, now)| (next - now).abs());
        let change = changes.fold(0.0, f64::max);
        now = next;
        if change <= tolerance {
            return (now, steps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_to_what_a_plain_computation_finds() {
        let heat = [1.0, 0.0, 0.5, 2.0, 0.25];
        let mut state = start(1e-9, &heat);
        let mut steps = 0;
        while is_done(&state) == Some(false) {
            let mut place = vec![0; state_bytes(heat.len())];
            let mut output = Output::new(&mut place);
            step(&state, &mut output).unwrap();
            state = output.written().to_vec();
            steps += 1;
        }
        assert_eq!((temperatures(&state).unwrap(), steps), settled(1e-9, &heat));
        // Each point is half of its neighbours and its heat.
        let now = temperatures(&state).unwrap();
        assert!((now[0] - (now[1] + 1.0) / 2.0).abs() < 1e-8);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let mut place = [0; 64];
        for bytes in [0, 7, 8, 15, 24] {
            let state = vec![0; bytes];
            assert!(step(&state, &mut Output::new(&mut place)).is_err(), "{bytes}");
        }
        assert_eq!((temperatures(&[0; 9]), is_done(&[0; 9])), (None, None));
    }
}
