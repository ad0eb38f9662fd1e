//! Kinds of sources and repositories.

use crate::backup::words;
use serde::{Deserialize, Serialize};

words! {
    /// What a source is.
    SourceKind {
        /// vCenter or a bare ESXi host.
        Vsphere = "vsphere",
        /// libvirt with QEMU.
        Libvirt = "libvirt",
        /// A folder of disk images.
        Image = "image",
        /// An NBD server.
        Nbd = "nbd",
    }
}

words! {
    /// Where a repository lies.
    RepositoryKind {
        /// A folder on a local file system.
        Local = "local",
        /// A folder on NFS.
        Nfs = "nfs",
        /// A folder on SMB.
        Cifs = "cifs",
        /// A bucket.
        S3 = "s3",
    }
}

words! {
    /// What may be done in a repository now.
    RepositoryMode {
        /// Everything.
        Normal = "normal",
        /// Points are read and verified; none is made, changed or deleted.
        ReadOnly = "read_only",
        /// What runs comes to its end, and nothing begins.
        Draining = "draining",
        /// Nothing: its folder is left alone.
        Offline = "offline",
    }
}

words! {
    /// How much room a repository has left.
    SpaceState {
        /// Enough.
        Ok = "ok",
        /// Somebody should see to it within days.
        Low = "low",
        /// Somebody should see to it now.
        Critical = "critical",
    }
}
