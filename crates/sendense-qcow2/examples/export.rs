//! `export IMAGE SOCKET`: a QCOW2 chain, read-only, under the name `disk` on a unix socket, until standard input ends.

use sendense_block::nbd::server::{Device, ExportOptions, Exports, Listen, Options, Server};
use sendense_qcow2::Chain;
use sendense_qcow2::gate::Folder;
use std::io::{Read, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, socket] = arguments.as_slice() else { return Err("usage: export IMAGE SOCKET".into()) };
    let image = Path::new(image);
    let folder = Folder::new(image.parent().ok_or("the image has no folder")?)?;
    let name = image.file_name().and_then(|name| name.to_str()).ok_or("the image has no name")?;
    let chain = Chain::open(folder.open_top(name, "qcow2")?, &folder)?;
    let exports = Exports::new();
    let _guard = exports.add("disk", Device::read_only(chain), ExportOptions::default())?;
    let server = Server::start(Options::new(Listen::Unix(socket.into())), exports)?;
    writeln!(std::io::stdout(), "{}", server.uri("disk")?)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.shutdown();
    Ok(())
}
