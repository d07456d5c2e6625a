//! One invocation, ready to be posted.

use rdmalib::RemoteAddress;

use super::Place;
use crate::client::buffer::{Input, Output};
use crate::client::slots::Asked;
use rfaas_protocol::invocation::{INPUT_IN_PLACE, InPlaceDetail, OUTPUT_IN_PLACE, RequestHeader};

/// One invocation to post.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Call<'a> {
    pub(in crate::client) function: u32,
    /// What is sent.
    pub(in crate::client) input: &'a Input,
    /// Bytes of input for the function.
    pub(in crate::client) input_bytes: u32,
    pub(in crate::client) reply: RemoteAddress,
    /// Bytes that a worker may write there.
    pub(in crate::client) room: u32,
    /// Bytes that the function may return: as many, unless its output stays in place.
    pub(in crate::client) capacity: u32,
    /// Of the request.
    pub(in crate::client) flags: u16,
    /// The only slot for it, if input and output are there.
    pub(in crate::client) place: Option<Place>,
}

impl<'a> Call<'a> {
    /// `input` was checked to fit a slot; `most` is what a worker may write at all.
    #[inline]
    pub(in crate::client) fn new(
        function: u32,
        input: &'a Input,
        output: &Output,
        most: usize,
    ) -> Self {
        let capacity = wire(output.len().min(most));
        Call {
            function,
            input,
            input_bytes: wire(input.len()),
            reply: output.remote(),
            room: capacity,
            capacity,
            flags: 0,
            place: None,
        }
    }

    /// A call in `place`, where `input_bytes` bytes of input are. Only a header is sent, that of `head`, and
    /// what comes back to `reply` is where the output is, which is at most `most` bytes.
    #[inline]
    pub(in crate::client) fn in_place(
        function: u32,
        place: Place,
        head: &'a Input,
        input_bytes: usize,
        reply: &Output,
        most: usize,
    ) -> Self {
        Call {
            input_bytes: wire(input_bytes),
            capacity: wire(most),
            flags: INPUT_IN_PLACE | OUTPUT_IN_PLACE,
            place: Some(place),
            ..Call::new(function, head, reply, size_of::<InPlaceDetail>())
        }
    }

    /// Its header, for a slot's use of this sequence.
    #[inline]
    pub(super) fn header(&self, sequence: u32) -> RequestHeader {
        RequestHeader {
            reply_addr: self.reply.addr.into(),
            reply_key: self.reply.key.into(),
            output_capacity: self.capacity.into(),
            // Below MAX_FUNCTIONS: the executor's list was checked.
            function: (self.function as u16).into(),
            flags: self.flags.into(),
            input_bytes: self.input_bytes.into(),
            sequence: sequence.into(),
        }
    }

    /// What another like it needs not say again. Not in place, where the header is all that is sent, nor
    /// without an input, which would be a message of nothing.
    #[inline]
    pub(super) fn asked(&self) -> Option<Asked> {
        let Call { function, reply, capacity, .. } = *self;
        (self.flags == 0 && self.input_bytes > 0).then_some(Asked { function, reply, capacity })
    }
}

/// A size, of which deployments allow less than 4 GiB.
#[inline]
fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
