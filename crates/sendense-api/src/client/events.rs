//! The stream of events: server-sent events (WHATWG HTML, section 9.2) taken apart as they come.

use super::{Client, ClientError, chain, read, refusal, retry_after, unreachable};
use crate::Event;
use futures::stream::{BoxStream, Stream, StreamExt};
use reqwest::Method;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest event that is taken: a backup of a VM with hundreds of disks is below it.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// How long the stream may be silent. The hub sends a comment every 15 s; three missed ones mean that it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Events as they happen; ends with an error when the connection does. Dropping it frees the hub's side too.
pub struct EventStream(BoxStream<'static, Result<Event, ClientError>>);

impl Stream for EventStream {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventStream")
    }
}

impl Client {
    /// Events of every task and backup, from the moment that this returns.
    pub async fn events(&self) -> Result<EventStream, ClientError> {
        let response = tokio::time::timeout(self.timeout, self.call(Method::GET, &["events"]).send())
            .await
            .map_err(|_| ClientError::Unreachable("the hub does not answer".to_owned()))?
            .map_err(unreachable)?;
        if !response.status().is_success() {
            let (status, retry_after_seconds) = (response.status().as_u16(), retry_after(&response));
            return Err(refusal(status, retry_after_seconds, &read(response).await?));
        }
        let state = (response, Parser::default(), false);
        let events = futures::stream::unfold(state, |(mut response, mut parser, ended)| async move {
            if ended {
                return None;
            }
            loop {
                match parser.next() {
                    Ok(Some(event)) => return Some((Ok(event), (response, parser, false))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error), (response, parser, true))),
                }
                let error = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                    Ok(Ok(Some(chunk))) => {
                        parser.feed(&chunk);
                        continue;
                    }
                    Ok(Ok(None)) => "the hub closed the stream of events".to_owned(),
                    Ok(Err(error)) => chain(&error),
                    Err(_) => format!("the stream of events was silent for {} s", SILENCE_MAX.as_secs()),
                };
                return Some((Err(ClientError::Unreachable(error)), (response, parser, true)));
            }
        });
        Ok(EventStream(events.boxed()))
    }
}

/// Takes server-sent events apart. Holds at most one chunk more than [`EVENT_BYTES_MAX`].
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that were taken apart already.
    taken: usize,
    /// The `data` lines of the event that is being read, joined.
    data: String,
    /// The event's name.
    name: String,
}

impl Parser {
    fn feed(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole event; none when more bytes are needed.
    fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let rest = self.buffer.get(self.taken..).unwrap_or_default();
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                let held = rest.len() + self.data.len();
                return if held > EVENT_BYTES_MAX { Err(too_long()) } else { Ok(None) };
            };
            let line = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
            self.taken += end + 1;
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                if let Some(event) = self.dispatch()? {
                    return Ok(Some(event));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    if self.data.len() + value.len() > EVENT_BYTES_MAX {
                        return Err(too_long());
                    }
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                }
                "event" => value.clone_into(&mut self.name),
                // Comments (the heartbeat), ids and retry hints.
                _ => {}
            }
        }
    }

    /// The event that an empty line ends. A name that this version does not know is passed over: newer hubs tell more.
    fn dispatch(&mut self) -> Result<Option<Event>, ClientError> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if data.is_empty() || !matches!(name.as_str(), "task" | "backup" | "alert" | "space" | "left_over" | "lagged") {
            return Ok(None);
        }
        serde_json::from_str(&data)
            .map(Some)
            .map_err(|error| ClientError::Protocol(format!("an event is not what this version expects: {error}")))
    }
}

fn too_long() -> ClientError {
    ClientError::Protocol(format!("an event is longer than {EVENT_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = ": hello\r\n\nevent: lagged\ndata: {\"type\":\"lagged\",\ndata: \"missed\":3}\n\n\
        event: from-the-future\ndata: {}\n\nevent:lagged\r\ndata:{\"type\":\"lagged\",\"missed\":4}\r\nid: 7\r\n\r\n";

    fn parse(bytes: &[u8], chunk_bytes: usize) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in bytes.chunks(chunk_bytes) {
            parser.feed(chunk);
            while let Some(event) = parser.next().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_the_same_however_the_bytes_arrive() {
        let want = [Event::Lagged { missed: 3 }, Event::Lagged { missed: 4 }];
        for chunk_bytes in 1..STREAM.len() {
            assert_eq!(parse(STREAM.as_bytes(), chunk_bytes), want, "chunks of {chunk_bytes} bytes");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut parser = Parser::default();
        parser.feed(&vec![b'x'; EVENT_BYTES_MAX + 1]);
        assert!(parser.next().is_err());
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(EVENT_BYTES_MAX / 2));
        parser.feed(line.as_bytes());
        assert_eq!(parser.next().unwrap(), None);
        parser.feed(line.as_bytes());
        assert!(parser.next().is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut parser = Parser::default();
            for chunk in chunks {
                parser.feed(&chunk);
                while let Ok(Some(_)) = parser.next() {}
            }
        }
    }
}
