//! The task of a line.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_nats::Subscriber;
use futures_util::Stream;
use tokio::time::Sleep;

use super::{Desk, LOOK};
use crate::base::clock;

/// The task: hands out what comes, and looks at the connection.
struct Courier {
    desk: Arc<Desk>,
    inbox: Subscriber,
    look: Option<Pin<Box<Sleep>>>,
}

// ===== impl Courier =====

/// Serves the line until it is closed, or nobody has it any more.
pub(super) async fn run(desk: Arc<Desk>) {
    /// However the task ends, nobody waits for ever.
    struct Closes(Arc<Desk>);
    impl Drop for Closes {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _closes = Closes(desk.clone());
    let Ok(inbox) = desk.client.subscribe(format!("{}*", desk.prefix)).await else {
        return;
    };
    let seats = {
        let mut table = desk.table();
        table.open = true;
        std::mem::take(&mut table.seats)
    };
    seats.into_values().for_each(Waker::wake);
    let look = None;
    Courier { desk, inbox, look }.await;
}

impl Future for Courier {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match Pin::new(&mut self.inbox).poll_next(cx) {
                Poll::Ready(Some(message)) => self.desk.deliver(message),
                // async-nats drops its end when it gives up for good, or was drained.
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        loop {
            if let Some(look) = &mut self.look {
                if look.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if !self.desk.look(cx) {
                    self.look = None;
                    return Poll::Pending;
                }
            } else if self.desk.sleeps(cx) {
                return Poll::Pending;
            }
            self.look = Some(Box::pin(tokio::time::sleep_until(clock::now() + LOOK)));
        }
    }
}
