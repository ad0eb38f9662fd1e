//! Exports end when they should, and never before.

use super::{Exports, Point, View};
use crate::config::NbdConfig;
use sendense_block::backend::Memory;
use sendense_block::nbd::{Client, Options};
use sendense_block::{ByteLen, ByteOffset, Cancel, Kind, ReadAt};
use sendense_types::{BackupId, DiskNumber, ProblemCode, SystemClock, Timestamp, VmContextId};
use std::sync::Arc;

struct House {
    exports: Arc<Exports>,
    folder: tempfile::TempDir,
    now: Timestamp,
}

impl House {
    fn new(change: impl FnOnce(&mut NbdConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = NbdConfig::default();
        change(&mut config);
        let exports = Arc::new(Exports::new(config, folder.path()));
        Self { exports, folder, now: sendense_types::Clock::now(&SystemClock) }
    }

    async fn open(&self) -> crate::fault::Result<View> {
        let point = Point {
            backup_id: "bk-1".parse::<BackupId>().unwrap(),
            vm_context_id: "vm-1".parse::<VmContextId>().unwrap(),
            vm_name: "web 01".into(),
            disk_id: DiskNumber(0),
        };
        self.exports.open(point, self.now, |_| Ok(Memory::from_bytes(vec![7; 65_536]))).await
    }
}

fn client(view: &View) -> sendense_block::Result<Client> {
    Client::connect(&Options::new(view.uri.parse().unwrap()), &Cancel::new())
}

#[tokio::test]
async fn unused_exports_end_and_used_ones_do_not() {
    let house = House::new(|config| config.idle_seconds = 3600);
    let (used, unused) = (house.open().await.unwrap(), house.open().await.unwrap());
    assert_ne!(used.uri, unused.uri);
    assert_eq!(used.expires_at, house.now.plus_seconds(3600));
    let reading = client(&used).unwrap();
    reading.read_at(ByteOffset(0), &mut [0; 512]).unwrap();
    house.exports.sweep(house.now.plus_seconds(3599)).await;
    assert_eq!(house.exports.all().len(), 2);
    house.exports.sweep(house.now.plus_seconds(3600)).await;
    let left = house.exports.all();
    assert_eq!(left.iter().map(|view| &view.export_id).collect::<Vec<_>>(), [&used.export_id]);
    assert_eq!(left[0].expires_at, house.now.plus_seconds(7200), "a connection is a use");
    assert_eq!(client(&unused).map(|_| ()).unwrap_err().kind, Kind::NotFound);
    assert_eq!(house.exports.close(&unused.export_id).await.unwrap_err().code, ProblemCode::ExportNotFound);
    house.exports.close(&used.export_id).await.unwrap();
    assert_eq!(reading.read_at(ByteOffset(0), &mut [0; 512]).unwrap_err().kind, Kind::Unavailable);
    house.exports.shutdown();
    assert!(!house.folder.path().join("nbd.sock").exists());
    assert_eq!(house.open().await.unwrap_err().code, ProblemCode::Busy);
}

#[tokio::test]
async fn there_is_room_for_so_many_and_failures_take_none() {
    let house = House::new(|config| config.exports_max = 1);
    let point = house.open().await.unwrap().point;
    assert_eq!(house.open().await.unwrap_err().code, ProblemCode::Busy);
    let id = house.exports.all()[0].export_id.clone();
    house.exports.close(&id).await.unwrap();
    let failed: crate::fault::Result<View> =
        house.exports.open(point, house.now, |_| Err::<Memory, _>(crate::fault::invalid("no such chain"))).await;
    assert_eq!(failed.unwrap_err().code, ProblemCode::InvalidInput);
    assert_eq!(house.open().await.unwrap().size_bytes, 65_536);
    house.exports.shutdown();
}

#[tokio::test]
async fn a_port_is_served_where_one_is_asked_for() {
    let house = House::new(|config| {
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        config.host = Some("localhost".into());
    });
    house.exports.start().unwrap();
    let view = house.open().await.unwrap();
    assert!(view.uri.starts_with("nbd://localhost:"), "{}", view.uri);
    assert_eq!(client(&view).unwrap().size(), ByteLen(65_536));
    house.exports.shutdown();

    let house = House::new(|config| config.listen = Some("0.0.0.0:0".parse().unwrap()));
    assert_eq!(
        house.exports.start().unwrap_err().kind,
        Kind::Denied,
        "nobody beyond this machine without certificates"
    );
}
