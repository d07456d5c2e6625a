//! What has arrived and is not done with, and receives.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::super::memory::{Keys, Memory, Place};
use super::super::wire::{HEADER, Header, Kind};
use super::terms::{Receive, Terms};
use crate::types::WorkCompletion;

/// A frame whose payload is arriving.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) header: Header,
    pub(super) kind: Kind,
    pub(super) left: usize,
    pub(super) target: Target,
}

/// Where a payload goes.
#[derive(Debug)]
pub(super) enum Target {
    Place(Place),
    /// Into the buffer of a receive.
    Receive(Receive),
    /// Into memory of our own, until there is a receive.
    Kept(Vec<u8>),
    /// What an atomic is about.
    Operands([u8; 16]),
    /// Nowhere: what it was for has gone.
    Nowhere,
}

/// A request of the peer that waits for a receive.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) sequence: u32,
    pub(super) immediate: Option<u32>,
    pub(super) is_solicited: bool,
    pub(super) bytes: usize,
    /// Until when, if not for ever.
    pub(super) deadline: Option<Instant>,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Write,
    Message(Vec<u8>),
    Announced,
    /// Its message is on its way into this receive.
    Cleared(Option<Receive>),
}

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) keys: Arc<Keys>,
    pub(super) peer: Terms,
    pub(super) depth: u32,
    /// Receives whose completions were not polled.
    pub(super) outstanding: u32,
    pub(super) posted: VecDeque<Receive>,
    pub(super) done: VecDeque<WorkCompletion>,
    pub(super) header: [u8; HEADER],
    pub(super) filled: usize,
    pub(super) body: Option<Body>,
    /// Number of the peer's next request.
    pub(super) next: u32,
    pub(super) held: VecDeque<Held>,
    /// Bytes of messages that are held.
    pub(super) kept: usize,
    /// The count of requests that the peer was told last.
    pub(super) told: u32,
    /// Memory that the peer named last, which is not kept for that.
    pub(super) last: Option<Weak<Memory>>,
}

impl Receiving {
    pub(super) fn new(keys: Arc<Keys>, depth: u32) -> Self {
        Receiving {
            keys,
            peer: Terms { send_depth: 0, patience: None },
            depth,
            outstanding: 0,
            posted: VecDeque::new(),
            done: VecDeque::new(),
            header: [0; HEADER],
            filled: 0,
            body: None,
            next: 0,
            held: VecDeque::new(),
            kept: 0,
            told: 0,
            last: None,
        }
    }

    /// How many requests of the peer are held, and how many bytes of messages.
    #[cfg(test)]
    pub(super) fn kept_for_the_peer(&self) -> (usize, usize) {
        (self.held.len(), self.kept)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.held.front().and_then(|held| held.deadline)
    }
}
