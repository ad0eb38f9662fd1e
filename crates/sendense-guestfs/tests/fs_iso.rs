//! The ISO 9660 reader against genisoimage and xorriso.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::meta::FileType;
use std::path::Path;

fn build(dir: &Path) {
    build_plain_tree(dir, 1500);
    sh(
        dir,
        "ln -s etc/passwd link; ln -s /etc/passwd evil; ln -s ../../x/./y up; ln -s $(printf '%0.sabcdefgh/' {1..20})end long_link
         mkfifo fifo; chmod 4711 etc/passwd; chown 70000:80000 big; mkdir empty_folder",
    );
    for name in ["näme ☃", &"n".repeat(200), "two..dots", "UPPER lower.Txt"] {
        std::fs::write(dir.join(name), name).unwrap();
    }
}

/// What an image keeps: whole seconds, no link counts of folders.
fn kept(mut tree: Tree) -> Tree {
    for shown in tree.values_mut() {
        (shown.inode, shown.links, shown.modified.1) = (0, 1, 0);
        if shown.file_type != FileType::File {
            shown.size = 0;
        }
    }
    tree
}

#[test]
fn rock_ridge_reads_as_the_tree_it_was_made_of() {
    need("genisoimage", "genisoimage");
    need("xorriso", "xorriso");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    build(&tree);
    for command in ["genisoimage -quiet -R -J -joliet-long -input-charset utf-8", "xorriso -as mkisofs -quiet -J"] {
        sh(dir.path(), &format!("{command} -V LAB -o a.iso tree 2>/dev/null"));
        let image = dir.path().join("a.iso");
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid));
        let mut read = kept(reader_tree(&mut *fs, 41));
        // Where deep folders were moved from, they are shown; the place they were moved to stays empty.
        read.remove(&b"/rr_moved"[..]);
        same(&kept(kernel_tree(&tree)), &read);
    }
}

#[test]
fn joliet_and_plain_names_are_read() {
    need("genisoimage", "genisoimage");
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p tree/Folder; echo one > 'tree/Folder/näme ☃.text'; echo two > tree/readme
         genisoimage -quiet -J -input-charset utf-8 -o joliet.iso tree 2>/dev/null; rm tree/Folder/*
         genisoimage -quiet -o plain.iso tree 2>/dev/null",
    );
    let mut fs = open(&dir.path().join("joliet.iso"));
    assert_eq!(cat(&mut *fs, "/Folder/näme ☃.text").unwrap(), b"one\n");
    let mut fs = open(&dir.path().join("plain.iso"));
    assert_eq!(reader_tree(&mut *fs, 10).into_keys().collect::<Vec<_>>(), [&b"/folder"[..], b"/readme"]);
    assert_eq!(cat(&mut *fs, "/readme").unwrap(), b"two\n");
}
