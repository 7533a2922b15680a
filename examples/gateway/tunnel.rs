//! Connections that speak something else from now on.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::drain::Drain;
use crate::erased::Body;

/// Carries octets both ways until both sides have said their last. It counts as open, so that a drain waits for
/// it, and `held` is dropped with it.
pub(crate) fn dig(client: OnUpgrade, upstream: OnUpgrade, held: Body, drain: &Drain) {
    let open = drain.hold();
    tokio::spawn(async move {
        let _held = (open, held);
        // Where one of them never became a tunnel, the other is closed by being dropped.
        let Ok((client, upstream)) = tokio::try_join!(client, upstream) else {
            return;
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
    });
}
