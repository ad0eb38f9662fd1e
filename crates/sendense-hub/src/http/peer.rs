//! The certificate that a client showed: from the TLS handshake to the requests on its connection.

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use rustls_pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::pin::Pin;
use tokio_rustls::server::TlsStream;
use tower::Layer;

/// The certificate of the client at the other end of a request's connection, none where it showed none. It was checked
/// against the authority for nodes in the handshake; whether its node is still valid is asked at each request.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub Option<CertificateDer<'static>>);

/// Tells each request of a connection who is at its other end.
#[derive(Debug, Clone)]
pub(super) struct Acceptor<A>(pub A);

type Accepted<S, T> = (TlsStream<S>, AddExtension<T, Peer>);

impl<A, I, S, C, T> Accept<I, S> for Acceptor<A>
where
    A: Accept<I, S, Stream = TlsStream<C>, Service = T>,
    A::Future: Send + 'static,
    C: Send + 'static,
    T: Send + 'static,
{
    type Stream = TlsStream<C>;
    type Service = AddExtension<T, Peer>;
    type Future = Pin<Box<dyn Future<Output = io::Result<Accepted<C, T>>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let peer = Peer(shown.map(|certificate| certificate.clone().into_owned()));
            Ok((stream, Extension(peer).layer(service)))
        })
    }
}
