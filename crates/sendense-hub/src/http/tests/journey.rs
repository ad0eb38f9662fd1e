//! A whole journey through the typed client: repository, source, full, chain, verify, restore, delete.

use super::Fixture;
use sendense_api::{
    BackupFilter, ChainQuery, Client, ClientOptions, CreateBackup, CreateRepository, CreateSource, DeleteQuery,
    ListQuery, RepositoryConfig, RestoreBackup, RestoreTarget, Role, VerifyBackup, VmFilter,
};
use sendense_types::{BackupStatus, BackupType, ProblemCode, RepositoryKind, SourceKind, TaskState};

fn backup(vm_name: &str, backup_type: BackupType) -> CreateBackup {
    CreateBackup {
        vm_name: Some(vm_name.to_owned()),
        vm_context_id: None,
        repository_id: "main".to_owned(),
        backup_type,
        disk_id: None,
        policy_id: None,
        tags: [("why".to_owned(), "test".to_owned())].into(),
        quiesce: false,
        quiesce_or_fail: false,
        compression: None,
        on_tracking_loss: None,
        time_limit_seconds: None,
        bytes_per_second_max: None,
        exclude_disks: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_goes_in_and_comes_back() {
    let fixture = Fixture::new().await;
    let client = Client::new(ClientOptions::new(fixture.hub.url()).with_token(fixture.token(Role::Admin))).unwrap();

    let path = |name: &str| fixture.folder.path().join(name).to_string_lossy().into_owned();
    // The name of the VM's folder becomes its name, and must survive being part of a URL.
    let vm_name = "web 1 & more";
    std::fs::create_dir_all(path(&format!("images/{vm_name}"))).unwrap();
    let image = path(&format!("images/{vm_name}/disk.raw"));
    let mut bytes: Vec<u8> = (0..3 << 20).map(|number: u32| (number / 65_536 * 7 % 251) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();

    let repository = client
        .create_repository(&CreateRepository {
            name: "main".to_owned(),
            kind: RepositoryKind::Local,
            config: RepositoryConfig { path: path("repository") },
            compression: None,
            running_tasks_max: None,
        })
        .await
        .unwrap();
    assert!(client.repository_storage("main").await.unwrap().available_bytes > 0);
    client
        .create_source(&CreateSource {
            name: "images".to_owned(),
            kind: SourceKind::Image,
            address: path("images"),
            credentials: None,
            thumbprint: None,
            scratch_path: None,
            scratch_floor_bytes: None,
            nbd: None,
            vsphere: None,
            running_tasks_max: None,
            node: None,
        })
        .await
        .unwrap();
    let discovery = client.discover_source("images").await.unwrap();
    assert_eq!((discovery.total, discovery.vms[0].vm_name.as_str()), (1, vm_name));
    let vm = client.get_vm(vm_name).await.unwrap();
    assert_eq!(
        client.list_vms(&VmFilter { vm_name: Some(vm_name.to_owned()), ..Default::default() }).await.unwrap().total,
        1
    );

    let full = client.create_backup(&backup(vm_name, BackupType::Full)).await.unwrap();
    let mut seen = 0;
    let task = client.wait_for_task(full.task_id.as_ref().unwrap(), |_| seen += 1).await.unwrap();
    assert_eq!((task.state, task.error), (TaskState::Completed, None));
    assert!(seen > 0);
    let full = client.get_backup(&full.backup_id).await.unwrap();
    assert_eq!((full.status, full.backup_type, full.disks.len()), (BackupStatus::Completed, BackupType::Full, 1));
    assert_eq!(full.tags["why"], "test");

    bytes[70_000] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    let incremental = client.create_backup(&backup(vm_name, BackupType::Incremental)).await.unwrap();
    let task = client.wait_for_task(incremental.task_id.as_ref().unwrap(), |_| {}).await.unwrap();
    assert_eq!((task.state, task.error), (TaskState::Completed, None));

    let which = ChainQuery::default();
    let chain = client.vm_backup_chain(vm_name, &which).await.unwrap();
    assert_eq!(chain, client.vm_backup_chain(vm.vm_context_id.as_str(), &which).await.unwrap());
    let by_id = ChainQuery { vm_context_id: Some(vm.vm_context_id.clone()), ..which };
    assert_eq!(chain, client.backup_chain(&by_id).await.unwrap());
    assert_eq!(chain.chain_id, format!("{}-disk0-chain", vm.vm_context_id));
    let points: Vec<_> = chain.backups.iter().map(|point| point.backup.backup_id.clone()).collect();
    assert_eq!(points, [full.backup_id.clone(), incremental.backup_id.clone()]);
    assert_eq!(chain.repository_id, repository.repository_id);

    let verify = client
        .verify_backup(&incremental.backup_id, &VerifyBackup { deep: true, own_files_only: false })
        .await
        .unwrap();
    let verify = client.wait_for_task(&verify.task_id, |_| {}).await.unwrap();
    assert_eq!((verify.state, verify.error), (TaskState::Completed, None));

    let target = RestoreTarget::raw_file(path("restored.raw"));
    let request = RestoreBackup { target, disk_id: None, allow_damaged: false };
    // With every place for streams taken, waiting goes on by asking.
    let mut streams = Vec::new();
    while let Ok(stream) = client.events().await {
        streams.push(stream);
    }
    let restore = client.restore_backup(&incremental.backup_id, &request).await.unwrap();
    let restore = client.wait_for_task(&restore.task_id, |_| {}).await.unwrap();
    drop(streams);
    assert_eq!((restore.state, restore.error), (TaskState::Completed, None));
    assert!(std::fs::read(path("restored.raw")).unwrap() == bytes, "the restored disk differs");

    assert!(client.backup_log(&full.backup_id, &ListQuery::default()).await.unwrap().total > 0);
    let error = client.delete_backup(&full.backup_id, &DeleteQuery::default()).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(409), Some(ProblemCode::HasDependents)));
    assert!(error.to_string().contains(incremental.backup_id.as_str()), "{error}");
    let cascade = DeleteQuery { cascade: true, dry_run: true };
    let plan = client.delete_backup(&full.backup_id, &cascade).await.unwrap();
    assert_eq!((plan.dry_run, plan.backups.len()), (true, 2));
    let done = client.delete_backup(&full.backup_id, &DeleteQuery { dry_run: false, ..cascade }).await.unwrap();
    assert_eq!(done.backups, plan.backups);
    assert_eq!(client.list_backups(&BackupFilter::default()).await.unwrap().total, 0);
    fixture.hub.shutdown().await;
}
