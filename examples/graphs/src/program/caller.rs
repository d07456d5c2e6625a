//! One function on workers of its own, called by the client: what a graph does without it.

use rfaas::{Deployment, Executor, Function, Input, LeaseRequest, Output};
use rfaas_program::Failure;

use crate::Scene;

/// A function, and registered memory for its calls, which is used again.
pub(crate) struct Caller {
    executor: Executor,
    function: Function,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

impl Caller {
    /// Leases `workers` cores for the function called `name`, whose inputs and outputs have at most so many bytes, and
    /// makes memory for `calls` calls at a time.
    pub(crate) fn new(
        scene: &Scene,
        name: &str,
        workers: usize,
        calls: usize,
        (input_bytes, output_bytes): (usize, usize),
    ) -> Result<Caller, Failure> {
        let request = LeaseRequest::new(workers as u32, scene.memory * workers as u32);
        let deployment = Deployment::new().slots(2).spin(scene.spin);
        let deployment = deployment.input_bytes(input_bytes).output_bytes(output_bytes);
        let executor = scene.client.lease(request)?.deploy_with(&scene.library, &deployment)?;
        let function = executor.function(name)?;
        let inputs = (0..calls).map(|_| executor.input(input_bytes)).collect::<Result<_, _>>()?;
        let outputs =
            (0..calls).map(|_| executor.output(output_bytes)).collect::<Result<_, _>>()?;
        Ok(Caller { executor, function, inputs, outputs })
    }

    /// Calls it once.
    pub(crate) fn call(&mut self, input: &[u8]) -> Result<Vec<u8>, Failure> {
        let (place, output) = (&mut self.inputs[0], &mut self.outputs[0]);
        place.set_len(input.len())?;
        place.write(0, input)?;
        let bytes = self.executor.invoke(&self.function, place, output)?;
        Ok(output.to_vec(..bytes)?)
    }

    /// Calls it with each of `inputs`, not more than there is memory for.
    pub(crate) fn call_all(&mut self, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>, Failure> {
        for (place, input) in self.inputs.iter_mut().zip(inputs) {
            place.set_len(input.len())?;
            place.write(0, input)?;
        }
        let (places, outputs) = (&self.inputs[..inputs.len()], &mut self.outputs[..inputs.len()]);
        let sizes = self.executor.invoke_all(&self.function, places, outputs)?;
        let read = outputs.iter().zip(sizes).map(|(output, bytes)| output.to_vec(..bytes));
        Ok(read.collect::<Result<_, _>>()?)
    }
}
