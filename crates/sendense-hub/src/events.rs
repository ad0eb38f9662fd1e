//! What happens, told to whoever listens.
//!
//! Invariant: telling never waits. A listener that is too slow misses events, is told how many, and is right again with the
//! next one, because each event carries the whole object.

use futures::{Stream, StreamExt};
use sendense_api::{Alert, Backup, Event, LeftOverAlert, SpaceAlert, Task};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// Events that a listener may be behind. Four running tasks report twice a second: half a minute of a stalled connection
/// with room for a thousand state changes; an event is about a kilobyte, so a megabyte at most.
const BEHIND_MAX: usize = 1024;

/// Where events are told.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// Nobody listens yet.
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND_MAX) }
    }

    /// Tells of a task.
    pub fn task(&self, task: Task) {
        self.tell(Event::Task { task: Box::new(task) });
    }

    /// Tells of a backup.
    pub fn backup(&self, backup: Backup) {
        self.tell(Event::Backup { backup: Box::new(backup) });
    }

    /// Tells of something that somebody should look at.
    pub fn alert(&self, alert: Alert) {
        self.tell(Event::Alert { alert });
    }

    /// Tells of a repository's room.
    pub fn space(&self, space: SpaceAlert) {
        self.tell(Event::Space { space });
    }

    /// Tells of something on a source that cannot be removed, or is gone.
    pub fn left_over(&self, left_over: LeftOverAlert) {
        self.tell(Event::LeftOver { left_over });
    }

    /// True when telling is worth the work of making the event.
    pub fn has_listeners(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    fn tell(&self, event: Event) {
        // The error says that nobody listens, which is fine.
        let _ = self.sender.send(event);
    }

    /// Everything told from now on.
    pub fn listen(&self) -> impl Stream<Item = Event> + Send + use<> {
        BroadcastStream::new(self.sender.subscribe()).map(|event| match event {
            Ok(event) => event,
            Err(BroadcastStreamRecvError::Lagged(missed)) => Event::Lagged { missed },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_what_it_missed() {
        let events = Events::new();
        let mut slow = Box::pin(events.listen());
        for missed in 0..BEHIND_MAX as u64 + 5 {
            events.tell(Event::Lagged { missed });
        }
        assert_eq!(slow.next().await, Some(Event::Lagged { missed: 5 }));
        assert_eq!(slow.next().await, Some(Event::Lagged { missed: 5 }), "the first that is still kept");
    }
}
