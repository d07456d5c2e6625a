//! Requests over HTTP that wait for room, as long as their clients do.
//!
//! A client that closes its connection, or only its sending side, while its request waits has gone: one that has asked
//! for leases has nothing else to say, and one that was killed says no more. What is answered at once is answered to
//! who has closed its sending side as well.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::StatusCode;

use super::serve::ClientEnd;
use super::{Api, Failure, LOOK};
use crate::pool::{Ask, Asked, Denied, Grant, WaitId};

/// Asks for leases; if there is no room, waits for it for up to `wait`, as long as the client is there.
pub(super) async fn ask_for_leases(
    api: &Api,
    ask: Ask,
    wait: Duration,
    client: &ClientEnd,
) -> Result<Result<Vec<Grant>, Denied>, Failure> {
    // It is there before the loop hears of the request: who goes in between leaves nothing behind.
    let mut waits = Waits { api, id: Arc::default(), is_over: false };
    let id = waits.id.clone();
    let asked = api
        .ask(move |pool, now, _| {
            let asked = match pool.try_request(now, &ask)? {
                Some(grants) => Asked::Granted(grants),
                None => pool.wait(now, &ask, wait)?,
            };
            if let Asked::Waits(waits) = asked {
                id.get_or_init(|| waits);
            }
            Ok::<_, Denied>(asked)
        })
        .await?;
    let id = match asked {
        Ok(Asked::Waits(id)) => id,
        Ok(Asked::Granted(grants)) => {
            waits.is_over = true;
            return Ok(Ok(grants));
        }
        Err(denied) => {
            waits.is_over = true;
            return Ok(Err(denied));
        }
    };
    // There is an answer in any case, when its time is over.
    loop {
        tokio::time::sleep(LOOK).await;
        if client.is_gone() {
            let why = "the connection was closed while the request waited for room";
            return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, why.into()));
        }
        if let Some(answer) = api.ask(move |pool, _, _| pool.answer(id).cloned()).await? {
            waits.is_over = true;
            return Ok(answer);
        }
    }
}

/// A request that may wait.
struct Waits<'a> {
    api: &'a Api,
    /// Set by the loop, if it does wait.
    id: Arc<OnceLock<WaitId>>,
    /// Its client is told the answer.
    is_over: bool,
}

impl Drop for Waits<'_> {
    /// The answer was taken; or else nobody waits any more, and what was granted ends. The loop does that after what it
    /// was asked before.
    fn drop(&mut self) {
        if self.is_over && self.id.get().is_none() {
            return; // it did not wait
        }
        let (id, is_over) = (self.id.clone(), self.is_over);
        let told = self.api.commands.tell(move |pool, now, out| match id.get() {
            Some(id) if is_over => drop(pool.take_answer(*id)),
            Some(id) => pool.cancel_wait(now, *id, out),
            None => {}
        });
        told.unwrap_or_else(|stopped| tracing::debug!(%stopped, "a request waits no more"));
    }
}
