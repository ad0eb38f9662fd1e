//! Server-sent events.

use super::problem::{Failure, Result};
use super::router::Shared;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures::{Stream, StreamExt};
use sendense_types::ProblemCode;
use std::convert::Infallible;
use std::time::Duration;

/// How often a silent stream sends a comment. Proxies close what is silent for a minute; clients of ours give up after
/// three missed ones.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The stream of events for one client. It holds one of a bounded number of places until the client is gone or the hub
/// ends. What waits for a slow client is bounded where events are told, and the client is told what it missed.
pub(super) fn events(shared: &Shared) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>> + use<>>> {
    let Ok(place) = shared.streams.clone().try_acquire_owned() else {
        return Err(Failure::new(ProblemCode::Busy, "too many event streams are open", "close one, or ask for tasks"));
    };
    let stop = shared.stop.clone();
    let events = shared.app.events().take_until(stop.cancelled_owned()).map(move |event| {
        let _held = &place;
        // An event is made of texts and numbers, which JSON can always hold; a comment stands for what it could not.
        Ok(Sent::default().event(event.name()).json_data(&event).unwrap_or_else(|_| Sent::default().comment("?")))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")))
}
