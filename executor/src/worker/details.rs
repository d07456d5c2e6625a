//! Replies that bring a detail in place of the output: where it stays, or why there is none.

use rdmalib::Source;
use rfaas_protocol::invocation::{FailureDetail, HEADER_SPACE, InPlaceDetail, ReplyStatus};
use zerocopy::IntoBytes;

use super::requests::Asked;
use super::{Connection, End, post_when_there_is_room, write};
use crate::layout::Slot;
use crate::sync::AtomicBool;

impl Connection {
    /// Tells the client that the `bytes` bytes of output stay in `slot`, and where that is.
    #[inline(never)] // one branch is what it costs other replies
    pub(super) fn reply_in_place(
        &mut self,
        slot: Slot,
        asked: &Asked,
        bytes: u32,
        stop: &AtomicBool,
    ) -> Result<(), End> {
        let output = self.memory.remote_output(slot);
        let detail = InPlaceDetail {
            output_addr: output.addr.into(),
            output_key: output.key.into(),
            output_bytes: bytes.into(),
        };
        let flags = self.flags();
        let source = if self.inline.len() >= size_of::<InPlaceDetail>() {
            Source::Inline(detail.as_bytes())
        } else {
            Source::Region(self.memory.detail(slot, &detail)?)
        };
        let request = write(slot, asked, ReplyStatus::Ok, source, asked.reply, flags);
        match self.queue_pair.post(&request) {
            Err(rdmalib::Error::QueueFull { .. }) => {
                post_when_there_is_room(&mut self.queue_pair, &mut self.sent, &request, stop)
            }
            posted => Ok(posted?),
        }
    }

    /// Tells the client that the invocation failed; `needed_bytes` as in [`FailureDetail`].
    #[cold]
    pub(super) fn reply_failure(
        &mut self,
        slot: Slot,
        asked: &Asked,
        status: ReplyStatus,
        needed_bytes: u32,
        stop: &AtomicBool,
    ) -> Result<(), End> {
        let to = asked.reply.offset((HEADER_SPACE as u64).wrapping_neg());
        let flags = self.flags();
        let detail = FailureDetail { needed_bytes: u64::from(needed_bytes).into() };
        let source = Source::Region(self.memory.detail(slot, &detail)?);
        let request = write(slot, asked, status, source, to, flags);
        post_when_there_is_room(&mut self.queue_pair, &mut self.sent, &request, stop)
    }
}
