//! Certificates for both ends of an NBD connection, made for one test.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::path::Path;

/// A folder as QEMU and libnbd want it: `ca-cert.pem`, and certificate and key of `server` and `client`. The server is called
/// `disk.example` and `localhost`.
pub fn papers(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca-cert.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, key);
    for (role, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["disk.example".to_owned(), "localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        std::fs::write(dir.join(format!("{role}-cert.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}
