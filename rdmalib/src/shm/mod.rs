//! stub
#![allow(missing_docs, dead_code, unused)]
use std::{net::SocketAddr, ops::Range, os::fd::BorrowedFd, time::Duration};
use crate::{completion::*, connection::*, device::*, memory::*, queue_pair::*, error::*};
#[derive(Clone, Debug)] pub struct Device;
#[derive(Clone, Debug)] pub struct Domain;
#[derive(Debug)] pub struct Region;
#[derive(Debug)] pub struct CompletionQueue;
#[derive(Clone, Debug)] pub struct Waker;
#[derive(Debug)] pub struct SendQueue;
#[derive(Debug)] pub struct ReceiveQueue;
#[derive(Debug)] pub struct Listener;
#[derive(Debug)] pub struct ConnectRequest;
pub fn copy_out(_: *mut u8, _: usize, _: &mut [u8]) { todo!() }
pub fn copy_in(_: *mut u8, _: usize, _: &[u8]) { todo!() }
pub fn fill(_: *mut u8, _: Range<usize>, _: u8) { todo!() }
pub fn load_u64(_: *mut u8, _: usize) -> u64 { todo!() }
pub fn queue_pair(_: &Domain, _: &CompletionQueue, _: &CompletionQueue, _: &QueuePairConfig) -> Result<(SendQueue, ReceiveQueue)> { todo!() }
impl Device { pub fn open(_: &DeviceSpec) -> Result<Self> { todo!() } pub fn limits(&self) -> Limits { todo!() } pub fn domain(&self) -> Result<Domain> { todo!() } pub fn completion_queue(&self, _: u32) -> Result<CompletionQueue> { todo!() } pub fn listen(&self, _: SocketAddr) -> Result<Listener> { todo!() } }
impl Domain { pub fn allocate(&self, _: usize, _: Access) -> Result<Region> { todo!() } }
impl Region { pub fn len(&self) -> usize { todo!() } pub fn as_ptr(&self) -> *mut u8 { todo!() } pub fn remote(&self) -> RemoteAddress { todo!() } }
impl CompletionQueue { pub fn poll(&mut self, _: &mut [WorkCompletion]) -> usize { todo!() } pub fn arm(&mut self, _: Notify) -> Result<()> { todo!() } pub fn acknowledge(&mut self) -> Result<()> { todo!() } pub fn wait(&mut self, _: Option<Duration>) -> Result<()> { todo!() } pub fn waker(&self) -> Waker { todo!() } pub fn as_fd(&self) -> BorrowedFd<'_> { todo!() } }
impl Waker { pub fn wake(&self) { todo!() } }
impl SendQueue { pub fn number(&self) -> u32 { todo!() } pub fn state(&self) -> State { todo!() } pub fn connect(&mut self, _: SocketAddr, _: &[u8], _: Duration) -> Result<PrivateData> { todo!() } pub fn disconnect(&mut self) { todo!() } pub fn post(&mut self, _: &WorkRequest<'_>) -> Result<()> { todo!() } pub fn post_list(&mut self, _: &[WorkRequest<'_>]) -> (usize, Result<()>) { todo!() } }
impl ReceiveQueue { pub fn post(&mut self, _: u64, _: Option<Slice<'_>>) -> Result<()> { todo!() } }
impl Listener { pub fn local_addr(&self) -> SocketAddr { todo!() } pub fn try_next(&mut self) -> Result<Option<ConnectRequest>> { todo!() } pub fn next(&mut self, _: Duration) -> Result<Option<ConnectRequest>> { todo!() } pub fn as_fd(&self) -> BorrowedFd<'_> { todo!() } }
impl ConnectRequest { pub fn private_data(&self) -> &[u8] { todo!() } pub fn peer(&self) -> String { todo!() } pub fn accept(self, _: &mut SendQueue, _: &[u8]) -> Result<()> { todo!() } pub fn reject(self, _: &[u8]) -> Result<()> { todo!() } }
