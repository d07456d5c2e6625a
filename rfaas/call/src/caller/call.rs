//! One call, ready to be posted.

use rdmalib::RemoteAddress;

use super::buffer::{InputBuffer, OutputBuffer};
use super::slots::KeptRequest;
use rfaas_protocol::invocation::{INPUT_IN_PLACE, InPlaceDetail, OUTPUT_IN_PLACE, RequestHeader};

/// A slot of a caller's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the worker.
    pub worker: usize,
    /// Number of the slot.
    pub slot: u16,
}

/// One call to post.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Number of the function.
    pub(super) function: u16,
    /// The buffer that is sent.
    pub(super) input: &'a InputBuffer,
    /// Bytes of input for the function.
    pub(super) input_bytes: u32,
    /// Where the output goes.
    pub(super) reply: RemoteAddress,
    /// Bytes that a worker may write there.
    pub(super) room: u32,
    /// Bytes that the function may return. They are as many, unless its output stays in place.
    pub(super) capacity: u32,
    /// Flags of the request's header.
    pub(super) flags: u16,
    /// The only slot that the call may use, if its input and output are there.
    pub(super) place: Option<Place>,
}

impl<'a> Call<'a> {
    /// Makes a call with `input`, which was checked to fit a slot. `most` is what a worker writes at most.
    #[inline]
    pub fn new(function: u16, input: &'a InputBuffer, output: &OutputBuffer, most: usize) -> Self {
        let capacity = wire(output.capacity().min(most));
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

    /// Makes a call in `place`, where `input_bytes` bytes of input are. Only a header is sent, that of `head`. What
    /// comes back to `reply` says where the output is, which has at most `most` bytes.
    #[inline]
    pub(super) fn in_place(
        function: u16,
        place: Place,
        head: &'a InputBuffer,
        input_bytes: usize,
        reply: &OutputBuffer,
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

    /// Returns its header, for the use of a slot with this sequence number.
    #[inline]
    pub(super) fn header(&self, sequence: u32) -> RequestHeader {
        RequestHeader {
            reply_addr: self.reply.addr.into(),
            reply_key: self.reply.key.into(),
            output_capacity: self.capacity.into(),
            function: self.function.into(),
            flags: self.flags.into(),
            input_bytes: self.input_bytes.into(),
            sequence: sequence.into(),
        }
    }

    /// Returns what the worker keeps of it for a next call. A call in place has nothing of that kind, since its header
    /// is all that is sent; nor has a call without input, which would be a message of no bytes.
    #[inline]
    pub(super) fn kept_request(&self) -> Option<KeptRequest> {
        let Call { function, reply, capacity, .. } = *self;
        (self.flags == 0 && self.input_bytes > 0).then_some(KeptRequest {
            function,
            reply,
            capacity,
        })
    }
}

/// Returns a size as it is on the wire. Deployments allow less than 4 GiB.
#[inline]
fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
