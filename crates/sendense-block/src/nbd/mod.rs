//! NBD, the network block device protocol: the client, and the server ([`server`]).
//!
//! What lives here: the wire's words (`frame`), addresses (`uri`, `dial`), encryption (`tls`), sockets with deadlines
//! (`transport`), the haggling (`handshake`), what replies mean (`reply`), many requests over one socket (`connection`),
//! and the device on top (`client`, `status`). What does not: anything that knows what is on the disk. The specification
//! is `doc/proto.md` of the NetworkBlockDevice project; section names in quotation marks are its.
//!
//! Invariant: whatever bytes a server sends, a call ends within its deadline, with the right bytes or with an error.
//!
//! ```text
//! Client -- picks a connection, cuts and aligns --> Connection -- cookies, one receiver at a time --> transport --> server
//! ```

mod client;
mod connection;
mod dial;
pub mod frame;
mod handshake;
mod options;
pub mod reply;
pub mod server;
mod status;
mod tls;
mod transport;
mod uri;

pub use client::{Client, ZeroMode};
pub use handshake::{BlockSizes, ExportInfo, list};
pub use options::{Options, Reconnect};
pub use status::DirtyBitmap;
pub use tls::{TlsIdentity, TlsOptions};
pub use uri::{Address, PORT, Uri};
