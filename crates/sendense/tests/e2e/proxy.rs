//! An HTTP proxy that does CONNECT and nothing else, and that can be cut, or be long and narrow, like a line.

use crate::hub::PATIENCE;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A proxy; it ends with the test's process.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tunnels: AtomicUsize,
    sent: AtomicU64,
    is_cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    line: Option<Line>,
}

/// A line that is long and narrow, in each direction.
struct Line {
    one_way: Duration,
    bytes_per_second: f64,
    /// When the last byte that was taken in will have gone out, up and down.
    free: [Mutex<Option<Instant>>; 2],
}

/// Chunks of a tunnel's direction that are on the line: of 64 KiB each, twice what 100 Mbit/s hold in 150 ms.
const ON_THE_LINE: usize = 64;

impl Proxy {
    /// Starts one.
    pub fn start() -> Self {
        Self::with(None)
    }

    /// The same at the end of a line.
    pub fn far_away(round_trip: Duration, bytes_per_second: u64) -> Self {
        let line =
            Line { one_way: round_trip / 2, bytes_per_second: bytes_per_second as f64, free: Default::default() };
        Self::with(Some(line))
    }

    fn with(line: Option<Line>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared { line, ..Default::default() }));
        let proxy = Self { address, shared: shared.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || shared.tunnel(client));
            }
        });
        proxy
    }

    /// Tunnels that were made so far.
    pub fn tunnels(&self) -> usize {
        self.shared.tunnels.load(Ordering::SeqCst)
    }

    /// Bytes that clients have sent through it so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Breaks every connection and lets none through.
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn tunnel(self: &Arc<Self>, mut client: TcpStream) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = BufReader::new(client.try_clone().unwrap()).lines();
        let Some(Ok(first)) = head.next() else { return };
        let target = first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next().map(str::to_owned));
        // The client waits for our answer before it says more, so that the reader holds nothing beyond the head.
        while matches!(head.next(), Some(Ok(line)) if !line.is_empty()) {}
        let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) else { return };
        {
            let mut open = self.open.lock().unwrap();
            if self.is_cut.load(Ordering::SeqCst) {
                return;
            }
            open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        }
        self.tunnels.fetch_add(1, Ordering::SeqCst);
        if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_err() {
            return;
        }
        let shared = self.clone();
        let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let upward = std::thread::spawn(move || {
            shared.carry(0, &mut up, &mut down);
            let _ = down.shutdown(Shutdown::Write);
        });
        self.carry(1, &mut &server, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = upward.join();
    }

    fn count(&self, direction: usize, bytes: usize) {
        if direction == 0 {
            self.sent.fetch_add(bytes as u64, Ordering::SeqCst);
        }
    }

    /// Carries one direction of a tunnel until it ends.
    fn carry(&self, direction: usize, from: &mut impl Read, to: &mut (impl Write + Send)) {
        let Some(line) = &self.line else {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                self.count(direction, count);
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            return;
        };
        let (put, take) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_LINE);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (arrives, bytes) in take {
                    std::thread::sleep(arrives.saturating_duration_since(Instant::now()));
                    if to.write_all(&bytes).is_err() {
                        return;
                    }
                }
            });
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                self.count(direction, count);
                let mut free = line.free[direction].lock().unwrap();
                let now = Instant::now();
                let gone = free.map_or(now, |free| free.max(now))
                    + Duration::from_secs_f64(count as f64 / line.bytes_per_second);
                *free = Some(gone);
                drop(free);
                if put.send((gone + line.one_way, buffer[..count].to_vec())).is_err() {
                    return;
                }
            }
            drop(put);
        });
    }
}
