//! `sendense node`.

use clap::{Args as ClapArgs, Subcommand};
use std::path::PathBuf;

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
    #[command(flatten)]
    pub run: NodeRun,
}

/// How a node runs.
#[derive(Debug, ClapArgs)]
pub struct NodeRun {
    #[command(flatten)]
    pub place: NodePlace,
    /// The hub's address, where it is another one than at the enrolment. The hub must be the same.
    #[arg(long, value_name = "URL")]
    pub hub: Option<String>,
    /// What the node must be called: refuses to run as another one.
    #[arg(long)]
    pub name: Option<String>,
    /// Folder that sources on this machine may lie in. Repeatable; without it none may.
    #[arg(long = "allow-path", value_name = "DIR")]
    pub allow_paths: Vec<PathBuf>,
    /// What blocks may take of the link, per second (`12MB`).
    #[arg(long, value_name = "SIZE")]
    pub bandwidth: Option<bytesize::ByteSize>,
    /// Log as JSON lines.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a code that lets a node in, once, within a quarter of an hour.
    Pair {
        /// What the node will be called.
        #[arg(long)]
        name: String,
    },
    /// List nodes.
    List,
    /// Revoke a node. Whatever it does is refused from that moment on.
    Revoke {
        /// Its name or id.
        node: String,
    },
    /// Make this machine a node: shows the hub's certificate and asks, unless --fingerprint or --ca-file tells it.
    Enrol {
        /// The hub's address: `https://HOST:8082`.
        #[arg(long, value_name = "URL")]
        hub: String,
        /// The code from `sendense node pair`.
        #[arg(long, env = "SENDENSE_PAIRING_CODE", hide_env_values = true)]
        code: String,
        /// HTTP proxy on the way to the hub. Default: what `HTTPS_PROXY` says.
        #[arg(long, value_name = "URL")]
        proxy: Option<String>,
        #[command(flatten)]
        place: NodePlace,
    },
    /// Ask the hub whether it knows this node.
    Check(NodePlace),
    /// Look whether this machine can read and write vSphere's disks, and say what to do where it cannot. Asks no hub.
    Doctor {
        /// The folder vmware-vix-disklib-distrib. Default: where nbdkit's plugin looks.
        #[arg(long, value_name = "DIR")]
        vddk_libdir: Option<PathBuf>,
        /// nbdkit's vddk plugin as a file, where nbdkit does not find it by its name.
        #[arg(long, value_name = "FILE")]
        nbdkit_plugin: Option<PathBuf>,
        /// The transport modes that are wanted, joined by colons. Default: nbdssl.
        #[arg(long, value_name = "MODES")]
        transports: Option<String>,
    },
    /// Take the hub's new certificate, after it was renewed. Asks like `enrol`.
    Trust(NodePlace),
}

/// Where a node keeps what it is.
#[derive(Debug, ClapArgs)]
pub struct NodePlace {
    /// Folder for the node's key and certificate. Made when missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sendense-node")]
    pub data_dir: PathBuf,
}
