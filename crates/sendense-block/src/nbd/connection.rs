//! Many requests over one connection: cookies, slots, and whose turn it is to receive.
//!
//! What lives here: [`Connection::run`], which any number of threads call at once. What does not: cutting and alignment
//! (`client`), what replies may say (`reply`). There is no thread of ours: the threads that wait do the receiving.
//!
//! Exactly one thread at a time holds the [`Receiver`]. It reads a header. What is small (an end, an error) it settles for
//! whomever it concerns. Content it leaves in the socket: it hands the receiver, with the header, to the thread whose
//! request it is, which takes the bytes from the kernel straight into its caller's buffer. A thread whose requests have
//! ended passes the receiver to the one that waits longest.
//!
//! Invariant: while a request is in flight, its thread sends nothing more. So whoever is handed the receiver comes to use
//! it, also when the server reads no requests before its replies are taken; the two sides cannot wait for each other.
//!
//! ```text
//!             claim slots        send all             all ended
//!   caller ----------------> [seat] ------> waiting ------------> results
//!                                            |   ^
//!                         handed the receiver|   |content taken, or header of another's content: hand it on
//!                                            v   |
//!                                           leading -- broken stream, deadline --> lost: every waiter fails at once
//! ```

use super::frame::{Command, ReplyHeader, Request, chunk, errno, protocol};
use super::handshake::{Export, Ready};
use super::reply::{Descriptor, Ending, Payload, Pending};
use super::transport::{Broken, Link, LinkGuard, Patience, Receiver, Sender};
use crate::error::{Error, Kind, Result, chain};
use crate::units::ByteOffset;
use parking_lot::{Condvar, Mutex};
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Requests in flight on a connection: four times what QEMU and nbdkit work on at once, so that neither ever waits for us.
const SLOTS: usize = 64;
/// Requests that one call has in flight: what QEMU and nbdkit work on at once.
const BATCH: usize = 16;
/// A request takes at most this many times the wait without a byte: a server that drips bytes is as bad as a silent one.
const TOTAL_FACTOR: u32 = 10;
/// How long the goodbye may take: it is 28 bytes, which only a full socket keeps back.
const GOODBYE: Duration = Duration::from_secs(1);

/// One request and the place for what comes back.
pub(super) struct Call<'a> {
    pub(super) command: Command,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) body: Body<'a>,
}

pub(super) enum Body<'a> {
    Nothing,
    /// Bytes to write.
    Give(&'a [u8]),
    /// Where the bytes that are read go.
    Take(&'a mut [u8]),
    /// Where descriptors go, by the context's number.
    Status(&'a mut Vec<(u32, Vec<Descriptor>)>),
}

impl Call<'_> {
    fn doing(&self, name: &str) -> String {
        match self.command {
            Command::Flush => format!("flush {name}"),
            command => format!("{} {} bytes of {name}", command.verb(), self.len),
        }
    }
}

pub(super) struct Connection {
    name: String,
    export: Export,
    timeout: Duration,
    link: Arc<Link>,
    _guard: LinkGuard,
    /// Locked before `state` where both are, and never taken by a thread that has a request in flight.
    sender: Mutex<Sender>,
    state: Mutex<State>,
    /// One per seat: its thread has something to do.
    bells: [Condvar; SLOTS],
    /// Slots became free.
    freed: Condvar,
    load: AtomicUsize,
}

struct State {
    slots: [Option<Slot>; SLOTS],
    seats: [Seat; SLOTS],
    /// The receiver, when nobody needs it.
    receiver: Option<Box<Receiver>>,
    /// Counts requests, so that no cookie comes twice.
    sequence: u64,
    lost: Option<(Kind, String)>,
}

/// A request in flight.
struct Slot {
    cookie: u64,
    /// Whose it is.
    seat: usize,
    /// Which of that thread's calls.
    call: usize,
    pending: Pending,
    outcome: Option<Result<(), Ending>>,
}

/// A thread that has requests in flight: known by its first slot.
#[derive(Default)]
struct Seat {
    open: usize,
    waiting: bool,
    handed: Option<Turn>,
    patience: Option<Patience>,
}

/// The right and duty to receive.
struct Turn {
    receiver: Box<Receiver>,
    /// A reply whose content comes next, for the one who gets the turn.
    content: Option<Content>,
}

#[derive(Clone, Copy)]
struct Content {
    slot: usize,
    header: ReplyHeader,
    payload: Payload,
}

/// The slots that a thread holds, in the order of its calls.
struct Claim {
    slots: Vec<usize>,
}

impl Claim {
    fn seat(&self) -> usize {
        self.slots.first().copied().expect("a claim holds at least one slot")
    }
}

impl Connection {
    pub(super) fn new(name: String, ready: Ready, timeout: Duration) -> Self {
        let Ready { link, guard, receiver, sender, export } = ready;
        let state = State {
            slots: [const { None }; SLOTS],
            seats: std::array::from_fn(|_| Seat::default()),
            receiver: Some(Box::new(receiver)),
            sequence: 0,
            lost: None,
        };
        Self {
            name,
            export,
            timeout,
            link,
            _guard: guard,
            sender: Mutex::new(sender),
            state: Mutex::new(state),
            bells: [const { Condvar::new() }; SLOTS],
            freed: Condvar::new(),
            load: AtomicUsize::new(0),
        }
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Requests in flight, for choosing the least busy connection.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// True once it serves no more requests.
    pub(super) fn is_lost(&self) -> bool {
        self.state.lock().lost.is_some()
    }

    /// Sends the calls, several at a time, and waits for their replies. All succeed, or the first failure comes back.
    pub(super) fn run(&self, calls: &mut [Call<'_>]) -> Result<()> {
        let mut rest = calls;
        while !rest.is_empty() {
            let claim = self.claim(rest)?;
            let (now, later) = rest.split_at_mut(claim.slots.len());
            self.send(&claim, now);
            self.settle(&claim, now);
            self.release(&claim, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Takes free slots for the first calls; waits for at least one. The wait is bounded because requests are.
    fn claim(&self, calls: &[Call<'_>]) -> Result<Claim> {
        let mut state = self.state.lock();
        loop {
            if let Some((kind, why)) = &state.lost {
                return Err(lost(&calls[0], &self.name, *kind, why));
            }
            let free = (0..SLOTS).filter(|slot| state.slots[*slot].is_none());
            let slots: Vec<usize> = free.take(calls.len().min(BATCH)).collect();
            if slots.is_empty() {
                self.freed.wait(&mut state);
                continue;
            }
            let claim = Claim { slots };
            let seat = claim.seat();
            for (call, (asked, slot)) in calls.iter().zip(&claim.slots).enumerate() {
                let cookie = state.sequence * SLOTS as u64 + *slot as u64;
                state.sequence += 1;
                let pending = Pending::new(asked.command, asked.offset, asked.len, self.export.structured);
                state.slots[*slot] = Some(Slot { cookie, seat, call, pending, outcome: None });
            }
            state.seats[seat] = Seat { open: claim.slots.len(), ..Seat::default() };
            self.load.fetch_add(claim.slots.len(), Ordering::Relaxed);
            return Ok(claim);
        }
    }

    /// Sends the requests in one go. A failure loses the connection, which `settle` then sees.
    fn send(&self, claim: &Claim, calls: &[Call<'_>]) {
        let headers: Vec<_> = {
            let state = self.state.lock();
            let cookies = claim.slots.iter().map(|slot| state.slots[*slot].as_ref().map_or(0, |slot| slot.cookie));
            calls.iter().zip(cookies).map(|(call, cookie)| call.request(cookie).encode()).collect()
        };
        let mut parts = Vec::with_capacity(2 * calls.len());
        for (call, header) in calls.iter().zip(&headers) {
            parts.push(IoSlice::new(header));
            if let Body::Give(data) = call.body {
                parts.push(IoSlice::new(data));
            }
        }
        let mut sender = self.sender.lock();
        let sent = sender.all(&mut parts, &mut self.patience());
        drop(sender);
        match sent {
            Ok(()) => self.state.lock().seats[claim.seat()].patience = Some(self.patience()),
            Err(broken) => self.lose(self.link.explain(broken)),
        }
    }

    fn patience(&self) -> Patience {
        Patience::new(self.timeout, self.timeout.saturating_mul(TOTAL_FACTOR))
    }

    /// Waits until all requests of the claim have ended or the connection is lost; receives when it is our turn.
    fn settle(&self, claim: &Claim, calls: &mut [Call<'_>]) {
        let seat = claim.seat();
        let mut state = self.state.lock();
        while state.lost.is_none() && state.seats[seat].open > 0 {
            let idle = |receiver| Turn { receiver, content: None };
            if let Some(turn) = state.seats[seat].handed.take().or_else(|| state.receiver.take().map(idle)) {
                drop(state);
                if let Err(error) = self.lead(turn, seat, calls) {
                    self.lose(error);
                }
                state = self.state.lock();
                continue;
            }
            let patience = *state.seats[seat].patience.get_or_insert_with(|| self.patience());
            state.seats[seat].waiting = true;
            let late = self.bells[seat].wait_until(&mut state, patience.until()).timed_out();
            state.seats[seat].waiting = false;
            if late
                && state.seats[seat].handed.is_none()
                && state.seats[seat].open > 0
                && let Err(broken) = state.seats[seat].patience.unwrap_or(patience).check()
            {
                drop(state);
                self.lose(self.link.explain(broken));
                state = self.state.lock();
            }
        }
    }

    /// Gives the slots back and says how it went.
    fn release(&self, claim: &Claim, calls: &[Call<'_>]) -> Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut result = Ok(());
        for (call, slot) in calls.iter().zip(&claim.slots) {
            let outcome = state.slots[*slot].take().and_then(|slot| slot.outcome);
            let (kind, why) = state.lost.clone().unwrap_or((Kind::Unavailable, "connection lost".into()));
            let this = match outcome {
                Some(Ok(())) => Ok(()),
                Some(Err(Ending::Failed(failure))) => Err(failure.into_error(&call.doing(&self.name), call.offset)),
                Some(Err(Ending::Broken(_))) | None => Err(lost(call, &self.name, kind, &why)),
            };
            result = result.and(this);
        }
        let seat = std::mem::take(&mut state.seats[claim.seat()]);
        if let Some(turn) = seat.handed {
            self.pass_on(state, turn.receiver);
        }
        self.load.fetch_sub(claim.slots.len(), Ordering::Relaxed);
        self.freed.notify_all();
        result
    }

    /// Receives until nothing of ours is in flight or the next content is another's.
    fn lead(&self, mut turn: Turn, seat: usize, calls: &mut [Call<'_>]) -> Result<()> {
        loop {
            let content = match turn.content.take() {
                Some(content) => content,
                None => match self.next(&mut turn.receiver, seat)? {
                    Some(content) => content,
                    None => return Ok(()),
                },
            };
            let mut patience = self.patience_of(seat);
            let slot = content.slot;
            let mut state = self.state.lock();
            let whose = state.slot(slot)?.seat;
            if content.payload.is_content() && whose != seat {
                state.seats[whose].handed = Some(Turn { content: Some(content), ..turn });
                self.bells[whose].notify_one();
                return Ok(());
            }
            let call = state.slot(slot)?.call;
            drop(state);
            match content.payload {
                Payload::None => {}
                Payload::Error { len } => self.take_error(&mut turn.receiver, content, len, &mut patience)?,
                payload => {
                    let call = calls.get_mut(call).ok_or_else(|| protocol("reply to a call that is gone"))?;
                    self.take_content(&mut turn.receiver, slot, payload, call, &mut patience)?;
                }
            }
            let mut state = self.state.lock();
            self.ended(&mut state, content)?;
            if state.seats[seat].open == 0 {
                self.pass_on(&mut state, turn.receiver);
                return Ok(());
            }
        }
    }

    fn patience_of(&self, seat: usize) -> Patience {
        self.state.lock().seats[seat].patience.unwrap_or_else(|| self.patience())
    }

    /// Reads the next header; `None` when the connection is lost meanwhile.
    fn next(&self, receiver: &mut Receiver, seat: usize) -> Result<Option<Content>> {
        let mut patience = self.patience_of(seat);
        let header =
            receiver.message(&mut patience, ReplyHeader::decode).map_err(|broken| self.link.explain(broken))??;
        let mut state = self.state.lock();
        if state.lost.is_some() {
            return Ok(None);
        }
        let slot = state.find(header.cookie())?;
        let payload = state.slot(slot)?.pending.begin(header)?;
        Ok(Some(Content { slot, header, payload }))
    }

    fn take_error(&self, receiver: &mut Receiver, content: Content, len: u32, patience: &mut Patience) -> Result<()> {
        let payload = self.bytes(receiver, len as usize, patience)?;
        let kind = if let ReplyHeader::Chunk { kind, .. } = content.header { kind } else { chunk::ERROR };
        self.state.lock().slot(content.slot)?.pending.error(kind, &payload)
    }

    /// Takes content that is ours from the socket to where it belongs.
    fn take_content(
        &self,
        receiver: &mut Receiver,
        slot: usize,
        payload: Payload,
        call: &mut Call<'_>,
        patience: &mut Patience,
    ) -> Result<()> {
        let misplaced = || protocol("reply's content has no place");
        match (payload, &mut call.body) {
            (Payload::Data, Body::Take(buf)) => self.exact(receiver, buf, patience),
            (Payload::OffsetData { len }, Body::Take(buf)) => {
                let mut at = [0; 8];
                self.exact(receiver, &mut at, patience)?;
                let place = self.state.lock().slot(slot)?.pending.data(u64::from_be_bytes(at), len)?;
                self.exact(receiver, buf.get_mut(place).ok_or_else(misplaced)?, patience)
            }
            (Payload::Hole, Body::Take(buf)) => {
                let mut hole = [0; 12];
                self.exact(receiver, &mut hole, patience)?;
                let place = self.state.lock().slot(slot)?.pending.hole(&hole)?;
                buf.get_mut(place).ok_or_else(misplaced)?.fill(0);
                Ok(())
            }
            (Payload::Status { len }, Body::Status(found)) => {
                let payload = self.bytes(receiver, len as usize, patience)?;
                found.push(self.state.lock().slot(slot)?.pending.status(&payload)?);
                Ok(())
            }
            _ => Err(misplaced()),
        }
    }

    /// Notes that a payload was taken; when it was the reply's last, tells its thread.
    fn ended(&self, state: &mut State, content: Content) -> Result<()> {
        let slot = state.slot(content.slot)?;
        let ended = slot.pending.ended(content.header);
        let whose = slot.seat;
        if let Some(patience) = &mut state.seats[whose].patience {
            patience.moved();
        }
        let Some(outcome) = ended else { return Ok(()) };
        let shutdown = matches!(&outcome, Err(Ending::Failed(failure)) if failure.errno == errno::ESHUTDOWN);
        if let Err(Ending::Broken(error)) = outcome {
            return Err(error);
        }
        state.slot(content.slot)?.outcome = Some(outcome);
        let seat = &mut state.seats[whose];
        seat.open -= 1;
        if seat.open == 0 && seat.waiting {
            self.bells[whose].notify_one();
        }
        // ESHUTDOWN asks everybody to leave: whatever came next would fail too. The request itself keeps its own error.
        if shutdown { Err(Error::new(Kind::Unavailable, "server is shutting down")) } else { Ok(()) }
    }

    /// Gives the receiver to the thread that waits longest: servers mostly answer in order.
    fn pass_on(&self, state: &mut State, receiver: Box<Receiver>) {
        let open = state.slots.iter().flatten().filter(|slot| slot.outcome.is_none());
        let next = open.filter(|slot| state.seats[slot.seat].waiting).min_by_key(|slot| slot.cookie / SLOTS as u64);
        match next.map(|slot| slot.seat) {
            Some(seat) => {
                state.seats[seat].handed = Some(Turn { receiver, content: None });
                self.bells[seat].notify_one();
            }
            // Who comes next takes it.
            None => state.receiver = Some(receiver),
        }
    }

    fn exact(&self, receiver: &mut Receiver, buf: &mut [u8], patience: &mut Patience) -> Result<()> {
        receiver.exact(buf, patience).map_err(|broken| self.link.explain(broken))
    }

    fn bytes(&self, receiver: &mut Receiver, len: usize, patience: &mut Patience) -> Result<Vec<u8>> {
        receiver.bytes(len, patience).map_err(|broken| self.link.explain(broken))
    }

    /// Ends the connection: everything in flight fails at once, with this reason.
    fn lose(&self, error: Error) {
        let mut state = self.state.lock();
        if state.lost.is_none() {
            tracing::debug!(uri = self.name, reason = chain(&error), "NBD connection lost");
            state.lost = Some((error.kind, chain(&error)));
        }
        self.link.shutdown();
        self.bells.iter().for_each(|bell| {
            bell.notify_all();
        });
        self.freed.notify_all();
    }
}

impl Drop for Connection {
    /// "Terminating the transmission phase": a soft disconnect, so that the server knows that nothing was cut off.
    fn drop(&mut self) {
        if self.state.get_mut().lost.is_some() {
            return;
        }
        let goodbye = Request { flags: 0, command: Command::Disconnect.code(), cookie: 0, offset: 0, len: 0 }.encode();
        let sender = self.sender.get_mut();
        let mut patience = Patience::new(GOODBYE, GOODBYE);
        let said: Result<(), Broken> =
            sender.all(&mut [IoSlice::new(&goodbye)], &mut patience).and_then(|()| sender.goodbye(&mut patience));
        if let Err(broken) = said {
            tracing::debug!(uri = self.name, reason = chain(&self.link.explain(broken)), "NBD goodbye not sent");
        }
    }
}

impl Call<'_> {
    fn request(&self, cookie: u64) -> Request {
        Request { flags: self.flags, command: self.command.code(), cookie, offset: self.offset, len: self.len }
    }
}

impl State {
    /// The slot that a reply's cookie belongs to.
    fn find(&self, cookie: u64) -> Result<usize> {
        let slot = (cookie % SLOTS as u64) as usize;
        match &self.slots[slot] {
            Some(held) if held.cookie == cookie && held.outcome.is_none() => Ok(slot),
            _ if cookie / (SLOTS as u64) < self.sequence => {
                Err(protocol(format!("server replies again to request {cookie:#x}, which has ended")))
            }
            _ => Err(protocol(format!("server replies to request {cookie:#x}, which was never made"))),
        }
    }

    fn slot(&mut self, slot: usize) -> Result<&mut Slot> {
        self.slots[slot].as_mut().ok_or_else(|| protocol("reply to a request that is gone"))
    }
}

fn lost(call: &Call<'_>, name: &str, kind: Kind, why: &str) -> Error {
    Error::new(kind, format!("{}: {why}", call.doing(name))).at(ByteOffset(call.offset))
}
