//! Privileges: which a backup and a restore need, and which of them the account lacks.
//!
//! What lives here: the lists, and asking. What does not: roles; an administrator makes those.

use crate::client::Vim;
use crate::error::{Error, Result};
use crate::reply::reference_at;
use crate::request::{Method, Ref};
use sendense_block::Cancel;

/// What a backup needs on each machine, as vSphere calls it, with the name that the web client shows.
pub const BACKUP: [(&str, &str); 6] = [
    ("VirtualMachine.State.CreateSnapshot", "Virtual machine > Snapshot management > Create snapshot"),
    ("VirtualMachine.State.RemoveSnapshot", "Virtual machine > Snapshot management > Remove snapshot"),
    ("VirtualMachine.Config.ChangeTracking", "Virtual machine > Change configuration > Toggle disk change tracking"),
    ("VirtualMachine.Config.DiskLease", "Virtual machine > Change configuration > Acquire disk lease"),
    ("VirtualMachine.Provisioning.DiskRandomRead", "Virtual machine > Provisioning > Allow read-only disk access"),
    ("VirtualMachine.Provisioning.GetVmFiles", "Virtual machine > Provisioning > Allow virtual machine download"),
];

/// What a restore needs besides.
pub const RESTORE: [(&str, &str); 10] = [
    ("VirtualMachine.Inventory.Create", "Virtual machine > Edit inventory > Create new"),
    ("VirtualMachine.Inventory.Delete", "Virtual machine > Edit inventory > Remove"),
    ("VirtualMachine.Config.AddNewDisk", "Virtual machine > Change configuration > Add new disk"),
    ("VirtualMachine.Config.AddRemoveDevice", "Virtual machine > Change configuration > Add or remove device"),
    ("VirtualMachine.Config.Annotation", "Virtual machine > Change configuration > Set annotation"),
    ("VirtualMachine.Config.Settings", "Virtual machine > Change configuration > Change settings"),
    ("VirtualMachine.Provisioning.DiskRandomAccess", "Virtual machine > Provisioning > Allow disk access"),
    ("Datastore.AllocateSpace", "Datastore > Allocate space"),
    ("Network.Assign", "Network > Assign network"),
    ("Resource.AssignVMToPool", "Resource > Assign virtual machine to resource pool"),
];

impl Vim {
    /// The object that everything else lies below.
    pub fn root_folder(&self) -> &Ref {
        &self.service.root_folder
    }

    /// Those of `wanted` that the account has not on the object. An empty list where the server cannot be asked would be a
    /// lie, so that is an error.
    pub fn missing_privileges(&self, on: &Ref, wanted: &[&str], cancel: &Cancel) -> Result<Vec<String>> {
        const METHOD: Method = Method::HasPrivilegeOnEntities;
        let bad = |problem: &str| Error::Reply { method: METHOD.name().into(), problem: problem.into() };
        let manager = self
            .service
            .authorization_manager
            .as_ref()
            .ok_or_else(|| bad("the server has no authorization manager"))?;
        let ask = || {
            let session = self.session_key();
            self.ask(
                METHOD,
                manager,
                |body| {
                    body.reference("entity", on).value("sessionId", &session);
                    for privilege in wanted {
                        body.value("privId", privilege);
                    }
                },
                cancel,
            )
        };
        let logins = self.logins();
        let mut answer = ask();
        // The key in the question was the old session's when the login was renewed on the way.
        if self.logins() != logins {
            answer = ask();
        }
        let answer = answer?;
        let held = answer
            .children("returnval")
            .find(|entity| reference_at(entity, "entity").as_ref() == Some(on))
            .ok_or_else(|| bad("it does not speak of the object"))?;
        let granted = |privilege: &str| {
            held.children("privAvailability")
                .any(|one| one.text_at("privId") == Some(privilege) && one.flag_at("isGranted") == Some(true))
        };
        Ok(wanted.iter().filter(|privilege| !granted(privilege)).map(|privilege| (*privilege).to_owned()).collect())
    }
}
