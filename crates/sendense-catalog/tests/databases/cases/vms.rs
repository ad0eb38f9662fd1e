//! Machines and disks.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use std::collections::BTreeSet;

fn numbers(vm: &VmContext) -> Vec<(u32, &str, bool)> {
    vm.disks.iter().map(|disk| (disk.disk_id.0, disk.binding.0.as_str(), disk.present)).collect()
}

pub async fn numbers_of_disks_stay(db: TestDb) {
    let catalog = db.open().await;
    let source = add_source(&catalog, "kvm").await.source_id;
    let vms = catalog.vms();
    let with = |bindings: &[&str]| {
        let disks = bindings.iter().map(|text| DiscoveredDisk { binding: DiskBinding((*text).to_owned()), ..disk(0) });
        DiscoveredVm { disks: disks.collect(), ..machine("vm", 0) }
    };
    let vm = vms.upsert_one(&source, &with(&["a", "b"]), at(1)).await.expect("discover");
    let seen = vms.get(&vm).await.expect("get");
    assert_eq!(numbers(&seen), [(0, "a", true), (1, "b", true)]);

    // Another order is no other disk; a removed disk keeps its number; its successor gets the next one.
    vms.upsert_one(&source, &with(&["b", "c"]), at(2)).await.expect("discover");
    let seen = vms.get(&vm).await.expect("get");
    assert_eq!(numbers(&seen), [(0, "a", false), (1, "b", true), (2, "c", true)]);

    // What comes back is the same disk.
    vms.upsert_one(&source, &with(&["d", "a"]), at(3)).await.expect("discover");
    let seen = vms.get(&vm).await.expect("get");
    assert_eq!(numbers(&seen), [(0, "a", true), (1, "b", false), (2, "c", false), (3, "d", true)]);
    assert!(seen.disks.iter().all(|disk| disk.job_id.is_none()));
}

pub async fn machines_vanish_and_return(db: TestDb) {
    let catalog = db.open().await;
    let source = add_source(&catalog, "kvm").await.source_id;
    let vms = catalog.vms();
    let both = [machine("one", 1), machine("two", 1)];
    let first = vms.upsert_discovered(&source, &both, at(1)).await.expect("discover");
    assert_eq!((first.added, first.bound, first.vanished), (2, 0, 0));
    let one_left = vms.upsert_discovered(&source, &both[..1], at(2)).await.expect("discover");
    assert_eq!((one_left.added, one_left.vanished), (0, 1));
    assert_eq!(vms.upsert_discovered(&source, &both[..1], at(3)).await.expect("discover").vanished, 0);
    let gone = vms.get(&first.vm_context_ids[1]).await.expect("get");
    assert_eq!((gone.vanished_at, gone.last_seen_at), (Some(at(2)), Some(at(1))));
    let present = VmFilter { present: Some(true), source_id: Some(source.clone()), ..Default::default() };
    assert_eq!(vms.list(&present, Page::default()).await.expect("list").1, 1);

    let mut renamed = both.clone();
    renamed[1].vm_name = name("zwei");
    let back = vms.upsert_discovered(&source, &renamed, at(4)).await.expect("discover");
    assert_eq!(back.vm_context_ids, first.vm_context_ids);
    let seen = vms.get(&first.vm_context_ids[1]).await.expect("get");
    assert_eq!((seen.vanished_at, seen.vm_name.as_str(), seen.created_at), (None, "zwei", at(1)));
    let source = catalog.sources().get(&source).await.expect("get");
    assert_eq!((source.last_discovered_at, source.last_error), (Some(at(4)), None));
}

pub async fn names_are_compared_exactly(db: TestDb) {
    let catalog = db.open().await;
    let source = add_source(&catalog, "kvm").await.source_id;
    let names = ["web", "WEB", "web ", "wéb", "web"];
    let told = names
        .iter()
        .enumerate()
        .map(|(number, text)| DiscoveredVm { instance_uuid: format!("u{number}"), ..machine(text, 0) });
    catalog.vms().upsert_discovered(&source, &told.collect::<Vec<_>>(), at(1)).await.expect("discover");
    for (text, expected) in [("web", 2), ("WEB", 1), ("web ", 1), ("wéb", 1), ("we", 0), ("Web", 0)] {
        let found = catalog.vms().by_name(text).await.expect("by name");
        assert_eq!(found.len(), expected, "{text:?} found {found:?}");
    }
    // Identities are exact too: these are five machines and stay so.
    let same_but_case = [DiscoveredVm { instance_uuid: "U0".to_owned(), ..machine("web", 0) }];
    assert_eq!(catalog.vms().upsert_discovered(&source, &same_but_case, at(2)).await.expect("discover").added, 1);
}

pub async fn what_is_told_twice_is_refused(db: TestDb) {
    let catalog = db.open().await;
    let source = add_source(&catalog, "kvm").await.source_id;
    let vms = catalog.vms();
    let twice = vms.upsert_discovered(&source, &[machine("a", 1), machine("a", 1)], at(1)).await;
    assert_eq!(twice.expect_err("a machine twice").kind(), Kind::Invalid);
    let doubled = DiscoveredVm { disks: vec![disk(0), disk(0)], ..machine("a", 0) };
    assert_eq!(vms.upsert_one(&source, &doubled, at(1)).await.expect_err("a disk twice").kind(), Kind::Invalid);
    let long = DiscoveredVm { instance_uuid: "x".repeat(256), ..machine("a", 0) };
    assert_eq!(vms.upsert_one(&source, &long, at(1)).await.expect_err("too long").kind(), Kind::Invalid);
    let huge = DiscoveredDisk { capacity_bytes: u64::MAX, ..disk(0) };
    let huge = DiscoveredVm { disks: vec![huge], ..machine("a", 0) };
    assert_eq!(vms.upsert_one(&source, &huge, at(1)).await.expect_err("too large").kind(), Kind::Invalid);
    let unknown = vms.upsert_one(&SourceId::generate(), &machine("a", 1), at(1)).await.expect_err("no source");
    assert_eq!(unknown.problem_code(), ProblemCode::SourceNotFound);
    assert_eq!(vms.list(&VmFilter::default(), Page::default()).await.expect("list").1, 0);
}

pub async fn an_imported_machine_is_bound(db: TestDb) {
    // One catalog made a point …
    let catalog = db.open().await;
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let known = known_vm("vm-old", "vm0", 1);
    catalog.backups().adopt(&known, &point_of(&known, &repository, "bk-1", None, at(5)), at(6)).await.expect("adopt");
    let vms = catalog.vms();
    let imported = vms.get(&known.vm_context_id).await.expect("get");
    assert_eq!((imported.source_id, imported.disks.len(), imported.disks[0].present), (None, 1, false));

    // … and discovery binds the machine to it, disk numbers and all.
    let source = add_source(&catalog, "kvm").await.source_id;
    let told = DiscoveredVm { disks: vec![disk(7), disk(0)], ..machine("vm0", 0) };
    let found = vms.upsert_discovered(&source, std::slice::from_ref(&told), at(7)).await.expect("discover");
    assert_eq!((found.vm_context_ids, found.bound, found.added), (vec![known.vm_context_id.clone()], 1, 0));
    let bound = vms.get(&known.vm_context_id).await.expect("get");
    assert_eq!(
        bound.disks.iter().map(|disk| (disk.disk_id.0, disk.present)).collect::<Vec<_>>(),
        [(0, true), (1, true)]
    );
    assert_eq!(bound.disks[0].binding, disk(0).binding);

    // A machine that was discovered before the import gives way, unless it has points of its own.
    let fresh = vms.upsert_one(&source, &machine("late", 1), at(8)).await.expect("discover");
    let known = known_vm("vm-late", "late", 1);
    catalog.backups().adopt(&known, &point_of(&known, &repository, "bk-2", None, at(9)), at(9)).await.expect("adopt");
    let found = vms.upsert_one(&source, &machine("late", 1), at(10)).await.expect("discover");
    assert_eq!(found, known.vm_context_id);
    assert_eq!(vms.get(&fresh).await.expect_err("it gave way").kind(), Kind::NotFound);
}

pub async fn a_machine_that_is_a_mere_name_is_bound_at_its_path_only(db: TestDb) {
    let catalog = db.open().await;
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let vms = catalog.vms();
    let at_path = |path: &str| DiscoveredVm { named_at_path: true, path: Some(path.to_owned()), ..machine("web", 1) };
    for (number, path) in [(1, Some("/a")), (2, Some("/b")), (3, None)] {
        let known = KnownVm { path: path.map(str::to_owned), ..known_vm(&format!("vm-{number}"), "web", 1) };
        let point = point_of(&known, &repository, &format!("bk-{number}"), None, at(number));
        catalog.backups().adopt(&known, &point, at(number)).await.expect("adopt");
    }
    // Each source finds its own, however old; one whose place is unknown may be anybody's; the fourth is a new machine.
    let mut found = Vec::new();
    for path in ["/b", "/a", "/elsewhere", "/fourth"] {
        let source = add_source(&catalog, path).await.source_id;
        let discovery = vms.upsert_discovered(&source, &[at_path(path)], at(9)).await.expect("discover");
        found.push((discovery.vm_context_ids[0].to_string(), discovery.bound, discovery.added));
        // Asking again changes nothing.
        let again = vms.upsert_discovered(&source, &[at_path(path)], at(10)).await.expect("discover");
        assert_eq!((again.vm_context_ids, again.bound, again.added), (discovery.vm_context_ids, 0, 0));
    }
    let expected = [("vm-2", 1, 0), ("vm-1", 1, 0), ("vm-3", 1, 0)].map(|(id, bound, new)| (id.to_owned(), bound, new));
    assert_eq!(found[..3], expected);
    assert_eq!((found[3].1, found[3].2), (0, 1));

    // A source that was removed leaves its machines; another folder does not inherit them, the same folder does.
    let source = catalog.sources().find("/a").await.expect("find").source_id;
    catalog.sources().delete(&source).await.expect("delete");
    let other = add_source(&catalog, "other").await.source_id;
    assert_ne!(vms.upsert_one(&other, &at_path("/other"), at(11)).await.expect("discover").as_str(), "vm-1");
    let same = add_source(&catalog, "same").await.source_id;
    assert_eq!(vms.upsert_one(&same, &at_path("/a"), at(12)).await.expect("discover").as_str(), "vm-1");
}

pub async fn lists_are_paged(db: TestDb) {
    let world = World::new(db.open().await, 25).await;
    let mut seen = Vec::new();
    for offset in [0, 10, 20, 30] {
        let (page, total) =
            world.catalog.vms().list(&VmFilter::default(), Page { limit: 10, offset }).await.expect("list");
        assert_eq!(total, 25);
        assert!(page.iter().all(|vm| vm.disks.len() == 2));
        seen.extend(page.into_iter().map(|vm| vm.vm_context_id));
    }
    let mut expected = world.vms.clone();
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
}

fn tags<const N: usize>(texts: [&str; N]) -> BTreeSet<Tag> {
    texts.map(id).into()
}

pub async fn tags_stay_with_a_machine(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let (vms, first) = (world.catalog.vms(), &world.vms[0]);
    let none = BTreeSet::new();
    let borne = vms.change_tags(first, &tags(["prod", "db", "prod"]), &none).await.expect("hang");
    assert_eq!(borne.tags, tags(["db", "prod"]));
    // Hanging on what is there, and taking off what is not, is nothing; what is in both stays off.
    let borne = vms.change_tags(first, &tags(["db", "x"]), &tags(["prod", "x", "none"])).await.expect("change");
    assert_eq!(borne.tags, tags(["db"]));
    vms.change_tags(&world.vms[1], &tags(["DB"]), &none).await.expect("hang");

    let bearing = async |tag: &str| {
        let filter = VmFilter { tag: Some(tag.to_owned()), ..VmFilter::default() };
        let (found, total) = vms.list(&filter, Page { limit: 10, offset: 0 }).await.expect("list");
        assert_eq!(found.len() as u64, total);
        found.into_iter().map(|vm| (vm.vm_context_id, vm.tags)).collect::<Vec<_>>()
    };
    assert_eq!(bearing("db").await, [(first.clone(), tags(["db"]))], "letters count");
    assert_eq!(bearing("prod").await, []);

    // A discovery changes the folder and no tag; a refresh that tells no place leaves the one that is known.
    let told = DiscoveredVm { folder: Some("dc/vm/new".to_owned()), ..machine("vm0", 2) };
    let asked = DiscoveredVm { folder: None, path: None, ..told.clone() };
    let known = vms.get(first).await.expect("get");
    let told = DiscoveredVm { instance_uuid: known.instance_uuid.clone(), ..told };
    let asked = DiscoveredVm { instance_uuid: known.instance_uuid, ..asked };
    assert_eq!(vms.upsert_one(&world.source_id, &told, at(50)).await.expect("refresh"), *first);
    vms.upsert_one(&world.source_id, &asked, at(51)).await.expect("refresh");
    let known = vms.get(first).await.expect("get");
    assert_eq!((known.folder.as_deref(), known.tags), (Some("dc/vm/new"), tags(["db"])));
    assert_eq!(known.path, told.path);
    vms.upsert_discovered(&world.source_id, std::slice::from_ref(&asked), at(52)).await.expect("discover");
    let known = vms.get(first).await.expect("get");
    assert_eq!((known.folder, known.path), (None, None), "a discovery tells all");

    // No machine bears more than it may, and what is too much changes nothing.
    let many: BTreeSet<Tag> = (0..TAGS_MAX).map(|number| id(&format!("t{number}"))).collect();
    let refused = vms.change_tags(first, &many, &none).await.expect_err("too many");
    assert_eq!(refused.kind(), Kind::Invalid);
    assert_eq!(vms.get(first).await.expect("get").tags, tags(["db"]));
    assert_eq!(vms.change_tags(first, &many, &tags(["db"])).await.expect("as many as may be").tags, many);
    let unknown = vms.change_tags(&VmContextId::generate(), &many, &none).await.expect_err("no machine");
    assert_eq!(unknown.kind(), Kind::NotFound);
}

pub async fn a_machine_that_gives_way_leaves_its_tags(db: TestDb) {
    let catalog = db.open().await;
    let vms = catalog.vms();
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let source = add_source(&catalog, "kvm").await.source_id;
    let fresh = vms.upsert_one(&source, &machine("late", 1), at(8)).await.expect("discover");
    vms.change_tags(&fresh, &tags(["prod", "db"]), &BTreeSet::new()).await.expect("hang");
    let known = known_vm("vm-late", "late", 1);
    catalog.backups().adopt(&known, &point_of(&known, &repository, "bk-2", None, at(9)), at(9)).await.expect("adopt");
    vms.change_tags(&known.vm_context_id, &tags(["db", "old"]), &BTreeSet::new()).await.expect("hang");
    let found = vms.upsert_one(&source, &machine("late", 1), at(10)).await.expect("discover");
    assert_eq!(found, known.vm_context_id);
    assert_eq!(vms.get(&found).await.expect("get").tags, tags(["db", "old", "prod"]));
}

pub async fn of_eight_that_hang_tags_at_once_none_is_lost(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let hang = (0..8).map(|number| {
        let (catalog, vm) = (world.catalog.clone(), world.vms[0].clone());
        let word: BTreeSet<Tag> = [id(&format!("t{number}"))].into();
        tokio::spawn(async move { catalog.vms().change_tags(&vm, &word, &BTreeSet::new()).await.map(drop) })
    });
    for task in hang.collect::<Vec<_>>() {
        task.await.expect("join").expect("hang");
    }
    assert_eq!(world.catalog.vms().get(&world.vms[0]).await.expect("get").tags.len(), 8);
}

pub async fn policies_see_what_lists_tell(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let (vms, backups) = (world.catalog.vms(), world.catalog.backups());
    vms.change_tags(&world.vms[1], &tags(["prod", "db"]), &BTreeSet::new()).await.expect("hang");
    // One is gone, one has lost a disk, and one is known from its points only.
    let left = [machine("vm0", 2), machine("vm1", 1)];
    vms.upsert_discovered(&world.source_id, &left, at(10)).await.expect("discover");
    let known = known_vm("vm-old", "Old", 1);
    let old = point_of(&known, &world.repository_id, "bk-old", None, at(9));
    backups.adopt(&known, &old, at(9)).await.expect("adopt");

    let (listed, _) = vms.list(&VmFilter::default(), Page::default()).await.expect("list");
    let seen = vms.seen().await.expect("look");
    let expected: Vec<SeenVm> = listed
        .iter()
        .cloned()
        .map(|vm| SeenVm {
            vm_context_id: vm.vm_context_id,
            source_id: vm.source_id,
            kind: vm.kind,
            instance_uuid: vm.instance_uuid,
            vm_name: vm.vm_name,
            folder: vm.folder,
            tags: vm.tags,
            last_seen_at: vm.last_seen_at,
            vanished_at: vm.vanished_at,
        })
        .collect();
    assert_eq!(seen, expected, "in one order, too");
    assert_eq!(seen.len(), 4);
    assert_eq!(seen.iter().filter(|vm| vm.vanished_at.is_some()).count(), 1);
    assert_eq!(seen.iter().find(|vm| vm.vm_name.as_str() == "vm1").expect("there").tags, tags(["db", "prod"]));

    let bytes = vms.disk_bytes().await.expect("add up");
    for vm in &listed {
        let disks = vm.disks.iter().filter(|disk| disk.present).map(|disk| disk.capacity_bytes);
        assert_eq!(bytes.get(&vm.vm_context_id).copied().unwrap_or(0), disks.sum::<u64>(), "{}", vm.vm_name);
    }
    let strangers = [world.vms[1].clone(), id("vm-x"), world.vms[0].clone()];
    let mut found = vms.of_ids(&strangers).await.expect("look up");
    found.sort_by(|a, b| a.vm_name.as_str().cmp(b.vm_name.as_str()));
    assert_eq!(found, [vms.get(&world.vms[0]).await.expect("get"), vms.get(&world.vms[1]).await.expect("get")]);
}
