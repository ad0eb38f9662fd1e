//! Certificates made for one test.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use sendense_block::nbd::{TlsIdentity, TlsOptions};
use std::path::PathBuf;

/// A folder as QEMU and nbdkit want it (`ca-cert.pem`, `server-cert.pem`, …), with a client's papers beside.
pub struct Papers {
    dir: tempfile::TempDir,
}

impl Papers {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = ca.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca-cert.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(ca, key);
        for (role, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "disk.example".to_owned()]).unwrap();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(dir.path().join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.path().join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
        }
        Self { dir }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    pub fn trust(&self) -> TlsOptions {
        TlsOptions { ca_file: Some(self.file("ca-cert.pem")), ..TlsOptions::default() }
    }

    pub fn trust_and_show(&self) -> TlsOptions {
        let identity =
            TlsIdentity { certificate_file: self.file("client-cert.pem"), key_file: self.file("client-key.pem") };
        TlsOptions { identity: Some(identity), ..self.trust() }
    }
}
